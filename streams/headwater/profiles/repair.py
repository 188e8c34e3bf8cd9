"""**Zombie fencing.** A stale worker's write leaves a gap between our own offsets on the changelog.

The gap is read, and every user that it overwrote is written again. Our own late copies are treated the same: records that
the broker took after all, when they had long been sent again. A busy partition shows gaps in its own acknowledgements;
a quiet one is audited at its end every few seconds.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Final

import msgspec
import numpy as np
import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from headwater.errors import PartitionLost, StopWorker
from headwater.kafka.epochs import CLAIM_KEY, IsMember, next_epoch, pass_over_higher
from headwater.kafka.headers import Claim, claim_of
from headwater.kafka.read_to_end import read_to_end
from headwater.kafka.skipped import SkippedRecords
from headwater.metrics import Metrics
from headwater.profiles.columns import I64
from headwater.profiles.order import Order
from headwater.profiles.partition import Partition
from headwater.profiles.restore import is_user, orders_in
from headwater.profiles.state_records import RecordError

logger = structlog.get_logger(__name__)

# How often the changelog of an idle partition is checked for writes that are not ours.
_AUDIT_S: Final = 5.0

# Writes rows and erased users of a partition in a generation; called under the partition's lock.
Write = Callable[[Partition, I64, Iterable[bytes], int], Awaitable[None]]
# Writes the claim of a partition again; takes the partition's lock.
ClaimAgain = Callable[[Partition], Awaitable[None]]


class Repair:
    """Finds foreign writes on the changelog and overwrites them. ``reading`` is held while ``reader`` is used."""

    def __init__(
        self,
        topic: str,
        reader: AIOKafkaConsumer,
        reading: asyncio.Lock,
        write: Write,
        claim_again: ClaimAgain,
        metrics: Metrics,
        is_member: IsMember,
    ) -> None:
        self._topic, self._reader, self._reading = topic, reader, reading
        self._write, self._claim_again, self._metrics = write, claim_again, metrics
        self._is_member, self._skipped = is_member, SkippedRecords(metrics)

    async def audit(self, partitions: Callable[[], Iterable[Partition]]) -> None:
        """Look for foreign writes at the end of quiet partitions, for ever.

        Raises:
            StopWorker: a gap cannot be read, or a later owner has written.
        """
        while True:
            await asyncio.sleep(_AUDIT_S)
            for partition in list(partitions()):
                async with partition.lock:
                    end = await self._end_if_quiet(partition)
                    if end is None:
                        continue
                    generation, gap = partition.generation, partition.mark_seen(end, end)
                if gap is not None:
                    with contextlib.suppress(PartitionLost):
                        await self.fill(partition, gap, end, generation)

    async def _end_if_quiet(self, partition: Partition) -> int | None:
        """The end of the partition's changelog, unless our own writes are on their way to it: they will show a gap."""
        if not partition.is_serving() or not partition.changelog_done.done():
            return None
        generation, tp = partition.generation, TopicPartition(self._topic, partition.number)
        try:
            end = (await self._reader.end_offsets([tp]))[tp]
        except KafkaError as error:
            logger.warning("changelog_audit_failed", partition=partition.number, error=str(error))
            return None
        is_ours = partition.is_serving() and partition.generation == generation
        return int(end) if is_ours else None

    async def fill(self, partition: Partition, start: int, end: int, generation: int) -> None:
        """Read the changelog's gap [start, end), and write again what it overwrote: users, and our claim.

        Raises:
            PartitionLost: the partition is not ours any more.
            StopWorker: it cannot be read, or a later owner has written. One that no owner wrote is skipped, and
                the next epoch is claimed.
        """
        users: set[bytes] = set()
        claim_is_foreign, highest = False, -1
        tp = TopicPartition(self._topic, partition.number)
        async with self._reading:
            self._reader.assign([tp])
            self._reader.seek(tp, start)
            async for run in read_to_end(self._reader, [tp], {tp: end}):
                foreign = [record for record in run.records if record.offset < end]
                partition.require(generation)
                orders = self._orders(foreign, partition)
                users.update(record.key for record in foreign if is_user(record.key))
                for record, order in zip(foreign, orders, strict=True):
                    if order is not None and order.epoch > partition.epoch:
                        await pass_over_higher(
                            record,
                            order.epoch,
                            partition.epoch,
                            partial(partition.require, generation),
                            self._is_member,
                            self._skipped,
                        )
                        highest = max(highest, order.epoch)
                    claim_is_foreign |= record.key == CLAIM_KEY and not _is_ours(record, partition)
        partition.require(generation)
        if highest > partition.epoch:
            partition.epoch = partition.highest_epoch = next_epoch(highest, generation)
            claim_is_foreign = True
        if claim_is_foreign:
            await self._claim_again(partition)
        if await self.write_again(partition, users, generation):
            partition.gaps.discard(start)

    def _orders(self, foreign: Sequence[ConsumerRecord], partition: Partition) -> list[Order | None]:
        """The order of each record, None for a damaged one. Raises StopWorker for one of a newer version."""
        try:
            return orders_in(foreign)
        except RecordError as error:
            raise StopWorker(f"{self._topic}-{partition.number}: {error}") from error

    async def write_again(self, partition: Partition, users: Iterable[bytes], generation: int) -> bool:
        """Write users whose records others overwrote. Returns whether all of them are known.

        Raises:
            PartitionLost: the partition is not ours any more.
            StopWorker: the broker does not take records.
        """
        async with partition.lock:
            partition.require(generation)
            overwritten, known = set(users), partition.columns.rows
            rows = np.array([known[user] for user in overwritten if user in known], dtype=np.int64)
            erased = [user for user in overwritten if user not in known and user in partition.erasures]
            written = len(rows) + len(erased)
            if written:
                logger.warning("overwrites_repaired", partition=partition.number, users=written)
                await self._write(partition, rows, erased, generation)
                self._metrics.fenced_records_total.inc(len(rows))
            partition.overwritten -= overwritten
        return written == len(overwritten)


def _is_ours(record: ConsumerRecord, partition: Partition) -> bool:
    """Whether a claim says what ours says, as a late copy of it does."""
    claim, ours = claim_of(record.headers), partition.claim
    if not isinstance(claim, Claim) or ours is None:
        return False
    return msgspec.structs.replace(claim, applied=ours.applied) == ours
