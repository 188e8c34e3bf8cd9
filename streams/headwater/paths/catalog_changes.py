"""What a batch of catalog records changes: the newest change of each item by version, and the records that change nothing."""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
from aiokafka import ConsumerRecord
from numpy.typing import NDArray

from headwater.encoder.features import item_key, item_text, required_text
from headwater.encoder.runtime import Encoder
from headwater.index import Point, VersionStamp, newer
from headwater.index.vectors_topic import payload_of
from headwater.kafka.dead_letters import DeadLetter
from headwater.messages import MAX_ID_BYTES, BadMessage, Item, decode_item, quoted
from headwater.paths.item_versions import ItemVersions

F32 = NDArray[np.float32]


class Change(NamedTuple):
    """A catalog record that is newer than what is known: an item to encode, or a delete (``item`` None).

    The offset in its ``stamp`` is not that of the record where the catalog log was cut; see `item_versions.Cut`.
    """

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
    offset: int  # in the order of stamps
    known: VersionStamp

    @property
    def reason(self) -> str:
        """``repeated``: it was handled before. ``old_version``: it came later, with a lower version."""
        return "repeated" if self.offset <= self.known.offset else "old_version"


class Decoded(NamedTuple):
    """The changes of a batch in the order of their records, and the records that are none."""

    changes: list[Change]
    bad: list[DeadLetter]
    ignored: list[Ignored]


def decoded(
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
        offset = versions.placed(record.offset)
        stamp = newer(version, offset, known)
        if stamp is None:
            assert known is not None
            ignored.append(Ignored(record, item_id, version, offset, known))
        else:
            newest.pop(key, None)  # so that the order of the changes is that of their records
            since_ms = _since_ms(item, before, versions.came_in_ms(key, record.timestamp), record.timestamp)
            newest[key] = Change(record, key, item_id, item, text, stamp, since_ms)
    return Decoded(list(newest.values()), bad, ignored)


def _item_of(record: ConsumerRecord, encoder: Encoder) -> tuple[str, Item | None, str]:
    """The item id of a record, its item (None for a delete) and the item's text. Raises BadMessage."""
    if record.value is None:
        return deleted_id(record.key), None, ""
    item = decode_item(record.key, record.value)
    if encoder.item_inputs == "text":
        return item.item_id, item, required_text(item, encoder.id)
    return (
        item.item_id,
        item,
        item_text(item.title, item.description, item.category, item.tags, item.attributes),
    )


def deleted_id(key: bytes | None) -> str:
    """The item whose record, or whose offers, a null value deletes. Raises BadMessage."""
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


def point_of(change: Change, vector: F32 | None) -> Point:
    """A change with its item's vector, (D,). A delete carries the version it inherited, so that older ones stay out."""
    version = change.stamp.version if change.stamp.version >= 0 else None
    payload = {} if change.item is None else payload_of(change.item, change.since_ms, change.record.timestamp)
    return Point(
        change.key, change.item_id, vector, payload, version, change.record.partition, change.stamp.offset
    )
