"""The AsyncAPI 3 document of the topics, made from the messages and the table of topics. Pure.

The document describes the workers: they *receive* clicks, catalog entries and requests, and *send* the rest. A program that
publishes clicks does the opposite of what `operations` say.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from headwater import __version__
from headwater.kafka.headers import CORRELATION_HEADERS, REPLY_PARTITION_HEADER, REPLY_TO_HEADERS
from headwater.kafka.topics import Topics, specs
from headwater.messages import (
    MESSAGES,
    Click,
    ErasureReceipt,
    Item,
    ItemVector,
    Offer,
    OfferState,
    Request,
    Response,
    Trend,
)
from headwater.settings import LOCAL_BROKER, Settings

Document = dict[str, Any]

_KAFKA: Final = "0.5.0"  # of the bindings
_SCHEMAS: Final = "#/components/schemas/"
_MESSAGES: Final = "#/components/messages/"
_AT_MS: Final = 1_764_547_200_000
_TEXT: Final[Document] = {"type": "string"}
_NOTHING: Final[Document] = {"type": "null"}
_USER_KEY: Final[Document] = {
    "type": "string",
    "description": "the user id. Without a key the record is routed by `user_id`; the partitioner is murmur2",
}
_ITEM_KEY: Final[Document] = {"type": "string", "description": "the item id"}
_OFFERS_KEY: Final[Document] = {
    "type": "string",
    "format": "binary",
    "description": "the byte 0xff, `offers:` and the item id",
}
_CORRELATION: Final = {name: {"type": "string", "maxLength": 4096} for name in CORRELATION_HEADERS}
_REPLY_TO: Final = {
    name: {"type": "string", "description": "the topic of the answer, one of HEADWATER_REPLY_TOPICS"}
    for name in REPLY_TO_HEADERS
} | {
    REPLY_PARTITION_HEADER: {"type": "string", "description": "the partition of the answer, as decimal text"}
}
_LETTER: Final[Document] = {
    "reason": {"type": "string", "description": "a short code for counting"},
    "message": {"type": "string", "description": "one sentence: field, value seen, what is expected"},
    **dict.fromkeys(("topic", "partition", "offset"), _TEXT),
    "key": {"type": "string", "description": "of the original"},
    "last_offset": {
        "type": "string",
        "description": "where nobody could read the records from `offset` to there",
    },
    "cut_from_bytes": {"type": "string", "description": "the size of an original of more than 2 MB"},
    "headwater-redriven": {"type": "string", "description": "the letter failed again after a redrive"},
    "redriven-to": {"type": "string", "description": "where the record went; then there is no value"},
}


class _Message(NamedTuple):
    """One message of a topic. ``payload`` is a struct on the wire as JSON, or a schema of what is none."""

    name: str
    summary: str
    payload: type[msgspec.Struct] | Document
    key: Document
    example: Document | None = None
    headers: Mapping[str, Document] = {}
    content_type: str = "application/json"
    gateway: str = ""  # the route by which the gateway publishes it


class _Topic(NamedTuple):
    """A topic: what the workers do with it, and its messages."""

    action: str  # receive, send, or own: both sent and received by the workers alone
    summary: str
    messages: Sequence[_Message]


_BYTES: Final[Document] = {"type": "string", "format": "binary"}
_OF_TOPIC: Final[Mapping[str, _Topic]] = {
    "clicks": _Topic(
        "receive",
        "What users do. A click is part of the next answer.",
        [
            _Message(
                "Click",
                "One event of a user.",
                Click,
                _USER_KEY,
                {
                    "event_id": "e-1",
                    "user_id": "ann",
                    "at_ms": _AT_MS,
                    "item_id": "c1",
                    "action": "purchase",
                },
                gateway="/clicks",
            )
        ],
    ),
    "catalog": _Topic(
        "receive",
        "The items that can be recommended.",
        [
            _Message(
                "Item",
                "An item, new or changed; it replaces what was there.",
                Item,
                _ITEM_KEY,
                {"item_id": "c1", "title": "Ground filter coffee", "category": "coffee", "price": 5.9},
                gateway="/items",
            ),
            _Message("ItemDeleted", "A null value takes the item out.", _NOTHING, _ITEM_KEY),
        ],
    ),
    "offers": _Topic(
        "receive",
        "What changes often of items: price, availability, attributes. No text, and nothing else is wiped.",
        [
            _Message(
                "Offer",
                "What is stated changes, everything else stays; the newest by time decides each field.",
                Offer,
                _ITEM_KEY,
                {"item_id": "c1", "price": 4.5, "available": True, "at_ms": _AT_MS},
                gateway="/offers",
            ),
            _Message(
                "OffersWithdrawn", "A null value takes back the item's offers so far.", _NOTHING, _ITEM_KEY
            ),
        ],
    ),
    "requests": _Topic(
        "receive",
        "Questions: which items for this user, reflecting at least that click.",
        [
            _Message(
                "Request",
                "A recall request.",
                Request,
                _USER_KEY,
                {
                    "request_id": "r-1",
                    "user_id": "ann",
                    "limit": 5,
                    "after": {"partition": 3, "offset": 1042},
                    "explain": True,
                },
                {**_CORRELATION, **_REPLY_TO},
                gateway="/recall",
            )
        ],
    ),
    "responses": _Topic(
        "send",
        "Answers, each with the proof of what it reflects.",
        [
            _Message(
                "Response",
                "The answer to one request.",
                Response,
                _USER_KEY,
                {
                    "request_id": "r-1",
                    "user_id": "ann",
                    "status": "ok",
                    "items": [{"item_id": "t1", "score": 0.0164, "source": "interests"}],
                    "reflects": {"partition": 3, "offset": 1042, "events": 2, "last_event_id": "e-1"},
                },
                _CORRELATION,
            )
        ],
    ),
    "interests": _Topic(
        "send",
        "Reserved for the interests of users, for other consumers. Nothing is written to it yet.",
        [],
    ),
    "erasures": _Topic(
        "send",
        "Receipts of `forget`.",
        [
            _Message(
                "ErasureReceipt",
                "How far a `forget` has come.",
                ErasureReceipt,
                {"type": "string", "description": "hash of user and event"},
            )
        ],
    ),
    "dead_letters": _Topic(
        "send",
        "What could not be used, with the reason.",
        [
            _Message(
                "DeadLetter",
                "The original bytes, cut at 2 MB; none once the letter is redriven.",
                {"anyOf": [_BYTES, _NOTHING]},
                {"type": "string", "description": "topic/partition/offset"},
                headers=_LETTER,
                content_type="application/octet-stream",
            )
        ],
    ),
    "profiles": _Topic(
        "own",
        "The changelog of users' states. Workers alone read and write it.",
        [
            _Message(
                "Profile",
                "A user's log, state and counters, in a binary format; null erases the user.",
                {"anyOf": [_BYTES, _NOTHING]},
                _USER_KEY,
                content_type="application/octet-stream",
            )
        ],
    ),
    "vectors": _Topic(
        "own",
        "Encoded items. Catalog workers write them, interests workers read them.",
        [
            _Message("ItemVector", "The vector of an item.", ItemVector, _ITEM_KEY),
            _Message("ItemVectorDeleted", "A null value: the item is gone.", _NOTHING, _ITEM_KEY),
            _Message("OfferState", "What the offers of an item have come to.", OfferState, _OFFERS_KEY),
        ],
    ),
    "trends": _Topic(
        "own",
        "What is popular, by clicks partition.",
        [
            _Message(
                "Trend",
                "Decayed counts of one clicks partition.",
                Trend,
                {"type": "string", "description": "the partition, as decimal text"},
            )
        ],
    ),
}


def document(settings: Settings, *, tells_address: bool = True, has_gateway: bool = False) -> Document:
    """AsyncAPI 3.0 of the topics as these settings name and make them. Schemas are of JSON Schema draft 7.

    Args:
        tells_address: with the brokers' addresses. A document that anybody may read is better without them.
        has_gateway: messages that the gateway publishes name its route, as ``x-gateway``.
    """
    names, by_name = Topics.named(settings.topic_prefix), {spec.name: spec for spec in specs(settings)}
    channels: Document = {}
    operations: Document = {}
    for topic, told in _OF_TOPIC.items():
        spec = by_name[getattr(names, topic)]
        channels[topic] = {
            "address": spec.name,
            "summary": told.summary,
            "servers": [{"$ref": "#/servers/kafka"}],
            "messages": {each.name: {"$ref": _MESSAGES + each.name} for each in told.messages},
            "bindings": {
                "kafka": {
                    "topic": spec.name,
                    "partitions": spec.partitions,
                    "replicas": settings.replication_factor,
                    "topicConfiguration": _configuration(spec.config),
                    "bindingVersion": _KAFKA,
                }
            },
        }
        if told.messages:
            operations.update(_operations(topic, told, settings))
    operations["receiveRequests"]["reply"] = {
        "address": {
            "location": "$message.header#/reply_to",
            "description": "default: the channel's own address",
        },
        "channel": {"$ref": "#/channels/responses"},
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Headwater",
            "version": __version__,
            "description": "Streaming real-time recall. The operations are those of the workers: publish to what they "
            "receive, read what they send, and leave alone what is marked `workers`.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"kafka": _server(settings, tells_address=tells_address)},
        "channels": channels,
        "operations": operations,
        "components": {
            "schemas": _schemas(),
            "messages": {
                each.name: _message(each, has_gateway=has_gateway)
                for told in _OF_TOPIC.values()
                for each in told.messages
            },
            "securitySchemes": {
                "plain": {"type": "plain"},
                "scramSha256": {"type": "scramSha256"},
                "scramSha512": {"type": "scramSha512"},
            },
        },
    }


def _server(settings: Settings, *, tells_address: bool) -> Document:
    protocol = settings.kafka_security_protocol
    scheme = {"PLAIN": "plain", "SCRAM-SHA-256": "scramSha256", "SCRAM-SHA-512": "scramSha512"}
    secured = {
        "security": [{"$ref": f"#/components/securitySchemes/{scheme[settings.kafka_sasl_mechanism]}"}]
    }
    unknown = {"brokers": {"description": "HEADWATER_KAFKA_BOOTSTRAP_SERVERS", "default": LOCAL_BROKER}}
    return {
        "host": settings.bootstrap_servers if tells_address else "{brokers}",
        **({} if tells_address else {"variables": unknown}),
        "protocol": "kafka-secure" if protocol.endswith("SSL") else "kafka",
        "description": f"security.protocol={protocol}",
        **(secured if protocol.startswith("SASL") else {}),
    }


def _operations(topic: str, told: _Topic, settings: Settings) -> Document:
    group = settings.catalog_group if topic in ("catalog", "offers") else settings.interests_group
    found: Document = {}
    for action in ("send", "receive") if told.action == "own" else (told.action,):
        name = f"{action}{''.join(part.capitalize() for part in topic.split('_'))}"
        found[name] = {
            "action": action,
            "summary": told.summary,
            "channel": {"$ref": f"#/channels/{topic}"},
            "messages": [{"$ref": f"#/channels/{topic}/messages/{each.name}"} for each in told.messages],
            **({"tags": [{"name": "workers"}]} if told.action == "own" else {}),
        }
        if told.action == "receive":
            binding = {"groupId": {"type": "string", "enum": [group]}, "bindingVersion": _KAFKA}
            found[name]["bindings"] = {"kafka": binding}
    return found


def _message(told: _Message, *, has_gateway: bool) -> Document:
    is_struct = isinstance(told.payload, type)
    message: Document = {
        "name": told.name,
        "title": told.name,
        "summary": told.summary,
        "contentType": told.content_type,
        "payload": {"$ref": f"{_SCHEMAS}{told.name}"} if is_struct else told.payload,
        "bindings": {"kafka": {"key": told.key, "bindingVersion": _KAFKA}},
    }
    if told.headers:
        message["headers"] = {"type": "object", "properties": dict(told.headers)}
    if told.payload in (Request, Response):
        message["correlationId"] = {"location": "$message.payload#/request_id"}
    if told.gateway and has_gateway:
        message["x-gateway"] = told.gateway
    if told.example is not None:
        message["examples"] = [{"name": told.name, "payload": told.example}]
    return message


def _schemas() -> Document:
    (_, components) = msgspec.json.schema_components(MESSAGES.values(), ref_template=_SCHEMAS + "{name}")
    return {name: as_draft_7(schema) for name, schema in components.items()}


def as_draft_7(schema: Any) -> Any:
    """A schema of draft 2020-12, as msgspec writes it, in the words of draft 7, which AsyncAPI takes.

    >>> as_draft_7({"type": "array", "prefixItems": [{"type": "string"}], "items": False})
    {'type': 'array', 'items': [{'type': 'string'}], 'additionalItems': False}
    """
    if isinstance(schema, list):
        return [as_draft_7(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {name: as_draft_7(each) for name, each in schema.items()}
    if isinstance(text := found.get("description"), str):
        found["description"] = " ".join(text.replace("``", "`").split())
    if "prefixItems" in found:
        rest = {"additionalItems": found.pop("items")} if "items" in found else {}
        found = {("items" if name == "prefixItems" else name): each for name, each in found.items()} | rest
    return found


def _configuration(config: Mapping[str, str]) -> Document:
    """A topic's settings with the types that the Kafka binding wants."""
    return {name: _typed(name, value) for name, value in config.items()}


def _typed(name: str, value: str) -> str | int | Iterable[str]:
    if name == "cleanup.policy":
        return value.split(",")
    return int(value) if value.removeprefix("-").isdecimal() else value
