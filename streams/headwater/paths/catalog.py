"""Path 2: a batch of catalog changes -> vectors -> the index and the vectors topic, in the order of versions.

The vectors topic is partitioned as the catalog is: the owner of a catalog partition alone writes that partition's
vectors, and knows from them which version of each item is the newest.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from numpy.typing import NDArray

from headwater.encoder.features import item_key, item_text
from headwater.encoder.runtime import Encoder
from headwater.errors import PartitionLost, StopWorker
from headwater.index import (
    BadVector,
    Index,
    IndexRefused,
    IndexUnavailable,
    KeyCollision,
    Point,
    Stamp,
    newer,
)
from headwater.index.vectors_topic import payload_of, point_of, points_of, record_of
from headwater.kafka.batch import Batch, Gate
from headwater.kafka.dead_letters import DeadLetter, DeadLetters
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.publish import Outgoing, write_all
from headwater.kafka.supervision import READ_TIMEOUT_S, Background, once_broker_answers, topic_recreated_error
from headwater.kafka.topics import Topics
from headwater.messages import (
    MAX_ID_BYTES,
    BadMessage,
    Item,
    decode_item,
    shown,
)
from headwater.metrics import Metrics
from headwater.settings import Settings

log = structlog.get_logger(__name__)

# Texts encoded at once: enough to fill the encoder's batches, little enough to overlap with writing.
_SLICE: Final = 512
# An index that does not answer is asked again so often; its own calls have retried already.
_INDEX_RETRY_S: Final = 1.0
# How often the index is asked for so many items of each partition that it must have. Of an index that has lost one item in
# twenty, a hundred show it in 99 of 100 looks.
_AUDIT_S: Final = 10.0
_AUDITED: Final = 100


class _Change(NamedTuple):
    """A catalog record that is newer than what is known: an item to encode, or a delete (item None)."""

    record: ConsumerRecord
    key: int
    item_id: str
    item: Item | None
    text: str  # of the item, as the encoder reads it
    stamp: Stamp
    since_ms: int | None = None  # of the item: when it came in


class _Versions:
    """The newest version of each item of one catalog partition, as the vectors topic has it."""

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.stamps: dict[int, Stamp] = {}
        # When each live item came in; None where a version before this field has written it: it is not new.
        self.since_ms: dict[int, int | None] = {}
        self.gate = Gate()
        self.lock = asyncio.Lock()  # one at a time: a batch, or a look at what the index has
        self.audited: set[int] = set()  # keys of some items that it must have
        self.in_index = False  # something is put
        self.is_filled_again = False  # what the index has lost is read and put, which has a limit of its own
        self.away_since_s: float | None = None  # the index has not taken it since

    def published(self, points: Iterable[Point]) -> None:
        """Choose what is asked for: items come first to be chosen, and stay until they are deleted."""
        self.remember(points)
        for point in points:
            if point.vector is None:
                self.audited.discard(point.key)
            elif len(self.audited) < _AUDITED:
                self.audited.add(point.key)

    def remember(self, points: Iterable[Point]) -> None:
        """When items came in: it outlives their changes, and not their deletion."""
        for point in points:
            if point.vector is None:
                self.since_ms.pop(point.key, None)
            else:
                self.since_ms[point.key] = point.payload.get("since_ms")

    def comes_in_ms(self, item: Item | None, key: int, before: _Change | None, record_ms: int) -> int | None:
        """When an item came in that a record changes: what it says itself, or the time of the first record of it.

        `before`: a change of it in the same batch.
        """
        if item is None:
            return None
        if item.since_ms is not None:
            return item.since_ms
        if before is not None:
            return before.since_ms if before.item is not None else record_ms
        return self.since_ms.get(key, record_ms)


class CatalogPath:
    """Encodes catalog batches; ``index`` is None where every interests worker keeps its own from the vectors topic."""

    def __init__(
        self,
        settings: Settings,
        topics: Topics,
        encoder: Encoder,
        threads: Executor,
        producer: Producer,
        index: Index | None,
        dead_letters: DeadLetters,
        metrics: Metrics,
        fail: Callable[[str], None],
    ) -> None:
        self._settings, self._topics, self._encoder, self._threads = settings, topics, encoder, threads
        self._producer, self._index, self._dead_letters = producer, index, dead_letters
        self._metrics, self._background = metrics, Background("the catalog path", fail)
        self._partitions: dict[int, _Versions] = {}
        self._batch_size = metrics.batch_size.labels("catalog")
        self._encode_seconds = metrics.encoder_seconds.labels("item")

    def assign(self, numbers: Iterable[int], generation: int) -> None:
        """Take over partitions: their versions are read from the vectors topic before the first batch."""
        self._partitions = {number: _Versions(generation) for number in numbers}
        for number, versions in self._partitions.items():
            if self._index is not None:
                self._background.spawn(self._keep_filled(self._index, number, versions))
        if self._partitions:
            self._background.spawn(self._open(dict(self._partitions)))

    def interrupt(self) -> None:
        """A rebalance or stop begins: whoever waits for a partition to be opened is sent away."""
        for versions in self._partitions.values():
            versions.gate.interrupt()

    def freeze(self) -> None:
        self._partitions = {}

    async def stop(self) -> None:
        """Changes that still wait for the index are left to the next owner."""
        self.freeze()
        await self._background.stop()

    def waits(self, partition: int) -> bool:
        """Whether its changes wait until it is opened, or for the index, which may be away for as long as it likes, or lack items."""
        versions = self._partitions.get(partition)
        if versions is None:
            return False
        return versions.in_index or versions.is_filled_again or not versions.gate.is_open

    @property
    def index_away_s(self) -> float:
        """For how long changes have waited for an index that does not take them."""
        since = [each.away_since_s for each in self._partitions.values() if each.away_since_s is not None]
        return time.monotonic() - min(since) if since else 0.0

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
            self._require(batch.partition, versions)
            await self._apply(batch.partition, versions, batch.records)
        batch.finish()
        self._batch_size.observe(len(batch.records))

    async def _apply(self, partition: int, versions: _Versions, records: Sequence[ConsumerRecord]) -> None:
        letters: list[DeadLetter] = []
        changes = self._decode(records, versions, letters)
        slices = [changes[start : start + _SLICE] for start in range(0, len(changes), _SLICE)]
        # One slice is encoded in a thread while the one before is indexed and written.
        encoding = self._encoded(slices[0]) if slices else None
        for index, part in enumerate(slices):
            assert encoding is not None
            kept, vectors = await self._without_culprits(part, encoding, letters)
            encoding = self._encoded(slices[index + 1]) if index + 1 < len(slices) else None
            self._require(partition, versions)
            await self._publish(partition, versions, kept, vectors, letters)
            versions.stamps.update((change.key, change.stamp) for change in part)
        await self._dead_letters.put(letters)

    def _decode(
        self, records: Sequence[ConsumerRecord], versions: _Versions, letters: list[DeadLetter]
    ) -> list[_Change]:
        """What is newer than what is known; of several changes of one item in a batch, only the newest."""
        newest: dict[int, _Change] = {}
        for record in records:
            try:
                item_id, item, text = self._item(record)
            except BadMessage as error:
                letters.append(DeadLetter(record, error.reason, str(error)))
                continue
            key = item_key(item_id)
            version = item.version if item is not None else None
            point = Point(key, item_id, None, {}, version, record.partition, record.offset)
            known = newest[key].stamp if key in newest else versions.stamps.get(key)
            stamp = newer(point, known)
            if stamp is not None:
                before = newest.pop(key, None)  # so that the order of the changes is that of their records
                since_ms = versions.comes_in_ms(item, key, before, record.timestamp)
                newest[key] = _Change(record, key, item_id, item, text, stamp, since_ms)
        return list(newest.values())

    def _item(self, record: ConsumerRecord) -> tuple[str, Item | None, str]:
        if record.value is None:
            if not record.key:
                raise BadMessage("null_key", "key: got none, expected the id of the item to delete")
            if len(record.key) > MAX_ID_BYTES:
                raise BadMessage(
                    "bad_field",
                    f"key: got {len(record.key)} bytes, expected 1 to {MAX_ID_BYTES} bytes of UTF-8",
                )
            try:
                return record.key.decode(), None, ""
            except UnicodeDecodeError:
                raise BadMessage("bad_utf8", f"key: got {shown(record.key)}, expected UTF-8") from None
        item = decode_item(record.key, record.value)
        text = _text(item)
        if self._encoder.item_inputs == "text" and not text.strip(" ."):
            raise BadMessage(
                "no_text",
                f"title: got {shown(item.title)} and no other text, expected some: bundle {self._encoder.id} encodes text",
            )
        return item.item_id, item, text

    def _encoded(self, changes: Sequence[_Change]) -> asyncio.Future[NDArray[np.float32]]:
        items = [change for change in changes if change.item is not None]
        loop = asyncio.get_running_loop()

        def run() -> NDArray[np.float32]:
            started = time.perf_counter()
            vectors = self._encoder.encode_items(
                [item.text for item in items], [item.item_id for item in items]
            )
            self._encode_seconds.observe(time.perf_counter() - started)
            return vectors

        if not items:
            nothing: asyncio.Future[NDArray[np.float32]] = loop.create_future()
            nothing.set_result(np.zeros((0, self._encoder.dim), dtype=np.float32))
            return nothing
        return loop.run_in_executor(self._threads, run)

    async def _without_culprits(
        self,
        changes: Sequence[_Change],
        encoding: asyncio.Future[NDArray[np.float32]],
        letters: list[DeadLetter],
    ) -> tuple[list[_Change], NDArray[np.float32]]:
        """The changes with the vectors of their items; what our own code fails on is halved out of them."""
        try:
            return list(changes), await encoding
        except Exception as error:
            if len(changes) == 1:
                record = changes[0].record
                log.exception(
                    "item_failed", topic=record.topic, partition=record.partition, offset=record.offset
                )
                letters.append(DeadLetter(record, "internal_error", f"{type(error).__name__}: {error}"))
                return [], np.zeros((0, self._encoder.dim), dtype=np.float32)
            halves = (changes[: len(changes) // 2], changes[len(changes) // 2 :])
            done = [await self._without_culprits(half, self._encoded(half), letters) for half in halves]
            return [*done[0][0], *done[1][0]], np.concatenate([done[0][1], done[1][1]])

    async def _publish(
        self,
        partition: int,
        versions: _Versions,
        changes: Sequence[_Change],
        vectors: NDArray[np.float32],
        letters: list[DeadLetter],
    ) -> None:
        finite: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(vectors), axis=1)
        fresh = iter(zip(vectors, finite, strict=True))
        points: list[Point] = []
        outgoing: list[Outgoing] = []
        for change in changes:
            record, item = change.record, change.item
            vector, is_finite = (None, True) if item is None else next(fresh)
            if not is_finite:
                message = f"the vector of item {change.item_id!r} is not finite: bundle {self._encoder.id} is broken"
                letters.append(DeadLetter(record, "bad_vector", message))
                continue
            # A delete carries the version it inherited, so that an older version stays out wherever it arrives.
            version = change.stamp.version if change.stamp.version >= 0 else None
            payload = {} if item is None else payload_of(item, change.since_ms)
            point = Point(change.key, change.item_id, vector, payload, version, partition, record.offset)
            points.append(point)
            outgoing.append(record_of(point, self._encoder.id, record.timestamp))
        if self._index is not None:
            await self._put(self._index, partition, versions, points)
        await write_all(self._producer, self._topics.vectors, partition, outgoing)
        versions.published(points)
        self._metrics.catalog_items_total.inc(len(points))

    async def _put(self, index: Index, partition: int, versions: _Versions, points: Sequence[Point]) -> None:
        """Into the index, waiting for one that is away: catalog changes wait, in order.

        Nothing more of the partition is fetched meanwhile, so what waits is one batch; the rest is in the topic.
        """
        versions.in_index = True
        try:
            while not await self._is_put(index, versions, points):
                await asyncio.sleep(_INDEX_RETRY_S)
                self._require(partition, versions)
        finally:
            versions.in_index = False
            versions.away_since_s = None
        # The vectors topic keeps what is written last, and the partition's next owner may have written.
        self._require(partition, versions)

    async def _is_put(self, index: Index, versions: _Versions, points: Sequence[Point]) -> bool:
        try:
            await index.put(points)
        except KeyCollision as error:
            log.error("key_collision", error=str(error))
        except BadVector as error:
            raise StopWorker(f"the index refused a checked vector: {error}") from error
        except IndexRefused as error:
            raise StopWorker(str(error)) from error
        except IndexUnavailable as error:
            if versions.away_since_s is None:
                versions.away_since_s = time.monotonic()
                log.warning("catalog_waits_for_index", items=len(points), error=str(error))
            return False
        if versions.away_since_s is not None:
            log.warning("catalog_goes_on", seconds=round(time.monotonic() - versions.away_since_s, 1))
        return True

    async def _keep_filled(self, index: Index, partition: int, versions: _Versions) -> None:
        """Put again what the index has lost: its collection was made anew, or is that of an older snapshot."""
        await versions.gate.wait_open(None)
        while True:
            async with versions.lock:
                self._require(partition, versions)
                if not await self._has_audited(index, versions):
                    log.warning("index_lacks_items", partition=partition, remedy="they are put again")
                    versions.is_filled_again = True
                    try:
                        await once_broker_answers(
                            self._topics.vectors, partial(self._fill, index, partition, versions)
                        )
                    finally:
                        versions.is_filled_again = False
                    # What that has not brought back is not asked for again.
                    with contextlib.suppress(IndexUnavailable):
                        versions.audited &= set(await index.items(list(versions.audited)))
            await asyncio.sleep(_AUDIT_S)

    async def _has_audited(self, index: Index, versions: _Versions) -> bool:
        try:
            return len(await index.items(list(versions.audited))) == len(versions.audited)
        except IndexUnavailable:
            return True  # as far as anybody knows

    def _require(self, partition: int, versions: _Versions) -> None:
        if self._partitions.get(partition) is not versions:
            raise PartitionLost

    async def _open(self, partitions: dict[int, _Versions]) -> None:
        # Those that are open already go on by themselves.
        await once_broker_answers(
            self._topics.vectors,
            lambda: self._read({n: each for n, each in partitions.items() if not each.gate.is_open}),
        )

    async def _fill(self, index: Index, partition: int, versions: _Versions) -> None:
        """Put everything of a partition that the vectors topic has."""
        consumer, items, started_s = self._reader(), 0, time.monotonic()
        try:
            await consumer.start()
            async for _, records in _whole(consumer, self._topics.vectors, [partition]):
                points = list(points_of(records, self._encoder.id))
                await self._put(index, partition, versions, points)
                items += len(points)
        finally:
            await consumer.stop()
        seconds = round(time.monotonic() - started_s, 1)
        log.warning("index_filled_again", partition=partition, changes=items, seconds=seconds)

    def _reader(self) -> Consumer:
        return Consumer(
            **self._settings.kafka_options(),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=4 * 1024 * 1024,
            fetch_max_wait_ms=100,
        )

    async def _read(self, partitions: dict[int, _Versions]) -> None:
        """Read the versions of the assigned partitions; encode again what another bundle encoded."""
        consumer = self._reader()
        try:
            await consumer.start()
            foreign: dict[int, set[int]] = {number: set() for number in partitions}
            indexed: dict[int, set[int]] = {number: set() for number in partitions}
            async for number, records in _whole(consumer, self._topics.vectors, partitions):
                stamps = partitions[number].stamps
                for record in records:
                    found = point_of(record)
                    if found is None:
                        continue
                    point, bundle = found
                    stamps[point.key] = newer(point, None) or Stamp(0, point.offset)
                    partitions[number].remember([point])
                    is_foreign = bundle not in ("", self._encoder.id)
                    (foreign[number].add if is_foreign else foreign[number].discard)(point.key)
                    has_vector = point.vector is not None and not is_foreign
                    (indexed[number].add if has_vector else indexed[number].discard)(point.key)
            tps = [TopicPartition(self._topics.catalog, number) for number in partitions]
            for tp, end in (await consumer.end_offsets(tps)).items():
                newest = max((stamp.offset for stamp in partitions[tp.partition].stamps.values()), default=-1)
                if newest >= end:  # every change without a version would look older than what is known
                    raise topic_recreated_error(
                        tp, f"changes up to offset {newest} are known", end, self._topics.vectors
                    )
            for number, keys in indexed.items():
                partitions[number].audited = set(random.sample(list(keys), min(_AUDITED, len(keys))))
            for number, keys in foreign.items():
                for key in keys:
                    del partitions[number].stamps[key]
                if not keys:
                    partitions[number].gate.open()
            behind = [number for number, keys in foreign.items() if keys]
            if behind:
                log.info("encoding_again", bundle=self._encoder.id, items=sum(map(len, foreign.values())))
                async for number, records in _whole(consumer, self._topics.catalog, behind):
                    await self._apply(number, partitions[number], records)
            for number in behind:
                partitions[number].gate.open()
        finally:
            await consumer.stop()


async def _whole(
    consumer: AIOKafkaConsumer, topic: str, partitions: Iterable[int]
) -> AsyncIterator[tuple[int, Sequence[ConsumerRecord]]]:
    """Everything that is in these partitions now, in order of offsets within each.

    Raises:
        StopWorker: the broker stopped giving records.
    """
    tps = [TopicPartition(topic, number) for number in partitions]
    consumer.assign(tps)
    ends = await consumer.end_offsets(tps)
    await consumer.seek_to_beginning(*tps)
    remaining, healthy_s = set(tps), time.monotonic()
    while True:
        for tp in list(remaining):
            if await consumer.position(tp) >= ends[tp]:
                remaining.discard(tp)
                consumer.pause(tp)
        if not remaining:
            return
        for tp, records in (await consumer.getmany(*remaining, timeout_ms=500, max_records=5_000)).items():
            healthy_s = time.monotonic()
            yield tp.partition, records
            await asyncio.sleep(0)
        if time.monotonic() - healthy_s > READ_TIMEOUT_S:
            raise StopWorker(
                f"{topic}: no record for {READ_TIMEOUT_S:.0f} s while reading it, look at the broker"
            )


def _text(item: Item) -> str:
    return item_text(item.title, item.description, item.category, item.tags, item.attributes)
