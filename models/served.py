"""Lists as the request path makes them, from arrays: its sources and its fusion, by exact search.

`bundle_scorer` gives an item its best dot product with any interest. Serving asks the index once an interest and fuses the
lists by their ranks; it forgets what fell out of a user's log. With the interests alone and one of them only that differs.
"""

from collections.abc import Mapping
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.evaluation import Catalog, best, interests_of
from models.events import Log, newest
from models.protocols import Cases, Floats, Ints, Scorer, histories
from streams.encoder import Encoder
from streams.neighbours import Neighbours
from streams.recall.buy_again import buy_again
from streams.recall.fusion import Ranking, fuse
from streams.recall.similar import Similar

INTERESTS: Final[Mapping[str, float]] = {"interests": 1.0}


def served(encoder: Encoder, catalog: Catalog, k: int, sources: Mapping[str, float] = INTERESTS) -> Scorer:
    """Lists of length k as scores: k for the first of a list, 1 for its last, -inf for what is not in it.

    `sources`: the weights of `interests`, `buy-again` and, for a bundle with a table of neighbours, `similar`; those that are
    not there take no part. Ask with cases that remember no more than the log of the service does (`encoder.log_length`).
    """
    with_session = _Sessions(encoder.neighbours, encoder.log_length, catalog) if encoder.neighbours else None

    def scores(log: Log, cases: Cases, part: slice) -> Floats:
        asked = interests_of(encoder, catalog, log, cases, part)
        hidden = np.tile(~catalog.known, (part.stop - part.start, 1))
        if cases.mask_seen:
            owners, rows = histories(log, cases, part)
            hidden[owners, log.items[rows]] = True
        nearest = [
            _nearest(asked.interests[:, interest] @ catalog.vectors.T, hidden, k)
            for interest in range(encoder.interests if "interests" in sources else 0)
        ]
        again = _again(catalog, log, cases, part, k) if "buy-again" in sources else {}
        similar = with_session(log, cases, part, hidden, k) if with_session and "similar" in sources else {}
        found = np.full(hidden.shape, -np.inf, dtype=np.float32)
        for case in np.flatnonzero(asked.any_event).tolist():
            total = float(asked.weights[case].sum()) or 1.0
            named = {"buy-again": again.get(case), "similar": similar.get(case)}
            rankings = [_ranking(source, sources[source], items) for source, items in named.items() if items]
            for weight, lists in zip(asked.weights[case], nearest, strict=False):
                if weight > 0:
                    items = lists[case][lists[case] >= 0].tolist()
                    rankings.append(
                        _ranking("interests", sources["interests"] * float(weight) / total, items)
                    )
            for place, item in enumerate(fuse(rankings)[:k]):
                found[case, item.key] = k - place
        return found

    return scores


def _ranking(source: str, weight: float, items: list[int]) -> Ranking:
    return Ranking(source, weight, [(item, "") for item in items])


def _again(catalog: Catalog, log: Log, cases: Cases, part: slice, k: int) -> dict[int, list[int]]:
    """Of each case that may have seen items, counted from the slice's start: what is wanted again."""
    if cases.mask_seen:
        return {}
    owners, rows = histories(log, cases, part)
    known = catalog.known[log.items[rows]]
    owners, rows = owners[known], rows[known]
    bounds = np.searchsorted(owners, np.arange(part.stop - part.start + 1))
    found = {}
    for case, now_ms in enumerate(cases.now_ms[part].tolist()):
        mine = rows[bounds[case] : bounds[case + 1]]
        wishes = zip(log.items[mine].tolist(), log.at_ms[mine].tolist(), strict=True)
        found[case] = buy_again(wishes, now_ms)[:k]
    return found


class _Sessions:
    """What goes with the session at hand of each case, from the newest events that the log of the service holds."""

    def __init__(self, table: Neighbours, length: int, catalog: Catalog) -> None:
        self._source, self._length, self._keys = Similar(table), length, catalog.keys.tolist()
        self._items = dict(zip(self._keys, range(len(self._keys)), strict=True))

    def __call__(
        self, log: Log, cases: Cases, part: slice, hidden: NDArray[np.bool_], k: int
    ) -> dict[int, list[int]]:
        length = min(self._length, cases.remembered or self._length)
        rows, mask = newest(log, cases.users[part], cases.ends[part], length)
        found = {}
        for case, (own, real, now_ms) in enumerate(
            zip(rows, mask > 0, cases.now_ms[part].tolist(), strict=True)
        ):
            wishes = [
                (self._keys[item], at_ms, action)
                for item, at_ms, action in zip(
                    log.items[own[real]].tolist(),
                    log.at_ms[own[real]].tolist(),
                    log.actions[own[real]].tolist(),
                    strict=True,
                )
            ]
            ranked = self._source.session(wishes, now_ms).ranked()
            items = (self._items[key] for key in ranked if key in self._items)
            found[case] = list(islice((item for item in items if not hidden[case, item]), k))
        return found


def _nearest(scores: Floats, hidden: NDArray[np.bool_], k: int) -> Ints:
    """The best k items of each case that are not hidden, -1 where there are fewer."""
    scores[hidden] = -np.inf
    lists = best(scores, k)
    lists[np.isneginf(np.take_along_axis(scores, lists, axis=1))] = -1
    return lists
