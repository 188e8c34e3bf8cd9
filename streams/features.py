"""What the encoders see of an event and of an item: the one file that training and serving share.

Everything here is numpy and plain strings, so that `models` can train on exactly what `streams` will feed.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

# Thirty days: longer gaps carry no more meaning for an interest, and the clamp keeps every encoder's input bounded.
MAX_GAP_S = 30 * 86_400.0

# The encoder's vocabulary of actions. 0 is padding; the numbers are part of every bundle, so they are never reused.
ACTION_CODES: dict[str, int] = {
    "click": 1,
    "view": 2,
    "like": 3,
    "add_to_cart": 4,
    "purchase": 5,
    "dislike": 6,
    "hide": 7,
    "impression": 8,
    "retract": 9,
    "forget": 10,
}

ACTION_NAMES: dict[int, str] = {code: name for name, code in ACTION_CODES.items()}


def item_key(item_id: str) -> int:
    """The unsigned 64-bit key of an item: its name in the event log, in the index and in the residual tables.

    Among 100 million items the chance of any collision is 3 in 10,000 (n^2 / 2^65).
    """
    return xxhash.xxh3_64_intdigest(item_id.encode())


def event_key(event_id: str) -> int:
    """The unsigned 64-bit key of an event id, for deduplication within one user's log."""
    return xxhash.xxh3_64_intdigest(event_id.encode())


def keys_of(ids: Iterable[bytes]) -> NDArray[np.uint64]:
    """:func:`item_key` or :func:`event_key` of each id, given as UTF-8."""
    return np.frombuffer(b"".join(map(xxhash.xxh3_64_digest, ids)), dtype=">u8").astype(np.uint64)


def item_text(
    title: str,
    description: str = "",
    category: str = "",
    tags: Sequence[str] = (),
    attributes: Mapping[str, object] | None = None,
) -> str:
    """The text of an item as the item tower reads it: most telling first, since towers cut long texts.

    >>> item_text("Filter coffee", category="grocery", tags=["coffee"], attributes={"size": "12 OZ"})
    'Filter coffee. coffee. grocery. size 12 OZ'
    """
    parts = [title, ", ".join(tags), category, description]
    parts += [
        f"{name} {value}" for name, value in sorted((attributes or {}).items()) if isinstance(value, str)
    ]
    return ". ".join(part for part in parts if part)


def gaps_s(at_ms: NDArray[np.int64]) -> NDArray[np.float32]:
    """Seconds since the event before, along the last axis (0 for the first), clamped to [0, MAX_GAP_S]."""
    gaps = np.zeros(at_ms.shape, dtype=np.float32)
    gaps[..., 1:] = clamp_gap_s((at_ms[..., 1:] - at_ms[..., :-1]) / 1000.0)
    return gaps


def clamp_gap_s(gap_s: NDArray[np.float64]) -> NDArray[np.float32]:
    """Gaps in seconds as the encoders take them: never negative, never beyond thirty days."""
    return np.clip(gap_s, 0.0, MAX_GAP_S).astype(np.float32)
