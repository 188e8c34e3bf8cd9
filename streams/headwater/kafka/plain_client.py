"""Both clients on aiokafka's public names alone: what is left when its next release breaks ``fast_client/``.

They keep the contracts of ``fast_client.consumer.Consumer`` and ``fast_client.producer.Producer``, more slowly, but for
one thing: what nobody can read is not passed, it is raised, again at each start. `fast_client/README.md` says what that is.
"""

import asyncio
import contextlib
import inspect
import time
from collections.abc import Callable, Collection, Container, Iterable, Sequence
from typing import Any, Final, NamedTuple

from aiokafka import (
    AIOKafkaConsumer,
    AIOKafkaProducer,
    ConsumerRebalanceListener,
    ConsumerRecord,
    TopicPartition,
)
from aiokafka.errors import IllegalStateError

from headwater.kafka.fast_client.records import Unreadable

# A partition that has been polled meanwhile is waited for, too, after at most this time.
_SLICE_S: Final = 0.02


class PlainConsumer(AIOKafkaConsumer):  # type: ignore[misc]
    """Polls one batch of each partition ahead, into a buffer of its own.

    The consumer's position is past the buffered records. A seek, an assignment and a rebalance drop them.
    """

    client = None  # so topics have no ids here, and logs no epochs

    def __init__(self, *topics: str, urgent: Collection[str] = (), **options: Any) -> None:
        super().__init__(*topics, **options)
        self.urgent = frozenset(urgent)
        self.on_records: Callable[[], int] | None = None  # never called: wait_for_records returns instead
        self.unreadable: list[Unreadable] = []  # always empty: aiokafka raises at what it cannot read
        self._ahead: dict[TopicPartition, _Ahead] = {}
        self._polled: dict[
            TopicPartition, tuple[int, int]
        ] = {}  # where the last poll of each began and ended
        self._next: dict[TopicPartition, int] = {}  # where the next fetch of each should begin
        self._drops = 0  # of all buffers
        self._drops_of: dict[TopicPartition, int] = {}  # of the buffer of one partition

    def poll_buffered(
        self, tps: Container[TopicPartition], max_records: int
    ) -> dict[TopicPartition, list[ConsumerRecord]]:
        """What has been fetched of ``tps``, urgent topics first, at most ``max_records`` in all. Never waits."""
        found: dict[TopicPartition, list[ConsumerRecord]] = {}
        for tp in sorted(self._ahead, key=lambda tp: tp.topic not in self.urgent):
            if tp in tps and max_records > 0:
                records, start, stop = self._ahead.pop(tp)
                found[tp], rest = records[:max_records], records[max_records:]
                max_records -= len(found[tp])
                end = int(found[tp][-1].offset) + 1 if rest else stop
                self._polled[tp] = start, end
                if rest:
                    self._ahead[tp] = _Ahead(rest, end, stop)
        return found

    def start_of(self, tp: TopicPartition) -> int:
        """The offset that the last poll of ``tp`` began at. Past that poll's predecessor where the log has lost records."""
        return self._polled[tp][0]

    def end_of(self, tp: TopicPartition, records: Sequence[ConsumerRecord] = ()) -> int:
        """The offset after ``records``, the last that were polled of ``tp``, and after control records behind them."""
        return self._polled[tp][1]

    def leader_epoch_of(self, tp: TopicPartition) -> int | None:
        """None: aiokafka does not tell."""
        return None

    def position_now(self, tp: TopicPartition) -> int | None:
        """None: a position that moves without records is polled as an empty list."""
        return None

    async def wait_for_records(self, timeout_s: float) -> None:
        """Wait until a fetch has brought something of a partition whose buffer is empty, at most ``timeout_s``.

        Raises:
            KafkaError: a fetch failed for good, or brought a damaged batch.
            ConsumerStoppedError: the consumer has been stopped.
        """
        until_s, drops = time.monotonic() + timeout_s, self._drops
        while (left_s := until_s - time.monotonic()) > 0 and drops == self._drops:
            slice_s = min(left_s, _SLICE_S)
            empty = self.assignment() - self.paused() - self._ahead.keys()
            if not empty:
                await asyncio.sleep(slice_s)
                continue
            drops_of = {tp: self._drops_of.get(tp, 0) for tp in empty}
            fetched = await self.getmany(*empty, timeout_ms=int(slice_s * 1000) + 1)
            try:
                came = [
                    each for tp in empty if (each := await self._came(tp, fetched.get(tp, ()))) is not None
                ]
            except IllegalStateError:  # revoked meanwhile
                return
            if drops != self._drops:
                return
            for tp, ahead in came:
                # A seek takes back what was polled of its own partition. The others' positions are past their records.
                if drops_of[tp] == self._drops_of.get(tp, 0):
                    self._ahead[tp], self._next[tp] = ahead, ahead.stop
            if came:
                return

    async def _came(
        self, tp: TopicPartition, records: Sequence[ConsumerRecord]
    ) -> "tuple[TopicPartition, _Ahead] | None":
        """What a poll brought of a partition: records, a position that moved without any, or nothing."""
        stop = int(records[-1].offset) + 1 if records else self._next.get(tp)
        with contextlib.suppress(TimeoutError):  # it is looked for: the next poll tells
            async with asyncio.timeout(_SLICE_S):
                stop = int(await self.position(tp))
        if stop is None or (not records and stop == self._next.setdefault(tp, stop)):
            return None
        first = int(records[0].offset) if records else stop
        start = self._next.get(tp, first)
        if first != start:
            # A compaction, or the marker of a transaction; or the log begins behind what was asked for.
            log_start = (await self.beginning_offsets([tp]))[tp]
            start = log_start if stop < start else max(start, log_start)
        return tp, _Ahead(list(records), start, stop)

    def subscribe(
        self,
        topics: Iterable[str] = (),
        pattern: str | None = None,
        listener: ConsumerRebalanceListener | None = None,
    ) -> None:
        """As aiokafka's; a revoked partition's buffer is dropped before ``listener`` hears of it."""
        super().subscribe(topics=topics, pattern=pattern, listener=_Dropping(self.drop, listener))

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        self.drop()
        super().assign(partitions)

    def unsubscribe(self) -> None:
        self.drop()
        super().unsubscribe()

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._drop_one(partition)
        super().seek(partition, offset)
        self._next[partition] = offset

    async def seek_to_committed(self, *partitions: TopicPartition) -> dict[TopicPartition, int | None]:
        """As aiokafka's."""
        self.drop()
        found: dict[TopicPartition, int | None] = await super().seek_to_committed(*partitions)
        self._next.update((tp, offset) for tp, offset in found.items() if offset is not None)
        return found

    async def seek_to_beginning(self, *partitions: TopicPartition) -> bool:
        self.drop()
        return bool(await super().seek_to_beginning(*partitions))

    async def seek_to_end(self, *partitions: TopicPartition) -> bool:
        self.drop()
        return bool(await super().seek_to_end(*partitions))

    def drop(self) -> None:
        """Forget what is buffered, also what a poll under way is about to bring."""
        self._ahead.clear()
        self._next.clear()
        self._drops += 1

    def _drop_one(self, tp: TopicPartition) -> None:
        self._ahead.pop(tp, None)
        self._next.pop(tp, None)
        self._drops_of[tp] = self._drops_of.get(tp, 0) + 1


class _Ahead(NamedTuple):
    """What has been fetched of a partition and not yet polled: where it begins, and the position after it."""

    records: list[ConsumerRecord]
    start: int
    stop: int


class _Dropping(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, drop: Callable[[], None], listener: ConsumerRebalanceListener | None) -> None:
        self._drop, self._listener = drop, listener

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        self._drop()
        if self._listener is not None:
            await _awaited(self._listener.on_partitions_revoked(revoked))

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        if self._listener is not None:
            await _awaited(self._listener.on_partitions_assigned(assigned))


async def _awaited(result: Any) -> None:
    if inspect.isawaitable(result):
        await result


class PlainProducer(AIOKafkaProducer):  # type: ignore[misc]
    """aiokafka's producer, which writes by itself a few turns of the event loop later."""

    def write_now(self) -> None:
        """Nothing: what was sent is on its way."""
