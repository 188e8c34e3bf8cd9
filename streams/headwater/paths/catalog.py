"""Path 2: a batch of catalog changes -> vectors -> the index and the vectors topic, in the order of versions."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import structlog
from aiokafka import ConsumerRecord
from numpy.typing import NDArray

from headwater.encoder.features import item_key, item_text
from headwater.encoder.runtime import Encoder
from headwater.errors import PartitionLost
from headwater.index import Point, VersionStamp, newer
from headwater.index.vectors_topic import payload_of, record_of
from headwater.kafka.batch import Batch
from headwater.kafka.dead_letters import DeadLetter, DeadLetters
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.publish import write_all
from headwater.kafka.supervision import Background, once_broker_answers
from headwater.kafka.topics import Topics
from headwater.messages import MAX_ID_BYTES, BadMessage, Item, decode_item, quoted
from headwater.metrics import Metrics
from headwater.paths.culprit import Done, halved
from headwater.paths.item_versions import ItemVersions, read_versions, read_whole, reader
from headwater.paths.observer import ItemIndexed, Observer
from headwater.paths.serving import Serving
from headwater.paths.shared_index import Records, keep_filled, put_or_wait
from headwater.settings import Settings

log = structlog.get_logger(__name__)

F32 = NDArray[np.float32]

# Texts encoded at once: enough to fill the encoder's batches, few enough to overlap with writing.
_SLICE: Final = 512


class Change(NamedTuple):
    """A catalog record that is newer than what is known: an item to encode, or a delete (``item`` None)."""

    record: ConsumerRecord
    key: int
    item_id: str
    item: Item | None
    text: str  # of the item, as the encoder reads it
    stamp: VersionStamp
    since_ms: int | None  # when the item came in


class Decoded(NamedTuple):
    """The changes of a batch in the order of their records, and the records that are none."""

    changes: list[Change]
    bad: list[DeadLetter]


class Encoded(NamedTuple):
    """Changes with the vectors of their items, (items among them, D), and the changes that our own code fails on."""

    changes: list[Change]
    vectors: F32
    bad: list[DeadLetter]


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
    ) -> None:
        self._settings, self._topics = settings, Topics.named(settings.topic_prefix)
        self._serving, self._threads, self._producer = serving, threads, producer
        self._dead_letters, self._metrics, self._observer = dead_letters, metrics, observer
        self._background = Background("the catalog path", fail)
        self._partitions: dict[int, ItemVersions] = {}
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
                filling = keep_filled(serving.index, versions, serving.encoder.id, topic, self._published)
                self._background.start(filling)
        if self._partitions:
            opening = partial(self._open, list(self._partitions.values()))
            self._background.start(once_broker_answers(topic, opening))

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
            await self._apply(versions, batch.records)
        batch.finish()
        self._batch_size.observe(len(batch.records))

    async def _apply(self, versions: ItemVersions, records: Sequence[ConsumerRecord]) -> None:
        serving = self._serving()
        changes, bad = _decoded(records, versions, serving.encoder)
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
                bad += encoded.bad
                bad += await self._publish(versions, encoded, serving)
                versions.stamps.update((change.key, change.stamp) for change in part)
        finally:
            if encoding is not None:
                encoding.cancel()
        await self._dead_letters.put(bad)

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

    async def _publish(self, versions: ItemVersions, encoded: Encoded, serving: Serving) -> list[DeadLetter]:
        """Index and write what was encoded; returns the changes whose vector is not finite."""
        finite: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(encoded.vectors), axis=1)
        fresh = iter(zip(encoded.vectors, finite, strict=True))
        published: list[tuple[Change, Point]] = []
        bad: list[DeadLetter] = []
        for change in encoded.changes:
            vector, is_finite = (None, True) if change.item is None else next(fresh)
            if is_finite:
                published.append((change, _point_of(change, vector)))
            else:
                message = f"the vector of item {change.item_id!r} is not finite: bundle {serving.encoder.id} is broken"
                bad.append(DeadLetter(change.record, "bad_vector", message))
        points = [point for _, point in published]
        if serving.index is not None:
            await put_or_wait(serving.index, versions, points)
        outgoing = [
            record_of(point, serving.encoder.id, change.record.timestamp) for change, point in published
        ]
        refused = {
            id(each.record): each
            for each in await write_all(self._producer, self._topics.vectors, versions.partition, outgoing)
        }
        written = []
        for (change, point), record in zip(published, outgoing, strict=True):
            if each := refused.get(id(record)):
                message = f"the vector of item {change.item_id!r}: {each.message}"
                bad.append(DeadLetter(change.record, each.reason, message))
            else:
                written.append(point)
        versions.add_published(written)
        self._metrics.catalog_items_total.inc(len(written))
        if self._observer.is_watched:
            self._tell(published)
        return bad

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
        async with reader(self._settings) as consumer:
            bundle_id = self._serving().encoder.id
            stale = {
                versions.partition: versions
                for versions in await read_versions(consumer, self._topics, unread, bundle_id)
            }
            for versions in unread:
                if versions.partition not in stale:
                    versions.gate.open()
            if stale:
                log.info("encoding_again", bundle=bundle_id, partitions=sorted(stale))
                async for run in read_whole(consumer, self._topics.catalog, stale):
                    await self._apply(stale[run.tp.partition], run.records)
            for versions in stale.values():
                versions.gate.open()

    async def _published(self, partition: int) -> Records:
        """Everything that the vectors topic has of a partition, in order."""
        async with reader(self._settings) as consumer:
            async for run in read_whole(consumer, self._topics.vectors, [partition]):
                yield run.records


def _decoded(records: Sequence[ConsumerRecord], versions: ItemVersions, encoder: Encoder) -> Decoded:
    """What is newer than what is known; of several changes of one item in a batch, only the newest."""
    newest: dict[int, Change] = {}
    bad: list[DeadLetter] = []
    for record in records:
        try:
            item_id, item, text = _item_of(record, encoder)
        except BadMessage as error:
            bad.append(DeadLetter(record, error.reason, str(error)))
            continue
        key = item_key(item_id)
        before = newest.get(key)
        known = before.stamp if before is not None else versions.stamps.get(key)
        stamp = newer(item.version if item is not None else None, record.offset, known)
        if stamp is not None:
            newest.pop(key, None)  # so that the order of the changes is that of their records
            since_ms = _since_ms(item, before, versions.came_in_ms(key, record.timestamp), record.timestamp)
            newest[key] = Change(record, key, item_id, item, text, stamp, since_ms)
    return Decoded(list(newest.values()), bad)


def _item_of(record: ConsumerRecord, encoder: Encoder) -> tuple[str, Item | None, str]:
    """The item id of a record, its item (None for a delete) and the item's text. Raises BadMessage."""
    if record.value is None:
        return _deleted_id(record.key), None, ""
    item = decode_item(record.key, record.value)
    text = item_text(item.title, item.description, item.category, item.tags, item.attributes)
    if encoder.item_inputs == "text" and not text.strip(" ."):
        raise BadMessage(
            "no_text",
            f"title: got {quoted(item.title)} and no other text, expected some: bundle {encoder.id} encodes text",
        )
    return item.item_id, item, text


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
