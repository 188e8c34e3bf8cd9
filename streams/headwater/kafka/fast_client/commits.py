"""Committed offsets with the metadata beside them, of many partitions at once; aiokafka gives the offset alone."""

from collections.abc import Collection

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import OffsetAndMetadata


async def committed(
    consumer: AIOKafkaConsumer, tps: Collection[TopicPartition]
) -> dict[TopicPartition, OffsetAndMetadata]:
    """What the consumer's group has committed of ``tps``; partitions without a commit are left out.

    Raises:
        KafkaError: the broker refused.
    """
    found: dict[TopicPartition, OffsetAndMetadata] = await consumer._coordinator.fetch_committed_offsets(
        list(tps)
    )
    return found
