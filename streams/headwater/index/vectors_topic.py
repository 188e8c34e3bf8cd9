"""The vectors topic: records to points and back, and the topic followed into an index.

The catalog worker writes one record per change of an item. Workers that answer requests follow the topic: they keep the
vectors that encoders step on, and fill the index where each worker has its own.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from aiokafka import ConsumerRecord

from headwater.encoder.features import item_key
from headwater.errors import StopWorker
from headwater.index import BadVector, Index, KeyCollision, NoRoom, Point
from headwater.index.item_vectors import ItemVectors
from headwater.kafka.headers import DeleteOrder, delete_header, delete_order_of
from headwater.kafka.publish import Outgoing
from headwater.messages import BadMessage, Item, ItemVector, decode_item_vector, encode, vector_bytes
from headwater.metrics import Metrics

log = structlog.get_logger(__name__)


def point_of(record: ConsumerRecord) -> tuple[Point, str] | None:
    """A record of the vectors topic as the index takes it, and the id of its bundle ("" for a delete).

    None for a record without a value that is no delete of ours.

    Raises:
        BadMessage: it is no item vector.
    """
    if record.value is None:
        order = delete_order_of(record.headers)
        if not isinstance(order, DeleteOrder):
            return None
        item_id = record.key.decode()
        return Point(item_key(item_id), item_id, None, {}, order.version, order.partition, order.offset), ""
    item = decode_item_vector(record.value)
    point = Point(
        item_key(item.item_id),
        item.item_id,
        item.array(),
        item.payload,
        item.version,
        item.partition,
        item.offset,
    )
    return point, item.bundle


def points_and_bundles(records: Sequence[ConsumerRecord]) -> Iterator[tuple[Point, str]]:
    """Each record as `point_of` has it. Records that are no vector are logged and left out."""
    for record in records:
        try:
            found = point_of(record)
        except BadMessage as error:
            place = {"partition": record.partition, "offset": record.offset}
            log.error("bad_vector_record", **place, error=str(error))
            continue
        if found is not None:
            yield found


def points_of(records: Sequence[ConsumerRecord], bundle_id: str) -> Iterator[Point]:
    """The deletes among the records, and the vectors of this bundle."""
    return (point for point, bundle in points_and_bundles(records) if bundle in ("", bundle_id))


def record_of(point: Point, bundle_id: str, timestamp_ms: int) -> Outgoing:
    """A point as it is published; ``timestamp_ms`` is that of the catalog change it comes from."""
    key = point.item_id.encode()
    if point.vector is None:
        order = DeleteOrder(point.partition, point.offset, point.version)
        return Outgoing(key, None, [delete_header(order)], timestamp_ms)
    value = ItemVector(
        point.item_id,
        vector_bytes(point.vector),
        point.payload,
        bundle_id,
        point.partition,
        point.offset,
        point.version,
    )
    return Outgoing(key, encode(value), (), timestamp_ms)


def payload_of(item: Item, since_ms: int | None) -> dict[str, Any]:
    """What the index keeps of an item: the filterable fields, and the title for people. ``since_ms``: when it came in."""
    return {
        "item_id": item.item_id,
        "title": item.title,
        "category": item.category,
        "tags": item.tags,
        "price": item.price,
        "available": item.available,
        "attributes": item.attributes,
        "since_ms": since_ms,
    }


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
        self._fills = index.filled_by == "each worker"
        self.offsets: dict[int, int] = {}
        """By catalog partition: the newest offset whose change is in the index."""
        self.is_caught_up = False
        """Set by the owner once everything that was in the topic at the start has been put."""

    async def put(self, records: Sequence[ConsumerRecord]) -> None:
        """Take in records of one partition, in their order.

        Raises:
            StopWorker: the disk has no room for them.
        """
        points = list(points_of(records, self._bundle_id))
        if self._fills:
            try:
                await self._index.put(points)
            except (BadVector, KeyCollision) as error:
                log.error("vector_refused", error=str(error))
            except NoRoom as error:
                raise StopWorker(f"HEADWATER_DATA_DIR is {self._data_dir}: {error}") from error
        if self.is_caught_up:
            # The records carry the time of the catalog change they came from.
            ages_ms = time.time() * 1000.0 - np.array([record.timestamp for record in records])
            self._seconds.observe_all(np.maximum(ages_ms, 0.0) / 1000.0)
        for point in points:
            if point.vector is None:
                self._vectors.remove(point.key)
                self._on_deleted(point.key)
            else:
                self._vectors.changed(point.key, point.vector)
            self.offsets[point.partition] = max(self.offsets.get(point.partition, -1), point.offset)
