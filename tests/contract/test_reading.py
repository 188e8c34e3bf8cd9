"""What is read of a topic, to its end and from there on, on Apache Kafka and on the embedded broker."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord, TopicPartition

from headwater.errors import StopWorker
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.publish import Outgoing, producer_of, write_all
from headwater.kafka.read_to_end import read_to_end
from headwater.kafka.tail import Tail
from headwater.settings import Settings
from tests.support.plain_topics import create_topics

PARTITIONS = 3


@pytest.fixture
async def topic(settings: Settings) -> str:
    name = f"{settings.topic_prefix}read"
    await create_topics(settings, name, partitions=PARTITIONS)
    return name


@pytest.fixture
async def producer(settings: Settings) -> AsyncIterator[Producer]:
    producer = producer_of(settings)
    await producer.start()
    yield producer
    await producer.stop()


@asynccontextmanager
async def reader(settings: Settings, tps: Sequence[TopicPartition]) -> AsyncIterator[Consumer]:
    consumer = Consumer(**settings.kafka_options(), enable_auto_commit=False, fetch_max_wait_ms=100)
    await consumer.start()
    try:
        consumer.assign(tps)
        await consumer.seek_to_beginning(*tps)
        yield consumer
    finally:
        await consumer.stop()


async def write(producer: Producer, topic: str, counts: Sequence[int]) -> None:
    for partition, count in enumerate(counts):
        await write_all(producer, topic, partition, [Outgoing(b"k", b"%d" % n) for n in range(count)])


async def test_partitions_are_read_to_their_end_and_a_second_reading_goes_on_from_there(
    settings: Settings, topic: str, producer: Producer
) -> None:
    counts = [2_500, 0, 7]
    await write(producer, topic, counts)
    tps = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    found: dict[TopicPartition, list[int]] = {tp: [] for tp in tps}
    async with reader(settings, tps) as consumer:
        for _ in range(2):
            async for run in read_to_end(consumer, tps, max_records=1_000):
                found[run.tp] += [record.offset for record in run.records]
                assert run.next_offset == found[run.tp][-1] + 1
            assert [found[tp] for tp in tps] == [list(range(count)) for count in counts]
            await write(producer, topic, [1, 1, 1])
            counts = [count + 1 for count in counts]
            consumer.resume(*tps)


async def test_the_marker_of_a_transaction_at_the_end_is_passed(kafka: str, topic_prefix: str) -> None:
    settings = Settings(kafka_bootstrap_servers=kafka, topic_prefix=topic_prefix)
    name = f"{topic_prefix}marked"
    await create_topics(settings, name, partitions=1)
    transactional = AIOKafkaProducer(**settings.kafka_options(), transactional_id=name)
    await transactional.start()
    async with transactional.transaction():
        await transactional.send_and_wait(name, b"v", partition=0)
    await transactional.stop()
    tp = TopicPartition(name, 0)
    async with reader(settings, [tp]) as consumer, asyncio.timeout(60):
        while (await consumer.end_offsets([tp]))[
            tp
        ] < 2:  # the broker writes the marker after it has answered
            await asyncio.sleep(0.05)
        runs = [run async for run in read_to_end(consumer, [tp])]
    assert [record.value for run in runs for record in run.records] == [b"v"]
    assert runs[-1].next_offset == 2


@pytest.mark.parametrize("from_end", [False, True])
async def test_a_tail_hands_over_what_was_there_and_then_what_comes(
    settings: Settings, topic: str, producer: Producer, from_end: bool
) -> None:
    await write(producer, topic, [3, 0, 2])
    seen: list[tuple[int, int]] = []
    came = asyncio.Event()

    async def on_records(records: Sequence[ConsumerRecord]) -> None:
        seen.extend((record.partition, record.offset) for record in records)
        came.set()

    tail = Tail(settings, topic, on_records, pytest.fail, from_end=from_end)
    await tail.start()
    try:
        async with asyncio.timeout(60):
            await tail.caught_up.wait()
            there = [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1)]
            assert sorted(seen) == (
                [(0, 2), (2, 1)] if from_end else there
            )  # from the end: the newest of each
            seen.clear()
            await write(producer, topic, [1, 1, 1])
            while len(seen) < PARTITIONS:
                came.clear()
                await came.wait()
        assert sorted(seen) == [(0, 3), (1, 0), (2, 2)]
    finally:
        await tail.stop()


async def test_a_tail_of_a_topic_that_does_not_exist_says_how_to_make_it(
    kafka: str, topic_prefix: str
) -> None:
    settings = Settings(kafka_bootstrap_servers=kafka, topic_prefix=topic_prefix)

    async def on_records(records: Sequence[ConsumerRecord]) -> None:
        pytest.fail("nothing to read")

    tail = Tail(settings, f"{settings.topic_prefix}missing", on_records, pytest.fail)
    with pytest.raises(StopWorker, match="run `headwater topics create`"):
        await tail.start()


async def test_what_a_tails_reader_raises_ends_the_worker(
    settings: Settings, topic: str, producer: Producer
) -> None:
    await write(producer, topic, [1, 0, 0])
    failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def on_records(records: Sequence[ConsumerRecord]) -> None:
        raise ValueError("no")

    tail = Tail(settings, topic, on_records, failed.set_result)
    await tail.start()
    try:
        async with asyncio.timeout(60):
            assert await failed == f"unexpected ValueError in the tail of {topic}: no"
    finally:
        await tail.stop()
