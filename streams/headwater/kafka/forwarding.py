"""Records that another partitioner put on a partition where their user does not live.

Java, aiokafka and kafka-python hash keys by murmur2, librdkafka by CRC32 unless told otherwise. A click on the wrong
partition would look like a user without a past. It is therefore forwarded once, with its origin in a header.
"""

from collections.abc import Sequence
from typing import NamedTuple

from aiokafka import ConsumerRecord

from headwater.kafka.dead_letters import DeadLetter
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.headers import ORIGIN, Origin
from headwater.kafka.publish import Outgoing, write_scattered


class Stray(NamedTuple):
    """A record that lies on the wrong partition, and how it is to be forwarded."""

    record: ConsumerRecord
    outgoing: Outgoing


def redirect(record: ConsumerRecord, user: bytes, home: int) -> Stray | DeadLetter:
    """What becomes of a record that lies elsewhere than on ``home``, the partition of its ``user``.

    It is forwarded. If it has been forwarded before, our partition counts disagree, and it becomes a dead letter.
    """
    if isinstance(ORIGIN.of(record.headers), Origin):
        message = f"forwarded to partition {record.partition}, but its user belongs to {home}"
        return DeadLetter(record, "misrouted", message)
    return Stray(record, forwarded(record, user))


def forwarded(record: ConsumerRecord, user: bytes) -> Outgoing:
    """The record as it is to be written to the partition of ``user``: a new origin, all other headers kept.

    The origin comes first, since a reader takes the first 128 headers: without it a record would be forwarded for ever.
    """
    origin = Origin(record.partition, record.offset, record.timestamp)
    kept = [pair for pair in record.headers if pair[0] != ORIGIN.name]
    return Outgoing(user, record.value, [ORIGIN.header(origin), *kept])


async def forward(producer: Producer, topic: str, strays: Sequence[Stray]) -> list[DeadLetter]:
    """Write strays to the partitions of their users. Returns those that are too large with the header that they get.

    Raises:
        StopWorker: the broker did not take them in time.
    """
    records = {id(stray.outgoing): stray.record for stray in strays}
    refused = await write_scattered(producer, topic, [stray.outgoing for stray in strays])
    return [
        DeadLetter(records[id(each.record)], each.reason, f"forwarded with its origin: {each.message}")
        for each in refused
    ]
