"""The versions of items of catalog partitions, read back from the vectors topic by their next owner."""

import random
from collections.abc import Collection
from typing import Final, NamedTuple

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.structs import OffsetAndMetadata

from headwater.errors import StopWorker
from headwater.index import Point
from headwater.index.vectors_topic import Fence, OfferRecord, OwnersClaim, VectorRecord, read_records
from headwater.kafka.commit_notes import note_of, vouches_for
from headwater.kafka.fast_client.commits import committed as commits_of
from headwater.kafka.leader_epochs import kept_ends
from headwater.kafka.read_to_end import read_whole
from headwater.kafka.skipped import SkippedRecords
from headwater.kafka.supervision import start_anew, topic_recreated_error
from headwater.kafka.topic_identity import Identity, identities
from headwater.kafka.topics import Topics
from headwater.paths.item_versions import AUDITED, Cut, ItemVersions

_UNKNOWN: Final = Identity()


class Restored(NamedTuple):
    """What a partition holds that cannot stay as it is."""

    foreign: Collection[int]  # keys of items that another bundle encoded
    highest_epoch: int  # -1: none
    is_committed: bool  # the group has read something of the catalog, and will not read it again


async def restore_versions(
    consumer: AIOKafkaConsumer,
    topics: Topics,
    unread: Collection[ItemVersions],
    bundle_id: str,
    skipped: SkippedRecords,
) -> dict[int, Restored]:
    """Read the versions of these partitions from the vectors topic; returns what else was found, by partition.

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
    catalog = {versions.partition: TopicPartition(topics.catalog, versions.partition) for versions in unread}
    logs = await identities(consumer.client, [topics.catalog])
    ends = await consumer.end_offsets(list(catalog.values()))
    restores = {
        versions.partition: _Restore(
            versions,
            catalog[versions.partition],
            logs.get(catalog[versions.partition], _UNKNOWN),
            bundle_id,
            skipped,
        )
        for versions in unread
    }
    fence = Fence()
    async for run in read_whole(consumer, topics.vectors, restores):
        restore = restores[run.tp.partition]
        restore.versions.vectors_next = run.next_offset
        for record, found in read_records(run.records, skipped, restore.versions.add_refused):
            restore.add(record, found, fence, ends[restore.catalog])
    commits = await commits_of(consumer, list(catalog.values()))
    own = {
        restore.catalog: commits[restore.catalog]
        for restore in restores.values()
        if restore.catalog in commits
        and not restore.log.is_another_than(note_of(commits[restore.catalog].metadata).topic_id)
    }
    kept = await kept_ends(consumer.client, own)
    ends = await consumer.end_offsets(list(catalog.values()))
    for restore in restores.values():
        tp = restore.catalog
        restore.settle(ends[tp], own.get(tp), kept.get(tp), topics.vectors)
    return {
        partition: Restored(restore.foreign, restore.highest_epoch, restore.catalog in commits)
        for partition, restore in restores.items()
    }


class _Restore:
    """The records of one partition, as they are read, and then held against its catalog.

    Args:
        versions: what to fill.
        catalog, log: the partition of the catalog, and its topic as it is now.
        bundle_id: the bundle of this worker.
        skipped: is told of claims that do not count.
    """

    def __init__(
        self,
        versions: ItemVersions,
        catalog: TopicPartition,
        log: Identity,
        bundle_id: str,
        skipped: SkippedRecords,
    ) -> None:
        self.versions, self.catalog, self.log = versions, catalog, log
        self._bundle_id, self._skipped = bundle_id, skipped
        self.foreign: set[int] = set()
        self.highest_epoch = -1
        self._indexed: set[int] = set()
        self._claim: ConsumerRecord | None = None  # the one that counts
        # By key. A deletion is kept without the item's id, and one from beyond the end at which reading began may be from
        # beyond the end at which it ends.
        self._deleted: dict[int, str] = {}

    def add(
        self, record: ConsumerRecord, found: OwnersClaim | OfferRecord | VectorRecord, fence: Fence, end: int
    ) -> None:
        """Take in a record of the vectors topic, in the order of the topic. ``end``: of the catalog as reading began."""
        self.highest_epoch = max(self.highest_epoch, found.epoch)
        if isinstance(found, OwnersClaim):
            if fence.admits(self.versions.partition, found.epoch):
                self._add_claim(record, found)
        elif isinstance(found, OfferRecord):
            self.versions.offers.add_read(self.versions.partition, found, fence)
        elif self.versions.add_read(record, found, fence):
            point, is_foreign = found.point, found.bundle not in ("", self._bundle_id)
            if point.vector is None and point.offset >= end:
                self._deleted[point.key] = point.item_id
            has_vector = point.vector is not None and not is_foreign
            (self.foreign.add if is_foreign else self.foreign.discard)(point.key)
            (self._indexed.add if has_vector else self._indexed.discard)(point.key)

    def _add_claim(self, record: ConsumerRecord, found: OwnersClaim) -> None:
        versions = self.versions
        is_of_today = self.log.topic_id is not None and versions.topic_id == self.log.topic_id
        if is_of_today and self.log.is_another_than(found.topic_id):
            self._pass_over(record, found.position, None)
            return
        # The first claim of an owner says nothing yet: it may have died while it read the catalog again.
        versions.is_claimed, versions.position = found.position >= 0, found.position
        versions.topic_id, self._claim = found.topic_id, record
        if found.cut is not None and (versions.cut is None or found.cut[1] > versions.cut.shift):
            versions.cut = Cut(*found.cut)

    def settle(self, end: int, commit: OffsetAndMetadata | None, kept: int | None, vectors: str) -> None:
        """Hold what was read against the catalog.

        Args:
            end: of the catalog.
            commit: what the group has committed of this catalog.
            kept: up to where the catalog still has what the group has read; None: the broker does not tell.
            vectors: the name of the vectors topic.

        Raises StopWorker.
        """
        versions, log = self.versions, self.log
        # It has lost its end, and may have grown again since.
        is_cut = commit is not None and kept is not None and kept < commit.offset
        if commit is not None and kept is not None and is_cut:
            end = min(end, kept)
            versions.cut_at(kept, int(commit.offset))
        is_committed, is_other = vouches_for(commit, log, end), log.is_another_than(versions.topic_id)
        is_known = is_cut or is_committed or (None not in (log.topic_id, versions.topic_id) and not is_other)
        if is_known and (is_other or is_cut or versions.position >= end):
            if self._claim is not None:
                self._pass_over(self._claim, versions.position, end)
            versions.is_claimed, versions.position = False, -1
        elif is_other:
            raise StopWorker(
                f"{self.catalog.topic}-{self.catalog.partition}: what is known is of the topic with the id "
                f"{versions.topic_id}, expected the id of today, {log.topic_id}: the topic was re-created. "
                f"{start_anew(vectors)}"
            )
        elif is_committed and commit is not None:  # more than the group has committed nobody need believe
            versions.position = min(versions.position, commit.offset - 1)
        versions.topic_id = log.topic_id or versions.topic_id
        self._check_end(end, vectors, is_known)
        versions.audited = set(random.sample(list(self._indexed), min(AUDITED, len(self._indexed))))
        versions.forget(self.foreign)
        versions.offers.sort_out()

    def _check_end(self, end: int, vectors: str, is_known: bool) -> None:
        """Compare what is known with the end of the catalog: of a shorter one, every change would look older.

        Where the newest claim is within it, or the catalog is known to be the one that the versions are of, records from
        beyond are none of ours. They leave holes.
        """
        versions, placed_end = self.versions, self.versions.placed(end)
        ids = {key: versions.ids[key] for key, stamp in versions.stamps.items() if stamp.offset >= placed_end}
        beyond = {key: versions.stamps[key].offset for key in ids}
        for key, item_id in self._deleted.items():
            stamp = versions.deleted_at(key, item_id)
            if stamp is not None and stamp.offset >= placed_end:
                ids[key], beyond[key] = item_id, stamp.offset
        if versions.position >= end or (beyond and not versions.is_claimed and not is_known):
            newest = max(versions.position, *beyond.values(), -1)
            raise topic_recreated_error(
                self.catalog, f"changes up to offset {newest} are known", end, start_anew(vectors)
            )
        for key, item_id in ids.items():
            versions.add_hole(Point(key, item_id, None, {}, None, versions.partition, versions.position))
        versions.forget(ids)

    def _pass_over(self, record: ConsumerRecord, position: int, end: int | None) -> None:
        """A claim is of another catalog, or from beyond the ``end`` of the one that the versions are of."""
        found = "of another catalog" if end is None else f"of another catalog, or beyond {end}, where it ends"
        message = (
            f"a claim of everything up to offset {position}, {found}: forged, or the catalog became shorter"
        )
        self._skipped.add(record, "foreign_claim", message)
