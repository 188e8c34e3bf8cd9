"""A consumer group: topics in, one handler call per partition batch, committed in order when finished.

The contract, and the part of it that needs no particular client. ``faust_group.py`` is what runs.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence, Set
from typing import NamedTuple

import structlog
from aiokafka import TopicPartition

from headwater.errors import PartitionLost, StopWorker
from headwater.kafka.batch import Batch
from headwater.kafka.commit_ledger import CommitLedger
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.fast_client.records import Unreadable
from headwater.kafka.group_logs import GroupLogs, OnLost
from headwater.kafka.plain_client import PlainConsumer
from headwater.messages import Gap
from headwater.settings import Settings

log = structlog.get_logger(__name__)

Handler = Callable[[Batch], Awaitable[None]]
OnPartitions = Callable[[set[TopicPartition]], Awaitable[None]]
OnUnreadable = Callable[[Sequence[Unreadable]], Awaitable[None]]


class GroupPosition(NamedTuple):
    """How far the group has come in one partition, counted in offsets.

    Not all of them are records: transactions leave markers, and aborted ones what nobody is given; compaction removes
    records. A group that is at the end has passed all of these.
    """

    next_offset: int | None  # one past the last that may be committed; None: not known yet
    # One past the last that may be read, as of the last fetch: the first offset of an open transaction, if there is one.
    # None: nothing fetched yet.
    end: int | None
    committed: int  # 0 before the first commit
    committing: int  # offsets that the commit under way adds; 0: there is none under way
    held_back: int = 0  # offsets behind the end, which an open transaction holds back


class ConsumerGroup(ABC):
    """One member of the group ``name``.

    Order of calls: ``handle`` for each topic, the ``on_...`` callbacks, ``join``, ``stop``. The caller of ``join`` also calls ``stop``.

    **A batch** is handed to its topic's handler as soon as it is fetched. One per partition is in hand until it is
    released; urgent topics go first. The handler finishes its batch itself. A commit covers finished batches only, in
    order. **A rebalance** interrupts, waits at most 5 s for the batches in hand, commits, revokes everything and
    assigns anew. What was not finished is read again by the next owner, and its handlers get
    :class:`PartitionLost` from the state they wait for. **Failure**: ``failed`` is resolved once, with a sentence. The
    process must then end without committing anything more.
    """

    def __init__(self, name: str, settings: Settings, *, fast: bool = True) -> None:
        self.name, self.settings = name, settings
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.urgent: set[str] = set()
        self.generation = -1  # of the newest assignment
        self._consumer_class = Consumer if fast else PlainConsumer
        self._reader: Consumer | PlainConsumer | None = None  # while it is read
        self._ledger = CommitLedger(self._begin_soon)
        self._handlers: dict[str, Handler] = {}
        self._remedies: dict[str, str] = {}
        self._logs = GroupLogs(self._remedies)
        self._in_hand: set[asyncio.Task[None]] = set()
        self._is_draining = False  # from the begin of a rebalance or stop to the next assignment
        self._begins_soon = False
        self._on_assigned: list[OnPartitions] = []
        self._on_revoked: list[OnPartitions] = []
        self._on_unreadable: list[OnUnreadable] = []
        self._on_interrupt: list[Callable[[], None]] = []

    # The contract

    def handle(self, topic: str, handler: Handler, *, urgent: bool = False, remedy: str = "") -> None:
        """Call ``handler`` with every batch of ``topic``. Call this before ``join``.

        The handler may take as long as it likes. A raised :class:`PartitionLost` drops the batch, a
        :class:`StopWorker` fails the group, and so does any other exception. None of them commits anything.

        A log that has become shorter is read on from where it was lost, or from its start. With a ``remedy`` it is left
        to the handler to stop the worker instead. This is a sentence: what to do where a worker that was started again
        has stopped again.
        """
        if urgent:
            self.urgent.add(topic)
        self._remedies[topic] = remedy
        self._handlers[topic] = handler

    def on_assigned(self, callback: OnPartitions) -> None:
        """Await ``callback`` with the whole new assignment at every rebalance, before fetching goes on."""
        self._on_assigned.append(callback)

    def on_revoked(self, callback: OnPartitions) -> None:
        """Await ``callback`` once the batches in hand are finished and committed, before others take over.

        At the first assignment it is awaited with none.
        """
        self._on_revoked.append(callback)

    def on_unreadable(self, callback: OnUnreadable) -> None:
        """Await ``callback`` with what the log has of a batch and nobody can read, before the batch's handler."""
        self._on_unreadable.append(callback)

    def on_interrupt(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when a rebalance or stop begins, so that batches that only wait give up. Must not block."""
        self._on_interrupt.append(callback)

    def on_lost(self, callback: OnLost) -> None:
        """Call ``callback(partition, gap, is_new)`` with offsets that are gone from the log and were never read.

        It is called before the batch behind them begins, which may be one without records; and with the newest gap that a
        former member has noticed, when the partition is assigned. Must not block.
        """
        self._logs.on_lost(callback)

    @abstractmethod
    async def join(self) -> None:
        """Join the group and begin to consume. Returns before there is an assignment.

        Raises:
            KafkaError: the broker is away, or refuses.
        """

    @abstractmethod
    async def stop(self) -> None:
        """Take no more, wait at most 5 s for the batches in hand, commit, leave the group."""

    def gaps(self) -> dict[TopicPartition, Gap]:
        """Of the assigned partitions: the newest offsets that were gone before they were read, for a week."""
        return self._logs.gaps()

    def gap(self, tp: TopicPartition) -> Gap | None:
        """Of one partition: the newest offsets that were gone before they were read, for a week."""
        return self._logs.note(tp).gap

    def note_gap(self, tp: TopicPartition, gap: Gap) -> None:
        """Tell of offsets that were gone before they were read, and commit that beside the offset behind them."""
        self._logs.note_gap(tp, gap)

    @abstractmethod
    async def keep_gap(self, tp: TopicPartition, gap: Gap) -> bool:
        """As `note_gap`, and commit at once: the next owner of the partition knows of the gap, whatever happens to this member.

        For a partition without a commit, of which nothing is in hand. False: the broker did not take it, for instance in a
        rebalance.
        """

    @property
    @abstractmethod
    def is_assigned(self) -> bool:
        """Whether an assignment has come; it may be without partitions."""

    @abstractmethod
    def assignment(self) -> Set[TopicPartition]:
        """The partitions of this member now."""

    @abstractmethod
    def position(self, tp: TopicPartition) -> GroupPosition:
        """How far the group has come in an assigned partition. Asks no broker."""

    @abstractmethod
    async def is_member(self) -> bool:
        """Ask the broker whether the assignment still holds: no other member owns any of its partitions then.

        False as well while a rebalance is under way, and where the broker does not answer.
        """

    def fail(self, reason: str) -> None:
        """Resolve ``failed`` with a sentence; only the first one counts."""
        if not self.failed.done():
            self.failed.set_result(reason)

    # For those who implement it

    @abstractmethod
    def _readable(self) -> Set[TopicPartition]:
        """The partitions that may be read now; none while the flow is stopped."""

    def _begin(self) -> int:
        """Begin what has been fetched of partitions that may take more work, urgent topics first.

        Returns how many records that is. Nothing is awaited between the look at the generation and the begin, so a
        rebalance finds each record either in hand or not polled yet.
        """
        self._begins_soon = False
        if self._reader is None or self._is_draining:
            return 0
        wanted = self._readable() - self._ledger.busy
        if not wanted:
            return 0
        left = most = self.settings.max_poll_records
        fetched = self._reader.poll_buffered(wanted, most)
        topics = [tp.topic for tp, records in fetched.items() if records]
        for tp, records in fetched.items():
            if not self._is_continuous(tp, self._reader.start_of(tp)):
                continue
            has_siblings, stop = topics.count(tp.topic) > 1, self._reader.end_of(tp, records)
            unreadable = [each for each in self._reader.unreadable if (each.topic, each.partition) == tp]
            epoch = self._reader.leader_epoch_of(tp)
            batch = Batch(self._ledger, tp, records, self.generation, has_siblings, stop, epoch)
            self._begin_batch(batch, unreadable)
            left -= len(records)
        if left <= 0:
            self._begin_soon()
        return most - left

    def _begin_batch(self, batch: Batch, unreadable: Sequence[Unreadable] = ()) -> None:
        read_to = self._ledger.begun_up_to(batch.tp)
        self._ledger.begin(batch)
        task = asyncio.ensure_future(self._handled(batch, unreadable, read_to))
        self._in_hand.add(task)
        task.add_done_callback(self._in_hand.discard)

    def _is_continuous(self, tp: TopicPartition, start: int) -> bool:
        """Whether a batch that begins at ``start`` may follow the newest one. What was lost in between is told.

        The client goes to the start of the log where the offset that it asks for is not there: forward if what it asks
        for has been deleted, back if the log has become shorter.
        """
        expected = self._ledger.begun_up_to(tp)
        if expected is None or start == expected:
            return True
        if start < expected:
            self.fail(
                f"{tp.topic}-{tp.partition}: the log ends before offset {expected}, up to which it was read: it has "
                "become shorter (an unclean leader election, or the topic was re-created). Start the worker again: it reads "
                "the log from its start, or says what is to be done first"
            )
            return False
        self.note_gap(tp, Gap(expected, start - 1))
        return True

    async def _check_logs(self) -> None:
        """Fail when a topic was made again under a running member. Call it every few seconds."""
        if self._reader is None or self._is_draining:
            return
        made_again = await self._logs.made_again(self._reader)
        if made_again is not None:
            self.fail(made_again)

    def _pass_lost(self) -> None:
        """Begin a batch without records behind what is gone from the log, where nothing else comes to be read.

        Call it every second or so.
        """
        if self._reader is None or self._is_draining:
            return
        for tp in self._readable() - self._ledger.busy:
            at, begun = self._reader.position_now(tp), self._ledger.begun_up_to(tp)
            if at is not None and begun is not None and at != begun and self._is_continuous(tp, at):
                self._begin_batch(Batch(self._ledger, tp, (), self.generation, stop=at))

    def _begin_soon(self) -> None:
        """Begin in the next turn of the event loop, for all partitions that are free by then."""
        if not self._begins_soon:
            self._begins_soon = True
            self.failed.get_loop().call_soon(self._begin)

    async def _handled(self, batch: Batch, unreadable: Sequence[Unreadable], read_to: int | None) -> None:
        try:
            if batch.leader_epoch != self._logs.leader_epoch(batch.tp):
                shorter = await self._logs.take_epoch(batch, read_to, self._reader)
                if shorter is not None:
                    self.fail(shorter)
                    return
            if unreadable:
                for callback in self._on_unreadable:
                    await callback(unreadable)
            await self._handlers[batch.topic](batch)
        except PartitionLost:
            log.info("batch_dropped", topic=batch.topic, partition=batch.partition, reason="revoked")
        except StopWorker as error:
            self.fail(str(error))
        except Exception as error:
            log.exception("handler_failed", topic=batch.topic, partition=batch.partition)
            self.fail(f"unexpected {type(error).__name__} in the handler of {batch.topic}: {error}")

    async def _drain(self, timeout_s: float) -> None:
        """Interrupt, begin no batch until the next assignment, and wait for those in hand, at most ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        self._is_draining = True
        for callback in self._on_interrupt:
            callback()
        while tasks := {task for task in self._in_hand if not task.done()}:
            left_s = deadline - time.monotonic()
            if left_s <= 0.0:
                return
            await asyncio.wait(tasks, timeout=left_s)

    async def _assigned(self, tps: Iterable[TopicPartition], generation: int) -> None:
        self._is_draining, self.generation = False, generation
        for callback in self._on_assigned:
            await callback({TopicPartition(*tp) for tp in tps})

    async def _revoked(self, tps: Iterable[TopicPartition]) -> None:
        for callback in self._on_revoked:
            await callback({TopicPartition(*tp) for tp in tps})
