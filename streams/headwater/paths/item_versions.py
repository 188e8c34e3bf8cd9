"""The newest version of each item of a catalog partition, as the vectors topic has it.

The vectors topic is partitioned as the catalog is. The owner of a catalog partition alone writes that partition's vectors,
and reads from them at its start which version of each item is the newest.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import msgspec
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from headwater.encoder.features import item_key
from headwater.errors import PartitionLost, StopWorker
from headwater.index import NO_VERSION, Point, VersionStamp
from headwater.index.deletion_marks import MARKS_KEPT_S, DeletionMarks
from headwater.index.vectors_topic import (
    Fence,
    OfferRecord,
    OwnersClaim,
    VectorRecord,
    named_by,
    read_records,
)
from headwater.kafka.batch import Gate
from headwater.kafka.commit_notes import note_of, vouches_for
from headwater.kafka.fast_client.commits import committed as commits_of
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.leader_epochs import kept_ends
from headwater.kafka.read_to_end import Run, read_to_end
from headwater.kafka.skipped import SkippedRecords
from headwater.kafka.supervision import start_anew, topic_recreated_error
from headwater.kafka.topic_identity import Identity, identities
from headwater.kafka.topics import Topics
from headwater.paths.item_offers import ItemOffers
from headwater.settings import Settings

# Items of each partition that the index is asked for. Of an index that has lost one item in twenty, a hundred show it in
# 99 of 100 looks.
_AUDITED: Final = 100
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
            elif len(self.audited) < _AUDITED:
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


class Known(NamedTuple):
    """What partitions hold that cannot stay as it is, by partition."""

    foreign: Mapping[int, Collection[int]]  # keys of items that another bundle encoded
    highest_epoch: Mapping[int, int]  # -1: none
    committed: Collection[int]  # of these the group has read something, and will not read it again


def stamp_of(point: Point) -> VersionStamp:
    """The stamp of a point as published: it has inherited its version already."""
    return VersionStamp(NO_VERSION if point.version is None else point.version, point.offset)


def _pass_over(record: ConsumerRecord, position: int, end: int | None, skipped: SkippedRecords) -> None:
    """A claim is of another catalog, or from beyond the ``end`` of the one that the versions are of."""
    found = "of another catalog" if end is None else f"of another catalog, or beyond {end}, where it ends"
    message = f"a claim of everything up to offset {position}, {found}: forged, or the catalog became shorter"
    skipped.add(record, "foreign_claim", message)


def _check_end(
    versions: ItemVersions,
    catalog: TopicPartition,
    end: int,
    vectors: str,
    deleted: Mapping[int, str],
    is_known: bool,
) -> None:
    """Compare what is known with the end of the catalog: of a shorter one, every change would look older.

    Where the newest claim is within it, or the catalog is known to be the one that the versions are of, records from
    beyond are none of ours. They leave holes. ``deleted`` are the ids of all deleted items whose deletions may be from
    beyond, by key.
    """
    position_end, end = end, versions.placed(end)
    ids = {key: versions.ids[key] for key, stamp in versions.stamps.items() if stamp.offset >= end}
    beyond = {key: versions.stamps[key].offset for key in ids}
    for key, item_id in deleted.items():
        stamp = versions.deleted_at(key, item_id)
        if stamp is not None and stamp.offset >= end:
            ids[key], beyond[key] = item_id, stamp.offset
    if versions.position >= position_end or (beyond and not versions.is_claimed and not is_known):
        newest = max(versions.position, *beyond.values(), -1)
        raise topic_recreated_error(
            catalog, f"changes up to offset {newest} are known", position_end, start_anew(vectors)
        )
    for key, item_id in ids.items():
        versions.add_hole(Point(key, item_id, None, {}, None, versions.partition, versions.position))
    versions.forget(ids)


@asynccontextmanager
async def reader(settings: Settings, group: str | None = None) -> AsyncIterator[Consumer]:
    """A consumer that joins no group, for as long as the block runs. It is told what ``group`` has committed.

    Raises:
        KafkaError: the broker is away, or refuses.
    """
    consumer = Consumer(
        **settings.kafka_options(),
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=4 * 1024 * 1024,
        fetch_max_wait_ms=100,
    )
    try:
        await consumer.start()
        yield consumer
    finally:
        await consumer.stop()


async def read_whole(consumer: AIOKafkaConsumer, topic: str, partitions: Iterable[int]) -> AsyncIterator[Run]:
    """Everything that is in these partitions now, in order of offsets within each. Raises as `read_to_end` does."""
    tps = [TopicPartition(topic, partition) for partition in partitions]
    consumer.assign(tps)
    await consumer.seek_to_beginning(*tps)
    async for run in read_to_end(consumer, tps):
        yield run


async def read_versions(
    consumer: AIOKafkaConsumer,
    topics: Topics,
    unread: Collection[ItemVersions],
    bundle_id: str,
    skipped: SkippedRecords,
) -> Known:
    """Read the versions of these partitions from the vectors topic.

    Items that another bundle encoded are made to look new, so that they are encoded again when their catalog records are
    applied.

    Claims of another catalog, or from beyond its end, are skipped where a claim before them or the group's commit
    says that the catalog of today is the one that the versions are of. ``consumer`` is told what the group has committed.
    Where the catalog has lost what the group had read, nothing vouches for what is there any more. What is known of its items
    stays, see `Cut`.

    Raises:
        StopWorker: the catalog is not the one that the versions are of; or the broker gave nothing.
        KafkaError: the broker is away, or refuses.
    """
    by_partition = {versions.partition: versions for versions in unread}
    foreign: dict[int, set[int]] = {partition: set() for partition in by_partition}
    indexed: dict[int, set[int]] = {partition: set() for partition in by_partition}
    highest = dict.fromkeys(by_partition, -1)
    fence = Fence()
    claimed: dict[int, ConsumerRecord] = {}  # by partition: the record of the claim that counts
    tps = [TopicPartition(topics.catalog, partition) for partition in by_partition]
    logs = await identities(consumer.client, [topics.catalog])
    # A deletion is kept without the item's id. Those from beyond this end may be from beyond the end at the end of reading.
    ends = {tp.partition: end for tp, end in (await consumer.end_offsets(tps)).items()}
    deleted: dict[int, dict[int, str]] = {partition: {} for partition in by_partition}
    async for run in read_whole(consumer, topics.vectors, by_partition):
        partition = run.tp.partition
        versions = by_partition[partition]
        versions.vectors_next = run.next_offset
        for record, found in read_records(run.records, skipped, versions.add_refused):
            highest[partition] = max(highest[partition], found.epoch)
            if isinstance(found, OwnersClaim):
                today = logs.get(TopicPartition(topics.catalog, partition), _UNKNOWN)
                is_of_today = today.topic_id is not None and versions.topic_id == today.topic_id
                if not fence.admits(partition, found.epoch):
                    continue
                if is_of_today and today.is_another_than(found.topic_id):
                    _pass_over(record, found.position, None, skipped)
                    continue
                # The first claim of an owner says nothing yet: it may have died while it read the catalog again.
                versions.is_claimed, versions.position = found.position >= 0, found.position
                versions.topic_id, claimed[partition] = found.topic_id, record
                if found.cut is not None and (versions.cut is None or found.cut[1] > versions.cut.shift):
                    versions.cut = Cut(*found.cut)
            elif isinstance(found, OfferRecord):
                versions.offers.add_read(partition, found, fence)
            elif versions.add_read(record, found, fence):
                point, bundle = found.point, found.bundle
                if point.vector is None and point.offset >= ends[partition]:
                    deleted[partition][point.key] = point.item_id
                is_foreign = bundle not in ("", bundle_id)
                has_vector = point.vector is not None and not is_foreign
                (foreign[partition].add if is_foreign else foreign[partition].discard)(point.key)
                (indexed[partition].add if has_vector else indexed[partition].discard)(point.key)
    all_commits = await commits_of(consumer, tps)
    commits = {
        tp: commit
        for tp, commit in all_commits.items()
        if not logs.get(tp, _UNKNOWN).is_another_than(note_of(commit.metadata).topic_id)
    }
    kept = await kept_ends(consumer.client, commits)
    for tp, end in (await consumer.end_offsets(tps)).items():
        versions, log, commit = by_partition[tp.partition], logs.get(tp, _UNKNOWN), commits.get(tp)
        # It has lost its end, and may have grown again since.
        is_cut = commit is not None and kept.get(tp, commit.offset) < commit.offset
        if is_cut and commit is not None:
            end = min(end, kept[tp])
            versions.cut_at(kept[tp], int(commit.offset))
        is_committed, is_other = vouches_for(commit, log, end), log.is_another_than(versions.topic_id)
        is_known = is_cut or is_committed or (None not in (log.topic_id, versions.topic_id) and not is_other)
        if is_known and (is_other or is_cut or versions.position >= end):
            if tp.partition in claimed:
                _pass_over(claimed[tp.partition], versions.position, end, skipped)
            versions.is_claimed, versions.position = False, -1
        elif is_other:
            raise StopWorker(
                f"{tp.topic}-{tp.partition}: what is known is of the topic with the id {versions.topic_id}, expected the id "
                f"of today, {log.topic_id}: the topic was re-created. {start_anew(topics.vectors)}"
            )
        elif is_committed and commit is not None:  # more than the group has committed nobody need believe
            versions.position = min(versions.position, commit.offset - 1)
        versions.topic_id = log.topic_id or versions.topic_id
        _check_end(versions, tp, end, topics.vectors, deleted[tp.partition], is_known)
    for partition, versions in by_partition.items():
        keys = indexed[partition]
        versions.audited = set(random.sample(list(keys), min(_AUDITED, len(keys))))
        versions.forget(foreign[partition])
        versions.offers.sort_out()
    return Known(foreign, highest, {tp.partition for tp in all_commits})
