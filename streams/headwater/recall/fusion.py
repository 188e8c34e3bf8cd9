"""One ranking out of several: weighted reciprocal ranks, then diversity by maximal marginal relevance. Pure."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

# The usual constant of reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009). It keeps a first place in one
# source from outweighing good places in several.
RRF_K: Final = 60.0


class Ranking(NamedTuple):
    """What one source found, best first: (item key, item id) of each item, and the weight of its vote."""

    source: str
    weight: float
    items: Sequence[tuple[int, str]]


class Fused(NamedTuple):
    """An item of the fused ranking. ``source`` gave it the largest part of its score."""

    key: int
    item_id: str
    score: float
    source: str


def fuse(rankings: Sequence[Ranking]) -> list[Fused]:
    """Weighted reciprocal rank fusion, best first; ties keep the order of the rankings.

    >>> a = Ranking("a", 1.0, [(1, "x"), (2, "y")])
    >>> [(item.item_id, item.source) for item in fuse([a, Ranking("b", 1.0, [(2, "y")])])]
    [('y', 'b'), ('x', 'a')]
    """
    scores: dict[int, float] = {}
    best: dict[int, tuple[float, str, str]] = {}
    for ranking in rankings:
        for rank, (key, item_id) in enumerate(ranking.items, 1):
            part = ranking.weight / (RRF_K + rank)
            scores[key] = scores.get(key, 0.0) + part
            if key not in best or part > best[key][0]:
                best[key] = (part, item_id, ranking.source)
    order = sorted(scores, key=lambda key: -scores[key])
    return [Fused(key, best[key][1], scores[key], best[key][2]) for key in order]


def diversify(
    items: Sequence[Fused], vectors: NDArray[np.float32], diversity: float, limit: int
) -> list[Fused]:
    """Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998).

    Args:
        vectors: (items, D), zeros where an item has none; similarity is the cosine.
        diversity: 0 keeps the ranking; 1 looks only at how unlike an item is to those chosen before it.

    Returns:
        At most `limit` of the items, in the order in which they were chosen.
    """
    if not items or diversity <= 0:
        return list(items[:limit])
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.maximum(norms, 1e-12)
    # (items, items): one product takes a third of the time of a product for each choice.
    alike = unit @ unit.T
    scores = np.array([item.score for item in items])
    span = float(scores.max() - scores.min())
    relevance = (1 - diversity) * ((scores - scores.min()) / span if span > 0 else np.ones(len(items)))
    similarity = np.zeros(len(items))
    value = np.empty(len(items))
    chosen: list[int] = []
    while len(chosen) < min(limit, len(items)):
        np.multiply(similarity, -diversity, out=value)
        value += relevance
        pick = int(value.argmax())
        chosen.append(pick)
        relevance[pick] = -np.inf
        np.maximum(similarity, alike[pick], out=similarity)
    return [items[index] for index in chosen]
