"""The candidates of a bundle for a question, with the features that its scorer sees; for training and for judging."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np

from headwater.encoder.features import History, candidate_features
from headwater.encoder.neighbours import Neighbours
from headwater.encoder.runtime import Encoder
from headwater.recall.popularity import HALF_LIFE_S, TOP
from headwater_models.arrays import F32, I64
from headwater_models.data.events import Log, newest
from headwater_models.judging.baselines import DAY_MS
from headwater_models.judging.evaluation import Catalog, best, interests_of
from headwater_models.judging.protocols import Cases, Scorer, Split
from headwater_models.judging.served import Counting, Sessions, nearest, seen, shown, wanted_again


@dataclass(frozen=True)
class Pool:
    """One question's candidates."""

    items: I64  # (candidates,)
    features: F32  # (candidates, CANDIDATE_FEATURES)
    nearest: F32  # (candidates, D): the user's interest that each of them is nearest to


class Pooling:
    """Candidates from the sources of a request that names none: buy-again, similar, and each of the user's interests.

    At most `size` items come from each source. Popularity is that of `trending`.

    Args:
        table: of neighbours. None: the bundle's own, which is right unless the questions are about events it was made from.
    """

    def __init__(
        self, encoder: Encoder, catalog: Catalog, asked: Split, size: int, table: Neighbours | None = None
    ) -> None:
        self.vectors, self._catalog = catalog.vectors, catalog
        self._encoder, self._size, self.length = encoder, size, encoder.log_length
        self._sessions = Sessions(table or encoder.neighbours, self.length, catalog)
        self._counting = Counting(self.length)
        self._popularity = trending(asked, len(catalog.vectors))

    def __call__(self, log: Log, cases: Cases, part: slice) -> tuple[list[Pool], F32]:
        """The pool of each case, and each item's best product with an interest, (cases, items), by which it was chosen."""
        asked = interests_of(self._encoder, self._catalog, log, cases, part)
        counted = self._counting(log, cases)
        hidden = np.tile(~self._catalog.known, (part.stop - part.start, 1))
        again: list[Mapping[int, float]] = [{}] * len(hidden)
        if cases.mask_seen:
            hidden[seen(log, cases, part, counted)] = True
        else:
            again = wanted_again(log, cases, part, self.length, counted)
        products, near = np.full(hidden.shape, -np.inf, dtype=np.float32), []
        for interest, weights in enumerate(asked.weights.T):
            own = asked.interests[:, interest] @ self.vectors.T
            near.append(np.where(weights[:, None] > 0, nearest(own, hidden, self._size), -1))
            np.maximum(products, own, out=products)
        products[~asked.any_event] = -np.inf
        near_any = np.concatenate(near, axis=1)
        similar = self._sessions(log, cases, part)
        rows, mask = newest(log, cases.users[part], cases.ends[part], self.length)
        pools = []
        for case, interests in enumerate(asked.interests):
            had = rows[case][mask[case] > 0]
            now_ms = int(cases.now_ms[part][case])
            named = [shown(of[case], hidden[case], self._size) for of in (again, similar)]
            items = np.fromiter(dict.fromkeys(chain(*named, near_any[case].tolist())), dtype=np.int64)
            items = items[(items >= 0) & np.isfinite(products[case, items])]
            features = candidate_features(
                items.astype(np.uint64),
                products[case, items],
                self._popularity(now_ms, items),
                History(
                    log.items[had].astype(np.uint64),
                    log.at_ms[had],
                    now_ms,
                    self.length,
                    again[case],
                    similar[case],
                ),
            )
            which = (self.vectors[items] @ interests.T).argmax(axis=1)
            pools.append(Pool(items, features, interests[which]))
        return pools, products


def rescored(encoder: Encoder, pooling: Pooling) -> Scorer:
    """Scores (cases, items) of a bundle with a score graph: the pool first, in the graph's order."""

    def scores(log: Log, cases: Cases, part: slice) -> F32:
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


def trending(asked: Split, items: int) -> Callable[[int, I64], F32]:
    """Popularity as `headwater.recall.popularity` counts it, up to the begin of the day: (moment, items (n,)) -> weights (n,).

    Weights are relative to the heaviest item. As for the baselines, events after the split count under `prequential` only.
    """
    known = asked.log if asked.protocol == "prequential" else asked.train
    last_ms = (
        asked.at_ms if asked.at_ms and asked.protocol != "prequential" else int(known.at_ms.max()) + DAY_MS
    )
    order = np.argsort(known.at_ms, kind="stable")
    days, wanted = known.at_ms[order] // DAY_MS, known.items[order]
    half_life_days = HALF_LIFE_S * 1000 / DAY_MS
    held: dict[int, tuple[I64, F32]] = {}

    def top(day: int) -> tuple[I64, F32]:
        rows = slice(*np.searchsorted(days, [day - 10 * half_life_days, day]))
        weights = np.bincount(wanted[rows], np.exp2((days[rows] - day) / half_life_days), minlength=items)
        heaviest = np.sort(best(weights[None].astype(np.float32), TOP)[0])
        return heaviest, (weights[heaviest] / max(weights.max(), 1e-12)).astype(np.float32)

    def weights(now_ms: int, of: I64) -> F32:
        day = min(now_ms, last_ms) // DAY_MS
        if day not in held:
            held[day] = top(day)
        heaviest, found = held[day]
        places = np.searchsorted(heaviest, of).clip(max=len(heaviest) - 1)
        return np.where(heaviest[places] == of, found[places], np.float32(0))

    return weights
