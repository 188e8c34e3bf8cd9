"""What the encoders see of an event and of an item: the one file that training and serving share.

Everything here is numpy and plain strings, so that `headwater_models` can train on exactly what `headwater` will feed.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from headwater.messages import ACTIONS

# Thirty days: longer gaps carry no more meaning for an interest, and the clamp keeps every encoder's input bounded.
MAX_GAP_S = 30 * 86_400.0

# What is younger is of the visit in hand, as for `streams/headwater/recall/sources/buy_again.py`.
_LATELY_S = 3_600.0

# The encoder's vocabulary of actions by name and by code. 0 is padding.
ACTION_CODES: Final[Mapping[str, int]] = {name: action.code for name, action in ACTIONS.items()}
ACTION_NAMES: Final[Mapping[int, str]] = {code: name for name, code in ACTION_CODES.items()}

# What a candidate scorer is told of each candidate, in this order; as with actions, the names are part of the bundle.
CANDIDATE_FEATURES: tuple[str, ...] = (
    "score",  # its dot product with the nearest interest
    "below_best",  # how far below the best of the pool that is
    "rank",  # its place in the pool by score, logarithmic
    "popularity",  # what is popular now, relative to the most popular item, logarithmic
    "times_had",  # how often the newest L events have it, logarithmic
    "share",  # the part of these events that has it
    "since_had",  # how long ago the last of them was, logarithmic; 1 where there is none
    "place",  # how many events ago that was, relative to L; 1 where there is none
    "due",  # the same time, relative to the usual between two of them; 0 where there are no two
    "idle",  # how long ago the user's last event was, logarithmic
    "events",  # how many of these events there are, relative to L
    "again",  # how much the user may want it again, by log and counters, logarithmic
    "again_rank",  # its place in the pool by that, logarithmic; 1 where it is no such item
    "similar",  # how alike it is to what the user is taking, by the table of neighbours, logarithmic
    "similar_rank",  # its place in the pool by that, logarithmic; 1 where it is no neighbour
    "lately",  # how many of the user's events are of the last hour, logarithmic
)
# 48 bits identify an event within one user's log of 50: a false duplicate once in 5 * 10^12 events.
EVENT_KEY_MASK: Final = 2**48 - 1


def item_key(item_id: str) -> int:
    """The unsigned 64-bit key of an item: its name in the event log, in the index and in the residual tables.

    Among 100 million items the chance of any collision is 3 in 10,000 (n^2 / 2^65).
    """
    return xxhash.xxh3_64_intdigest(item_id.encode())


def event_key(event_id: str) -> int:
    """The unsigned 48-bit key of an event id, for deduplication within one user's log."""
    return xxhash.xxh3_64_intdigest(event_id.encode()) & EVENT_KEY_MASK


def item_keys(item_ids: Iterable[bytes]) -> NDArray[np.uint64]:
    """:func:`item_key` of each id, given as UTF-8."""
    return np.frombuffer(b"".join(map(xxhash.xxh3_64_digest, item_ids)), dtype=">u8").astype(np.uint64)


def event_keys(event_ids: Iterable[bytes]) -> NDArray[np.uint64]:
    """:func:`event_key` of each id, given as UTF-8."""
    return item_keys(event_ids) & np.uint64(EVENT_KEY_MASK)


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


class History(NamedTuple):
    """A user's newest events that step an encoder, oldest first, as a moment finds them, and what sources make of them."""

    items: NDArray[np.uint64]  # (events,) keys
    at_ms: NDArray[np.int64]  # (events,)
    now_ms: int
    length: int  # L, the most events that there can be
    again: Mapping[int, float] = MappingProxyType(
        {}
    )  # item key -> weight (`streams/headwater/recall/sources/buy_again.py`)
    similar: Mapping[int, float] = MappingProxyType(
        {}
    )  # item key -> likeness (`streams/headwater/recall/sources/similar.py`)


def candidate_features(
    items: NDArray[np.uint64],
    scores: NDArray[np.float32],
    popularity: NDArray[np.float32],
    history: History,
) -> NDArray[np.float32]:
    """CANDIDATE_FEATURES of one user's candidates: (candidates, features).

    Args:
        items: keys; scores: dot products with the nearest interest; popularity: weights relative to the most popular
            item, 0 for what is not among the popular. All (candidates,).
    """
    found = np.zeros((len(items), len(CANDIDATE_FEATURES)), dtype=np.float32)
    if not len(items):
        return found
    events, length = len(history.items), history.length
    keys = items.tolist()
    found[:, 0] = scores
    found[:, 1] = scores.max() - scores
    found[:, 2] = _log_place(scores)
    found[:, 3] = _log_part(popularity)
    found[:, 6:8] = 1.0
    found[:, 9] = 1.0
    found[:, 10] = events / length
    _tell(found[:, 11:13], history.again, keys)
    _tell(found[:, 13:15], history.similar, keys)
    if not events:
        return found
    ages_s = np.maximum(history.now_ms - history.at_ms, 0) / 1000.0
    found[:, 9] = _log_age(ages_s[-1:])
    found[:, 15] = np.log1p(np.count_nonzero(ages_s < _LATELY_S))
    had = np.flatnonzero(np.isin(items, history.items))
    same = items[had, None] == history.items  # (had, events)
    times = same.sum(axis=1)
    last = events - 1 - same[:, ::-1].argmax(axis=1)
    since_s = ages_s[last]
    usual_s = (ages_s[same.argmax(axis=1)] - since_s) / np.maximum(times - 1, 1)
    found[had, 4] = np.log1p(times)
    found[had, 5] = times / events
    found[had, 6] = _log_age(since_s)
    found[had, 7] = (events - 1 - last) / length
    found[had, 8] = np.where(times > 1, np.minimum(since_s / np.maximum(usual_s, 1.0), 4.0), 0.0)
    return found


def _tell(found: NDArray[np.float32], of: Mapping[int, float], keys: Sequence[int]) -> None:
    """What a source thinks of each item, and the item's place by that: into `found` (items, 2)."""
    found[:, 1] = 1.0
    if not of:
        return
    value = np.array([of.get(key, 0.0) for key in keys])
    (named,) = value.nonzero()
    value = value[named]
    found[named, 0] = _log_part(value)
    found[named, 1] = _log_place(value)


def _log_part(value: NDArray[np.floating]) -> NDArray[np.floating]:
    """0 for nothing, about 1 for 1, a third less for each tenth of it."""
    return np.asarray(np.log1p(1000.0 * value) / 7.0)


def _log_place(value: NDArray[np.floating]) -> NDArray[np.float64]:
    """How many others have more, logarithmic: 0 for the largest, about 1 for the thousandth."""
    return np.asarray(np.log1p(np.searchsorted(np.sort(-value), -value)) / 7.0)


def _log_age(age_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 for now, 1 for MAX_GAP_S and longer ago."""
    return np.asarray(np.log1p(np.minimum(age_s, MAX_GAP_S)) / np.log1p(MAX_GAP_S))
