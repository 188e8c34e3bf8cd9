"""A topic that is made again is told from the former one, on Apache Kafka; the embedded broker gives topics no ids."""

import asyncio

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient

from headwater.kafka.topic_identity import Identity, identities
from headwater.settings import Settings
from tests.support.plain_topics import create_topics

LONG_S = 60.0


async def test_each_partition_has_the_id_of_its_topic_and_a_topic_made_again_another_one(
    settings: Settings, kafka: str
) -> None:
    name = f"{settings.topic_prefix}log"
    await create_topics(settings, name, partitions=2)
    client = AIOKafkaClient(**settings.kafka_options())
    await client.bootstrap()
    try:
        before = await found(client, name)
        assert before.keys() == {TopicPartition(name, 0), TopicPartition(name, 1)}
        if settings.bootstrap_servers != kafka:
            assert set(before.values()) == {Identity()}
            return
        assert len({each.topic_id for each in before.values()}) == 1
        await delete(settings, name)
        await create_topics(settings, name, partitions=2)
        after = await found(client, name)
        assert after.keys() == before.keys()
        assert not {each.topic_id for each in after.values()} & {each.topic_id for each in before.values()}
        assert None not in {each.topic_id for each in after.values()}
    finally:
        await client.close()


async def test_a_topic_that_is_not_there_is_left_out(settings: Settings) -> None:
    client = AIOKafkaClient(**settings.kafka_options())
    await client.bootstrap()
    try:
        assert await identities(client, [f"{settings.topic_prefix}nowhere"]) == {}
    finally:
        await client.close()


async def found(client: AIOKafkaClient, name: str) -> dict[TopicPartition, Identity]:
    """Once the broker that is asked knows the topic and its leaders."""
    async with asyncio.timeout(LONG_S):
        while len(known := await identities(client, [name])) < 2:
            await asyncio.sleep(0.05)
    return known


async def delete(settings: Settings, name: str) -> None:
    admin = AIOKafkaAdminClient(**settings.kafka_options())
    await admin.start()
    try:
        await admin.delete_topics([name])
        async with asyncio.timeout(LONG_S):
            while name in await admin.list_topics():
                await asyncio.sleep(0.05)
    finally:
        await admin.close()
