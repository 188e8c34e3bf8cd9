"""Histories as batches: windows of users' events, batches of similar length, and augmented views of a window."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from headwater.encoder.features import gaps_s
from headwater_models.arrays import F32, I64
from headwater_models.data.events import Log


@dataclass(frozen=True)
class Batch:
    """Windows of similar length, events first and padding after them. Everything is (windows, T)."""

    items: I64  # rows of the catalog
    actions: I64
    gaps_s: F32
    mask: F32


@dataclass(frozen=True)
class Augmentation:
    """How a window is varied each time it is read. Each field is a share between 0 and 1."""

    crop: float = 0.0  # share of windows that begin at a random event
    drop: float = 0.0  # share of events that are left out
    reorder: float = 0.0  # share of windows of which a random fifth is shuffled


def windows(log: Log, length: int, shift: int = 0) -> list[I64]:
    """Rows of consecutive events, (at most length + 1,) each; every event but a user's first is a target exactly once.

    Windows are cut from a user's newest event backwards. The newest is shorter by `shift`, so each epoch cuts elsewhere.
    """
    found = []
    for start, stop in zip(log.starts[:-1], log.starts[1:], strict=True):
        end = stop
        reach = length - shift
        while end - start >= 2:
            first = max(start, end - 1 - reach)
            found.append(np.arange(first, end))
            end, reach = first + 1, length
    return found


def epoch(
    log: Log, length: int, positions: int, augmentation: Augmentation, seed: tuple[int, ...]
) -> Iterator[Batch]:
    """All windows once in random order, in batches of about `positions` events (windows, T)."""
    rng = np.random.default_rng(seed)
    shift = int(rng.integers(length)) if np.diff(log.starts).max(initial=0) > length + 1 else 0
    chosen = [augmented(rows, augmentation, rng) for rows in windows(log, length, shift)]
    lengths = np.array([len(rows) - 1 for rows in chosen])
    # Similar lengths together, which needs little padding; random among equals.
    order = np.lexsort((rng.random(len(chosen)), lengths))
    order = order[lengths[order] > 0]
    cuts = np.flatnonzero(np.diff(np.cumsum(lengths[order]) // positions)) + 1
    groups = np.split(order, cuts)
    for n in rng.permutation(len(groups)):
        yield batch_of(log, [chosen[window] for window in groups[n]])


def batch_of(log: Log, chosen: list[I64]) -> Batch:
    """Windows of rows (T,) each, side by side as (windows, T).

    The first gap of each is zero, as in a fold that begins there.
    """
    lengths = np.array([len(rows) for rows in chosen])
    mask = np.arange(lengths.max()) < lengths[:, None]
    rows = np.zeros(mask.shape, dtype=np.int64)
    rows[mask] = np.concatenate(chosen)
    return Batch(
        items=log.items[rows],
        actions=log.actions[rows] * mask,
        gaps_s=gaps_s(log.at_ms[rows]) * mask,
        mask=mask.astype(np.float32),
    )


def augmented(rows: I64, augmentation: Augmentation, rng: np.random.Generator) -> I64:
    """One view of a window: rows (T,) -> rows (T',), T' <= T."""
    if augmentation.crop and rng.random() < augmentation.crop:
        rows = crop(rows, rng)
    if augmentation.drop:
        rows = drop(rows, augmentation.drop, rng)
    if augmentation.reorder and rng.random() < augmentation.reorder:
        rows = reorder(rows, 0.2, rng)
    return rows


def crop(rows: I64, rng: np.random.Generator) -> I64:
    """The window from a random event on: rows (T,) -> (T',). The end stays."""
    return rows[rng.integers(max(len(rows) - 1, 1)) :]


def drop(rows: I64, share: float, rng: np.random.Generator) -> I64:
    """The window without a random share of its events: rows (T,) -> (T',). The last event always stays."""
    keep = rng.random(len(rows)) >= share
    keep[-1:] = True
    return rows[keep]


def reorder(rows: I64, share: float, rng: np.random.Generator) -> I64:
    """The window with a random stretch of this share shuffled: rows (T,) -> (T,)."""
    span = int(np.ceil(share * len(rows)))
    start = rng.integers(len(rows) - span + 1)
    rows = rows.copy()
    rows[start : start + span] = rng.permutation(rows[start : start + span])
    return rows
