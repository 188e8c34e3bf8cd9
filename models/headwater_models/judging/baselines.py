"""Baselines without training, each a scorer: popularity, repeats, and what is like the history in a tower's space."""

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from headwater.recall.similarity import unit
from headwater_models.arrays import F32, Bools
from headwater_models.bundles.mean_config import MeanConfig
from headwater_models.data.events import Log, newest
from headwater_models.judging.protocols import Cases, Scorer, baskets, histories

DAY_MS: Final = 86_400_000


def popularity(train: Log, items: int) -> Scorer:
    """The items with most events, for everyone."""
    counts = np.bincount(train.items, minlength=items).astype(np.float32)
    return lambda _log, _cases, part: np.broadcast_to(counts, (part.stop - part.start, items))


def popularity_of_texts(train: Log, texts: Sequence[str], items: int) -> Scorer:
    """Items by the events of their text, whichever item had them: popularity for new items."""
    _, of_item = np.unique(np.array(texts), return_inverse=True)
    counts = np.bincount(train.items, minlength=items)[: len(texts)]
    row = np.zeros(items, dtype=np.float32)
    row[: len(texts)] = np.bincount(of_item, weights=counts)[of_item]
    return lambda _log, _cases, part: np.broadcast_to(row, (part.stop - part.start, items))


def popularity_now(known: Log, items: int, days: float = math.inf, until_ms: int | None = None) -> Scorer:
    """Items by their events in the `days` before each question; events from `until_ms` on do not count."""
    order = np.argsort(known.at_ms, kind="stable")
    at_ms, bought = known.at_ms[order], known.items[order]

    def scores(_log: Log, cases: Cases, part: slice) -> F32:
        now_ms = cases.now_ms[part]
        moments, which = np.unique(
            now_ms if until_ms is None else np.minimum(now_ms, until_ms), return_inverse=True
        )
        stops = np.searchsorted(at_ms, moments)
        starts = np.searchsorted(at_ms, moments - days * DAY_MS)
        counts = np.empty((len(moments), items), dtype=np.float32)
        now, since, until = np.zeros(items, dtype=np.int64), starts[0], starts[0]
        for row, (start, stop) in enumerate(
            zip(starts, stops, strict=True)
        ):  # in order of time, so each adds a few events
            now += np.bincount(bought[until:stop], minlength=items)
            now -= np.bincount(bought[since:start], minlength=items)
            counts[row], since, until = now, start, stop
        return counts[which]

    return scores


def personal_top(popular: Scorer) -> Scorer:
    """A user's most frequent items, the latest first among equals; then what is popular."""
    return buy_again(popular, latest=True)


def buy_again(popular: Scorer, *, latest: bool = False) -> Scorer:
    """A user's most frequent items, earlier ones first among equals, or the latest; then what is popular."""

    def scores(log: Log, cases: Cases, part: slice) -> F32:
        found = np.array(popular(log, cases, part))
        found /= 4 * np.maximum(found.max(axis=1, keepdims=True), 1)  # at most a quarter
        owners, rows = histories(log, cases, part)
        pairs, first, counts = np.unique(
            owners * found.shape[1] + log.items[rows], return_index=True, return_counts=True
        )
        lengths = np.bincount(owners, minlength=len(found))
        cases_of, items = np.divmod(pairs, found.shape[1])
        place = first - (np.cumsum(lengths) - lengths)[cases_of]  # in the case's own history
        age = place / (2 * lengths[cases_of])  # below a half: order among equal counts only
        if latest:
            last = np.zeros(len(pairs))
            which = np.searchsorted(pairs, owners * found.shape[1] + log.items[rows])
            np.maximum.at(last, which, np.arange(len(rows)) - (np.cumsum(lengths) - lengths)[owners])
            age = -last / (2 * lengths[cases_of])
        found[cases_of, items] = counts - age
        return found

    return scores


def nearest_to_last(vectors: F32, known: Bools) -> Scorer:
    """Items by their cosine to the last item of the history: vectors (items, D), and which items have one, (items,)."""
    return _like(vectors, known, 1, lambda since, _ages_s: np.ones_like(since))


def mean_of_tower(vectors: F32, known: Bools, length: int) -> Scorer:
    """Items by their cosine to a decayed mean of the newest `length` events: the training-free encoder of `bundle mean`.

    All actions weigh the same. Vectors (items, D), and which items have one, (items,).
    """
    config = MeanConfig()

    def weights(since: F32, ages_s: F32) -> F32:
        found: F32 = config.keep**since * np.exp2(-ages_s / config.half_life_s)
        return found

    return _like(vectors, known, length, weights)


def _like(vectors: F32, known: Bools, length: int, weights: Callable[[F32, F32], F32]) -> Scorer:
    """By the cosine to the weighted sum of the newest events' items.

    `weights` takes the events since each event and its age in seconds, both (cases, events), and gives the same shape.
    """
    directions = unit(vectors)

    def scores(log: Log, cases: Cases, part: slice) -> F32:
        rows, mask = newest(log, cases.users[part], cases.ends[part], length)
        since = mask.sum(axis=1, keepdims=True) - 1 - np.arange(length, dtype=np.float32)
        ages_s = np.maximum(cases.now_ms[part][:, None] - log.at_ms[rows], 0).astype(np.float32) / 1000
        mask *= known[log.items[rows]]
        each = np.where(mask > 0, weights(since, ages_s), np.float32(0))
        found = np.einsum("ce,ced->cd", each, directions[log.items[rows]]) @ directions.T
        found[:, ~known] = -np.inf
        found[~mask.any(axis=1)] = -np.inf
        as_scores: F32 = found.astype(np.float32, copy=False)
        return as_scores

    return scores


def repeats_by_time(train: Log, items: int, half_life_days: float = 120.0) -> Scorer:
    """What a user took before, by a sum that fades with time, times how often the item is taken again at all.

    The time-aware weighting of repeats in its plainest form (Romanov et al., RecSys 2023, learn a kernel for each item).
    """
    again = repeat_shares(train, items)

    def scores(log: Log, cases: Cases, part: slice) -> F32:
        owners, rows = histories(log, cases, part)
        ages_days = (cases.now_ms[part][owners] - log.at_ms[rows]) / DAY_MS
        found = np.zeros((part.stop - part.start, items), dtype=np.float32)
        np.add.at(
            found, (owners, log.items[rows]), np.exp2(-ages_days / half_life_days) * again[log.items[rows]]
        )
        found[found == 0] = -np.inf
        return found

    return scores


def repeat_shares(log: Log, items: int, prior: float = 3.0) -> F32:
    """(items,) the chance that an item of a basket is in the user's next basket too, towards the mean where little is known."""
    begins = baskets(log)
    basket = np.searchsorted(begins, np.arange(len(log.items)), side="right") - 1
    is_last = np.append(log.owners[begins][1:] != log.owners[begins][:-1], True)
    taken = np.unique(log.items * len(begins) + basket)
    item, basket = taken // max(len(begins), 1), taken % max(len(begins), 1)
    again = np.zeros(len(taken), dtype=np.bool_)
    again[:-1] = (item[1:] == item[:-1]) & (basket[1:] == basket[:-1] + 1) & ~is_last[basket[:-1]]
    asked = ~is_last[basket]
    times = np.bincount(item[asked & again], minlength=items)
    chances = np.bincount(item[asked], minlength=items)
    mean = times.sum() / max(chances.sum(), 1)
    found: F32 = ((times + prior * mean) / (chances + prior)).astype(np.float32)
    return found
