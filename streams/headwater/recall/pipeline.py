"""Recall for a batch of users: every source asked once for all of them, fused, made diverse, explained.

It knows the index, no source by name, and nothing of Kafka. A source that fails or is late costs its answers a rung, never
the answer.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple, TypeVar

import numpy as np

from headwater.index import Index, IndexUnavailable, Query
from headwater.index.filters import Filter
from headwater.recall.explain import Share, explained, similarities
from headwater.recall.fusion import RRF_K, Fused, Ranking, diversify, fuse
from headwater.recall.rescoring import Keyed, Scorer
from headwater.recall.sources import F32, Ask, Filler, KeySource, SearchSource, Source, VectorSource

T = TypeVar("T")

# Sources have this share of the time. The rest is for the filler, should they hang, and for vectors and scores.
_SEARCH_SHARE: Final = 0.7
# Scores have to be there by this share of the time.
_SCORE_SHARE: Final = 0.9


class RecallResult(NamedTuple):
    """Items best first, at most ``limit``, with the reasons of each.

    ``rung`` names the step down that had to be taken, None for a full answer. ``missing`` is the rung of a source that
    the request names and the bundle lacks. ``similarities`` are those of the items (see :func:`similarities`), None
    where the request wants no explanation.
    """

    items: list[Fused]
    because: list[list[Share]]
    rung: str | None
    missing: str | None = None
    similarities: Sequence[float | None] | None = None


class _Step(NamedTuple):
    """What some of the sources found, each ranking with the place of its ask; and what asks they failed, with the rung."""

    rankings: list[tuple[int, Ranking]]
    lost: dict[int, str]


class Recall:
    """Sources over one index. It fails only by a bug: what the index cannot do lowers the rung.

    Args:
        sources: among equals the items of the first one come first.
        scorer: of a bundle with a score graph.
    """

    def __init__(self, index: Index, sources: Sequence[Source], scorer: Scorer | None = None) -> None:
        self._index, self._scorer = index, scorer
        self._sources = {source.name: source for source in sources}
        self._places = {name: place for place, name in enumerate(self._sources)}
        self._defaults = {each.name: each.default_weight for each in sources if each.default_weight > 0}
        self._key_sources = [each for each in sources if isinstance(each, KeySource)]
        self._vector_sources = [each for each in sources if isinstance(each, VectorSource)]
        self._search_sources = [each for each in sources if isinstance(each, SearchSource)]
        self._fillers = [each for each in sources if isinstance(each, Filler)]
        self._missing = [each for each in sources if not each.is_there]

    async def candidates(self, asks: Sequence[Ask], timeout_s: float) -> list[RecallResult]:
        """Results in the order of ``asks``; each in at most about ``timeout_s``."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        keyed = self._keyed(asks)
        rankings, rungs = await self._ask_sources(asks, keyed, deadline - (1 - _SEARCH_SHARE) * timeout_s)
        for filler in self._fillers:
            await self._fill(filler, asks, rankings, rungs, deadline)
        fused = [fuse(found) for found in rankings]
        vectors = await self._vectors(asks, fused, deadline)
        await self._rescore(asks, keyed, fused, rungs, vectors, deadline - (1 - _SCORE_SHARE) * timeout_s)
        chosen = [_chosen(ask, items, vectors) for ask, items in zip(asks, fused, strict=True)]
        because = await self._explain(asks, chosen, vectors, deadline)
        missing = [self._missing_rung(ask) for ask in asks]
        near = [
            similarities(items, ask, vectors) if ask.explain else None
            for ask, items in zip(asks, chosen, strict=True)
        ]
        return [RecallResult(*each) for each in zip(chosen, because, rungs, missing, near, strict=True)]

    def _weight(self, ask: Ask, source: Source) -> float:
        return (ask.weights or self._defaults).get(source.name, 0.0)

    def _missing_rung(self, ask: Ask) -> str | None:
        return next((each.rung for each in self._missing if ask.weights.get(each.name, 0.0) > 0), None)

    def _keyed(self, asks: Sequence[Ask]) -> list[Keyed]:
        """What each source that names items names for each ask."""
        return [
            {each.name: each.keys(ask) for each in self._key_sources if self._weight(ask, each) > 0}
            for ask in asks
        ]

    async def _ask_sources(
        self, asks: Sequence[Ask], keyed: Sequence[Keyed], deadline: float
    ) -> tuple[list[list[Ranking]], list[str | None]]:
        """The rankings of each ask, in the order of the sources, and its rung."""
        steps: list[Callable[[], Awaitable[_Step]]] = [partial(self._near_vectors, asks, deadline)]
        if any(keys for of_ask in keyed for keys in of_ask.values()):
            steps.append(partial(self._matching_keys, asks, keyed, deadline))
        for source in self._search_sources:
            asked = [i for i, ask in enumerate(asks) if self._weight(ask, source) > 0 and source.applies(ask)]
            if asked:
                steps.append(partial(self._searched, source, asks, asked, deadline))
        rankings: list[list[Ranking]] = [[] for _ in asks]
        rungs: list[str | None] = [None] * len(asks)
        for step in await self._together(steps):
            for index, ranking in step.rankings:
                rankings[index].append(ranking)
            for index, rung in step.lost.items():
                rungs[index] = rungs[index] or rung
        for found in rankings:
            found.sort(key=lambda ranking: self._places[ranking.source])
        return rankings, rungs

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
            return _Step([], {})
        found = await _in_time(self._index.search(queries), deadline)
        if found is None:
            return _Step([], {index: source.rung for index, source, _ in votes})
        return _Step(
            [
                (index, Ranking(source.name, vote, [(hit.key, hit.item_id) for hit in hits]))
                for (index, source, vote), hits in zip(votes, found, strict=True)
            ],
            {},
        )

    async def _matching_keys(self, asks: Sequence[Ask], keyed: Sequence[Keyed], deadline: float) -> _Step:
        """The items that sources name by their keys, as far as they are there and match, by one look-up per filter."""
        named: list[tuple[int, KeySource, list[int]]] = []
        wanted: dict[Filter | None, set[int]] = {}
        for index, (ask, of_ask) in enumerate(zip(asks, keyed, strict=True)):
            for source in self._key_sources:
                keys = [
                    key
                    for key in of_ask.get(source.name, ())
                    if key not in ask.exclude and key not in ask.unwanted
                ]
                if source.looked_up is not None and ask.where is None:
                    del keys[source.looked_up * ask.wanted :]
                if keys:
                    named.append((index, source, keys))
                    wanted.setdefault(ask.where, set()).update(keys)
        if not named:
            return _Step([], {})
        calls = [partial(self._index.match, list(keys), where) for where, keys in wanted.items()]
        found = await _in_time(self._together(calls), deadline)
        if found is None:
            return _Step([], {index: source.rung for index, source, _ in reversed(named)})
        matching = dict(zip(wanted, found, strict=True))
        rankings = []
        for index, source, keys in named:
            ask, known = asks[index], matching[asks[index].where]
            items = [(key, known[key]) for key in keys if key in known][: ask.wanted]
            rankings.append((index, Ranking(source.name, self._weight(ask, source), items)))
        return _Step(rankings, {})

    async def _searched(
        self, source: SearchSource, asks: Sequence[Ask], asked: Sequence[int], deadline: float
    ) -> _Step:
        """The rankings of a source that asks the index by itself, for the asks at the places ``asked``."""
        found = await _in_time(source.rankings([asks[index] for index in asked]), deadline)
        if found is None:
            return _Step([], dict.fromkeys(asked, source.rung))
        return _Step(
            [
                (index, Ranking(source.name, self._weight(asks[index], source), items))
                for index, items in zip(asked, found, strict=True)
            ],
            {},
        )

    async def _fill(
        self,
        filler: Filler,
        asks: Sequence[Ask],
        rankings: Sequence[list[Ranking]],
        rungs: list[str | None],
        deadline: float,
    ) -> None:
        """Add the filler's items where it is asked for, where it stands in for a lost source, and where answers are short."""
        asked: list[int] = []
        narrowed: list[Ask] = []
        for index, ask in enumerate(asks):
            found = {key for ranking in rankings[index] for key, _ in ranking.items}
            is_named = self._weight(ask, filler) > 0
            is_short = len(found) < ask.limit and not ask.weights
            if is_named or is_short or rungs[index] == filler.name:
                asked.append(index)
                narrowed.append(ask if is_named else ask._replace(exclude=ask.exclude | found))
        if not asked:
            return
        for index, filled in zip(asked, await filler.fill(narrowed, deadline), strict=True):
            rungs[index] = filled.rung or rungs[index]
            weight = self._weight(asks[index], filler) or _filler_weight(rankings[index])
            rankings[index].append(Ranking(filler.name, weight, filled.items))

    async def _vectors(
        self, asks: Sequence[Ask], fused: Sequence[list[Fused]], deadline: float
    ) -> Mapping[int, F32]:
        """Vectors of the items that have to be scored, or compared with each other or with past events."""
        keys: set[int] = set()
        for ask, items in zip(asks, fused, strict=True):
            if ask.pool:
                keys.update(item.key for item in items)
            elif ask.diversity > 0:
                keys.update(item.key for item in items[: ask.choice])
            if ask.explain:
                keys.update(item.key for item in items[: ask.limit])
                keys.update(key for key, _, _ in ask.log)
        return (await _in_time(self._index.vectors(list(keys)), deadline) or {}) if keys else {}

    async def _rescore(
        self,
        asks: Sequence[Ask],
        keyed: Sequence[Keyed],
        fused: list[list[Fused]],
        rungs: list[str | None],
        vectors: Mapping[int, F32],
        deadline: float,
    ) -> None:
        """The bundle's own order of the candidates, where it has one and there is time for it."""
        wanted = [index for index, ask in enumerate(asks) if ask.pool and fused[index]]
        if self._scorer is None or not wanted:
            return
        orders = await _in_time(self._scorer.orders(asks, keyed, fused, vectors, deadline), deadline) or {}
        for index in wanted:
            if index in orders:
                fused[index] = orders[index]
            else:
                rungs[index] = rungs[index] or "unscored"

    async def _explain(
        self,
        asks: Sequence[Ask],
        answers: Sequence[Sequence[Fused]],
        vectors: Mapping[int, F32],
        deadline: float,
    ) -> list[list[list[Share]]]:
        """The reasons of each item, for the asks that want them."""
        named = [
            self._named_reasons(ask, items) if ask.explain else {}
            for ask, items in zip(asks, answers, strict=True)
        ]
        keys = {key for ask in asks if ask.explain for key, _, _ in ask.log}
        keys |= {key for of_ask in named for shares in of_ask.values() for (key, _, _), _ in shares}
        if not keys:
            return [[[] for _ in items] for items in answers]
        payloads = await _in_time(self._index.items(list(keys)), deadline) or {}
        return [
            explained(items, of_ask, ask.log if ask.explain else (), vectors, payloads)
            for ask, items, of_ask in zip(asks, answers, named, strict=True)
        ]

    def _named_reasons(
        self, ask: Ask, items: Sequence[Fused]
    ) -> dict[int, Sequence[tuple[tuple[int, int, int], float]]]:
        """By item key, the events that the item's source names."""
        brought: dict[str, list[int]] = {}
        for item in items:
            brought.setdefault(item.source, []).append(item.key)
        return {
            key: shares
            for source, keys in brought.items()
            for key, shares in self._sources[source].because(ask, keys).items()
        }


def _chosen(ask: Ask, items: Sequence[Fused], vectors: Mapping[int, F32]) -> list[Fused]:
    chosen = list(items[: ask.choice])
    if ask.diversity <= 0:
        return chosen
    return diversify(chosen, _rows(vectors, [item.key for item in chosen]), ask.diversity, ask.limit)


def _filler_weight(rankings: Sequence[Ranking]) -> float:
    """A filler never outranks a source that was asked for: its best vote is below their worst."""
    worst = (found.weight / (RRF_K + len(found.items)) for found in rankings if found.items)
    return RRF_K * min(worst, default=1.0 / RRF_K)


def _rows(vectors: Mapping[int, F32], keys: Iterable[int]) -> F32:
    """The vectors of the keys, (keys, D); zeros for a key without one."""
    dim = next((len(vector) for vector in vectors.values()), 1)
    zeros = np.zeros(dim, dtype=np.float32)
    rows = [vectors.get(key, zeros) for key in keys]
    return np.stack(rows) if rows else np.zeros((0, dim), dtype=np.float32)


async def _in_time(call: Awaitable[T], deadline: float) -> T | None:
    """The call's result, or None where the index fails or does not answer before ``deadline``."""
    try:
        async with asyncio.timeout_at(deadline):
            return await call
    except (IndexUnavailable, TimeoutError):
        return None
