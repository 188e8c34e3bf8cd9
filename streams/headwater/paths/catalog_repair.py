"""What earlier owners of a catalog partition wrote: read at the start, checked every few seconds, and repaired.

Items that another bundle encoded are encoded again. What somebody else overwrote on the vectors topic is written again.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final, Protocol

import msgspec
import structlog
from aiokafka import ConsumerRecord, TopicPartition

from headwater.index import NO_VERSION, Point, VersionStamp
from headwater.index.vectors_topic import VectorRecord, offer_record_of, read_records
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.read_to_end import read_whole, reader
from headwater.kafka.skipped import SkippedRecords
from headwater.kafka.topics import Topics
from headwater.metrics import Metrics
from headwater.paths.catalog_publishing import SLICE, CatalogPublishing
from headwater.paths.item_versions import ItemVersions, stamp_of
from headwater.paths.restored_versions import restore_versions
from headwater.paths.serving import Serving
from headwater.paths.shared_index import Records
from headwater.paths.vectors_writer import VectorsWriter
from headwater.settings import Settings

log = structlog.get_logger(__name__)

# How often the end of the vectors topic is checked for writes that are not ours.
_AUDIT_S: Final = 5.0


class Apply(Protocol):
    """Encodes and publishes what is new in catalog records of a partition; see `CatalogPath`."""

    def __call__(
        self,
        versions: ItemVersions,
        records: Sequence[ConsumerRecord],
        *,
        only: Collection[int] | None = None,
        buries: bool = True,
    ) -> Awaitable[bool]:
        """Returns whether anything was new."""
        ...


class ApplyOffers(Protocol):
    """Lays what is new in records of offers; see `CatalogOffers`."""

    def __call__(
        self, versions: ItemVersions, records: Sequence[ConsumerRecord], *, buries: bool = True
    ) -> Awaitable[None]:
        """Returns once that is written."""
        ...


class CatalogRepair:
    """Opens partitions, and keeps what the vectors topic has of them as their owner knows it."""

    def __init__(
        self,
        settings: Settings,
        serving: Callable[[], Serving],
        writer: VectorsWriter,
        publishing: CatalogPublishing,
        apply: Apply,
        apply_offers: ApplyOffers,
        skipped: SkippedRecords,
        metrics: Metrics,
    ) -> None:
        self._settings, self._topics = settings, Topics.named(settings.topic_prefix)
        self._serving, self._writer, self._publishing = serving, writer, publishing
        self._apply, self._apply_offers = apply, apply_offers
        self._skipped, self._metrics = skipped, metrics

    async def open(self, assigned: Sequence[ItemVersions]) -> None:
        """Read the versions of partitions that are not open yet; encode again what another bundle encoded."""
        unread = [versions for versions in assigned if not versions.gate.is_open]
        async with reader(self._settings, self._settings.catalog_group) as consumer:
            bundle_id = self._serving().encoder.id
            restored = await restore_versions(consumer, self._topics, unread, bundle_id, self._skipped)
            again: dict[int, ItemVersions] = {}
            for versions in unread:
                async with versions.lock:
                    position = versions.position
                    if restored[versions.partition].foreign:
                        versions.position = -1  # of this bundle the topic has not everything yet
                    await self._writer.claim_partition(
                        versions, restored[versions.partition].highest_epoch, bundle_id
                    )
                    versions.position = position
                    await self.repair(consumer, versions)
                is_vouched_for = versions.is_claimed or not restored[versions.partition].is_committed
                if restored[versions.partition].foreign or not is_vouched_for:
                    again[versions.partition] = versions
                else:
                    versions.gate.open()
                if is_vouched_for:  # encoding again may take hours
                    versions.offers.gate.open()
            foreign = sorted(number for number in again if restored[number].foreign)
            if foreign:
                log.info("encoding_again", bundle=bundle_id, partitions=foreign)
            if again:
                # Nothing vouches for partitions without a claim: what the vectors topic lacks of them is encoded now, unless
                # the group is going to read them from their start.
                async for run in read_whole(consumer, self._topics.catalog, again):
                    versions = again[run.tp.partition]
                    async with versions.lock:
                        await self._apply(
                            versions, run.records, buries=bool(restored[versions.partition].foreign)
                        )
            for versions in again.values():
                if restored[versions.partition].foreign:
                    async with versions.lock:
                        await self._writer.claim(versions, versions.position, bundle_id)
            # The items first: offers of items that are not there would wait for them.
            lost = {
                number: versions for number, versions in again.items() if not versions.offers.gate.is_open
            }
            if lost:
                async for run in read_whole(consumer, self._topics.offers, lost):
                    await self._apply_offers(lost[run.tp.partition], run.records, buries=False)
            for versions in again.values():
                versions.gate.open()
                versions.offers.gate.open()

    async def audit(self, assigned: Sequence[ItemVersions]) -> None:
        """Look every few seconds for what others wrote to the vectors topic, and write again what that overwrote.

        Raises:
            StopWorker: a later owner has written.
            KafkaError: the broker is away, or refuses.
        """
        async with reader(self._settings) as consumer:
            while any(versions.is_owned for versions in assigned):
                await asyncio.sleep(_AUDIT_S)
                places = {
                    TopicPartition(self._topics.vectors, versions.partition): versions
                    for versions in assigned
                    if versions.is_owned and versions.gate.is_open
                }
                for tp, end in (await consumer.end_offsets(list(places))).items() if places else ():
                    versions = places[tp]
                    async with versions.lock:
                        if versions.is_owned:
                            versions.mark_written(end, end)
                            await self.repair(consumer, versions)

    async def repair(self, consumer: Consumer, versions: ItemVersions) -> None:
        """Write again what stale records overwrote. Its newest version is in the vectors topic or in the catalog.

        Raises: as `audit`.
        """
        await self._writer.read_gaps(consumer, versions, self._serving().encoder.id)
        await self._repair_offers(versions)
        holes = dict(versions.holes)
        if not holes:
            return
        log.warning("overwrites_found", partition=versions.partition, items=len(holes))
        versions.is_refilling = True  # or the watchdog takes it for one that stands still
        try:
            left = holes.keys() - await self._write_again(consumer, versions, holes)
            versions.forget(left)
            if left:
                async for run in read_whole(consumer, self._topics.catalog, [versions.partition]):
                    await self._apply(versions, run.records, only=left, buries=False)
            # What even the catalog does not have was deleted so long ago that no mark of it is left.
            gone = [holes[key] for key in left if versions.stamp(key, holes[key].item_id) is None]
            offset = versions.placed(max(versions.position, 0))
            marks = [msgspec.structs.replace(hole, offset=offset) for hole in gone]
            await self._publishing.put_again(
                versions, [(mark, int(time.time() * 1000)) for mark in marks], self._serving()
            )
            versions.add_published(marks)
        finally:
            versions.is_refilling = False
        for key in holes:
            versions.holes.pop(key, None)
        self._metrics.vectors_repaired_total.inc(len(holes))

    async def _repair_offers(self, versions: ItemVersions) -> None:
        """What the offers of items have come to is known without a look at any topic. Raises as `audit`."""
        offers = versions.offers
        if not offers.holes:
            return
        async with offers.publishing:
            holes, now_ms = list(offers.holes), int(time.time() * 1000)
            log.warning("overwrites_found", partition=versions.partition, offers=len(holes))
            for start in range(0, len(holes), SLICE):
                part = holes[start : start + SLICE]
                records = [
                    offer_record_of(item_id, offers.states.get(item_id), now_ms, versions.epoch)
                    for item_id in part
                ]
                await self._writer.write(versions, records)
            offers.holes.difference_update(holes)
        self._metrics.vectors_repaired_total.inc(len(holes))

    async def _write_again(
        self, consumer: Consumer, versions: ItemVersions, holes: Mapping[int, Point]
    ) -> Collection[int]:
        """Write the known versions of items as the vectors topic has them; returns the keys of those that it has."""
        found: dict[int, tuple[Point, int]] = {}
        for key, hole in holes.items():
            stamp = versions.deleted_at(key, hole.item_id)
            if stamp is not None:
                found[key] = _mark_of(hole, stamp), int(time.time() * 1000)
        wanted = {key: versions.stamps[key] for key in holes if key in versions.stamps}
        if wanted:
            bundle_id = self._serving().encoder.id
            async for run in read_whole(consumer, self._topics.vectors, [versions.partition]):
                for record, read in read_records(run.records, self._skipped):
                    if not isinstance(read, VectorRecord) or read.bundle != bundle_id:
                        continue
                    if wanted.get(read.point.key) == stamp_of(read.point):
                        found[read.point.key] = read.point, record.timestamp
        await self._publishing.put_again(versions, list(found.values()), self._serving())
        return found.keys()

    async def published(self, partition: int) -> Records:
        """Everything that the vectors topic has of a partition, in order."""
        async with reader(self._settings) as consumer:
            async for run in read_whole(consumer, self._topics.vectors, [partition]):
                yield run.records


def _mark_of(hole: Point, stamp: VersionStamp) -> Point:
    """The mark of a deleted item, of which the topic has a stale record."""
    version = None if stamp.version == NO_VERSION else stamp.version
    return msgspec.structs.replace(hole, version=version, offset=stamp.offset)
