"""Records of the vectors topic: versions of items, their offers, and the claims of owners.

The owner of a catalog partition writes one record per change of an item, one for its merged offers, and a claim after each
batch: its epoch, its bundle, and how far it has come in the catalog. `vectors_follower.py` reads them into an index.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from aiokafka import ConsumerRecord
from msgspec import Meta

from headwater.encoder.features import item_key
from headwater.index import Point
from headwater.kafka.epochs import CLAIM_KEY, MAX_EPOCH, claim_record
from headwater.kafka.headers import CLAIM, DELETE, BadHeader, Claim, DeleteOrder, Header
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
    dead letter; -1: it does not say. ``topic_id`` is the broker's, of the catalog that the position is of. ``cut``: where that
    log was cut, if it ever was; see `item_versions.Cut`.
    """

    partition: int
    epoch: int
    position: int
    bundle: str
    topic_id: str | None = None
    cut: tuple[int, int] | None = None


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
    claim = CLAIM.of(record.headers)
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
    fields["item_id"] = item.item_id  # answers and trends name the item by it
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
    order = DELETE.of(record.headers)
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
    return OwnersClaim(record.partition, claim.epoch, claim.applied, bundle, claim.topic_id, claim.cut)


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
    records: Iterable[ConsumerRecord],
    skipped: SkippedRecords,
    on_refused: Callable[[ConsumerRecord], None] = lambda _: None,
) -> Iterator[tuple[ConsumerRecord, Found]]:
    """Each record with what `read_record` makes of it. Those that it refuses are skipped, and ``on_refused`` is told."""
    for record in records:
        try:
            found = read_record(record)
        except BadMessage as error:
            skipped.add(record, error.reason, str(error))
            on_refused(record)
            continue
        yield record, found


def named_by(key: bytes | None) -> tuple[str, bool] | None:
    """The item whose record, or whose offers (True), a record with this key replaces; None: no item's."""
    is_of_offers = key is not None and key.startswith(_OFFERS_KEY)
    raw = (key or b"").removeprefix(_OFFERS_KEY)
    if not 0 < len(raw) <= MAX_ID_BYTES:
        return None
    try:
        return raw.decode(), is_of_offers
    except UnicodeDecodeError:
        return None


def record_of(point: Point, bundle_id: str, timestamp_ms: int, epoch: int) -> Outgoing:
    """A point as the owner of ``epoch`` publishes it; ``timestamp_ms`` is that of the catalog change it comes from."""
    key = point.item_id.encode()
    if point.vector is None:
        order = DeleteOrder(version=point.version, partition=point.partition, offset=point.offset)
        return Outgoing(key, None, (DELETE.header(order), *_owner(epoch)), timestamp_ms)
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
    return (CLAIM.header(Claim(epoch)),)


def claim_of_owner(
    epoch: int,
    position: int,
    bundle_id: str,
    topic_id: str | None = None,
    cut: tuple[int, int] | None = None,
) -> Outgoing:
    """The record by which the owner of a partition says its epoch, how far it has come in which catalog, and its bundle."""
    claim = Claim(epoch, applied=position, topic_id=topic_id, cut=cut)
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
    """The highest epoch that each partition has shown, in the order of its records. Lower ones are of owners that lost it."""

    def __init__(self) -> None:
        self._epochs: dict[int, int] = {}

    def admits(self, partition: int, epoch: int) -> bool:
        """Whether a record is of no owner that others have followed. Those without an epoch are ordered by stamps alone."""
        if epoch < 0:
            return True
        highest = max(epoch, self._epochs.get(partition, -1))
        self._epochs[partition] = highest
        return epoch == highest
