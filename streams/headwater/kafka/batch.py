"""The unit of work, a partition batch, and the gate where it waits for the state of its partition."""

import asyncio
from collections.abc import Sequence

from aiokafka import ConsumerRecord, TopicPartition

from headwater.errors import PartitionLost
from headwater.kafka.commit_ledger import CommitLedger


class Batch:
    """The records of one partition that one fetch brought, in offset order.

    ``stop`` is the offset after it, by default that after its last record. A transaction ends with a control record,
    which has an offset and nothing to handle: then a batch goes beyond its records, or has none.

    ``generation`` is that of the group when the batch began. ``has_siblings``: the same fetch brought more of this
    topic, from other partitions. ``leader_epoch`` is that of the batch's last record, or a later one; None: unknown.
    """

    __slots__ = (
        "_ledger",
        "finished",
        "generation",
        "has_siblings",
        "leader_epoch",
        "partition",
        "records",
        "stop",
        "topic",
        "tp",
    )

    def __init__(
        self,
        ledger: CommitLedger,
        tp: TopicPartition,
        records: Sequence[ConsumerRecord],
        generation: int,
        has_siblings: bool = False,
        stop: int | None = None,
        leader_epoch: int | None = None,
    ) -> None:
        self._ledger = ledger
        self.tp = tp
        self.topic, self.partition = tp
        self.records = records
        self.stop = int(records[-1].offset) + 1 if stop is None else stop
        self.generation = generation
        self.has_siblings = has_siblings
        self.leader_epoch = leader_epoch
        self.finished = False

    @property
    def last_offset(self) -> int:
        """The last offset that is done with this batch."""
        return self.stop - 1

    def take_records(self) -> Sequence[ConsumerRecord]:
        """The records, which the batch forgets: it may be unfinished for long, and needs only their offsets."""
        records, self.records = self.records, ()
        return records

    def release(self) -> None:
        """Let the next batch of the partition begin before this one is finished."""
        self._ledger.release(self)

    def finish(self) -> None:
        """Allow everything up to :attr:`last_offset` to be committed, once all earlier batches are finished too."""
        self._ledger.finish(self)


class Gate:
    """Where the batches of a partition wait for its state; interrupted when the partition is about to be revoked."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._is_open = False
        self._is_broken = False

    @property
    def is_open(self) -> bool:
        """Whether batches pass without waiting."""
        return self._is_open

    def open(self) -> None:
        """Let all waiting batches pass, and later ones without waiting."""
        self._is_open = True
        self._changed.set()

    def close(self) -> None:
        """Shut the gate for the next generation; batches that still wait get PartitionLost."""
        self.interrupt()
        self._is_open = self._is_broken = False
        self._changed = asyncio.Event()

    def interrupt(self) -> None:
        """Send waiting batches away with PartitionLost. An open gate stays open."""
        self._is_broken = not self._is_open
        self._changed.set()

    async def wait_open(self, timeout_s: float | None) -> None:
        """Wait until the gate is open.

        Raises:
            PartitionLost: the gate was interrupted or closed first.
            TimeoutError: it was not open after ``timeout_s``; None waits for ever.
        """
        if self._is_open:
            return
        changed = self._changed
        async with asyncio.timeout(timeout_s):
            await changed.wait()
        if changed is not self._changed or self._is_broken:
            raise PartitionLost
