"""The vectors topic followed into an index: workers that answer requests keep vectors and index up to date with it.

**Order.** Points are ordered by their stamps, not by their arrival. A record of an epoch below one that came before it is
of an owner that has lost the partition, so it is skipped. Of an item's offers the record that came last counts.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from aiokafka import ConsumerRecord

from headwater.errors import StopWorker
from headwater.index import BadVector, Index, NoRoom, Point, check_points
from headwater.index.item_vectors import ItemVectors
from headwater.index.vectors_topic import Fence, OfferRecord, OwnersClaim, read_records
from headwater.kafka.skipped import SkippedRecords
from headwater.messages import OfferState
from headwater.metrics import Metrics


class _Usable(NamedTuple):
    """What records bring to this index: points, by partition the offset that they vouch for, and offers by item."""

    points: list[tuple[ConsumerRecord, Point]]
    claims: dict[int, int]
    offers: dict[str, OfferState | None]


class VectorsFollower:
    """Keeps ``vectors``, and ``index`` where each worker fills its own, up to date with the vectors topic.

    ``data_dir`` is named where the disk is full; ``on_deleted`` is called with the key of each deleted item.
    """

    def __init__(
        self,
        index: Index,
        vectors: ItemVectors,
        bundle_id: str,
        metrics: Metrics,
        data_dir: Path,
        on_deleted: Callable[[int], None],
    ) -> None:
        self._data_dir = data_dir
        self._index, self._vectors, self._bundle_id = index, vectors, bundle_id
        self._seconds, self._on_deleted = metrics.catalog_to_indexed_seconds, on_deleted
        self._skipped, self._fence = SkippedRecords(metrics), Fence()
        self._fills = index.filled_by == "each worker"
        self._offers: dict[str, OfferState] = {}  # by item id; of items that are not there yet too
        self._bundles: dict[int, str] = {}  # by catalog partition: of the newest record that names one
        self.offsets: dict[int, int] = {}
        """By catalog partition: everything up to this offset is in the index, as its owner says."""
        self.is_caught_up = False
        """Set by the owner once everything that was in the topic at the start has been put."""

    @property
    def other_bundles(self) -> set[str]:
        """The bundles of catalog partitions that are encoded by another one now: their changes do not reach this index."""
        return set(self._bundles.values()) - {self._bundle_id}

    async def put(self, records: Sequence[ConsumerRecord]) -> None:
        """Take in records of one partition, in their order.

        Raises:
            StopWorker: the disk has no room for them.
        """
        if not records:
            return
        points, claims, offers = self._usable(records)
        if self._fills:
            points = self._with_offers(points, offers)
        for point in await self._stored(points):
            if point.vector is None:
                self._vectors.remove(point.key)
                self._on_deleted(point.key)
            else:
                self._vectors.changed(point.key, point.vector)
        if self._fills and offers:
            await self._lay(offers)
        if self.is_caught_up and (points or offers):
            # The records carry the time of the change they came from.
            ages_ms = time.time() * 1000.0 - np.array([record.timestamp for record in records])
            self._seconds.observe_all(np.maximum(ages_ms, 0.0) / 1000.0)
        self.offsets.update(claims)

    def _with_offers(
        self, points: Sequence[tuple[ConsumerRecord, Point]], offers: Mapping[str, OfferState | None]
    ) -> list[tuple[ConsumerRecord, Point]]:
        """The points with the offers of their items, once new ``offers`` are taken note of."""
        for item_id, state in offers.items():
            if state is None:
                self._offers.pop(item_id, None)
            else:
                self._offers[item_id] = state
        if not self._offers:
            return list(points)
        return [
            (record, msgspec.structs.replace(point, offers=self._offers[point.item_id]))
            if point.item_id in self._offers
            else (record, point)
            for record, point in points
        ]

    async def _lay(self, offers: Mapping[str, OfferState | None]) -> None:
        """Raises StopWorker: the disk has no room for them."""
        try:
            await self._index.put_offers(
                [OfferState(item_id, 0) if state is None else state for item_id, state in offers.items()]
            )
        except NoRoom as error:
            raise self._no_room(error) from error

    def _no_room(self, error: NoRoom) -> StopWorker:
        return StopWorker(f"HEADWATER_DATA_DIR is {self._data_dir}: {error}")

    def _usable(self, records: Sequence[ConsumerRecord]) -> "_Usable":
        points: list[tuple[ConsumerRecord, Point]] = []
        claims: dict[int, int] = {}
        offers: dict[str, OfferState | None] = {}
        for record, found in read_records(records, self._skipped):
            if not self._fence.admits(record.partition, found.epoch):
                self._skipped.add(
                    record, "stale_epoch", f"epoch {found.epoch} after a higher one of the partition"
                )
                continue
            if isinstance(found, OfferRecord):
                offers[found.item_id] = found.state
                continue
            if found.bundle:
                self._bundles[record.partition] = found.bundle
            if found.bundle not in ("", self._bundle_id):
                self._skipped.add(
                    record, "other_bundle", f"bundle {found.bundle}, expected ours, {self._bundle_id}"
                )
            elif isinstance(found, OwnersClaim):
                # Of an owner, the newest claim counts, not the highest one: it may take back what another one said.
                if found.position >= 0:
                    claims[found.partition] = found.position
            else:
                points.append((record, found.point))
                if found.epoch < 0:  # its owner makes no claims: the newest offset has to do
                    known = claims.get(record.partition, self.offsets.get(record.partition, -1))
                    claims[record.partition] = max(known, found.point.offset)
        return _Usable(points, claims, offers)

    def _is_sound(self, record: ConsumerRecord, point: Point) -> bool:
        try:
            check_points([point], self._vectors.dim)
        except BadVector as error:
            self._skipped.add(record, "bad_vector", str(error))
            return False
        return True

    async def _stored(self, points: Sequence[tuple[ConsumerRecord, Point]]) -> Sequence[Point]:
        """The points that are newer than what the index had; all of them where the catalog worker fills it.

        Vectors that an index does not take are skipped.
        """
        try:
            return await self._put(points)
        except BadVector:  # before anything was stored
            return await self._put([each for each in points if self._is_sound(*each)])

    async def _put(self, points: Sequence[tuple[ConsumerRecord, Point]]) -> Sequence[Point]:
        given = [point for _, point in points]
        if not self._fills:
            check_points(given, self._vectors.dim)
            return given
        if not given:
            return ()
        try:
            stored = await self._index.put(given)
        except NoRoom as error:
            raise self._no_room(error) from error
        for collision in stored.collisions:
            record = next(record for record, point in points if point is collision.point)
            self._skipped.add(record, "key_collision", str(collision))
        return stored.points
