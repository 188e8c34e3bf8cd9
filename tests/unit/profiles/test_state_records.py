"""The value of a user on the profiles topic: whole, small, and refused when it cannot be understood."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.encoder import runtime as encoders
from headwater.encoder.features import ACTION_CODES, EVENT_KEY_MASK
from headwater.messages import MAX_AT_MS
from headwater.profiles.columns import MAX_STRAYS, Columns
from headwater.profiles.counters import MAX_LEVEL, weight
from headwater.profiles.event_log import Event
from headwater.profiles.hides import packed, unpacked
from headwater.profiles.state_records import (
    RecordError,
    WriterStamp,
    empty_record,
    header_size,
    is_of_newer_format,
    orders_of,
    pack,
    record_size,
    stamp_of,
    unpack,
)
from tests.support.checkout import STARTER
from tests.support.histories import DIM, START_MS, values_of

STAMP = WriterStamp(writer=2**64 - 1, epoch=7, bundle=2**63 + 5, incarnation=2**16 - 1)
# Of the first user of `filled`, with one event and two floats, as the version before counters wrote it.
FORMAT_1 = (
    "0101000002000b0006ffffffffffffffff070000000500000000000080e8030000000000000068e5cf8b010000000000000000000000000000"
    "0038003809000000000000000800000000000700000000506576656e74203020e29895"
)

events = st.builds(
    Event,
    st.integers(1, 2**44 - 1),
    st.integers(0, EVENT_KEY_MASK),
    st.integers(0, 2**64 - 1),
    st.integers(1, 10),
)


def filled(
    users: list[list[Event]], length: int = 6, state_size: int = DIM, first_state: float = 0.5
) -> tuple[Columns, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    columns = Columns(length, state_size, capacity=2)
    for number, log in enumerate(users):
        row = columns.add(f"user {number}".encode())
        values = values_of(columns, [row])
        values.log.write(0, log)
        columns.write(values)
        columns.state[row] = first_state + number
        columns.state_at_ms[row] = START_MS + number
        columns.pending[row] = number % 5
        columns.offset[row] = 1000 + number
        columns.forgotten_ms[row] = number
        columns.last_event[row] = f"event {number} ☕".encode()
    return columns, np.array(list(columns.rows.values()), dtype=np.int64)


def restored(
    records: list[bytes], length: int = 6, state_size: int = DIM, bundle: int = STAMP.bundle
) -> Columns:
    columns = Columns(length, state_size, capacity=1)
    rows = np.array([columns.add(f"user {number}".encode()) for number in range(len(records))])
    unpack(columns, rows, records, bundle)
    return columns


HIDE = ACTION_CODES["hide"]


@given(st.lists(st.lists(events, max_size=6), min_size=1, max_size=5), st.data())
def test_what_is_packed_comes_back(users: list[list[Event]], data: st.DataObject) -> None:
    columns, rows = filled(users)
    for row in rows.tolist():
        strays = data.draw(
            st.dictionaries(st.integers(0, 2**31 - 1), st.integers(0, 2**62), max_size=MAX_STRAYS)
        )
        if strays:
            columns.origins[row] = strays
        columns.last_event[row] = data.draw(st.text(max_size=200)).encode(errors="ignore")[:512]
    again = restored(pack(columns, rows, STAMP))
    for user, row in columns.rows.items():
        other = again.rows[user]
        assert again.log(np.array([other])).events(0) == columns.log(np.array([row])).events(0)
        assert (again.state[other] == columns.state[row]).all()
        for name in ("state_at_ms", "pending", "offset", "forgotten_ms"):
            assert getattr(again, name)[other] == getattr(columns, name)[row], name
        assert again.last_event[other] == columns.last_event[row]
        assert again.origins.get(other, {}) == columns.origins.get(row, {})
        assert not again.stale[other]
        assert again.order(other) == (STAMP.incarnation, columns.offset[row], STAMP.epoch)


def test_a_record_says_who_wrote_it() -> None:
    (record,) = pack(*filled([[]]), STAMP)
    assert stamp_of(record) == STAMP
    assert orders_of([record]) == [(2**16 - 1, 1000, 7)]


def test_the_generation_that_earlier_versions_wrote_is_an_epoch() -> None:
    assert orders_of([bytes.fromhex(FORMAT_1)]) == [(0, 1000, 7)]


def test_the_record_of_a_user_of_whom_nothing_is_known_is_read_as_any_other() -> None:
    columns = restored([empty_record(5, STAMP.bundle)])
    assert (columns.n[0], columns.order(0)) == (0, (0, -1, 5))


def damaged_records() -> list[bytes]:
    (record,) = pack(*filled([[Event(1, 1, 1, 1)]]), STAMP)
    (below,) = pack(*filled([[]]), STAMP)
    offset_at = header_size() - 28
    negative = below[:offset_at] + (-5).to_bytes(8, "little", signed=True) + below[offset_at + 8 :]
    cut = [record[:length] for length in (1, 30, header_size(), len(record) - 1)]
    noise = [bytes([form]) + random.Random(form).randbytes(2_000) for form in range(4, 32)]
    return [b"", b'{"not": "ours"}', *noise, b"\x00" * 80, b"\xff" * 300, record + b"x", negative, *cut]


def test_a_damaged_record_has_no_order_and_those_beside_it_have_theirs() -> None:
    (good,) = pack(*filled([[Event(1, 1, 1, 1)]]), STAMP)
    damaged = damaged_records()
    assert orders_of([good, *damaged, good]) == [
        (2**16 - 1, 1000, 7),
        *[None] * len(damaged),
        (2**16 - 1, 1000, 7),
    ]


@given(st.binary(max_size=300))
def test_no_bytes_make_reading_an_order_fail_and_what_has_one_is_read_or_of_a_newer_format(
    raw: bytes,
) -> None:
    (order,) = orders_of([raw])
    if order is not None and not is_of_newer_format(raw):
        restored([raw])


def test_a_state_that_is_no_number_is_folded_again() -> None:
    columns, rows = filled([[Event(1, 1, 1, 1)], [Event(1, 1, 1, 1)]])
    columns.state[0, 1] = np.nan
    other = restored(pack(columns, rows, STAMP))
    assert other.stale.tolist() == [True, False]
    assert not other.state[0].any()


def test_times_and_actions_fit_their_bits() -> None:
    assert max(ACTION_CODES.values()) < 2**4
    assert MAX_AT_MS < 2**44


def test_fifty_events_and_the_starters_state_take_at_most_1280_bytes() -> None:
    """Beside them come the header and the newest event's id, of the producer's choosing."""
    starter = encoders.load(STARTER)
    log = [Event(START_MS + number, EVENT_KEY_MASK - number, 2**64 - 1, 9) for number in range(50)]
    assert starter.log_length == 50
    (record,) = pack(*filled([log], length=50, state_size=starter.state_size), STAMP)
    assert len(record) == record_size(50, starter.state_size) + len("event 0 ☕".encode())
    assert len(record) - header_size() - len("event 0 ☕".encode()) <= 1_280
    assert header_size() <= 64


def test_only_what_the_log_holds_is_written() -> None:
    short, long = pack(*filled([[Event(1, 1, 1, 1)], [Event(n, n, 1, 1) for n in range(1, 6)]]), STAMP)
    assert len(long) - len(short) == 4 * (record_size(1, 0) - record_size(0, 0))


def test_a_state_of_another_bundle_is_stale_and_not_taken() -> None:
    columns, rows = filled([[Event(1, 1, 1, 1)]])
    other = restored(pack(columns, rows, STAMP), bundle=99)
    assert other.stale.tolist() == [True]
    assert not other.state[0].any()
    assert other.log(np.array([0])).events(0) == [Event(1, 1, 1, 1)]
    assert other.offset[0] == 1000


def test_a_state_of_another_size_is_stale_and_the_log_is_kept() -> None:
    columns, rows = filled([[Event(1, 1, 1, 1)], [Event(2, 2, 2, 2)]], state_size=DIM + 3)
    other = restored(pack(columns, rows, STAMP), state_size=DIM)
    assert other.stale.tolist()[:2] == [True, True]
    assert other.log(np.array([1])).events(0) == [Event(2, 2, 2, 2)]
    assert other.last_event[1] == columns.last_event[1]


def test_a_windowed_encoders_record_is_the_log_without_a_state() -> None:
    columns, rows = filled([[Event(1, 1, 1, 1)], []], state_size=0)
    other = restored(pack(columns, rows, STAMP), state_size=0)
    assert other.log(np.array([0])).events(0) == [Event(1, 1, 1, 1)]
    assert not other.stale.any()
    assert other.last_event[1] == columns.last_event[1]


def test_records_of_several_bundles_can_lie_side_by_side() -> None:
    columns, rows = filled([[Event(1, 1, 1, 1)], [Event(2, 2, 2, 2)]])
    ours, theirs = pack(columns, rows[:1], STAMP) + pack(columns, rows[1:], STAMP._replace(bundle=1))
    other = restored([theirs, ours])
    assert other.stale.tolist()[:2] == [True, False]
    assert (other.state[1] == 0.5).all()


@pytest.mark.parametrize("length", [2, 3, 10])
def test_a_log_of_another_length_keeps_its_newest_events(length: int) -> None:
    log = [Event(number, number, number, 1) for number in range(1, 6)]
    columns, rows = filled([log, log[:1]])
    other = restored(pack(columns, rows, STAMP), length=length)
    assert other.log(np.array([0])).events(0) == log[-length:]
    assert other.log(np.array([1])).events(0) == log[:1]


counters = st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, MAX_LEVEL)), max_size=8)


def with_counters(columns: Columns, held: list[list[tuple[int, int]]]) -> None:
    for row, pairs in enumerate(held):
        for place, (key, level) in enumerate(pairs[: columns.counters]):
            columns.counter_items[row, place], columns.counter_levels[row, place] = key, level


def counters_of(columns: Columns, row: int) -> list[tuple[int, int] | None]:
    pairs = zip(columns.counter_items[row].tolist(), columns.counter_levels[row].tolist(), strict=True)
    return [pair if pair[1] else None for pair in pairs]


@given(st.lists(counters, min_size=1, max_size=5))
def test_counters_come_back_where_they_stood_over_whatever_was_there(
    held: list[list[tuple[int, int]]],
) -> None:
    columns, rows = filled([[Event(1, 1, 1, 1)] for _ in held])
    with_counters(columns, held)
    columns.origins[0] = {3: 4}
    other, _ = filled([[] for _ in held])
    with_counters(other, [[(9, 9)] * 3] * len(held))
    unpack(other, rows, pack(columns, rows, STAMP), STAMP.bundle)
    for row in rows.tolist():
        assert counters_of(other, row) == counters_of(columns, row)
        assert other.last_event[row] == columns.last_event[row]
    assert other.origins == columns.origins


def test_a_user_without_counters_is_written_as_versions_before_them_write_and_read_it() -> None:
    columns, rows = filled([[Event(7, 8, 9, 5)], [Event(7, 8, 9, 5)]], state_size=2)
    with_counters(columns, [[], [(5, 2_048)]])
    plain, counting = pack(columns, rows, STAMP._replace(incarnation=0))
    assert plain.hex() == FORMAT_1
    assert counting[0] == 2
    assert len(counting) == len(plain) + 10
    other = restored([bytes.fromhex(FORMAT_1)], state_size=2)
    assert other.log(np.array([0])).events(0) == [Event(7, 8, 9, 5)]
    assert counters_of(other, 0) == [None] * other.counters


def test_of_more_counters_than_there_is_room_for_the_heaviest_stay() -> None:
    columns, rows = filled([[]])
    with_counters(columns, [[(1, 10), (2, 30), (3, 20), (4, 5)]])
    (record,) = pack(columns, rows, STAMP)
    for room, kept in ((2, [(2, 30), (3, 20)]), (0, [])):
        fewer = Columns(6, DIM, counters=room)
        unpack(fewer, np.array([fewer.add(b"ann")]), [record], STAMP.bundle)
        assert counters_of(fewer, 0) == kept
    assert pack(fewer, rows, STAMP)[0][0] == 1


def test_what_a_shorter_log_has_no_room_for_is_counted_as_what_leaves_it() -> None:
    bought, hide = ACTION_CODES["purchase"], ACTION_CODES["hide"]
    log = [
        Event(1, 1, 7, bought),
        Event(2, 2, 8, bought),
        Event(3, 3, 8, hide),
        Event(4, 4, 7, bought),
        Event(5, 5, 7, bought),
    ]
    other = restored(pack(*filled([log]), STAMP), length=1)
    (counter,) = filter(None, counters_of(other, 0))
    assert counter[0] == 7
    assert weight(counter[1]) == pytest.approx(2, rel=0.01)


def test_a_shorter_log_without_counters_counts_nothing() -> None:
    none = Columns(1, DIM, counters=0)
    unpack(none, np.array([none.add(b"ann")]), pack(*filled([[Event(n, n, 1, 1) for n in (1, 2)]]), STAMP), 1)
    assert none.log(np.array([0])).events(0) == [Event(2, 2, 1, 1)]


@pytest.mark.parametrize("counters", [[], [(5, 2_048)]])
def test_kept_hides_come_back_beside_whatever_else_there_is(counters: list[tuple[int, int]]) -> None:
    columns, rows = filled([[Event(7, 8, 9, 5)], [Event(7, 8, 9, 5)]])
    with_counters(columns, [counters, counters])
    kept = packed([Event(MAX_AT_MS, EVENT_KEY_MASK, 2**64 - 1, HIDE), Event(START_MS, 1, 2, HIDE)])
    columns.hides[int(rows[0])] = kept
    hiding, plain = pack(columns, rows, STAMP)
    assert (hiding[0], plain[0]) == (3, 2 if counters else 1)
    assert len(hiding) == len(plain) + 40
    assert len(hiding) == record_size(1, DIM, len(counters), 2) + len(columns.last_event[int(rows[0])])
    again = restored([hiding, plain])
    assert (again.hides, counters_of(again, 0)[:1]) == ({0: kept}, [*counters, None][:1])
    unpack(again, np.array([0]), [plain], STAMP.bundle)
    assert again.hides == {}, "the newer record has none"


@pytest.mark.parametrize("room", [0, 1, 2, 9])
def test_of_more_kept_hides_than_there_is_room_for_the_newest_stay(room: int) -> None:
    columns, rows = filled([[]])
    kept = [Event(START_MS + number, number, number, HIDE) for number in range(3)]
    columns.hides[int(rows[0])] = packed(kept)
    (record,) = pack(columns, rows, STAMP)
    fewer = Columns(6, DIM, hides=room)
    unpack(fewer, np.array([fewer.add(b"ann")]), [record], STAMP.bundle)
    assert unpacked(fewer.hides.get(0, b"")) == kept[3 - min(room, 3) :]
    assert pack(fewer, np.array([0]), STAMP)[0][0] == (3 if room else 1)


def test_a_hide_that_a_shorter_log_has_no_room_for_is_kept() -> None:
    log = [Event(START_MS + number, number, number, HIDE if number == 1 else 5) for number in range(6)]
    (record,) = pack(*filled([log]), STAMP)
    shorter = restored([record], length=3)
    assert unpacked(shorter.hides[0]) == [log[1]]


def test_a_counter_beyond_the_levels_is_at_the_highest() -> None:
    columns, rows = filled([[]])
    with_counters(columns, [[(1, MAX_LEVEL + 1)]])
    assert counters_of(restored(pack(columns, rows, STAMP)), 0)[0] == (1, MAX_LEVEL)


def test_no_records_change_nothing() -> None:
    columns = Columns(4, DIM)
    unpack(columns, np.array([], dtype=np.int64), [], 1)
    assert len(columns) == 0


def test_a_record_of_a_newer_format_is_refused_with_the_remedy() -> None:
    (record,) = pack(*filled([[Event(1, 1, 1, 1)]]), STAMP)
    newer = bytes([4]) + record[1:]
    assert orders_of([newer, record]) == orders_of([record, record]), "all formats have one header"
    assert [is_of_newer_format(each) for each in (newer, record)] == [True, False]
    with pytest.raises(
        RecordError, match=r"got format 4 .* expected format 1 to 3; run the version that wrote it"
    ):
        restored([record, newer])


@pytest.mark.parametrize("cut", [0, 1, 30, -1])
def test_a_record_that_is_cut_short_is_refused(cut: int) -> None:
    (record,) = pack(*filled([[Event(1, 1, 1, 1)]]), STAMP)
    with pytest.raises(RecordError, match="damaged"):
        restored([record[:cut]])


def test_a_record_with_more_than_it_announces_is_refused() -> None:
    (record,) = pack(*filled([[Event(1, 1, 1, 1)]]), STAMP)
    with pytest.raises(RecordError, match=rf"got {len(record) + 1} bytes .* the record is damaged"):
        restored([record + b"x"])


def test_a_refused_record_leaves_the_columns_as_they_were() -> None:
    good, rows = filled([[Event(1, 1, 1, 1)]])
    (record,) = pack(good, rows, STAMP)
    columns = Columns(6, DIM)
    row = columns.add(b"ann")
    with pytest.raises(RecordError):
        unpack(columns, np.array([row, columns.add(b"bob")]), [record, record[:-2]], STAMP.bundle)
    assert columns.n[row] == 0
    assert columns.offset[row] == -1


def test_events_that_an_earlier_version_stored_years_ahead_count_as_of_their_record() -> None:
    """They would fill the log for years, and a forget of that date would drop all that comes."""
    ten_years_ms, now = 3_650 * 86_400_000, START_MS
    honest, ahead, earlier = Event(now - 5, 1, 1, 1), Event(now + ten_years_ms, 3, 3, 1), Event(now, 2, 2, 1)
    columns, rows = filled(
        [[honest, earlier, ahead, ahead._replace(at_ms=ahead.at_ms + 1, event=0)], [honest]]
    )
    columns.forgotten_ms[rows] = now + ten_years_ms
    records = pack(columns, rows, STAMP)
    again = Columns(6, DIM)
    rows = np.array([again.add(b"ann"), again.add(b"bob")])
    unpack(again, rows, records, STAMP.bundle, np.array([now, 7]))
    dated = [Event(now, 0, 3, 1), earlier, ahead._replace(at_ms=now)]
    assert again.log(rows).events(0) == [honest, *dated]
    assert again.log(rows).events(1) == [honest]
    assert again.stale[rows].tolist() == [True, False]
    assert again.forgotten_ms[rows].tolist() == [now, now + ten_years_ms]
