"""Lists as the request path makes them, from arrays: its sources and its fusion, by exact search.

`bundle_scorer` gives an item its best dot product with any interest. Serving asks the index once an interest and fuses the
lists by their ranks; of what fell out of a user's log it knows only what the counters hold. With the interests alone and one
of them only that differs.
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
from headwater.recall.sources import Ask, PositiveEvent
from headwater.recall.sources.buy_again import BuyAgain
from headwater.recall.sources.new_items import CHOICE, anchor_items, by_likeness
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
    """The counters that a worker holds of what has left each case's log, by the rule of the service."""

    def __init__(self, length: int, counters: int = DEFAULT_COUNTERS) -> None:
        self._length, self._counters = length, counters
        # Of the cases asked about last: a slice at a time is.
        self._held: tuple[Cases, CounterRows] | None = None

    def __call__(self, log: Log, cases: Cases) -> CounterRows:
        """A row a case."""
        if self._held is None or self._held[0] is not cases:
            self._held = cases, self._counted(log, cases)
        return self._held[1]

    def _counted(self, log: Log, cases: Cases) -> CounterRows:
        """A user's cases go on from each other."""
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
    """What a worker leaves out where seen items may not come: (case, counted from the slice's start; item)."""
    owners, rows = histories(log, cases, part)
    before, places = np.nonzero(counted.levels[part])
    items = counted.keys[part][before, places].astype(np.int64)
    return np.concatenate([owners, before]), np.concatenate([log.items[rows], items])


def wanted_again(
    log: Log, cases: Cases, part: slice, length: int, counted: CounterRows
) -> list[Mapping[int, float]]:
    """Items that the users of a slice may want again, best first, and how much: by their newest `length` events and what was
    counted before."""
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
    """What goes with the current session of each case, by the newest events that the log of the service holds."""

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
    """Some events of the log as a source is told of them, with items in the place of their keys."""
    columns = (log.items[rows].tolist(), log.at_ms[rows].tolist(), log.actions[rows].tolist())
    return list(zip(*columns, strict=True))


def shown(items: Iterable[int], hidden: NDArray[np.bool_], k: int) -> list[int]:
    """The first k that are not hidden (items,)."""
    return list(islice((item for item in items if not hidden[item]), k))


class _New:
    """What is new and like what the user of a case is taking, by the newest events that the log of the service holds."""

    def __init__(self, catalog: Catalog, new: NDArray[np.bool_], length: int) -> None:
        self._catalog, self._length = catalog, length
        self._new = np.flatnonzero(new & catalog.known)
        self._vectors = catalog.vectors[self._new]

    def __call__(self, log: Log, cases: Cases, case: int, hidden: NDArray[np.bool_], k: int) -> list[int]:
        """Items, best first; those that are `hidden` (items,) are none."""
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
