"""What may be committed: the end of the batches that are finished, in order, and nothing else. Pure; knows no client."""

from collections import deque
from collections.abc import Callable
from typing import Protocol

from aiokafka import TopicPartition


class InHand(Protocol):
    """What the ledger knows of a batch: its partition, the offset after it, and whether it may be committed."""

    tp: TopicPartition
    stop: int
    finished: bool


class CommitLedger:
    """The batches in hand of each partition, oldest first.

    A batch is *released* when the next one of its partition may begin, and *finished* when it may be committed. One
    that finishes before an older one waits for it. Batches may follow each other with gaps between their offsets.
    ``on_released`` is called whenever a partition may take its next batch.
    """

    def __init__(self, on_released: Callable[[], None] = lambda: None) -> None:
        self._on_released = on_released
        self._in_hand: dict[TopicPartition, deque[InHand]] = {}
        self._next: dict[TopicPartition, int] = {}
        self._begun: dict[TopicPartition, int] = {}
        # Partitions whose newest batch is not released: they take no other.
        self.busy: set[TopicPartition] = set()

    def begin(self, batch: InHand) -> None:
        """Take a batch in hand. It must be the next one of its partition, in offset order."""
        self._in_hand.setdefault(batch.tp, deque()).append(batch)
        self.busy.add(batch.tp)
        self._begun[batch.tp] = batch.stop

    def begun_up_to(self, tp: TopicPartition) -> int | None:
        """The offset after the newest batch, where the next one begins; before the first one, that of :meth:`start_at`."""
        return self._begun.get(tp)

    def start_at(self, tp: TopicPartition, offset: int) -> None:
        """Expect the first batch of a partition to begin at an offset, which is committed."""
        self._begun[tp] = offset

    def release(self, batch: InHand) -> None:
        """Let the next batch of its partition begin. Only the newest batch counts; repeated calls do no harm."""
        queue = self._in_hand.get(batch.tp)
        if queue and queue[-1] is batch:
            self.busy.discard(batch.tp)
            self._on_released()

    def finish(self, batch: InHand) -> None:
        """Allow everything up to the batch's last record to be committed, once all older batches are finished too.

        Releases it as well. Does nothing for a batch that :meth:`forget` has dropped.
        """
        queue = self._in_hand.get(batch.tp)
        if queue is None or batch not in queue:
            return
        batch.finished = True
        self.release(batch)
        while queue and queue[0].finished:
            self._next[batch.tp] = queue.popleft().stop

    def next_offset(self, tp: TopicPartition) -> int | None:
        """The offset to commit: one past the last that may be. None: nothing has been finished since :meth:`forget`."""
        return self._next.get(tp)

    def committable(self) -> dict[TopicPartition, int]:
        """The offset to commit of every partition that has one."""
        return dict(self._next)

    def forget(self) -> None:
        """Drop everything: the partitions are revoked. Finishing a batch of before has no effect from now on."""
        self._in_hand.clear()
        self.busy.clear()
        self._next.clear()
        self._begun.clear()
