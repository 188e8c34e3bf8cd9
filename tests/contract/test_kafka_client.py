"""One contract for both clients, the patched one and the plain one, on Apache Kafka and on the embedded broker."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import ConsumerStoppedError

from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.plain_client import PlainConsumer, PlainProducer
from headwater.settings import Settings
from tests.support.plain_topics import create_topics

AnyConsumer = Consumer | PlainConsumer
AnyProducer = Producer | PlainProducer
# Only a test that fails waits for so long.
LONG_S = 60.0


@pytest.fixture(params=[Consumer, PlainConsumer], ids=["fast", "plain"])
def consumer_class(request: pytest.FixtureRequest) -> type[AnyConsumer]:
    found: type[AnyConsumer] = request.param
    return found


@pytest.fixture(params=[Producer, PlainProducer], ids=["fast", "plain"])
async def producer(request: pytest.FixtureRequest, settings: Settings) -> AsyncIterator[AnyProducer]:
    made = request.param(**settings.kafka_options(), acks="all")
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def writer(settings: Settings) -> AsyncIterator[Producer]:
    made = Producer(**settings.kafka_options(), acks="all")
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def topics(settings: Settings) -> tuple[str, str]:
    """An ordinary one and an urgent one, of two partitions each."""
    names = f"{settings.topic_prefix}clicks", f"{settings.topic_prefix}requests"
    await create_topics(settings, *names, partitions=2)
    return names


@asynccontextmanager
async def reading(
    consumer_class: type[AnyConsumer], settings: Settings, topics: tuple[str, str]
) -> AsyncIterator[AnyConsumer]:
    consumer = consumer_class(
        *topics, **settings.kafka_options(), urgent=topics[1:], group_id=None, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


async def write(producer: AnyProducer, topic: str, partition: int, values: Sequence[bytes]) -> None:
    sent = [await producer.send(topic, value, partition=partition) for value in values]
    await asyncio.gather(*sent)


async def polled(
    consumer: AnyConsumer, tps: Sequence[TopicPartition], count: int, max_records: int = 1_000
) -> dict[TopicPartition, list[int]]:
    """Offsets by partition, in the order in which they came, once there are ``count``."""
    found: dict[TopicPartition, list[int]] = {}
    async with asyncio.timeout(LONG_S):
        while sum(map(len, found.values())) < count:
            got = consumer.poll_buffered(tps, max_records)
            assert sum(map(len, got.values())) <= max_records
            for tp, records in got.items():
                found.setdefault(tp, []).extend(record.offset for record in records)
            if not got:
                await consumer.wait_for_records(1.0)
    return found


async def test_records_of_a_partition_come_once_and_in_order(
    consumer_class: type[AnyConsumer], settings: Settings, topics: tuple[str, str], writer: Producer
) -> None:
    tps = [TopicPartition(topics[0], 0), TopicPartition(topics[0], 1)]
    for tp in tps:
        await write(writer, *tp, [b"%d" % n for n in range(500)])
    async with reading(consumer_class, settings, topics) as consumer:
        found = await polled(consumer, tps, 1_000, max_records=70)
        assert found == {tp: list(range(500)) for tp in tps}
        assert [await consumer.position(tp) for tp in tps] == [500, 500]


async def test_a_record_has_its_key_its_value_its_headers_and_its_place(
    consumer_class: type[AnyConsumer], settings: Settings, topics: tuple[str, str], writer: Producer
) -> None:
    tp = TopicPartition(topics[0], 1)
    headers = [("h", b"1"), ("null", None)]
    await writer.send_and_wait(*tp[:1], b"value", key=b"key", partition=1, timestamp_ms=77, headers=headers)
    async with reading(consumer_class, settings, topics) as consumer, asyncio.timeout(LONG_S):
        while not (found := consumer.poll_buffered([tp], 10)):
            await consumer.wait_for_records(1.0)
        [record] = found[tp]
        assert (record.topic, record.partition, record.offset, record.timestamp) == (*tp, 0, 77)
        assert (record.key, record.value, record.headers) == (b"key", b"value", tuple(headers))


async def test_only_the_partitions_that_are_asked_for_are_polled_and_the_others_keep_their_records(
    consumer_class: type[AnyConsumer], settings: Settings, topics: tuple[str, str], writer: Producer
) -> None:
    first, second = TopicPartition(topics[0], 0), TopicPartition(topics[0], 1)
    for tp in (first, second):
        await write(writer, *tp, [b"0", b"1"])
    async with reading(consumer_class, settings, topics) as consumer:
        assert await polled(consumer, [first], 2) == {first: [0, 1]}
        await write(writer, *first, [b"2"])
        assert await polled(consumer, [first], 1) == {first: [2]}
        assert await polled(consumer, [second], 2) == {second: [0, 1]}


async def test_a_reader_that_waits_is_woken_by_a_record_long_before_its_time_is_over(
    consumer_class: type[AnyConsumer], settings: Settings, topics: tuple[str, str], writer: Producer
) -> None:
    tp = TopicPartition(topics[1], 0)
    async with reading(consumer_class, settings, topics) as consumer, asyncio.timeout(LONG_S):
        for offset in range(3):
            waiting = asyncio.ensure_future(consumer.wait_for_records(10 * LONG_S))
            await asyncio.sleep(0.05)
            await write(writer, *tp, [b"news"])
            await waiting
            [record] = consumer.poll_buffered([tp], 10)[tp]
            assert record.offset == offset


async def test_without_records_a_wait_ends_with_its_time(
    consumer_class: type[AnyConsumer], settings: Settings, topics: tuple[str, str]
) -> None:
    async with reading(consumer_class, settings, topics) as consumer, asyncio.timeout(LONG_S):
        await consumer.wait_for_records(0.05)
        assert consumer.poll_buffered(consumer.assignment(), 10) == {}


async def test_urgent_topics_are_polled_first(
    consumer_class: type[AnyConsumer], settings: Settings, topics: tuple[str, str], writer: Producer
) -> None:
    plain, urgent = TopicPartition(topics[0], 0), TopicPartition(topics[1], 0)
    await write(writer, *plain, [b"0"])
    await write(writer, *urgent, [b"0"])
    async with reading(consumer_class, settings, topics) as consumer, asyncio.timeout(LONG_S):
        for tp in (plain, urgent):  # until both have been fetched
            while not consumer.poll_buffered([tp], 1):
                await consumer.wait_for_records(0.1)
            consumer.seek(tp, 0)
        await asyncio.gather(*(write(writer, *tp, [b"1"]) for tp in (plain, urgent)))
        first: list[TopicPartition] = []
        while len(first) < 2:
            await consumer.wait_for_records(0.5)
            found = consumer.poll_buffered([plain, urgent], 10)
            if len(found) == 2:
                assert list(found) == [urgent, plain]
            first += found


async def test_a_seek_decides_what_comes_next_whatever_has_been_fetched(
    consumer_class: type[AnyConsumer], settings: Settings, topics: tuple[str, str], writer: Producer
) -> None:
    tp = TopicPartition(topics[0], 0)
    await write(writer, *tp, [b"%d" % n for n in range(10)])
    async with reading(consumer_class, settings, topics) as consumer:
        assert await polled(consumer, [tp], 3, max_records=3) == {tp: [0, 1, 2]}
        consumer.seek(tp, 7)
        assert await polled(consumer, [tp], 3) == {tp: [7, 8, 9]}
        consumer.seek(tp, 1)
        assert await polled(consumer, [tp], 9) == {tp: list(range(1, 10))}
        await consumer.seek_to_beginning(tp)
        assert await polled(consumer, [tp], 10) == {tp: list(range(10))}


async def test_a_paused_partition_gives_nothing_until_it_is_resumed(
    consumer_class: type[AnyConsumer], settings: Settings, topics: tuple[str, str], writer: Producer
) -> None:
    paused, other = TopicPartition(topics[0], 0), TopicPartition(topics[0], 1)
    async with reading(consumer_class, settings, topics) as consumer:
        consumer.pause(paused)
        for tp in (paused, other):
            await write(writer, *tp, [b"0"])
        assert await polled(consumer, [paused, other], 1) == {other: [0]}
        await consumer.wait_for_records(0.2)
        assert consumer.poll_buffered([paused], 10) == {}
        consumer.resume(paused)
        assert await polled(consumer, [paused], 1) == {paused: [0]}


async def test_getmany_reads_the_same_records(
    consumer_class: type[AnyConsumer], settings: Settings, topics: tuple[str, str], writer: Producer
) -> None:
    tp = TopicPartition(topics[0], 0)
    await write(writer, *tp, [b"%d" % n for n in range(10)])
    async with reading(consumer_class, settings, topics) as consumer, asyncio.timeout(LONG_S):
        seen: list[int] = []
        while len(seen) < 10:
            for records in (await consumer.getmany(tp, timeout_ms=500, max_records=4)).values():
                seen += [record.offset for record in records]
        assert seen == list(range(10))


async def test_a_stopped_consumer_says_so(
    consumer_class: type[AnyConsumer], settings: Settings, topics: tuple[str, str]
) -> None:
    async with reading(consumer_class, settings, topics) as consumer:
        await consumer.stop()
        with pytest.raises(ConsumerStoppedError):
            await consumer.wait_for_records(1.0)


async def test_written_records_keep_their_order_and_are_acknowledged_with_their_place(
    producer: AnyProducer, settings: Settings, topics: tuple[str, str]
) -> None:
    sent = []
    for number in range(300):
        sent.append(await producer.send(topics[0], b"%d" % number, partition=0))
        if number % 7 == 0:
            producer.write_now()
        if number % 50 == 0:
            await asyncio.sleep(0)
    async with asyncio.timeout(LONG_S):
        written = await asyncio.gather(*sent)
    assert [meta.offset for meta in written] == list(range(300))
    async with reading(PlainConsumer, settings, topics) as consumer, asyncio.timeout(LONG_S):
        values: list[bytes] = []
        while len(values) < 300:
            await consumer.wait_for_records(1.0)
            for records in consumer.poll_buffered(consumer.assignment(), 1_000).values():
                values += [record.value for record in records]
    assert values == [b"%d" % number for number in range(300)]
