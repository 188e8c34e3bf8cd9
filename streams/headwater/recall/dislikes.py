"""A dislike lowers what is similar to it, less so as it ages. Pure.

Dislikes enter no state of an encoder; their effect is worked out for each request of the users who have any. An interest
loses the direction of a disliked item, as by Rocchio (1971), unless the user likes something of that kind. A candidate
that lies nearer to a disliked item than to any liked one loses score.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from headwater.recall.fusion import Fused
from headwater.recall.similarity import unit
from headwater.recall.sources import F32, Ask

HALF_LIFE_MS: Final = 30 * 86_400_000
# After four half-lives a dislike only keeps its own item out.
_LEAST_STRENGTH: Final = 1 / 16
# Only this many of the newest dislikes count: each costs a product with every candidate.
_MOST: Final = 32
_LEAST_LEFT: Final = 0.5
# Half of all pairs of one kind of goods have a cosine above 0.7, with the starter as with the bundle of groceries. Half of
# all others are above 0.35 with the starter, whose directions are those of a whole language, and above 0.1 with groceries.
LIKE_FROM: Final = 0.3
LIKE_FULLY: Final = 0.7


class Dislikes(NamedTuple):
    """What one user dislikes and likes, as far as it has vectors; all of them have length 1."""

    disliked: F32  # (N, D), N > 0
    strength: F32  # (N,) from 1, of a new dislike, to 0
    liked: F32  # (M, D)


def keys_of(ask: Ask) -> set[int]:
    """Keys of the items whose vectors :func:`dislikes_of` wants; none for an ask without a dislike that still pushes."""
    pushing = _pushing(ask)
    return {*pushing, *(key for key, _, _ in ask.liked)} if pushing else set()


def dislikes_of(ask: Ask, vectors: Mapping[int, F32]) -> Dislikes | None:
    """None where nothing that the user dislikes has a vector.

    Args:
        vectors: (D,) by item key.
    """
    pushing = {key: strength for key, strength in _pushing(ask).items() if key in vectors}
    if not pushing:
        return None
    disliked = unit(np.stack([vectors[key] for key in pushing]))
    liked = [vectors[key] for key in dict.fromkeys(key for key, _, _ in ask.liked) if key in vectors]
    strength = np.array([*pushing.values()], dtype=np.float32)
    return Dislikes(disliked, strength, unit(np.stack(liked)) if liked else disliked[:0])


def pushed(ask: Ask, dislikes: Dislikes) -> Ask:
    """The ask with interests that lack the directions of disliked items, as far as the user likes nothing like them.

    A new dislike takes the whole direction if nothing that is liked has any likeness to it, and none if the like is equal.
    An interest of which less than half is left has no weight any more: what would be near it is chance.
    """
    alike = (dislikes.disliked @ dislikes.liked.T).max(axis=1, initial=0.0)
    strength = dislikes.strength * np.clip(1.0 - alike, 0.0, 1.0)
    moved = ask.interests.copy()
    for direction, share in zip(dislikes.disliked, strength, strict=True):
        moved -= share * np.maximum(moved @ direction, 0.0)[:, None] * direction
    left = np.linalg.norm(moved, axis=1) >= _LEAST_LEFT * np.linalg.norm(ask.interests, axis=1)
    return ask._replace(interests=moved, interest_weights=ask.interest_weights * left)


def lowered(items: Sequence[Fused], vectors: Mapping[int, F32], dislikes: Dislikes) -> list[Fused]:
    """The items, best first, after those that are like disliked ones have lost score; ties keep their order.

    An item without a vector keeps its score.

    Args:
        items: with scores of at least 0.
        vectors: (D,) by item key.
    """
    known = [place for place, item in enumerate(items) if item.key in vectors]
    if not known:
        return list(items)
    candidates = unit(np.stack([vectors[items[place].key] for place in known]))
    near = candidates @ dislikes.disliked.T  # (known, N)
    ramp = np.clip((near - LIKE_FROM) / (LIKE_FULLY - LIKE_FROM), 0.0, 1.0)
    is_nearer = near > (candidates @ dislikes.liked.T).max(axis=1, initial=-1.0)[:, None]
    loss = np.zeros(len(items))
    loss[known] = (ramp * is_nearer * dislikes.strength).max(axis=1)
    score = np.array([item.score for item in items]) * (1.0 - loss)
    order = np.argsort(-score, kind="stable").tolist()
    return [items[place]._replace(score=float(score[place])) for place in order]


def _pushing(ask: Ask) -> dict[int, float]:
    """The newest dislikes that still push: item key -> strength."""
    newest = sorted(ask.dislikes, key=lambda dislike: -dislike[1])[:_MOST]
    strengths = ((key, 0.5 ** (max(ask.now_ms - at_ms, 0) / HALF_LIFE_MS)) for key, at_ms in newest)
    return {key: strength for key, strength in strengths if strength >= _LEAST_STRENGTH}
