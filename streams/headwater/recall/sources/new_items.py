"""What is new in the catalog and like what the user is taking. Pure.

New items are in no table and no count, and interests, which are trained on what was taken, rank them behind what was: only
what they say of themselves tells them apart. So they are compared with the items of the session at hand, one by one, and by
cosines: how long a new item's vector is says nothing of it. What that finds is in `models/README.md`, "What is new".
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from headwater.recall.session import Wish, session_in_hand

F32 = NDArray[np.float32]

# The usual end of a visit.
PAUSE_MS: Final = 1_800_000
# The index is asked for each of them.
MOST_TAKEN: Final = 8
# Who is in no session has these, the last that they took.
LAST_TAKEN: Final = 3
# So many times what is wanted is asked for by dot products, to choose by cosines from.
CHOICE: Final = 3


def taken(wishes: Sequence[Wish], now_ms: int) -> list[int]:
    """Keys of the items, each once, that new ones have to be like: the newest of the session at hand, or the last before.

    >>> minute = 60_000
    >>> wishes = [(7, 0, 1), (5, minute, 1), (6, 40 * minute, 1), (5, 41 * minute, 1)]
    >>> taken(wishes, now_ms=42 * minute), taken(wishes, now_ms=90 * minute)
    ([6, 5], [7, 6, 5])
    """
    session = session_in_hand(wishes, now_ms, PAUSE_MS)
    if session:
        return [key for key, _, _ in session[-MOST_TAKEN:]]
    last = dict.fromkeys(key for key, _, _ in reversed(wishes))
    return [*reversed([*last][:LAST_TAKEN])]


def unit(vectors: F32) -> F32:
    """Rows of length one; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: F32 = vectors / np.maximum(lengths, 1e-12)
    return found


def by_likeness(candidates: F32, taken: F32) -> NDArray[np.int64]:
    """Places of the candidates (n, D), those first that are most alike, by cosine, to any of what was taken (m, D); m > 0."""
    return np.argsort(-(unit(candidates) @ unit(taken).T).max(axis=1), kind="stable")
