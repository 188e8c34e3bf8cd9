"""Items in the order of how alike they are to others, by cosine: dot products alone would rank by the norm. Pure."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def by_likeness(candidates: F32, anchors: F32) -> NDArray[np.int64]:
    """Places of the candidates (n, D), those first that are most alike, by cosine, to any of the anchors (m, D); m > 0."""
    return np.argsort(-(unit(candidates) @ unit(anchors).T).max(axis=1), kind="stable")


def unit(vectors: F32) -> F32:
    """Rows (n, D) of length one; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: F32 = vectors / np.maximum(lengths, 1e-12)
    return found


def most_alike(
    items: Mapping[int, str], vectors: Mapping[int, F32], anchors: Sequence[F32]
) -> list[tuple[int, str]]:
    """Those of the items that have a vector, the most alike to any of the anchors first.

    Args:
        items: item key -> item id.
        vectors: (D,) by item key.
        anchors: (D,) each; at least one.
    """
    live = [key for key in items if key in vectors]
    if not live:
        return []
    order = by_likeness(np.stack([vectors[key] for key in live]), np.stack(anchors)).tolist()
    return [(live[place], items[live[place]]) for place in order]
