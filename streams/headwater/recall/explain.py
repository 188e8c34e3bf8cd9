"""Which of the user's own events brought an item: the events whose items lie nearest to it. Pure."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

# A reader takes in three reasons; the rest would be noise of the same item bought twice.
MAX_REASONS: Final = 3
# A softmax over cosines this sharp gives an item bought before nearly all of the share.
_SHARPNESS: Final = 8.0


class PastEvent(NamedTuple):
    """One event of the user whose item has a vector."""

    item_id: str
    at_ms: int
    action: str


class Share(NamedTuple):
    event: PastEvent
    share: float


def reasons(
    item: NDArray[np.float32], events: Sequence[PastEvent], vectors: NDArray[np.float32]
) -> list[Share]:
    """The events behind one item, largest share first; of several events of one item the newest stands for all.

    Args:
        item: (D,) the recommended item's vector.
        vectors: (events, D) the vectors of the events' items.

    Returns:
        At most three, their shares summing to 1.
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
