"""Brokers tell where a log ends in a leader's epoch. The embedded one has a single leader, and takes any epoch for its own."""

from aiokafka import TopicPartition

from headwater.kafka.leader_epochs import epoch_ends
from headwater.kafka.publish import producer_of
from headwater.settings import Settings
from headwater.worker.worker import started
from tests.support.plain_topics import create_topics


async def test_a_log_ends_where_its_newest_epoch_does_and_has_nothing_of_a_later_one(
    settings: Settings, kafka: str
) -> None:
    name = f"{settings.topic_prefix}log"
    await create_topics(settings, name, partitions=3)
    places = [TopicPartition(name, number) for number in range(3)]
    async with started(producer_of(settings)) as producer:
        for place in places[:2]:
            await producer.send_and_wait(name, b"{}", partition=place.partition)
        producer.client.set_topics([])  # it has followed others since
        found = await epoch_ends(producer.client, dict(zip(places, (0, 5, 0), strict=True)))
    later = 0 if settings.bootstrap_servers == kafka else 1
    assert found == dict(zip(places, (1, later, 0), strict=True))
