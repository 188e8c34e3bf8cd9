"""**Epochs.** What orders the records of two owners of a partition: a number of our own that only rises.

Kafka's generation of a group cannot: it starts at 1 again once the group's offsets have expired, the group was deleted,
or the topics were restored into another cluster. So an owner reads the partition of the topic that it is going to write
to its end, takes the epoch after the highest one there, and claims it with a record on that partition before its first
write. Claims share one key, so that compaction keeps the newest.

The *incarnation* of the clicks log counts how often it was replaced by another one: made again, or restored elsewhere.
Offsets of different incarnations do not compare, so the incarnation orders records before their offsets.
"""

from typing import Final, NamedTuple

from headwater.kafka.headers import Claim, claim_header
from headwater.kafka.publish import Outgoing

# No id of a user or an item is this key: ids are UTF-8, in which no byte is 0xff.
CLAIM_KEY: Final = b"\xffclaim"
# Rebalances come by the minute at worst, so no epoch of ours is ever higher. A higher one is not ours.
MAX_EPOCH: Final = 2**30


class Order(NamedTuple):
    """The place of a record among those of its key; the greatest is the newest. An equal one that comes later is newer."""

    incarnation: int  # of the log that the offset is of
    offset: int  # the last applied offset of that log; -1: none
    epoch: int  # of the owner that wrote the record; -1: none


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
    return Outgoing(CLAIM_KEY, value, [claim_header(claim)])
