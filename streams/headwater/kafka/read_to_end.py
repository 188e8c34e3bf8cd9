"""Reading partitions of a topic up to their end: what every part of a worker does before it serves."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from headwater.errors import StopWorker
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.supervision import READ_TIMEOUT_S
from headwater.settings import Settings


class Run(NamedTuple):
    """The next records of a partition in offset order, and the offset that reading goes on at after them.

    ``records`` is empty where only markers of transactions, or offsets that compaction emptied, were passed.
    """

    tp: TopicPartition
    records: Sequence[ConsumerRecord]
    next_offset: int


async def read_to_end(
    consumer: AIOKafkaConsumer,
    tps: Iterable[TopicPartition],
    ends: Mapping[TopicPartition, int] | None = None,
    *,
    max_records: int = 5_000,
    timeout_s: float = READ_TIMEOUT_S,
) -> AsyncIterator[Run]:
    """Yield every record of ``tps`` from the consumer's positions up to ``ends``, partitions interleaved.

    The caller has assigned the partitions and sought its start in each. Without ``ends`` they are the ends as of the
    first step. The last run of a partition may reach past its end. Each partition is paused once it is at its end,
    and stays so; nothing else may read from the consumer meanwhile. One poll returns at most ``max_records`` records.

    Each step may wait ``timeout_s`` for records, and gives the event loop a turn. An iteration that ended early is
    repeated by seeking to the ``next_offset`` of the last run of each partition.

    Raises:
        StopWorker: no partition moved for ``timeout_s``.
        KafkaError: the broker refused, or is away; :func:`headwater.kafka.supervision.once_broker_answers` retries.
    """
    wanted = list(tps)
    until = dict(ends) if ends is not None else await consumer.end_offsets(wanted)
    at = {tp: await _position(consumer, tp, timeout_s) for tp in wanted}
    moved_s = time.monotonic()
    while True:
        for tp in [tp for tp in at if at[tp] >= until[tp]]:
            consumer.pause(tp)
            del at[tp]
        if not at:
            return
        fetched = await consumer.getmany(*at, timeout_ms=500, max_records=max_records)
        for tp in list(at):
            position = await _position(consumer, tp, timeout_s)
            if position == at[tp]:
                continue
            at[tp] = position
            yield Run(tp, fetched.get(tp, ()), position)
            await asyncio.sleep(0)
            moved_s = time.monotonic()
        if time.monotonic() - moved_s > timeout_s:
            tp, position = next(iter(at.items()))
            raise StopWorker(
                f"{tp.topic}-{tp.partition}: read up to offset {position} and nothing more for {timeout_s:g} s, "
                f"expected its end, {until[tp]}; look at the broker"
            )


async def _position(consumer: AIOKafkaConsumer, tp: TopicPartition, timeout_s: float) -> int:
    """The offset that is read next. It waits for the broker where the one asked for is gone from the log."""
    try:
        async with asyncio.timeout(timeout_s):
            return int(await consumer.position(tp))
    except TimeoutError:
        raise StopWorker(
            f"{tp.topic}-{tp.partition}: the broker did not say within {timeout_s:g} s where the partition begins; "
            "look at the broker"
        ) from None


@asynccontextmanager
async def reader(settings: Settings, group: str | None = None) -> AsyncIterator[Consumer]:
    """A consumer that joins no group, for as long as the block runs. It is told what ``group`` has committed.

    Raises:
        KafkaError: the broker is away, or refuses.
    """
    consumer = Consumer(
        **settings.kafka_options(),
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=4 * 1024 * 1024,
        fetch_max_wait_ms=100,
    )
    try:
        await consumer.start()
        yield consumer
    finally:
        await consumer.stop()


async def read_whole(consumer: AIOKafkaConsumer, topic: str, partitions: Iterable[int]) -> AsyncIterator[Run]:
    """Everything that is in these partitions now, in order of offsets within each. Raises as `read_to_end` does."""
    tps = [TopicPartition(topic, partition) for partition in partitions]
    consumer.assign(tps)
    await consumer.seek_to_beginning(*tps)
    async for run in read_to_end(consumer, tps):
        yield run
