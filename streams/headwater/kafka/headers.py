"""Every record header of the wire: its name, how it is written, and a parser that no foreign byte makes raise.

| header | on | value |
|---|---|---|
| ``correlation_id``, ``kafka_correlationId``, ``Faust-Ag-CorrelationId`` | requests, responses | at most 4,096 bytes, echoed |
| ``reply_to``, ``kafka_replyTopic``, ``Faust-Ag-ReplyTo`` | requests | the name of a topic, UTF-8 |
| ``reply_partition`` | requests, echoed on responses | a partition of that topic as decimal text |
| ``kafka_replyPartition`` | requests, echoed on responses | the same as a big-endian int32, as Spring writes it |
| ``reply_to_failed`` | responses | the topic that did not take the answer and why, UTF-8 |
| ``headwater-origin`` | clicks, requests | JSON ``[partition, offset, timestamp_ms]`` |
| ``headwater-redriven`` | clicks, catalog, offers, echoed on dead letters | JSON ``[topic, partition, offset, tries]`` |
| ``headwater-delete`` | vectors, null value | JSON ``{"version", "partition", "offset"}`` |
| ``headwater-forgot-ms`` | profiles, null value | JSON ``[erased_ms, epoch]`` |
| ``headwater-applied`` | profiles, null value | JSON ``[incarnation, offset]`` |
| ``headwater-claim`` | profiles, vectors | JSON ``{"epoch", "incarnation", "applied", "topic_id", "cut"}`` |
| ``reason``, ``message``, ``topic``, ``partition``, ``offset``, ``last_offset`` | dead letters | UTF-8 |
| ``cut_from_bytes`` | dead letters | decimal text |
| ``key`` | dead letters | the key of the original, any bytes; absent for a null key |
| ``original.NAME`` | dead letters | the header ``NAME`` of the original, as it was |
| ``headers_left_out`` | dead letters | decimal text: how many headers of the original are left out, since they were large |
| ``redriven-to`` | dead letters, null value | JSON ``[partition, offset, redriven_ms]`` |

Kafka compares header names exactly, allows one name twice, and allows null values. Here the first of a name counts, and of
a record the first 128 headers.
Each parser returns the value, None where the header is absent, or a :class:`BadHeader` where it is invalid.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Final, Generic, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Struct

Headers = Sequence[tuple[str, bytes | None]]
Header = tuple[str, bytes]

# Ours first, then the names that Spring and Faust use.
CORRELATION_HEADERS: Final = ("correlation_id", "kafka_correlationId", "Faust-Ag-CorrelationId")
REPLY_TO_HEADERS: Final = ("reply_to", "kafka_replyTopic", "Faust-Ag-ReplyTo")
REPLY_PARTITION_HEADER: Final = "reply_partition"
SPRING_REPLY_PARTITION_HEADER: Final = "kafka_replyPartition"
REPLY_FAILED_HEADER: Final = "reply_to_failed"
LETTER_KEY_HEADER: Final = "key"
ORIGINAL_PREFIX: Final = "original."
HEADERS_LEFT_OUT: Final = "headers_left_out"

# What an answer repeats must leave room for the answer.
_MAX_ECHOED_BYTES: Final = 4_096
_MAX_QUOTED: Final = 60
# What we write has a third of it.
_MAX_JSON_BYTES: Final = 1_024
_MAX_MESSAGE_CHARS: Final = 1_000
MAX_LETTER_KEY_BYTES: Final = 1_024
# Names and values of all headers of an original together.
_MAX_ORIGINAL_BYTES: Final = 4_096
_MAX_ORIGINAL_HEADERS: Final = 100

# The ranges of Kafka's own fields: int32 partitions and generations, int64 offsets and timestamps.
_Partition = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_Offset = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_CutOffset = Annotated[int, Meta(ge=0, le=2**61)]
_Int32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
_Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]

T = TypeVar("T")


class BadHeader(NamedTuple):
    """A header that is there and cannot be used. ``reason`` is a sentence: the value seen and the value expected."""

    name: str
    reason: str


class Origin(NamedTuple):
    """Where a forwarded record was published first, and the timestamp it had there."""

    partition: _Partition
    offset: _Offset
    timestamp_ms: _Int64


class Redriven(NamedTuple):
    """The record that a dead letter was of, which was published again, and how often that was tried."""

    topic: Annotated[str, Meta(max_length=249)]  # as long as Kafka allows
    partition: _Partition
    offset: _Offset
    tries: Annotated[int, Meta(ge=1, le=2**31 - 1)]


class RedrivenTo(NamedTuple):
    """Where the record of a dead letter was published again, on the topic of the original."""

    partition: _Partition
    offset: _Offset
    redriven_ms: _Int64


class DeleteOrder(Struct, frozen=True, kw_only=True):
    """The order of a delete: the catalog record it came from, and the version that record carried."""

    version: _Int64 | None = None
    partition: _Partition
    offset: _Offset


class Erasure(NamedTuple):
    """The events of a user up to ``erased_ms`` are erased; the owner of ``epoch`` wrote so."""

    erased_ms: _Int64
    epoch: _Int32


class AppliedOffset(NamedTuple):
    """The last offset of the user's clicks that a tombstone rests on, and the incarnation of the log that has it."""

    incarnation: Annotated[int, Meta(ge=0, le=2**16 - 1)]
    offset: Annotated[int, Meta(ge=-1, le=2**63 - 1)]


class Claim(Struct, frozen=True, omit_defaults=True):
    """An owner's claim of a partition: its epoch, and what it knew of the clicks log then.

    ``applied`` is the watermark of the clicks partition, ``topic_id`` is the broker's, of the clicks topic; None where it
    does not tell. ``cut`` is of a catalog log, see `item_versions.Cut`.
    """

    epoch: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    incarnation: Annotated[int, Meta(ge=0, le=2**16 - 1)] = 0
    applied: Annotated[int, Meta(ge=-1, le=2**63 - 1)] = -1
    topic_id: str | None = None
    cut: tuple[_CutOffset, _CutOffset] | None = None


class ReplyTo(NamedTuple):
    """The topic that a request wants its answer on, and the name of the header that says so."""

    name: str
    topic: str


class ReplyPartition(NamedTuple):
    """The partition of the reply topic that a request wants its answer on, and the header to echo."""

    partition: int
    header: Header


class JsonHeader(Generic[T]):
    """A header whose value is JSON: `of` reads it, `header` writes it."""

    def __init__(self, name: str, kind: type[T], expected: str) -> None:
        self.name, self._expected = name, expected
        self._decoder = msgspec.json.Decoder(kind)
        # All that an owner writes has the same claim, for one.
        self._read = lru_cache(16)(self._decoded)

    def of(self, headers: Headers) -> T | BadHeader | None:
        """What the headers of a record say."""
        found = header(headers, self.name)
        if found is None:
            return None
        if found[1] is not None and len(found[1]) > _MAX_JSON_BYTES:
            return _bad(found, self._expected)
        return self._read(found[1])

    def header(self, value: T) -> Header:
        """The header that says it."""
        return self.name, msgspec.json.encode(value)

    def _decoded(self, value: bytes | None) -> T | BadHeader:
        try:
            if value is not None:
                return self._decoder.decode(value)
        # msgspec raises its own errors for JSON of another shape, ValueError for bytes that are not UTF-8, and
        # RecursionError for thousands of brackets.
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass
        return _bad((self.name, value), self._expected)


# Where a forwarded record came from.
ORIGIN: Final = JsonHeader("headwater-origin", Origin, "[partition, offset, timestamp in ms]")
# The dead letter that a record was redriven from.
REDRIVEN: Final = JsonHeader("headwater-redriven", Redriven, "[topic, partition, offset, tries]")
# Where the record of a dead letter is now.
REDRIVEN_TO: Final = JsonHeader("redriven-to", RedrivenTo, "[partition, offset, time in ms]")
# A delete has no value, so its place in the order of versions travels here.
DELETE: Final = JsonHeader(
    "headwater-delete", DeleteOrder, 'an object with "partition", "offset" and "version"'
)
# What a tombstone on the profiles topic erased, and the applied offset that it rests on.
ERASURE: Final = JsonHeader("headwater-forgot-ms", Erasure, "[time in ms, epoch of the owner]")
APPLIED: Final = JsonHeader("headwater-applied", AppliedOffset, "[incarnation of the log, offset]")
# What the owner of a partition claims.
CLAIM: Final = JsonHeader(
    "headwater-claim", Claim, 'an object with "epoch" and what is known of the clicks log'
)


def header(headers: Headers, *names: str) -> tuple[str, bytes | None] | None:
    """The first header whose name is one of ``names``."""
    return next((pair for pair in headers if pair[0] in names), None)


def correlation_of(headers: Headers) -> tuple[str, bytes | None] | BadHeader | None:
    """The header that an answer has to repeat; any value that is not too long is valid, a null too."""
    found = header(headers, *CORRELATION_HEADERS)
    if found is not None and found[1] is not None and len(found[1]) > _MAX_ECHOED_BYTES:
        return BadHeader(
            found[0], f"header {found[0]}: got {len(found[1])} bytes, expected at most {_MAX_ECHOED_BYTES}"
        )
    return found


def reply_to_of(headers: Headers) -> ReplyTo | BadHeader | None:
    """The topic that the answer is wanted on."""
    found = header(headers, *REPLY_TO_HEADERS)
    if found is None:
        return None
    name, value = found
    try:
        return ReplyTo(name, value.decode()) if value is not None else _bad(found, "the name of a topic")
    except UnicodeDecodeError:
        return _bad(found, "the name of a topic in UTF-8")


def reply_partition_of(headers: Headers) -> ReplyPartition | BadHeader | None:
    """The partition that the answer is wanted on; whether the topic has it is not known here."""
    found = header(headers, REPLY_PARTITION_HEADER, SPRING_REPLY_PARTITION_HEADER)
    if found is None:
        return None
    name, value = found
    if name == SPRING_REPLY_PARTITION_HEADER:
        number = int.from_bytes(value, "big", signed=True) if value is not None and len(value) == 4 else -1
        expected = "a partition as a big-endian int of four bytes"
    else:
        # Ten digits hold every int32.
        number = int(value) if value is not None and value.isdigit() and len(value) <= 10 else -1
        expected = "a partition as decimal text, such as 3"
    if value is None or not 0 <= number < 2**31:
        return _bad(found, expected)
    return ReplyPartition(number, (name, value))


def reply_partition_header(partition: int) -> Header:
    """The header of a request whose answer is wanted on ``partition``."""
    return REPLY_PARTITION_HEADER, str(partition).encode()


def reply_failed_header(topic: str, why: str) -> Header:
    """The header of an answer that its sender wanted on another topic."""
    return REPLY_FAILED_HEADER, f"{topic}: {why}".encode(errors="backslashreplace")


def dead_letter_headers(
    reason: str,
    message: str,
    topic: str,
    partition: int,
    offset: int,
    key: bytes | None,
    last_offset: int | None = None,
    cut_from_bytes: int | None = None,
    original: Headers = (),
) -> list[tuple[str, bytes | None]]:
    """The headers of a dead letter: why, where the original lies, its key and its headers.

    ``last_offset`` is that of the last original, where one letter stands for several. ``cut_from_bytes`` is the size of
    a value that was cut. A message is cut after 1,000 characters, a key after 1,024 bytes: ids have at most 512. The
    ``original`` headers are left out where they have more than 4,096 bytes, or are more than 100; the count of tries is always
    kept. Headers of ours come first, since a reader takes the first 128 (`fast_client/records.py`).
    """
    headers: list[tuple[str, bytes | None]] = [
        ("reason", reason.encode()),
        ("message", message[:_MAX_MESSAGE_CHARS].encode(errors="backslashreplace")),
        ("topic", topic.encode()),
        ("partition", str(partition).encode()),
        ("offset", str(offset).encode()),
    ]
    if key is not None:
        headers.append((LETTER_KEY_HEADER, key[:MAX_LETTER_KEY_BYTES]))
    if isinstance(redriven := REDRIVEN.of(original), Redriven):
        headers.append(REDRIVEN.header(redriven))
    size = sum(len(name.encode()) + len(value or b"") for name, value in original)
    fits = size <= _MAX_ORIGINAL_BYTES and len(original) <= _MAX_ORIGINAL_HEADERS
    left_out = None if fits else len(original)
    for name, number in (
        ("last_offset", last_offset),
        ("cut_from_bytes", cut_from_bytes),
        (HEADERS_LEFT_OUT, left_out),
    ):
        if number is not None:
            headers.append((name, str(number).encode()))
    if fits:
        headers += [(f"{ORIGINAL_PREFIX}{name}", value) for name, value in original]
    return headers


def _bad(found: tuple[str, bytes | None], expected: str) -> BadHeader:
    name, value = found
    seen = (
        "null" if value is None else repr(value[:_MAX_QUOTED]) + ("..." if len(value) > _MAX_QUOTED else "")
    )
    return BadHeader(name, f"header {name}: got {seen}, expected {expected}")
