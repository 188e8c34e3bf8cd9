"""Records out of what a fetch brought: each once, in order, however many are polled at a time."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import CorruptRecordException
from hypothesis import given
from hypothesis import strategies as st

from headwater.kafka.fast_client.records import BufferedFetches, Record
from tests.support.fetching import TPS, URGENT, Reading, batch


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


async def test_aiokafka_itself_polls_the_same_records() -> None:
    reading = Reading()
    reading.fetched(TPS[0], batch(0, 3), batch(3, 2))
    found = await reading.fetcher.fetched_records(TPS, max_records=4)
    assert [record.offset for record in found[TPS[0]]] == [0, 1, 2, 3]
    assert reading.polled() == {TPS[0]: [4]}


async def test_a_damaged_batch_is_raised_by_the_next_wait() -> None:
    reading = Reading()
    damaged = bytearray(batch(0, 2))
    damaged[-1] ^= 1
    reading.fetched(TPS[0], bytes(damaged))
    assert reading.polled() == {}
    reading.consumer._closed = False
    with pytest.raises(CorruptRecordException):
        await reading.consumer.wait_for_records(1.0)
    await reading.consumer.wait_for_records(0.0)
    reading.consumer._closed = True


async def test_what_follows_a_damaged_batch_is_not_read_in_its_place() -> None:
    reading = Reading()
    damaged = bytearray(batch(0, 2))
    damaged[-1] ^= 1
    reading.fetched(TPS[0], bytes(damaged), batch(2, 2))
    with pytest.raises(CorruptRecordException):
        await reading.fetcher.fetched_records(TPS)
    assert await reading.fetcher.fetched_records(TPS) == {}
    assert reading.position(TPS[0]) == 0  # from where it is fetched again
