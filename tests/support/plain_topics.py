"""Topics without policies, for tests that bring their own records."""

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from headwater.settings import Settings


async def create_topics(settings: Settings, *names: str, partitions: int) -> None:
    """Create topics of one replica each."""
    admin = AIOKafkaAdminClient(**settings.kafka_options())
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, partitions, 1) for name in names])
    finally:
        await admin.close()
