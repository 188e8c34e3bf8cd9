"""Users read from the changelog: the newest generation wins, in whatever order its records come."""

import numpy as np
import pytest
from aiokafka import ConsumerRecord

from headwater.errors import StopWorker
from headwater.kafka.headers import Erasure, erasure_header
from headwater.profiles.columns import Columns
from headwater.profiles.partition import Partition
from headwater.profiles.restore import generation_of_record, load
from headwater.profiles.state_records import WriterStamp, pack

BUNDLE, TOPIC = 99, "profiles.v1"


def record(offset: int, user: bytes, value: bytes | None, *headers: tuple[str, bytes]) -> ConsumerRecord:
    return ConsumerRecord(TOPIC, 0, offset, 0, 0, user, value, None, 0, 0, headers)


def state(offset: int, user: bytes, generation: int, clicks_offset: int) -> ConsumerRecord:
    columns = Columns(4, 2)
    row = columns.add(user)
    columns.offset[row] = clicks_offset
    (value,) = pack(columns, np.array([row]), WriterStamp(1, generation, BUNDLE))
    return record(offset, user, value)


def tombstone(offset: int, user: bytes, erased_ms: int, generation: int) -> ConsumerRecord:
    return record(offset, user, None, erasure_header(Erasure(erased_ms, generation)))


@pytest.fixture
async def partition() -> Partition:
    return Partition(0, log_length=4, state_size=2)


def loaded(partition: Partition, *records: ConsumerRecord) -> None:
    load(partition, records, BUNDLE, TOPIC)


def offset_of(partition: Partition, user: bytes) -> int:
    return int(partition.columns.offset[partition.columns.rows[user]])


@pytest.mark.parametrize("at_once", [True, False])
async def test_the_last_record_of_the_newest_generation_wins(partition: Partition, at_once: bool) -> None:
    records = [
        state(0, b"ann", 1, 3),
        state(1, b"ann", 2, 8),
        state(2, b"ann", 2, 9),
        state(3, b"ann", 1, 4),
    ]
    for batch in [records] if at_once else [[each] for each in records]:
        loaded(partition, *batch)
    assert offset_of(partition, b"ann") == 9
    assert partition.overwritten == {b"ann"}


async def test_a_user_who_is_written_again_is_overwritten_no_more(partition: Partition) -> None:
    loaded(partition, state(0, b"ann", 2, 8), state(1, b"ann", 1, 4))
    loaded(partition, state(2, b"ann", 3, 9))
    assert (offset_of(partition, b"ann"), partition.overwritten) == (9, set())


async def test_a_tombstone_erases_and_a_late_record_does_not_bring_the_user_back(
    partition: Partition,
) -> None:
    loaded(partition, state(0, b"ann", 1, 3))
    loaded(partition, tombstone(1, b"ann", 77, 2))
    loaded(partition, state(2, b"ann", 1, 4))
    assert b"ann" not in partition.columns.rows
    assert (partition.erasures.erased_ms(b"ann"), partition.erasures.generation(b"ann")) == (77, 2)
    assert partition.overwritten == {b"ann"}
    loaded(partition, state(3, b"ann", 2, 9))
    assert offset_of(partition, b"ann") == 9


async def test_a_tombstone_of_somebody_else_erases_without_a_time(partition: Partition) -> None:
    loaded(partition, state(0, b"ann", -1, 3), record(1, b"ann", None))
    assert b"ann" not in partition.columns.rows
    assert b"ann" not in partition.erasures


@pytest.mark.parametrize(
    "headers", [[], [("headwater-forgot-ms", b"nonsense")], [("headwater-forgot-ms", None)]]
)
async def test_a_record_that_is_not_ours_is_of_no_generation(
    headers: list[tuple[str, bytes]],
) -> None:
    assert generation_of_record(record(0, b"ann", None, *headers)) == -1
    assert generation_of_record(record(0, b"ann", b"short")) == -1


async def test_a_record_that_cannot_be_read_stops_the_worker_with_its_place(partition: Partition) -> None:
    newer = state(5, b"ann", 1, 3)
    with pytest.raises(StopWorker, match=r"profiles\.v1-0, offsets 5 to 5: state record: got format 9"):
        loaded(partition, record(5, b"ann", b"\x09" + newer.value[1:]))
