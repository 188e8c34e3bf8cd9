"""What each role needs to be allowed by the broker, and what this user is not: Kafka's ACLs, as the broker applies them.

The broker is asked what the user may do, not for its ACLs, which few may read. Nothing is written to find out.
"""

import asyncio
from collections.abc import Mapping
from enum import IntEnum
from typing import Final, Literal, NamedTuple, get_args

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import GroupAuthorizationFailedError, IncompatibleBrokerVersion, for_code

from headwater.kafka.membership import COORDINATOR_MOVES
from headwater.kafka.topic_identity import Allowed, allowed_operations
from headwater.kafka.topics import Topics, specs
from headwater.settings import Settings


class Operation(IntEnum):
    """Kafka's operations on topics and groups, with the codes of its protocol."""

    READ = 3
    WRITE = 4
    DESCRIBE = 8
    DESCRIBE_CONFIGS = 10

    def __str__(self) -> str:
        return self.name.title().replace("_", "")


_RETRY_S: Final = 0.2
_READ, _WRITE = Operation.READ, Operation.WRITE
# Each worker compares all topics with what they have to be when it starts.
_LOOKED_AT: Final = (Operation.DESCRIBE, Operation.DESCRIBE_CONFIGS)

Role = Literal["interests", "catalog", "operator", "client"]
ROLES: Final = get_args(Role)
# By topic, as a field of `Topics`. A stray is written to the topic it came from, hence Write on clicks and requests.
_NEEDS: Final[Mapping[Role, Mapping[str, tuple[Operation, ...]]]] = {
    "interests": {
        "clicks": (_READ, _WRITE),
        "requests": (_READ, _WRITE),
        "profiles": (_READ, _WRITE),
        "responses": (_WRITE,),
        "vectors": (_READ,),
        "trends": (_READ, _WRITE),
        "dead_letters": (_READ, _WRITE),
        "erasures": (_READ, _WRITE),
    },
    # The bundle of the interests workers is on the trends, and so is what a worker tells the broker's time by.
    "catalog": {
        "catalog": (_READ,),
        "offers": (_READ,),
        "vectors": (_READ, _WRITE),
        "trends": (_READ, _WRITE),
        "dead_letters": (_WRITE,),
    },
    "operator": {
        "dead_letters": (_READ, _WRITE),
        "clicks": (_WRITE,),
        "catalog": (_READ, _WRITE),
        "offers": (_READ, _WRITE),
    },
    "client": {
        "clicks": (_WRITE,),
        "requests": (_WRITE,),
        "responses": (_READ,),
        "catalog": (_WRITE,),
        "offers": (_WRITE,),
    },
}


class Lack(NamedTuple):
    """Operations on a topic or group that a role needs and this user may not do."""

    kind: Literal["topic", "group"]
    name: str
    operations: tuple[Operation, ...]

    def __str__(self) -> str:
        return f"{' and '.join(map(str, self.operations))} on the {self.kind} {self.name}"


def needs(settings: Settings, role: Role) -> dict[str, tuple[Operation, ...]]:
    """The operations that a role needs, by topic. The reply topics that are set count as topics of ours."""
    names = Topics.named(settings.topic_prefix)
    wanted = {getattr(names, field): operations for field, operations in _NEEDS[role].items()}
    if role == "interests":
        wanted |= dict.fromkeys(settings.reply_topics, (_WRITE,))
        if settings.probe_s is not None:  # its answers are read back
            wanted[names.responses] = (_READ, _WRITE)
    if role in ("interests", "catalog"):
        for spec in specs(settings):
            wanted[spec.name] = (*wanted.get(spec.name, ()), *_LOOKED_AT)
    return wanted


async def lacks(settings: Settings, admin: AIOKafkaAdminClient, role: Role) -> list[Lack] | None:
    """What this user may not do, that ``role`` needs; None where the broker does not tell. Topics that are missing are left out.

    Without a limit it waits for the group's coordinator.

    Raises:
        KafkaError: the broker is away.
    """
    client: AIOKafkaClient = admin._client
    wanted = needs(settings, role)
    allowed = await allowed_operations(client, wanted)
    if all(each.operations is None for each in allowed.values()):
        return None
    found = [
        Lack("topic", name, missing)
        for name, operations in wanted.items()
        if (missing := _missing(allowed.get(name, Allowed(None)), operations))
    ]
    group = {
        "interests": settings.interests_group,
        "catalog": settings.catalog_group,
        "operator": settings.redrive_group,
    }.get(role)
    if group is not None and not await _may_join(admin, group):
        found.append(Lack("group", group, (_READ,)))
    return found


def _missing(allowed: Allowed, operations: tuple[Operation, ...]) -> tuple[Operation, ...]:
    bits = allowed.operations
    return () if bits is None else tuple(each for each in operations if not bits >> each & 1)


async def _may_join(admin: AIOKafkaAdminClient, group: str) -> bool:
    """Whether this user may read in the group. True where the broker does not tell."""
    while True:
        try:
            responses = await admin.describe_consumer_groups([group], include_authorized_operations=True)
        except GroupAuthorizationFailedError:
            return False
        except COORDINATOR_MOVES:
            await asyncio.sleep(_RETRY_S)
        except IncompatibleBrokerVersion:
            return True
        else:
            break
    for found in (each for response in responses for each in response.to_object()["groups"]):
        if for_code(found["error_code"]) is GroupAuthorizationFailedError:
            return False
        operations = found.get("authorized_operations", -1)
        if operations > 0:  # else the broker does not tell
            return bool(operations >> _READ & 1)
    return True
