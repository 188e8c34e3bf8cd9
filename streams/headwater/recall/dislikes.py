"""A dislike lowers what is similar to it, less so as it ages. Pure.

Dislikes enter no state of an encoder; their effect is worked out for each request of the users who have any. An interest
loses the direction of a disliked item, as by Rocchio (1971), unless the user likes something of that kind. A candidate
that lies nearer to a disliked item than to any liked one loses score.

What counts as like follows the catalog's own vectors. Two unrelated items have a cosine of 0.1 under one encoder and of 0.35
under another, or with longer texts; a fixed bound would let one dislike touch everything, or nothing.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
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
# Of a sample of the catalog, all pairs are compared: 256 items take some 3 ms, and their quantiles are known to 0.01.
SAMPLE: Final = 256
_LEAST_SAMPLE: Final = 32
_KEPT_S: Final = 600.0
# Most pairs are unrelated, so their median and the lower half say how unrelated items lie, whatever the upper half is like:
# a normal distribution has a sixth below a standard deviation under the median. Two above it are one pair in forty.
_SIXTH: Final = 0.16
_DEVIATIONS: Final = 2.0
_FROM_WITHIN: Final = (0.2, 0.7)


class Ramp(NamedTuple):
    """From which cosine on two items are alike, and from which on wholly so."""

    begins: float
    ends: float

    def __call__(self, cosines: F32) -> F32:
        """How alike, 0 to 1, of any shape."""
        share: F32 = np.clip((cosines - self.begins) / (self.ends - self.begins), 0.0, 1.0)
        return share


# Where too few items are known to tell: about half of all pairs of one kind of goods are above 0.7.
USUAL: Final = Ramp(0.3, 0.7)


def ramp_of(vectors: F32) -> Ramp:
    """What counts as like among items (n, D) that are a sample of the catalog; the usual where they are too few."""
    if len(vectors) < _LEAST_SAMPLE:
        return USUAL
    directions = unit(vectors)
    pairs = (directions @ directions.T)[np.triu_indices(len(directions), 1)]
    low, median = np.quantile(pairs, (_SIXTH, 0.5)).tolist()
    begins = float(np.clip(median + _DEVIATIONS * (median - low), *_FROM_WITHIN))
    return Ramp(begins, (1.0 + begins) / 2)


class CatalogRamp:
    """The ramp of a catalog that changes, worked out when it is asked for, at most every ten minutes.

    Args:
        sample: vectors (n, D) from all over the catalog.
        clock: seconds, never going back.
    """

    def __init__(self, sample: Callable[[], F32], clock: Callable[[], float] = time.monotonic) -> None:
        self._sample, self._clock = sample, clock
        self._ramp, self._until_s = USUAL, -math.inf

    def __call__(self) -> Ramp:
        """The ramp now. While it is the usual one for want of items, each call looks again."""
        if self._clock() >= self._until_s:
            self._ramp = ramp_of(self._sample())
            if self._ramp is not USUAL:
                self._until_s = self._clock() + _KEPT_S
        return self._ramp


class Dislikes(NamedTuple):
    """What one user dislikes and likes, as far as it has vectors; all of them have length 1."""

    disliked: F32  # (N, D), N > 0
    strength: F32  # (N,) from 1, of a new dislike, to 0
    liked: F32  # (M, D)
    alike: Ramp = USUAL


def keys_of(ask: Ask) -> set[int]:
    """Keys of the items whose vectors :func:`dislikes_of` wants; none for an ask without a dislike that still pushes."""
    pushing = _pushing(ask)
    return {*pushing, *(key for key, _, _ in ask.liked)} if pushing else set()


def dislikes_of(ask: Ask, vectors: Mapping[int, F32], alike: Ramp = USUAL) -> Dislikes | None:
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
    return Dislikes(disliked, strength, unit(np.stack(liked)) if liked else disliked[:0], alike)


def pushed(ask: Ask, dislikes: Dislikes) -> Ask:
    """The ask with interests that lack the directions of disliked items, as far as the user likes nothing like them.

    A new dislike takes the whole direction of an interest that is wholly like it, and none of an unrelated one, nor where
    something that is liked is wholly like it. An interest of which less than half is left has no weight any more: what would
    be near it is chance.
    """
    alike = dislikes.alike((dislikes.disliked @ dislikes.liked.T).max(axis=1, initial=-1.0))
    strength = dislikes.strength * (1.0 - alike)
    moved, lengths = ask.interests.copy(), np.linalg.norm(ask.interests, axis=1)
    for direction, share in zip(dislikes.disliked, strength, strict=True):
        along = moved @ direction
        touched = dislikes.alike(along / np.maximum(lengths, 1e-12))
        moved -= (share * touched * along)[:, None] * direction
    left = np.linalg.norm(moved, axis=1) >= _LEAST_LEFT * lengths
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
    is_nearer = near > (candidates @ dislikes.liked.T).max(axis=1, initial=-1.0)[:, None]
    loss = np.zeros(len(items))
    loss[known] = (dislikes.alike(near) * is_nearer * dislikes.strength).max(axis=1)
    score = np.array([item.score for item in items]) * (1.0 - loss)
    order = np.argsort(-score, kind="stable").tolist()
    return [items[place]._replace(score=float(score[place])) for place in order]


def _pushing(ask: Ask) -> dict[int, float]:
    """The newest dislikes that still push: item key -> strength."""
    newest = sorted(ask.dislikes, key=lambda dislike: -dislike[1])[:_MOST]
    strengths = ((key, 0.5 ** (max(ask.now_ms - at_ms, 0) / HALF_LIFE_MS)) for key, at_ms in newest)
    return {key: strength for key, strength in strengths if strength >= _LEAST_STRENGTH}
