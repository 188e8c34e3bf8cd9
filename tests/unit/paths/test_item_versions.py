"""The newest version of each item of a partition: read from the vectors topic, kept while it is written."""

import time
from typing import Any, cast

import numpy as np
import pytest
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.structs import OffsetAndMetadata

from headwater.encoder.features import item_key
from headwater.errors import PartitionLost, StopWorker
from headwater.index import NO_VERSION, Point, VersionStamp, vectors_topic
from headwater.index.deletion_marks import MARKS_KEPT_S
from headwater.index.vectors_topic import claim_of_owner, offer_record_of, payload_of, record_of
from headwater.kafka import leader_epochs
from headwater.kafka.commit_notes import CommitNote, note_text
from headwater.kafka.epochs import CLAIM_KEY
from headwater.kafka.publish import Outgoing
from headwater.kafka.skipped import SkippedRecords
from headwater.kafka.topic_identity import Identity
from headwater.kafka.topics import Topics
from headwater.messages import Item, OfferState
from headwater.metrics import Metrics
from headwater.paths import restored_versions
from headwater.paths.item_versions import Cut, ItemVersions
from headwater.paths.restored_versions import restore_versions

TOPICS = Topics.named("test.")
BUNDLE = "a-bundle"
TEA, SOAP = item_key("tea"), item_key("soap")


def point(item_id: str, offset: int, *, version: int | None = None, since_ms: int | None = 7) -> Point:
    payload = payload_of(Item(item_id, item_id), since_ms)
    return Point(item_key(item_id), item_id, np.ones(2, np.float32), payload, version, 0, offset)


def deleted(item_id: str, offset: int, *, version: int | None = None) -> Point:
    return Point(item_key(item_id), item_id, None, {}, version, 0, offset)


class TopicsInMemory:
    """A consumer of partition 0: the vectors topic holds the given records, the catalog ends at an offset."""

    client = None

    def __init__(self, catalog_end: int = 1_000, commit: OffsetAndMetadata | None = None) -> None:
        self._coordinator, self._commit = self, commit
        self._records: list[ConsumerRecord] = []
        self._catalog_end = catalog_end
        self._position = 0

    def write(self, *points: Point, bundle: str = BUNDLE, epoch: int = 1) -> None:
        for each in points:
            self.send(record_of(each, bundle, 0, epoch))

    def claim(self, epoch: int, position: int, topic_id: str | None = None) -> None:
        self.send(claim_of_owner(epoch, position, BUNDLE, topic_id))

    def send(self, sent: Outgoing) -> None:
        place = (TOPICS.vectors, 0, len(self._records))
        self._records.append(
            ConsumerRecord(*place, 0, 0, sent.key, sent.value, None, 0, 0, tuple(sent.headers))
        )

    def assign(self, tps: Any) -> None: ...

    def pause(self, *tps: Any) -> None: ...

    async def seek_to_beginning(self, *tps: Any) -> None:
        self._position = 0

    async def position(self, tp: TopicPartition) -> int:
        return self._position

    async def end_offsets(self, tps: Any) -> dict[TopicPartition, int]:
        ends = {TOPICS.vectors: len(self._records), TOPICS.catalog: self._catalog_end}
        return {tp: ends[tp.topic] for tp in tps}

    async def fetch_committed_offsets(self, tps: Any) -> dict[TopicPartition, OffsetAndMetadata]:
        return {} if self._commit is None else dict.fromkeys(tps, self._commit)

    async def getmany(self, *tps: TopicPartition, **_: Any) -> dict[TopicPartition, list[ConsumerRecord]]:
        fetched = self._records[self._position :]
        self._position = len(self._records)
        return dict.fromkeys(tps, fetched)

    async def read(self) -> tuple[ItemVersions, bool]:
        """The versions of partition 0, and whether some are of another bundle."""
        versions = ItemVersions(0)
        self.metrics = Metrics()
        skipped = SkippedRecords(self.metrics)
        restored = await restore_versions(cast(Any, self), TOPICS, [versions], BUNDLE, skipped)
        self.highest_epoch, self.is_committed = restored[0].highest_epoch, restored[0].is_committed
        return versions, bool(restored[0].foreign)


def told_of(monkeypatch: pytest.MonkeyPatch, topic_id: str | None) -> None:
    """The broker says that the catalog has this id."""

    async def told(*_: object) -> dict[TopicPartition, Identity]:
        return {TopicPartition(TOPICS.catalog, 0): Identity(topic_id)}

    monkeypatch.setattr(restored_versions, "identities", told)


def committed(offset: int, topic_id: str | None) -> OffsetAndMetadata:
    return OffsetAndMetadata(offset, note_text(CommitNote(topic_id)))


@pytest.fixture
def topics() -> TopicsInMemory:
    return TopicsInMemory()


async def test_the_newest_record_of_each_item_says_its_version_and_age(topics: TopicsInMemory) -> None:
    topics.write(point("tea", 1, version=4), point("soap", 2, since_ms=9), point("tea", 3, version=5))
    versions, stale = await topics.read()
    assert versions.stamps == {TEA: VersionStamp(5, 3), SOAP: VersionStamp(NO_VERSION, 2)}
    assert (versions.came_in_ms(TEA, 99), versions.came_in_ms(SOAP, 99)) == (7, 9)
    assert versions.audited == {TEA, SOAP}
    assert not stale


async def test_a_deleted_item_keeps_its_version_and_has_no_age(topics: TopicsInMemory) -> None:
    topics.write(point("tea", 1, version=4), deleted("tea", 2, version=4))
    versions, _ = await topics.read()
    assert versions.stamp(TEA, "tea") == versions.deleted_at(TEA, "tea") == VersionStamp(4, 2)
    assert versions.came_in_ms(TEA, 99) == 99
    assert versions.audited == set()


async def test_items_of_another_bundle_look_new_so_that_they_are_encoded_again(
    topics: TopicsInMemory,
) -> None:
    topics.write(point("tea", 1), point("soap", 2), bundle="another")
    topics.write(point("soap", 3))
    versions, stale = await topics.read()
    assert stale
    assert set(versions.stamps) == {SOAP}
    assert versions.came_in_ms(TEA, 99) == 7, "its age outlives the bundle"
    assert versions.audited == {SOAP}


@pytest.mark.parametrize("value", [b"{", b"", None, b"\xff", b"[" * 5_000])
async def test_a_record_that_nobody_can_read_leaves_a_hole_and_stops_nobody(
    topics: TopicsInMemory, value: bytes | None
) -> None:
    """Compaction keeps it instead of the item's: without its owner the item would be gone after the next start."""
    topics.write(point("tea", 1), point("soap", 2))
    for key in (b"tea", b"soap", b"never", None, b"", b"\xff", b"k" * 600, CLAIM_KEY):
        topics.send(Outgoing(key, value))
    topics.write(point("soap", 2))
    versions, _ = await topics.read()
    assert set(versions.stamps) == {TEA, SOAP}
    assert set(versions.holes) == {TEA, item_key("never")}


async def test_what_nobody_can_read_over_the_offers_of_an_item_leaves_a_hole(topics: TopicsInMemory) -> None:
    topics.write(point("tea", 1), point("soap", 2))
    offers = offer_record_of("tea", OfferState("tea", 3, price=5.0, price_ms=9), 0, 1)
    topics.send(offers)
    for item in (b"tea", b"soap"):
        topics.send(Outgoing(offers.key.removesuffix(b"tea") + item, b"{"))
    versions, _ = await topics.read()
    assert (versions.offers.holes, versions.holes) == ({"tea"}, {})


async def test_a_catalog_that_is_shorter_than_what_is_known_of_it_stops_the_worker() -> None:
    topics = TopicsInMemory(catalog_end=5)
    topics.write(point("tea", 7))
    with pytest.raises(StopWorker, match=r"changes up to offset 7 are known.*5.*re-created"):
        await topics.read()


@pytest.mark.parametrize(
    ("claimed", "today", "is_refused"),
    [("aa", "bb", True), ("aa", "aa", False), (None, "bb", False), ("aa", None, False)],
)
async def test_a_catalog_that_was_made_again_is_refused_however_long_it_is(
    monkeypatch: pytest.MonkeyPatch, claimed: str | None, today: str | None, is_refused: bool
) -> None:
    told_of(monkeypatch, today)
    topics = TopicsInMemory()
    topics.write(point("tea", 7))
    topics.claim(1, 7, claimed)
    if is_refused:
        with pytest.raises(StopWorker, match=r"id aa, .* today, bb: the topic was re-created"):
            await topics.read()
    else:
        versions, _ = await topics.read()
        assert versions.topic_id == (today or claimed)  # which the next claim says


@pytest.mark.parametrize(
    ("today", "named", "position"),
    [
        ("aa", "bb", 7),
        ("aa", "bb", 2**62),
        ("aa", "aa", 2**62),
        ("aa", None, 2**63 - 1),
        (None, None, 1_000),
        (None, "bb", 2**62),
    ],
)
async def test_a_forged_claim_is_passed_over_where_the_group_has_committed_in_the_catalog_of_today(
    monkeypatch: pytest.MonkeyPatch, today: str | None, named: str | None, position: int
) -> None:
    """Compaction has taken the owner's claim: both have one key."""
    told_of(monkeypatch, today)
    topics = TopicsInMemory(commit=committed(10, today))
    topics.write(point("tea", 7), epoch=3)
    topics.claim(9, position, named)
    versions, _ = await topics.read()
    assert (set(versions.stamps), versions.is_claimed, versions.position) == ({TEA}, False, -1)
    assert (topics.highest_epoch, versions.topic_id) == (9, today or named), "the next owner's epoch is above"
    skipped = topics.metrics.skipped_records_total.labels(TOPICS.vectors, "foreign_claim")
    assert skipped._value.get() == 1


async def test_a_claim_of_another_catalog_is_passed_over_after_one_that_names_that_of_today(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told_of(monkeypatch, "aa")
    topics = TopicsInMemory()
    topics.write(point("tea", 7))
    topics.claim(1, 7, "former")
    topics.claim(2, 8, "aa")
    topics.claim(3, 9, "forged")
    versions, _ = await topics.read()
    assert (versions.is_claimed, versions.position, versions.topic_id) == (True, 8, "aa")


@pytest.mark.parametrize("commit", [committed(10, "former"), committed(1_001, "aa"), None])
async def test_a_commit_of_another_catalog_vouches_for_nothing(
    monkeypatch: pytest.MonkeyPatch, commit: OffsetAndMetadata | None
) -> None:
    told_of(monkeypatch, "aa")
    topics = TopicsInMemory(commit=commit)
    topics.claim(9, 7, "former")
    with pytest.raises(StopWorker, match="the topic was re-created"):
        await topics.read()


async def test_no_more_of_the_catalog_is_claimed_than_the_group_has_committed() -> None:
    topics = TopicsInMemory(commit=committed(10, None))
    topics.claim(1, 900)
    versions, _ = await topics.read()
    assert (versions.is_claimed, versions.position) == (True, 9)


async def test_an_owner_that_died_before_it_had_read_the_catalog_vouches_for_nothing() -> None:
    """Its first claim, of nothing, comes before it encodes what the topic lacks."""
    topics = TopicsInMemory(commit=committed(10, None))
    topics.write(point("tea", 2))
    topics.claim(1, -1)
    versions, _ = await topics.read()
    assert (versions.is_claimed, versions.position, topics.is_committed) == (False, -1, True)


async def test_changes_that_a_shorter_catalog_has_lost_leave_holes_where_it_is_known_to_be_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told_of(monkeypatch, "aa")
    topics = TopicsInMemory(catalog_end=5)
    topics.write(point("tea", 2), point("soap", 7))
    topics.claim(1, 7, "aa")
    versions, _ = await topics.read()
    assert (set(versions.stamps), set(versions.holes), versions.is_claimed) == ({TEA}, {SOAP}, False)


async def test_a_record_from_beyond_the_catalog_is_passed_over_where_a_claim_vouches_for_the_rest() -> None:
    topics = TopicsInMemory(catalog_end=5)
    topics.write(point("tea", 2))
    topics.claim(1, 4)
    topics.write(point("soap", 2**62))
    versions, _ = await topics.read()
    assert set(versions.stamps) == {TEA}
    assert set(versions.holes) == {SOAP}


async def test_a_stale_owners_records_are_no_versions_and_leave_holes(topics: TopicsInMemory) -> None:
    topics.write(point("tea", 9, version=4), deleted("soap", 8), epoch=3)
    topics.claim(3, 9)
    topics.write(point("tea", 1, version=1), point("soap", 2), epoch=2)
    versions, _ = await topics.read()
    assert versions.stamps == {TEA: VersionStamp(4, 9)}
    assert versions.deleted_at(SOAP, "soap") == VersionStamp(NO_VERSION, 8)
    assert set(versions.holes) == {TEA, SOAP}
    assert (topics.highest_epoch, versions.position, versions.is_claimed) == (3, 9, True)


async def test_a_hole_that_was_written_again_is_none(topics: TopicsInMemory) -> None:
    topics.write(point("tea", 9), epoch=3)
    topics.write(point("tea", 1), epoch=2)
    topics.write(point("tea", 9), epoch=3)
    versions, _ = await topics.read()
    assert versions.holes == {}


async def test_of_two_items_with_one_key_the_first_is_known(
    topics: TopicsInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors_topic, "item_key", lambda item_id: TEA)
    topics.write(point("tea", 1), point("thief", 2))
    versions, _ = await topics.read()
    assert (versions.stamps, versions.ids) == ({TEA: VersionStamp(NO_VERSION, 1)}, {TEA: "tea"})


async def test_a_deletion_from_beyond_the_catalog_is_passed_over_too() -> None:
    topics = TopicsInMemory(catalog_end=5)
    topics.write(point("tea", 2))
    topics.claim(1, 4)
    topics.write(deleted("tea", 2**62), deleted("cup", 3))
    versions, _ = await topics.read()
    assert (versions.stamps, versions.deleted_at(TEA, "tea")) == ({}, None)
    assert {each.item_id for each in versions.holes.values()} == {"tea"}
    assert versions.deleted_at(item_key("cup"), "cup") == VersionStamp(NO_VERSION, 3)


def test_deletions_are_known_for_weeks_and_take_no_dicts() -> None:
    versions = ItemVersions(0)
    versions.add_published([point("tea", 1), deleted("soap", 2, version=7)])
    assert set(versions.ids.values()) == {"tea"}
    assert versions.stamps.keys() == versions.since_ms.keys() == versions.ids.keys()
    versions.sweep(time.time() + MARKS_KEPT_S - 60)
    assert versions.stamp(SOAP, "soap") == VersionStamp(7, 2)
    versions.sweep(time.time() + MARKS_KEPT_S + 60)
    assert versions.stamp(SOAP, "soap") is None
    assert set(versions.ids.values()) == {"tea"}


def test_an_item_that_came_back_is_not_deleted() -> None:
    versions = ItemVersions(0)
    versions.add_published([deleted("soap", 2), point("soap", 3)])
    assert versions.deleted_at(SOAP, "soap") is None
    assert versions.stamp(SOAP, "soap") == VersionStamp(NO_VERSION, 3)


def test_what_others_write_leaves_a_gap_between_our_own_records() -> None:
    versions = ItemVersions(0)
    versions.mark_written(0, 4)
    versions.mark_written(4, 6)
    assert versions.gaps == []
    versions.mark_written(9, 10)
    versions.mark_written(12, 12)
    assert versions.gaps == [(6, 9), (10, 12)]


def test_the_first_hundred_items_are_audited_until_they_are_deleted() -> None:
    versions = ItemVersions(0)
    versions.add_published([point(f"item {n}", n) for n in range(150)])
    assert len(versions.audited) == 100
    versions.add_published([deleted("item 3", 200)])
    assert item_key("item 3") not in versions.audited


def test_an_age_that_no_record_says_is_told_from_an_item_that_is_not_there() -> None:
    versions = ItemVersions(0)
    versions.add_published([point("tea", 1, since_ms=None)])
    assert versions.came_in_ms(TEA, 99) is None
    assert versions.came_in_ms(SOAP, 99) == 99


def test_a_partition_that_was_taken_away_may_not_be_written() -> None:
    versions = ItemVersions(0)
    versions.require()
    versions.is_owned = False
    with pytest.raises(PartitionLost):
        versions.require()


@pytest.mark.parametrize("position", [9, 4, None])
@pytest.mark.parametrize("catalog_end", [1_000, 8])
async def test_a_catalog_that_lost_its_end_is_read_again_though_it_may_have_grown_since(
    monkeypatch: pytest.MonkeyPatch, position: int | None, catalog_end: int
) -> None:
    """Changes from offset 6 on are others than those that were read; claims come by the second. What these said stays."""

    async def told(_: object, epochs: dict[TopicPartition, int]) -> dict[TopicPartition, int]:
        assert set(epochs.values()) == {4}
        return dict.fromkeys(epochs, 6)

    monkeypatch.setattr(leader_epochs, "epoch_ends", told)
    told_of(monkeypatch, "aa")
    commit = OffsetAndMetadata(10, note_text(CommitNote("aa", leader_epoch=4)))
    topics = TopicsInMemory(catalog_end, commit=commit)
    topics.write(point("tea", 2), point("soap", 7))
    if position is not None:
        topics.claim(1, position, "aa")
    versions, _ = await topics.read()
    assert (set(versions.stamps), versions.holes, versions.is_claimed) == ({TEA, SOAP}, {}, False)
    assert (versions.position, versions.cut) == (-1, Cut(6, 4))
    # A change of either item is newer, whatever offset it has now; one that survived is not.
    assert [versions.placed(offset) for offset in (2, 5, 6, 7)] == [2, 5, 10, 11]


async def test_where_a_catalog_was_cut_is_known_from_then_on() -> None:
    """By the claims, through further cuts; and what nobody can have written is still told from it."""
    topics = TopicsInMemory(catalog_end=8)
    topics.write(point("tea", 11), point("soap", 12))
    topics.send(claim_of_owner(2, 7, BUNDLE, cut=(6, 4)))
    topics.claim(2, 7)  # of a version that does not know of cuts
    versions, _ = await topics.read()
    assert (set(versions.stamps), set(versions.holes), versions.cut) == ({TEA}, {SOAP}, Cut(6, 4))
    versions.cut_at(6, 10)
    assert versions.cut == Cut(6, 4), "it is the same one"
    versions.cut_at(4, 8)
    assert [versions.placed(offset) for offset in (3, 4, 7)] == [3, 12, 15]
    versions.cut_at(3, 2**62)
    assert versions.placed(2**62) < 2**63
