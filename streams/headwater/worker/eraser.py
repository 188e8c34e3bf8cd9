"""Completes an erasure: removes the user's dead letters, and publishes a receipt that says when nothing is left.

A `forget` takes the user's state from the worker and the changelog at once. Before it is committed, a receipt is begun,
so that a worker which dies leaves it to the next owner of the partition. Receipts name a user by a hash of the id.

A compacted topic still holds what was erased, behind the tombstone, until its log is compacted. That takes at most a
day, if something is written after that day: Kafka closes the segment at the end of a log only then. So this is done here.
"""

import asyncio
import contextlib
import hashlib
import re
import time
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Final, NamedTuple

import msgspec
import structlog
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from headwater.errors import StopWorker
from headwater.kafka import topics
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.headers import LETTER_KEY_HEADER, ORIGINAL_PREFIX, header
from headwater.kafka.publish import Outgoing, write_all
from headwater.kafka.read_to_end import read_to_end
from headwater.kafka.topics import Topics
from headwater.messages import Click, ErasureReceipt, encode
from headwater.metrics import Metrics
from headwater.settings import Settings

log = structlog.get_logger(__name__)

# Records of the user that were published before the forget, and are on their way to the dead letters.
SETTLE_S: Final = 10.0
# Dead letters are read from their beginning: for at most a tenth of the time.
_REST: Final = 9.0
_RETRY_S: Final = 60.0
# How long a broker may take beyond a bound: to look whether a log is to be compacted or a segment deleted, and to do so.
_BROKER_MS: Final = 3_600_000
# A tombstone of no letter, so that the segment before it is closed.
_CLOSING_KEY: Final = b"closed"
_ERASED: Final = [("reason", b"erased")]
_QUOTED: Final = re.compile(rb'"(?:[^"\\]|\\.){1,1100}"')


class _WithUser(msgspec.Struct):
    user_id: str


_WITH_USER: Final = msgspec.json.Decoder(_WithUser)
_TEXT: Final = msgspec.json.Decoder(str)
_RECEIPT: Final = msgspec.json.Decoder(ErasureReceipt)


class _Closing(NamedTuple):
    due_ms: int
    partition: int


class Eraser:
    """Brings the forgets of this worker's partitions to their end. ``run`` does so in the background.

    Nothing here ends the worker: what the broker refuses is tried again, and `erasures_open` shows it.
    """

    def __init__(
        self,
        settings: Settings,
        producer: Producer,
        metrics: Metrics,
        close_segment: Callable[[int], Awaitable[None]],
    ) -> None:
        self._settings, self._producer, self._metrics = settings, producer, metrics
        self._topics = Topics.named(settings.topic_prefix)
        # Of these the keys are items, whose ids may be those of users.
        self._of_items = frozenset({self._topics.catalog.encode(), self._topics.offers.encode()})
        self._close_segment = close_segment
        self._open: dict[bytes, ErasureReceipt] = {}  # by the key of the receipt
        self._closings: set[_Closing] = set()
        self._unread: set[int] = set()  # partitions whose receipts are still to be read
        self._owned: frozenset[int] = frozenset()
        self._wake = asyncio.Event()

    def assign(self, partitions: Iterable[int]) -> None:
        """These are the clicks partitions of this worker from now on."""
        self._owned = frozenset(partitions)
        self._unread = set(self._owned)
        # What is open of others their owners bring to its end.
        self._open = {key: receipt for key, receipt in self._open.items() if receipt.partition in self._owned}
        self._metrics.erasures_open.set(len(self._open))
        self._wake.set()

    async def begin(self, partition: int, forgets: Sequence[Click]) -> None:
        """Begin the receipts of forgets whose tombstones the changelog has. Repeating it does no harm."""
        now_ms = _now_ms()
        begun = [
            ErasureReceipt(
                event_id=forget.event_id,
                user_sha256=hashed(forget.user_id),
                status="begun",
                partition=partition,
                forgot_ms=forget.at_ms,
                begun_ms=now_ms,
            )
            for forget in forgets
        ]
        self._open.update((_key(receipt), receipt) for receipt in begun)
        self._metrics.erasures_open.set(len(self._open))
        await self._write(begun)
        self._wake.set()

    async def run(self) -> None:
        """Bring what is open to its end, forever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._until_due_s()):
                    await self._wake.wait()
            self._wake.clear()
            try:
                if self._unread:
                    await self._read_receipts()
                await self._close_segments()
                if self._mine():
                    await asyncio.sleep(SETTLE_S)
                    started_s = time.monotonic()
                    await self._finish(self._mine())
                    await asyncio.sleep(_REST * (time.monotonic() - started_s))
            except (KafkaError, OSError, TimeoutError, StopWorker, topics.TopicsError) as error:
                log.error("erasure_waits", open=len(self._open), error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(_RETRY_S)
                self._wake.set()

    def _mine(self) -> list[ErasureReceipt]:
        return [receipt for receipt in self._open.values() if receipt.partition in self._owned]

    def _until_due_s(self) -> float | None:
        due_ms = min((each.due_ms for each in self._closings), default=None)
        return None if due_ms is None else max(due_ms - _now_ms(), 0) / 1000

    async def _finish(self, receipts: Sequence[ErasureReceipt]) -> None:
        configs = await topics.configs(self._settings)
        taken = await self._take_out_letters({receipt.user_sha256 for receipt in receipts})
        now_ms = _now_ms()
        done = [
            msgspec.structs.replace(
                receipt,
                status="done",
                done_ms=now_ms,
                dead_letters=taken[receipt.user_sha256],
                gone_by_ms=gone_by_ms(self._topics, configs, now_ms),
            )
            for receipt in receipts
        ]
        await self._write(done)
        for receipt in done:
            self._open.pop(_key(receipt), None)
            self._closings.add(_Closing(now_ms + topics.COMPACTION_LAG_MS, receipt.partition))
        self._metrics.erasures_open.set(len(self._open))
        log.info("users_erased", count=len(done), dead_letters=taken.total())

    async def _take_out_letters(self, users: Collection[str]) -> Counter[str]:
        """Write a tombstone over each dead letter of the users (hashes); the number of letters by user."""
        taken: Counter[str] = Counter()
        async for records in self._all_of(self._topics.dead_letters):
            found = await asyncio.to_thread(_letters_of, users, records, self._of_items)
            taken.update(user for user, _ in found)
            tombstones = [Outgoing(key, None, _ERASED) for key in dict.fromkeys(key for _, key in found)]
            await write_all(self._producer, self._topics.dead_letters, 0, tombstones)
        return taken

    async def _read_receipts(self) -> None:
        """Take over the receipts that another owner of a partition has begun, and the segments that it has to close."""
        unread, last = frozenset(self._unread), dict[bytes, ErasureReceipt]()
        async for records in self._all_of(self._topics.erasures):
            for record in records:
                with contextlib.suppress(msgspec.MsgspecError, ValueError, RecursionError):
                    receipt = _RECEIPT.decode(record.value or b"")
                    if receipt.partition in unread:
                        last[_key(receipt)] = receipt
        now_ms = _now_ms()
        for key, receipt in last.items():
            if receipt.status == "begun":
                self._open.setdefault(key, receipt)
            else:  # what was due while nobody owned the partition is due now
                due_ms = max((receipt.done_ms or 0) + topics.COMPACTION_LAG_MS, now_ms)
                self._closings.add(_Closing(due_ms, receipt.partition))
        self._unread -= unread
        self._metrics.erasures_open.set(len(self._open))

    async def _close_segments(self) -> None:
        now_ms = _now_ms()
        due = {each for each in self._closings if each.due_ms <= now_ms}
        for partition in {each.partition for each in due} & self._owned:
            await self._close_segment(partition)
        if due:
            closing = Outgoing(_CLOSING_KEY, None, _ERASED)
            await write_all(self._producer, self._topics.dead_letters, 0, [closing])
        self._closings -= due

    async def _write(self, receipts: Sequence[ErasureReceipt]) -> None:
        records = [Outgoing(_key(receipt), encode(receipt)) for receipt in receipts]
        try:
            await write_all(self._producer, self._topics.erasures, 0, records)
        except StopWorker as error:
            log.error("receipts_not_written", count=len(records), error=str(error))

    async def _all_of(self, topic: str) -> AsyncIterator[Sequence[ConsumerRecord]]:
        """The records of the first partition of a topic, from its beginning to its end."""
        consumer = Consumer(
            **self._settings.kafka_options(),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",  # the oldest may be deleted meanwhile
            max_partition_fetch_bytes=4 * 1024 * 1024,
        )
        tp = TopicPartition(topic, 0)
        try:
            await consumer.start()
            consumer.assign([tp])
            await consumer.seek_to_beginning(tp)
            async for run in read_to_end(consumer, [tp], max_records=500):
                yield run.records
        finally:
            await consumer.stop()


def hashed(user_id: str) -> str:
    """How receipts name a user: the SHA-256 of the id, in hexadecimal."""
    return hashlib.sha256(user_id.encode()).hexdigest()


def gone_by_ms(names: Topics, configs: Mapping[str, Mapping[str, str]], now_ms: int) -> dict[str, int]:
    """By topic, when no record of before ``now_ms`` is left of an erased user, at the latest; ms since 1970.

    Args:
        configs: those in force, by topic. A topic that is not among them, or that keeps records without a bound in time,
            has no promise.
    """
    bounds = {}
    for name in (names.profiles, names.dead_letters, names.clicks, names.requests, names.responses):
        has_tombstones = name in (names.profiles, names.dead_letters)
        bound_ms = _bound_ms(configs.get(name, {}), has_tombstones)
        if bound_ms is not None:
            bounds[name] = now_ms + bound_ms + _BROKER_MS
    return bounds


def _bound_ms(config: Mapping[str, str], has_tombstones: bool) -> int | None:
    """How long a topic keeps what was erased; None: without a bound."""
    policies = config.get("cleanup.policy", "").split(",")
    bounds = []
    # Segments are closed for compaction once, after our own lag: a longer one would find them open again.
    if has_tombstones and "compact" in policies:
        lag_ms = int(config.get("max.compaction.lag.ms", 0))
        if 0 < lag_ms <= topics.COMPACTION_LAG_MS:
            bounds.append(topics.COMPACTION_LAG_MS)
    # Whole segments are deleted, so records stay for the time of a segment longer.
    if "delete" in policies and (kept_ms := int(config.get("retention.ms", -1))) >= 0:
        bounds.append(kept_ms + int(config["segment.ms"]))
    return min(bounds, default=None)


def _letters_of(
    users: Collection[str], letters: Iterable[ConsumerRecord], of_items: Collection[bytes]
) -> list[tuple[str, bytes]]:
    """(user's hash, key of the letter) for each dead letter of one of the users."""
    return [
        (user, letter.key)
        for letter in letters
        if letter.key is not None and letter.headers
        for user in {hashed(name) for name in _named_in(letter, of_items)} & set(users)
    ]


def _named_in(letter: ConsumerRecord, of_items: Collection[bytes]) -> Iterator[str]:
    """The users that a dead letter names: by its original's key or headers, or by its message.

    Where there is no telling what a text is, any quoted one may be a user.
    """
    if (found := header(letter.headers, "topic")) is not None and found[1] in of_items:
        return
    # Letters of versions without that header have the original's key themselves.
    original = header(letter.headers, LETTER_KEY_HEADER) or ("", letter.key)
    held = [original[1], *(value for name, value in letter.headers if name.startswith(ORIGINAL_PREFIX))]
    for value in filter(None, held):
        yield value.decode(errors="replace")
        yield from _quoted_in(value)
    if letter.value is None:
        return
    try:
        yield _WITH_USER.decode(letter.value).user_id
    except (msgspec.MsgspecError, ValueError, RecursionError):
        yield from _quoted_in(letter.value)


def _quoted_in(value: bytes) -> Iterator[str]:
    for text in _QUOTED.findall(value):
        with contextlib.suppress(msgspec.MsgspecError, ValueError):
            yield _TEXT.decode(text)


def _key(receipt: ErasureReceipt) -> bytes:
    return f"{receipt.user_sha256}/{receipt.event_id}".encode()


def _now_ms() -> int:
    return int(time.time() * 1000)
