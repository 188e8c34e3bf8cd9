"""Lists as the request path makes them: its own pipeline and sources, over the items of a dataset, with exact search.

They differ from those of `bundle_scorer`, which scores an item by its best dot product with any interest. The request path
searches once for each interest and fuses the lists by their ranks. It also knows events that have left a user's log by
their counters alone. With interests as the only source and one interest, both give the same order.
"""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from headwater.encoder.neighbours import Neighbours
from headwater.encoder.runtime import Encoder
from headwater.metrics import Metrics
from headwater.profiles.counters import COUNTER_EFFECTS, DEFAULT_COUNTERS, CounterRows, count_evictions
from headwater.recall.pipeline import Recall
from headwater.recall.popularity import PopularItem
from headwater.recall.rescoring import Scorer as CandidateScorer
from headwater.recall.sources import Ask, PositiveEvent, Resources
from headwater.recall.sources.registry import sources_of
from headwater_models.arrays import F32, I64
from headwater_models.data.events import Log, newest
from headwater_models.judging.evaluation import Catalog, Interests, interests_of
from headwater_models.judging.exact_index import ExactIndex
from headwater_models.judging.protocols import Cases, Scorer, histories
from headwater_models.judging.trending import Trending

INTERESTS: Final[Mapping[str, float]] = MappingProxyType({"interests": 1.0})
# Those of a request that names none: it has the bundle's own order and weights, and popular items fill up its answer.
ANY_SOURCE: Final[Mapping[str, float]] = MappingProxyType({})
# Nothing waits here; only the sum of the work counts.
_TIMEOUT_S: Final = 86_400.0
# An item that is marked as new is new at any moment of any data.
_ALWAYS_NEW_DAYS: Final = 200_000.0
# Asks whose candidates are scored at once, each with two vectors: 100 MB for 300 candidates of 128 numbers.
_TOGETHER: Final = 256


def served(
    encoder: Encoder,
    catalog: Catalog,
    k: int,
    sources: Mapping[str, float] = INTERESTS,
    new: NDArray[np.bool_] | None = None,
    trending: Trending | None = None,
    delay_ms: int = 0,
) -> Scorer:
    """Lists of length k as scores (cases, items): k for the first of a list, 1 for its last, -inf for items outside it.

    Ask with cases that remember no more than the service's log does (`encoder.log_length`).

    Args:
        sources: as a request weighs them; empty: a request that names none, see `ANY_SOURCE`.
        new: (items,) which items are new, for the source `new`.
        trending: what is popular, and of the new items rising. None: nothing is.
        delay_ms: popularity lags by so much.
    """
    names_none = not sources
    pipeline = Pipeline(catalog, encoder.neighbours, new, encoder if names_none else None)
    asking, pool = Asking(encoder, catalog), encoder.pool if names_none else 0

    def scores(log: Log, cases: Cases, part: slice) -> F32:
        asks, _ = asking(log, cases, part, k, sources, pool)
        found = np.full((len(asks), len(catalog.vectors)), -np.inf, dtype=np.float32)
        moment = trending and (trending.day if new is None else trending.hour)
        moments = [moment(ask.now_ms - delay_ms) if moment else 0 for ask in asks]
        for same in sorted(set(moments)):
            own = [place for place, each in enumerate(moments) if each == same]
            if trending:
                now_ms = asks[own[0]].now_ms - delay_ms
                pipeline.popular = trending.popular(now_ms, catalog.keys)
                if new is not None:
                    pipeline.rising = trending.rising(now_ms, catalog.keys, new)
            for place, items in zip(own, pipeline.lists([asks[place] for place in own]), strict=True):
                found[place, items] = np.arange(k, k - len(items), -1)
        return found

    return scores


class Pipeline:
    """`headwater.recall` with all its sources over the items of a dataset.

    Args:
        table: of neighbours, for the source `similar`.
        new: (items,) which items are new.
        bundle: whose order of candidates and weights of sources hold, where an ask wants a pool, and names no sources.

    Attributes:
        popular: what is popular at the moment of the next asks, heaviest first.
        rising: the same of new items.
    """

    def __init__(
        self,
        catalog: Catalog,
        table: Neighbours | None,
        new: NDArray[np.bool_] | None = None,
        bundle: Encoder | None = None,
    ) -> None:
        came_in = 0.0 if catalog.came_in is None else catalog.came_in
        since = {} if new is None else {"since_ms": np.where(new, came_in, np.nan)}
        self.index = ExactIndex(catalog, since)
        self.popular: Sequence[PopularItem] = ()
        self.rising: Sequence[PopularItem] = ()
        given = Resources(self.index, table, lambda: self.popular, _ALWAYS_NEW_DAYS, lambda: self.rising)
        self.sources: Final = sources_of(given)
        scorer, weights = None, dict[str, float]()
        if bundle is not None:
            weights = bundle.manifest.sources
            if bundle.pool:
                scorer = CandidateScorer(bundle, ThreadPoolExecutor(1), lambda: self.popular)
        self._recall = Recall(self.index, self.sources, Metrics(), scorer, weights)

    def lists(self, asks: Sequence[Ask]) -> list[list[int]]:
        """For each ask the items of its answer, best first.

        Raises:
            RuntimeError: an answer took a step down, or an event loop runs in this thread.
        """
        found = []
        for start in range(0, len(asks), _TOGETHER):
            for result in asyncio.run(self._recall.candidates(asks[start : start + _TOGETHER], _TIMEOUT_S)):
                if result.rung is not None:
                    raise RuntimeError(f"an answer took the step {result.rung}: expected all sources in time")
                found.append([self.index.items_of[item.key] for item in result.items])
        return found


class Asking:
    """Questions as a worker would put them to recall, from the log and the counters that it would hold by then."""

    def __init__(self, encoder: Encoder, catalog: Catalog) -> None:
        self._encoder, self._catalog = encoder, catalog
        self._counting = Counting(encoder.log_length)

    def __call__(
        self,
        log: Log,
        cases: Cases,
        part: slice,
        limit: int,
        sources: Mapping[str, float] = MappingProxyType({}),
        pool: int = 0,
    ) -> tuple[list[Ask], Interests]:
        """The ask of each case, and the interests in it. Where the cases mask seen items, the asks exclude them.

        Args:
            sources, pool: see `Ask`.
        """
        told = interests_of(self._encoder, self._catalog, log, cases, part)
        counted = self._counting(log, cases)
        length = min(self._encoder.log_length, cases.remembered or self._encoder.log_length)
        rows, mask = newest(log, cases.users[part], cases.ends[part], length)
        keys = self._catalog.keys
        excluded: list[set[int]] = [set() for _ in rows]
        if cases.mask_seen:
            for case, item in zip(*(each.tolist() for each in seen(log, cases, part, counted)), strict=True):
                excluded[case].add(item)
        asks = []
        for case, now_ms in enumerate(cases.now_ms[part].tolist()):
            has, own = bool(told.any_event[case]), counted.levels[part][case]
            counters = keys[counted.keys[part][case][own > 0].astype(np.int64)], own[own > 0]
            asks.append(
                Ask(
                    limit=limit,
                    now_ms=now_ms,
                    interests=told.interests[case, : None if has else 0],
                    interest_weights=told.weights[case, : None if has else 0],
                    log=self._events(log, rows[case][mask[case] > 0]),
                    counters=list(zip(*(column.tolist() for column in counters), strict=True)),
                    exclude=frozenset(keys[[*excluded[case]]].tolist()) if excluded[case] else frozenset(),
                    exclude_seen=cases.mask_seen,
                    weights=sources,
                    pool=pool if has else 0,  # without interests there is nothing to score by
                )
            )
        return asks, told

    def _events(self, log: Log, rows: I64) -> list[PositiveEvent]:
        """The events in these rows (n,) of the log."""
        columns = (self._catalog.keys[log.items[rows]], log.at_ms[rows], log.actions[rows])
        return list(zip(*(column.tolist() for column in columns), strict=True))


class Counting:
    """The counters of the events that have left each case's log, by the rule of the service."""

    def __init__(self, length: int, counters: int = DEFAULT_COUNTERS) -> None:
        self._length, self._counters = length, counters
        # Of the last cases, which are asked about slice by slice.
        self._held: tuple[Cases, CounterRows] | None = None

    def __call__(self, log: Log, cases: Cases) -> CounterRows:
        """One row for each case; its keys are the numbers of items."""
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
