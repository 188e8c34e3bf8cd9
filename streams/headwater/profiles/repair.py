"""**Zombie fencing.** A stale worker's write leaves a gap between our own offsets on the changelog.

The gap is read, and every user that it overwrote is written again. Our own late copies are treated the same: records that
the broker took after all, when they had long been sent again. A busy partition shows gaps in its own acknowledgements;
a quiet one is audited at its end every few seconds.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Final

import msgspec
import numpy as np
import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from headwater.errors import PartitionLost
from headwater.kafka.epochs import CLAIM_KEY, IsMember, next_epoch, pass_over_higher
from headwater.kafka.headers import CLAIM, Claim
from headwater.kafka.publish import Outgoing
from headwater.kafka.read_to_end import read_to_end
from headwater.kafka.skipped import SkippedRecords
from headwater.kafka.supervision import once_broker_answers
from headwater.metrics import Metrics
from headwater.profiles.columns import I64
from headwater.profiles.partition import Partition
from headwater.profiles.restore import is_user, load, orders_in
from headwater.profiles.sealed import again, read_back

logger = structlog.get_logger(__name__)

# How often the changelog of an idle partition is checked for writes that are not ours.
_AUDIT_S: Final = 5.0

# Writes rows and erased users of a partition in a generation; called under the partition's lock.
Write = Callable[[Partition, I64, Iterable[bytes], int], Awaitable[None]]
# Writes records of sealed users as they are, by user; called under the partition's lock.
WriteSealed = Callable[[Partition, Mapping[bytes, Outgoing], int], Awaitable[None]]
# Writes the claim of a partition again; takes the partition's lock.
ClaimAgain = Callable[[Partition], Awaitable[None]]


class Repair:
    """Finds foreign writes on the changelog and overwrites them. ``reading`` is held while ``reader`` is used.

    ``bundle`` is the key of the worker's own, see `state_records.bundle_key`.
    """

    def __init__(
        self,
        topic: str,
        reader: AIOKafkaConsumer,
        reading: asyncio.Lock,
        write: Write,
        write_sealed: WriteSealed,
        claim_again: ClaimAgain,
        metrics: Metrics,
        is_member: IsMember,
        bundle: int,
    ) -> None:
        self._topic, self._reader, self._reading, self._bundle = topic, reader, reading, bundle
        self._write, self._write_sealed = write, write_sealed
        self._claim_again, self._metrics = claim_again, metrics
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
                orders = orders_in(foreign)
                # Of a sealed user nothing is known here, so another record of a higher order is believed.
                of_sealed = [record for record in foreign if record.key in partition.sealed]
                believed = {record.key for record in of_sealed}
                load(partition, of_sealed, self._bundle, self._topic)
                believed -= partition.overwritten
                users.update(
                    record.key for record in foreign if is_user(record.key) and record.key not in believed
                )
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

    async def write_again(self, partition: Partition, users: Iterable[bytes], generation: int) -> bool:
        """Write users whose records others overwrote. Returns whether all of them are known.

        Raises:
            PartitionLost: the partition is not ours any more.
            StopWorker: the broker does not take records.
        """
        overwritten = set(users)
        sealed = await self._sealed_again(partition, overwritten)
        async with partition.lock:
            partition.require(generation)
            known = partition.columns.rows
            rows = np.array([known[user] for user in overwritten if user in known], dtype=np.int64)
            erased = [
                user
                for user in overwritten
                if user not in known and user not in partition.sealed and user in partition.erasures
            ]
            sealed = {user: record for user, record in sealed.items() if user in partition.sealed}
            written = len(rows) + len(erased) + len(sealed)
            if written:
                logger.warning("overwrites_repaired", partition=partition.number, users=written)
                if len(rows) or erased:
                    await self._write(partition, rows, erased, generation)
                await self._write_sealed(partition, sealed, generation)
                self._metrics.fenced_records_total.inc(len(rows) + len(sealed))
            partition.overwritten -= overwritten
        return written == len(overwritten)

    async def _sealed_again(self, partition: Partition, users: Iterable[bytes]) -> dict[bytes, Outgoing]:
        """The records of those of the users who are sealed. What compaction has taken is told, and lost."""
        sealed = {user: partition.sealed[user] for user in users if user in partition.sealed}
        if not sealed:
            return {}
        async with self._reading:
            found = await once_broker_answers(
                self._topic,
                lambda: read_back(self._reader, TopicPartition(self._topic, partition.number), sealed),
            )
        for user in sealed.keys() - found.keys():
            logger.error(
                "newer_record_lost",
                topic=self._topic,
                partition=partition.number,
                offset=sealed[user].offset,
                reason="a stale record overwrote it, and compaction has taken it",
            )
        return {user: again(record) for user, record in found.items()}


def _is_ours(record: ConsumerRecord, partition: Partition) -> bool:
    """Whether a claim says what ours says, as a late copy of it does."""
    claim, ours = CLAIM.of(record.headers), partition.claim
    if not isinstance(claim, Claim) or ours is None:
        return False
    return msgspec.structs.replace(claim, applied=ours.applied) == ours
