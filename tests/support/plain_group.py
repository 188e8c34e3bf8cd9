"""The contract of a consumer group kept by aiokafka alone, without Faust: what shows that the contract needs no Faust."""

import asyncio
import contextlib
from collections.abc import Iterable, Set

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import CommitFailedError, ConsumerStoppedError, IllegalStateError
from aiokafka.structs import OffsetAndMetadata

from headwater.kafka.commit_notes import note_text
from headwater.kafka.consumer_group import ConsumerGroup, GroupPosition
from headwater.settings import Settings

_DRAIN_S = 5.0
_CHECK_S = 1.0


class PlainGroup(ConsumerGroup):
    """A member of a consumer group; its listener drains, commits and hands over within aiokafka's own rebalance."""

    def __init__(self, name: str, settings: Settings, *, fast: bool = True) -> None:
        super().__init__(name, settings, fast=fast)
        self._consumer = self._consumer_class(
            **settings.kafka_options(),
            urgent=self.urgent,
            group_id=name,
            partition_assignment_strategy=[RangePartitionAssignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            max_poll_records=settings.max_poll_records,
            session_timeout_ms=int(settings.session_timeout_s * 1000),
            fetch_max_wait_ms=500,
        )
        self._committed: dict[TopicPartition, int] = {}
        self._flows, self._came = False, False
        self._tasks: list[asyncio.Task[None]] = []

    async def join(self) -> None:
        await self._consumer.start()
        self._consumer.subscribe(list(self._handlers), listener=_Listener(self))
        self._reader = self._consumer
        self._consumer.on_records = self._begin
        self._tasks = [
            asyncio.create_task(each) for each in (self._read(), self._commit_often(), self._pass())
        ]

    async def stop(self) -> None:
        if self._tasks:
            await self.hand_over(())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._consumer.stop()

    @property
    def is_assigned(self) -> bool:
        return self._came

    def assignment(self) -> Set[TopicPartition]:
        return frozenset(self._consumer.assignment())

    def position(self, tp: TopicPartition) -> GroupPosition:
        committed, finished = self._committed.get(tp), self._ledger.next_offset(tp)
        written, end = self._consumer.highwater(tp), self._consumer.last_stable_offset(tp)
        return GroupPosition(
            next_offset=committed if finished is None else finished,
            end=end,
            committed=committed or 0,
            committing=0,
            held_back=0 if end is None or written is None else max(written - end, 0),
        )

    async def hand_over(self, tps: Iterable[TopicPartition]) -> None:
        """Finish what is in hand, commit it, and give everything up."""
        self._flows = False
        if self._came:  # aiokafka revokes nothing before the first assignment too
            await self._drain(_DRAIN_S)
            await self._commit()
        self._ledger.forget()
        await self._revoked(tps)

    async def take_over(self, tps: Iterable[TopicPartition]) -> None:
        """Go on where the former owners have committed."""
        self._committed.clear()
        from_start = await self._take_notes(self._consumer, frozenset(tps))
        for tp in tps:
            offset = await self._consumer.committed(tp)
            if tp in from_start:
                await self._consumer.seek_to_beginning(tp)
            elif offset is not None:
                self._committed[tp] = offset
                self._consumer.seek(tp, offset)
                self._ledger.start_at(tp, offset)
        await self._assigned(tps, self._consumer._coordinator.generation)
        self._came = self._flows = True
        self._begin_soon()

    def _readable(self) -> Set[TopicPartition]:
        return self.assignment() if self._flows else frozenset()

    async def _read(self) -> None:
        with contextlib.suppress(ConsumerStoppedError):
            while True:
                self._begin()
                await self._consumer.wait_for_records(_CHECK_S)

    async def _commit_often(self) -> None:
        while True:
            await asyncio.sleep(self.settings.commit_interval_s)
            if self._flows and not self.failed.done():
                await self._commit()

    async def _pass(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_S)
            self._pass_lost()

    async def _commit(self) -> None:
        due = {
            tp: offset
            for tp, offset in self._ledger.committable().items()
            if offset != self._committed.get(tp) and tp in self.assignment()
        }
        if due and not self.failed.done():
            with contextlib.suppress(CommitFailedError, IllegalStateError):  # the next owner reads it again
                await self._consumer.commit(
                    {tp: OffsetAndMetadata(offset, note_text(self._note(tp))) for tp, offset in due.items()}
                )
                self._committed |= due


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, group: PlainGroup) -> None:
        self._group = group

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        await self._group.hand_over(revoked)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        await self._group.take_over(assigned)
