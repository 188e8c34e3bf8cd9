"""Offers over items, by time: whatever order they come in, the newest that states a field decides it."""

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.index.offers import MAX_REVISION, laid_over, newest_ms, offered, outliving, withdrawn
from headwater.messages import Offer, OfferState

RECORD = {
    "title": "Green tea",
    "category": "grocery",
    "price": 3.5,
    "available": True,
    "attributes": {"colour": "green"},
    "at_ms": 1_000,
}


def after(*offers: tuple[int, dict[str, Any] | None], state: OfferState | None = None) -> OfferState | None:
    """What offers come to, each with its time in ms; None withdraws."""
    for revision, (at_ms, fields) in enumerate(offers):
        if fields is None:
            state = withdrawn(state, "tea", at_ms, revision) or state
        else:
            state = offered(state, Offer("tea", **fields), at_ms, revision) or state
    return state


def seen(state: OfferState | None, **record: Any) -> tuple[Any, Any, Any]:
    found = laid_over({**RECORD, **record}, state)
    assert (found["title"], found["category"]) == ("Green tea", "grocery"), "no offer touches these"
    return found["price"], found["available"], found["attributes"]


def test_an_offer_changes_what_it_states_and_nothing_else() -> None:
    assert seen(after((2_000, {"price": 2.0}))) == (2.0, True, {"colour": "green"})
    assert seen(after((2_000, {"available": False}))) == (3.5, False, {"colour": "green"})
    assert seen(after((2_000, {"attributes": {"stock": 4.0}}))) == (
        *(3.5, True, {"colour": "green", "stock": 4.0}),
    )


def test_offers_of_different_fields_hold_beside_each_other() -> None:
    state = after((2_000, {"price": 2.0}), (3_000, {"available": False}), (4_000, {"attributes": {"a": 1.0}}))
    assert seen(state) == (2.0, False, {"colour": "green", "a": 1.0})


def test_an_older_offer_never_overrides_a_newer_one_field_by_field() -> None:
    state = after((3_000, {"price": 2.0}))
    assert offered(state, Offer("tea", 9.0), 2_999, 1) is None
    assert seen(after((2_999, {"price": 9.0, "available": False}), state=state)) == (
        *(2.0, False, {"colour": "green"}),
    )


def test_of_two_offers_of_one_time_the_later_published_decides() -> None:
    assert seen(after((2_000, {"price": 2.0}), (2_000, {"price": 1.0})))[0] == 1.0


def test_an_item_record_that_is_newer_than_an_offer_decides_what_it_states() -> None:
    state = after((2_000, {"price": 2.0, "available": False, "attributes": {"colour": "red"}}))
    assert seen(state, at_ms=2_000) == (2.0, False, {"colour": "red"}), "of one time the offer decides"
    assert seen(state, at_ms=2_001) == (3.5, True, {"colour": "green"})


def test_what_a_newer_item_record_does_not_state_stays_as_offered() -> None:
    state = after((2_000, {"price": 2.0, "available": False, "attributes": {"stock": 4.0}}))
    newer = {"at_ms": 9_000, "price": None, "attributes": {"colour": "green"}, "available_by_default": True}
    assert seen(state, **newer) == (2.0, False, {"colour": "green", "stock": 4.0})


def test_a_record_of_an_older_headwater_has_no_time_so_offers_decide() -> None:
    payload = {name: value for name, value in RECORD.items() if name != "at_ms"}
    assert laid_over(payload, after((1, {"price": 2.0})))["price"] == 2.0


def test_laying_again_starts_from_the_record() -> None:
    once = laid_over(RECORD, after((2_000, {"price": 2.0, "attributes": {"a": 1.0}})))
    assert once["price"] == 2.0
    again = laid_over(once, after((3_000, {"available": False})))
    assert (again["price"], again["available"], again["attributes"]) == (3.5, False, {"colour": "green"})
    assert laid_over(again, None) == RECORD
    assert laid_over(RECORD, None) == RECORD


def test_a_withdrawal_takes_back_what_came_before_it_for_good() -> None:
    state = after((2_000, {"price": 2.0}), (4_000, {"available": False}), (3_000, None))
    assert seen(state) == (3.5, False, {"colour": "green"})
    assert state is not None
    assert offered(state, Offer("tea", 1.0), 3_000, 9) is None, "an offer that was withdrawn arrives late"
    assert seen(after((3_001, {"price": 1.0}), state=state))[0] == 1.0


@pytest.mark.parametrize("order", list(permutations([(2_000, 1.0), (3_000, 2.0), (4_000, 3.0)])))
def test_offers_come_to_the_same_in_any_order(order: tuple[tuple[int, float], ...]) -> None:
    assert seen(after(*((at_ms, {"price": price}) for at_ms, price in order)))[0] == 3.0


STEPS = st.tuples(
    st.integers(1, 50),
    st.none()
    | st.fixed_dictionaries(
        {},
        optional={
            "price": st.sampled_from([0.0, 1.0, 2.0]),
            "available": st.booleans(),
            "attributes": st.dictionaries(st.sampled_from("ab"), st.sampled_from([1.0, "x"]), min_size=1),
        },
    ).filter(bool),
)


@given(st.lists(STEPS, max_size=8, unique_by=lambda step: step[0]), st.randoms())
def test_any_order_and_any_repetition_come_to_the_same(steps: Any, random: Any) -> None:
    shuffled = [*steps, *steps[: len(steps) // 2]]
    random.shuffle(shuffled)
    assert seen(after(*steps)) == seen(after(*shuffled))


def test_a_deleted_item_takes_its_offers_along_but_not_newer_ones() -> None:
    state = after((2_000, {"price": 2.0}))
    assert state is not None
    assert outliving(state, 2_000) is None
    assert outliving(state, 1_999) is state
    both = after((3_000, {"available": False}), state=state)
    assert both is not None
    left = outliving(both, 2_500)
    assert left is not None
    assert (left.price, left.available, newest_ms(left)) == (None, False, 3_000)
    assert left.revision > both.revision


def test_revisions_only_rise_and_end_at_the_bound() -> None:
    first = offered(None, Offer("tea", 1.0), 10, 7)
    assert first is not None
    second = offered(first, Offer("tea", 2.0), 11, 0)
    assert second is not None
    assert (first.revision, second.revision) == (7, 8)
    forged = OfferState("tea", MAX_REVISION)
    last = offered(forged, Offer("tea", 2.0), 11, 0)
    assert last is not None
    assert last.revision == MAX_REVISION
