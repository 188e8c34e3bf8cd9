"""Which of the user's own events brought an item: those that its source names, or those whose items lie nearest. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwater.encoder.features import ACTION_NAMES
from headwater.recall.fusion import Fused
from headwater.recall.sources import F32, Ask, PositiveEvent

# A reader takes in three reasons; the rest would be noise of the same item bought twice.
MAX_REASONS: Final = 3
# With a softmax over cosines this sharp, an item bought before has nearly all of the share.
_SHARPNESS: Final = 8.0


class PastEvent(NamedTuple):
    """One event of the user whose item has a vector."""

    item_id: str
    at_ms: int
    action: str


class Share(NamedTuple):
    """An event and its share in bringing an item; the shares of an item's events sum to 1."""

    event: PastEvent
    share: float


def explained(
    items: Sequence[Fused],
    named: Mapping[int, Sequence[tuple[PositiveEvent, float]]],
    events: Sequence[PositiveEvent],
    vectors: Mapping[int, F32],
    payloads: Mapping[int, Mapping[str, Any]],
) -> list[list[Share]]:
    """The reasons of each item, largest share first; empty where neither its source nor its vector tells.

    Args:
        named: by item key, the events that its source names.
        events: the user's own, for all other items.
        vectors: (D,) by item key, of the items and of the events' items.
        payloads: of the events' items, by key; an event whose item is gone is no reason.
    """
    known = [event for event in events if event[0] in vectors and event[0] in payloads]
    past = [_past(event, payloads) for event in known]
    matrix = np.stack([vectors[key] for key, _, _ in known]) if known else np.zeros((0, 1), dtype=np.float32)
    because = []
    for item in items:
        if item.key in named:
            shares = [pair for pair in named[item.key] if pair[0][0] in payloads]
            because.append([Share(_past(event, payloads), share) for event, share in shares])
        else:
            because.append(nearest_events(vectors[item.key], past, matrix) if item.key in vectors else [])
    return because


def nearest_events(
    item: NDArray[np.float32], events: Sequence[PastEvent], vectors: NDArray[np.float32]
) -> list[Share]:
    """The events nearest to one item, largest share first; of several events of one item the newest stands for all.

    Args:
        item: (D,) the recommended item's vector.
        vectors: (events, D) the vectors of the events' items.

    Returns:
        At most three, their shares summing to 1: a softmax over the cosines.
    """
    if not events:
        return []
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosine = unit @ (item / max(float(np.linalg.norm(item)), 1e-12))
    newest: dict[str, int] = {}
    for index, event in enumerate(events):
        if event.item_id not in newest or event.at_ms >= events[newest[event.item_id]].at_ms:
            newest[event.item_id] = index
    chosen = sorted(newest.values(), key=lambda index: -float(cosine[index]))[:MAX_REASONS]
    weights = np.exp(_SHARPNESS * (cosine[chosen] - cosine[chosen].max()))
    shares = weights / weights.sum()
    return [Share(events[index], float(share)) for index, share in zip(chosen, shares, strict=True)]


def similarities(items: Sequence[Fused], ask: Ask, vectors: Mapping[int, F32]) -> list[float | None]:
    """How near each item lies to what is asked for: the highest cosine with an interest that counts, or with the query.

    Args:
        vectors: (D,) by item key.

    Returns:
        From -1 to 1 for each item; None for an item without a vector, and where there is nothing to compare with.
    """
    wanted = [*ask.interests[ask.interest_weights > 0], *([] if ask.query is None else [ask.query])]
    if not wanted:
        return [None] * len(items)
    unit = _unit(np.stack(wanted))
    known = [item.key for item in items if item.key in vectors]
    cosines = (_unit(np.stack([vectors[key] for key in known])) @ unit.T).max(axis=1) if known else ()
    by_key = dict(zip(known, map(float, cosines), strict=True))
    return [by_key.get(item.key) for item in items]


def _unit(vectors: F32) -> F32:
    """The rows of (n, D) at length 1; zeros stay zeros."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: F32 = vectors / np.maximum(length, 1e-12)
    return unit


def _past(event: PositiveEvent, payloads: Mapping[int, Mapping[str, Any]]) -> PastEvent:
    key, at_ms, action = event
    return PastEvent(str(payloads[key]["item_id"]), at_ms, ACTION_NAMES[action])
