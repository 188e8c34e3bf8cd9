"""Path 2: a batch of catalog changes -> vectors -> the index and the vectors topic, in the order of versions."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Final, NamedTuple

import msgspec
import numpy as np
import structlog
from aiokafka import ConsumerRecord, TopicPartition
from numpy.typing import NDArray

from headwater.encoder.features import item_key, item_text, required_text
from headwater.encoder.runtime import Encoder
from headwater.errors import PartitionLost
from headwater.index import NO_VERSION, Point, VersionStamp, newer
from headwater.index.vectors_topic import VectorRecord, payload_of, read_records, record_of
from headwater.kafka.batch import Batch
from headwater.kafka.dead_letters import DeadLetter, DeadLetters
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.publish import Outgoing
from headwater.kafka.skipped import SkippedRecords
from headwater.kafka.supervision import Background, once_broker_answers
from headwater.kafka.topics import Topics
from headwater.messages import MAX_ID_BYTES, BadMessage, Item, decode_item, quoted
from headwater.metrics import Metrics
from headwater.paths.culprit import Done, halved
from headwater.paths.item_versions import ItemVersions, read_versions, read_whole, reader, stamp_of
from headwater.paths.observer import ItemIndexed, Observer
from headwater.paths.serving import Serving
from headwater.paths.shared_index import Records, keep_filled, put_or_wait
from headwater.paths.vectors_writer import VectorsWriter
from headwater.settings import Settings

log = structlog.get_logger(__name__)

F32 = NDArray[np.float32]

# Texts encoded at once: enough to fill the encoder's batches, few enough to overlap with writing.
_SLICE: Final = 512
# A little below Kafka's default bound of a record batch, so that a shared index never has what the topic refuses.
_MAX_RECORD_BYTES: Final = 1_000_000
# How often the end of the vectors topic is checked for writes that are not ours.
_AUDIT_S: Final = 5.0


class Change(NamedTuple):
    """A catalog record that is newer than what is known: an item to encode, or a delete (``item`` None)."""

    record: ConsumerRecord
    key: int
    item_id: str
    item: Item | None
    text: str  # of the item, as the encoder reads it
    stamp: VersionStamp
    since_ms: int | None  # when the item came in


class Ignored(NamedTuple):
    """A valid change that is not newer than what is known of its item."""

    record: ConsumerRecord
    item_id: str
    version: int | None
    known: VersionStamp

    @property
    def reason(self) -> str:
        """``repeated``: it was handled before. ``old_version``: it came later, with a lower version."""
        return "repeated" if self.record.offset <= self.known.offset else "old_version"


class Decoded(NamedTuple):
    """The changes of a batch in the order of their records, and the records that are none."""

    changes: list[Change]
    bad: list[DeadLetter]
    ignored: list[Ignored]


class Encoded(NamedTuple):
    """Changes with the vectors of their items, (items among them, D), and the changes that our own code fails on."""

    changes: list[Change]
    vectors: F32
    bad: list[DeadLetter]


class Written(NamedTuple):
    """A change on its way to the index and the vectors topic."""

    change: Change
    point: Point
    outgoing: Outgoing


class CatalogPath:
    """Encodes catalog batches of the partitions that this worker owns, and publishes their vectors.

    It also writes to the index of ``serving``, where that is one that the catalog worker fills for all.
    """

    def __init__(
        self,
        settings: Settings,
        serving: Callable[[], Serving],
        threads: Executor,
        producer: Producer,
        dead_letters: DeadLetters,
        metrics: Metrics,
        observer: Observer,
        fail: Callable[[str], None],
        is_member: Callable[[], Awaitable[bool]],
    ) -> None:
        self._settings, self._topics = settings, Topics.named(settings.topic_prefix)
        self._serving, self._threads = serving, threads
        self._skipped = SkippedRecords(metrics)
        self._writer = VectorsWriter(producer, self._topics.vectors, self._skipped, is_member)
        self._dead_letters, self._metrics, self._observer = dead_letters, metrics, observer
        self._background = Background("the catalog path", fail)
        self._partitions: dict[int, ItemVersions] = {}
        self.holders: Mapping[int, str] = {}
        """The item that has each key in the whole catalog, where no shared index tells."""
        self._batch_size = metrics.batch_size.labels("catalog")
        self._encode_seconds = metrics.encoder_seconds.labels("item")

    # The life of partitions

    def assign(self, partitions: Iterable[int]) -> None:
        """Take over partitions. Their versions are read from the vectors topic before the first batch."""
        self.freeze()
        self._partitions = {partition: ItemVersions(partition) for partition in partitions}
        serving, topic = self._serving(), self._topics.vectors
        if serving.index is not None:
            for versions in self._partitions.values():
                filling = keep_filled(
                    serving.index, versions, serving.encoder.id, topic, self._published, self._skipped
                )
                self._background.start(filling)
        if self._partitions:
            assigned = list(self._partitions.values())
            self._background.start(once_broker_answers(topic, partial(self._open, assigned)))
            self._background.start(once_broker_answers(topic, partial(self._audit, assigned)))

    def interrupt(self) -> None:
        """A rebalance or stop begins: batches that wait for their partition to open are sent away."""
        for versions in self._partitions.values():
            versions.gate.interrupt()

    def freeze(self) -> None:
        """Write nothing more of any partition."""
        for versions in self._partitions.values():
            versions.is_owned = False
        self._partitions = {}

    async def stop(self) -> None:
        """Leave changes that still wait for the index to the next owner."""
        self.freeze()
        await self._background.stop()

    def waits(self, partition: int) -> bool:
        """Whether the changes of a partition wait for its versions or for the index, however long that takes."""
        versions = self._partitions.get(partition)
        return versions is not None and versions.waits

    @property
    def index_away_s(self) -> float:
        """For how long changes have waited for an index that does not take them."""
        since = [each.away_since_s for each in self._partitions.values() if each.away_since_s is not None]
        return time.monotonic() - min(since) if since else 0.0

    # The path of a batch

    async def handle(self, batch: Batch) -> None:
        """Encode, index and publish one partition batch, then finish it.

        Raises:
            PartitionLost: the partition was revoked meanwhile.
            StopWorker: the broker or the index did not take it.
        """
        versions = self._partitions.get(batch.partition)
        if versions is None:
            raise PartitionLost
        # Without a limit: a language model may take hours to encode a catalog again.
        await versions.gate.wait_open(None)
        async with versions.lock:
            versions.require()
            if await self._apply(versions, batch.records):
                await self._writer.claim(versions, batch.last_offset, self._serving().encoder.id)
        batch.finish()
        self._batch_size.observe(len(batch.records))

    async def claim(self, partition: int, position: int) -> None:
        """Say that everything in a catalog partition up to ``position`` is done, where batches have not said so already.

        They do not where they bring nothing new, and the last records of a partition may be markers of transactions.

        Raises:
            StopWorker: the broker did not take it.
        """
        versions = self._partitions.get(partition)
        if versions is None or not versions.gate.is_open or position <= versions.position:
            return
        async with versions.lock:
            if versions.is_owned and position > versions.position:
                await self._writer.claim(versions, position, self._serving().encoder.id)

    @property
    def open_partitions(self) -> list[int]:
        """The partitions whose versions have been read."""
        return [number for number, versions in self._partitions.items() if versions.gate.is_open]

    async def _apply(
        self,
        versions: ItemVersions,
        records: Sequence[ConsumerRecord],
        *,
        only: Collection[int] | None = None,
        buries: bool = True,
    ) -> bool:
        """Encode and publish what is new in the records, and return whether anything was.

        Args:
            only: the keys of the items that count, None for all.
            buries: bad records become dead letters; not where they have been put there before.
        """
        serving = self._serving()
        changes, bad, ignored = _decoded(records, versions, serving.encoder, self._holder, only)
        # Before anything is claimed of them.
        if buries:
            await self._dead_letters.put(bad)
            self._count(versions.partition, ignored)
        slices = [changes[start : start + _SLICE] for start in range(0, len(changes), _SLICE)]
        # One slice is encoded in a thread while the one before is indexed and written.
        encoding: asyncio.Task[Encoded] | None = None
        try:
            for part, following in zip(slices, [*slices[1:], None], strict=False):
                encoded = await (encoding or self._encoded(serving.encoder, part))
                encoding = None
                if following:
                    encoding = asyncio.create_task(self._encoded(serving.encoder, following))
                versions.require()
                await self._publish(versions, encoded, serving)
        finally:
            if encoding is not None:
                encoding.cancel()
        return bool(changes)

    def _holder(self, key: int) -> str | None:
        """The item that has a key, as far as this worker's partitions and the other ones' topic tell; None: nobody."""
        for versions in self._partitions.values():
            if key in versions.ids:
                return versions.ids[key]
        return self.holders.get(key)

    def _count(self, partition: int, ignored: Sequence[Ignored]) -> None:
        """Count the valid changes that change nothing, and tell of those that a publisher may wonder about."""
        for each in ignored:
            self._metrics.catalog_ignored_total.labels(each.reason).inc()
        late = [each for each in ignored if each.reason == "old_version"]
        if late:
            first = late[0]
            log.warning(
                "old_versions_ignored",
                partition=partition,
                count=len(late),
                first_item=first.item_id,
                offset=first.record.offset,
                version=first.version,
                known_version=first.known.version,
            )

    async def _encoded(self, encoder: Encoder, changes: Sequence[Change]) -> Encoded:
        kept: list[Change] = []
        vectors: list[F32] = []
        bad: list[DeadLetter] = []
        async for part in halved(changes, partial(self._vectors, encoder)):
            if isinstance(part, Done):
                kept += part.items
                vectors.append(part.result)
            else:
                record = part.item.record
                log.error(
                    "item_failed",
                    topic=record.topic,
                    partition=record.partition,
                    offset=record.offset,
                    exc_info=part.error,
                )
                message = f"{type(part.error).__name__}: {part.error}"
                bad.append(DeadLetter(record, "internal_error", message))
        if len(vectors) == 1:
            return Encoded(kept, vectors[0], bad)
        return Encoded(kept, np.concatenate([np.zeros((0, encoder.dim), np.float32), *vectors]), bad)

    async def _vectors(self, encoder: Encoder, changes: Sequence[Change]) -> F32:
        """The vectors of the items among the changes, (items, D), from the encoder's thread."""
        items = [change for change in changes if change.item is not None]

        def run() -> F32:
            started = time.perf_counter()
            vectors = encoder.encode_items([item.text for item in items], [item.item_id for item in items])
            self._encode_seconds.observe(time.perf_counter() - started)
            return vectors

        if not items:
            return np.zeros((0, encoder.dim), dtype=np.float32)
        return await asyncio.get_running_loop().run_in_executor(self._threads, run)

    async def _publish(self, versions: ItemVersions, encoded: Encoded, serving: Serving) -> None:
        """Index and write what was encoded. What cannot be written becomes a dead letter."""
        finite: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(encoded.vectors), axis=1)
        fresh = iter(zip(encoded.vectors, finite, strict=True))
        written: list[Written] = []
        bad, now_ms = encoded.bad, int(time.time() * 1000)
        for change in encoded.changes:
            vector, is_finite = (None, True) if change.item is None else next(fresh)
            if not is_finite:
                message = f"the vector of item {change.item_id!r} is not finite: bundle {serving.encoder.id} is broken"
                bad.append(DeadLetter(change.record, "bad_vector", message))
                continue
            point = _point_of(change, vector)
            # A sender's time may lie further ahead than the vectors topic allows.
            at_ms = min(change.record.timestamp, now_ms)
            outgoing = record_of(point, serving.encoder.id, at_ms, versions.epoch)
            size = len(outgoing.key or b"") + len(outgoing.value or b"")
            if size > _MAX_RECORD_BYTES:
                message = f"item {change.item_id!r} takes {size} bytes with its vector, expected at most {_MAX_RECORD_BYTES}"
                bad.append(DeadLetter(change.record, "too_large", message))
                continue
            written.append(Written(change, point, outgoing))
        refused: dict[int, tuple[str, str]] = {}  # by offset: reason and message
        if serving.index is not None:
            collisions = await put_or_wait(serving.index, versions, [each.point for each in written])
            refused = {each.point.offset: ("key_collision", str(each)) for each in collisions}
        kept = [each for each in written if each.point.offset not in refused] if refused else written
        if unwritten := await self._writer.write(versions, [each.outgoing for each in kept]):
            of_record = {id(each.outgoing): each.change for each in kept}
            for each in unwritten:
                change = of_record[id(each.record)]
                message = f"the vector of item {change.item_id!r}: {each.message}"
                refused[change.record.offset] = each.reason, message
        if refused:
            bad += [
                DeadLetter(each.change.record, *refused[each.point.offset])
                for each in written
                if each.point.offset in refused
            ]
            written = [each for each in written if each.point.offset not in refused]
        await self._dead_letters.put(bad)
        versions.add_published([each.point for each in written])
        self._metrics.catalog_items_total.inc(len(written))
        if self._observer.is_watched:
            self._tell([(each.change, each.point) for each in written])

    def _tell(self, published: Sequence[tuple[Change, Point]]) -> None:
        """Tell listeners of the newest changes."""
        newest, now_ms = published[-self._observer.capacity :], time.time() * 1000.0
        events = [
            ItemIndexed(
                change.item_id,
                change.item.title if change.item is not None else "",
                change.item is None,
                point.partition,
                point.offset,
                max(now_ms - change.record.timestamp, 0.0),
            )
            for change, point in newest
        ]
        self._observer.tell(events, omitted=len(published) - len(newest))

    # What was written before

    async def _open(self, assigned: Sequence[ItemVersions]) -> None:
        """Read the versions of partitions that are not open yet; encode again what another bundle encoded."""
        unread = [versions for versions in assigned if not versions.gate.is_open]
        async with reader(self._settings, self._settings.catalog_group) as consumer:
            bundle_id = self._serving().encoder.id
            known = await read_versions(consumer, self._topics, unread, bundle_id, self._skipped)
            again: dict[int, ItemVersions] = {}
            for versions in unread:
                async with versions.lock:
                    position = versions.position
                    if known.foreign[versions.partition]:
                        versions.position = -1  # of this bundle the topic has not everything yet
                    await self._writer.claim_partition(
                        versions, known.highest_epoch[versions.partition], bundle_id
                    )
                    versions.position = position
                    await self._repair(consumer, versions)
                is_vouched_for = versions.is_claimed or versions.partition not in known.committed
                if known.foreign[versions.partition] or not is_vouched_for:
                    again[versions.partition] = versions
                else:
                    versions.gate.open()
            foreign = sorted(number for number in again if known.foreign[number])
            if foreign:
                log.info("encoding_again", bundle=bundle_id, partitions=foreign)
            if again:
                # Nothing vouches for partitions without a claim: what the vectors topic lacks of them is encoded now, unless
                # the group is going to read them from their start.
                async for run in read_whole(consumer, self._topics.catalog, again):
                    versions = again[run.tp.partition]
                    async with versions.lock:
                        await self._apply(
                            versions, run.records, buries=bool(known.foreign[versions.partition])
                        )
            for versions in again.values():
                if known.foreign[versions.partition]:
                    async with versions.lock:
                        await self._writer.claim(versions, versions.position, bundle_id)
                versions.gate.open()

    async def _audit(self, assigned: Sequence[ItemVersions]) -> None:
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
                            await self._repair(consumer, versions)

    async def _repair(self, consumer: Consumer, versions: ItemVersions) -> None:
        """Write again what stale records overwrote. Its newest version is in the vectors topic or in the catalog.

        Raises: as `_audit`.
        """
        await self._writer.read_gaps(consumer, versions, self._serving().encoder.id)
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
            marks = [msgspec.structs.replace(hole, offset=max(versions.position, 0)) for hole in gone]
            await self._put_again(versions, [(mark, int(time.time() * 1000)) for mark in marks])
            versions.add_published(marks)
        finally:
            versions.is_refilling = False
        for key in holes:
            versions.holes.pop(key, None)
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
        await self._put_again(versions, list(found.values()))
        return found.keys()

    async def _put_again(self, versions: ItemVersions, points: Sequence[tuple[Point, int]]) -> None:
        """Index and write points, each with the time of its catalog change in ms."""
        serving = self._serving()
        for start in range(0, len(points), _SLICE):
            part = points[start : start + _SLICE]
            if serving.index is not None:
                await put_or_wait(serving.index, versions, [point for point, _ in part])
            records = [record_of(point, serving.encoder.id, at_ms, versions.epoch) for point, at_ms in part]
            await self._writer.write(versions, records)

    async def _published(self, partition: int) -> Records:
        """Everything that the vectors topic has of a partition, in order."""
        async with reader(self._settings) as consumer:
            async for run in read_whole(consumer, self._topics.vectors, [partition]):
                yield run.records


def _decoded(
    records: Sequence[ConsumerRecord],
    versions: ItemVersions,
    encoder: Encoder,
    holder: Callable[[int], str | None],
    only: Collection[int] | None = None,
) -> Decoded:
    """What is newer than what is known; of several changes of one item in a batch, only the newest.

    Of two items with one key the first is kept: ``holder`` says which item of the catalog has a key.
    """
    newest: dict[int, Change] = {}
    bad: list[DeadLetter] = []
    ignored: list[Ignored] = []
    for record in records:
        try:
            item_id, item, text = _item_of(record, encoder)
        except BadMessage as error:
            bad.append(DeadLetter(record, error.reason, str(error)))
            continue
        key = item_key(item_id)
        if only is not None and key not in only:
            continue
        before = newest.get(key)
        first = before.item_id if before is not None else versions.ids.get(key) or holder(key)
        if first is not None and first != item_id:
            bad.append(
                DeadLetter(
                    record, "key_collision", f"items {first!r} and {item_id!r} have one key; kept the first"
                )
            )
            continue
        known = before.stamp if before is not None else versions.stamp(key, item_id)
        version = item.version if item is not None else None
        stamp = newer(version, record.offset, known)
        if stamp is None:
            assert known is not None
            ignored.append(Ignored(record, item_id, version, known))
        else:
            newest.pop(key, None)  # so that the order of the changes is that of their records
            since_ms = _since_ms(item, before, versions.came_in_ms(key, record.timestamp), record.timestamp)
            newest[key] = Change(record, key, item_id, item, text, stamp, since_ms)
    return Decoded(list(newest.values()), bad, ignored)


def _item_of(record: ConsumerRecord, encoder: Encoder) -> tuple[str, Item | None, str]:
    """The item id of a record, its item (None for a delete) and the item's text. Raises BadMessage."""
    if record.value is None:
        return _deleted_id(record.key), None, ""
    item = decode_item(record.key, record.value)
    if encoder.item_inputs == "text":
        return item.item_id, item, required_text(item, encoder.id)
    return (
        item.item_id,
        item,
        item_text(item.title, item.description, item.category, item.tags, item.attributes),
    )


def _deleted_id(key: bytes | None) -> str:
    if not key:
        raise BadMessage("null_key", "key: got none, expected the id of the item to delete")
    if len(key) > MAX_ID_BYTES:
        raise BadMessage(
            "bad_field", f"key: got {len(key)} bytes, expected 1 to {MAX_ID_BYTES} bytes of UTF-8"
        )
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise BadMessage("bad_utf8", f"key: got {quoted(key)}, expected UTF-8") from None


def _since_ms(item: Item | None, before: Change | None, known_ms: int | None, record_ms: int) -> int | None:
    """When an item came in: what it says itself, else the time of its first record. None for a delete.

    ``before`` is a change of the item in the same batch, ``known_ms`` when it came in as far as earlier batches know.
    """
    if item is None:
        return None
    if item.since_ms is not None:
        return item.since_ms
    if before is not None:
        return before.since_ms if before.item is not None else record_ms
    return known_ms


def _point_of(change: Change, vector: F32 | None) -> Point:
    """A change with its item's vector, (D,). A delete carries the version it inherited, so that older ones stay out."""
    version = change.stamp.version if change.stamp.version >= 0 else None
    payload = {} if change.item is None else payload_of(change.item, change.since_ms)
    record = change.record
    return Point(change.key, change.item_id, vector, payload, version, record.partition, record.offset)


def _mark_of(hole: Point, stamp: VersionStamp) -> Point:
    """The mark of a deleted item, of which the topic has a stale record."""
    version = None if stamp.version == NO_VERSION else stamp.version
    return msgspec.structs.replace(hole, version=version, offset=stamp.offset)
