"""Records as a fetch brought them, made some at a time, and the buffer they wait in.

aiokafka takes 1 us to make one record. Half of that goes to fields that nothing here reads, most of the rest to the
steps from one record to the next. Each click is a record, and this time is taken from the work of the event loop.

Nothing that a log may hold is raised here. What cannot be read is passed and told, see :class:`Unreadable`. A batch is
unpacked within a bound, and its records are made as they are polled.
"""

import logging
import struct
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator
from itertools import chain, islice
from typing import Any, Final, Literal, NamedTuple

from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import FetchError, FetchResult
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatch
from msgspec import Struct

from headwater.kafka.fast_client.unpack import TooLargeUnpacked, unpacked

log = logging.getLogger(__name__)

# Offset and length, which all formats begin with; then the leader's epoch, magic, checksum, attributes, delta of the last
# offset, first and greatest timestamp, producer, its epoch, sequence, count of records.
_FRAME: Final = struct.Struct(">qi")
_HEAD: Final = struct.Struct(">qiibIhiqqqhii")
_MAGIC_AT: Final = 16
_ATTRIBUTES_AT: Final = 21
_ATTRIBUTES: Final = struct.Struct(">h")
# Attributes of a batch. The lowest three bits are its codec.
_CODEC: Final = 0x07
_IS_LOG_APPEND_TIME: Final = 0x08
_IS_TRANSACTIONAL: Final = 0x10
_IS_CONTROL: Final = 0x20
# The formats before 0.11 have no batches: one message, or one that packs several. Head, key, value.
_LEGACY_HEADS: Final = (18, 26)
_LEGACY_ATTRIBUTES_AT: Final = 17
_LENGTH: Final = struct.Struct(">i")
# aiokafka's `getmany` takes one record at a time. Made one at a time, a record takes three times as long.
_MADE_AHEAD: Final = 256
_LEAST_LENGTH: Final = 14  # of any message, without offset and length
# Of a record so many are read. A header takes two bytes in a log and 80 in memory, and packed next to nothing.
MAX_HEADERS: Final = 128
# Records up to this size may be made by aiokafka, which makes all their headers first. A batch up to this size is not looked
# at for larger ones.
_LARGE_RECORD: Final = 64 * 1024
_LARGE_BATCH: Final = 256 * 1024


# Not followed by the garbage collector: it holds text and numbers only.
class Record(Struct, frozen=True, gc=False):
    """The fields of aiokafka's ConsumerRecord that are read here, of the headers the first 128.

    A header name that is not UTF-8 has its other bytes as ``\\xff``. A record without a timestamp has -1.
    """

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


class Unreadable(NamedTuple):
    """Offsets ``first`` to ``last`` of a partition that were passed, since no record could be read there.

    | reason | what is at these offsets |
    |---|---|
    | ``corrupt`` | a wrong checksum, twice; an unknown format or codec; bytes that are no records |
    | ``too_large_unpacked`` | a packed batch that holds more than 16 MiB, and more than eight times its size |
    """

    topic: str
    partition: int
    first: int
    last: int
    reason: Literal["corrupt", "too_large_unpacked"]
    message: str


class BufferedFetches(OrderedDict[TopicPartition, Any]):
    """What has been fetched and not yet polled, urgent topics first: a FetchResult or FetchError per partition.

    It takes the place of the fetcher's own buffer. A new entry wakes :meth:`Consumer.wait_for_records`, unless
    ``is_dispatched`` says that a callback is going to take it; errors always do. ``raw`` has the bytes of each entry,
    put there by the codec just before.
    """

    def __init__(
        self,
        fetcher: Any,
        urgent: Collection[str],
        is_dispatched: Callable[[], bool],
        raw: dict[TopicPartition, bytes] | None = None,
    ) -> None:
        self._fetcher, self._urgent, self._is_dispatched = fetcher, urgent, is_dispatched
        self._raw = {} if raw is None else raw
        self._suspects: set[tuple[TopicPartition, int]] = set()
        super().__init__(fetcher._records)

    def __setitem__(self, tp: TopicPartition, fetched: Any) -> None:
        make_light(fetched, self._raw.pop(tp, None), self._suspects)
        super().__setitem__(tp, fetched)
        if tp.topic in self._urgent:
            for other in [known for known in self if known.topic not in self._urgent]:
                self.move_to_end(other)
        if isinstance(fetched, FetchError) or not self._is_dispatched():
            for waiter in self._fetcher._fetch_waiters:
                self._fetcher._notify(waiter)


def make_light(fetched: Any, raw: bytes | None, suspects: set[tuple[TopicPartition, int]]) -> None:
    """Give a FetchResult our records in place of aiokafka's. Without ``raw``, of an old broker, aiokafka's stay."""
    if raw is not None and isinstance(fetched, FetchResult):
        end = fetched._assignment.state_value(fetched._topic_partition).highwater
        fetched._partition_records = LightRecords(fetched._partition_records, raw, end, suspects)


class LightRecords(Iterator[Record]):
    """The records that a fetch brought of one partition, in offset order. Takes the place of aiokafka's PartitionRecords.

    Args:
        theirs: aiokafka's.
        raw: the bytes of the fetch; a broker cuts the last batch short.
        end: that of the log, as the fetch told it.
        suspects: batches with a wrong checksum, by partition and offset. The first time such a batch ends this fetch
            and is fetched again. The second time it is passed.

    Records of aborted transactions are passed like control records: a broker names these transactions to consumers that
    read committed, and to no others. ``unreadable`` grows as records are made. ``leader_epoch`` is that of the batch in
    hand, or of the last one; -1: no batch has told any.
    """

    def __init__(self, theirs: Any, raw: bytes, end: int, suspects: set[tuple[TopicPartition, int]]) -> None:
        self._tp, self._check_crcs, self._suspects = theirs._tp, theirs._check_crcs, suspects
        self.next_fetch_offset: int = theirs.next_fetch_offset
        self.unreadable: list[Unreadable] = []
        self.leader_epoch = -1
        self._raw, self._at, self._log_end = memoryview(raw), 0, end
        # Its generator refers to it and to the bytes of the fetch. aiokafka ends this cycle with the last record, which is
        # never read there, and a worker looks for cycles rarely: it would keep every fetch.
        theirs._records_iterator = None
        # (producer, first offset) of the aborted transactions that are still to come, by offset, and the producers of
        # those that have begun and not ended.
        self._aborted: deque[tuple[int, int]] = deque(theirs._aborted_transactions)
        self._aborting: set[int] = set()
        self._records: Iterator[Any] | None = None  # the rest of the batch in hand
        self._batch: memoryview | bytes = b""  # that batch, unpacked
        self._ahead: deque[Record] = deque()  # made, and not asked for yet
        self._ahead_end = self.next_fetch_offset  # the offset after them
        self._end = self.next_fetch_offset  # the offset after it

    def __next__(self) -> Record:
        if not self._ahead:
            self._ahead.extend(self.some(_MADE_AHEAD))
            self._ahead_end = self.next_fetch_offset
            if not self._ahead:
                raise StopIteration
        record = self._ahead.popleft()
        self.next_fetch_offset = record.offset + 1 if self._ahead else self._ahead_end
        return record

    def some(self, max_records: int) -> list[Record]:
        """The next records, of one batch. An empty list: there are no more."""
        if self._ahead:
            return [next(self) for _ in range(min(max_records, len(self._ahead)))]
        while self._records is not None or self._open_next():
            asked = self.next_fetch_offset
            records = self._make(max_records)
            if len(records) < max_records or records[-1].offset + 1 >= self._end:
                self._records, self._batch = None, b""
                self.next_fetch_offset = self._end
            else:
                self.next_fetch_offset = max(asked, records[-1].offset + 1)
            # The broker sends a packed batch whole, also when the offset asked for is in its middle.
            if records and records[0].offset < asked:
                records = [record for record in records if record.offset >= asked]
            if records:
                return records
        return []

    def _make(self, max_records: int) -> list[Record]:
        """The next records of the batch in hand; fewer than asked for: there are no more."""
        assert self._records is not None
        topic, partition = self._tp
        try:
            return [
                Record(
                    topic,
                    partition,
                    each.offset,
                    each.timestamp,
                    each.key,
                    each.value,
                    tuple(each.headers[:MAX_HEADERS]),
                )
                for each in islice(self._records, max_records)
            ]
        except Exception as error:  # noqa: BLE001 - aiokafka's parser, at what no good client writes; or `_watched`
            if self._batch[_MAGIC_AT] < 2:
                self._pass(self.next_fetch_offset, "corrupt", error)
                return []
            self._records = self._read_singly()
            return list(islice(self._records, max_records))

    def _open_next(self) -> bool:
        """Take the next batch with records in hand; False: there is none."""
        while len(self._raw) - self._at >= _FRAME.size:
            base, length = _FRAME.unpack_from(self._raw, self._at)
            stop = self._at + _FRAME.size + length
            if stop > len(self._raw):
                return False  # cut short: it is fetched again
            asked, batch, self._at = self.next_fetch_offset, self._raw[self._at : stop], max(stop, self._at)
            self._end = asked + 1  # until the batch says more
            try:
                is_open = self._open(batch, base)
            except TooLargeUnpacked as error:
                self._pass(max(base, asked), "too_large_unpacked", error)
            except Exception as error:  # noqa: BLE001 - whatever parsers and codecs raise at such bytes
                self._pass(max(base, asked), "corrupt", error)
                if length < _LEAST_LENGTH:
                    self._at = len(self._raw)  # no telling where the next batch begins
            else:
                if is_open:
                    return True
            self.next_fetch_offset = self._end
        return False

    def _open(self, batch: memoryview, base: int) -> bool:
        """Take a batch in hand, unless it has no records for us. Sets ``_end`` in any case.

        Raises:
            TooLargeUnpacked: it is.
            Exception: it is damaged.
        """
        if batch[_MAGIC_AT] < 2:
            return self._open_legacy(batch, base)
        asked = self.next_fetch_offset
        _, _, epoch, magic, _, attributes, delta, _, _, producer, *_ = _HEAD.unpack_from(batch)
        theirs = DefaultRecordBatch(batch)
        if self._check_crcs and not theirs.validate_crc():
            return self._suspect(base, base + delta + 1)
        self._end = max(base + delta + 1, asked)
        if magic > 2:
            raise ValueError(f"got records of format {magic}: expected at most 2")
        self.leader_epoch = epoch
        while self._aborted and self._aborted[0][1] <= base:
            self._aborting.add(self._aborted.popleft()[0])
        if attributes & _IS_CONTROL:
            self._aborting.discard(producer)  # it ends the transaction
            return False
        if attributes & _IS_TRANSACTIONAL and producer in self._aborting:
            return False
        if codec := attributes & _CODEC:
            plain = _ATTRIBUTES.pack(attributes & ~_CODEC)
            head = b"".join((batch[:_ATTRIBUTES_AT], plain, batch[_ATTRIBUTES_AT + 2 : _HEAD.size]))
            batch = memoryview(unpacked(codec, batch[_HEAD.size :], head))
            theirs = DefaultRecordBatch(batch)
        # aiokafka's batch is its own iterator and refuses a second `iter`, which each poll of a part of it begins with.
        self._batch = batch
        self._records = chain(theirs) if len(batch) <= _LARGE_BATCH else _watched(theirs, batch)
        return True

    def _open_legacy(self, batch: memoryview, base: int) -> bool:
        """The same with a message of the formats 0 and 1, which may pack several."""
        magic, asked = batch[_MAGIC_AT], self.next_fetch_offset
        theirs = LegacyRecordBatch(batch, magic)
        if self._check_crcs and not theirs.validate_crc():
            return self._suspect(base, base + 1)
        self._end = max(base + 1, asked)
        if codec := batch[_LEGACY_ATTRIBUTES_AT] & _CODEC:
            at = _LEGACY_HEADS[magic]
            at += _LENGTH.size + max(_LENGTH.unpack_from(batch, at)[0], 0)
            unpacked(codec, batch[at + _LENGTH.size :])  # aiokafka does it again, and knows no bound
        topic, partition = self._tp
        self._batch = batch
        self._records = (
            Record(
                topic,
                partition,
                each.offset,
                -1 if each.timestamp is None else each.timestamp,
                each.key,
                each.value,
                (),
            )
            for each in theirs
        )
        return True

    def _suspect(self, base: int, end: int) -> bool:
        """Have a batch with a wrong checksum fetched again; raises ValueError where that has been done."""
        asked = self.next_fetch_offset
        if (self._tp, base) not in self._suspects:
            self._suspects.add((self._tp, base))
            self._at, self._end = len(self._raw), asked
            return False
        # Its own word on where it ends may be what is wrong with it.
        if len(self._raw) - self._at >= _FRAME.size:
            end = _FRAME.unpack_from(self._raw, self._at)[0]
            if end <= asked:
                self._end = asked
                return False
        self._suspects.discard((self._tp, base))
        self._end = min(max(end, asked + 1), max(self._log_end, asked + 1))
        raise ValueError("got a wrong checksum twice")

    def _read_singly(self) -> Iterator[Record]:
        """The records of the batch in hand from where it was left, as far as there are any."""
        base, *_, attributes, _, first_ms, max_ms, _, _, _, count = _HEAD.unpack_from(self._batch)
        (topic, partition), body, at, expected = self._tp, self._batch, _HEAD.size, base
        asked = self.next_fetch_offset
        for _ in range(count):
            try:
                length, at = _varint(body, at)
                record = body[at : at + length]
                if not 0 <= length <= len(body) - at:
                    raise ValueError(f"got a record of {length} bytes: expected at most {len(body) - at}")
            except (ValueError, IndexError) as error:
                self._pass(max(expected, asked), "corrupt", error)
                return
            at += length
            try:
                delta_ms, delta, key, value, headers = _fields(record)
            except (ValueError, IndexError) as error:
                self._pass(max(expected, asked), "corrupt", error, max(expected, asked) + (expected >= asked))
                expected += 1
                continue
            timestamp = max_ms if attributes & _IS_LOG_APPEND_TIME else _int64(first_ms + delta_ms)
            expected = base + delta + 1
            if base + delta >= asked:
                yield Record(topic, partition, base + delta, timestamp, key, value, headers)

    def _pass(
        self,
        first: int,
        reason: Literal["corrupt", "too_large_unpacked"],
        error: Exception,
        end: int | None = None,
    ) -> None:
        """Tell of offsets that are passed, up to the end of the batch in hand if no other is given."""
        last = (self._end if end is None else end) - 1
        if last < first:
            return
        message = f"offsets {first} to {last}: {error}"
        self.unreadable.append(Unreadable(self._tp.topic, self._tp.partition, first, last, reason, message))
        where = {"topic": self._tp.topic, "partition": self._tp.partition, "reason": reason, "error": message}
        log.error("records_unreadable", extra=where)


def next_records(fetched: FetchResult, max_records: int) -> list[Record]:
    """The next records of a FetchResult; moves the partition's position past them. Same as its own ``getall``.

    Raises what aiokafka's records raise, where these are not ours.
    """
    if not isinstance(fetched._partition_records, LightRecords):
        return list(fetched.getall(max_records))
    if not fetched.check_assignment(fetched._topic_partition):
        return []
    records: list[Record] = []
    while len(records) < max_records:
        more = fetched._partition_records.some(max_records - len(records))
        if not more:
            fetched._update_position()
            fetched._partition_records = None
            return records
        records = records + more if records else more
    fetched._update_position()
    return records


def _watched(theirs: Iterator[Any], batch: memoryview | bytes) -> Iterator[Any]:
    """The records of a batch as aiokafka makes them. Raises ValueError, IndexError before one that is large itself."""
    at, stop = _HEAD.size, len(batch)
    while at < stop:
        first = batch[at]
        if first >= 0x80 and (second := batch[at + 1]) < 0x80:  # nearly all: 64 to 8,191 bytes
            length, at = (first & 0x7F | second << 7) >> 1, at + 2
        else:
            length, at = _varint(batch, at)
        if length > _LARGE_RECORD:
            raise ValueError(f"got a record of {length} bytes: expected at most {_LARGE_RECORD}")
        at += max(length, 0)
        record = next(theirs, None)
        if record is None:
            return
        yield record


def _fields(
    record: memoryview | bytes,
) -> tuple[int, int, bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...]]:
    """Timestamp and offset as differences, key, value and headers of a record. Raises ValueError, IndexError."""
    delta_ms, at = _varint(record, 1)
    delta, at = _varint(record, at)
    key, at = _bytes(record, at)
    value, at = _bytes(record, at)
    count, at = _varint(record, at)
    headers = []
    for _ in range(min(count, MAX_HEADERS)):
        name, at = _bytes(record, at)
        header_value, at = _bytes(record, at)
        headers.append(((name or b"").decode(errors="backslashreplace"), header_value))
    if at != len(record) and count <= MAX_HEADERS:
        raise ValueError(f"got a record of {len(record)} bytes whose fields take {at}")
    return delta_ms, delta, key, value, tuple(headers)


def _bytes(record: memoryview | bytes, at: int) -> tuple[bytes | None, int]:
    """Bytes with their length before them, -1 for null, and where they end."""
    length, at = _varint(record, at)
    if length < 0:
        return None, at
    if length > len(record) - at:
        raise ValueError(f"got a field of {length} bytes: expected at most {len(record) - at}")
    return bytes(record[at : at + length]), at + length


def _varint(data: memoryview | bytes, at: int) -> tuple[int, int]:
    """A zigzag varint of at most 64 bits, and where it ends. Raises IndexError, ValueError."""
    number = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at
    raise ValueError("got a number of more than ten bytes")


def _int64(number: int) -> int:
    """The number as it is where numbers have 64 bits."""
    return (number + 2**63) % 2**64 - 2**63
