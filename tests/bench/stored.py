"""What a worker has stored, read straight from its topics: whole topics, item vectors, the newest record of each user."""

from collections.abc import AsyncIterator

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from headwater.index import Point
from headwater.kafka.topics import Topics
from headwater.settings import Settings
from tests.support.vector_records import points_of


async def records_of(settings: Settings, topic: str, partitions: int) -> AsyncIterator[ConsumerRecord]:
    """Everything that a topic holds now; each partition in order."""
    consumer = AIOKafkaConsumer(**settings.kafka_options(), max_partition_fetch_bytes=8 * 1024 * 1024)
    await consumer.start()
    try:
        tps = [TopicPartition(topic, number) for number in range(partitions)]
        consumer.assign(tps)
        ends = await consumer.end_offsets(tps)
        for tp, start in (await consumer.beginning_offsets(tps)).items():
            consumer.seek(tp, start)
        while any([await consumer.position(tp) < ends[tp] for tp in tps]):
            for records in (await consumer.getmany(*tps, timeout_ms=500)).values():
                for record in records:
                    yield record
    finally:
        await consumer.stop()


async def item_points(settings: Settings) -> list[Point]:
    """The live items of the vectors topic, as an index takes them."""
    newest: dict[int, Point] = {}
    topic = Topics.named(settings.topic_prefix).vectors
    async for record in records_of(settings, topic, settings.catalog_partitions):
        newest |= {point.key: point for point in points_of([record])}
    return [point for point in newest.values() if point.vector is not None]


async def user_records(settings: Settings) -> dict[bytes, bytes]:
    """The newest record of each user."""
    newest: dict[bytes, bytes] = {}
    topic = Topics.named(settings.topic_prefix).profiles
    async for record in records_of(settings, topic, settings.partitions):
        if record.value is not None:
            newest[record.key] = record.value
    return newest
