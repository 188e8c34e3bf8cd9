"""Candidates reordered by the bundle's score graph: their features, and one run for a batch of requests."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from headwater.encoder.features import History, candidate_features
from headwater.encoder.neighbours import Neighbours, repeats_of
from headwater.recall.fusion import Fused
from headwater.recall.popularity import PopularItem
from headwater.recall.sources import F32, Ask, Keyed

if TYPE_CHECKING:
    from headwater.encoder.runtime import Encoder

# The score graph's features know these two sources (`headwater.encoder.features.CANDIDATE_FEATURES`).
_AGAIN = "buy-again"
_SIMILAR = "similar"


class Pooled(NamedTuple):
    """One request's candidates, each with a vector, and whom they are for."""

    items: Sequence[Fused]
    interests: F32  # (K, D), K > 0
    history: History


class Scorer:
    """A bundle with a score graph.

    Args:
        threads: the graph runs in these.
        popular: what is popular now, heaviest first.
    """

    def __init__(
        self, encoder: "Encoder", threads: Executor, popular: Callable[[], Sequence[PopularItem]]
    ) -> None:
        self._encoder, self._threads, self._popular = encoder, threads, popular

    async def orders(
        self,
        asks: Sequence[Ask],
        keyed: Sequence[Keyed],
        fused: Sequence[Sequence[Fused]],
        vectors: Mapping[int, F32],
        deadline: float,
    ) -> dict[int, list[Fused]]:
        """By place of the ask, its candidates that have a vector, best first; asks without any are left out.

        The first three arguments are parallel; ``vectors`` holds one (D,) per item key. The caller gives up at ``deadline``, on
        the loop's clock.

        Raises:
            TimeoutError: the deadline is over before the graph is started.
        """
        pools: dict[int, Pooled] = {}
        for index, ask in enumerate(asks):
            known = [item for item in fused[index] if item.key in vectors] if ask.pool else []
            if known:
                history = history_of(ask, keyed[index], self._encoder.log_length, self._encoder.neighbours)
                pools[index] = Pooled(known, ask.interests, history)
        if not pools:
            return {}
        loop = asyncio.get_running_loop()
        if loop.time() >= deadline:
            raise TimeoutError
        weights = {item.key: item.weight for item in self._popular()}
        found = await loop.run_in_executor(
            self._threads, rescored, [*pools.values()], vectors, weights, self._encoder
        )
        return dict(zip(pools, found, strict=True))


def pool_size(size: int, weights: Mapping[str, float], query: F32 | None, interests: F32) -> int:
    """How many candidates a request wants of each source to be scored: ``size``, or 0 if it is not scored.

    A request that weighs the sources, or asks in words, has said what counts. Without interests there is nothing to score by.

    ``interests`` is (K, D), ``query`` (D,).
    """
    return 0 if weights or query is not None or not len(interests) else size


def history_of(ask: Ask, keyed: Keyed, length: int, table: Neighbours | None = None) -> History:
    """The newest `length` positive events, what the sources make of all of them, and what the bundle's table says of their
    items.
    """
    newest = ask.events[-length:]
    return History(
        np.array([key for key, _, _ in newest], dtype=np.uint64),
        np.array([at_ms for _, at_ms, _ in newest], dtype=np.int64),
        ask.now_ms,
        length,
        keyed.get(_AGAIN, {}),
        keyed.get(_SIMILAR, {}),
        *((repeats_of(table, [key for key, _, _ in newest]), table.keys) if table is not None else ()),
    )


def rescored(
    pools: Sequence[Pooled], vectors: Mapping[int, F32], popularity: Mapping[int, float], encoder: "Encoder"
) -> list[list[Fused]]:
    """Each pool by its scores, best first; ties keep their order. Blocks for the length of the computation.

    Args:
        vectors: (D,) by item key.
        popularity: weights of what is popular now, by item key.
    """
    heaviest = max(popularity.values(), default=1.0)
    features, nearest, candidates = [], [], []
    for pool in pools:
        matrix = np.stack([vectors[item.key] for item in pool.items])  # (candidates, D)
        products = matrix @ pool.interests.T  # (candidates, K)
        keys = np.array([item.key for item in pool.items], dtype=np.uint64)
        popular = np.array(
            [popularity.get(item.key, 0.0) / heaviest for item in pool.items], dtype=np.float32
        )
        which = products.argmax(axis=1)
        features.append(candidate_features(keys, products.max(axis=1), popular, pool.history, which))
        nearest.append(pool.interests[which])
        candidates.append(matrix)
    scores = encoder.score(np.concatenate(features), np.concatenate(nearest), np.concatenate(candidates))
    ends = np.cumsum([len(pool.items) for pool in pools])
    return [
        [pool.items[place]._replace(score=float(own[place])) for place in np.argsort(-own, kind="stable")]
        for pool, own in zip(pools, np.split(scores, ends[:-1]), strict=True)
    ]
