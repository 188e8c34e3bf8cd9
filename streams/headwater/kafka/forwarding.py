"""Records that another partitioner put on a partition where their user does not live.

Java, aiokafka and kafka-python hash keys by murmur2, librdkafka by CRC32 unless told otherwise. A click on the wrong
partition would look like a user without a past, so it is forwarded once, with where it came from in its headers.
"""

from typing import Final, NamedTuple

import msgspec
from aiokafka import ConsumerRecord

from headwater.kafka.dead_letters import DeadLetter
from headwater.kafka.publish import Outgoing

_ORIGIN_HEADER: Final = "headwater-origin"


class Origin(NamedTuple):
    """Where a forwarded record was published first; ``timestamp_ms`` is that record's."""

    partition: int
    offset: int
    timestamp_ms: int


def redirect(
    record: ConsumerRecord, user: bytes, home: int, strays: list[Outgoing], letters: list[DeadLetter]
) -> None:
    """Add a record that lies elsewhere than its user's ``home`` to ``strays``, to be forwarded, or to ``letters`` if it
    has been forwarded before."""
    if origin_of(record) is None:
        strays.append(forwarded(record, user))
    else:
        message = f"forwarded to partition {record.partition}, but its user belongs to {home}"
        letters.append(DeadLetter(record, "misrouted", message))


def origin_of(record: ConsumerRecord) -> Origin | None:
    """Where a forwarded record came from; None for one that was published where it lies."""
    for name, value in record.headers:
        if name == _ORIGIN_HEADER:
            try:
                return Origin(*msgspec.json.decode(value, type=tuple[int, int, int]))
            except msgspec.DecodeError:
                return None
    return None


def forwarded(record: ConsumerRecord, user: bytes) -> Outgoing:
    """The record as it is to be written to the partition of ``user``."""
    origin = Origin(record.partition, record.offset, record.timestamp)
    headers = [pair for pair in record.headers if pair[0] != _ORIGIN_HEADER]
    return Outgoing(user, record.value, [*headers, (_ORIGIN_HEADER, msgspec.json.encode(origin))])
