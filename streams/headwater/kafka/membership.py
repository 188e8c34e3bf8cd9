"""The members of a consumer group as the broker describes them, and what is wrong with them.

A consumer that joins our group without being a worker takes partitions away from the workers. Nobody works on them
then, although each worker keeps up with its own.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    NotCoordinatorForGroupError,
    for_code,
)

STABLE = "Stable"
# Raised for a moment after the broker has made the topic of the groups' offsets, or has moved a part of it.
COORDINATOR_MOVES: Final = (
    GroupCoordinatorNotAvailableError,
    NotCoordinatorForGroupError,
    GroupLoadInProgressError,
)


class Member(NamedTuple):
    """One consumer of a group."""

    member_id: str  # given by the broker
    client_id: str
    host: str
    partitions: frozenset[TopicPartition]  # empty during a rebalance


class Group(NamedTuple):
    """A consumer group at one moment."""

    name: str
    state: str  # Kafka's word: Stable, PreparingRebalance, CompletingRebalance, Empty, Dead
    members: tuple[Member, ...]

    def foreign(self) -> list[Member]:
        """Members that are no Headwater workers, told by their client ids: see `embedded_broker.client_id`."""
        ours = re.compile(rf"{re.escape(self.name)}-\d+")
        return [member for member in self.members if not ours.fullmatch(member.client_id)]


async def describe(admin: AIOKafkaAdminClient, name: str) -> Group | None:
    """A group as the broker sees it now; None if it does not know the group, or does not describe it.

    Raises KafkaError.
    """
    for response in await admin.describe_consumer_groups([name]):
        for found in response.to_object()["groups"]:
            if found["group"] != name:
                continue
            if found["error_code"]:
                raise for_code(found["error_code"])(name)
            members = [
                Member(
                    each["member_id"],
                    each["client_id"],
                    each["client_host"].lstrip("/"),
                    _assigned(each["member_assignment"]),
                )
                for each in found["members"]
            ]
            return Group(name, found["state"], tuple(members))
    return None


def complaints(group: Group, partitions: Mapping[str, int]) -> list[str]:
    """Sentences about partitions that no worker of a stable group holds. None during a rebalance.

    Args:
        group: as `describe` returns it.
        partitions: how many partitions each topic has that the group reads.
    """
    if group.state != STABLE:
        return []
    wanted = {TopicPartition(topic, number) for topic, count in partitions.items() for number in range(count)}
    found = [
        f"the consumer {member.client_id!r} at {member.host} is no Headwater worker and holds {_listed(taken)}, whose "
        f"records nobody works on: stop it, or give it a group of its own instead of {group.name}"
        for member in group.foreign()
        if (taken := member.partitions & wanted)
    ]
    held = frozenset[TopicPartition]().union(*(member.partitions for member in group.members))
    if group.members and (left := wanted - held):
        found.append(
            f"no member of {group.name} holds {_listed(left)}, so their records wait: restart its workers, all with "
            "the same version and settings"
        )
    return found


def _assigned(raw: bytes) -> frozenset[TopicPartition]:
    if not raw:
        return frozenset()
    assignment = ConsumerProtocolMemberAssignment.decode(raw).assignment
    return frozenset(TopicPartition(topic, number) for topic, numbers in assignment for number in numbers)


def _listed(partitions: Collection[TopicPartition]) -> str:
    by_topic: defaultdict[str, list[int]] = defaultdict(list)
    for topic, number in sorted(partitions):
        by_topic[topic].append(number)
    return " and ".join(f"{topic} {_ranges(numbers)}" for topic, numbers in by_topic.items())


def _ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers as text: 0-2, 5."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in ranges)
