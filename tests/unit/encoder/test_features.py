"""What encoders see: the same in training and in serving, so the values here are pinned."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.encoder.features import (
    ACTION_CODES,
    CANDIDATE_FEATURES,
    EVENT_KEY_MASK,
    MAX_GAP_S,
    History,
    candidate_features,
    clamp_gap_s,
    event_key,
    gaps_s,
    item_key,
    item_text,
)


def test_codes_of_actions_are_those_in_every_shipped_bundle() -> None:
    """Part of every bundle: a change here would make old bundles read one action as another."""
    names = [
        "click",
        "view",
        "like",
        "add_to_cart",
        "purchase",
        "dislike",
        "hide",
        "impression",
        "retract",
        "forget",
    ]
    assert {name: code for code, name in enumerate(names, 1)} == ACTION_CODES


def test_item_keys_are_xxh3_of_the_utf8_bytes() -> None:
    """Pinned: they are point ids of indexes and entries of logs that outlive a version."""
    assert item_key("") == 0x2D06800538D394C2  # XXH3's published value for no input
    assert item_key("☕") & EVENT_KEY_MASK == event_key("☕") != event_key("☕ ")
    assert 0 <= item_key("x" * 512) < 2**64


def test_the_text_of_an_item_has_the_most_telling_first() -> None:
    text = item_text(
        "Green tea", "Loose leaves", "grocery", ["tea", "green"], {"size": "100 g", "colour": "green"}
    )
    assert text == "Green tea. tea, green. grocery. Loose leaves. colour green. size 100 g"


def test_what_is_empty_or_not_text_leaves_no_trace_in_the_text() -> None:
    assert item_text("Green tea") == "Green tea"
    assert item_text("", category="grocery") == "grocery"
    assert item_text("") == ""
    assert item_text("Green tea", attributes={"grams": 100.0, "organic": True}) == "Green tea"


def test_the_order_of_attributes_does_not_matter() -> None:
    assert item_text("a", attributes={"x": "1", "b": "2"}) == item_text("a", attributes={"b": "2", "x": "1"})


def test_the_first_gap_is_zero_and_the_others_are_seconds() -> None:
    gaps = gaps_s(np.array([[1_000, 3_500, 3_500], [5_000, 4_000, 10_000]], dtype=np.int64))
    assert gaps.tolist() == [[0.0, 2.5, 0.0], [0.0, 0.0, 6.0]]
    assert gaps.dtype == np.float32


@pytest.mark.parametrize(("gap", "clamped"), [(-5.0, 0.0), (0.0, 0.0), (60.0, 60.0), (1e12, MAX_GAP_S)])
def test_gaps_are_never_negative_and_never_beyond_thirty_days(gap: float, clamped: float) -> None:
    assert clamp_gap_s(np.array([gap])).tolist() == [clamped]


@given(st.lists(st.integers(0, 2**42), min_size=1, max_size=9))
def test_gaps_of_any_times_are_what_an_encoder_takes(at_ms: list[int]) -> None:
    gaps = gaps_s(np.array(at_ms, dtype=np.int64))
    assert gaps.shape == (len(at_ms),)
    assert (gaps >= 0).all()
    assert (gaps <= MAX_GAP_S).all()


DAY_MS = 86_400_000
# Milk on days 0, 2 and 4, tea on day 3; now it is day 5.
SHOPPER = History(np.array([1, 1, 2, 1], dtype=np.uint64), DAY_MS * np.array([0, 2, 3, 4]), 5 * DAY_MS, 50)


def features(history: History, *keys: int) -> dict[str, list[float]]:
    """Of candidates whose products are 3, 2, 1 and so on, the first of them twice as popular as the second."""
    scores = np.arange(len(keys), 0, -1, dtype=np.float32)
    popularity = np.array([1.0, 0.5, *[0.0] * len(keys)][: len(keys)], dtype=np.float32)
    found = candidate_features(np.array(keys, dtype=np.uint64), scores, popularity, history)
    assert found.dtype == np.float32
    return dict(zip(CANDIDATE_FEATURES, found.T.tolist(), strict=True))


def test_a_candidate_is_told_how_often_and_when_the_user_had_it() -> None:
    milk, tea, new = 1, 2, 3
    found = features(SHOPPER, new, tea, milk)
    assert found["times_had"] == pytest.approx(np.log1p([0, 1, 3]).tolist())
    assert found["share"] == pytest.approx([0, 1 / 4, 3 / 4])
    assert found["place"] == pytest.approx([1, 1 / 50, 0])
    day, two_days = np.log1p([86_400, 2 * 86_400]) / np.log1p(MAX_GAP_S)
    assert found["since_had"] == pytest.approx([1, two_days, day])
    assert found["due"] == pytest.approx(
        [0, 0, 1 / 2]
    )  # milk comes every second day, and was there a day ago
    assert found["idle"] == pytest.approx([day] * 3)
    assert found["events"] == pytest.approx([4 / 50] * 3)


def test_a_candidate_is_told_its_place_in_the_pool_and_how_popular_it_is() -> None:
    found = features(SHOPPER, 7, 8, 9)
    assert found["score"] == [3, 2, 1]
    assert found["below_best"] == [0, 1, 2]
    assert found["rank"] == pytest.approx((np.log1p([0, 1, 2]) / 7).tolist())
    assert found["popularity"] == pytest.approx((np.log1p([1000, 500, 0]) / 7).tolist())


def test_a_candidate_is_told_its_place_beside_those_of_the_same_interest() -> None:
    keys, scores = np.arange(5, dtype=np.uint64), np.array([9, 8, 7, 2, 1], dtype=np.float32)
    nearest = np.array([0, 0, 2, 2, 2])
    told = candidate_features(keys, scores, scores / 9, SHOPPER, nearest)
    found = dict(zip(CANDIDATE_FEATURES, told.T.tolist(), strict=True))
    assert found["below_best"] == [0, 1, 2, 7, 8]
    assert found["below_own_best"] == [0, 1, 0, 5, 6]
    assert found["own_rank"] == pytest.approx((np.log1p([0, 1, 0, 1, 2]) / 7).tolist())
    alone = features(SHOPPER, 7, 8, 9)  # one interest
    assert (alone["below_own_best"], alone["own_rank"]) == (alone["below_best"], alone["rank"])


def test_a_candidate_is_told_how_others_take_it_again_if_the_user_had_it() -> None:
    milk, tea, new = 1, 2, 3
    found = features(SHOPPER._replace(repeats={milk: 4.0, new: 9.0}), new, tea, milk)
    assert found["repeats"] == pytest.approx([0, 0, np.log(4)])


def test_a_candidate_is_told_whether_the_table_knows_it() -> None:
    table = np.array([2, 5], dtype=np.uint64)
    assert features(SHOPPER._replace(in_table=table), 1, 2, 5, 9)["in_table"] == [0, 1, 1, 0]
    assert features(SHOPPER, 2)["in_table"] == [0]


def test_a_candidate_is_told_what_the_sources_think_of_it() -> None:
    milk, tea, new, newer = 1, 2, 3, 4
    found = features(
        SHOPPER._replace(again={milk: 2.5, 9: 9.0, tea: 0.1}, similar={new: 0.2, tea: 0.2, 8: 0.1}),
        *(newer, new, tea, milk),
    )
    assert found["again"] == pytest.approx((np.log1p([0, 0, 100, 2500]) / 7).tolist())
    assert found["again_rank"] == pytest.approx([1, 1, np.log1p(1) / 7, 0])  # among the candidates
    assert found["similar"] == pytest.approx((np.log1p([0, 200, 200, 0]) / 7).tolist())
    assert found["similar_rank"] == [1, 0, 0, 1]  # as good as each other


def test_a_candidate_is_told_how_much_the_user_has_just_taken() -> None:
    later = SHOPPER._replace(at_ms=SHOPPER.now_ms - 1000 * np.array([3_601, 3_599, 60, 0]))
    assert features(SHOPPER, 7)["lately"] == [0]
    assert features(later, 7)["lately"] == pytest.approx([np.log1p(3)])


def test_a_user_without_events_had_nothing() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    found = features(History(nothing.astype(np.uint64), nothing, DAY_MS, 50), 7, 8)
    assert [found[name] for name in ("times_had", "share", "events")] == [[0, 0]] * 3
    assert [found[name] for name in ("since_had", "place", "idle")] == [[1, 1]] * 3


@given(st.lists(st.integers(0, 5), max_size=50), st.permutations(range(5)))
def test_the_order_of_the_candidates_does_not_change_what_they_are_told(
    had: list[int], order: list[int]
) -> None:
    at_ms = np.arange(len(had), dtype=np.int64) * 1000
    history = History(np.array(had, dtype=np.uint64), at_ms, 100_000, 50, {1: 0.5, 3: 0.5}, {0: 0.1, 4: 0.2})
    keys, scores = np.arange(5, dtype=np.uint64), np.arange(5, dtype=np.float32)
    found = candidate_features(keys, scores, scores / 5, history)
    assert np.isfinite(found).all()
    again = candidate_features(keys[order], scores[order], scores[order] / 5, history)
    np.testing.assert_array_equal(again, found[order])
