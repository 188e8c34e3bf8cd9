"""Records as a fetch brought them, made a batch at a time, and the buffer they wait in.

aiokafka takes 1 us to make one record. Half of that goes to fields that nothing here reads, most of the rest to the
steps from one record to the next. Each click is a record, and this time is taken from the work of the event loop.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from typing import Any

from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import FetchError, FetchResult
from aiokafka.errors import CorruptRecordException
from msgspec import Struct


# Not followed by the garbage collector: it holds text and numbers only.
class Record(Struct, frozen=True, gc=False):
    """The fields of aiokafka's ConsumerRecord that are read here."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


class BufferedFetches(OrderedDict[TopicPartition, Any]):
    """What has been fetched and not yet polled, urgent topics first: a FetchResult or FetchError per partition.

    It takes the place of the fetcher's own buffer. A new entry wakes :meth:`Consumer.wait_for_records`, unless
    ``is_dispatched`` says that a callback is going to take it; errors always do.
    """

    def __init__(self, fetcher: Any, urgent: Collection[str], is_dispatched: Callable[[], bool]) -> None:
        self._fetcher, self._urgent, self._is_dispatched = fetcher, urgent, is_dispatched
        super().__init__(fetcher._records)

    def __setitem__(self, tp: TopicPartition, fetched: Any) -> None:
        make_light(fetched)
        super().__setitem__(tp, fetched)
        if tp.topic in self._urgent:
            for other in [known for known in self if known.topic not in self._urgent]:
                self.move_to_end(other)
        if isinstance(fetched, FetchError) or not self._is_dispatched():
            for waiter in self._fetcher._fetch_waiters:
                self._fetcher._notify(waiter)


def make_light(fetched: Any) -> None:
    """Give a FetchResult our records in place of aiokafka's."""
    theirs = getattr(fetched, "_partition_records", None)
    if theirs is not None:
        fetched._partition_records = LightRecords(theirs)


class LightRecords(Iterator[Record]):
    """The records that a fetch brought of one partition, in offset order. Takes the place of aiokafka's PartitionRecords.

    Records of aborted transactions are passed like control records: a broker names these transactions to consumers that
    read committed, and to no others.

    Raises CorruptRecordException at a batch with a wrong checksum.
    """

    def __init__(self, theirs: Any) -> None:
        self._tp, self._batches, self._check_crcs = theirs._tp, theirs._records, theirs._check_crcs
        self.next_fetch_offset: int = theirs.next_fetch_offset
        # (producer, first offset) of the aborted transactions that are still to come, by offset, and the producers of
        # those that have begun and not ended.
        self._aborted: list[tuple[int, int]] = theirs._aborted_transactions
        self._aborting: set[int] = set()
        self._made: list[Record] = []
        self._first = 0  # index in `_made` of the next record
        self._end: int = self.next_fetch_offset  # the offset after the batch that `_made` is of
        self._has_failed = False

    def __next__(self) -> Record:
        if self._first == len(self._made) and not self._make_next():
            raise StopIteration
        record = self._made[self._first]
        self._advance(self._first + 1)
        return record

    def some(self, max_records: int) -> list[Record]:
        """The next records, of one batch. An empty list: there are no more."""
        if self._first == len(self._made) and not self._make_next():
            return []
        records = self._made[self._first : self._first + max_records]
        self._advance(self._first + len(records))
        return records

    def _advance(self, first: int) -> None:
        self._first = first
        self.next_fetch_offset = self._made[first].offset if first < len(self._made) else self._end

    def _make_next(self) -> bool:
        """Make the records of the next batch that holds any; False: there is none."""
        while self._first == len(self._made):
            self.next_fetch_offset = self._end
            if self._has_failed or not self._batches.has_next():
                return False
            self._has_failed = True  # a damaged batch ends this fetch: what follows is fetched again with it
            self._make(self._batches.next_batch())
            self._has_failed = False
        return True

    def _make(self, batch: Any) -> None:
        if self._check_crcs and not batch.validate_crc():
            raise CorruptRecordException(f"Invalid CRC - {self._tp}")
        self._made, self._first, self._end = [], 0, batch.next_offset
        is_aborted = bool(self._aborted or self._aborting) and self._is_aborted(batch)
        if is_aborted or batch.is_control_batch:
            return
        topic, partition = self._tp
        made = [
            Record(topic, partition, each.offset, each.timestamp, each.key, each.value, tuple(each.headers))
            for each in batch
        ]
        # The broker sends a compressed batch whole, also when the offset asked for is in its middle.
        asked = self.next_fetch_offset
        self._made = made if not made or made[0].offset >= asked else [r for r in made if r.offset >= asked]

    def _is_aborted(self, batch: Any) -> bool:
        """Whether the next batch belongs to a transaction that was aborted."""
        producer: int | None = batch.producer_id  # None: of a format without transactions
        if producer is None:
            return False
        while self._aborted and self._aborted[0][1] <= batch.base_offset:
            self._aborting.add(self._aborted.pop(0)[0])
        if batch.is_control_batch:
            self._aborting.discard(producer)  # it ends the transaction
            return False
        return bool(batch.is_transactional) and producer in self._aborting


def next_records(fetched: FetchResult, max_records: int) -> list[Record]:
    """The next records of a FetchResult; moves the partition's position past them. Same as its own ``getall``.

    Raises CorruptRecordException at a damaged batch, and whatever its codec raises.
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
