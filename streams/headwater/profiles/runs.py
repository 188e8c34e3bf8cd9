"""Runs of equal values in sorted arrays. numpy's `diff` and `roll` do the same, at five times the cost for short arrays."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def firsts(values: NDArray[Any]) -> NDArray[np.bool_]:
    """(N,) whether each value of ``values`` (N,) differs from the one before it."""
    differs = np.empty(len(values), dtype=np.bool_)
    differs[:1] = True
    np.not_equal(values[1:], values[:-1], out=differs[1:])
    return differs


def before(values: NDArray[Any]) -> NDArray[Any]:
    """(N,) the value before each of ``values`` (N,); the first one is its own."""
    shifted = values.copy()
    shifted[1:] = values[:-1]
    return shifted


def lengths(starts: NDArray[np.int64], stop: int) -> NDArray[np.int64]:
    """(N,) the distance from each of ``starts`` (N,), ascending, to the next, and from the last to ``stop``."""
    distances = np.full(len(starts), stop)
    distances[:-1] = starts[1:]
    distances -= starts
    return distances
