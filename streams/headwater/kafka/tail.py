"""Following a whole topic without a group: what a worker must know beside its own partitions."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError

from headwater.errors import StopWorker
from headwater.kafka.fast_client.consumer import Consumer
from headwater.settings import Settings

log = structlog.get_logger(__name__)

_RECORDS: Final = 2_000
_START_TIMEOUT_S: Final = 60.0
# Errors of a broker that is away are retried by aiokafka itself; what reaches us twice in a row so long is not.
_GIVE_UP_S: Final = 120.0

OnRecords = Callable[[Sequence[ConsumerRecord]], Awaitable[None]]


class Tail:
    """Calls ``on_records`` with the records of each partition in order, from the beginning or from now on.

    ``caught_up`` is set once everything that was there at the start has been handed over.
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
        self._topic, self._on_records, self._fail, self._from_end = topic, on_records, fail, from_end
        self.caught_up = asyncio.Event()
        # Named here and not assigned later: only then does the client fetch the partitions of the topic.
        self._consumer = Consumer(
            topic,
            **settings.kafka_options(),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=2 * 1024 * 1024,
            fetch_max_wait_ms=500,
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises StopWorker when the topic cannot be read."""
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
            starts = ends if self._from_end else await self._consumer.beginning_offsets(tps)
        for tp in tps:
            self._consumer.seek(tp, starts[tp])
        remaining = {tp for tp in tps if starts[tp] < ends[tp]}
        if not remaining:
            self.caught_up.set()
        self._task = asyncio.ensure_future(self._guarded(ends, remaining))

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._consumer.stop()

    async def _guarded(self, ends: dict[TopicPartition, int], remaining: set[TopicPartition]) -> None:
        try:
            await self._follow(ends, remaining)
        except StopWorker as error:
            self._fail(str(error))
        except Exception as error:
            log.exception("tail_failed", topic=self._topic)
            self._fail(f"unexpected {type(error).__name__} while following {self._topic}: {error}")

    async def _follow(self, ends: dict[TopicPartition, int], remaining: set[TopicPartition]) -> None:
        healthy_s = time.monotonic()
        while True:
            try:
                fetched = await self._consumer.getmany(timeout_ms=1000, max_records=_RECORDS)
            except KafkaError as error:
                if time.monotonic() - healthy_s > _GIVE_UP_S:
                    raise StopWorker(
                        f"{self._topic}: cannot be read for {_GIVE_UP_S:.0f} s ({type(error).__name__}: {error}); "
                        "look at the broker"
                    ) from error
                await asyncio.sleep(0.5)
                continue
            healthy_s = time.monotonic()
            for records in fetched.values():
                await self._on_records(records)
            for tp in list(remaining):
                if await self._consumer.position(tp) >= ends[tp]:
                    remaining.discard(tp)
            if not remaining:
                self.caught_up.set()
