"""Writing to a topic whose place is not known yet; what is written, and acknowledged, is tested where it is used."""

import asyncio
from typing import Any, cast

import pytest
from aiokafka.errors import UnknownTopicOrPartitionError

from headwater.errors import StopWorker
from headwater.kafka import publish
from headwater.kafka.publish import Outgoing, send_all, write_all, write_scattered
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


def sized(*sizes: int) -> list[Outgoing]:
    return [Outgoing(b"%d" % place, bytes(size)) for place, size in enumerate(sizes)]


async def test_one_record_that_is_too_large_is_told_and_the_others_are_written_in_order() -> None:
    for culprits in ([3], [0, 4], [0, 1, 2, 3, 4], []):
        producer = RecordingProducer()
        producer.most_bytes = 1_000
        records = sized(*(2_000 if place in culprits else 10 for place in range(5)))
        refused = await write_all(cast(Any, producer), "vectors", 0, records)
        assert [(each.record, each.reason) for each in refused] == [
            (records[place], "too_large") for place in culprits
        ]
        taken = [record.key for record in producer.records("vectors")]
        assert taken == [b"%d" % place for place in range(5) if place not in culprits]


async def test_a_batch_that_is_too_large_as_a_whole_is_written_in_parts() -> None:
    producer = RecordingProducer()
    producer.most_bytes = 1_000
    assert await write_all(cast(Any, producer), "vectors", 0, sized(*[300] * 9)) == []
    assert [record.key for record in producer.records("vectors")] == [b"%d" % place for place in range(9)]


async def test_an_answer_that_is_too_large_does_not_fail_the_others() -> None:
    producer = RecordingProducer()
    producer.most_bytes = 1_000
    records = sized(10, 2_000, 10)
    refused = await write_scattered(cast(Any, producer), "responses", records)
    assert [each.record for each in refused] == [records[1]]
    assert {record.key for record in producer.records("responses")} == {b"0", b"2"}


async def test_what_must_be_written_and_is_refused_ends_the_worker_with_the_reason() -> None:
    producer = RecordingProducer()
    producer.most_bytes = 1_000
    sent = await send_all(cast(Any, producer), "profiles", 0, sized(10, 2_000))
    with pytest.raises(StopWorker, match="2001 bytes"):
        await sent.acknowledged()
