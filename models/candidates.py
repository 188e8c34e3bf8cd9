"""The candidates that a bundle brings up for a question, as its scorer sees them: for training and for judging."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from models.baselines import DAY_MS
from models.evaluation import Catalog, best, bundle_products, interests_of
from models.events import Log, newest
from models.protocols import Cases, Floats, Ints, Scorer, Split
from models.served import Counting, seen, wanted_again
from streams.encoder import Encoder
from streams.features import History, candidate_features
from streams.trends import HALF_LIFE_S, TOP


@dataclass(frozen=True)
class Pool:
    """One question's candidates."""

    items: Ints  # (candidates,) best first, then those that the user had
    features: Floats  # (candidates, CANDIDATE_FEATURES)
    nearest: Floats  # (candidates, D): the user's interest that each of them is nearest to


class Pooling:
    """What recall brings up: the items nearest to the user's interests and, where they may come again, those it had.

    `size` of the former; popularity as `trending` has it.
    """

    def __init__(self, encoder: Encoder, catalog: Catalog, asked: Split, size: int) -> None:
        self.vectors, self._catalog = catalog.vectors, catalog
        self._encoder, self._size, self.length = encoder, size, encoder.log_length
        self._counting = Counting(self.length)
        self._popularity = trending(asked, len(catalog.vectors))

    def __call__(self, log: Log, cases: Cases, part: slice) -> tuple[list[Pool], Floats]:
        """The pool of each case, and the products of all items (cases, items) that it was chosen by."""
        asked = interests_of(self._encoder, self._catalog, log, cases, part)
        products = bundle_products(asked.interests, self._catalog)
        products[~asked.any_event] = -np.inf
        counted = self._counting(log, cases)
        if cases.mask_seen:
            products[seen(log, cases, part, counted)] = -np.inf
        nearest = best(products, self._size)
        rows, mask = newest(log, cases.users[part], cases.ends[part], self.length)
        pools = []
        wanted = wanted_again(log, cases, part, self.length, counted)
        for case, own in enumerate(asked.interests):
            had = rows[case][mask[case] > 0]
            now_ms = int(cases.now_ms[part][case])
            bought, at_ms = log.items[had], log.at_ms[had]
            again = np.setdiff1d(wanted[case], nearest[case]).astype(np.int64)
            items = np.concatenate([nearest[case], again])
            items = items[np.isfinite(products[case, items])]
            features = candidate_features(
                items.astype(np.uint64),
                products[case, items],
                self._popularity(now_ms, items),
                History(bought.astype(np.uint64), at_ms, now_ms, self.length),
            )
            which = (self.vectors[items] @ own.T).argmax(axis=1)
            pools.append(Pool(items, features, own[which]))
        return pools, products


def rescored(encoder: Encoder, pooling: Pooling) -> Scorer:
    """A bundle as it serves with its score graph: what is in the pool first, in the graph's order."""

    def scores(log: Log, cases: Cases, part: slice) -> Floats:
        pools, found = pooling(log, cases, part)
        given = (
            np.concatenate([pool.features for pool in pools]),
            np.concatenate([pool.nearest for pool in pools]),
            pooling.vectors[np.concatenate([pool.items for pool in pools])],
        )
        starts = np.cumsum([len(pool.items) for pool in pools])[:-1]
        for row, own, pool in zip(found, np.split(encoder.score(*given), starts), pools, strict=True):
            places = np.argsort(-own, kind="stable")
            row[pool.items[places]] = row.max(initial=0.0) + np.arange(len(places), 0, -1)
        return found

    return scores


def trending(asked: Split, items: int) -> Callable[[int, Ints], Floats]:
    """What `streams.trends` counts, up to the begin of the day: weights of items relative to the heaviest of all.

    As for the baselines, what happens after the split is counted under `prequential` only.
    """
    known = asked.log if asked.protocol == "prequential" else asked.train
    last_ms = (
        asked.at_ms if asked.at_ms and asked.protocol != "prequential" else int(known.at_ms.max()) + DAY_MS
    )
    order = np.argsort(known.at_ms, kind="stable")
    days, wanted = known.at_ms[order] // DAY_MS, known.items[order]
    half_life_days = HALF_LIFE_S * 1000 / DAY_MS
    held: dict[int, tuple[Ints, Floats]] = {}

    def top(day: int) -> tuple[Ints, Floats]:
        rows = slice(*np.searchsorted(days, [day - 10 * half_life_days, day]))
        weights = np.bincount(wanted[rows], np.exp2((days[rows] - day) / half_life_days), minlength=items)
        heaviest = np.sort(best(weights[None].astype(np.float32), TOP)[0])
        return heaviest, (weights[heaviest] / max(weights.max(), 1e-12)).astype(np.float32)

    def weights(now_ms: int, of: Ints) -> Floats:
        day = min(now_ms, last_ms) // DAY_MS
        if day not in held:
            held[day] = top(day)
        heaviest, found = held[day]
        places = np.searchsorted(heaviest, of).clip(max=len(heaviest) - 1)
        return np.where(heaviest[places] == of, found[places], np.float32(0))

    return weights
