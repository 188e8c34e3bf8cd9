"""The partition-owned store of users: opened when a clicks partition is assigned, frozen when it is revoked.

The profiles topic is its changelog. A partition is opened by reading that topic in bulk (Faust's own table recovery
takes eight minutes for a million users), resumed from where it was when it comes back, dropped when another worker
has it. Writes are awaited. Foreign writes (a paused worker that woke up late) show as holes between our own offsets:
they are read, and what an older generation overwrote is written again.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import structlog
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from headwater.errors import PartitionLost, StopWorker
from headwater.kafka.batch import Gate
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.headers import Erasure, erasure_header, erasure_of
from headwater.kafka.publish import Outgoing, Sent, send_all
from headwater.kafka.supervision import READ_TIMEOUT_S, Background, once_broker_answers, topic_recreated_error
from headwater.kafka.topics import Topics
from headwater.metrics import Metrics
from headwater.profiles.columns import I64, U64, Columns
from headwater.profiles.counters import DEFAULT_COUNTERS
from headwater.profiles.row_file import DiskFull, RowFile
from headwater.profiles.state_records import RecordError, WriterStamp, bundle_key, generation_of, pack, unpack
from headwater.settings import Settings

logger = structlog.get_logger(__name__)

_READ_RECORDS: Final = 20_000
# How often an idle partition's changelog is looked at for writes that are not ours.
_AUDIT_S: Final = 5.0
# Users past HEADWATER_USER_TTL_DAYS: looked for so often, and erased so many at a time, so that clicks go on.
_EXPIRE_S: Final = 10.0
_EXPIRE_USERS: Final = 2_000
# Of a partition's events that came into no log so many are remembered: of a burst of impressions, a minute's.
_MAX_UNLOGGED: Final = 10_000
_NOBODY: Final = np.zeros(0, dtype=np.int64)


def _settled(value: bool) -> asyncio.Future[bool]:
    future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


class Partition:
    """The users of one clicks partition, and how far it has come."""

    def __init__(
        self,
        number: int,
        log_length: int,
        state_size: int,
        counters: int = DEFAULT_COUNTERS,
        folder: Path | None = None,
    ) -> None:
        self.number = number
        self.columns = Columns(log_length, state_size, counters=counters, folder=folder)
        # Users erased by `forget`, who have no row: events up to that time are dropped.
        self.forgotten: dict[bytes, int] = {}
        # And by which generation: a record that an older one wrote late does not bring them back.
        self.erased_by: dict[bytes, int] = {}
        self.generation = -1
        self.applied = -1  # every clicks record at or below it is in the columns
        self.watermark = -1  # and in the changelog too, for good
        self.changelog_next = 0  # the changelog has been read or written up to here,
        # But for what others wrote from these offsets on, which is yet to be read.
        self.holes: set[int] = set()
        # Whose newest record lies before one that a former owner wrote late: compaction would keep the wrong one.
        self.overwritten: set[bytes] = set()
        self.gate = Gate()
        self.owned = False
        self.lock = asyncio.Lock()
        # Of the newest batch: True once it and all before it are in the changelog, False when one was given up.
        self.changelog_done: asyncio.Future[bool] = _settled(True)
        # Called with the keys of the events that were just looked at; None: with all that there are.
        self.listeners: list[Callable[[Partition, U64 | None], None]] = []
        # The newest (user, event key) that were looked at and came into no log: too late, say, or an impression.
        self._unlogged: dict[tuple[bytes, int], None] = {}
        self._waiting: list[asyncio.Future[None]] = []

    def row_of(self, user: bytes) -> int:
        """The user's row, made if there is none.

        Raises:
            StopWorker: there is no room for one on the disk.
        """
        row = self.columns.rows.get(user)
        if row is None:
            try:
                row = self.columns.add(user)
            except DiskFull as error:
                raise StopWorker(str(error)) from error
            erased_ms = self.forgotten.get(user)
            if erased_ms is not None:
                self.columns.forgotten_ms[row] = erased_ms
        return row

    def remember_unlogged(self, rows: I64, events: U64) -> None:
        """Remember events that came into no log, for those who wait for them; the newest of them."""
        users = [self.columns.users[row] for row in rows.tolist()]
        self._unlogged.update(dict.fromkeys(zip(users, events.tolist(), strict=True)))
        for known in list(islice(self._unlogged, max(len(self._unlogged) - _MAX_UNLOGGED, 0))):
            del self._unlogged[known]

    def has_seen(self, user: bytes, event: int) -> bool:
        """Whether this event of the user is among the newest of the log, or was looked at lately and came into none."""
        row = self.columns.rows.get(user)
        log = [] if row is None else self.columns.event[row, : self.columns.n[row]].tolist()
        return event in log or (user, event) in self._unlogged

    def mark_seen(self, start: int, stop: int) -> int | None:
        """Take the changelog's records from ``start`` to ``stop`` (excluded) for known; where a hole before them begins."""
        hole, self.changelog_next = self.changelog_next, max(stop, self.changelog_next)
        if start <= hole:
            return None
        self.holes.add(hole)
        return hole

    def rewind_to_first_gap(self) -> None:
        """Before it is read again: from the first hole on. Whoever was to fill it may have lost the partition first."""
        self.changelog_next = min({self.changelog_next, *self.holes})
        self.holes.clear()

    def mark_applied(self, offset: int, events: U64 | None = None) -> None:
        """Tell whoever waits for it that the columns hold the clicks up to ``offset``, the last of which had these keys."""
        self.applied = max(self.applied, offset)
        for listener in self.listeners:
            listener(self, events)

    def move_watermark(self, offset: int) -> None:
        """Move the watermark."""
        self.watermark = max(self.watermark, offset)
        self.wake()

    def wake(self) -> None:
        """Have everyone in :meth:`reached` look again."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def reached(self, offset: int, timeout_s: float) -> bool:
        """Wait until the watermark is at ``offset``; False if that takes longer.

        Raises:
            PartitionLost: the partition was revoked first.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while self.watermark < offset:
                    if not self.owned:
                        raise PartitionLost
                    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._waiting.append(future)
                    await future
        except TimeoutError:
            return False
        return True

    def is_serving(self) -> bool:
        """Whether it is ours and opened."""
        return self.owned and self.gate.is_open

    def require(self, generation: int) -> None:
        """Raises PartitionLost unless this worker still owns the partition in that generation."""
        if not self.is_ours(generation):
            raise PartitionLost

    def is_ours(self, generation: int) -> bool:
        return self.owned and self.generation == generation


class Profiles:
    """All partitions of this worker. ``log_length`` and ``state_size`` are the bundle's."""

    def __init__(
        self,
        settings: Settings,
        topics: Topics,
        producer: Producer,
        metrics: Metrics,
        *,
        writer: int,
        bundle_id: str,
        log_length: int,
        state_size: int,
        fail: Callable[[str], None],
    ) -> None:
        self._settings, self._topics, self._producer, self._metrics = settings, topics, producer, metrics
        self.writer = writer
        self.bundle = bundle_key(bundle_id)
        self._folder = settings.data_dir / "states" if settings.state_on_disk else None
        self._new_partition = partial(
            Partition,
            log_length=log_length,
            state_size=state_size,
            counters=settings.counters_per_user,
            folder=self._folder,
        )
        self.partitions: dict[int, Partition] = {}
        self._reader = Consumer(
            **settings.kafka_options(),
            group_id=settings.interests_group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=8 * 1024 * 1024,
            fetch_max_wait_ms=100,
        )
        self._reading = asyncio.Lock()
        self._paused_s: float | None = None  # since then, by a rebalance
        self._background = Background("the profiles store", fail)

    async def start(self) -> None:
        """Raises StopWorker where nothing can be kept in the folder that is to hold the users."""
        if self._folder is not None:
            try:
                RowFile(self._folder, np.dtype(np.uint8)).grown(1)
            except DiskFull as error:
                raise StopWorker(str(error)) from error
        await self._reader.start()
        self._background.spawn(self._audit())
        if self._settings.user_ttl_days is not None:
            self._background.spawn(self._expire(self._settings.user_ttl_days * 86_400_000.0))

    async def stop(self) -> None:
        await self._background.stop()
        await self._reader.stop()

    def partition(self, number: int) -> Partition | None:
        """The partition if this worker owns it (it may still be opening)."""
        partition = self.partitions.get(number)
        return partition if partition is not None and partition.owned else None

    def interrupt(self) -> None:
        """A rebalance or stop begins: whoever waits for a partition to be opened is sent away."""
        self._paused_s = self._paused_s or time.monotonic()
        for partition in self.partitions.values():
            partition.gate.interrupt()

    def freeze(self) -> None:
        """A rebalance begins: nothing is applied until partitions are assigned again."""
        for partition in self.partitions.values():
            partition.owned = False
            partition.changelog_done = _settled(True)
            partition.wake()
            partition.gate.close()

    def assign(self, numbers: Iterable[int], generation: int) -> None:
        """A rebalance ended: keep what came back, drop what others have, open what is new."""
        wanted = set(numbers)
        for number in set(self.partitions) - wanted:
            del self.partitions[number]
        for number in sorted(wanted):
            partition = self.partitions.setdefault(number, self._new_partition(number))
            partition.owned, partition.generation = True, generation
            partition.gate.close()
        self._metrics.rebalances_total.inc()
        if wanted:
            self._background.spawn(
                self._open([self.partitions[number] for number in sorted(wanted)], generation)
            )

    async def _open(self, partitions: list[Partition], generation: int) -> None:
        started = time.monotonic()

        async def read() -> int:
            async with self._reading:
                for partition in partitions:
                    partition.require(generation)
                return await self._read(partitions)

        records = await once_broker_answers(self._topics.profiles, read)
        users = 0
        for partition in partitions:
            if partition.owned and partition.generation == generation:
                users += len(partition.columns)
                partition.gate.open()
                partition.mark_applied(partition.watermark)
                if partition.overwritten:
                    self._background.spawn(
                        self._write_again(partition, set(partition.overwritten), generation)
                    )
        seconds = time.monotonic() - started
        self._metrics.restore_seconds.observe(seconds)
        if self._paused_s is not None and all(each.gate.is_open for each in self.partitions.values()):
            self._metrics.rebalance_pause_seconds.observe(time.monotonic() - self._paused_s)
            self._paused_s = None
        logger.info(
            "partitions_opened",
            count=len(partitions),
            users=users,
            records=records,
            seconds=round(seconds, 3),
        )

    async def _read(self, partitions: list[Partition]) -> int:
        """Bring partitions up to the end of the changelog; how many records that took. Harmless when repeated."""
        await self._check_clicks(partitions)
        tps = {TopicPartition(self._topics.profiles, each.number): each for each in partitions}
        ends = await self._reader.end_offsets(list(tps))
        self._reader.assign(list(tps))
        for tp, partition in tps.items():
            partition.rewind_to_first_gap()
            self._reader.seek(tp, partition.changelog_next)
        read, last_read = 0, time.monotonic()
        remaining = {tp for tp in tps if tps[tp].changelog_next < ends[tp]}
        for tp in set(tps) - remaining:
            self._reader.pause(tp)
        while remaining:
            got = await self._reader.getmany(*remaining, timeout_ms=500, max_records=_READ_RECORDS)
            for tp, records in got.items():
                self._load(tps[tp], records)
                read += len(records)
                last_read = time.monotonic()
                await asyncio.sleep(0)
            if time.monotonic() - last_read > READ_TIMEOUT_S:
                raise StopWorker(
                    f"{self._topics.profiles}: no record for {READ_TIMEOUT_S:.0f} s while reading it, "
                    "expected the changelog up to its end; look at the broker"
                )
            for tp in list(remaining):
                tps[tp].changelog_next = await self._reader.position(tp)
                if tps[tp].changelog_next >= ends[tp]:
                    remaining.discard(tp)
                    self._reader.pause(tp)
        await self._check_applied(partitions)
        return read

    async def _check_clicks(self, partitions: list[Partition]) -> None:
        """Set the watermark from the committed offset, and refuse offsets that this topic cannot have."""
        tps = {TopicPartition(self._topics.clicks, each.number): each for each in partitions}
        beginnings = await self._reader.beginning_offsets(list(tps))
        ends = await self._reader.end_offsets(list(tps))
        for tp, partition in tps.items():
            committed = await self._reader.committed(tp)
            if committed is not None and committed > ends[tp]:
                raise topic_recreated_error(
                    tp, f"the group's committed offset is {committed}", ends[tp], self._topics.profiles
                )
            partition.watermark = partition.applied = (
                committed if committed is not None else beginnings[tp]
            ) - 1

    async def _check_applied(self, partitions: list[Partition]) -> None:
        """Refuse users who have been further than the topic reaches: with a topic Kafka deletes its committed offsets,
        and every click of the new one would look as if it had been applied before."""
        tps = {TopicPartition(self._topics.clicks, each.number): each for each in partitions}
        # Asked for only now: whoever had the partition before may have gone on for a while.
        for tp, end in (await self._reader.end_offsets(list(tps))).items():
            columns = tps[tp].columns
            rows = np.array(list(columns.rows.values()), dtype=np.int64)
            applied = int(columns.offset[rows].max(initial=-1))
            if applied >= end:
                raise topic_recreated_error(
                    tp, f"clicks up to offset {applied} have been applied", end, self._topics.profiles
                )

    def _load(self, partition: Partition, records: list[ConsumerRecord]) -> None:
        """Apply changelog records: the last of the newest generation wins."""
        newest: dict[bytes, ConsumerRecord] = {}
        columns = partition.columns
        for record in records:
            held = newest.get(record.key)
            if held is not None:
                known = _generation_of(held)
            else:
                row = columns.rows.get(record.key)
                known = (
                    int(columns.generation[row])
                    if row is not None
                    else partition.erased_by.get(record.key, -1)
                )
            if _generation_of(record) >= known:
                newest[record.key] = record
                partition.overwritten.discard(record.key)
            else:  # written late by a worker that had lost the partition
                partition.overwritten.add(record.key)
        kept = []
        for user, record in newest.items():
            if record.value is not None:
                kept.append(record)
                continue
            if user in partition.columns.rows:
                partition.columns.remove(user)
            erasure = erasure_of(record.headers)
            if isinstance(erasure, Erasure):
                partition.forgotten[user], partition.erased_by[user] = erasure
        rows = np.array([partition.row_of(record.key) for record in kept], dtype=np.int64)
        try:
            unpack(partition.columns, rows, [record.value for record in kept], self.bundle)
        except RecordError as error:
            raise StopWorker(
                f"{self._topics.profiles}-{partition.number}, offsets {records[0].offset} to {records[-1].offset}: "
                f"{error}"
            ) from error

    async def send(
        self, partition: Partition, rows: I64, erased: Mapping[bytes, int], generation: int
    ) -> Sent:
        """Hand the users of ``rows`` to the changelog, and a tombstone for each one erased, with the time up to which
        events of theirs are dropped. Call it under the partition's lock and :meth:`settle` what it returns, in order.

        Raises:
            PartitionLost: the partition is not ours any more.
            StopWorker: the broker does not take records.
        """
        partition.require(generation)
        columns = partition.columns
        columns.generation[rows] = generation
        partition.erased_by.update(dict.fromkeys(erased, generation))
        users = [columns.users[row] for row in rows.tolist()]
        values = pack(columns, rows, WriterStamp(self.writer, generation, self.bundle)) if users else []
        records = list(map(Outgoing, users, values))
        records += [
            Outgoing(user, None, [erasure_header(Erasure(erased_ms, generation))])
            for user, erased_ms in erased.items()
        ]
        sent = await send_all(self._producer, self._topics.profiles, partition.number, records)
        partition.require(generation)  # the producer may have kept us waiting through a whole rebalance
        return sent

    async def settle(self, partition: Partition, sent: Sent, generation: int) -> None:
        """Wait until what was sent is acknowledged; what others wrote in between shows as a hole, and is repaired.

        Raises:
            PartitionLost: the partition is not ours any more.
            StopWorker: the broker did not take the records.
        """
        written = await sent.acknowledged()
        partition.require(generation)
        for start, stop in written:
            hole = partition.mark_seen(start, stop)
            if hole is not None:
                self._background.spawn(self._repair(partition, hole, start, generation))
        self._metrics.changelog_records_total.inc(len(sent))

    async def _write(
        self, partition: Partition, rows: I64, erased: Mapping[bytes, int], generation: int
    ) -> None:
        """Send and settle after all batches that are on their way. Call it under the partition's lock."""
        await asyncio.wait({partition.changelog_done})
        await self.settle(partition, await self.send(partition, rows, erased, generation), generation)

    async def _expire(self, ttl_ms: float) -> None:
        """Erase users without an event for ``ttl_ms``, a slice of a partition at a time."""
        while True:
            await asyncio.sleep(_EXPIRE_S)
            for partition in list(self.partitions.values()):
                async with partition.lock:
                    await asyncio.wait({partition.changelog_done})
                    if not partition.is_serving():
                        continue
                    columns, generation = partition.columns, partition.generation
                    before_ms = time.time() * 1000.0 - ttl_ms
                    rows = np.array(list(columns.rows.values()), dtype=np.int64)
                    # Logs may lie on the disk: those are left alone whose state shows a later event.
                    rows = rows[(columns.n[rows] > 0) & (columns.state_at_ms[rows] < before_ms)]
                    newest_ms = columns.at_ms[rows, columns.n[rows] - 1]
                    old = np.flatnonzero(newest_ms < before_ms)
                    gone = {
                        columns.users[int(rows[i])]: int(newest_ms[i]) for i in old[:_EXPIRE_USERS].tolist()
                    }
                    for user, erased_ms in gone.items():
                        columns.remove(user)
                        partition.forgotten[user] = erased_ms
                    if gone:
                        with contextlib.suppress(PartitionLost):
                            await self._write(partition, _NOBODY, gone, generation)

    async def _audit(self) -> None:
        """Look for foreign writes at the end of partitions that have been quiet since."""
        while True:
            await asyncio.sleep(_AUDIT_S)
            for partition in list(self.partitions.values()):
                async with partition.lock:
                    if not partition.is_serving():
                        continue
                    if not partition.changelog_done.done():
                        continue  # it is not quiet: its own writes will show a hole
                    generation = partition.generation
                    tp = TopicPartition(self._topics.profiles, partition.number)
                    try:
                        end = (await self._reader.end_offsets([tp]))[tp]
                    except KafkaError as error:
                        logger.warning("changelog_audit_failed", partition=partition.number, error=str(error))
                        continue
                    if not partition.is_serving() or partition.generation != generation:
                        continue
                    hole = partition.mark_seen(end, end)
                if hole is not None:
                    with contextlib.suppress(PartitionLost):
                        await self._repair(partition, hole, end, generation)

    async def _repair(self, partition: Partition, start: int, end: int, generation: int) -> None:
        """Read what lies between our own acknowledged records, and write again what it overwrote: records of others, or of
        ours that the broker took after all, when they had long been sent again.

        Raises:
            StopWorker: it cannot be read, or a later owner has written.
        """
        tp = TopicPartition(self._topics.profiles, partition.number)
        overwritten: set[bytes] = set()
        async with self._reading:
            self._reader.assign([tp])
            self._reader.seek(tp, start)
            deadline = time.monotonic() + READ_TIMEOUT_S
            position = start
            while position < end and time.monotonic() < deadline:
                for records in (await self._reader.getmany(tp, timeout_ms=500)).values():
                    for record in records:
                        if record.offset >= end:
                            continue
                        if _generation_of(record) > generation:
                            partition.require(generation)
                            raise StopWorker(
                                f"{tp.topic}-{tp.partition}: offset {record.offset} was written by generation "
                                f"{_generation_of(record)}, expected at most ours, {generation}: another worker owns "
                                "this partition. This one must be started again"
                            )
                        overwritten.add(record.key)
                position = await self._reader.position(tp)
            if position < end:
                raise StopWorker(
                    f"{tp.topic}-{tp.partition}: read up to offset {position} in {READ_TIMEOUT_S:.0f} s, expected {end}; "
                    "look at the broker"
                )
        if await self._write_again(partition, overwritten, generation):
            partition.holes.discard(start)

    async def _write_again(self, partition: Partition, overwritten: set[bytes], generation: int) -> bool:
        """Write what is known of users whose records others overwrote; whether something is known of all of them.

        Raises:
            PartitionLost: the partition is not ours any more.
            StopWorker: the broker does not take records.
        """
        async with partition.lock:
            partition.require(generation)
            known = partition.columns.rows
            rows = np.array([known[user] for user in overwritten if user in known], dtype=np.int64)
            gone = {
                user: partition.forgotten[user]
                for user in overwritten
                if user in partition.forgotten and user not in known
            }
            written = len(rows) + len(gone)
            if written:
                logger.warning("overwrites_repaired", partition=partition.number, users=written)
                await self._write(partition, rows, gone, generation)
                self._metrics.fenced_records_total.inc(len(rows))
            is_whole = written == len(overwritten)
            partition.overwritten -= overwritten
        return is_whole


def _generation_of(record: ConsumerRecord) -> int:
    if record.value is not None:
        return generation_of(record.value)
    erasure = erasure_of(record.headers)
    return erasure.generation if isinstance(erasure, Erasure) else -1
