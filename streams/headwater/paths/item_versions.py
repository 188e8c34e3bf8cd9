"""The newest version of each item of a catalog partition, as the vectors topic has it.

The vectors topic is partitioned as the catalog is. The owner of a catalog partition alone writes that partition's vectors,
and reads from them at its start which version of each item is the newest.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition

from headwater.errors import PartitionLost
from headwater.index import Point, VersionStamp, newer
from headwater.index.vectors_topic import points_and_bundles
from headwater.kafka.batch import Gate
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.read_to_end import Run, read_to_end
from headwater.kafka.supervision import start_anew, topic_recreated_error
from headwater.kafka.topics import Topics
from headwater.settings import Settings

# Items of each partition that the index is asked for. Of an index that has lost one item in twenty, a hundred show it in
# 99 of 100 looks.
_AUDITED: Final = 100


class ItemVersions:
    """What is known of one owned catalog partition. Made at each assignment; read before the first batch."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.is_owned = True
        self.stamps: dict[int, VersionStamp] = {}
        """By item key, also of deleted items."""
        self.since_ms: dict[int, int | None] = {}
        """When each live item came in; None where its record does not say, so that it is not new."""
        self.gate = Gate()
        """Open once the versions have been read."""
        self.lock = asyncio.Lock()
        """Held by a batch, or by a look at what the index has: one at a time."""
        self.audited: set[int] = set()
        """Keys of some live items, which a shared index must have."""
        self.is_putting = False
        self.is_refilling = False
        self.away_since_s: float | None = None
        """Since when a shared index has not taken changes (`time.monotonic`)."""

    @property
    def waits(self) -> bool:
        """Whether its changes wait to be opened or for the index: both have time limits of their own, or none."""
        return self.is_putting or self.is_refilling or not self.gate.is_open

    def require(self) -> None:
        """Raises PartitionLost when the partition has been taken away."""
        if not self.is_owned:
            raise PartitionLost

    def came_in_ms(self, key: int, otherwise_ms: int) -> int | None:
        """When a live item came in; ``otherwise_ms`` for an item that is not there."""
        return self.since_ms.get(key, otherwise_ms)

    def add_published(self, points: Iterable[Point]) -> None:
        """Remember what has been written to the vectors topic, and audit the first items until they are deleted."""
        for point in points:
            self._remember_age(point)
            if point.vector is None:
                self.audited.discard(point.key)
            elif len(self.audited) < _AUDITED:
                self.audited.add(point.key)

    def add_read(self, point: Point) -> None:
        """Remember a record of the vectors topic, which is in the order of versions already."""
        self.stamps[point.key] = newer(point.version, point.offset, None) or VersionStamp(0, point.offset)
        self._remember_age(point)

    def _remember_age(self, point: Point) -> None:
        """An age outlives an item's changes, and not its deletion."""
        if point.vector is None:
            self.since_ms.pop(point.key, None)
        else:
            self.since_ms[point.key] = point.payload.get("since_ms")


@asynccontextmanager
async def reader(settings: Settings) -> AsyncIterator[Consumer]:
    """A consumer that belongs to no group, for as long as the block runs. Raises KafkaError."""
    consumer = Consumer(
        **settings.kafka_options(),
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


async def read_versions(
    consumer: AIOKafkaConsumer, topics: Topics, unread: Collection[ItemVersions], bundle_id: str
) -> list[ItemVersions]:
    """Read the versions of these partitions from the vectors topic.

    Returns the partitions that hold vectors of another bundle. These versions are left out, so that the items look new and
    are encoded again when their catalog records are applied.

    Raises:
        StopWorker: the catalog is shorter than what is known of it, so the topic was re-created; or the broker gave nothing.
        KafkaError: the broker is away, or refuses.
    """
    by_partition = {versions.partition: versions for versions in unread}
    foreign: dict[int, set[int]] = {partition: set() for partition in by_partition}
    indexed: dict[int, set[int]] = {partition: set() for partition in by_partition}
    async for run in read_whole(consumer, topics.vectors, by_partition):
        partition = run.tp.partition
        for point, bundle in points_and_bundles(run.records):
            by_partition[partition].add_read(point)
            is_foreign = bundle not in ("", bundle_id)
            has_vector = point.vector is not None and not is_foreign
            (foreign[partition].add if is_foreign else foreign[partition].discard)(point.key)
            (indexed[partition].add if has_vector else indexed[partition].discard)(point.key)
    tps = [TopicPartition(topics.catalog, partition) for partition in by_partition]
    for tp, end in (await consumer.end_offsets(tps)).items():
        stamps = by_partition[tp.partition].stamps.values()
        newest = max((stamp.offset for stamp in stamps), default=-1)
        if newest >= end:  # every change without a version would look older than what is known
            raise topic_recreated_error(
                tp, f"changes up to offset {newest} are known", end, start_anew(topics.vectors)
            )
    for partition, versions in by_partition.items():
        keys = indexed[partition]
        versions.audited = set(random.sample(list(keys), min(_AUDITED, len(keys))))
        for key in foreign[partition]:
            del versions.stamps[key]
    return [by_partition[partition] for partition, keys in foreign.items() if keys]
