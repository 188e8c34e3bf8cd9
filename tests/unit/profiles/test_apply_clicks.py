"""Batches against columns: the vectorised way and the plain rules must give the same logs."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from headwater.encoder.features import ACTION_CODES
from headwater.profiles.actions import FORGET, IMPRESSION, RETRACT
from headwater.profiles.apply_clicks import plan_batch
from headwater.profiles.columns import Columns
from headwater.profiles.counters import COUNTER_EFFECTS, count_evictions
from headwater.profiles.event_log import Event, Outcome, insert
from headwater.profiles.state_records import WriterStamp, pack, unpack
from tests.support.histories import (
    CLICK,
    DIM,
    START_MS,
    ForgetfulEncoder,
    History,
    apply,
    apply_in_batches,
    canonical_log,
    clicks_of,
    histories,
    item_vectors,
    user_events,
)

ANN = b"ann"


def log_of(columns: Columns, user: bytes) -> list[Event]:
    row = columns.rows[user]
    return columns.log(np.array([row])).events(0)


def click(seconds: int, event: int, item: int = 1, action: int = CLICK) -> Event:
    return Event(START_MS + seconds * 1000, event, item, action)


def retract(seconds: int, event: int) -> Event:
    return Event(START_MS + seconds * 1000, event, 0, RETRACT)


def forget(seconds: int, event: int = 99) -> Event:
    return Event(START_MS + seconds * 1000, event, 0, FORGET)


def columns_after(*batches: list[Event], length: int = 4) -> Columns:
    columns, offset = Columns(length, DIM), 0
    for batch in batches:
        apply(columns, [(ANN, event) for event in batch], ForgetfulEncoder(), item_vectors(), offset)
        offset += len(batch)
    return columns


def planned(columns: Columns, *events: Event, first_offset: int = 100):  # type: ignore[no-untyped-def]
    return plan_batch(columns, clicks_of(columns, [(ANN, event) for event in events], first_offset))


@given(histories(), st.integers(1, 9))
def test_any_order_repetition_and_batching_gives_the_log_of_the_set_of_events(
    history: History, length: int
) -> None:
    columns = Columns(length, DIM, capacity=2)
    apply_in_batches(columns, history.stream, history.cuts, ForgetfulEncoder(), item_vectors())
    for user, events in history.events.items():
        assert log_of(columns, user) == canonical_log(events, length)


@given(histories(take_back=False), st.integers(1, 9))
def test_the_vectorised_way_and_the_plain_rules_agree_event_by_event(history: History, length: int) -> None:
    columns = Columns(length, DIM, capacity=2)
    changes = apply_in_batches(columns, history.stream, history.cuts, ForgetfulEncoder(), item_vectors())
    plain: dict[bytes, list[Event]] = {user: [] for user in history.events}
    outcomes = np.zeros(len(Outcome), dtype=np.int64)
    applied = []
    for user, event in history.stream:
        outcome = Outcome.UNLOGGED
        if event.action != IMPRESSION:
            outcome = insert(plain[user], event, length).outcome
        outcomes[outcome] += 1
        applied.append(outcome is Outcome.APPLIED)
    assert {user: log_of(columns, user) for user in plain} == plain
    assert sum(delta.outcome_counts for delta in changes).tolist() == outcomes.tolist()
    assert np.concatenate([delta.applied for delta in changes]).tolist() == applied


@given(user_events(take_back=False), st.integers(1, 9))
def test_a_users_events_in_order_need_no_care_and_leave_the_same_log(
    events: list[Event], length: int
) -> None:
    """The fast path alone: in order, nothing twice, nothing taken back, whatever the room in the log."""
    in_order = sorted(event for event in events if event.action != IMPRESSION)
    columns = Columns(length, DIM, capacity=1)
    for cut in (len(in_order) // 2, len(in_order)):
        done = columns.n[columns.rows[ANN]] if ANN in columns.rows else 0
        batch = in_order[0 if cut < len(in_order) or not len(in_order) // 2 else len(in_order) // 2 : cut]
        if not batch:
            continue
        delta = apply(columns, [(ANN, event) for event in batch], ForgetfulEncoder(), item_vectors(), cut)
        assert not delta.refold.any()
        assert delta.evicted.tolist() == [bool(done + len(batch) > length)]
    if in_order:
        assert log_of(columns, ANN) == in_order[-length:]


class Counting:
    """What the counters have to be: the rule of one user, one event at a time as the plain rules of the log evict it."""

    def __init__(self, length: int, counters: int) -> None:
        self.length, self.log, self.forgotten_ms = length, list[Event](), -1
        self.keys, self.levels = [0] * counters, [0] * counters

    def add(self, event: Event) -> None:
        left: list[Event] = []
        if event.action == FORGET and event.at_ms > self.forgotten_ms:
            self.forgotten_ms, left = event.at_ms, [event]
            self.log = [entry for entry in self.log if entry.at_ms > event.at_ms]
        elif event.action not in (FORGET, IMPRESSION) and event.at_ms > self.forgotten_ms:
            evicted = insert(self.log, event, self.length).evicted
            left = [] if evicted is None else [evicted]
        count_evictions(
            self.keys, self.levels, [(entry.item, int(COUNTER_EFFECTS[entry.action])) for entry in left]
        )

    @property
    def held(self) -> dict[int, int]:
        return counters_of(self.keys, self.levels)


def counters_of(keys: Sequence[int], levels: Sequence[int]) -> dict[int, int]:
    return {key: level for key, level in zip(keys, levels, strict=True) if level}


def restarted(columns: Columns) -> Columns:
    again, stamp = (
        Columns(columns.log_length, columns.state_size, counters=columns.counters),
        WriterStamp(1, 1, 1),
    )
    rows = np.array([again.add(user) for user in columns.rows], dtype=np.int64)
    unpack(again, rows, pack(columns, np.array([*columns.rows.values()], dtype=np.int64), stamp), 1)
    return again


@given(histories(most=30), st.integers(1, 4), st.integers(0, 4), st.data())
def test_what_leaves_the_log_is_counted_in_any_batches_and_through_restarts_and_replays(
    history: History, length: int, counters: int, data: st.DataObject
) -> None:
    columns = Columns(length, DIM, capacity=2, counters=counters)
    expected = {user: Counting(length, counters) for user in history.events}
    bounds = [0, *sorted(cut for cut in history.cuts if cut < len(history.stream)), len(history.stream)]
    for start, stop in pairwise(bounds):
        applied = start
        if start and data.draw(st.booleans()):
            columns = restarted(columns)
            applied = data.draw(st.integers(0, start))  # and what was applied comes once more
        apply(columns, history.stream[applied:stop], ForgetfulEncoder(), item_vectors(), applied)
        for user, event in history.stream[start:stop]:
            expected[user].add(event)
    for user, counting in expected.items():
        row = columns.rows[user]
        assert (
            counters_of(columns.counter_items[row].tolist(), columns.counter_levels[row].tolist())
            == counting.held
        )


@given(histories(take_back=False), st.integers(1, 9))
def test_where_nothing_is_too_late_the_order_in_which_events_come_does_not_count(
    history: History, length: int
) -> None:
    columns = Columns(length, DIM, counters=5)
    changes = apply_in_batches(columns, history.stream, history.cuts, ForgetfulEncoder(), item_vectors())
    assume(not sum(delta.outcome_counts[Outcome.TOO_LATE] for delta in changes))
    for user, events in history.events.items():
        in_order = Counting(length, 5)
        for event in sorted(events):
            in_order.add(event)
        row = columns.rows[user]
        assert (
            counters_of(columns.counter_items[row].tolist(), columns.counter_levels[row].tolist())
            == in_order.held
        )


def test_a_dislike_takes_the_counter_of_its_item_along_when_it_leaves() -> None:
    hide = click(6, 6, item=1, action=ACTION_CODES["hide"])
    columns = columns_after([click(1, 1, item=1), click(2, 2, item=2), hide], length=1)
    assert columns.counter_levels[0].astype(bool).sum() == 2
    columns = columns_after([click(1, 1, item=1), click(2, 2, item=2), hide, click(7, 7, item=3)], length=1)
    assert columns.counter_items[0][columns.counter_levels[0] > 0].tolist() == [2]


def test_a_retracted_event_is_not_counted_while_the_log_has_it_and_stays_counted_when_it_has_left() -> None:
    events = [click(second, second, item=second) for second in (1, 2, 3)]
    in_log = columns_after([*events, retract(4, 2)], [click(5, 5), click(6, 6), click(7, 7)], length=3)
    assert in_log.counter_items[0][in_log.counter_levels[0] > 0].tolist() == [1, 3]
    left = columns_after([*events, click(4, 4), retract(5, 1)], [click(6, 6)], length=3)
    assert left.counter_items[0][left.counter_levels[0] > 0].tolist()[0] == 1


def test_forget_takes_the_counters_and_a_second_copy_of_it_takes_no_others() -> None:
    many = [click(second, second) for second in range(1, 9)]
    forgotten = columns_after([*many, forget(6, 98)])
    assert not forgotten.counter_levels[0].any()
    assert not forgotten.counter_items[0].any()
    later = columns_after([*many, forget(6, 98)], [click(second, second) for second in range(10, 14)])
    held = later.counter_levels[0].copy()
    assert held.any()
    apply(later, [(ANN, forget(6, 97))], ForgetfulEncoder(), item_vectors(), 50)
    assert (later.counter_levels[0] == held).all()


def test_planning_touches_nothing() -> None:
    columns = columns_after([click(1, 1), click(2, 2)])
    before = {
        name: getattr(columns, name).copy()
        for name in ("n", "at_ms", "event", "item", "action", "offset", "counter_items", "counter_levels")
    }
    planned(columns, click(3, 3), click(0, 4), retract(9, 1))
    for name, was in before.items():
        assert (getattr(columns, name) == was).all(), name


def test_an_offset_at_or_below_the_applied_one_is_not_applied_again() -> None:
    columns = columns_after([click(1, 1), click(2, 2)])  # offsets 0 and 1
    delta = planned(columns, click(3, 3), click(4, 4), first_offset=1)
    assert delta.outcome_counts[Outcome.REPLAYED] == 1
    assert delta.outcome_counts[Outcome.APPLIED] == 1
    assert delta.applied.tolist() == [False, True]
    assert delta.offset.tolist() == [2]


def test_a_batch_replayed_whole_still_names_its_users_so_that_they_are_written_again() -> None:
    columns = columns_after([click(1, 1), click(2, 2)])
    delta = planned(columns, click(1, 1), click(2, 2), first_offset=0)
    assert delta.rows.tolist() == [columns.rows[ANN]]
    assert delta.outcome_counts[Outcome.REPLAYED] == 2
    assert not delta.refold.any()


def test_an_event_older_than_a_full_log_is_counted_too_late_and_not_applied() -> None:
    columns = columns_after([click(second, second) for second in (10, 11, 12, 13)])
    delta = planned(columns, click(5, 5))
    assert delta.outcome_counts[Outcome.TOO_LATE] == 1
    assert delta.applied.tolist() == [False]
    assert not delta.refold.any()


def test_an_impression_evicts_nothing_and_counts_for_nothing() -> None:
    columns = columns_after([click(second, second) for second in (10, 11, 12, 13)])
    before = log_of(columns, ANN)
    delta = apply(columns, [(ANN, click(20, 20, action=IMPRESSION))], ForgetfulEncoder(), item_vectors(), 50)
    assert log_of(columns, ANN) == before
    assert delta.outcome_counts[Outcome.UNLOGGED] == 1
    assert delta.applied.tolist() == [False]
    assert delta.newest.tolist() == [-1]
    assert columns.offset[columns.rows[ANN]] == 50


def test_a_late_event_is_folded_in_and_the_events_after_it_are_not() -> None:
    columns = columns_after([click(1, 1), click(5, 5)])
    assert planned(columns, click(3, 3)).refold.tolist() == [True]
    assert planned(columns, click(6, 6)).refold.tolist() == [False]


def test_a_retraction_takes_its_event_out_and_keeps_its_copies_out() -> None:
    columns = columns_after([click(1, 1), click(2, 2)], [retract(3, 1)], [click(1, 1)])
    assert log_of(columns, ANN) == [click(2, 2), retract(3, 1)]


def test_an_event_id_that_comes_again_with_a_later_time_is_still_a_repetition() -> None:
    columns = columns_after([click(1, 1), click(2, 2)])
    delta = planned(columns, click(5, 1))
    assert delta.outcome_counts[Outcome.DUPLICATE] == 1
    assert delta.log.events(0) == [click(1, 1), click(2, 2)]


def test_of_two_forgets_the_later_holds_whichever_comes_last() -> None:
    columns = columns_after([click(1, 1), forget(5, 98), forget(3, 99), click(9, 9)])
    assert planned(columns, click(4, 4)).outcome_counts[Outcome.FORGOTTEN] == 1


def test_a_retraction_may_come_before_its_event() -> None:
    columns = columns_after([retract(3, 1)], [click(1, 1), click(2, 2)])
    assert log_of(columns, ANN) == [click(2, 2), retract(3, 1)]


def test_forget_erases_what_happened_up_to_its_time_and_keeps_out_what_arrives_late() -> None:
    columns = columns_after([click(1, 1), click(2, 2), click(5, 5)], [forget(3)])
    assert log_of(columns, ANN) == [click(5, 5)]
    delta = planned(columns, click(2, 7), click(3, 8), click(4, 9))
    assert delta.outcome_counts[Outcome.FORGOTTEN] == 2
    assert delta.log.events(0) == [click(4, 9), click(5, 5)]
    assert not delta.erased.any()


def test_forget_that_leaves_nothing_erases_the_user() -> None:
    columns = columns_after([click(1, 1), click(2, 2)])
    delta = planned(columns, forget(3))
    assert delta.erased.tolist() == [True]
    assert delta.forgotten_ms.tolist() == [START_MS + 3000]


def test_events_after_forget_in_the_same_batch_begin_a_new_user() -> None:
    columns = columns_after([click(1, 1)])
    delta = planned(columns, forget(3), click(4, 4))
    assert delta.log.events(0) == [click(4, 4)]
    assert not delta.erased.any()


def test_the_newest_event_of_a_batch_is_named_so_that_its_id_can_be_kept() -> None:
    columns = columns_after([click(1, 1)])
    assert planned(columns, click(2, 2), click(3, 3)).newest.tolist() == [1]
    assert planned(columns, click(3, 3), click(2, 2)).newest.tolist() == [0]
    assert planned(columns, click(0, 9)).newest.tolist() == [-1]
    assert planned(columns, click(1, 1)).newest.tolist() == [-1]


def test_a_retracted_event_is_not_the_newest() -> None:
    columns = columns_after([click(1, 1)])
    assert planned(columns, click(3, 3), retract(4, 3)).newest.tolist() == [-1]
    assert planned(columns, click(2, 2), click(3, 3), retract(4, 3)).newest.tolist() == [0]


def test_the_newest_event_is_the_newest_beside_marks_of_retractions_and_an_older_forget() -> None:
    columns = columns_after([click(1, 1)], [retract(9, 1)])
    assert planned(columns, click(2, 2)).newest.tolist() == [0]
    assert planned(columns, click(2, 2), forget(1)).newest.tolist() == [0]


def test_more_than_a_log_in_one_batch_leaves_the_newest() -> None:
    columns = columns_after([click(1, 1)], [click(second, second) for second in range(2, 20)])
    assert log_of(columns, ANN) == [click(second, second) for second in (16, 17, 18, 19)]
