"""Lists as the request path makes them, from arrays: the same sources and the same fusion, with exact search.

They differ from those of `bundle_scorer`, which scores an item by its best dot product with any interest. The request path
searches once for each interest and fuses the lists by their ranks. It also knows events that have left a user's log by
their counters alone. With interests as the only source and one interest, both give the same order.
"""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from headwater.encoder.neighbours import Neighbours
from headwater.encoder.runtime import Encoder
from headwater.profiles.counters import COUNTER_EFFECTS, DEFAULT_COUNTERS, CounterRows, count_evictions
from headwater.recall.fusion import Ranking, fuse
from headwater.recall.likeness import CHOICE, by_likeness
from headwater.recall.sources import Ask, PositiveEvent
from headwater.recall.sources.buy_again import BuyAgain
from headwater.recall.sources.new_items import anchor_items
from headwater.recall.sources.similar import Similar
from headwater_models.arrays import F32, I64
from headwater_models.data.events import Log, newest
from headwater_models.judging.evaluation import Catalog, best, interests_of
from headwater_models.judging.protocols import Cases, Scorer, histories

INTERESTS: Final[Mapping[str, float]] = {"interests": 1.0}


def served(
    encoder: Encoder,
    catalog: Catalog,
    k: int,
    sources: Mapping[str, float] = INTERESTS,
    new: NDArray[np.bool_] | None = None,
) -> Scorer:
    """Lists of length k as scores (cases, items): k for the first of a list, 1 for its last, -inf for items outside it.

    `sources`: the weights of `interests`, `buy-again`, `similar` for a bundle with a table of neighbours, and `new` where
    `new` (items,) marks the new items; sources without a weight take no part. Ask with cases that remember no more than
    the service's log does (`encoder.log_length`).
    """
    sessions = Sessions(encoder.neighbours, encoder.log_length, catalog)
    among_new = _New(catalog, new, encoder.log_length) if new is not None and "new" in sources else None
    counting = Counting(encoder.log_length)

    def scores(log: Log, cases: Cases, part: slice) -> F32:
        asked = interests_of(encoder, catalog, log, cases, part)
        hidden = np.tile(~catalog.known, (part.stop - part.start, 1))
        again: list[Mapping[int, float]] = []
        if cases.mask_seen:
            hidden[seen(log, cases, part, counting(log, cases))] = True
        elif "buy-again" in sources:
            again = wanted_again(log, cases, part, encoder.log_length, counting(log, cases))
        near = [
            nearest(asked.interests[:, interest] @ catalog.vectors.T, hidden, k)
            for interest in range(encoder.interests if "interests" in sources else 0)
        ]
        similar = sessions(log, cases, part) if "similar" in sources else []
        found = np.full(hidden.shape, -np.inf, dtype=np.float32)
        for case in np.flatnonzero(asked.any_event).tolist():
            total = float(asked.weights[case].sum()) or 1.0
            named = {
                "buy-again": shown(again[case], ~catalog.known, k) if again else [],
                "similar": shown(similar[case], hidden[case], k) if similar else [],
            }
            rankings = [_ranking(source, sources[source], items) for source, items in named.items() if items]
            for weight, lists in zip(asked.weights[case], near, strict=False):
                if weight > 0:
                    items = lists[case][lists[case] >= 0].tolist()
                    rankings.append(
                        _ranking("interests", sources["interests"] * float(weight) / total, items)
                    )
            if among_new:
                items = among_new(log, cases, part.start + case, hidden[case], k)
                rankings.append(_ranking("new", sources["new"], items))
            for place, item in enumerate(fuse(rankings)[:k]):
                found[case, item.key] = k - place
        return found

    return scores


def _ranking(source: str, weight: float, items: list[int]) -> Ranking:
    return Ranking(source, weight, [(item, "") for item in items])


class Counting:
    """The counters of the events that have left each case's log, by the rule of the service."""

    def __init__(self, length: int, counters: int = DEFAULT_COUNTERS) -> None:
        self._length, self._counters = length, counters
        # Of the last cases, which are asked about slice by slice.
        self._held: tuple[Cases, CounterRows] | None = None

    def __call__(self, log: Log, cases: Cases) -> CounterRows:
        """One row for each case."""
        if self._held is None or self._held[0] is not cases:
            self._held = cases, self._counted(log, cases)
        return self._held[1]

    def _counted(self, log: Log, cases: Cases) -> CounterRows:
        """Counts once through each user's history: a case goes on from the user's case before."""
        shape = (len(cases), self._counters)
        found = CounterRows(np.arange(len(cases)), np.zeros(shape, np.uint64), np.zeros(shape, np.uint16))
        user, done = -1, 0
        for case in np.lexsort((cases.ends, cases.users)).tolist():
            if cases.users[case] != user:
                user = int(cases.users[case])
                done, keys, levels = int(log.starts[user]), [0] * self._counters, [0] * self._counters
            stop = max(done, int(cases.ends[case]) - self._length)
            what = COUNTER_EFFECTS[log.actions[done:stop]].tolist()
            count_evictions(keys, levels, zip(log.items[done:stop].tolist(), what, strict=True))
            found.keys[case], found.levels[case], done = keys, levels, stop
        return found


def seen(log: Log, cases: Cases, part: slice, counted: CounterRows) -> tuple[I64, I64]:
    """The items that a worker leaves out of answers without seen items.

    Returns:
        Cases, counted from the slice's start, and items, both (pairs,).
    """
    owners, rows = histories(log, cases, part)
    before, places = np.nonzero(counted.levels[part])
    items = counted.keys[part][before, places].astype(np.int64)
    return np.concatenate([owners, before]), np.concatenate([log.items[rows], items])


def wanted_again(
    log: Log, cases: Cases, part: slice, length: int, counted: CounterRows
) -> list[Mapping[int, float]]:
    """For each case of a slice, item -> how much its user may want it again, best first.

    It rests on the newest `length` events, and on the counters of those before.
    """
    rows, mask = newest(log, cases.users[part], cases.ends[part], length)
    source, found = BuyAgain(), []
    for case, now_ms in enumerate(cases.now_ms[part].tolist()):
        levels = counted.levels[part][case]
        counters = zip(
            counted.keys[part][case][levels > 0].tolist(), levels[levels > 0].tolist(), strict=True
        )
        events = _events(log, rows[case][mask[case] > 0])
        found.append(source.keys(Ask(log=events, counters=[*counters], now_ms=now_ms)))
    return found


class Sessions:
    """Items that go with the current session of each case, from the events that the service's log holds."""

    def __init__(self, table: Neighbours | None, length: int, catalog: Catalog) -> None:
        self._source, self._length = Similar(table), length
        self._keys = catalog.keys.tolist()
        self._items = dict(zip(self._keys, range(len(self._keys)), strict=True))

    def __call__(self, log: Log, cases: Cases, part: slice) -> list[dict[int, float]]:
        """For each case, item -> how alike it is to the session's items, best first; empty without a table."""
        if not self._source.is_there:
            return [{} for _ in range(part.stop - part.start)]
        length = min(self._length, cases.remembered or self._length)
        rows, mask = newest(log, cases.users[part], cases.ends[part], length)
        found = []
        for own, real, now_ms in zip(rows, mask > 0, cases.now_ms[part].tolist(), strict=True):
            events = [(self._keys[item], at_ms, action) for item, at_ms, action in _events(log, own[real])]
            ranked = self._source.keys(Ask(log=events, now_ms=now_ms))
            found.append({self._items[key]: value for key, value in ranked.items() if key in self._items})
        return found


def _events(log: Log, rows: I64 | slice) -> list[PositiveEvent]:
    """The events in these rows of the log, as a source is told of them, with item numbers as keys."""
    columns = (log.items[rows].tolist(), log.at_ms[rows].tolist(), log.actions[rows].tolist())
    return list(zip(*columns, strict=True))


def shown(items: Iterable[int], hidden: NDArray[np.bool_], k: int) -> list[int]:
    """The first k that are not hidden (items,)."""
    return list(islice((item for item in items if not hidden[item]), k))


class _New:
    """New items that are like those that the user of a case is taking, from the events that the service's log holds."""

    def __init__(self, catalog: Catalog, new: NDArray[np.bool_], length: int) -> None:
        self._catalog, self._length = catalog, length
        self._new = np.flatnonzero(new & catalog.known)
        self._vectors = catalog.vectors[self._new]

    def __call__(self, log: Log, cases: Cases, case: int, hidden: NDArray[np.bool_], k: int) -> list[int]:
        """At most k items that are not `hidden` (items,), best first."""
        length = min(self._length, cases.remembered or self._length)
        end = int(cases.ends[case])
        own = slice(max(int(log.starts[cases.users[case]]), end - length), end)
        items = anchor_items(Ask(log=_events(log, own), now_ms=int(cases.now_ms[case])))
        like = self._catalog.vectors[[item for item in items if self._catalog.known[item]]]
        if not len(like) or not len(self._new):
            return []
        scores = like @ self._vectors.T
        scores[:, hidden[self._new] | np.isin(self._new, items)] = -np.inf
        lists = best(scores, CHOICE * k)
        found = np.unique(lists[np.isfinite(np.take_along_axis(scores, lists, axis=1))])
        order = by_likeness(self._vectors[found], like)[:k] if len(found) else found
        return [int(item) for item in self._new[found[order]]]


def nearest(scores: F32, hidden: NDArray[np.bool_], k: int) -> I64:
    """The best k items of each case that are not hidden: scores and hidden (cases, items) -> (cases, k), -1 if there are fewer."""
    scores[hidden] = -np.inf
    lists = best(scores, k)
    lists[np.isneginf(np.take_along_axis(scores, lists, axis=1))] = -1
    return lists
