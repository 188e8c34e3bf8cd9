"""How good are lists of items: full ranking, in numpy, the same code for models and baselines.

One list per user from what was known at the split. Each later purchase is a target of its own (`all`), or only a user's
first purchase of each item, with the items bought before the split masked (`discovery`): half of all purchases are repeats, and
they would hide everything else.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.events import Log

TOP = 20
WEEK_MS = 7 * 86_400_000
Floats = NDArray[np.float32]
Scorer = Callable[[NDArray[np.int64]], Floats]  # users -> (users, items) scores; -inf = never recommend


@dataclass(frozen=True)
class Quality:
    targets: int
    hit: float  # share of the targets in their user's list
    ndcg: float  # a target at rank r (from 1) counts 1 / log2(r + 1)


def evaluate(scorer: Scorer, before: Log, after: Log) -> dict[str, Quality]:
    """Quality on `all` and on `discovery`."""
    gains: dict[str, list[NDArray[np.float64]]] = {"all": [], "discovery": []}
    for users in _batches(len(before.users)):
        users = users[after.starts[users + 1] > after.starts[users]]
        if users.size == 0:
            continue
        scores = scorer(users).astype(np.float32, copy=True)
        everything = best(scores, TOP)
        for row, user in enumerate(users):
            known = _items(before, user)
            targets = _items(after, user)
            gains["all"].append(_gains(everything[row], targets))
            scores[row, known] = -np.inf
        new = best(scores, TOP)
        for row, user in enumerate(users):
            first = np.setdiff1d(_items(after, user), _items(before, user))
            gains["discovery"].append(_gains(new[row], first))
    joined = {name: np.concatenate(found) if found else np.zeros(0) for name, found in gains.items()}
    return {name: _quality(found) for name, found in joined.items()}


def best(scores: Floats, count: int) -> NDArray[np.int64]:
    """Columns of the highest scores of each row, best first; among equal scores the lower column."""
    columns = scores.shape[1]
    count = min(count, columns)
    # The threshold first, then everything at or above it: a plain argpartition would cut ties at random.
    threshold = np.partition(scores, columns - count, axis=1)[:, columns - count]
    out = np.empty((len(scores), count), dtype=np.int64)
    for row, least in enumerate(threshold):
        above = np.flatnonzero(scores[row] >= least)
        out[row] = above[np.argsort(-scores[row, above], kind="stable")][:count]
    return out


def popularity(before: Log, items: int, since_ms: int | None = None) -> Scorer:
    """The most bought items for everyone, from all events or only from those since a moment."""
    scores = _by_popularity(
        before.items if since_ms is None else before.items[before.at_ms >= since_ms], items
    )
    return lambda users: np.tile(scores, (len(users), 1))


def buy_again(before: Log, items: int) -> Scorer:
    """A user's most frequent items, the one bought earlier first among equals; then what is popular."""
    overall = _by_popularity(before.items, items) / np.float32(4)

    def scores(users: NDArray[np.int64]) -> Floats:
        out = np.tile(overall, (len(users), 1))
        for row, user in enumerate(users):
            found, first, counts = np.unique(_items(before, user), return_index=True, return_counts=True)
            out[row, found] = counts - first / (2 * first.max() + 1) if found.size else 0
        return out

    return scores


def _by_popularity(bought: NDArray[np.int64], items: int) -> Floats:
    """Scores in (0, 1], all different, more for what was bought more often."""
    order = np.argsort(-np.bincount(bought, minlength=items), kind="stable")
    scores = np.empty(items, dtype=np.float32)
    scores[order] = np.arange(items, 0, -1, dtype=np.float32) / items
    return scores


def dot_products(interests: Floats, vectors: Floats) -> Scorer:
    """The score of an item is its best dot product with any interest of the user: (users, K, D), (items, D).

    Rows of NaN in `vectors` are items that were never encoded.
    """
    missing = np.asarray(np.isnan(vectors).any(axis=1))
    known = np.where(missing[:, None], np.float32(0), vectors)

    def scores(users: NDArray[np.int64]) -> Floats:
        found = np.einsum("ukd,nd->ukn", interests[users], known, optimize=True).max(axis=1)
        found[:, missing] = -np.inf
        return np.asarray(found, dtype=np.float32)

    return scores


def _batches(users: int, size: int = 64) -> Iterator[NDArray[np.int64]]:
    for start in range(0, users, size):
        yield np.arange(start, min(start + size, users))


def _items(log: Log, user: int) -> NDArray[np.int64]:
    return log.items[log.starts[user] : log.starts[user + 1]]


def _gains(ranked: NDArray[np.int64], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 / log2(rank + 1) of each target in the list, 0 for the others."""
    found = targets[:, None] == ranked[None, :]
    gains: NDArray[np.float64] = np.where(found, 1 / np.log2(np.arange(len(ranked)) + 2.0), 0.0).sum(axis=1)
    return gains


def _quality(gains: NDArray[np.float64]) -> Quality:
    if gains.size == 0:
        return Quality(0, 0.0, 0.0)
    return Quality(gains.size, float((gains > 0).mean()), float(gains.mean()))
