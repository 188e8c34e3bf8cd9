"""Reading partitions up to their end, from a log in memory; tests/contract reads the same from real brokers."""

from collections.abc import Mapping, Sequence

import pytest
from aiokafka import ConsumerRecord, TopicPartition

from headwater.errors import StopWorker
from headwater.kafka.read_to_end import Run, read_to_end

A, B = TopicPartition("profiles", 0), TopicPartition("profiles", 1)


class Log:
    """A consumer over partitions in memory: offsets that hold records, and the end of each partition."""

    def __init__(
        self, held: Mapping[TopicPartition, Sequence[int]], ends: Mapping[TopicPartition, int]
    ) -> None:
        self.held, self.ends = held, dict(ends)
        self.positions = dict.fromkeys(ends, 0)
        self.paused: set[TopicPartition] = set()
        self.is_silent = False

    async def end_offsets(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return {tp: self.ends[tp] for tp in tps}

    async def position(self, tp: TopicPartition) -> int:
        return self.positions[tp]

    def pause(self, *tps: TopicPartition) -> None:
        self.paused |= set(tps)

    async def getmany(
        self, *tps: TopicPartition, timeout_ms: int, max_records: int
    ) -> dict[TopicPartition, list[ConsumerRecord]]:
        found: dict[TopicPartition, list[ConsumerRecord]] = {}
        for tp in tps:
            assert tp not in self.paused
            if self.is_silent:
                continue
            ahead = [offset for offset in self.held[tp] if offset >= self.positions[tp]]
            taken = ahead[:max_records]
            self.positions[tp] = taken[-1] + 1 if taken != ahead else self.ends[tp]
            if taken:
                found[tp] = [
                    ConsumerRecord(*tp, offset, 0, 0, b"k", b"v", None, 1, 1, ()) for offset in taken
                ]
        return found


async def runs(log: Log, **options: object) -> list[tuple[int, list[int], int]]:
    found: list[Run] = [run async for run in read_to_end(log, list(log.ends), **options)]  # type: ignore[arg-type]
    return [(run.tp.partition, [record.offset for record in run.records], run.next_offset) for run in found]


async def test_every_record_up_to_the_end_comes_once_in_order() -> None:
    log = Log({A: [0, 1, 2], B: [0]}, {A: 3, B: 1})
    assert await runs(log, max_records=2) == [(0, [0, 1], 2), (1, [0], 1), (0, [2], 3)]
    assert log.paused == {A, B}


async def test_an_empty_partition_is_at_its_end_at_once() -> None:
    log = Log({A: []}, {A: 0})
    assert await runs(log) == []
    assert log.paused == {A}


async def test_offsets_without_records_count_as_read() -> None:
    """Markers of transactions, and what compaction removed."""
    assert await runs(Log({A: [0, 4]}, {A: 6})) == [(0, [0, 4], 6)]
    assert await runs(Log({A: []}, {A: 2})) == [(0, [], 2)]


async def test_reading_begins_where_the_consumer_stands() -> None:
    log = Log({A: [0, 1, 2]}, {A: 3})
    log.positions[A] = 2
    assert await runs(log) == [(0, [2], 3)]


async def test_a_given_end_is_where_reading_stops() -> None:
    log = Log({A: [0, 1, 2]}, {A: 3})
    assert await runs(log, ends={A: 2}, max_records=1) == [(0, [0], 1), (0, [1], 2)]


async def test_reading_can_go_on_after_a_break() -> None:
    log = Log({A: [0, 1, 2]}, {A: 3})
    async for run in read_to_end(log, [A], max_records=1):  # type: ignore[arg-type]
        log.positions[A] = run.next_offset
        break
    assert await runs(log) == [(0, [1, 2], 3)]


async def test_a_broker_that_gives_nothing_stops_the_worker_with_a_sentence() -> None:
    log = Log({A: [0, 1]}, {A: 2})
    log.is_silent = True
    with pytest.raises(StopWorker, match=r"profiles-0: read up to offset 0 .* expected its end, 2; look at"):
        await runs(log, timeout_s=0.0)
