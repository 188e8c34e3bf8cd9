"""Rows of users, in memory or in a file: handed out, given back empty, and kept through growth."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from headwater.profiles.columns import Columns, Log
from headwater.profiles.event_log import Event
from tests.support.histories import DIM, values_of

EVENTS = [Event(10, 1, 2**64 - 1, 1), Event(20, 2**48 - 1, 5, 9)]


NewColumns = Callable[..., Columns]


@pytest.fixture(params=["memory", "disk"])
def new_columns(request: pytest.FixtureRequest, tmp_path: Path) -> NewColumns:
    return partial(Columns, folder=tmp_path if request.param == "disk" else None)


def log_of(events: list[Event], length: int = 4) -> Log:
    empty = Columns(length, DIM, capacity=1)
    log = empty.log(np.array([0]))
    log.write(0, events)
    return log


def test_a_log_gives_back_the_events_that_were_written() -> None:
    assert log_of(EVENTS).events(0) == EVENTS


def test_a_new_row_is_empty_and_has_no_applied_offset(new_columns: NewColumns) -> None:
    columns = new_columns(4, DIM)
    row = columns.add(b"ann")
    assert (columns.n[row], columns.offset[row], columns.last_event[row]) == (0, -1, b"")
    assert not columns.state[row].any()
    assert columns.rows == {b"ann": row}


def test_the_first_row_can_be_read_before_anybody_has_one(new_columns: NewColumns) -> None:
    """It stands in for a user without one, and is masked."""
    assert new_columns(4, DIM).log(np.array([0])).events(0) == []


def test_rows_survive_growth(new_columns: NewColumns) -> None:
    columns = new_columns(4, DIM, capacity=1)
    row = columns.add(b"ann")
    values = values_of(columns, [row])
    values.counters.keys[0, 2], values.counters.levels[0, 2] = 77, 2_000
    columns.write(values._replace(log=log_of(EVENTS), state=np.full((1, DIM), 1.5, dtype=np.float16)))
    for number in range(3_000):
        columns.add(f"user {number}".encode())
    assert (columns.counter_items[row, 2], columns.counter_levels[row, 2], columns.counter_levels.sum()) == (
        77,
        2_000,
        2_000,
    )
    assert columns.log(np.array([columns.rows[b"ann"]])).events(0) == EVENTS
    assert (columns.state[columns.rows[b"ann"]] == 1.5).all()
    assert len(columns) == 3_001
    assert sorted(columns.rows.values()) == list(range(3_001))
    assert not columns.state[1 : len(columns)].any()


def test_an_erased_user_leaves_nothing_in_a_row_that_is_handed_out_again(new_columns: NewColumns) -> None:
    columns = new_columns(4, DIM)
    row = columns.add(b"ann")
    columns.write(
        values_of(columns, [row])._replace(
            log=log_of(EVENTS), last_event=[(row, b"e1")], origins=[(row, 3, 7)]
        )
    )
    for name in (
        "state",
        "state_at_ms",
        "pending",
        "stale",
        "forgotten_ms",
        "offset",
        "epoch",
        "incarnation",
    ):
        getattr(columns, name)[row] = 1
    columns.remove(b"ann")
    assert b"ann" not in columns.rows
    again = columns.add(b"bob")
    fresh = new_columns(4, DIM)
    never_used = fresh.add(b"bob")
    assert again == row
    for name in ("n", "at_ms", "event", "item", "action", "offset", "state", "state_at_ms", "pending"):
        assert (getattr(columns, name)[again] == getattr(fresh, name)[never_used]).all(), name
    assert not columns.stale[again]
    assert columns.forgotten_ms[again] == 0
    assert columns.order(again) == (0, -1, 0)
    assert columns.last_event[again] == b""
    assert again not in columns.origins


def test_a_log_that_is_read_is_a_copy(new_columns: NewColumns) -> None:
    columns = new_columns(4, DIM)
    row = columns.add(b"ann")
    columns.log(np.array([row])).write(0, EVENTS)
    assert columns.n[row] == 0


def test_some_users_and_places_of_a_log_can_be_taken(new_columns: NewColumns) -> None:
    columns = new_columns(4, DIM)
    rows = np.array([columns.add(b"ann"), columns.add(b"bob")])
    log = columns.log(rows)
    log.write(1, EVENTS)
    assert log.take(slice(1, 2), 2).events(0) == EVENTS
    assert log.take(np.array([1, 0])).events(1) == []


def test_the_numbers_of_a_column_can_be_taken_by_one_index(new_columns: NewColumns) -> None:
    columns = new_columns(4, DIM)
    for name in (b"ann", b"bob", b"cid"):
        columns.add(name)
    columns.write(values_of(columns, [2])._replace(log=log_of(EVENTS)))
    for name, (numbers, step) in columns.flat.items():
        assert numbers.take([2 * step, 2 * step + 1]).tolist() == getattr(columns, name)[2, :2].tolist()
        assert numbers.take(2 * step) == getattr(EVENTS[0], name)


def test_of_the_partitions_that_clicks_came_from_the_newest_few_are_kept(new_columns: NewColumns) -> None:
    """A publisher may name any origin in a header."""
    columns = new_columns(4, DIM)
    row = columns.add(b"ann")
    values = values_of(columns, [row])
    columns.write(values._replace(origins=[(row, partition, 100 + partition) for partition in range(12)]))
    columns.write(values._replace(origins=[(row, 99, 0)]))
    assert columns.origins[row] == {partition: 100 + partition for partition in range(4, 12)}


def test_a_write_leaves_what_it_does_not_name(new_columns: NewColumns) -> None:
    columns = new_columns(4, DIM)
    ann, bob = columns.add(b"ann"), columns.add(b"bob")
    columns.mark_written(np.array([ann]), 2, 3)
    written = values_of(columns, [ann])
    columns.write(written._replace(offset=np.array([9]), last_event=[(ann, b"e1")]))
    columns.write(written._replace(offset=np.array([10])))
    assert (columns.offset[ann], columns.offset[bob]) == (10, -1)
    assert (columns.order(ann), columns.order(bob)) == ((2, 10, 3), (0, -1, 0))
    assert (columns.last_event[ann], columns.last_event[bob]) == (b"e1", b"")


def test_offsets_and_origins_of_a_former_clicks_log_are_of_no_click_in_the_one_that_replaced_it(
    new_columns: NewColumns,
) -> None:
    columns = new_columns(4, DIM)
    former, newer = columns.add(b"ann"), columns.add(b"bob")
    for row, incarnation in ((former, 0), (newer, 1)):
        values = values_of(columns, [row])._replace(
            offset=np.array([9]), log=log_of(EVENTS), origins=[(row, 3, 7)]
        )
        columns.write(values)
        columns.mark_written(np.array([row]), incarnation, 5)
    columns.start_incarnation(1)
    assert (columns.order(former), columns.order(newer)) == ((1, -1, 5), (1, 9, 5))
    assert columns.origins == {newer: {3: 7}}
    assert columns.log(np.array([former])).events(0) == EVENTS


def test_of_each_origin_the_farthest_offset_is_kept(new_columns: NewColumns) -> None:
    columns = new_columns(4, DIM)
    row = columns.add(b"ann")
    for offset in (7, 9, 8):
        columns.write(values_of(columns, [row])._replace(origins=[(row, 3, offset), (row, offset, 1)]))
    assert columns.origins[row] == {3: 9, 7: 1, 9: 1, 8: 1}
