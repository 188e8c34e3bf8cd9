"""**Epochs.** What orders the records of two owners of a partition: a number of our own that only rises.

Kafka's generation of a group cannot: it starts at 1 again once the group's offsets have expired, the group was deleted,
or the topics were restored into another cluster. So an owner reads the partition of the topic that it is going to write
to its end, takes the epoch after the highest one there, and claims it with a record on that partition before its first
write. Claims share one key, so that compaction keeps the newest.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from aiokafka import ConsumerRecord

from headwater.errors import StopWorker
from headwater.kafka.headers import CLAIM, Claim
from headwater.kafka.publish import Outgoing
from headwater.kafka.skipped import SkippedRecords

# Whether the broker says that the partitions are still ours; see `ConsumerGroup.is_member`.
IsMember = Callable[[], Awaitable[bool]]

# No id of a user or an item is this key: ids are UTF-8, in which no byte is 0xff.
CLAIM_KEY: Final = b"\xffclaim"
# Rebalances come by the minute at worst, so no epoch of ours is ever higher. A higher one is not ours.
MAX_EPOCH: Final = 2**30
# A rebalance takes the partition away within that time, or is over.
_REBALANCE_S: Final = 10.0
_ASKED_AGAIN_S: Final = 0.25


def next_epoch(highest: int, generation: int) -> int:
    """The epoch of a new owner, which has seen none above ``highest``.

    It is at least the group's generation, by which versions of Headwater without epochs order their records: while the
    group lives, both count alike.

    >>> next_epoch(4, 9), next_epoch(40, 1), next_epoch(-1, 1)
    (9, 41, 1)
    """
    return min(max(highest + 1, generation), MAX_EPOCH)


def claim_record(claim: Claim, value: bytes) -> Outgoing:
    """The record that claims a partition. ``value`` is not empty or null, so that compaction keeps it for good."""
    return Outgoing(CLAIM_KEY, value, [CLAIM.header(claim)])


async def pass_over_higher(
    record: ConsumerRecord,
    epoch: int,
    ours: int,
    require: Callable[[], None],
    is_member: IsMember,
    skipped: SkippedRecords,
) -> None:
    """Tell of a record of a higher epoch than ours, where the partition is ours: no owner wrote it.

    In a rebalance the broker says of nobody that a partition is theirs. So it is asked for some seconds, in which
    ``require`` tells when the partition has been taken away.

    Raises:
        PartitionLost: from ``require``.
        StopWorker: the broker does not say that it is ours, so there is a later owner.
    """
    found = f"offset {record.offset} was written in epoch {epoch}, expected at most ours, {ours}"
    deadline_s = time.monotonic() + _REBALANCE_S
    while not await is_member():
        require()
        if time.monotonic() >= deadline_s:
            raise StopWorker(
                f"{record.topic}-{record.partition}: {found}: another worker owns this partition. This one must be started "
                "again"
            )
        await asyncio.sleep(_ASKED_AGAIN_S)
    require()
    skipped.add(record, "foreign_epoch", f"{found}, and the partition is ours: no worker wrote it")
