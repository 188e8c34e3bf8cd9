"""Every source asked once for a whole batch, in time: what it found, and the rung of each ask that it failed.

No source is known by name here. What sources have in common is done and counted once for all of them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from headwater.index import Index, IndexUnavailable, Query
from headwater.index.filters import Filter
from headwater.metrics import Metrics
from headwater.recall.fusion import RRF_K, Ranking
from headwater.recall.sources import Ask, Filler, Keyed, KeySource, SearchSource, Source, VectorSource, Why

T = TypeVar("T")


class _Step(NamedTuple):
    """What some of the sources found, each ranking with the place of its ask; and which asks each of them failed."""

    rankings: list[tuple[int, Ranking]]
    lost: Sequence[tuple[int, Source]]


class Gathered(NamedTuple):
    """For each ask: the rankings in the order of the sources, its rung, and why sources brought it nothing or too little."""

    rankings: list[list[Ranking]]
    rungs: list[str | None]
    whys: list[dict[str, Why]]  # by the name of the source


class Gatherer:
    """Sources over one index.

    Args:
        sources: among equals the items of the first one come first.
        weights: what sources count for an ask that names none, where it is not their default. An ask for a text or for
            items has the defaults.
    """

    def __init__(
        self,
        index: Index,
        sources: Sequence[Source],
        metrics: Metrics,
        weights: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self._index = index
        self._sources = sources
        self._places = {source.name: place for place, source in enumerate(sources)}
        self._defaults = {each.name: each.default_weight for each in sources if each.default_weight > 0}
        self._of_bundle = {**self._defaults, **weights}
        self._key_sources = [each for each in sources if isinstance(each, KeySource)]
        self._vector_sources = [each for each in sources if isinstance(each, VectorSource)]
        self._search_sources = [each for each in sources if isinstance(each, SearchSource)]
        self._fillers = [each for each in sources if isinstance(each, Filler)]
        self._missing = [each for each in sources if not each.is_there]
        self._items_total = {name: metrics.source_items_total.labels(name) for name in self._places}
        self._lost_total = {name: metrics.source_lost_total.labels(name) for name in self._places}

    def missing_rung(self, ask: Ask) -> str | None:
        """The rung of the first source that the ask names and the bundle lacks."""
        return next((each.rung for each in self._missing if ask.weights.get(each.name, 0.0) > 0), None)

    def keyed(self, ask: Ask) -> Keyed:
        """What each source that names items names for an ask."""
        return {each.name: each.keys(ask) for each in self._key_sources if self._weight(ask, each) > 0}

    async def gather(
        self, asks: Sequence[Ask], keyed: Sequence[Keyed], searched_by: float, deadline: float
    ) -> Gathered:
        """What the sources found for each ask.

        Args:
            searched_by: sources have until then, on the loop's clock; fillers have until ``deadline``.
        """
        rankings: list[list[Ranking]] = [[] for _ in asks]
        rungs: list[str | None] = [None] * len(asks)
        late: set[tuple[int, str]] = set()  # ask, and the name of a source that it did without
        for index, lost in await self._search(asks, keyed, searched_by, rankings):
            rungs[index] = rungs[index] or lost.rung
            late.add((index, lost.name))
            self._lost_total[lost.name].inc()
        found_keys = [{key for ranking in found for key, _ in ranking.items} for found in rankings]
        poor = [index for index, ask in enumerate(asks) if _is_poor(ask, len(found_keys[index]))]
        for filler in self._fillers:
            late |= await self._fill(filler, asks, rankings, found_keys, rungs, deadline)
        self._count(rankings)
        whys: list[dict[str, Why]] = [{} for _ in asks]
        for index in poor:
            is_short = len(found_keys[index]) < asks[index].limit
            whys[index] = self._whys(index, asks[index], keyed[index], rankings[index], late, is_short)
        empty = [index for index in poor if not found_keys[index]]
        if empty and await in_time(self._index.count(), deadline) == 0:
            for index in empty:
                whys[index] = dict.fromkeys(whys[index], "empty_catalog")
        return Gathered(rankings, rungs, whys)

    async def unrestricted(
        self,
        asks: Sequence[Ask],
        keyed: Sequence[Keyed],
        restricted: Sequence[Sequence[Ranking]],
        deadline: float,
    ) -> list[list[Ranking]]:
        """What the sources would bring for asks that take nothing out (`funnel.unrestricted`); it counts in no metric.

        Args:
            restricted: what they have brought for the answers. A filler is asked where it took part in these.

        Raises:
            IndexUnavailable: a source failed, or was late.
        """
        rankings: list[list[Ranking]] = [[] for _ in asks]
        if lost := await self._search(asks, keyed, deadline, rankings):
            raise IndexUnavailable(f"{lost[0][1].name} was not told what it would bring")
        for filler in self._fillers:
            weights = {
                index: each.weight
                for index, brought in enumerate(restricted)
                for each in brought
                if each.source == filler.name
            }
            narrowed = [
                ask
                if self._weight(ask, filler) > 0
                else ask._replace(exclude=frozenset(key for each in rankings[index] for key, _ in each.items))
                for index, ask in enumerate(asks)
                if index in weights
            ]
            filled = await filler.fill(narrowed, deadline) if narrowed else ()
            for (index, weight), found in zip(weights.items(), filled, strict=True):
                rankings[index].append(Ranking(filler.name, weight, found.items))
        return rankings

    async def _search(
        self,
        asks: Sequence[Ask],
        keyed: Sequence[Keyed],
        searched_by: float,
        rankings: Sequence[list[Ranking]],
    ) -> list[tuple[int, Source]]:
        """Add what all sources but the fillers find to the ``rankings`` of each ask. Returns which asks a source failed."""
        steps: list[Callable[[], Awaitable[_Step]]] = [partial(self._near_vectors, asks, searched_by)]
        if any(keys for of_ask in keyed for keys in of_ask.values()):
            steps.append(partial(self._matching_keys, asks, keyed, searched_by))
        for source in self._search_sources:
            asked = [i for i, ask in enumerate(asks) if self._weight(ask, source) > 0 and source.applies(ask)]
            if asked:
                steps.append(partial(self._searched, source, asks, asked, searched_by))
        lost: list[tuple[int, Source]] = []
        for step in await self._together(steps):
            for index, ranking in step.rankings:
                rankings[index].append(ranking)
            lost += step.lost
        for found in rankings:
            found.sort(key=lambda ranking: self._places[ranking.source])
        return lost

    def _whys(
        self,
        index: int,
        ask: Ask,
        keyed: Keyed,
        rankings: Sequence[Ranking],
        late: set[tuple[int, str]],
        is_short: bool,
    ) -> dict[str, Why]:
        """Why sources brought the ask at place ``index`` nothing, or fewer items than its answer needs."""
        brought: dict[str, int] = {}
        for found in rankings:
            brought[found.source] = brought.get(found.source, 0) + len(found.items)
        whys: dict[str, Why] = {}
        for source in self._sources:
            name = source.name
            if self._weight(ask, source) <= 0 and name not in brought:
                if is_short and name in ask.weights:
                    whys[name] = "no_weight"
                continue
            if (index, name) in late:
                whys[name] = "late"
            elif not source.is_there:
                whys[name] = "not_in_bundle"
            elif not brought.get(name):
                whys[name] = _own_reason(source, ask, keyed) or _limit_of(ask)
            elif is_short:
                whys[name] = _limit_of(ask)
        return whys

    def _count(self, rankings: Sequence[Sequence[Ranking]]) -> None:
        items: dict[str, int] = {}
        for found in rankings:
            for ranking in found:
                items[ranking.source] = items.get(ranking.source, 0) + len(ranking.items)
        for name, count in items.items():
            self._items_total[name].inc(count)

    async def _together(self, calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
        """The results of several calls. An index in the process waits for nothing, and tasks would only cost their time."""
        if self._index.in_process or len(calls) == 1:
            return [await call() for call in calls]
        return await asyncio.gather(*(call() for call in calls))

    async def _near_vectors(self, asks: Sequence[Ask], deadline: float) -> _Step:
        """The items nearest to the vectors that sources name, by one search."""
        queries: list[Query] = []
        votes: list[tuple[int, VectorSource, float]] = []  # ask, source and vote of each query
        for index, ask in enumerate(asks):
            for source in self._vector_sources:
                weight = self._weight(ask, source)
                for vector, vote in source.vectors(ask, weight) if weight > 0 else ():
                    queries.append(Query(vector, ask.wanted, ask.where, ask.exclude))
                    votes.append((index, source, vote))
        if not queries:
            return _Step([], [])
        found = await in_time(self._index.search(queries), deadline)
        if found is None:
            return _Step([], list(dict.fromkeys((index, source) for index, source, _ in votes)))
        return _Step(
            [
                (index, Ranking(source.name, vote, [(hit.key, hit.item_id) for hit in hits]))
                for (index, source, vote), hits in zip(votes, found, strict=True)
            ],
            [],
        )

    async def _matching_keys(self, asks: Sequence[Ask], keyed: Sequence[Keyed], deadline: float) -> _Step:
        """The items that sources name by their keys, as far as they are there and match, by one look-up per filter."""
        named: list[tuple[int, KeySource, list[int]]] = []
        wanted: dict[Filter | None, set[int]] = {}
        for index, (ask, of_ask) in enumerate(zip(asks, keyed, strict=True)):
            for source in self._key_sources:
                keys = [key for key in of_ask.get(source.name, ()) if key not in ask.exclude]
                if source.looked_up is not None and ask.where is None:
                    del keys[source.looked_up * ask.wanted :]
                if keys:
                    named.append((index, source, keys))
                    wanted.setdefault(ask.where, set()).update(keys)
        if not named:
            return _Step([], [])
        calls = [partial(self._index.match, list(keys), where) for where, keys in wanted.items()]
        found = await in_time(self._together(calls), deadline)
        if found is None:
            return _Step([], [(index, source) for index, source, _ in named])
        matching = dict(zip(wanted, found, strict=True))
        rankings = []
        for index, source, keys in named:
            ask, known = asks[index], matching[asks[index].where]
            items = [(key, known[key]) for key in keys if key in known][: ask.wanted]
            rankings.append((index, Ranking(source.name, self._weight(ask, source), items)))
        return _Step(rankings, [])

    async def _searched(
        self, source: SearchSource, asks: Sequence[Ask], asked: Sequence[int], deadline: float
    ) -> _Step:
        """The rankings of a source that asks the index by itself, for the asks at the places ``asked``."""
        found = await in_time(source.rankings([asks[index] for index in asked]), deadline)
        if found is None:
            return _Step([], [(index, source) for index in asked])
        return _Step(
            [
                (index, Ranking(source.name, self._weight(asks[index], source), items))
                for index, items in zip(asked, found, strict=True)
            ],
            [],
        )

    async def _fill(
        self,
        filler: Filler,
        asks: Sequence[Ask],
        rankings: Sequence[list[Ranking]],
        found_keys: Sequence[set[int]],
        rungs: list[str | None],
        deadline: float,
    ) -> set[tuple[int, str]]:
        """Add the filler's items where it is asked for, where it stands in for a lost source, and where answers are short.

        Returns the asks that it failed, each with its name.
        """
        failed: set[tuple[int, str]] = set()
        asked: list[int] = []
        narrowed: list[Ask] = []
        for index, ask in enumerate(asks):
            found = found_keys[index]
            is_named = self._weight(ask, filler) > 0
            is_short = len(found) < ask.limit and not ask.weights
            if is_named or is_short or rungs[index] == filler.name:
                asked.append(index)
                narrowed.append(ask if is_named else ask._replace(exclude=ask.exclude | found))
        if not asked:
            return failed
        for index, filled in zip(asked, await filler.fill(narrowed, deadline), strict=True):
            if filled.rung is not None:
                rungs[index] = filled.rung
                self._lost_total[filler.name].inc()
                failed.add((index, filler.name))
            weight = self._weight(asks[index], filler) or _filler_weight(rankings[index])
            rankings[index].append(Ranking(filler.name, weight, filled.items))
            found_keys[index].update(key for key, _ in filled.items)
        return failed

    def _weight(self, ask: Ask, source: Source) -> float:
        defaults = self._defaults if ask.has_text or ask.items else self._of_bundle
        return (ask.weights or defaults).get(source.name, 0.0)


def _is_poor(ask: Ask, found: int) -> bool:
    """Whether an answer has to say why: it is short before it is filled up, or something that it names may be missing."""
    return found < ask.limit or bool(ask.weights or ask.items) or (ask.has_text and ask.query is None)


def _own_reason(source: Source, ask: Ask, keyed: Keyed) -> Why | None:
    """Why the source names nothing, or why nothing of what it names can come."""
    if isinstance(source, KeySource) and (named := keyed.get(source.name)):
        if all(key in ask.unwanted for key in named):
            return "hidden"
        if all(key in ask.exclude for key in named):
            return "excluded"
        return "unavailable" if ask.where is None else "filtered"
    return source.why(ask)


def _limit_of(ask: Ask) -> Why:
    """Why there are no more items for an ask: its filter, else what it excludes, else what its user hides, else the catalog
    has no more.
    """
    if ask.where is not None:
        return "filtered"
    if ask.exclude:
        return "hidden" if ask.exclude == ask.unwanted else "excluded"
    return "no_more"


def _filler_weight(rankings: Sequence[Ranking]) -> float:
    """A filler never outranks a source that was asked for: its best vote is below their worst."""
    worst = (found.weight / (RRF_K + len(found.items)) for found in rankings if found.items)
    return RRF_K * min(worst, default=1.0 / RRF_K)


async def in_time(call: Awaitable[T], deadline: float) -> T | None:
    """The call's result, or None where the index fails or does not answer before ``deadline``."""
    try:
        async with asyncio.timeout_at(deadline):
            return await call
    except (IndexUnavailable, TimeoutError):
        return None
