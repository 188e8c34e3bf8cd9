"""What encoders see: the same in training and in serving, so the values here are pinned."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.features import ACTION_CODES, MAX_GAP_S, clamp_gap_s, event_key, gaps_s, item_key, item_text


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
    assert item_key("☕") == event_key("☕") != item_key("☕ ")
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
