"""Kafka as a producer sees it, in memory: batches in Kafka's own record format, offsets that grow, acknowledgements."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaTimeoutError, MessageSizeTooLargeError, UnknownTopicOrPartitionError
from aiokafka.partitioner import murmur2
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import RecordMetadata


class RecordingProducer:
    """Takes what a Producer takes. ``down`` makes every write fail as a broker that is away does; writes to
    the topics in ``slow`` are acknowledged by :meth:`acknowledge`. Batches larger than ``most_bytes`` are refused."""

    def __init__(self, partitions: int = 4, batch_bytes: int = 256 * 1024) -> None:
        self._partitions, self._batch_bytes = partitions, batch_bytes
        self._written: dict[TopicPartition, list[ConsumerRecord]] = defaultdict(list)
        self.down = False
        self.slow: set[str] = set()
        self.most_bytes = 1 << 30
        self.missing: set[str] = set()  # topics that nobody has made
        self._unacknowledged: list[tuple[asyncio.Future[RecordMetadata], RecordMetadata]] = []

    def acknowledge(self) -> None:
        """Acknowledge the oldest write that waits for it."""
        done, written = self._unacknowledged.pop(0)
        done.set_result(written)

    def refuse(self) -> None:
        """Fail the oldest write that waits to be acknowledged."""
        self._unacknowledged.pop(0)[0].set_exception(KafkaTimeoutError())

    def records(self, topic: str, partition: int | None = None) -> list[ConsumerRecord]:
        """Everything written to the topic, or to one of its partitions, in order."""
        return [
            record
            for tp, records in sorted(self._written.items())
            if tp.topic == topic and partition in (None, tp.partition)
            for record in records
        ]

    def latest(self, topic: str) -> dict[bytes | None, ConsumerRecord]:
        """The topic as compaction leaves it: the last record of each key, tombstones included."""
        return {record.key: record for record in self.records(topic)}

    async def partitions_for(self, topic: str) -> set[int]:
        if topic in self.missing:
            raise UnknownTopicOrPartitionError
        return set(range(self._partitions))

    def create_batch(self) -> BatchBuilder:
        return BatchBuilder(self._batch_bytes, 0)

    async def send_batch(
        self, batch: BatchBuilder, topic: str, *, partition: int
    ) -> "asyncio.Future[RecordMetadata]":
        raw = bytes(batch._build())
        if len(raw) > self.most_bytes:
            return _refused()
        memory, found = MemoryRecords(raw), []
        while memory.has_next():
            found += [(each.key, each.value, each.headers, each.timestamp) for each in memory.next_batch()]
        return self._append(topic, partition, found)

    async def send(
        self,
        topic: str,
        value: bytes | None = None,
        key: bytes | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> "asyncio.Future[RecordMetadata]":
        if (
            sum(len(part) for part in (key or b"", value or b"", *(v or b"" for _, v in headers)))
            > self.most_bytes
        ):
            return _refused()
        if partition is None:
            partition = (murmur2(key) & 0x7FFFFFFF) % self._partitions if key else 0
        return self._append(topic, partition, [(key, value, headers, timestamp_ms or 0)])

    def write_now(self) -> None:
        """It has been written when it was sent."""

    def _append(self, topic: str, partition: int, records: Sequence[Any]) -> "asyncio.Future[RecordMetadata]":
        done: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()
        if self.down:
            done.set_exception(KafkaTimeoutError())
            return done
        tp = TopicPartition(topic, partition)
        held = self._written[tp]
        first = len(held)
        for offset, (key, value, headers, timestamp) in enumerate(records, first):
            held.append(
                ConsumerRecord(topic, partition, offset, timestamp, 0, key, value, None, 0, 0, tuple(headers))
            )
        written = RecordMetadata(topic, partition, tp, first, 0, 0, 0)
        if topic in self.slow:
            self._unacknowledged.append((done, written))
        else:
            done.set_result(written)
        return done


def _refused() -> "asyncio.Future[RecordMetadata]":
    refused: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()
    refused.set_exception(MessageSizeTooLargeError())
    return refused
