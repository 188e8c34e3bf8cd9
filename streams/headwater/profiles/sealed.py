"""Users whose newest record is of a newer format, after a rollback for instance: this version neither reads nor overwrites it.

They are *sealed*. Their clicks become dead letters, to be redriven once a version runs that reads the record. Their
requests are answered without what is known of them. Only a forget goes on: it needs to know nothing of them.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from headwater.kafka.publish import Outgoing
from headwater.kafka.read_to_end import read_to_end
from headwater.profiles.order import Order

# The reason of their dead letters.
NEWER_FORMAT: Final = "newer_format"
SEALED_REMEDY: Final = "run the version that wrote them, or a newer one, in all workers; then `headwater dlq redrive --reason newer_format`"


class Sealed(NamedTuple):
    """The newest record of a user: its order, and its offset on the changelog."""

    order: Order
    offset: int


async def read_back(
    reader: AIOKafkaConsumer, changelog: TopicPartition, sealed: Mapping[bytes, Sealed]
) -> dict[bytes, ConsumerRecord]:
    """The records of sealed users as they are; without those that compaction has taken. Nothing else may use ``reader``.

    Raises:
        StopWorker: the broker gives nothing.
        KafkaError: it refuses, or is away.
    """
    found: dict[bytes, ConsumerRecord] = {}
    for user, (_, offset) in sorted(sealed.items(), key=lambda item: item[1].offset):
        reader.assign([changelog])
        reader.seek(changelog, offset)
        async for run in read_to_end(reader, [changelog], {changelog: offset + 1}, max_records=1):
            if run.records and run.records[0].offset == offset:
                found[user] = run.records[0]
    return found


def again(record: ConsumerRecord) -> Outgoing:
    """A record to be written as it is."""
    return Outgoing(
        record.key, record.value, record.headers, record.timestamp if record.timestamp >= 0 else None
    )
