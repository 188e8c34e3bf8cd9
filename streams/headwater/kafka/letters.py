"""Dead letters as they stand: read from their topic, filtered, counted by reason, removed.

Each letter has the key ``topic/partition/offset`` of its original. A tombstone takes it out. A record of that key with
the header ``redriven-to`` and no value marks it as redriven: the record is on its topic again, and the content is gone.
"""

from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple, Self

from aiokafka import ConsumerRecord, TopicPartition
from msgspec import Struct

from headwater.errors import HeadwaterError
from headwater.kafka.dead_letters import REASONS
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.headers import (
    HEADERS_LEFT_OUT,
    LETTER_KEY_HEADER,
    MAX_LETTER_KEY_BYTES,
    ORIGINAL_PREFIX,
    REDRIVEN,
    REDRIVEN_TO,
    Header,
    Headers,
    Redriven,
    RedrivenTo,
    header,
)
from headwater.kafka.letter_text import decoded
from headwater.kafka.publish import Outgoing, producer_of, write_all
from headwater.kafka.read_to_end import Run, read_to_end
from headwater.kafka.topics import Topics
from headwater.settings import Settings

# All letters are written to one partition, however many the topic has.
PARTITION: Final = 0
# Letters a second of a redrive. A slower one would keep the next from beginning for days.
MIN_RATE: Final = 0.1
MAX_RATE: Final = 2_000.0
_FETCH_BYTES: Final = 4 * 1024 * 1024
_PURGED: Final[list[Header]] = [("reason", b"purged")]


class Place(NamedTuple):
    """Where a record lies. As text it is ``topic/partition/offset``."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str`` writes. Raises ValueError."""
        topic, partition, offset = text.rsplit("/", 2)
        if not (topic and partition.isdecimal() and offset.isdecimal() and len(partition + offset) <= 30):
            raise ValueError(text)
        return cls(topic, int(partition), int(offset))


class Letter(Struct, frozen=True):
    """One dead letter without its content.

    ``at`` is its own offset. ``lacks`` is a code of what the letter does not have of its original, which then cannot be
    made again; empty where it is whole.

    | ``lacks`` | |
    |---|---|
    | ``cut`` | the value, the key or the headers were too large, and are cut or left out |
    | ``unreadable`` | nobody could read the original |
    """

    place: Place  # of the original
    at: int
    put_ms: int
    reason: str
    message: str
    key: bytes | None
    value_bytes: int
    lacks: str
    tries: int  # how often it was redriven before
    redriven_to: RedrivenTo | None  # its mark, if it has been redriven

    @property
    def topic_key(self) -> bytes:
        """The key of the letter on its topic."""
        return str(self.place).encode()


def letter_of(record: ConsumerRecord) -> Letter | None:
    """The letter, or the mark of one. None: the record is neither."""
    topic, partition, offset = (header(record.headers, name) for name in ("topic", "partition", "offset"))
    if topic is None or partition is None or offset is None:
        return None
    try:
        place = Place.parse("/".join(_text(each[1]) for each in (topic, partition, offset)))
    except ValueError:
        return None
    redriven, mark = REDRIVEN.of(record.headers), REDRIVEN_TO.of(record.headers)
    key = header(record.headers, LETTER_KEY_HEADER)
    return Letter(
        place=place,
        at=record.offset,
        put_ms=record.timestamp,
        reason=_text_of(record.headers, "reason"),
        message=_text_of(record.headers, "message"),
        key=None if key is None else key[1],
        value_bytes=len(record.value or b""),
        lacks=_lacks(record.headers),
        tries=redriven.tries if isinstance(redriven, Redriven) else 0,
        redriven_to=mark if isinstance(mark, RedrivenTo) else None,
    )


def _lacks(headers: Headers) -> str:
    if header(headers, "last_offset") is not None:
        return "unreadable"
    key = header(headers, LETTER_KEY_HEADER)
    is_key_cut = key is not None and key[1] is not None and len(key[1]) >= MAX_LETTER_KEY_BYTES
    return "cut" if is_key_cut or header(headers, "cut_from_bytes", HEADERS_LEFT_OUT) is not None else ""


def original_headers(headers: Headers) -> list[tuple[str, bytes | None]]:
    """The headers of the original, from those of its letter."""
    return [
        (name.removeprefix(ORIGINAL_PREFIX), value)
        for name, value in headers
        if name.startswith(ORIGINAL_PREFIX)
    ]


def mark_of(letter: Letter, to: RedrivenTo) -> Outgoing:
    """What is written over a letter that has been redriven. Nothing of the original, nor of its user, is left in it."""
    place = letter.place
    return Outgoing(
        letter.topic_key,
        None,
        [
            ("reason", letter.reason.encode()),
            ("topic", place.topic.encode()),
            ("partition", str(place.partition).encode()),
            ("offset", str(place.offset).encode()),
            REDRIVEN_TO.header(to),
        ],
    )


class Letters:
    """The letters of a topic, as its records in the order of their offsets leave them."""

    def __init__(self) -> None:
        self._by_place: dict[Place, Letter] = {}

    def add(self, record: ConsumerRecord) -> None:
        """Take the next record."""
        letter = letter_of(record)
        if letter is None:
            if record.value is None and record.key is not None:
                self._take_out(record.key)
            return
        before = self._by_place.get(letter.place)
        # A worker that was killed before its commit writes its letters again: those that are marked stay so.
        if before is None or before.redriven_to is None or letter.redriven_to is not None:
            self._by_place[letter.place] = letter

    def _take_out(self, key: bytes) -> None:
        try:
            self._by_place.pop(Place.parse(_text(key)), None)
        except ValueError:
            return

    def open(self) -> list[Letter]:
        """Those that have not been redriven, in the order of their topic."""
        found = [letter for letter in self._by_place.values() if letter.redriven_to is None]
        return sorted(found, key=lambda letter: letter.at)

    def redriven(self) -> list[Letter]:
        """The marks of those that have been."""
        return [letter for letter in self._by_place.values() if letter.redriven_to is not None]

    def at(self, place: Place, dead_letters: str) -> Letter | None:
        """The letter of the original at ``place``; on the topic ``dead_letters``, that which lies there itself."""
        if place.topic == dead_letters:
            mine = (each for each in self._by_place.values() if each.at == place.offset)
            return next(mine, None) if place.partition == PARTITION else None
        return self._by_place.get(place)


class Wanted(Struct, frozen=True):
    """A filter: a letter passes where it passes every part that is given."""

    reasons: Collection[str] = ()
    topics: Collection[str] = ()  # of the originals
    since_ms: int | None = None  # put there then or later
    key: bytes | None = None  # of the original
    places: Collection[Place] = ()  # of the originals

    def takes(self, letter: Letter) -> bool:
        """Whether the letter passes."""
        return (
            (not self.reasons or letter.reason in self.reasons)
            and (not self.topics or letter.place.topic in self.topics)
            and (self.since_ms is None or letter.put_ms >= self.since_ms)
            and (self.key is None or letter.key == self.key)
            and (not self.places or letter.place in self.places)
        )


class Group(Struct, frozen=True):
    """The letters of one reason and topic; times of the letters themselves, ms since 1970."""

    reason: str
    topic: str
    letters: int
    failed_again: int  # redriven before
    oldest_ms: int
    newest_ms: int
    newest: Letter


def groups(letters: Iterable[Letter]) -> list[Group]:
    """Letters by reason and topic, the largest group first."""
    by_kind: dict[tuple[str, str], list[Letter]] = {}
    for letter in letters:
        by_kind.setdefault((letter.reason, letter.place.topic), []).append(letter)
    found = []
    for (reason, topic), mine in by_kind.items():
        newest = max(mine, key=lambda letter: (letter.put_ms, letter.at))
        oldest_ms = min(letter.put_ms for letter in mine)
        failed_again = sum(letter.tries > 0 for letter in mine)
        found.append(Group(reason, topic, len(mine), failed_again, oldest_ms, newest.put_ms, newest))
    return sorted(found, key=lambda group: (-group.letters, group.reason, group.topic))


def group_fields(group: Group) -> dict[str, Any]:
    """A group as JSON, on a terminal and on a page. ``remedy`` is empty for an unknown reason."""
    return {
        "reason": group.reason,
        "topic": group.topic,
        "letters": group.letters,
        "failed_again": group.failed_again,
        "oldest_ms": group.oldest_ms,
        "newest_ms": group.newest_ms,
        "remedy": REASONS.get(group.reason, ""),
        "newest": {"place": str(group.newest.place), "message": group.newest.message},
    }


def letter_fields(letter: Letter) -> dict[str, Any]:
    """A letter without its content as JSON, on a terminal and on a page."""
    return {
        "place": str(letter.place),
        "put_ms": letter.put_ms,
        "reason": letter.reason,
        "message": letter.message,
        "lacks": letter.lacks,
        "tries": letter.tries,
        "key": decoded(letter.key),
        "value_bytes": letter.value_bytes,
    }


def reasons(letters: Iterable[Letter]) -> Counter[str]:
    """How many letters there are of each reason."""
    return Counter(letter.reason for letter in letters)


async def read(settings: Settings) -> Letters:
    """All letters there are. Takes some 500 bytes of memory a letter.

    Raises:
        HeadwaterError: their topic is missing.
        KafkaError, StopWorker: the broker is away.
    """
    letters = Letters()
    topic = Topics.named(settings.topic_prefix).dead_letters
    async with reading(settings, topic) as consumer:
        async for run in from_start(consumer, TopicPartition(topic, PARTITION)):
            for record in run.records:
                letters.add(record)
    return letters


async def record_of(settings: Settings, letter: Letter) -> ConsumerRecord | None:
    """The record of a letter, with its content; None where it has been compacted away since it was read.

    Raises:
        KafkaError, StopWorker: the broker is away.
    """
    tp = TopicPartition(Topics.named(settings.topic_prefix).dead_letters, PARTITION)
    async with reading(settings, tp.topic) as consumer:
        consumer.assign([tp])
        consumer.seek(tp, letter.at)
        async for run in read_to_end(consumer, [tp], {tp: letter.at + 1}, max_records=1):
            for record in run.records:
                return record if record.offset == letter.at else None
    return None


async def purge(settings: Settings, letters: Sequence[Letter]) -> None:
    """Write a tombstone over each letter.

    Raises:
        KafkaError, StopWorker: the broker did not take them.
    """
    producer = producer_of(settings)
    await producer.start()
    try:
        tombstones = [Outgoing(letter.topic_key, None, _PURGED) for letter in letters]
        topic = Topics.named(settings.topic_prefix).dead_letters
        await write_all(producer, topic, PARTITION, tombstones)
    finally:
        await producer.stop()


@asynccontextmanager
async def reading(settings: Settings, topic: str) -> AsyncIterator[Consumer]:
    """A consumer of what is committed, without a group.

    Raises:
        HeadwaterError: there is no such topic.
        KafkaError: the broker is away.
    """
    consumer = Consumer(
        **settings.kafka_options(),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",  # the oldest may be deleted meanwhile
        isolation_level="read_committed",
        max_partition_fetch_bytes=_FETCH_BYTES,
    )
    try:
        await consumer.start()
        if topic not in await consumer.topics():
            raise HeadwaterError(f"there is no topic {topic}: run `headwater topics create`")
        yield consumer
    finally:
        await consumer.stop()


async def from_start(consumer: Consumer, tp: TopicPartition) -> AsyncIterator[Run]:
    """All records of a partition, a few hundred at a time. Raises KafkaError, StopWorker."""
    consumer.assign([tp])
    await consumer.seek_to_beginning(tp)
    async for run in read_to_end(consumer, [tp], max_records=500):
        yield run


def _text_of(headers: Headers, name: str) -> str:
    found = header(headers, name)
    return "" if found is None else _text(found[1])


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="backslashreplace")
