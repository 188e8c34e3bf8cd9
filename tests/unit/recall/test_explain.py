"""Which of the user's own events brought an item."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.encoder.features import ACTION_CODES
from headwater.recall.explain import MAX_REASONS, PastEvent, Share, explained, nearest_events, similarities
from headwater.recall.fusion import Fused
from headwater.recall.sources import F32, Ask

CLICK = ACTION_CODES["click"]
COFFEE, TEA, SOAP = np.eye(3, dtype=np.float32)


def event(item_id: str, at_ms: int = 1, action: str = "click") -> PastEvent:
    return PastEvent(item_id, at_ms, action)


def nearest(item: F32, events: Sequence[PastEvent], vectors: F32) -> list[Share]:
    (found,) = nearest_events(item[None], events, vectors)
    return found


def test_the_event_nearest_to_the_item_has_the_largest_share() -> None:
    events = [event("soap"), event("coffee"), event("tea")]
    found = nearest(0.9 * COFFEE + 0.1 * TEA, events, np.stack([SOAP, COFFEE, TEA]))
    assert [share.event.item_id for share in found] == ["coffee", "tea", "soap"]
    assert found[0].share > 0.9


def test_shares_sum_to_one_and_fall() -> None:
    found = nearest(COFFEE + TEA, [event("coffee"), event("tea")], np.stack([COFFEE, TEA]))
    assert sum(share.share for share in found) == pytest.approx(1.0)
    assert [share.share for share in found] == pytest.approx([0.5, 0.5])


def test_a_single_event_has_the_whole_share() -> None:
    (share,) = nearest(COFFEE, [event("soap")], SOAP[None])
    assert share.share == 1.0


def test_each_of_several_items_has_its_own_reasons() -> None:
    events = [event("coffee"), event("tea")]
    found = nearest_events(np.stack([TEA, COFFEE]), events, np.stack([COFFEE, TEA]))
    assert [shares[0].event.item_id for shares in found] == ["tea", "coffee"]


def test_without_events_there_are_no_reasons() -> None:
    assert explained([Fused(0, "i0", 0.1, "popular")], {}, [], {0: COFFEE}, {}) == [[]]


def test_of_several_events_of_one_item_the_newest_stands_for_all() -> None:
    purchase = ACTION_CODES["purchase"]
    events = [(0, 5, CLICK), (0, 9, purchase), (0, 7, CLICK), (1, 1, CLICK)]
    payloads = {0: {"item_id": "coffee"}, 1: {"item_id": "tea"}}
    vectors = {0: COFFEE, 1: TEA, 5: COFFEE}
    (found,) = explained([Fused(5, "latte", 1.0, "interests")], {}, events, vectors, payloads)
    assert [share.event for share in found] == [event("coffee", 9, "purchase"), event("tea", 1)]


def test_no_more_reasons_than_a_reader_takes_in() -> None:
    vectors = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)
    assert len(nearest(COFFEE, [event(str(number)) for number in range(20)], vectors)) == MAX_REASONS


def test_lengths_of_vectors_do_not_matter() -> None:
    events = [event("coffee"), event("tea")]
    item = 0.7 * COFFEE + 0.3 * TEA
    short, long = (
        nearest(item * scale, events, np.stack([COFFEE * scale, TEA / scale])) for scale in (0.01, 100.0)
    )
    assert [share.event for share in short] == [share.event for share in long]
    assert [share.share for share in short] == pytest.approx([share.share for share in long], rel=1e-4)


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_the_largest_share_is_always_that_of_the_largest_cosine(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    item, vectors = random.normal(size=4), random.normal(size=(count, 4))
    cosines = vectors @ item / np.linalg.norm(vectors, axis=1) / np.linalg.norm(item)
    events = [event(str(number)) for number in range(count)]
    found = nearest(item.astype(np.float32), events, vectors.astype(np.float32))
    assert found[0].event.item_id == str(int(cosines.argmax()))
    assert sum(share.share for share in found) == pytest.approx(1.0)
    shares = [share.share for share in found]
    assert shares == sorted(shares, reverse=True)


def test_an_item_is_explained_by_the_events_that_its_source_names_or_else_by_the_nearest() -> None:
    items = [Fused(7, "latte", 1.0, "similar"), Fused(8, "chai", 1.0, "interests"), Fused(9, "?", 1.0, "new")]
    events = [(1, 10, CLICK), (2, 20, CLICK), (3, 30, CLICK)]
    named = {7: [((2, 20, CLICK), 0.75), ((3, 30, CLICK), 0.25)]}
    vectors = {1: COFFEE, 2: TEA, 3: SOAP, 7: COFFEE, 8: TEA}
    payloads = {1: {"item_id": "coffee"}, 2: {"item_id": "tea"}}  # the third item is gone
    latte, chai, unknown = explained(items, named, events, vectors, payloads)
    assert latte == [Share(PastEvent("tea", 20, "click"), 0.75)]
    assert [share.event.item_id for share in chai] == ["tea", "coffee"]
    assert unknown == []


def test_an_item_is_as_similar_as_its_nearest_interest_or_the_query() -> None:
    ask = Ask(
        interests=np.stack([3.0 * COFFEE, TEA]), interest_weights=np.array([0.5, 0.0], np.float32), query=SOAP
    )
    items = [Fused(key, f"i{key}", 0.1, "interests") for key in range(4)]
    vectors = {0: 0.2 * COFFEE, 1: TEA, 2: SOAP + COFFEE}
    found = similarities(items, ask, vectors)
    assert found[:3] == pytest.approx([1.0, 0.0, 0.5**0.5])
    assert found[3] is None


def test_without_interests_and_query_no_item_is_similar() -> None:
    assert similarities([Fused(0, "i0", 0.1, "popular")], Ask(), {0: COFFEE}) == [None]
