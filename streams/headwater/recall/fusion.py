"""One ranking out of several: weighted reciprocal ranks, then diversity by maximal marginal relevance. Pure."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

# The usual constant of reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009): it keeps a first place in
# one source from outweighing good places in several.
RRF_K: Final = 60.0
# The sources of a request that names none. Of 1 to 20 for buy-again, 20 found most of what was bought in the month before the
# split of the tests, and of 0.5 to 4 for similar, 1 most of what was bought for the first time (`models/README.md`): what may
# come again goes first, and the others move it by a few places. What is popular or new comes to those who ask for it: a new
# item takes the place of one that is taken more often.
DEFAULT_WEIGHTS: Final[Mapping[str, float]] = {
    "interests": 1.0,
    "query": 1.0,
    "buy-again": 20.0,
    "similar": 1.0,
}


class Ranking(NamedTuple):
    """What one source found, best first: (item key, item id) each, with the weight of its vote."""

    source: str
    weight: float
    items: Sequence[tuple[int, str]]


class Fused(NamedTuple):
    """An item of the fused ranking; ``source`` gave it the largest part of its score."""

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
        vectors: (items, D), zeros where an item has none; likeness is the cosine.
        diversity: 0 keeps the ranking, 1 looks only at how unlike the items chosen so far an item is.
    """
    if not items or diversity <= 0:
        return list(items[:limit])
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.maximum(norms, 1e-12)
    scores = np.array([item.score for item in items])
    span = float(scores.max() - scores.min())
    relevance = (scores - scores.min()) / span if span > 0 else np.ones(len(items))
    likeness = np.zeros(len(items))
    chosen: list[int] = []
    open_ = np.ones(len(items), dtype=np.bool_)
    while len(chosen) < min(limit, len(items)):
        value = np.where(open_, (1 - diversity) * relevance - diversity * likeness, -np.inf)
        pick = int(value.argmax())
        chosen.append(pick)
        open_[pick] = False
        likeness = np.maximum(likeness, unit @ unit[pick])
    return [items[index] for index in chosen]
