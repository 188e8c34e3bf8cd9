"""Which log a topic's partition is: the topic's id and the epoch of the leader, as the broker knows them.

A topic that is deleted and re-created keeps its name, and may be longer than what was read of the former one. Only
its id tells the two apart. Brokers tell ids since Kafka 2.8 (Metadata v10), which aiokafka does not speak.
"""

import uuid
from collections.abc import Collection
from io import BytesIO
from typing import Any, Final, NamedTuple

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import TopicAuthorizationFailedError
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

_NO_ID: Final = uuid.UUID(int=0)


class Identity(NamedTuple):
    """What tells one log of a partition from another."""

    topic_id: str | None = None  # 32 hex digits; None: the broker gives topics no ids

    def is_another_than(self, topic_id: str | None) -> bool:
        """Whether this is surely not the log of the topic with that id. An unknown id says nothing."""
        return None not in (topic_id, self.topic_id) and topic_id != self.topic_id


async def identities(
    client: AIOKafkaClient | None, topics: Collection[str]
) -> dict[TopicPartition, Identity]:
    """The identity of each partition of ``topics``; a topic that is not there, or that the broker does not tell of, is left out.

    Nothing is known without a client.

    Raises:
        KafkaError: the broker is away.
    """
    if client is None:
        return {}
    node = client.get_random_node()
    try:
        response: Any = await client.send(node, _TopicsRequest(topics))
    except NotImplementedError:  # an older broker
        return {}
    found = {}
    for error, name, topic_id, _, partitions, *_ in response.topics:
        if error or name not in topics:
            continue
        told = None if topic_id == _NO_ID else topic_id.hex
        for _, number, *_ in partitions:
            found[TopicPartition(name, number)] = Identity(told)
    return found


class Allowed(NamedTuple):
    """What the broker lets this user do with a topic: a bit for each of Kafka's operations, by their codes."""

    operations: int | None  # None: the broker does not tell
    is_refused: bool = False  # not even to know of the topic


async def allowed_operations(client: AIOKafkaClient, topics: Collection[str]) -> dict[str, Allowed]:
    """What this user may do with each of ``topics`` that is there.

    Raises:
        KafkaError: the broker is away.
    """
    node = client.get_random_node()
    try:
        response: Any = await client.send(node, _TopicsRequest(topics, with_operations=True))
    except NotImplementedError:  # an older broker
        return {name: Allowed(None) for name in topics}
    found = {}
    for error, name, _, _, _, operations, *_ in response.topics:
        if error == TopicAuthorizationFailedError.errno:
            found[name] = Allowed(0, is_refused=True)
        elif error == 0:
            found[name] = Allowed(operations if operations > 0 else None)
    return found


class _Uuid:
    """An id of 16 bytes."""

    @classmethod
    def encode(cls, value: uuid.UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> uuid.UUID:
        return uuid.UUID(bytes=data.read(16))

    @classmethod
    def repr(cls, value: uuid.UUID) -> str:
        return str(value)


class _TopicsResponse(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _TopicsRequestV10(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 10
    RESPONSE_TYPE = _TopicsResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields)),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _TopicsRequest(Request[_TopicsRequestV10]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topics: Collection[str], *, with_operations: bool = False) -> None:
        self._topics, self._with_operations = sorted(topics), with_operations

    def build(self, request_struct_class: type[_TopicsRequestV10]) -> _TopicsRequestV10:
        named: list[Any] = [(_NO_ID, topic, {}) for topic in self._topics]
        return request_struct_class(named, False, False, self._with_operations, {})
