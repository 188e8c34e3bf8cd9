"""Which of the user's own events brought an item: those that its source names, or those whose items lie nearest. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwater.encoder.features import ACTION_NAMES
from headwater.recall.fusion import Fused
from headwater.recall.similarity import unit
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
    # Of several events of one item the newest stands for all, in the place of the first.
    newest: dict[int, PositiveEvent] = {}
    for event in events:
        key, at_ms, _ = event
        if key in vectors and key in payloads and (key not in newest or at_ms >= newest[key][1]):
            newest[key] = event
    past = [_past(event, payloads) for event in newest.values()]
    near = [item.key for item in items if item.key not in named and item.key in vectors] if past else []
    by_vector: dict[int, list[Share]] = {}
    if near:
        shares = nearest_events(
            np.stack([vectors[key] for key in near]), past, np.stack([vectors[key] for key in newest])
        )
        by_vector = dict(zip(near, shares, strict=True))
    because = []
    for item in items:
        if item.key in named:
            pairs = [pair for pair in named[item.key] if pair[0][0] in payloads]
            because.append([Share(_past(event, payloads), share) for event, share in pairs])
        else:
            because.append(by_vector.get(item.key, []))
    return because


def nearest_events(
    items: NDArray[np.float32], events: Sequence[PastEvent], vectors: NDArray[np.float32]
) -> list[list[Share]]:
    """The events nearest to each item, largest share first.

    Args:
        items: (items, D) the recommended items' vectors.
        events: of an item each; at least one.
        vectors: (events, D) the vectors of the events' items.

    Returns:
        For each item at most three, their shares summing to 1: a softmax over the cosines.
    """
    cosines = unit(items) @ unit(vectors).T  # (items, events)
    places = np.argsort(-cosines, axis=1, kind="stable")[:, :MAX_REASONS]
    chosen = np.take_along_axis(cosines, places, axis=1)
    weights = np.exp(_SHARPNESS * (chosen - chosen[:, :1]))
    shares = weights / weights.sum(axis=1, keepdims=True)
    return [
        [Share(events[place], share) for place, share in zip(*row, strict=True)]
        for row in zip(places.tolist(), shares.tolist(), strict=True)
    ]


def similarities(items: Sequence[Fused], ask: Ask, vectors: Mapping[int, F32]) -> list[float | None]:
    """How near each item lies to what is asked for: the highest cosine with an interest that counts, the query or a named item.

    Args:
        vectors: (D,) by item key.

    Returns:
        From -1 to 1 for each item; None for an item without a vector, and where there is nothing to compare with.
    """
    wanted = [
        *ask.interests[ask.interest_weights > 0],
        *([] if ask.query is None else [ask.query]),
        *(vectors[key] for key in ask.items if key in vectors),
    ]
    if not wanted:
        return [None] * len(items)
    directions = unit(np.stack(wanted))
    known = [item.key for item in items if item.key in vectors]
    cosines = (unit(np.stack([vectors[key] for key in known])) @ directions.T).max(axis=1) if known else ()
    by_key = dict(zip(known, map(float, cosines), strict=True))
    return [by_key.get(item.key) for item in items]


def _past(event: PositiveEvent, payloads: Mapping[int, Mapping[str, Any]]) -> PastEvent:
    key, at_ms, action = event
    return PastEvent(str(payloads[key]["item_id"]), at_ms, ACTION_NAMES[action])
