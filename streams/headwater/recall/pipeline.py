"""Recall for a batch of users: every source asked once for all of them, fused, made diverse, explained.

Knows the index and nothing of Kafka. A source that fails or is late costs its answers a rung, never the answer.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from headwater.encoder.features import History
from headwater.index import Index, IndexUnavailable, Query
from headwater.index.filters import And, Filter, Range
from headwater.recall.explain import PastEvent, Share, reasons
from headwater.recall.fusion import DEFAULT_WEIGHTS, RRF_K, Fused, Ranking, diversify, fuse
from headwater.recall.popularity import PopularItem
from headwater.recall.rescoring import Pooled, rescored
from headwater.recall.sources.new_items import CHOICE, by_likeness

if TYPE_CHECKING:
    from headwater.encoder.runtime import Encoder

F32 = NDArray[np.float32]
T = TypeVar("T")

# Maximal marginal relevance needs something to choose from.
_POOL_FACTOR: Final = 3
_MAX_POOL: Final = 1_000
_SEARCH_SHARE: Final = 0.7
_FIRST_LOOK: Final = 100
# Of what goes with a session so many times what is wanted: some of it may be sold out, or gone.
_LOOKED_UP: Final = 4
# By then what is scored again has to be there, so that the rest has its time.
_SCORE_SHARE: Final = 0.9


class Ask(NamedTuple):
    """What one request wants, resolved to vectors and keys."""

    limit: int
    interests: F32  # (K, D); K = 0 for a user without events
    weights: F32  # (K,)
    query: F32 | None  # (D,)
    where: Filter | None
    exclude: frozenset[int]
    diversity: float
    sources: Mapping[str, float]
    events: Sequence[tuple[int, int, str]]  # (item key, time, action) to explain by; empty: do not explain
    again: Sequence[int] = ()  # item keys that the user may want again, best first
    similar: Sequence[int] = ()  # item keys that go with the session at hand, best first
    # Only for a bundle with a score graph: what candidates are scored by, and how many it wants from each source.
    history: History | None = None
    pool: int = 0
    # Where items are to be explained: the events behind a similar one, each as in `events`, and their shares.
    behind: Callable[[int], Sequence[tuple[tuple[int, int, str], float]]] | None = None
    taken: Sequence[int] = ()  # item keys that new items are to be like; empty: none are asked for
    new_since_ms: int = 0  # what came into the catalog then, or later, is new


class Answer(NamedTuple):
    """Items best first. ``rung`` names the step down that had to be taken, None for a full answer."""

    items: list[Fused]
    because: list[list[Share]]
    rung: str | None


class Recall:
    """Sources over one index. Fails only by a bug: what the index cannot do lowers the rung.

    Args:
        scorer: a bundle with a score graph, and the threads it runs in.
    """

    def __init__(self, index: Index, scorer: "tuple[Encoder, Executor] | None" = None) -> None:
        self._index = index
        self._scorer = scorer

    async def candidates(
        self, asks: Sequence[Ask], popular: Sequence[PopularItem], timeout_s: float
    ) -> list[Answer]:
        """Answers in the order of ``asks``; each in at most about ``timeout_s``."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        # A search that hangs must leave time to see which popular items may stand in.
        searched_by = deadline - (1 - _SEARCH_SHARE) * timeout_s
        if any(_named(ask) or ask.taken for ask in asks):
            (rankings, failed), known, new = await self._at_once(
                self._by_vector(asks, searched_by),
                self._matching(asks, searched_by),
                _in_time(self._new(asks), searched_by),
            )
        else:
            (rankings, failed), known, new = await self._by_vector(asks, searched_by), {}, {}
        rungs = ["popular" if index in failed else None for index in range(len(asks))]
        if known is not None:
            _add_named(asks, rankings, known)
        for index, ranking in (new or {}).items():
            rankings[index].append(ranking)
        await self._add_popular(asks, rankings, rungs, popular, deadline)
        if known is None:
            rungs = [rung or _lost(ask) for ask, rung in zip(asks, rungs, strict=True)]
        if new is None:
            rungs = [rung or ("no-new" if ask.taken else None) for ask, rung in zip(asks, rungs, strict=True)]
        fused = [fuse(found) for found in rankings]
        vectors = await self._vectors(asks, fused, deadline)
        await self._rescore(asks, fused, rungs, vectors, popular, deadline - (1 - _SCORE_SHARE) * timeout_s)
        answers = []
        for ask, items, rung in zip(asks, fused, rungs, strict=True):
            chosen = items[: _choice(ask)]
            if ask.diversity > 0:
                matrix = _rows(vectors, [item.key for item in chosen])
                chosen = diversify(chosen, matrix, ask.diversity, ask.limit)
            answers.append(Answer(chosen, [[] for _ in chosen], rung))
        return await self._explain(asks, answers, vectors, deadline)

    async def _at_once(self, *calls: Awaitable[Any]) -> list[Any]:
        """What several calls return. In the process none of them waits for anything, and tasks would only cost their time."""
        return [await call for call in calls] if self._index.in_process else await asyncio.gather(*calls)

    async def _by_vector(self, asks: Sequence[Ask], deadline: float) -> tuple[list[list[Ranking]], set[int]]:
        """What the index found for each ask; and the asks that it should have found something for, but failed."""
        queries: list[Query] = []
        votes: list[tuple[int, str, float]] = []  # (ask, source, weight) of each query
        for index, ask in enumerate(asks):
            weights = ask.sources or DEFAULT_WEIGHTS
            pool = _pool(ask)
            total = float(ask.weights.sum()) or 1.0
            for interest, weight in zip(ask.interests, ask.weights, strict=True):
                if weights.get("interests", 0) > 0 and weight > 0:
                    queries.append(Query(interest, pool, ask.where, ask.exclude))
                    votes.append((index, "interests", weights["interests"] * float(weight) / total))
            if ask.query is not None and weights.get("query", 0) > 0:
                queries.append(Query(ask.query, pool, ask.where, ask.exclude))
                votes.append((index, "query", weights["query"]))
        rankings: list[list[Ranking]] = [[] for _ in asks]
        if not queries:
            return rankings, set()
        found = await _in_time(self._index.search(queries), deadline)
        for (index, source, weight), hits in zip(votes, found or (), strict=False):
            rankings[index].append(Ranking(source, weight, [(hit.key, hit.item_id) for hit in hits]))
        return rankings, {index for index, _, _ in votes} if found is None else set()

    async def _matching(
        self, asks: Sequence[Ask], deadline: float
    ) -> Mapping[Filter | None, Mapping[int, str]] | None:
        """By filter, the ids of what sources name that match it; None where the index does not say."""
        wanted: dict[Filter | None, set[int]] = {}
        for ask in asks:
            for keys in _named(ask).values():
                wanted.setdefault(ask.where, set()).update(keys)
        calls = (self._index.match(list(keys), where) for where, keys in wanted.items())
        found = await _in_time(self._at_once(*calls), deadline)
        return None if found is None else dict(zip(wanted, found, strict=True))

    async def _new(self, asks: Sequence[Ask]) -> dict[int, Ranking]:
        """By ask, what is new and like what its user is taking."""
        keys = {key for ask in asks for key in ask.taken}
        of_taken = await self._index.vectors([*keys]) if keys else {}
        queries: list[Query] = []
        owners: list[int] = []
        for index, ask in enumerate(asks):
            limit, where = min(CHOICE * _pool(ask), _MAX_POOL), _of_new(ask)
            for key in ask.taken:
                if key in of_taken:
                    queries.append(Query(of_taken[key], limit, where, ask.exclude.union(ask.taken)))
                    owners.append(index)
        found: dict[int, dict[int, str]] = {index: {} for index in owners}
        if not queries:
            return {}
        for index, hits in zip(owners, await self._index.search(queries), strict=True):
            found[index].update((hit.key, hit.item_id) for hit in hits)
        vectors = await self._index.vectors([*{key for items in found.values() for key in items}])
        rankings = {}
        for index, items in found.items():
            ask, live = asks[index], [key for key in items if key in vectors]
            taken = _rows(of_taken, [key for key in ask.taken if key in of_taken])
            order = by_likeness(_rows(vectors, live), taken)[: _pool(ask)].tolist() if live else []
            weight = (ask.sources or DEFAULT_WEIGHTS)["new"]
            rankings[index] = Ranking("new", weight, [(live[place], items[live[place]]) for place in order])
        return rankings

    async def _add_popular(
        self,
        asks: Sequence[Ask],
        rankings: list[list[Ranking]],
        rungs: list[str | None],
        popular: Sequence[PopularItem],
        deadline: float,
    ) -> None:
        """Popular items where they are asked for, and to fill up what the other sources left short."""
        matching: dict[Filter | None, _Matching] = {}
        for index, ask in enumerate(asks):
            weight = ask.sources.get("popular", 0.0)
            found = {key for ranking in rankings[index] for key, _ in ranking.items}
            short = len(found) < ask.limit and not ask.sources
            if weight <= 0 and not short and rungs[index] is None:
                continue
            if ask.where not in matching:
                matching[ask.where] = _Matching(self._index, popular, ask.where, deadline)
            unwanted = ask.exclude if weight > 0 else ask.exclude | found
            items = await matching[ask.where].first(_pool(ask), unwanted)
            if items is None:
                # Nobody can say what matches now: without a filter, popular items are still better than none.
                rungs[index] = "popular" if ask.where is None else "none"
                items = _first(popular, _pool(ask), unwanted) if ask.where is None else []
            weight = weight or _filler_weight(rankings[index])
            rankings[index].append(Ranking("popular", weight, items))

    async def _vectors(
        self, asks: Sequence[Ask], fused: Sequence[list[Fused]], deadline: float
    ) -> Mapping[int, F32]:
        """Vectors of the items that have to be compared with each other or with past events."""
        keys: set[int] = set()
        for ask, items in zip(asks, fused, strict=True):
            if _is_scored(ask):
                keys.update(item.key for item in items)
            elif ask.diversity > 0:
                keys.update(item.key for item in items[: _choice(ask)])
            if ask.events:
                keys.update(item.key for item in items[: ask.limit])
                keys.update(key for key, _, _ in ask.events)
        return (await _in_time(self._index.vectors(list(keys)), deadline) or {}) if keys else {}

    async def _rescore(
        self,
        asks: Sequence[Ask],
        fused: list[list[Fused]],
        rungs: list[str | None],
        vectors: Mapping[int, F32],
        popular: Sequence[PopularItem],
        deadline: float,
    ) -> None:
        """The bundle's own order of the candidates, where it has one and there is time for it."""
        if self._scorer is None:
            return
        encoder, threads = self._scorer
        pools: dict[int, Pooled] = {}
        wanted = [index for index, ask in enumerate(asks) if _is_scored(ask) and fused[index]]
        for index in wanted:
            ask = asks[index]
            assert ask.history is not None
            known = [item for item in fused[index] if item.key in vectors]
            if known:
                pools[index] = Pooled(known, ask.interests, ask.history)
        loop = asyncio.get_running_loop()
        scored = None
        if pools and loop.time() < deadline:
            weights = {item.key: item.weight for item in popular}
            scored = await _in_time(
                loop.run_in_executor(threads, rescored, [*pools.values()], vectors, weights, encoder),
                deadline,
            )
        orders = dict(zip(pools, scored or (), strict=False))
        for index in wanted:
            if index in orders:
                fused[index] = orders[index]
            else:
                rungs[index] = rungs[index] or "unscored"

    async def _explain(
        self, asks: Sequence[Ask], answers: list[Answer], vectors: Mapping[int, F32], deadline: float
    ) -> list[Answer]:
        told = [_told(ask, answer.items) for ask, answer in zip(asks, answers, strict=True)]
        keys = {key for ask in asks for key, _, _ in ask.events}
        keys |= {key for of_ask in told for shares in of_ask.values() for (key, _, _), _ in shares}
        if not keys:
            return answers
        payloads = await _in_time(self._index.items(list(keys)), deadline) or {}

        def named(event: tuple[int, int, str]) -> PastEvent:
            return PastEvent(str(payloads[event[0]]["item_id"]), *event[1:])

        explained = []
        for ask, answer, by_session in zip(asks, answers, told, strict=True):
            known = [event for event in ask.events if event[0] in vectors and event[0] in payloads]
            events, matrix = [*map(named, known)], _rows(vectors, [key for key, _, _ in known])
            because = []
            for item in answer.items:
                if item.key in by_session:
                    shares = by_session[item.key]
                    because.append(
                        [Share(named(event), share) for event, share in shares if event[0] in payloads]
                    )
                else:
                    because.append(reasons(vectors[item.key], events, matrix) if item.key in vectors else [])
            explained.append(answer._replace(because=because))
        return explained


def _told(ask: Ask, items: Sequence[Fused]) -> dict[int, Sequence[tuple[tuple[int, int, str], float]]]:
    """Of the items that go with a session: the events behind each, and their shares."""
    if ask.behind is None:
        return {}
    return {item.key: ask.behind(item.key) for item in items if item.source == "similar"}


class _Matching:
    """Those of the popular items that match a filter, looked up as far as somebody needs them."""

    def __init__(
        self, index: Index, popular: Sequence[PopularItem], where: Filter | None, deadline: float
    ) -> None:
        self._index, self._where, self._deadline = index, where, deadline
        self._found: list[PopularItem] = []
        # Of a thousand a few dozen are wanted, and most match. Where they do not, one more look is the last.
        self._unseen = [part for part in (popular[:_FIRST_LOOK], popular[_FIRST_LOOK:]) if part]
        self._has_failed = False

    async def first(self, count: int, unwanted: frozenset[int]) -> list[tuple[int, str]] | None:
        """Keys and ids of the most popular ones; None where the index does not say in time."""
        items = _first(self._found, count, unwanted)
        while len(items) < count and self._unseen and not self._has_failed:
            part = self._unseen[0]
            matched = self._index.match([item.key for item in part], self._where)
            live = await _in_time(matched, self._deadline)
            if live is None:
                self._has_failed = True
                break
            del self._unseen[0]
            self._found += [item for item in part if item.key in live]
            items = _first(self._found, count, unwanted)
        return None if self._has_failed else items


def _first(items: Iterable[PopularItem], count: int, unwanted: frozenset[int]) -> list[tuple[int, str]]:
    wanted = ((item.key, item.item_id) for item in items if item.key not in unwanted)
    return list(islice(wanted, count))


def _named(ask: Ask) -> dict[str, Sequence[int]]:
    """The sources that name items by their keys, which have to be looked up; those that come first win ties."""
    # Without a filter most of them match.
    similar = ask.similar if ask.where else ask.similar[: _LOOKED_UP * _pool(ask)]
    found = {"buy-again": ask.again, "similar": similar}
    return {source: keys for source, keys in found.items() if keys}


def _of_new(ask: Ask) -> Filter:
    """The ask's filter, for what is new."""
    new = Range("since_ms", gte=float(ask.new_since_ms))
    return And((ask.where, new)) if ask.where else new


def _lost(ask: Ask) -> str | None:
    """The rung of an answer for which no item could be looked up."""
    return "no-repeats" if ask.again else "no-similar" if ask.similar else None


def _add_named(
    asks: Sequence[Ask],
    rankings: list[list[Ranking]],
    known: Mapping[Filter | None, Mapping[int, str]],
) -> None:
    """What sources name, before all others: among equals it comes first."""
    for index, ask in enumerate(asks):
        weights, matching = ask.sources or DEFAULT_WEIGHTS, known.get(ask.where, {})
        rankings[index][:0] = [
            Ranking(
                source,
                weights[source],
                [(key, matching[key]) for key in keys if key in matching][: _pool(ask)],
            )
            for source, keys in _named(ask).items()
        ]


def _is_scored(ask: Ask) -> bool:
    """Whoever weighs the sources, or asks in words, has said what counts."""
    return ask.history is not None and len(ask.interests) > 0 and not ask.sources and ask.query is None


def _pool(ask: Ask) -> int:
    """How many items each source is asked for."""
    return max(_choice(ask), ask.pool) if _is_scored(ask) else _choice(ask)


def _choice(ask: Ask) -> int:
    return min(ask.limit * _POOL_FACTOR, _MAX_POOL) if ask.diversity > 0 else ask.limit


def _filler_weight(rankings: Sequence[Ranking]) -> float:
    """A filler never outranks a source that was asked for: its best vote is below their worst."""
    worst = (found.weight / (RRF_K + len(found.items)) for found in rankings if found.items)
    return RRF_K * min(worst, default=1.0 / RRF_K)


def _rows(vectors: Mapping[int, F32], keys: Iterable[int]) -> F32:
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
