"""The newest version of each item of a catalog partition, as the vectors topic has it.

The vectors topic is partitioned as the catalog is. The owner of a catalog partition alone writes that partition's vectors,
and reads from them at its start which version of each item is the newest.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec
from aiokafka import ConsumerRecord

from headwater.encoder.features import item_key
from headwater.errors import PartitionLost
from headwater.index import NO_VERSION, Point, VersionStamp
from headwater.index.deletion_marks import MARKS_KEPT_S, DeletionMarks
from headwater.index.vectors_topic import (
    Fence,
    VectorRecord,
    named_by,
)
from headwater.kafka.batch import Gate
from headwater.kafka.topic_identity import Identity
from headwater.paths.item_offers import ItemOffers

# Items of each partition that the index is asked for. Of an index that has lost one item in twenty, a hundred show it in
# 99 of 100 looks.
AUDITED: Final = 100
# The newest marks of deletions of a partition, 6 MB.
_MARKS_KEPT: Final = 200_000
_SWEEP_S: Final = 3_600.0
_UNKNOWN: Final = Identity()


class Cut(NamedTuple):
    """A catalog log that lost its end, and has used those offsets again for other records.

    What the lost records said of items stays, until something newer comes: the offsets from ``first`` on count as so much
    higher (``shift``) that each is above all that were lost. Owners hand it on in their claims.
    """

    first: int
    shift: int


# Offsets that were shifted have to stay within 64 bits, whatever others claim.
_MAX_SHIFT: Final = 2**61


class ItemVersions:
    """What is known of one owned catalog partition. Made at each assignment; read before the first batch."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.is_owned = True
        self.stamps: dict[int, VersionStamp] = {}
        """Of live items, by key."""
        self.ids: dict[int, str] = {}
        """The live item that each of these keys belongs to."""
        self.since_ms: dict[int, int | None] = {}
        """When each live item came in; None where its record does not say, so that it is not new."""
        self.gate = Gate()
        """Open once the versions have been read."""
        self.lock = asyncio.Lock()
        """Held by a batch, or by a look at what the index or the topic has: one at a time."""
        self.audited: set[int] = set()
        """Keys of some live items, which a shared index must have."""
        self.epoch = -1
        """Of this owner, once it has claimed the partition."""
        self.position = -1
        """Everything in the catalog up to this offset is in the vectors topic, as the newest claim says."""
        self.topic_id: str | None = None
        """Of the catalog that stamps and position are of; None while it is unknown."""
        self.cut: Cut | None = None
        """Where that catalog was cut; None: it never was, or the broker does not tell."""
        self.is_claimed = False
        """Whether a claim of anything was read with the partition: without one, nothing vouches for what is there."""
        self.vectors_next = 0
        """The vectors topic has been read or written up to this offset, except for the ``gaps``."""
        self.gaps: list[tuple[int, int]] = []
        """Offsets [start, stop) of the vectors topic that others wrote, still to be read."""
        self.holes: dict[int, Point] = {}
        """Marks, by key, of items whose newest record in the topic is a stale one, with its version and offset."""
        self.is_putting = False
        self.is_refilling = False
        self.away_since_s: float | None = None
        """Since when a shared index has not taken changes (`time.monotonic`)."""
        self.writing = asyncio.Lock()
        """Held while records are written, so that those of one call lie together."""
        self.offers = ItemOffers(self.is_there)
        self._marks = DeletionMarks(_MARKS_KEPT)
        self._swept_s = 0.0

    @property
    def waits(self) -> bool:
        """Whether its changes wait to be opened or for the index: both have time limits of their own, or none."""
        return self.is_putting or self.is_refilling or not self.gate.is_open

    def require(self) -> None:
        """Raises PartitionLost when the partition has been taken away."""
        if not self.is_owned:
            raise PartitionLost

    def is_there(self, item_id: str) -> bool:
        """Whether an item is live, though another bundle may have encoded it."""
        key = item_key(item_id)
        return self.ids.get(key, item_id) == item_id and key in self.since_ms

    def placed(self, offset: int) -> int:
        """The place of a catalog record in the order of stamps: its offset, unless the log was cut before it."""
        cut = self.cut
        return offset if cut is None or offset < cut.first else offset + cut.shift

    def cut_at(self, kept: int, lost_end: int) -> None:
        """The log has lost its records from ``kept`` to ``lost_end``, and may have others there."""
        if self.cut is None or self.cut.first != kept:  # else it is the same cut, which nobody has got past
            self.cut = Cut(kept, min(self.placed(lost_end) - kept, _MAX_SHIFT))

    def with_offers(self, points: Sequence[Point]) -> Sequence[Point]:
        """The points with what is laid over their items."""
        states = self.offers.states
        if not states:
            return points
        return [
            msgspec.structs.replace(point, offers=states[point.item_id]) if point.item_id in states else point
            for point in points
        ]

    def stamp(self, key: int, item_id: str) -> VersionStamp | None:
        """The newest version of an item, live or deleted."""
        return self.stamps.get(key) or self._marks.get(key, item_id)

    def deleted_at(self, key: int, item_id: str) -> VersionStamp | None:
        """The version at which an item was deleted; None unless it is known to be."""
        return self._marks.get(key, item_id)

    def came_in_ms(self, key: int, otherwise_ms: int) -> int | None:
        """When a live item came in; ``otherwise_ms`` for an item that is not there."""
        return self.since_ms.get(key, otherwise_ms)

    def add_published(self, points: Iterable[Point]) -> None:
        """Remember what has been written to the vectors topic, and audit the first items until they are deleted."""
        now_s = time.time()
        for point in points:
            self._remember(point, stamp_of(point), now_s)
            if point.vector is None:
                self.audited.discard(point.key)
            elif len(self.audited) < AUDITED:
                self.audited.add(point.key)
        if now_s > self._swept_s + _SWEEP_S:
            self.sweep(now_s)

    def add_read(self, record: ConsumerRecord, found: VectorRecord, fence: Fence) -> bool:
        """Take in a record of the vectors topic, in the order of the topic; returns whether it is the newest of its item.

        A stale one leaves a hole: compaction will keep it instead of the newer one.
        """
        point, stamp = found.point, stamp_of(found.point)
        if self.ids.get(point.key, point.item_id) != point.item_id:
            return False  # the item of the first one has the key
        held = self.stamp(point.key, point.item_id)
        if not fence.admits(self.partition, found.epoch) or (held is not None and stamp < held):
            self.add_hole(point)
            return False
        self.holes.pop(point.key, None)
        self._remember(point, stamp, min(record.timestamp / 1000.0, time.time()))
        return True

    def add_hole(self, stale: Point) -> None:
        """A stale record is the newest of its item in the topic."""
        self.holes[stale.key] = msgspec.structs.replace(stale, vector=None, payload={})

    def add_refused(self, record: ConsumerRecord) -> None:
        """A record that cannot be read is the newest of its item in the topic: compaction would keep it alone.

        It is of a newer version, or of somebody who owns nothing. All that an item has comes from the catalog.
        """
        named = named_by(record.key)
        if named is None:
            return
        item_id, is_of_offers = named
        key = item_key(item_id)
        if is_of_offers and item_id in self.offers.states:
            self.offers.holes.add(item_id)
        elif not is_of_offers and self.ids.get(key, item_id) == item_id:
            self.add_hole(Point(key, item_id, None, {}, None, self.partition, max(self.position, 0)))

    def forget(self, keys: Iterable[int]) -> None:
        """Make items look new, so that they are encoded again. Their ages stay."""
        for key in keys:
            self.stamps.pop(key, None)
            self.ids.pop(key, None)
            self._marks.remove(key)

    def mark_written(self, start: int, stop: int) -> None:
        """Note that our records landed at offsets [start, stop) of the vectors topic."""
        if start > self.vectors_next:
            self.gaps.append((self.vectors_next, start))
        self.vectors_next = max(self.vectors_next, stop)

    def sweep(self, now_s: float) -> None:
        """Forget deletions that are weeks old."""
        self._swept_s = now_s
        self._marks.sweep(now_s - MARKS_KEPT_S)

    def _remember(self, point: Point, stamp: VersionStamp, now_s: float) -> None:
        """An age outlives an item's changes, and not its deletion."""
        key = point.key
        if point.vector is None:
            for of_live in (self.stamps, self.ids, self.since_ms):
                of_live.pop(key, None)
            self._marks.put(key, point.item_id, stamp, now_s)
            self.offers.went(point.item_id)
        else:
            if key not in self.stamps:
                self._marks.remove(key)
            self.stamps[key], self.ids[key] = stamp, point.item_id
            self.since_ms[key] = point.payload.get("since_ms")
            self.offers.came(point.item_id)


def stamp_of(point: Point) -> VersionStamp:
    """The stamp of a point as published: it has inherited its version already."""
    return VersionStamp(NO_VERSION if point.version is None else point.version, point.offset)
