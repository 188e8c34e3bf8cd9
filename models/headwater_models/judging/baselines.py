"""Baselines without training, each a scorer: popularity, recent popularity, buy-again."""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from headwater_models.arrays import F32
from headwater_models.data.events import Log
from headwater_models.judging.protocols import Cases, Scorer, histories

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


def buy_again(popular: Scorer) -> Scorer:
    """A user's most frequent items, earlier ones first among equals; then what is popular."""

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
        found[cases_of, items] = counts - age
        return found

    return scores
