"""A dislike pushes away from what is like it: how much, for whom, and for how long."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from headwater.messages import ACTIONS
from headwater.recall.dislikes import (
    HALF_LIFE_MS,
    USUAL,
    CatalogRamp,
    dislikes_of,
    keys_of,
    lowered,
    pushed,
    ramp_of,
)
from headwater.recall.fusion import Fused
from headwater.recall.sources import Ask

F32 = NDArray[np.float32]
BUY = ACTIONS["purchase"].code
NOW = 10**12
DIM = 6


def at(cosine: float, axis: int = 1) -> F32:
    """A vector with this cosine to the first axis, of any length."""
    vector = np.zeros(DIM, dtype=np.float32)
    vector[0], vector[axis] = cosine, np.sqrt(1 - cosine**2)
    return vector * np.float32(3)


def ask(dislikes: Mapping[int, int], liked: Sequence[int] = (), interests: Sequence[F32] = ()) -> Ask:
    """Args:
    dislikes: item key -> age in ms.
    """
    return Ask(
        now_ms=NOW,
        dislikes=[(key, NOW - age) for key, age in dislikes.items()],
        unwanted=frozenset(dislikes),
        log=[(key, NOW - 5, BUY) for key in (*dislikes, *liked)],
        interests=np.array(interests, dtype=np.float32).reshape(-1, DIM),
        interest_weights=np.ones(len(interests), dtype=np.float32),
    )


def ranked(count: int) -> list[Fused]:
    return [Fused(key, str(key), 1.0 / (60 + key), "interests") for key in range(1, count + 1)]


def scores(one: Ask, vectors: Mapping[int, F32], count: int) -> list[float]:
    """What is left of each item's score, in the order of their keys."""
    dislikes = dislikes_of(one, vectors)
    assert dislikes is not None
    left = {item.key: item.score * (60 + item.key) for item in lowered(ranked(count), vectors, dislikes)}
    return [round(left[key], 3) for key in range(1, count + 1)]


DISLIKED, LIKED = 100, 200


def test_a_candidate_loses_score_by_how_alike_it_is() -> None:
    near = {1: at(0.2), 2: at(USUAL.begins), 3: at(sum(USUAL) / 2), 4: at(0.9), DISLIKED: at(1)}
    assert scores(ask({DISLIKED: 0}), near, 5) == [1, 1, 0.5, 0, 1], "the fifth has no vector"


@pytest.mark.parametrize(("half_lives", "left"), [(0, 0), (1, 0.5), (2, 0.75), (3.9, 0.933)])
def test_it_wears_off_with_the_half_life(half_lives: float, left: float) -> None:
    one = ask({DISLIKED: round(half_lives * HALF_LIFE_MS)})
    assert scores(one, {1: at(1), DISLIKED: at(1)}, 1) == [pytest.approx(left, abs=0.001)]


def test_after_four_half_lives_it_pushes_no_more_and_asks_for_no_vector() -> None:
    old = ask({DISLIKED: 4 * HALF_LIFE_MS + 1}, liked=[LIKED])
    assert keys_of(old) == set()
    assert dislikes_of(old, {DISLIKED: at(1)}) is None
    assert keys_of(ask({DISLIKED: 0}, liked=[LIKED])) == {DISLIKED, LIKED}


def test_a_dislike_of_the_future_is_a_new_one() -> None:
    assert scores(ask({DISLIKED: -HALF_LIFE_MS}), {1: at(1), DISLIKED: at(1)}, 1) == [0]


def test_what_lies_nearer_to_something_liked_loses_nothing() -> None:
    near = {1: at(0.9), 2: at(0.6), DISLIKED: at(1), LIKED: at(0.5)}
    assert scores(ask({DISLIKED: 0}, liked=[LIKED]), near, 2) == [0, 1]


def test_the_order_changes_and_ties_keep_theirs() -> None:
    near = {1: at(1), 2: at(0), 3: at(0), 4: at(1), DISLIKED: at(1)}
    dislikes = dislikes_of(ask({DISLIKED: 0}), near)
    assert dislikes is not None
    assert [item.key for item in lowered(ranked(4), near, dislikes)] == [2, 3, 1, 4]
    assert lowered([], near, dislikes) == []


def test_an_interest_loses_the_direction_of_what_is_disliked_and_keeps_the_others() -> None:
    near = {DISLIKED: at(1)}
    one = ask({DISLIKED: 0}, interests=[at(0.7), at(0), at(-0.5)])
    dislikes = dislikes_of(one, near)
    assert dislikes is not None
    moved = pushed(one, dislikes)
    assert moved.interests[0] == pytest.approx(one.interests[0] * [0, 1, 1, 1, 1, 1], abs=1e-6)
    assert (moved.interests[1:] == one.interests[1:]).all(), "nothing is turned towards it or further away"
    assert moved.interest_weights.tolist() == [1, 1, 1]


def test_an_interest_of_which_little_is_left_counts_no_more() -> None:
    one = ask({DISLIKED: 0}, interests=[at(0.99)])
    dislikes = dislikes_of(one, {DISLIKED: at(1)})
    assert dislikes is not None
    assert pushed(one, dislikes).interest_weights.tolist() == [0]


def test_an_interest_is_spared_as_far_as_something_like_it_is_liked() -> None:
    one = ask({DISLIKED: 0}, liked=[LIKED], interests=[at(1)])
    dislikes = dislikes_of(one, {DISLIKED: at(1), LIKED: at(0.6)})
    assert dislikes is not None
    assert pushed(one, dislikes).interests[0, 0] == pytest.approx(3 * 0.75, abs=1e-5)


def shop(common: float, kinds: int = 12, dim: int = 32) -> F32:
    """Ten items of each kind, (items, dim), that share so much of their direction with all others."""
    rng = np.random.default_rng(0)
    bulk, centres = rng.normal(size=dim), rng.normal(size=(kinds, dim))
    own = np.repeat(centres, 10, axis=0) + 0.4 * rng.normal(size=(10 * kinds, dim))
    return np.asarray(own / np.sqrt(dim) + common * bulk / np.linalg.norm(bulk), dtype=np.float32)


@pytest.mark.parametrize("common", [0.0, 0.4, 0.8])
def test_a_dislike_pushes_its_own_kind_and_little_else_whatever_all_items_share(common: float) -> None:
    vectors = shop(common)
    known = {**dict(enumerate(vectors[1:], 1)), DISLIKED + 900: vectors[0]}
    dislikes = dislikes_of(ask({DISLIKED + 900: 0}), known, ramp_of(vectors))
    assert dislikes is not None
    left = {item.key: item.score * (60 + item.key) for item in lowered(ranked(119), known, dislikes)}
    assert np.mean([left[key] for key in range(1, 10)]) < 0.6, "its kind"
    assert np.mean([left[key] < 0.95 for key in range(10, 120)]) < 0.1, "the others"
    other = vectors[60]
    moved = pushed(ask({DISLIKED + 900: 0})._replace(interests=other[None]), dislikes)
    assert float(np.abs(moved.interests - other).max()) < 0.1


def test_what_counts_as_like_is_the_usual_while_few_items_are_known_and_then_the_catalogs_own() -> None:
    held, now_s = [shop(0.8)[:10]], [0.0]
    ramp = CatalogRamp(lambda: held[0], lambda: now_s[0])
    assert ramp() is USUAL
    held[0] = shop(0.8)
    assert USUAL.begins < ramp().begins < ramp().ends < 1
    held[0], before = shop(0.0), ramp()
    assert ramp() == before
    now_s[0] = 600.0
    assert ramp().begins < before.begins
    same = np.ones((50, 4), dtype=np.float32)
    assert ramp_of(same).begins == pytest.approx(0.7), "equal texts: nothing is nearer than anything else"


vectors = st.lists(st.floats(-1, 1, width=32), min_size=DIM, max_size=DIM).map(
    lambda v: np.array(v, dtype=np.float32)
)


@given(
    st.lists(vectors, min_size=1, max_size=6),
    st.lists(vectors, min_size=1, max_size=4),
    st.lists(vectors, max_size=3),
)
def test_every_score_is_what_the_rule_says_pair_by_pair(
    candidates: list[F32], disliked: list[F32], liked: list[F32]
) -> None:
    def cosine(a: F32, b: F32) -> float:
        lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
        return float(a @ b) / lengths if lengths > 1e-6 else 0.0

    ages = {DISLIKED + n: n * HALF_LIFE_MS // 2 for n in range(len(disliked))}
    one = ask(ages, liked=[LIKED + n for n in range(len(liked))])
    known = {
        **dict(enumerate(candidates, 1)),
        **{DISLIKED + n: vector for n, vector in enumerate(disliked)},
        **{LIKED + n: vector for n, vector in enumerate(liked)},
    }
    found = scores(one, known, len(candidates))
    for vector, left in zip(candidates, found, strict=True):
        nearest_liked = max((cosine(vector, each) for each in liked), default=-1.0)
        near = [cosine(vector, each) for each in disliked]
        if any(abs(each - nearest_liked) < 1e-4 for each in near):
            continue  # either may be the nearer one, by the last bits
        losses = [
            min(max((each - USUAL.begins) / (USUAL.ends - USUAL.begins), 0.0), 1.0) * 0.5 ** (n / 2)
            for n, each in enumerate(near)
            if each > nearest_liked
        ]
        assert left == pytest.approx(1 - max(losses, default=0.0), abs=0.002)
