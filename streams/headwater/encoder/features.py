"""What the encoders see of an event and of an item. Training and serving share this file.

Everything here is numpy and plain strings, so `headwater_models` trains on exactly what `headwater` feeds.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from headwater.messages import ACTIONS, BadMessage, Item, quoted

# Thirty days in seconds. Longer gaps mean no more for an interest, and the clamp keeps every encoder's input bounded.
MAX_GAP_S = 30 * 86_400.0

# Younger events belong to the visit at hand, as in `streams/headwater/recall/sources/buy_again.py`.
_LATELY_S = 3_600.0

# The encoder's vocabulary of actions by name and by code. 0 is padding.
ACTION_CODES: Final[Mapping[str, int]] = {name: action.code for name, action in ACTIONS.items()}
ACTION_NAMES: Final[Mapping[int, str]] = {code: name for name, code in ACTION_CODES.items()}

# What a candidate scorer may be told of each candidate, in this order. A bundle names those that its scorer reads; new ones
# are added at the end.
CANDIDATE_FEATURES: tuple[str, ...] = (
    "score",  # dot product with the nearest interest
    "below_best",  # distance of that from the best score in the pool
    "rank",  # rank in the pool by score, logarithmic
    "popularity",  # present weight relative to the most popular item, logarithmic
    "times_had",  # number of the newest L events that have it, logarithmic
    "share",  # share of these events that have it
    "since_had",  # age of the last of them, logarithmic; 1 if there is none
    "place",  # events since that one, relative to L; 1 if there is none
    "due",  # its age relative to the usual gap between two of them; 0 if there are no two
    "idle",  # age of the user's last event, logarithmic
    "events",  # number of these events, relative to L
    "again",  # weight for buying it again, by log and counters, logarithmic
    "again_rank",  # rank in the pool by that, logarithmic; 1 if it has no such weight
    "similar",  # likeness to the session at hand, by the table of neighbours, logarithmic
    "similar_rank",  # rank in the pool by that, logarithmic; 1 if it is no neighbour
    "lately",  # number of the user's events in the last hour, logarithmic
    "below_own_best",  # distance of the score from the best one of the same interest in the pool
    "own_rank",  # rank by score among the candidates that are nearest to the same interest, logarithmic
    "repeats",  # how the table of neighbours says the item is taken again, logarithmic; 0 for items not among the newest L
    "in_table",  # 1 for items that the table of neighbours knows: one that came in later is no neighbour for want of a row
)
# 48 bits identify an event within one user's log of 50: a false duplicate once in 5 * 10^12 events.
EVENT_KEY_MASK: Final = 2**48 - 1


def item_key(item_id: str) -> int:
    """The unsigned 64-bit key of an item: its name in the event log, in the index and in the residual tables.

    Among 100 million items the chance of any collision is 3 in 10,000 (n^2 / 2^65).
    """
    return xxhash.xxh3_64_intdigest(item_id.encode())


def item_text_key(item_id: str, text: str) -> int:
    """The unsigned 64-bit key of an item under one text: its name in residual tables that are bound to both.

    The length of the id comes first, so that no other id and text hash the same bytes.
    """
    raw = item_id.encode()
    return xxhash.xxh3_64_intdigest(len(raw).to_bytes(4, "little") + raw + text.encode())


def event_key(event_id: str) -> int:
    """The unsigned 48-bit key of an event id, for deduplication within one user's log."""
    return xxhash.xxh3_64_intdigest(event_id.encode()) & EVENT_KEY_MASK


def item_keys(item_ids: Iterable[bytes]) -> NDArray[np.uint64]:
    """(N,) :func:`item_key` of each of N ids, given as UTF-8."""
    return np.frombuffer(b"".join(map(xxhash.xxh3_64_digest, item_ids)), dtype=">u8").astype(np.uint64)


def event_keys(event_ids: Iterable[bytes]) -> NDArray[np.uint64]:
    """(N,) :func:`event_key` of each of N ids, given as UTF-8."""
    return item_keys(event_ids) & np.uint64(EVENT_KEY_MASK)


def item_text(
    title: str,
    description: str = "",
    category: str = "",
    tags: Sequence[str] = (),
    attributes: Mapping[str, object] | None = None,
) -> str:
    """The text of an item as the item tower reads it. The most telling parts come first, since towers cut long texts.

    >>> item_text("Filter coffee", category="grocery", tags=["coffee"], attributes={"size": "12 OZ"})
    'Filter coffee. coffee. grocery. size 12 OZ'
    """
    parts = [title, ", ".join(tags), category, description]
    parts += [
        f"{name} {value}" for name, value in sorted((attributes or {}).items()) if isinstance(value, str)
    ]
    return ". ".join(part for part in parts if part)


def required_text(item: Item, bundle: str) -> str:
    """The text of an item for a bundle (by its id) whose item tower reads text.

    Raises:
        BadMessage: ``no_text``.
    """
    text = item_text(item.title, item.description, item.category, item.tags, item.attributes)
    if not text.strip(" ."):
        raise BadMessage(
            "no_text",
            f"title: got {quoted(item.title)} and no other text, expected some: bundle {bundle} encodes text",
        )
    return text


def gaps_s(at_ms: NDArray[np.int64]) -> NDArray[np.float32]:
    """Seconds since the event before, along the last axis of ``at_ms`` (..., events), clamped to [0, MAX_GAP_S].

    The result has the same shape; the first gap is 0.
    """
    gaps = np.zeros(at_ms.shape, dtype=np.float32)
    gaps[..., 1:] = clamp_gap_s((at_ms[..., 1:] - at_ms[..., :-1]) / 1000.0)
    return gaps


def clamp_gap_s(gap_s: NDArray[np.float64]) -> NDArray[np.float32]:
    """Gaps in seconds, of any shape, clamped to [0, MAX_GAP_S] as the encoders take them."""
    return np.clip(gap_s, 0.0, MAX_GAP_S).astype(np.float32)


class History(NamedTuple):
    """A user's newest events that step an encoder, oldest first, at one moment, and the weights that sources derive."""

    items: NDArray[np.uint64]  # (events,) keys
    at_ms: NDArray[np.int64]  # (events,)
    now_ms: int
    length: int  # L, the largest number of events
    again: Mapping[int, float] = MappingProxyType({})  # item key -> weight (`recall/sources/buy_again.py`)
    similar: Mapping[int, float] = MappingProxyType({})  # item key -> likeness (`recall/sources/similar.py`)
    repeats: Mapping[int, float] = MappingProxyType(
        {}
    )  # item key -> ratio to the usual item (`Repeats.again`)
    in_table: NDArray[np.uint64] = np.zeros(
        0, dtype=np.uint64
    )  # (rows,) keys of the table of neighbours, ascending


def candidate_features(
    items: NDArray[np.uint64],
    scores: NDArray[np.float32],
    popularity: NDArray[np.float32],
    history: History,
    nearest: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """(candidates, features) the CANDIDATE_FEATURES of one user's candidates.

    Args:
        items: (candidates,) keys.
        scores: (candidates,) dot products with the nearest interest.
        popularity: (candidates,) weights relative to the most popular item; 0 for items that are not popular.
        history: the user's events and what follows from them.
        nearest: (candidates,) the number of the interest that each of them is nearest to. None: there is one interest.
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
    own = np.zeros(len(items), dtype=np.int64) if nearest is None else nearest
    for interest in np.unique(own):
        among = own == interest
        found[among, 16] = scores[among].max() - scores[among]
        found[among, 17] = _log_place(scores[among])
    found[:, 6:8] = 1.0
    found[:, 9] = 1.0
    found[:, 10] = events / length
    _tell(found[:, 11:13], history.again, keys)
    _tell(found[:, 13:15], history.similar, keys)
    if len(history.in_table):
        rows = history.in_table.searchsorted(items).clip(max=len(history.in_table) - 1)
        found[:, 19] = history.in_table[rows] == items
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
    found[had, 18] = np.log([history.repeats.get(key, 1.0) for key in items[had].tolist()])
    found[had, 8] = np.where(times > 1, np.minimum(since_s / np.maximum(usual_s, 1.0), 4.0), 0.0)
    return found


def _tell(found: NDArray[np.float32], of: Mapping[int, float], keys: Sequence[int]) -> None:
    """Write a source's weight of each item, and the item's rank by that, into `found` (items, 2)."""
    found[:, 1] = 1.0
    if not of:
        return
    value = np.array([of.get(key, 0.0) for key in keys])
    (named,) = value.nonzero()
    value = value[named]
    found[named, 0] = _log_part(value)
    found[named, 1] = _log_place(value)


def _log_part(value: NDArray[np.floating]) -> NDArray[np.floating]:
    """A logarithmic scale for shares of any shape: 0 for 0, about 1 for 1, a third less for each tenth of it."""
    return np.asarray(np.log1p(1000.0 * value) / 7.0)


def _log_place(value: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N,) the number of larger values, logarithmic: 0 for the largest of (N,), about 1 for the thousandth."""
    return np.asarray(np.log1p(np.searchsorted(np.sort(-value), -value)) / 7.0)


def _log_age(age_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """A logarithmic scale for ages in seconds, of any shape: 0 for now, 1 for MAX_GAP_S and more."""
    return np.asarray(np.log1p(np.minimum(age_s, MAX_GAP_S)) / np.log1p(MAX_GAP_S))
