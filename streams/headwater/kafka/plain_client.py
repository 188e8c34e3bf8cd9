"""Both clients on aiokafka's public names alone: what is left when its next release breaks ``fast_client/``.

They keep the contracts of ``fast_client.consumer.Consumer`` and ``fast_client.producer.Producer``, more slowly.
"""

import asyncio
import inspect
import time
from collections.abc import Callable, Collection, Container, Iterable, Sequence
from typing import Any, Final

from aiokafka import (
    AIOKafkaConsumer,
    AIOKafkaProducer,
    ConsumerRebalanceListener,
    ConsumerRecord,
    TopicPartition,
)

# A partition that has been polled meanwhile is waited for, too, after at most this time.
_SLICE_S: Final = 0.02


class PlainConsumer(AIOKafkaConsumer):  # type: ignore[misc]
    """Polls one batch of each partition ahead, into a buffer of its own.

    The consumer's position is past the buffered records. A seek, an assignment and a rebalance drop them.
    """

    def __init__(self, *topics: str, urgent: Collection[str] = (), **options: Any) -> None:
        super().__init__(*topics, **options)
        self.urgent = frozenset(urgent)
        self.on_records: Callable[[], int] | None = None  # never called: wait_for_records returns instead
        self._ahead: dict[TopicPartition, list[ConsumerRecord]] = {}
        self._drops = 0

    def poll_buffered(
        self, tps: Container[TopicPartition], max_records: int
    ) -> dict[TopicPartition, list[ConsumerRecord]]:
        """What has been fetched of ``tps``, urgent topics first, at most ``max_records`` in all. Never waits."""
        found: dict[TopicPartition, list[ConsumerRecord]] = {}
        for tp in sorted(self._ahead, key=lambda tp: tp.topic not in self.urgent):
            if tp in tps and max_records > 0:
                records = self._ahead.pop(tp)
                found[tp], rest = records[:max_records], records[max_records:]
                max_records -= len(found[tp])
                if rest:
                    self._ahead[tp] = rest
        return found

    def end_of(self, tp: TopicPartition, records: Sequence[ConsumerRecord]) -> int:
        """The offset after ``records``, the last that were polled of ``tp``. Control records are not told here."""
        return int(records[-1].offset) + 1

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
            fetched = await self.getmany(*empty, timeout_ms=int(slice_s * 1000) + 1)
            if fetched and drops == self._drops:
                self._ahead.update(fetched)
                return

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

    async def seek_to_beginning(self, *partitions: TopicPartition) -> bool:
        self.drop()
        return bool(await super().seek_to_beginning(*partitions))

    async def seek_to_end(self, *partitions: TopicPartition) -> bool:
        self.drop()
        return bool(await super().seek_to_end(*partitions))

    def drop(self) -> None:
        """Forget what is buffered, also what a poll under way is about to bring."""
        self._ahead.clear()
        self._drops += 1

    def _drop_one(self, tp: TopicPartition) -> None:
        self._ahead.pop(tp, None)
        self._drops += 1


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
