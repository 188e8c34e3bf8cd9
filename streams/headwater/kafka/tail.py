"""Following a whole topic without a group: what a worker must know beside its own partitions."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError

from headwater.errors import StopWorker
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.read_to_end import read_to_end
from headwater.kafka.supervision import Background, once_broker_answers
from headwater.settings import Settings

_MAX_RECORDS: Final = 2_000
_START_TIMEOUT_S: Final = 60.0

OnRecords = Callable[[Sequence[ConsumerRecord]], Awaitable[None]]


class Tail:
    """Calls ``on_records`` with the records of each partition in order, from the beginning, or from the newest one on.

    ``caught_up`` is set once everything that was there at the start has been handed over. What ``on_records`` raises
    ends the worker by ``fail``, as does a broker that gives nothing for two minutes. The starter of a tail stops it.
    """

    def __init__(
        self,
        settings: Settings,
        topic: str,
        on_records: OnRecords,
        fail: Callable[[str], None],
        *,
        from_end: bool = False,
    ) -> None:
        self._topic, self._on_records, self._from_end = topic, on_records, from_end
        self.caught_up = asyncio.Event()
        # The client knows the partitions of a topic only if it is named here. Assigning them later is too late.
        self._consumer = Consumer(
            topic,
            **settings.kafka_options(),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=2 * 1024 * 1024,
            fetch_max_wait_ms=500,
        )
        self._background = Background(f"the tail of {topic}", fail)

    async def start(self) -> None:
        """Find the ends, and begin to read.

        Raises:
            StopWorker: there is no such topic.
            KafkaError: the broker is away, or refuses.
            TimeoutError: it did not tell the ends within a minute.
        """
        try:
            await self._consumer.start()
        except UnknownTopicOrPartitionError:
            await self._consumer.stop()
            raise StopWorker(
                f"{self._topic}: the topic does not exist; run `headwater topics create`"
            ) from None
        tps = sorted(self._consumer.assignment())
        async with asyncio.timeout(_START_TIMEOUT_S):
            ends = await self._consumer.end_offsets(tps)
            starts = await self._consumer.beginning_offsets(tps)
        if self._from_end:  # the newest record tells how far its writer is
            starts = {tp: max(starts[tp], ends[tp] - 1) for tp in tps}
        for tp in tps:
            self._consumer.seek(tp, starts[tp])
        if all(starts[tp] >= ends[tp] for tp in tps):
            self.caught_up.set()
        self._background.start(self._follow(ends))

    async def stop(self) -> None:
        """Read no more, and close the client. The call to ``on_records`` under way is cancelled."""
        await self._background.stop()
        await self._consumer.stop()

    async def _follow(self, ends: dict[TopicPartition, int]) -> None:
        if not self.caught_up.is_set():
            await once_broker_answers(self._topic, lambda: self._catch_up(ends))
            self.caught_up.set()
        while True:
            await once_broker_answers(self._topic, self._read)

    async def _catch_up(self, ends: dict[TopicPartition, int]) -> None:
        async for run in read_to_end(self._consumer, ends, ends, max_records=_MAX_RECORDS):
            await self._hand_over(run.records)
        self._consumer.resume(*ends)

    async def _read(self) -> None:
        for records in (await self._consumer.getmany(timeout_ms=1000, max_records=_MAX_RECORDS)).values():
            await self._hand_over(records)

    async def _hand_over(self, records: Sequence[ConsumerRecord]) -> None:
        if not records:
            return
        try:
            await self._on_records(records)
        except KafkaError as error:  # of a write of its own: reading again would skip these records
            raise StopWorker(
                f"{self._topic}: its records were not handled ({type(error).__name__}: {error}); look at the broker"
            ) from error
