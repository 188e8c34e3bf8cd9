"""Dislikes and hides outlive the log: in any batches, through restarts, and until something takes them back."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.encoder.features import ACTION_CODES
from headwater.profiles.actions import FORGET, HIDES, IMPRESSION, RETRACT, UNHIDES
from headwater.profiles.columns import Columns
from headwater.profiles.event_log import Event, Outcome, insert
from headwater.profiles.hides import DEFAULT_HIDES, in_force, keep, packed, repelling, unpacked
from headwater.profiles.state_records import WriterStamp, pack, unpack
from tests.support.histories import (
    DIM,
    START_MS,
    ForgetfulEncoder,
    History,
    apply,
    histories,
    item_vectors,
    user_events,
)

ANN = b"ann"
HIDE, DISLIKE, LIKE, CART, BUY, CLICK, VIEW = (
    ACTION_CODES[name] for name in ("hide", "dislike", "like", "add_to_cart", "purchase", "click", "view")
)


def event(seconds: int, key: int, item: int = 1, action: int = CLICK) -> Event:
    return Event(START_MS + seconds * 1000, key, item, action)


def others(start: int, count: int = 60) -> list[Event]:
    """Clicks on other items, one a second."""
    return [event(second, second, 2 + second % 3) for second in range(start, start + count)]


def columns_after(*batches: list[Event], length: int = 5, most: int = 4) -> Columns:
    columns, offset = Columns(length, DIM, hides=most), 0
    for batch in batches:
        apply(columns, [(ANN, each) for each in batch], ForgetfulEncoder(), item_vectors(), offset)
        offset += len(batch)
    return columns


def hidden(columns: Columns, user: bytes = ANN) -> set[int]:
    """The items that are out of the user's answers."""
    row = columns.rows[user]
    log = [(each.item, each.at_ms, each.action) for each in columns.log(np.array([row])).events(0)]
    return {*in_force(log, unpacked(columns.hides.get(row, b"")))}


def restarted(columns: Columns) -> Columns:
    again = Columns(columns.log_length, columns.state_size, hides=columns.max_hides)
    rows = np.array([again.add(user) for user in columns.rows], dtype=np.int64)
    unpack(again, rows, pack(columns, np.array([*columns.rows.values()]), WriterStamp(1, 1, 1)), 1)
    return again


class Keeping:
    """What has to be kept: the rule of one user, one event at a time as the plain rules of the log evict it."""

    def __init__(self, length: int, most: int) -> None:
        self.length, self.most, self.forgotten_ms = length, most, -1
        self.log, self.kept = list[Event](), list[Event]()

    def add(self, new: Event) -> None:
        if new.action == FORGET:
            self.forgotten_ms = max(self.forgotten_ms, new.at_ms)
            self.log = [each for each in self.log if each.at_ms > new.at_ms]
            self.kept = [each for each in self.kept if each.at_ms > new.at_ms]
        elif new.action != IMPRESSION and new.at_ms > self.forgotten_ms:
            outcome, evicted = insert(self.log, new, self.length)
            if evicted is not None:
                keep(self.kept, evicted, self.most)
            if new.action == RETRACT:
                self.kept = [each for each in self.kept if each.event != new.event]
            elif outcome is Outcome.TOO_LATE:
                keep(self.kept, new, self.most)


@given(histories(most=30), st.integers(1, 4), st.integers(0, 3), st.data())
def test_the_same_is_kept_in_any_batches_and_through_restarts_and_replays(
    history: History, length: int, most: int, data: st.DataObject
) -> None:
    columns = Columns(length, DIM, capacity=2, hides=most)
    expected = {user: Keeping(length, most) for user in history.events}
    bounds = [0, *sorted(cut for cut in history.cuts if cut < len(history.stream)), len(history.stream)]
    for start, stop in pairwise(bounds):
        applied = start
        if start and data.draw(st.booleans()):
            columns = restarted(columns)
            applied = data.draw(st.integers(0, start))  # and what was applied comes once more
        apply(columns, history.stream[applied:stop], ForgetfulEncoder(), item_vectors(), applied)
        for user, each in history.stream[start:stop]:
            expected[user].add(each)
    for user, keeping in expected.items():
        assert unpacked(columns.hides.get(columns.rows[user], b"")) == keeping.kept


@given(user_events(most=40, take_back=False), st.integers(1, 6), st.integers(1, 7), st.booleans())
def test_what_is_hidden_is_what_a_log_without_an_end_says(
    events: list[Event], length: int, cut: int, takes_back: bool
) -> None:
    """In order. The oracle folds everything that ever happened; a hide that is taken back never did."""
    events = sorted(events)
    gone = [each for each in events if HIDES[each.action]][:1] if takes_back else []
    stream = [*events, *(Event(events[-1].at_ms + 1, each.event, 0, RETRACT) for each in gone)]
    columns = columns_after(
        *(stream[at : at + cut] for at in range(0, len(stream), cut)), length=length, most=60
    )
    expected = set[int]()
    for each in events:
        if HIDES[each.action] and each not in gone:
            expected.add(each.item)
        elif UNHIDES[each.action]:
            expected.discard(each.item)
    # A hide that was replaced by a newer one of its item, or lifted, is not brought back by taking that one back.
    undone = {each.item for each in gone}
    assert hidden(columns) - undone == expected - undone
    if not any(each.item in undone and each not in gone for each in events):
        assert hidden(columns) == expected


@pytest.mark.parametrize("action", [HIDE, DISLIKE])
def test_what_was_hidden_stays_hidden_however_many_events_come_after_it(action: int) -> None:
    columns = columns_after([event(1, 999, 1, BUY), event(2, 1000, 1, action)], others(10, 200))
    assert hidden(restarted(columns)) == hidden(columns) == {1}


@pytest.mark.parametrize("action", [LIKE, CART, BUY])
def test_a_like_an_addition_to_the_cart_or_a_purchase_lifts_it_for_good(action: int) -> None:
    lifting = event(100, 1001, 1, action)
    columns = columns_after([event(2, 1000, 1, HIDE)], others(10), [lifting])
    assert hidden(columns) == set()
    apply(columns, [(ANN, each) for each in others(110)], ForgetfulEncoder(), item_vectors(), 500)
    assert hidden(columns) == set()
    late_copy = (ANN, event(2, 1000, 1, HIDE))
    apply(columns, [late_copy], ForgetfulEncoder(), item_vectors(), 900)
    assert hidden(columns) == set(), "a late copy does not bring it back"


@pytest.mark.parametrize("action", [CLICK, VIEW])
def test_a_click_or_a_view_does_not_lift_it(action: int) -> None:
    assert hidden(columns_after([event(2, 1000, 1, HIDE), event(3, 1001, 1, action)], others(10))) == {1}


@pytest.mark.parametrize("length", [5, 100])
def test_a_retraction_lifts_it_whether_the_log_still_has_it_or_not(length: int) -> None:
    columns = columns_after([event(2, 1000, 1, HIDE)], others(10), length=length)
    assert hidden(columns) == {1}
    apply(
        columns, [(ANN, Event(START_MS + 10**6, 1000, 0, RETRACT))], ForgetfulEncoder(), item_vectors(), 500
    )
    assert hidden(columns) == set()
    apply(columns, [(ANN, event(2, 1000, 1, HIDE))], ForgetfulEncoder(), item_vectors(), 501)
    assert hidden(columns) == set(), "and keeps its copies out"


def test_a_hide_that_comes_too_late_for_a_full_log_counts_all_the_same() -> None:
    columns = columns_after(others(10), [event(2, 1000, 1, HIDE), event(3, 1001, 2, DISLIKE)])
    assert hidden(columns) == {1, 2}
    apply(columns, [(ANN, event(4, 1002, 1, LIKE))], ForgetfulEncoder(), item_vectors(), 500)
    assert hidden(columns) == {2}, "and so does what lifts it"


def test_forget_takes_it_and_a_hide_that_is_newer_than_the_forget_stays() -> None:
    hides = [event(2, 1000, 1, HIDE), event(4, 1001, 2, HIDE)]
    forget = Event(START_MS + 3_000, 99, 0, FORGET)
    columns = columns_after(hides, others(10), [forget])
    assert hidden(columns) == {2}
    erased = columns_after(hides, others(10), [forget._replace(at_ms=START_MS + 10**6)])
    erased.remove(ANN)
    assert erased.hides == {}


def test_beyond_their_number_the_newest_are_kept() -> None:
    hides = [event(number, 1000 + number, 100 + number, HIDE) for number in range(9)]
    assert hidden(columns_after(hides, others(10), most=4)) == {105, 106, 107, 108}
    assert hidden(columns_after(hides, others(10), most=0)) == set()
    again = [event(number, 2000 + number, 100, HIDE) for number in range(9)]
    assert hidden(columns_after(hides[:4], again, others(20), most=4)) == {100, 101, 102, 103}, "an item once"


def test_a_user_who_hides_nothing_costs_nothing() -> None:
    assert columns_after([event(1, 1, 1, BUY)], others(10, 200)).hides == {}


def test_a_kept_event_takes_twenty_bytes() -> None:
    events = [event(number, 2**48 - 1 - number, 2**64 - 1, HIDE) for number in range(DEFAULT_HIDES)]
    assert len(packed(events)) == 20 * DEFAULT_HIDES == 2_560
    assert unpacked(packed(events)) == events


def test_what_if_events_are_the_last_word() -> None:
    log = [(1, 5, HIDE), (2, 6, HIDE)]
    assert {*in_force(log, what_if=[(1, 3, LIKE), (2, 9, CLICK)])} == {2}


def test_only_what_is_disliked_repels() -> None:
    assert repelling(in_force([(1, 5, HIDE), (2, 6, DISLIKE)])) == [(2, 6)]
