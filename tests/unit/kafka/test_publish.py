"""Writing to a topic whose place is not known yet; what is written, and acknowledged, is tested where it is used."""

import asyncio
from typing import Any, cast

import pytest
from aiokafka.errors import UnknownTopicOrPartitionError

from headwater.errors import StopWorker
from headwater.kafka import publish
from headwater.kafka.publish import Outgoing, write_all, write_scattered
from tests.support.recording_producer import RecordingProducer

RECORDS = [Outgoing(b"key", b"value")]


class Silent(RecordingProducer):
    """Says where its topics are when asked for the nth time."""

    def __init__(self, nth: int) -> None:
        super().__init__()
        self._left = nth

    async def partitions_for(self, topic: str) -> set[int]:
        await asyncio.sleep(0.001)
        self._left -= 1
        if self._left > 0:
            raise UnknownTopicOrPartitionError
        return await super().partitions_for(topic)


async def test_a_silent_broker_is_waited_for_before_the_first_write_too() -> None:
    producer = Silent(4)
    await write_all(cast(Any, producer), "trends", 0, RECORDS)
    await write_scattered(cast(Any, producer), "responses", RECORDS)
    assert [len(producer.records(topic)) for topic in ("trends", "responses")] == [1, 1]


async def test_a_topic_that_nobody_knows_ends_the_worker_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "_DELIVERY_TIMEOUT_S", 0.02)
    for write in (
        write_all(cast(Any, Silent(1 << 30)), "trends", 0, RECORDS),
        write_scattered(cast(Any, Silent(1 << 30)), "responses", RECORDS),
    ):
        with pytest.raises(StopWorker, match="UnknownTopicOrPartitionError"):
            await write
