"""Candidates ordered again by the bundle's score graph: what it is told of them, and one run for a batch of requests."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwater.encoder.features import History, candidate_features
from headwater.recall.fusion import Fused

if TYPE_CHECKING:
    from headwater.encoder.runtime import Encoder

F32 = NDArray[np.float32]


class Pooled(NamedTuple):
    """One request's candidates and whom they are for."""

    items: Sequence[Fused]  # with a vector each
    interests: F32  # (K, D), K > 0
    history: History


def rescored(
    pools: Sequence[Pooled], vectors: Mapping[int, F32], popularity: Mapping[int, float], encoder: "Encoder"
) -> list[list[Fused]]:
    """Each pool by its scores, best first; among equals as it came. Blocks for the length of the computation.

    Args:
        popularity: weights of what is popular now, by item key.
    """
    heaviest = max(popularity.values(), default=1.0)
    features, nearest, candidates = [], [], []
    for pool in pools:
        matrix = np.stack([vectors[item.key] for item in pool.items])
        products = matrix @ pool.interests.T  # (candidates, K)
        keys = np.array([item.key for item in pool.items], dtype=np.uint64)
        popular = np.array(
            [popularity.get(item.key, 0.0) / heaviest for item in pool.items], dtype=np.float32
        )
        features.append(candidate_features(keys, products.max(axis=1), popular, pool.history))
        nearest.append(pool.interests[products.argmax(axis=1)])
        candidates.append(matrix)
    scores = encoder.score(np.concatenate(features), np.concatenate(nearest), np.concatenate(candidates))
    ends = np.cumsum([len(pool.items) for pool in pools])
    return [
        [pool.items[place]._replace(score=float(own[place])) for place in np.argsort(-own, kind="stable")]
        for pool, own in zip(pools, np.split(scores, ends[:-1]), strict=True)
    ]
