"""Recall for a batch of users: every source asked once for all of them, fused, made diverse, explained.

It knows the index, no source by name, and nothing of Kafka. A source that fails or is late costs its answers a rung, never
the answer.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np

from headwater.index import Index
from headwater.messages import FunnelStage
from headwater.metrics import Metrics
from headwater.pacing import Pacer
from headwater.recall.dislikes import USUAL, Dislikes, Ramp, dislikes_of, keys_of, lowered, pushed
from headwater.recall.explain import Share, explained, similarities
from headwater.recall.funnel import Steps, funnel, items_of, unrestricted
from headwater.recall.fusion import Fused, diversify, fuse
from headwater.recall.gathering import Gatherer, in_time
from headwater.recall.rescoring import Scorer
from headwater.recall.sources import F32, Ask, Keyed, PositiveEvent, Source

# Sources have this share of the time. The rest is for the filler, should they hang, and for vectors and scores.
_SEARCH_SHARE: Final = 0.7
# Scores have to be there by this share of the time.
_SCORE_SHARE: Final = 0.9


class RecallResult(NamedTuple):
    """Items best first, at most ``limit``, with the reasons of each.

    ``rung`` names the step down that had to be taken, None for a full answer. ``missing`` is the rung of a source that
    the request names and the bundle lacks. ``similarities`` are those of the items (see :func:`similarities`), None
    where the request wants no explanation. ``why`` says by source why it brought nothing or too little; it is empty where
    nothing is missing. ``funnel`` is what the candidates went through, None where the request wants no explanation, or
    the index failed or was late.
    """

    items: list[Fused]
    because: list[list[Share]]
    rung: str | None
    missing: str | None = None
    similarities: Sequence[float | None] | None = None
    why: Mapping[str, str] = MappingProxyType({})
    funnel: list[FunnelStage] | None = None


class Recall:
    """Sources over one index. It fails only by a bug: what the index cannot do lowers the rung.

    Args:
        sources: among equals the items of the first one come first.
        scorer: of a bundle with a score graph.
        weights: see `Gatherer`.
        alike: what counts as like a disliked item, now.
    """

    def __init__(
        self,
        index: Index,
        sources: Sequence[Source],
        metrics: Metrics,
        scorer: Scorer | None = None,
        weights: Mapping[str, float] = MappingProxyType({}),
        alike: Callable[[], Ramp] = lambda: USUAL,
    ) -> None:
        self._index, self._scorer, self._alike = index, scorer, alike
        self._pacer = Pacer()
        self._sources = {source.name: source for source in sources}
        self._gatherer = Gatherer(index, sources, metrics, weights)

    async def candidates(self, asks: Sequence[Ask], timeout_s: float) -> list[RecallResult]:
        """Results in the order of ``asks``; each in at most about ``timeout_s``."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        searched_by = deadline - (1 - _SEARCH_SHARE) * timeout_s
        disliking = await self._dislikes(asks, searched_by)
        asks = (
            [
                pushed(ask, disliking[index]) if index in disliking else ask._replace(dislikes=())
                for index, ask in enumerate(asks)
            ]
            if any(ask.dislikes for ask in asks)
            else asks
        )
        keyed = []
        for ask in asks:
            await self._pacer.turn()
            keyed.append(self._gatherer.keyed(ask))
        rankings, rungs, whys = await self._gatherer.gather(asks, keyed, searched_by, deadline)
        fused = []
        for found in rankings:
            await self._pacer.turn()
            fused.append(fuse(found))
        at_first = list(fused)
        vectors = await self._vectors(asks, fused, deadline)
        await self._rescore(asks, keyed, fused, rungs, vectors, deadline - (1 - _SCORE_SHARE) * timeout_s)
        scored = list(fused)
        for index, dislikes in disliking.items():
            if asks[index].pushes:
                fused[index] = lowered(fused[index], vectors, dislikes)
        chosen = []
        for ask, items in zip(asks, fused, strict=True):
            await self._pacer.turn()
            chosen.append(_chosen(ask, items, vectors))
        because = await self._explain(asks, chosen, vectors, deadline)
        missing = [self._gatherer.missing_rung(ask) for ask in asks]
        near = [
            similarities(items, ask, vectors) if ask.explain else None
            for ask, items in zip(asks, chosen, strict=True)
        ]
        funnels = await self._funnels(
            {
                index: Steps((), rankings[index], at_first[index], scored[index], fused[index], chosen[index])
                for index, ask in enumerate(asks)
                if ask.explain and rungs[index] is None
            },
            asks,
            keyed,
            deadline,
        )
        told = [funnels.get(index) for index in range(len(asks))]
        parts = zip(chosen, because, rungs, missing, near, whys, told, strict=True)
        return [RecallResult(*each) for each in parts]

    async def _funnels(
        self, steps: Mapping[int, Steps], asks: Sequence[Ask], keyed: Sequence[Keyed], deadline: float
    ) -> dict[int, list[FunnelStage]]:
        """By place of the ask, the stages of its answer; none where the index does not answer in time."""
        if not steps:
            return {}
        free = await in_time(
            self._gatherer.unrestricted(
                [unrestricted(asks[index]) for index in steps],
                [keyed[index] for index in steps],
                [each.restricted for each in steps.values()],
                deadline,
            ),
            deadline,
        )
        if free is None:
            return {}
        keys = set[int]().union(*map(items_of, free))
        payloads = await in_time(self._index.items(list(keys)), deadline) if keys else {}
        if payloads is None:
            return {}
        funnels = {}
        for (index, taken), rankings in zip(steps.items(), free, strict=True):
            await self._pacer.turn()
            funnels[index] = funnel(asks[index], taken._replace(rankings=rankings), payloads)
        return funnels

    async def _dislikes(self, asks: Sequence[Ask], deadline: float) -> dict[int, Dislikes]:
        """By place, what the users of asks dislike, where it still pushes away; empty for most batches."""
        wanted = {index: keys_of(ask) for index, ask in enumerate(asks) if ask.dislikes}
        keys = set[int]().union(*wanted.values())
        vectors = (await in_time(self._index.vectors(list(keys)), deadline) or {}) if keys else {}
        alike = self._alike() if vectors else USUAL
        found = {
            index: dislikes_of(asks[index], vectors, alike) for index, of_ask in wanted.items() if of_ask
        }
        return {index: dislikes for index, dislikes in found.items() if dislikes is not None}

    async def _vectors(
        self, asks: Sequence[Ask], fused: Sequence[list[Fused]], deadline: float
    ) -> Mapping[int, F32]:
        """Vectors of the items that have to be scored, or compared with each other or with past events."""
        keys: set[int] = set()
        for ask, items in zip(asks, fused, strict=True):
            if ask.pool or ask.pushes:
                keys.update(item.key for item in items)
            elif ask.diversity > 0:
                keys.update(item.key for item in items[: ask.choice])
            if ask.explain:
                keys.update(item.key for item in items[: ask.limit])
                keys.update(key for key, _, _ in ask.liked_log)
                keys.update(ask.items)
        return (await in_time(self._index.vectors(list(keys)), deadline) or {}) if keys else {}

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
        orders = await in_time(self._scorer.orders(asks, keyed, fused, vectors, deadline), deadline) or {}
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
        named: list[Mapping[int, Sequence[tuple[PositiveEvent, float]]]] = []
        for ask, items in zip(asks, answers, strict=True):
            await self._pacer.turn()
            named.append(self._named_reasons(ask, items) if ask.explain else {})
        keys = {key for ask in asks if ask.explain for key, _, _ in ask.liked_log}
        keys |= {key for of_ask in named for shares in of_ask.values() for (key, _, _), _ in shares}
        if not keys:
            return [[[] for _ in items] for items in answers]
        payloads = await in_time(self._index.items(list(keys)), deadline) or {}
        because = []
        for ask, items, of_ask in zip(asks, answers, named, strict=True):
            await self._pacer.turn()
            because.append(explained(items, of_ask, ask.liked_log if ask.explain else (), vectors, payloads))
        return because

    def _named_reasons(
        self, ask: Ask, items: Sequence[Fused]
    ) -> dict[int, Sequence[tuple[PositiveEvent, float]]]:
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


def _rows(vectors: Mapping[int, F32], keys: Iterable[int]) -> F32:
    """The vectors of the keys, (keys, D); zeros for a key without one."""
    dim = next((len(vector) for vector in vectors.values()), 1)
    zeros = np.zeros(dim, dtype=np.float32)
    rows = [vectors.get(key, zeros) for key in keys]
    return np.stack(rows) if rows else np.zeros((0, dim), dtype=np.float32)
