"""The unit of work, a partition batch, and the gate it waits at until the state of its partition is there."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from aiokafka import ConsumerRecord, TopicPartition

from headwater.errors import PartitionLost


class CommitLedger(Protocol):
    """Keeps account of which batches are in hand and what may be committed."""

    def release(self, batch: "Batch") -> None: ...

    def finish(self, batch: "Batch") -> None: ...


class Batch:
    """The records of one partition that one fetch brought, in offset order.

    ``release`` lets the next batch of the partition be fetched; ``finish`` allows everything up to its last record
    to be committed as soon as all earlier batches are finished too, and releases it if need be.
    """

    __slots__ = ("_ledger", "finished", "generation", "has_siblings", "partition", "records", "topic")

    def __init__(
        self,
        ledger: CommitLedger,
        tp: TopicPartition,
        records: Sequence[ConsumerRecord],
        generation: int,
        has_siblings: bool = False,
    ) -> None:
        self._ledger = ledger
        self.topic, self.partition = tp
        self.records = records
        self.generation = generation
        self.has_siblings = has_siblings  # the fetch brought more of this topic, from other partitions
        self.finished = False

    @property
    def last_offset(self) -> int:
        return int(self.records[-1].offset)

    def release(self) -> None:
        self._ledger.release(self)

    def finish(self) -> None:
        self._ledger.finish(self)


class Gate:
    """What a partition's batches wait at until its state is there; broken when the partition is about to go."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._is_open = False
        self._is_broken = False

    @property
    def is_open(self) -> bool:
        return self._is_open

    def open(self) -> None:
        self._is_open = True
        self._changed.set()

    def close(self) -> None:
        """Shut again, for the next generation; whoever still waits is sent away."""
        self.interrupt()
        self._is_open = self._is_broken = False
        self._changed = asyncio.Event()

    def interrupt(self) -> None:
        """Send away whoever waits; an open gate stays open."""
        self._is_broken = not self._is_open
        self._changed.set()

    async def wait_open(self, timeout_s: float | None) -> None:
        """Raises PartitionLost when the partition goes first, TimeoutError after ``timeout_s`` (None: never)."""
        if self._is_open:
            return
        changed = self._changed
        async with asyncio.timeout(timeout_s):
            await changed.wait()
        if changed is not self._changed or self._is_broken:
            raise PartitionLost
