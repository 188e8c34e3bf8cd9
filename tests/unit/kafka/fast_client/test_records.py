"""Records out of what a fetch brought: each once, in order, however many are polled at a time."""

import asyncio
import gc
import gzip
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from aiokafka.codec import lz4_encode, zstd_encode
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from headwater.kafka.fast_client.records import BufferedFetches, LightRecords, Record
from headwater.kafka.fast_client.unpack import MAX_UNPACKED_BYTES
from tests.support.fetching import TPS, URGENT, Reading, batch, signed


def test_urgent_topics_are_polled_before_what_came_earlier() -> None:
    fetcher: Any = SimpleNamespace(_records={}, _fetch_waiters=())
    records = BufferedFetches(fetcher, URGENT, lambda: False)
    for tp in TPS:
        records[tp] = object()
    assert list(records) == [*TPS[3:], *TPS[:3]]


async def test_records_are_polled_in_order_and_the_rest_later() -> None:
    reading = Reading()
    reading.fetched(TPS[0], batch(0, 3), batch(3, 4))
    reading.fetched(TPS[3], batch(0, 2))
    assert reading.polled(max_records=4) == {TPS[3]: [0, 1], TPS[0]: [0, 1]}
    assert reading.position(TPS[0]) == 2
    assert reading.polled(TPS[1]) == {}
    assert reading.polled(max_records=3) == {TPS[0]: [2, 3, 4]}
    assert reading.polled() == {TPS[0]: [5, 6]}
    assert reading.position(TPS[0]) == 7
    assert not reading.fetcher._records
    assert reading.polled() == {}


async def test_the_leader_epoch_of_the_newest_batch_is_told_also_of_one_without_records() -> None:
    reading = Reading()
    tell = reading.consumer.leader_epoch_of
    assert tell(TPS[0]) is None
    reading.fetched(TPS[0], batch(0, 3, epoch=4), batch(3, 1, epoch=6, control=True, producer=1))
    reading.fetched(TPS[1], batch(0, 1, epoch=-1))
    assert reading.polled(max_records=2) == {TPS[0]: [0, 1]}
    assert tell(TPS[0]) == 4
    reading.polled()
    assert (reading.position(TPS[0]), tell(TPS[0]), tell(TPS[1])) == (4, 6, None)


def with_headers(first: int, count: int, headers: int) -> bytes:
    """Records as `batch` makes them, the one before the last with so many headers without name and value."""
    raw = bytearray(batch(first, count))
    at = 61
    for number in range(count - 1):
        size, begin = raw[at] >> 1, at
        at += 1 + size
        if number == count - 2:
            body = raw[begin + 1 : at].rsplit(b"\x02\x08name", 1)[0] + varint(headers) + b"\x00\x01" * headers
            raw[begin:at] = varint(len(body)) + body
    raw[8:12] = (len(raw) - 12).to_bytes(4, "big")
    return signed(raw)


def varint(number: int) -> bytes:
    left, out = number << 1, bytearray()
    while left > 0x7F:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes(out) + bytes([left])


@pytest.mark.parametrize("headers", [3, 128, 129, 200_000])
async def test_of_a_record_so_many_headers_are_made_as_anybody_may_need(headers: int) -> None:
    """Packed, millions of them take a few kilobytes, and made they would take all memory."""
    reading = Reading()
    reading.fetched(TPS[0], with_headers(0, 4, headers), batch(4, 1))
    tracemalloc.start()
    try:
        (records,) = reading.consumer.poll_buffered(TPS, 100).values()
        more = reading.consumer.poll_buffered(TPS, 100).values()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    records = [*records, *(each for some in more for each in some)]
    assert [(each.offset, len(each.headers)) for each in records] == [
        (0, 1),
        (1, 1),
        (2, min(headers, 128)),
        (3, 1),
        (4, 1),
    ]
    assert peak < 2_000_000


@pytest.fixture
def no_garbage_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collector")
async def test_the_bytes_of_a_fetch_are_freed_with_its_last_record() -> None:
    reading = Reading()
    theirs = weakref.ref(reading.fetched(TPS[0], batch(0, 3), batch(3, 4)))
    ours = weakref.ref(reading.fetcher._records[TPS[0]]._partition_records)
    assert theirs() is None, "aiokafka's records hold the bytes as well"
    assert reading.polled(max_records=4) == {TPS[0]: [0, 1, 2, 3]}
    assert ours() is not None
    assert reading.polled() == {TPS[0]: [4, 5, 6]}
    assert ours() is None


async def test_the_control_records_of_transactions_are_passed_and_not_given() -> None:
    reading = Reading()
    reading.fetched(TPS[0], batch(0, 2), batch(2, 1, control=True))
    reading.fetched(TPS[1], batch(0, 1, control=True))
    assert reading.polled() == {TPS[0]: [0, 1], TPS[1]: []}
    assert [reading.consumer.end_of(tp) for tp in TPS[:3]] == [3, 1, 0]
    assert not reading.fetcher._records


async def test_records_of_aborted_transactions_are_passed_and_not_given() -> None:
    reading = Reading()
    of_one_and_another = (
        batch(0, 2, producer=7),  # to be aborted
        batch(2, 1, producer=8),  # to be committed
        batch(3, 1),  # of no transaction
        batch(4, 1, control=True, producer=7),
        batch(5, 2, producer=7),  # the next one of the same producer, to be committed
        batch(7, 1, control=True, producer=8),
        batch(8, 2, producer=8),  # to be aborted
        batch(10, 1, control=True, producer=7),
        batch(11, 1, control=True, producer=8),
    )
    reading.fetched(TPS[0], *of_one_and_another, aborted=[(8, 8), (7, 0)])
    reading.fetched(TPS[1], batch(0, 3, producer=7), batch(3, 1, control=True, producer=7), aborted=[(7, 0)])
    assert reading.polled(max_records=2) == {TPS[0]: [2, 3]}
    assert reading.polled() == {TPS[0]: [5, 6], TPS[1]: []}
    assert [reading.position(tp) for tp in TPS[:2]] == [12, 4]


async def test_a_record_has_what_the_broker_has_of_it() -> None:
    reading = Reading()
    reading.fetched(TPS[0], batch(5, 1), offset=5)
    reading.assignment.state_value(TPS[0]).seek(5)
    [record] = reading.consumer.poll_buffered(TPS, 10)[TPS[0]]
    assert record == Record("clicks", 0, 5, 7, b"key", b"5", (("name", b"header"),))


async def test_what_lies_before_the_position_in_its_batch_is_left_out() -> None:
    reading = Reading()
    reading.assignment.state_value(TPS[0]).seek(2)
    reading.fetched(TPS[0], batch(0, 4), offset=2)
    assert reading.polled() == {TPS[0]: [2, 3]}


async def test_what_was_fetched_for_another_position_is_dropped() -> None:
    reading = Reading()
    reading.fetched(TPS[0], batch(0, 4))
    reading.assignment.state_value(TPS[0]).seek(3)
    assert reading.polled() == {}
    assert not reading.fetcher._records


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4), st.lists(st.integers(1, 7), min_size=1, max_size=9)
)
def test_records_come_once_and_in_order_however_many_are_polled_at_a_time(
    counts: list[int], takes: list[int]
) -> None:
    async def run() -> None:
        reading, starts = Reading(), [sum(counts[:n]) for n in range(len(counts))]
        reading.fetched(TPS[0], *map(batch, starts, counts))
        seen: list[int] = []
        for most in [*takes, 100]:
            seen += reading.polled(max_records=most).get(TPS[0], [])
            assert reading.position(TPS[0]) == len(seen)
        assert seen == list(range(sum(counts)))

    asyncio.run(run())


async def test_a_batch_that_is_polled_in_parts_is_parsed_as_one_that_is_polled_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reading it record by record, as a damaged one, takes ten times as long."""
    monkeypatch.setattr(LightRecords, "_read_singly", lambda self: pytest.fail("read as if damaged"))
    reading = Reading()
    reading.fetched(TPS[0], batch(0, 5))
    assert [reading.polled(max_records=most)[TPS[0]] for most in (1, 2, 2)] == [[0], [1, 2], [3, 4]]


async def test_aiokafka_itself_polls_the_same_records() -> None:
    reading = Reading()
    reading.fetched(TPS[0], batch(0, 3), batch(3, 2))
    found = await reading.fetcher.fetched_records(TPS, max_records=4)
    assert [record.offset for record in found[TPS[0]]] == [0, 1, 2, 3]
    assert reading.polled() == {TPS[0]: [4]}


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.lists(st.integers(1, 7), max_size=9),
    st.booleans(),
)
def test_aiokafka_and_we_take_turns_at_one_fetch(counts: list[int], takes: list[int], is_ours: bool) -> None:
    async def run() -> None:
        reading, starts = Reading(), [sum(counts[:n]) for n in range(len(counts))]
        reading.fetched(TPS[0], *map(batch, starts, counts))
        seen: list[int] = []
        for turn, most in enumerate([*takes, 100]):
            if is_ours == bool(turn % 2):
                seen += reading.polled(max_records=most).get(TPS[0], [])
            else:
                found = await reading.fetcher.fetched_records(TPS, max_records=most)
                seen += [record.offset for record in found.get(TPS[0], ())]
            assert reading.position(TPS[0]) == len(seen)
        assert seen == list(range(sum(counts)))

    asyncio.run(run())


async def test_a_poll_of_aiokafkas_makes_the_records_of_a_batch_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []
    make = LightRecords._make

    def counted(self: LightRecords, max_records: int) -> list[Record]:
        records = make(self, max_records)
        made.append(len(records))
        return records

    monkeypatch.setattr(LightRecords, "_make", counted)
    reading = Reading()
    reading.fetched(TPS[0], batch(0, 50))
    await reading.fetcher.fetched_records(TPS, max_records=20)
    assert reading.position(TPS[0]) == 20
    assert made == [50]


def damaged(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] ^ 1])


def told(reading: Reading) -> list[tuple[int, int, str]]:
    return [(each.first, each.last, each.reason) for each in reading.consumer.unreadable]


async def test_a_batch_with_a_wrong_checksum_is_fetched_again() -> None:
    reading = Reading()
    reading.fetched(TPS[0], damaged(batch(0, 2)), batch(2, 2))
    assert reading.polled() == {}
    assert (reading.position(TPS[0]), told(reading)) == (0, [])
    reading.fetched(TPS[0], batch(0, 2), batch(2, 2))
    assert reading.polled() == {TPS[0]: [0, 1, 2, 3]}


async def test_a_batch_whose_checksum_is_wrong_twice_is_passed_and_told() -> None:
    reading = Reading()
    for _ in range(2):
        reading.fetched(TPS[0], damaged(batch(0, 2)), batch(2, 2))
        found = reading.polled()
    assert found == {TPS[0]: [2, 3]}
    assert told(reading) == [(0, 1, "corrupt")]
    assert reading.polled() == {}
    assert told(reading) == []


async def test_where_nothing_follows_a_damaged_batch_it_ends_no_later_than_the_log() -> None:
    reading, raw = Reading(), bytearray(batch(0, 2))
    raw[23:27] = (2**31 - 1).to_bytes(4, "big")  # its last offset
    for _ in range(2):
        reading.fetched(TPS[0], bytes(raw), end=2)
        found = reading.polled()
    assert found == {TPS[0]: []}
    assert (reading.position(TPS[0]), told(reading)) == (2, [(0, 1, "corrupt")])
    for _ in range(2):  # the broker goes by the same word, and sends it first for ever
        reading.fetched(TPS[0], bytes(raw), batch(2, 1), offset=2, end=3)
        found = reading.polled()
    assert (found, told(reading)) == ({TPS[0]: [2]}, [])


async def test_a_header_name_that_is_not_utf_8_is_escaped() -> None:
    reading = Reading()
    reading.fetched(TPS[0], signed(batch(0, 2).replace(b"name", b"n\xff\xfee", 1)))
    records = reading.consumer.poll_buffered(TPS, 10)[TPS[0]]
    assert [record.headers for record in records] == [
        ((r"n\xff\xfee", b"header"),),
        (("name", b"header"),),
    ]
    assert records[0] == Record("clicks", 0, 0, 7, b"key", b"0", ((r"n\xff\xfee", b"header"),))
    assert told(reading) == []


async def test_a_record_that_is_none_is_passed_and_its_neighbours_are_read() -> None:
    reading, raw = Reading(), bytearray(batch(0, 3))
    second = raw.index(b"key", raw.index(b"key") + 1)
    raw[second - 1] = 0x7E  # a key of 63 bytes in a record of 20
    for most in (1, 100):
        reading.assignment.state_value(TPS[0]).seek(0)
        reading.fetched(TPS[0], signed(raw))
        found, passed = [], []
        while got := reading.polled(max_records=most):
            found += got[TPS[0]]
            passed += told(reading)
        assert (found, passed) == ([0, 2], [(1, 1, "corrupt")])


async def test_bytes_that_are_no_records_are_passed_to_the_end_of_their_batch() -> None:
    reading, raw = Reading(), batch(0, 3)
    reading.fetched(TPS[0], signed(raw[:61] + b"\xff" * (len(raw) - 61)), batch(3, 1))
    assert reading.polled() == {TPS[0]: [3]}
    assert told(reading) == [(0, 2, "corrupt")]


@pytest.mark.parametrize("codec", [0, 1, 2, 3, 4])
async def test_packed_records_are_those_that_were_packed(codec: int) -> None:
    reading = Reading()
    reading.fetched(TPS[0], batch(0, 3, codec=codec), batch(3, 2, codec=codec))
    assert [reading.polled(max_records=2) for _ in range(3)] == [
        {TPS[0]: [0, 1]},
        {TPS[0]: [2, 3]},
        {TPS[0]: [4]},
    ]


@pytest.mark.parametrize("codec", [5, 7])
async def test_a_codec_that_nobody_knows_is_passed(codec: int) -> None:
    reading, raw = Reading(), bytearray(batch(0, 2))
    raw[22] |= codec
    reading.fetched(TPS[0], signed(raw), batch(2, 1))
    assert reading.polled() == {TPS[0]: [2]}
    assert told(reading) == [(0, 1, "corrupt")]


@pytest.mark.parametrize(("codec", "packed"), [(1, gzip.compress), (3, lz4_encode), (4, zstd_encode)])
async def test_a_batch_that_unpacks_to_more_than_the_bound_is_passed(
    codec: int, packed: Callable[[bytes], bytes]
) -> None:
    reading, raw = Reading(), bytearray(batch(0, 2)[:61])
    raw[22] |= codec
    raw += packed(bytes(MAX_UNPACKED_BYTES + 1))
    raw[8:12] = (len(raw) - 12).to_bytes(4, "big")
    reading.fetched(TPS[0], signed(raw), batch(2, 1))
    assert reading.polled() == {TPS[0]: [2]}
    assert told(reading) == [(0, 1, "too_large_unpacked")]


@pytest.mark.parametrize("magic", [0, 1])
async def test_messages_of_the_old_formats_are_read(magic: Literal[0, 1]) -> None:
    reading, raw = Reading(), b""
    for offset in range(3):
        builder = LegacyRecordBatchBuilder(magic, 0, 1_000)
        builder.append(0, 7, b"key", b"%d" % offset)
        raw += offset.to_bytes(8, "big") + bytes(builder.build())[8:]
    reading.fetched(TPS[0], raw)
    records = reading.consumer.poll_buffered(TPS, 10)[TPS[0]]
    timestamp = 7 if magic else -1
    assert records == [
        Record("clicks", 0, offset, timestamp, b"key", b"%d" % offset, ()) for offset in range(3)
    ]


async def test_an_old_message_that_unpacks_to_more_than_the_bound_is_passed() -> None:
    reading, builder = Reading(), LegacyRecordBatchBuilder(1, 1, 100_000_000)
    builder.append(0, 7, b"key", bytes(MAX_UNPACKED_BYTES))
    reading.fetched(TPS[0], bytes(builder.build()), batch(1, 1))
    assert reading.polled() == {TPS[0]: [1]}
    assert told(reading) == [(0, 0, "too_large_unpacked")]


@given(st.data())
def test_whatever_bytes_a_log_holds_nothing_is_raised_and_reading_goes_on(data: st.DataObject) -> None:
    async def run() -> None:
        reading, codec = Reading(), data.draw(st.sampled_from([0, 0, 1, 2, 3, 4]))
        raw = bytearray(batch(0, 3, codec=codec))
        places = st.tuples(st.integers(16, len(raw) - 1), st.integers(0, 255))
        for place, byte in data.draw(st.lists(places, min_size=1, max_size=6)):
            raw[place] = byte
        bad = signed(raw) if data.draw(st.booleans()) else bytes(raw)
        seen: list[int] = []
        for _ in range(20):
            at = reading.position(TPS[0])
            if at >= 5:
                break
            reading.fetched(TPS[0], *([bad] if at < 3 else []), batch(3, 2), offset=at, end=5)
            while got := reading.polled(max_records=2):
                seen += got[TPS[0]]
        assert seen[-2:] == [3, 4] or reading.position(TPS[0]) >= 5

    asyncio.run(run())
