"""Measures of ranked lists, as pure functions of the targets' ranks.

Ranks count from 1. Among equal scores a target has the worst rank. NEVER is the rank of what cannot be recommended.
"""

from typing import Final

import numpy as np

from headwater_models.arrays import F64, I64

NEVER: Final = 2**62
NAMES: Final = ("HR", "recall", "precision", "F1", "NDCG", "MRR")
DECILES: Final = ("cold", *map(str, range(1, 11)))
_LENGTHS: Final = (0, 1, 3, 6, 11, 21, 51)  # where groups of history lengths begin
LENGTHS: Final = ("0", "1-2", "3-5", "6-10", "11-20", "21-50", "51+")


def by_case(ranks: I64, starts: I64, k: int) -> dict[str, F64]:
    """HR, recall, precision, F1, NDCG and MRR at k of each case (NAMES), with binary relevance: name -> (cases,).

    ranks (targets,) of distinct targets; case c owns ranks starts[c] to starts[c + 1], at least one. NDCG is the sum of
    1 / log2(rank + 1) over found targets, divided by the same sum if all were first.

    >>> {name: round(float(value[0]), 3) for name, value in by_case(np.array([2, 30]), np.array([0, 2]), 10).items()}
    {'HR': 1.0, 'recall': 0.5, 'precision': 0.1, 'F1': 0.167, 'NDCG': 0.387, 'MRR': 0.5}
    """
    if not len(ranks):
        return {name: np.zeros(0) for name in NAMES}
    counts = np.diff(starts)
    first = starts[:-1]
    hits = np.add.reduceat((ranks <= k).astype(np.float64), first)
    gains = np.add.reduceat(np.where(ranks <= k, 1 / np.log2(ranks + 1.0), 0.0), first)
    ideal = np.cumsum(1 / np.log2(np.arange(2.0, k + 2)))
    best = np.minimum.reduceat(ranks, first)
    recall, precision = hits / counts, hits / k
    return {
        "HR": (hits > 0).astype(np.float64),
        "recall": recall,
        "precision": precision,
        "F1": 2 * precision * recall / np.maximum(precision + recall, 1e-12),
        "NDCG": gains / ideal[np.minimum(counts, k) - 1],
        "MRR": np.where(best <= k, 1 / best, 0.0),
    }


def interval(values: F64, users: I64, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of values (n,), drawing users (n,) with replacement.

    Values of one user are dependent, so they are drawn together.
    """
    _, owners = np.unique(users, return_inverse=True)
    sums, counts = np.bincount(owners, weights=values), np.bincount(owners).astype(np.float64)
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    for draw in range(draws):
        chosen = rng.integers(0, len(sums), len(sums))
        means[draw] = sums[chosen].sum() / counts[chosen].sum()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def coverage(lists: I64, items: int) -> float:
    """Share of the catalog that is in any list. Lists (cases, k), -1 for an empty place."""
    return len(np.unique(lists[lists >= 0])) / items


def novelty(lists: I64, counts: I64) -> float:
    """Mean self-information of all listed items in bits: -log2 of an item's share of the events, with one event added to each.

    Lists (cases, k), -1 for an empty place; counts (items,).
    """
    information = -np.log2((counts + 1) / (counts + 1).sum())
    listed = information[lists[lists >= 0]]
    return float(listed.mean()) if len(listed) else 0.0


def gini(lists: I64, items: int) -> float:
    """How unequally items are recommended: 0 for all alike (or no lists), towards 1 if one item has all places.

    Lists (cases, k), -1 for an empty place.
    """
    shown = np.sort(np.bincount(lists[lists >= 0], minlength=items)).astype(np.float64)
    below = np.cumsum(shown)
    return float((items + 1 - 2 * below.sum() / below[-1]) / items) if below[-1] else 0.0


def popularity_deciles(counts: I64) -> I64:
    """Each item's decile by training events, counts (items,) -> positions in DECILES (items,): 1 (least) to
    10; 0: no event.
    """
    trained = np.flatnonzero(counts)
    order = trained[np.argsort(counts[trained], kind="stable")]
    deciles = np.zeros(len(counts), dtype=np.int64)
    deciles[order] = np.arange(len(order)) * 10 // max(len(order), 1) + 1
    return deciles


def length_groups(lengths: I64) -> I64:
    """The group of each history length, (n,) -> positions in LENGTHS (n,)."""
    return np.searchsorted(_LENGTHS, lengths, side="right") - 1
