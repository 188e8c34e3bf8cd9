"""Path 2: a batch of catalog changes -> vectors -> the index and the vectors topic, in the order of versions."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial

import structlog
from aiokafka import ConsumerRecord

from headwater.errors import PartitionLost
from headwater.kafka.batch import Batch
from headwater.kafka.dead_letters import DeadLetters
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.skipped import SkippedRecords
from headwater.kafka.supervision import Background, once_broker_answers
from headwater.kafka.topics import Topics
from headwater.metrics import Metrics
from headwater.paths.catalog_changes import Ignored, decoded
from headwater.paths.catalog_encoding import CatalogEncoding, Encoded
from headwater.paths.catalog_offers import CatalogOffers
from headwater.paths.catalog_publishing import SLICE, CatalogPublishing
from headwater.paths.catalog_repair import CatalogRepair
from headwater.paths.item_versions import ItemVersions
from headwater.paths.observer import Observer
from headwater.paths.serving import Serving
from headwater.paths.shared_index import keep_filled
from headwater.paths.vectors_writer import VectorsWriter
from headwater.settings import Settings

log = structlog.get_logger(__name__)


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
        self._topic, self._serving = Topics.named(settings.topic_prefix).vectors, serving
        self._skipped = SkippedRecords(metrics)
        self._writer = VectorsWriter(producer, self._topic, self._skipped, is_member)
        self._encoding = CatalogEncoding(threads, metrics)
        self._publishing = CatalogPublishing(self._writer, dead_letters, metrics, observer)
        self.offers = CatalogOffers(
            lambda number: self._partitions.get(number), serving, self._writer, dead_letters, metrics
        )
        self._repair = CatalogRepair(
            settings,
            serving,
            self._writer,
            self._publishing,
            self._apply,
            self.offers.apply,
            self._skipped,
            metrics,
        )
        self._dead_letters, self._metrics = dead_letters, metrics
        self._background = Background("the catalog path", fail)
        self._partitions: dict[int, ItemVersions] = {}
        self.holders: Mapping[int, str] = {}
        """The item that has each key in the whole catalog, where no shared index tells."""
        self._batch_size = metrics.batch_size.labels("catalog")

    # The life of partitions

    def assign(self, partitions: Iterable[int]) -> None:
        """Take over partitions. Their versions are read from the vectors topic before the first batch."""
        self.freeze()
        self._partitions = {partition: ItemVersions(partition) for partition in partitions}
        serving, topic = self._serving(), self._topic
        if serving.index is not None:
            for versions in self._partitions.values():
                filling = keep_filled(
                    serving.index, versions, serving.encoder.id, topic, self._repair.published, self._skipped
                )
                self._background.start(filling)
        if self._partitions:
            assigned = list(self._partitions.values())
            self._background.start(once_broker_answers(topic, partial(self._repair.open, assigned)))
            self._background.start(once_broker_answers(topic, partial(self._repair.audit, assigned)))

    def interrupt(self) -> None:
        """A rebalance or stop begins: batches that wait for their partition to open are sent away."""
        for versions in self._partitions.values():
            versions.gate.interrupt()
            versions.offers.gate.interrupt()

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

    def offers_wait(self, partition: int) -> bool:
        """Whether the offers of a partition wait for its versions, its catalog or the index, however long that takes."""
        versions = self._partitions.get(partition)
        if versions is None:
            return False
        return versions.waits or versions.offers.waits_for_room or not versions.offers.gate.is_open

    @property
    def offers_without_item(self) -> int:
        """Items that have offers and are not in the catalog."""
        return sum(len(versions.offers.waiting) for versions in self._partitions.values())

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
        changes, bad, ignored = decoded(records, versions, serving.encoder, self._holder, only)
        # Before anything is claimed of them.
        if buries:
            await self._dead_letters.put(bad)
            self._count(versions.partition, ignored)
        slices = [changes[start : start + SLICE] for start in range(0, len(changes), SLICE)]
        # One slice is encoded in a thread while the one before is indexed and written.
        encoding: asyncio.Task[Encoded] | None = None
        try:
            for part, following in zip(slices, [*slices[1:], None], strict=False):
                encoded = await (encoding or self._encoding.encoded(serving.encoder, part))
                encoding = None
                if following:
                    encoding = asyncio.create_task(self._encoding.encoded(serving.encoder, following))
                versions.require()
                await self._publishing.publish(versions, encoded, serving)
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
