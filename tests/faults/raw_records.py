"""Record batches as any program may write them, byte by byte, and what holds them: a fuzzer's records and their topics."""

import gzip
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from aiokafka.codec import lz4_encode, snappy_encode, zstd_encode
from aiokafka.record.default_records import DefaultRecordBatch

from headwater.index import Point
from headwater.index.vectors_topic import claim_of_owner, offer_record_of, record_of
from headwater.kafka.epochs import CLAIM_KEY, MAX_EPOCH
from headwater.kafka.headers import CLAIM, CORRELATION_HEADERS, REPLY_TO_HEADERS, Claim
from headwater.messages import ACTIONS, MAX_AT_MS, OfferState, Trend, encode
from headwater.profiles.columns import Columns
from headwater.profiles.state_records import NEWEST_FORMAT, WriterStamp, pack
from tests.support.fetching import signed

_PACKED: Final[dict[int, Callable[[bytes], bytes]]] = {
    0: bytes,
    1: gzip.compress,
    2: snappy_encode,
    3: lz4_encode,
    4: zstd_encode,
}
_BOMB_BYTES: Final = 40_000_000
# Every header name that a worker reads, and some that it does not.
_NAMES: Final = (
    *CORRELATION_HEADERS,
    *REPLY_TO_HEADERS,
    "reply_partition",
    "kafka_replyPartition",
    "headwater-origin",
    "headwater-delete",
    "headwater-forgot-ms",
    "headwater-applied",
    "headwater-claim",
    "reason",
    "trace",
    "",
)
_ODD: Final[tuple[Any, ...]] = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**53,
    2**62,
    2**63,
    2**64,
    10**30,
    0.5,
    1e308,
    float("nan"),
    "",
    "x",
    "x" * 512,
    "x" * 513,
    "\ud800",
    "\x00",
    "😀" * 128,
    [],
    {},
    [None],
    [[[[[[]]]]]],
    {"a": {"b": {"c": 1}}},
)


@dataclass
class RawRecord:
    """One record before it is written. Names are bytes: they need not be UTF-8."""

    key: bytes | None = None
    value: bytes | None = None
    headers: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    delta_ms: int = 0


def batch_of(records: Sequence[RawRecord], at_ms: int, codec: int = 0) -> bytes:
    """A record batch with these records, packed by Kafka's codec of this number."""
    body = b"".join(_sized(_record(number, each)) for number, each in enumerate(records))
    latest_ms = max(at_ms + each.delta_ms for each in records)
    head = (
        codec.to_bytes(2, "big")
        + (len(records) - 1).to_bytes(4, "big")
        + at_ms.to_bytes(8, "big", signed=True)
        + latest_ms.to_bytes(8, "big", signed=True)
        + b"\xff" * 14  # no producer, no epoch, no sequence
        + len(records).to_bytes(4, "big")
    )
    rest = head + _PACKED[codec](body)
    raw = bytes(8) + (len(rest) + 9).to_bytes(4, "big") + b"\xff" * 4 + b"\x02" + bytes(4) + rest
    raw = signed(raw)
    assert DefaultRecordBatch(raw).validate_crc()
    return raw


def _record(number: int, record: RawRecord) -> bytes:
    parts = [
        b"\x00",
        _varint(record.delta_ms),
        _varint(number),
        _nullable(record.key),
        _nullable(record.value),
    ]
    parts.append(_varint(len(record.headers)))
    for name, value in record.headers:
        parts += (_nullable(name), _nullable(value))
    return b"".join(parts)


def _sized(record: bytes) -> bytes:
    return _varint(len(record)) + record


def _nullable(content: bytes | None) -> bytes:
    return _varint(-1) if content is None else _varint(len(content)) + content


def _varint(number: int) -> bytes:
    left, out = (number << 1) ^ (number >> 63), bytearray()
    while left > 0x7F:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    out.append(left)
    return bytes(out)


class Fuzz:
    """Makes records out of a seed: mostly messages as they should be with something odd about them."""

    def __init__(self, seed: int, items: Sequence[str], reply_topics: Sequence[str], longest_ms: int) -> None:
        self.random, self._seed, self._items = random.Random(seed), seed, items
        self._reply_topics, self._longest_ms = reply_topics, longest_ms
        self._count = 0

    def codec(self) -> int:
        return self.random.choice((0, 0, 0, 1, 2, 3, 4))

    def at_ms(self) -> int:
        """The timestamp of a batch."""
        now_ms = int(time.time() * 1000)
        return self.random.choice((now_ms,) * 12 + (-1, 0, 1, 2**53, 2**62, now_ms + 10**12, now_ms - 10**12))

    def bomb(self) -> tuple[RawRecord, int]:
        """A record that is small packed and large unpacked, and the codec that does so."""
        return RawRecord(b"bomb", bytes(_BOMB_BYTES)), self.random.choice((1, 3, 4))

    def click(self) -> RawRecord:
        user, action = self._user(), self.random.choice(list(ACTIONS))
        message = {
            "event_id": self._new("e"),
            "user_id": user,
            "item_id": self.random.choice(self._items),
            "action": action,
            "at_ms": int(time.time() * 1000),
        }
        return self._odd(message, user, keep=())

    def request(self) -> RawRecord:
        user = self._user()
        message: dict[str, Any] = {
            "request_id": self._new("r"),
            "user_id": user,
            "deadline_ms": self.random.choice((1, 200, 2_000, self._longest_ms)),
            "limit": self.random.choice((1, 20, 1_000)),
        }
        extras: dict[str, Any] = {
            "explain": True,
            "exclude_seen": False,
            "query": "coffee " * self.random.randrange(5),
            "diversity": 0.5,
            "session": [{"item_id": self.random.choice(self._items)}],
            "filter": self._filter(),
            "after": {"partition": self.random.randrange(5), "offset": self.random.choice((0, 5, 2**40))},
            "after_event_id": "e-never",
            "sources": {"popular": 1.0, "similar": 2.0},
            "exclude": self.random.sample(self._items, 2),
        }
        for name in self.random.sample(list(extras), self.random.randrange(4)):
            message[name] = extras[name]
        return self._odd(message, user, keep=("request_id",))

    def change(self) -> RawRecord:
        """A catalog record."""
        item = (
            self._new("i") if self.random.random() < 0.7 else f"i-{self._seed}-{self.random.randrange(1, 50)}"
        )
        if self.random.random() < 0.15:
            return self._odd(None, item, keep=())
        message = {
            "item_id": item,
            "title": "coffee beans " * self.random.choice((1, 1, 1, 1_000)),
            "tags": ["a"] * self.random.choice((0, 2, 2_000)),
            "price": 5,
            "attributes": {f"a{n}": n for n in range(self.random.choice((0, 3, 300)))},
            "version": self.random.randrange(9),
        }
        return self._odd(message, item, keep=())

    def offer(self) -> RawRecord:
        """A record of offers, of an item that is there or not."""
        item = f"i-{self._seed}-{self.random.randrange(1, 80)}"
        if self.random.random() < 0.15:
            return self._odd(None, item, keep=())
        message: dict[str, Any] = {
            "item_id": item,
            "price": self.random.choice((None, 0, 5, 1e300)),
            "available": self.random.random() < 0.5,
            "attributes": {f"a{n}": n for n in range(self.random.choice((0, 3, 300)))},
        }
        if self.random.random() < 0.5:
            message["at_ms"] = self.at_ms()
        return self._odd(message, item, keep=())

    def state(self) -> RawRecord:
        """As workers write it to the profiles topic, with some bytes changed, its format for instance."""
        columns = Columns(4, 2)
        row = columns.add(user := self._user().encode())
        columns.n[row], columns.at_ms[row], columns.offset[row] = 2, int(time.time() * 1000), self._number()
        epoch = self.random.choice((0, 1, 3, MAX_EPOCH))
        (value,) = pack(columns, np.array([row]), WriterStamp(1, epoch, self._seed))
        torn = bytearray(value)
        torn[0] = self.random.choice((1, 1, 1, NEWEST_FORMAT + 1, 31, 200))
        for _ in range(self.random.choice((0, 0, 1, 3))):
            torn[self.random.randrange(len(torn))] = self.random.randrange(256)
        claims = [
            CLAIM.header(Claim(epoch, applied=self._number(), topic_id=self.random.choice((None, "x"))))
        ]
        key = self.random.choice((user, user, user, user, CLAIM_KEY))
        return RawRecord(key, bytes(torn), [(name.encode(), raw) for name, raw in claims])

    def vector(self) -> RawRecord:
        """As owners of catalog partitions write it: of an item, of its offers, or a claim, with odd numbers in it."""
        item, epoch = (
            f"i-{self._seed}-{self.random.randrange(1, 50)}",
            self.random.choice((0, 1, 5, MAX_EPOCH)),
        )
        vector = self.random.choice(
            (None, np.full(self.random.choice((0, 1, 256)), self.random.choice((1, np.nan))))
        )
        version = self.random.choice((None, -1, 5, 2**63 - 1))
        payload = {"item_id": item, "price": self.random.choice((5.0, 1e308)), "tags": ["\x00"]}
        float32 = None if vector is None else vector.astype(np.float32)
        point = Point(0, item, float32, payload, version, 0, self._number())
        offers = OfferState(item, self._number(), price=5.0, price_ms=MAX_AT_MS)
        topic_id = self.random.choice((None, "x"))
        sent = self.random.choice(
            (
                record_of(point, self.random.choice(("", "other")), 0, epoch),
                offer_record_of(item, self.random.choice((None, offers)), 0, epoch),
                claim_of_owner(epoch, self._number(), "other", topic_id),
            )
        )
        value = self._torn(sent.value) if sent.value and self.random.random() < 0.2 else sent.value
        headers = [(name.encode(), raw) for name, raw in sent.headers]
        return RawRecord(sent.key, value, headers if self.random.random() < 0.8 else self._headers())

    def trend(self) -> RawRecord:
        """As owners of clicks partitions write it, with odd numbers in it."""
        counts = [(self.random.choice(self._items), self.random.choice((0.0, 5.0, -1.0, 1e300)))]
        half_life_s = self.random.choice((604_800.0, 0.0, 1e300))
        trend = Trend(
            0,
            int(time.time() * 1000),
            half_life_s,
            counts,
            epoch=self._number(),
            written_ms=self._number(),
            rising=self.random.choice(([], counts, counts * 1_000)),
        )
        return RawRecord(b"0", encode(trend))

    def _number(self) -> int:
        return self.random.choice((0, 3, 50, 2**40, 2**62))

    def anything(self) -> RawRecord:
        """Of no form, for topics that only workers write."""
        make = self.random.choice((self.click, self.request, self.change, self.offer, self._noise))
        return make()

    def _noise(self) -> RawRecord:
        key = self.random.choice((None, b"", b"0", self._user().encode(), self._bytes(600)))
        return RawRecord(key, self.random.choice((None, b"", self._bytes(3_000))), self._headers())

    def _new(self, kind: str) -> str:
        self._count += 1
        return f"{kind}-{self._seed}-{self._count}"

    def _user(self) -> str:
        return f"u-{self._seed}-{self.random.randrange(200)}"

    def _filter(self) -> Any:
        price = {"price": {"gte": self.random.choice((0, -1, 1e300, "x"))}}
        return self.random.choice(({"category": "garden"}, price, {"not": {"or": [price] * 3}}, {"or": []}))

    def _odd(self, message: dict[str, Any] | None, key: str, keep: Sequence[str]) -> RawRecord:
        """The message as a record, three times in four with something odd; the fields in ``keep`` are rarely touched."""
        pick, record = self.random.random, RawRecord(key.encode())
        if message is not None:
            for _ in range(self.random.choice((0, 0, 0, 1, 2))):
                name = self.random.choice([*message, "context", "unknown"])
                if name in keep and pick() < 0.9:
                    continue
                if pick() < 0.2:
                    message.pop(name, None)
                else:
                    message[name] = self.random.choice(_ODD)
            record.value = json.dumps(message).encode()
            if pick() < 0.05:
                record.value = self._torn(record.value)
            elif message and pick() < 0.02:  # about as deep as can be read, where that is not allowed
                depth, name = self.random.randrange(800, 1_000), self.random.choice(list(message))
                nested = b"[" * depth + b"]" * depth
                record.value = record.value[:-1] + b', "%s": %s}' % (name.encode(), nested)
            elif pick() < 0.02:
                record.value = self.random.choice(
                    (b"", b"{}", b"[", b"[" * 5_000, b'"x"', b"null", self._bytes(200))
                )
            elif pick() < 0.01:
                record.value = record.value[:-1] + b', "unknown": "' + b"x" * 900_000 + b'"}'
        if pick() < 0.1:
            record.key = self.random.choice((None, b"", b"other", b"\xff\xfe", b"k" * 600, b"k" * 300_000))
        if pick() < 0.35:
            record.headers = self._headers()
        if pick() < 0.05:
            record.delta_ms = self.random.choice((-1, 1, 10**6, -(10**6)))
        return record

    def _headers(self) -> list[tuple[bytes, bytes | None]]:
        headers: list[tuple[bytes, bytes | None]] = []
        for _ in range(self.random.choice((1, 1, 2, 3, 50))):
            name = self.random.choice(_NAMES).encode()
            if self.random.random() < 0.1:
                name = self.random.choice((b"\xff\xfe", b"n\x00", b"\xc3\x28", b"x" * 2_000, name + b"\xff"))
            headers.append((name, self._header_value()))
        return headers

    def _header_value(self) -> bytes | None:
        topic = self.random.choice((*self._reply_topics, "secrets", "a b", ""))
        numbers = [
            self.random.choice((-1, 0, 1, 5, 2**31, 2**40, 2**62, 2**63, 2**70, "x", None)) for _ in range(3)
        ]
        return self.random.choice(
            (
                None,
                b"",
                topic.encode(),
                topic.encode(),
                json.dumps(numbers).encode(),
                json.dumps(numbers).encode(),
                b'{"version": 1, "partition": 0, "offset": 5}',
                b"0",
                b"3",
                b"-1",
                b"99999999999",
                b"\xc2\xb2",
                b"\x00\x00\x00\x01",
                b"[" * 3_000,
                self._bytes(40),
                b"c" * 5_000,
                b"c" * self.random.choice((10, 400_000)),
            )
        )

    def _torn(self, value: bytes) -> bytes:
        torn = bytearray(value)
        for _ in range(self.random.randrange(1, 4)):
            torn[self.random.randrange(len(torn))] = self.random.randrange(256)
        return bytes(torn[: self.random.randrange(1, len(torn) + 1)] if self.random.random() < 0.3 else torn)

    def _bytes(self, most: int) -> bytes:
        return self.random.randbytes(self.random.randrange(most))
