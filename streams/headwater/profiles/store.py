"""All clicks partitions of this worker: opened when they are assigned, written, and frozen when they are revoked.

The profiles topic is their changelog. A partition is opened by reading it in bulk: Faust's own table recovery takes eight
minutes for a million users. A partition that comes back goes on from where it was, and one that another worker has is
dropped. Writes are awaited.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

import msgspec
import numpy as np
import structlog
from aiokafka import TopicPartition

from headwater.errors import PartitionLost, StopWorker
from headwater.kafka.epochs import IsMember, claim_record, next_epoch
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.headers import Claim
from headwater.kafka.publish import Outgoing, Sent, Written, send_all
from headwater.kafka.supervision import Background, once_broker_answers
from headwater.kafka.topic_identity import Identity, identities
from headwater.kafka.topics import Topics, tombstone_ms
from headwater.metrics import Metrics
from headwater.profiles.clicks_log import OnLost
from headwater.profiles.columns import I64
from headwater.profiles.partition import Partition, finished
from headwater.profiles.repair import Repair
from headwater.profiles.restore import Restored, restore
from headwater.profiles.row_file import DiskFull, RowFile
from headwater.profiles.sealed import SEALED_REMEDY
from headwater.profiles.state_records import WriterStamp, bundle_key, empty_record, pack
from headwater.settings import Settings

logger = structlog.get_logger(__name__)

# Users past HEADWATER_USER_TTL_DAYS are looked for this often, and this many are erased at a time, so that clicks go on.
# So are erasures that the changelog need not hold any more.
_EXPIRE_S: Final = 10.0
_EXPIRE_USERS: Final = 2_000
_NO_ROWS: Final = np.zeros(0, dtype=np.int64)


class ProfileLayout(NamedTuple):
    """What rows and records of users hold, by the bundle that steps their states."""

    bundle_id: str
    log_length: int  # L, events in a log
    state_size: int  # S, numbers in a state


class Profiles:
    """All partitions of this worker. ``writer`` stands in its records; ``fail`` ends the worker with a sentence.

    ``on_lost`` is told of clicks that were gone before they were read, where the group's offsets do not show it.

    ``producer`` writes nothing else: what it gives up leaves a hole that ends the worker.
    """

    def __init__(
        self,
        settings: Settings,
        topics: Topics,
        producer: Producer,
        metrics: Metrics,
        layout: ProfileLayout,
        *,
        writer: int,
        fail: Callable[[str], None],
        on_lost: OnLost,
        is_member: IsMember,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._topics, self._producer, self._metrics = settings, topics, producer, metrics
        self._clock, self._on_lost = clock, on_lost
        self.writer, self.bundle = writer, bundle_key(layout.bundle_id)
        self.clicks_topic, self.partition_count = topics.clicks, settings.partitions
        self._folder = settings.data_dir / "states" if settings.state_on_disk else None
        self._new_partition = partial(
            Partition,
            log_length=layout.log_length,
            state_size=layout.state_size,
            counters=settings.counters_per_user,
            hides=settings.hides_per_user,
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
        self._paused_s: float | None = None  # when a rebalance began that has not ended
        self._background = Background("the profiles store", fail)
        self._repair = Repair(
            topics.profiles,
            self._reader,
            self._reading,
            self._write,
            self._write_sealed,
            self._claim_again,
            metrics,
            is_member,
            self.bundle,
        )

    async def start(self) -> None:
        """Raises StopWorker if the folder that is to hold the users takes no file."""
        if self._folder is not None:
            try:
                RowFile(self._folder, np.dtype(np.uint8)).grown(1)
            except DiskFull as error:
                raise StopWorker(str(error)) from error
        await self._reader.start()
        self._background.start(self._repair.audit(self.partitions.values))
        self._background.start(self._expire())

    async def stop(self) -> None:
        """End background work, then close the reader."""
        await self._background.stop()
        await self._reader.stop()

    # Assignment

    def partition(self, number: int) -> Partition | None:
        """The partition if this worker owns it (it may still be opening)."""
        partition = self.partitions.get(number)
        return partition if partition is not None and partition.owned else None

    def interrupt(self) -> None:
        """A rebalance or stop begins: batches that wait for a partition to be opened are given up."""
        self._paused_s = self._paused_s or time.monotonic()
        for partition in self.partitions.values():
            partition.gate.interrupt()

    def freeze(self) -> None:
        """A rebalance begins: nothing is applied until partitions are assigned again."""
        for partition in self.partitions.values():
            partition.owned = False
            partition.changelog_done = finished(True)
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
            partitions = [self.partitions[number] for number in sorted(wanted)]
            self._background.start(self._open(partitions, generation))

    async def _open(self, partitions: list[Partition], generation: int) -> None:
        started = time.monotonic()

        async def read() -> tuple[Restored, Mapping[TopicPartition, Identity]]:
            async with self._reading:
                for partition in partitions:
                    partition.require(generation)
                logs = await identities(self._producer.client, [self.clicks_topic])
                found = await restore(
                    self._reader, self._topics, partitions, self.bundle, logs, self._on_lost
                )
                return found, logs

        restored, logs = await once_broker_answers(self._topics.profiles, read)
        self._metrics.damaged_records_total.labels(self._topics.profiles).inc(restored.damaged)
        await asyncio.gather(*(self._claim(each, generation, logs) for each in partitions))
        users = 0
        for partition in partitions:
            if partition.is_ours(generation):
                users += len(partition.columns)
                partition.gate.open()
                partition.mark_applied(partition.watermark)
                _tell_of_sealed(partition, self._topics.profiles)
                if partition.overwritten:
                    again = set(partition.overwritten)
                    self._background.start(self._repair.write_again(partition, again, generation))
        seconds = time.monotonic() - started
        self._metrics.restore_seconds.observe(seconds)
        if self._paused_s is not None and all(each.gate.is_open for each in self.partitions.values()):
            self._metrics.rebalance_pause_seconds.observe(time.monotonic() - self._paused_s)
            self._paused_s = None
        logger.info(
            "partitions_opened",
            count=len(partitions),
            users=users,
            records=restored.records,
            seconds=round(seconds, 3),
        )

    async def _claim(
        self, partition: Partition, generation: int, logs: Mapping[TopicPartition, Identity]
    ) -> None:
        """Claim the next epoch of a partition whose changelog has been read to its end.

        Raises:
            PartitionLost: the partition is not ours any more.
            StopWorker: the broker does not take records.
        """
        partition.require(generation)
        partition.epoch = partition.highest_epoch = next_epoch(partition.highest_epoch, generation)
        log = logs.get(TopicPartition(self.clicks_topic, partition.number), Identity())
        claim = Claim(partition.epoch, partition.incarnation, partition.watermark, log.topic_id)
        await self._write_claim(partition, claim, generation)

    async def _write_claim(self, partition: Partition, claim: Claim, generation: int) -> None:
        partition.claim = claim
        record = claim_record(claim, empty_record(claim.epoch, self.bundle))
        sent = await send_all(self._producer, self._topics.profiles, partition.number, [record])
        await self.settle(partition, sent, generation)

    # Writing

    async def send(self, partition: Partition, rows: I64, erased: Iterable[bytes], generation: int) -> Sent:
        """Hand users to the changelog. Call it under the partition's lock, and :meth:`settle` in order.

        Args:
            rows: (R,) the users whose records are written.
            erased: users without a row, whose tombstones are written: each says until when events are dropped.

        Raises:
            PartitionLost: the partition is not ours any more.
            StopWorker: the broker does not take records.
        """
        partition.require(generation)
        columns = partition.columns
        epoch, incarnation = partition.epoch, partition.incarnation
        columns.mark_written(rows, incarnation, epoch)
        users = [columns.users[row] for row in rows.tolist()]
        stamp = WriterStamp(self.writer, epoch, self.bundle, incarnation)
        values = pack(columns, rows, stamp) if users else []
        tombstones = partition.erasures.tombstones(erased, incarnation, epoch, round(self._clock() * 1000.0))
        records = list(map(Outgoing, users, values)) + tombstones
        sent = await send_all(self._producer, self._topics.profiles, partition.number, records)
        partition.require(generation)  # the producer may have kept us waiting through a whole rebalance
        return sent

    def write_now(self) -> None:
        """Have what was sent in this turn of the loop leave before other callbacks run."""
        self._producer.write_now()

    async def settle(self, partition: Partition, sent: Sent, generation: int) -> None:
        """Wait until what was sent is acknowledged. Foreign writes in between show as a gap, which is filled.

        Raises:
            PartitionLost: the partition is not ours any more.
            StopWorker: the broker did not take the records.
        """
        self._mark_seen(partition, await sent.acknowledged(), generation)
        self._metrics.changelog_records_total.inc(len(sent))

    def _mark_seen(self, partition: Partition, written: Sequence[Written], generation: int) -> None:
        partition.require(generation)
        for start, stop in written:
            gap = partition.mark_seen(start, stop)
            if gap is not None:
                self._background.start(self._repair.fill(partition, gap, start, generation))

    async def _write(self, partition: Partition, rows: I64, erased: Iterable[bytes], generation: int) -> None:
        """Send and settle after all batches that are on their way. Call it under the partition's lock."""
        await asyncio.wait({partition.changelog_done})
        await self.settle(partition, await self.send(partition, rows, erased, generation), generation)

    async def _write_sealed(
        self, partition: Partition, records: Mapping[bytes, Outgoing], generation: int
    ) -> None:
        """Write records of sealed users as they are. Call it under the partition's lock."""
        await asyncio.wait({partition.changelog_done})
        for user, record in records.items():
            partition.require(generation)
            sent = await send_all(self._producer, self._topics.profiles, partition.number, [record])
            written = await sent.settled()
            self._mark_seen(partition, written, generation)
            if sent.refused:
                logger.error(
                    "newer_record_not_written", partition=partition.number, error=sent.refused[0].message
                )
            for start, _ in written:
                partition.sealed[user] = partition.sealed[user]._replace(offset=start)

    async def close_segment(self, number: int) -> None:
        """Claim a partition once more. Kafka closes an old segment of the log when more is written.

        Raises:
            StopWorker: the broker did not take it.
        """
        partition = self.partition(number)
        if partition is not None:
            await self._claim_again(partition)

    async def _claim_again(self, partition: Partition) -> None:
        """Write the claim with what is applied now, in our epoch, if the partition is served."""
        async with partition.lock:
            await asyncio.wait({partition.changelog_done})
            if not partition.is_serving() or partition.claim is None:
                return
            claim = msgspec.structs.replace(
                partition.claim, epoch=partition.epoch, applied=partition.watermark
            )
            with contextlib.suppress(PartitionLost):
                await self._write_claim(partition, claim, partition.generation)

    # Expiry

    async def _expire(self) -> None:
        """Forget erasures that have lasted, and erase users without an event for a while, a slice of a partition at a time."""
        ttl_days = self._settings.user_ttl_days
        kept_ms = tombstone_ms(self._settings)
        while True:
            await asyncio.sleep(_EXPIRE_S)
            for partition in list(self.partitions.values()):
                partition.erasures.sweep(round(self._clock() * 1000.0) - kept_ms)
                if ttl_days is None:
                    continue
                async with partition.lock:
                    await asyncio.wait({partition.changelog_done})
                    if not partition.is_serving():
                        continue
                    generation = partition.generation
                    gone = _expired(partition, self._clock() * 1000.0 - ttl_days * 86_400_000.0)
                    for user, erased_ms in gone.items():
                        partition.erase(user, erased_ms)
                    if gone:
                        with contextlib.suppress(PartitionLost):
                            await self._write(partition, _NO_ROWS, gone, generation)


def _tell_of_sealed(partition: Partition, topic: str) -> None:
    if partition.sealed:
        logger.error(
            "users_of_a_newer_format",
            topic=topic,
            partition=partition.number,
            users=len(partition.sealed),
            offset=min(each.offset for each in partition.sealed.values()),
            effect="their clicks become dead letters, their answers are degraded, and their records stay as they are",
            remedy=SEALED_REMEDY,
        )


def _expired(partition: Partition, before_ms: float) -> dict[bytes, int]:
    """At most 2,000 users whose newest event is older than ``before_ms``, with its time."""
    columns = partition.columns
    rows = np.array(list(columns.rows.values()), dtype=np.int64)
    # Logs may lie on the disk. Those whose state shows a later event are left alone.
    rows = rows[(columns.n[rows] > 0) & (columns.state_at_ms[rows] < before_ms)]
    newest_ms = columns.at_ms[rows, columns.n[rows] - 1]
    old = np.flatnonzero(newest_ms < before_ms)[:_EXPIRE_USERS].tolist()
    return {columns.users[int(rows[place])]: int(newest_ms[place]) for place in old}
