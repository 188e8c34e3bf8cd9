"""The vectors topic: records to points and back, and the topic followed into an index.

The owner of a catalog partition writes one record per change of an item, one for what the item's offers have come to, and
a claim after each batch: its epoch, its bundle, and how far it has come in the catalog. Workers that answer requests follow the topic. They keep the vectors that
encoders step on, and fill the index where each worker has its own.

**Order.** Points are ordered by their stamps, not by their arrival. A record of an epoch below one that came before it is
of an owner that has lost the partition since, so it is passed over. Of an item's offers the record that came last counts.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import numpy as np
from aiokafka import ConsumerRecord
from msgspec import Meta

from headwater.encoder.features import item_key
from headwater.errors import StopWorker
from headwater.index import BadVector, Index, NoRoom, Point, check_points
from headwater.index.item_vectors import ItemVectors
from headwater.kafka.epochs import CLAIM_KEY, MAX_EPOCH, claim_record
from headwater.kafka.headers import (
    BadHeader,
    Claim,
    DeleteOrder,
    Header,
    claim_header,
    claim_of,
    delete_header,
    delete_order_of,
)
from headwater.kafka.publish import Outgoing
from headwater.kafka.skipped import SkippedRecords
from headwater.messages import (
    MAX_ID_BYTES,
    BadMessage,
    Item,
    ItemVector,
    OfferState,
    decode_item_vector,
    decode_offer_state,
    encode,
    quoted,
    vector_bytes,
)
from headwater.metrics import Metrics

_FLOAT_BYTES: Final = 4


class VectorRecord(NamedTuple):
    """One version of an item, or its deletion, as its catalog partition's owner wrote it."""

    point: Point
    bundle: str  # "" of a delete
    epoch: int  # of the owner; -1 where a version of Headwater without epochs wrote it


class OfferRecord(NamedTuple):
    """What the offers of an item have come to; ``state`` None: there are none any more."""

    item_id: str
    state: OfferState | None
    epoch: int  # of the owner


class OwnersClaim(NamedTuple):
    """What the owner of a catalog partition says of itself.

    Every catalog record up to ``position`` is in the index and the vectors topic, was older than what is there, or is a
    dead letter; -1: it does not say. ``topic_id`` is the broker's, of the catalog that the position is of.
    """

    partition: int
    epoch: int
    position: int
    bundle: str
    topic_id: str | None = None


class _Payload(msgspec.Struct):
    """What an index can hold of an item; see `payload_of`."""

    item_id: str = ""
    title: str = ""
    category: str = ""
    tags: list[str] = []
    price: float | None = None
    available: bool = True
    attributes: dict[str, str | float | bool | list[str | float | bool]] = {}
    since_ms: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    at_ms: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    available_by_default: bool = False


class _Bundle(msgspec.Struct):
    bundle: str


_BUNDLES: Final = msgspec.json.Decoder(_Bundle)
_BY_DEFAULT: Final = {"available_by_default": True}
# Before the id of an item: the key of its offers. No id begins like this, as with `CLAIM_KEY`.
_OFFERS_KEY: Final = b"\xffoffers:"

Found = VectorRecord | OfferRecord | OwnersClaim


def read_record(record: ConsumerRecord) -> Found:
    """A record of the vectors topic.

    Raises:
        BadMessage: it is none of ours, or does not hold together.
    """
    claim = claim_of(record.headers)
    if isinstance(claim, BadHeader):
        raise BadMessage("bad_header", claim.reason)
    if claim is not None and claim.epoch > MAX_EPOCH:
        raise BadMessage("bad_epoch", f"epoch: got {claim.epoch}, expected at most {MAX_EPOCH}")
    if record.key == CLAIM_KEY:
        return _owners_claim(record, claim)
    if record.key is not None and record.key.startswith(_OFFERS_KEY):
        return _offer_record(record, claim)
    epoch = -1 if claim is None else claim.epoch
    if record.value is None:
        return VectorRecord(_delete(record), "", epoch)
    item = decode_item_vector(record.value)
    raw = item.item_id.encode(errors="surrogatepass")
    if record.key != raw or not 0 < len(raw) <= MAX_ID_BYTES:
        raise BadMessage(
            "key_mismatch", f"key: got {quoted(record.key)}, expected item_id {quoted(item.item_id)}"
        )
    _check_partition(record, item.partition)
    if len(item.vector) % _FLOAT_BYTES:
        raise BadMessage("bad_vector", f"vector: got {len(item.vector)} bytes, expected 4 for each number")
    try:
        payload = msgspec.convert(item.payload, _Payload)
    except msgspec.ValidationError as error:
        raise BadMessage("bad_payload", f"payload: {error}") from None
    fields = msgspec.structs.asdict(payload)
    if not payload.available_by_default:  # as few bytes an item in memory as may be
        del fields["available_by_default"]
    point = Point(
        item_key(item.item_id),
        item.item_id,
        item.array(),
        fields,
        item.version,
        item.partition,
        item.offset,
    )
    return VectorRecord(point, item.bundle, epoch)


def _delete(record: ConsumerRecord) -> Point:
    order = delete_order_of(record.headers)
    if not isinstance(order, DeleteOrder):
        reason = "no header that says what it deletes" if order is None else order.reason
        raise BadMessage("bad_delete", f"null value: {reason}")
    _check_partition(record, order.partition)
    try:
        item_id = (record.key or b"").decode()
    except UnicodeDecodeError:
        raise BadMessage("bad_utf8", f"key: got {quoted(record.key)}, expected UTF-8") from None
    if not item_id:
        raise BadMessage("null_key", "key: got none, expected the id of the item to delete")
    return Point(item_key(item_id), item_id, None, {}, order.version, order.partition, order.offset)


def _owners_claim(record: ConsumerRecord, claim: Claim | None) -> OwnersClaim:
    if claim is None or record.value is None:
        raise BadMessage("bad_claim", "a claim without its header or value")
    try:
        bundle = _BUNDLES.decode(record.value).bundle
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadMessage("bad_claim", f"a claim's value: {error}") from None
    return OwnersClaim(record.partition, claim.epoch, claim.applied, bundle, claim.topic_id)


def _offer_record(record: ConsumerRecord, claim: Claim | None) -> OfferRecord:
    if claim is None:
        raise BadMessage("bad_header", "offers of an item without the header of an owner")
    raw = record.key.removeprefix(_OFFERS_KEY)
    if not 0 < len(raw) <= MAX_ID_BYTES:
        raise BadMessage(
            "bad_field", f"key: got {len(raw)} bytes of an item id, expected 1 to {MAX_ID_BYTES}"
        )
    try:
        item_id = raw.decode()
    except UnicodeDecodeError:
        raise BadMessage("bad_utf8", f"key: got {quoted(raw)}, expected UTF-8") from None
    if record.value is None:
        return OfferRecord(item_id, None, claim.epoch)
    state = decode_offer_state(record.value)
    if state.item_id != item_id:
        raise BadMessage(
            "key_mismatch", f"key: got {quoted(record.key)}, expected item_id {quoted(state.item_id)}"
        )
    return OfferRecord(item_id, state, claim.epoch)


def _check_partition(record: ConsumerRecord, partition: int) -> None:
    if partition != record.partition:
        raise BadMessage(
            "wrong_partition", f"partition: got {partition}, expected {record.partition}, where the record is"
        )


def read_records(
    records: Iterable[ConsumerRecord], skipped: SkippedRecords
) -> Iterator[tuple[ConsumerRecord, Found]]:
    """Each record with what `read_record` makes of it. Those that it refuses are skipped."""
    for record in records:
        try:
            found = read_record(record)
        except BadMessage as error:
            skipped.add(record, error.reason, str(error))
            continue
        yield record, found


def record_of(point: Point, bundle_id: str, timestamp_ms: int, epoch: int) -> Outgoing:
    """A point as the owner of ``epoch`` publishes it; ``timestamp_ms`` is that of the catalog change it comes from."""
    key = point.item_id.encode()
    if point.vector is None:
        order = DeleteOrder(point.partition, point.offset, point.version)
        return Outgoing(key, None, (delete_header(order), *_owner(epoch)), timestamp_ms)
    value = ItemVector(
        point.item_id,
        vector_bytes(point.vector),
        point.payload,
        bundle_id,
        point.partition,
        point.offset,
        point.version,
    )
    return Outgoing(key, encode(value), _owner(epoch), timestamp_ms)


def offer_record_of(item_id: str, state: OfferState | None, timestamp_ms: int, epoch: int) -> Outgoing:
    """What the offers of an item have come to, as the owner of ``epoch`` publishes it."""
    value = None if state is None else encode(state)
    return Outgoing(_OFFERS_KEY + item_id.encode(), value, _owner(epoch), timestamp_ms)


@lru_cache(16)
def _owner(epoch: int) -> tuple[Header]:
    """The headers that say who wrote a record: the same for all that an owner writes."""
    return (claim_header(Claim(epoch)),)


def claim_of_owner(epoch: int, position: int, bundle_id: str, topic_id: str | None = None) -> Outgoing:
    """The record by which the owner of a partition says its epoch, how far it has come in which catalog, and its bundle."""
    claim = Claim(epoch, applied=position, topic_id=topic_id)
    return claim_record(claim, msgspec.json.encode(_Bundle(bundle_id)))


def payload_of(item: Item, since_ms: int | None, at_ms: int | None = None) -> dict[str, Any]:
    """What the index keeps of an item: the filterable fields, and the title for people.

    ``since_ms`` is when the item came in, ``at_ms`` the time of this record of it, by which its offers are ordered.
    """
    states_availability = item.available is not msgspec.UNSET
    return {
        "item_id": item.item_id,
        "title": item.title,
        "category": item.category,
        "tags": item.tags,
        "price": item.price,
        "available": item.available if states_availability else True,
        "attributes": item.attributes,
        "since_ms": since_ms,
        "at_ms": at_ms,
        **({} if states_availability else _BY_DEFAULT),
    }


class Fence:
    """The highest epoch that each partition has shown, in the order of its records."""

    def __init__(self) -> None:
        self._epochs: dict[int, int] = {}

    def admits(self, partition: int, epoch: int) -> bool:
        """Whether a record is of no owner that others have followed. Those without an epoch are ordered by stamps alone."""
        if epoch < 0:
            return True
        highest = max(epoch, self._epochs.get(partition, -1))
        self._epochs[partition] = highest
        return epoch == highest


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

        Vectors that an index does not take are passed over.
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
