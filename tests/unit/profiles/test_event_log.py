"""The rules of one user's log, one event at a time."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.profiles.actions import RETRACT
from headwater.profiles.event_log import Event, Outcome, insert
from tests.support.histories import CLICK, canonical_log, user_events


def filled(*events: Event, capacity: int = 3) -> list[Event]:
    log: list[Event] = []
    for event in events:
        insert(log, event, capacity)
    return log


def click(at_ms: int, event: int, item: int = 7) -> Event:
    return Event(at_ms, event, item, CLICK)


def retract(at_ms: int, event: int) -> Event:
    return Event(at_ms, event, 0, RETRACT)


def test_entries_are_ordered_by_time_and_then_by_event_key() -> None:
    assert filled(click(5, 2), click(4, 9), click(5, 1)) == [click(4, 9), click(5, 1), click(5, 2)]


def test_the_oldest_entry_makes_room_for_a_newer_one() -> None:
    assert filled(click(1, 1), click(2, 2), click(3, 3), click(4, 4)) == [
        click(2, 2),
        click(3, 3),
        click(4, 4),
    ]


def test_a_late_event_is_inserted_in_its_place_while_there_is_room_and_evicts_the_oldest_when_there_is_none() -> (
    None
):
    assert filled(click(1, 1), click(3, 3), click(2, 2)) == [click(1, 1), click(2, 2), click(3, 3)]
    full = filled(click(1, 1), click(3, 3), click(4, 4))
    assert insert(full, click(2, 2), 3).outcome is Outcome.APPLIED
    assert full == [click(2, 2), click(3, 3), click(4, 4)]


def test_an_event_older_than_a_full_log_is_too_late() -> None:
    full = filled(click(2, 2), click(3, 3), click(4, 4))
    assert insert(full, click(1, 1), 3).outcome is Outcome.TOO_LATE
    assert full == [click(2, 2), click(3, 3), click(4, 4)]


def test_at_equal_times_the_event_key_decides_what_is_too_late() -> None:
    full = filled(click(2, 5), click(3, 3), click(4, 4))
    assert insert(list(full), click(2, 1), 3).outcome is Outcome.TOO_LATE
    assert insert(list(full), click(2, 6), 3).outcome is Outcome.APPLIED


def test_a_repeated_event_is_dropped_even_with_other_content() -> None:
    log = filled(click(1, 1))
    assert insert(log, click(1, 1), 3).outcome is Outcome.DUPLICATE
    assert insert(log, click(9, 1, item=8), 3).outcome is Outcome.DUPLICATE
    assert log == [click(1, 1)]


def test_a_retraction_leaves_a_mark_that_keeps_later_copies_out() -> None:
    log = filled(click(1, 1), click(2, 2))
    assert insert(log, retract(5, 1), 3).outcome is Outcome.APPLIED
    assert log == [click(2, 2), retract(5, 1)]
    assert insert(log, click(1, 1), 3).outcome is Outcome.RETRACTED
    assert insert(log, retract(5, 1), 3).outcome is Outcome.DUPLICATE
    assert log == [click(2, 2), retract(5, 1)]


def test_a_retraction_may_come_first() -> None:
    log = filled(retract(5, 1))
    assert insert(log, click(1, 1), 3).outcome is Outcome.RETRACTED
    assert log == [retract(5, 1)]


@pytest.mark.parametrize("order", list(permutations([click(5, 1), retract(1, 1), retract(7, 1)])))
def test_a_mark_stands_at_the_latest_time_whichever_comes_first(order: tuple[Event, ...]) -> None:
    assert filled(*order) == [retract(7, 1)]


def test_a_retraction_dated_before_its_event_takes_it_back_in_either_order() -> None:
    assert filled(click(5, 1), retract(1, 1)) == filled(retract(1, 1), click(5, 1)) == [retract(5, 1)]


def test_a_mark_never_carries_an_item() -> None:
    assert filled(Event(5, 1, 7, RETRACT)) == [retract(5, 1)]
    assert filled(click(1, 1), Event(5, 1, 7, RETRACT)) == [retract(5, 1)]


@given(st.data(), st.integers(1, 8))
def test_any_order_and_repetition_gives_the_log_of_the_set_of_events(
    data: st.DataObject, capacity: int
) -> None:
    events = [event for event in data.draw(user_events(12)) if event.action <= 7 or event.action == RETRACT]
    repeated = data.draw(st.lists(st.sampled_from(events), max_size=5)) if events else []
    stream = data.draw(st.permutations([*events, *repeated]))
    assert filled(*stream, capacity=capacity) == canonical_log(events, capacity)
