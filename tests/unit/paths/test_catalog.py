"""A batch of catalog changes, from records to index and vectors topic, in the order of versions."""

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jsonschema
import numpy as np
import pytest
import pytest_asyncio
from aiokafka import ConsumerRecord
from faust.types import TP
from structlog.testing import capture_logs

from headwater.encoder import runtime as encoders
from headwater.encoder.features import item_key
from headwater.encoder.runtime import Encoder, ReadItems
from headwater.errors import PartitionLost, StopWorker
from headwater.index import Index, IndexRefused, IndexUnavailable, Point, Query, Stored, vectors_topic
from headwater.index.edge import EdgeIndex
from headwater.index.item_vectors import ItemVectors
from headwater.index.vectors_topic import (
    Fence,
    OfferRecord,
    OwnersClaim,
    VectorRecord,
    claim_of_owner,
    read_record,
    record_of,
)
from headwater.kafka import epochs
from headwater.kafka.batch import Batch
from headwater.kafka.dead_letters import DeadLetters
from headwater.kafka.epochs import CLAIM_KEY, MAX_EPOCH
from headwater.kafka.topics import Topics
from headwater.messages import decode_item_vector, schemas
from headwater.metrics import Metrics
from headwater.paths import catalog, catalog_changes, catalog_repair, shared_index
from headwater.paths.catalog import CatalogPath
from headwater.paths.item_versions import ItemVersions
from headwater.paths.observer import ItemIndexed, Observer
from headwater.paths.restored_versions import Restored
from headwater.paths.serving import Serving
from headwater.settings import Settings
from tests.support.interests_worker import STARTER, Committed, until
from tests.support.recording_producer import RecordingProducer

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEA, COFFEE, CUP = "tea", "coffee", "cup"


@pytest.fixture(scope="module")
def starter() -> Encoder:
    return encoders.load(STARTER)


class CatalogWorker:
    """The catalog side of a worker without Kafka: real path, encoder and index; writes recorded."""

    def __init__(self, encoder: Encoder, index: Index | None) -> None:
        self.topics = Topics.named("test.")
        self.encoder, self.index = encoder, index
        self.producer, self.metrics, self.consumer = RecordingProducer(1), Metrics(), Committed()
        self.threads = ThreadPoolExecutor(1)
        self.failures: list[str] = []
        self.observer, self.served = Observer(), index  # what the path writes to
        self.path = CatalogPath(
            Settings(kafka_bootstrap_servers="127.0.0.1:1", catalog_partitions=1, topic_prefix="test."),
            lambda: Serving(encoder, ItemVectors(encoder.dim), self.served),
            self.threads,
            cast(Any, self.producer),
            DeadLetters(cast(Any, self.producer), self.topics.dead_letters, self.metrics),
            self.metrics,
            self.observer,
            self.failures.append,
            self._is_member,
        )
        self.is_member = False  # what the broker says of this worker
        self.own()
        self._offset = 0

    async def _is_member(self) -> bool:
        return self.is_member

    def own(self) -> None:
        """Partition 0, opened on what the vectors topic says."""
        versions = ItemVersions(0)
        fence = Fence()
        for record in self.producer.latest(self.topics.vectors).values():
            found = read_record(record)
            if isinstance(found, VectorRecord):
                versions.add_read(record, found, fence)
            elif isinstance(found, OfferRecord):
                versions.offers.add_read(0, found, fence)
        versions.offers.sort_out()
        versions.vectors_next = len(self.producer.records(self.topics.vectors))
        versions.epoch, versions.position = 1, -1
        versions.gate.open()
        versions.offers.gate.open()
        self.path._partitions = {0: versions}

    def record(self, key: str | bytes | None, value: bytes | None) -> ConsumerRecord:
        self._offset += 1
        raw = key.encode() if isinstance(key, str) else key
        return ConsumerRecord(
            self.topics.catalog, 0, self._offset, 1_700_000_000_000, 0, raw, value, None, 0, 0, ()
        )

    def item(self, item_id: str, **fields: Any) -> ConsumerRecord:
        fields = {"item_id": item_id, "title": item_id, **fields}
        return self.record(item_id, json.dumps(fields).encode())

    def delete(self, item_id: str) -> ConsumerRecord:
        return self.record(item_id, None)

    async def apply(self, *records: ConsumerRecord) -> Batch:
        batch = Batch(cast(Any, self.consumer), TP(self.topics.catalog, 0), records, 1)
        await self.path.handle(batch)
        return batch

    async def title(self, item_id: str) -> str | None:
        """As the index has it; None for no live item."""
        assert self.index is not None
        found = await self.index.items([item_key(item_id)])
        return found[item_key(item_id)]["title"] if found else None

    def published_title(self, item_id: str) -> str | None:
        """As a worker that reads the vectors topic has it."""
        record = self.producer.latest(self.topics.vectors)[item_id.encode()]
        return decode_item_vector(record.value).payload["title"] if record.value is not None else None

    def vectors(self) -> list[ConsumerRecord]:
        """The records of items on the vectors topic, in order."""
        return [
            record
            for record in self.producer.records(self.topics.vectors)
            if isinstance(read_record(record), VectorRecord)
        ]

    def claimed(self) -> list[int]:
        """How far each claim on the vectors topic says that the catalog has come, in order."""
        read = [read_record(record) for record in self.producer.records(self.topics.vectors)]
        return [each.position for each in read if isinstance(each, OwnersClaim)]

    def reasons(self) -> list[str]:
        return [
            dict(record.headers)["reason"].decode()
            for record in self.producer.records(self.topics.dead_letters)
        ]

    async def close(self) -> None:
        if self.index is not None:
            await self.index.close()
        self.threads.shutdown()


@pytest_asyncio.fixture(loop_scope="module")
async def worker(starter: Encoder, tmp_path: Path) -> AsyncIterator[CatalogWorker]:
    worker = CatalogWorker(starter, await EdgeIndex.open(tmp_path / "index", starter.dim))
    yield worker
    await worker.close()


async def test_an_item_is_found_by_its_text_once_its_batch_is_finished(worker: CatalogWorker) -> None:
    batch = await worker.apply(
        worker.item(TEA, title="Green tea bags", category="grocery", tags=["tea"], price=3.5),
        worker.item("soap", title="Hand soap, lavender"),
    )
    assert worker.index is not None
    (vector,) = worker.encoder.encode_items(["Green tea"])
    ((best, *_),) = await worker.index.search([Query(vector, 2)])
    assert best.item_id == TEA
    assert worker.consumer.finished == [batch]
    payload = (await worker.index.items([item_key(TEA)]))[item_key(TEA)]
    assert (payload["category"], payload["tags"], payload["price"], payload["available"]) == (
        *("grocery", ["tea"], 3.5, True),
    )


async def test_what_is_published_carries_vector_bundle_and_source_and_fits_its_schema(
    worker: CatalogWorker,
) -> None:
    record = worker.item(TEA, title="Green tea bags", version=4)
    await worker.apply(record)
    (published,) = worker.vectors()
    jsonschema.validate(json.loads(published.value), schemas()["ItemVector"], jsonschema.Draft202012Validator)
    message = decode_item_vector(published.value)
    assert (message.bundle, message.partition, message.offset, message.version) == (
        *(worker.encoder.id, 0, record.offset, 4),
    )
    (expected,) = worker.encoder.encode_items(["Green tea bags"], [TEA])
    assert np.allclose(message.array(), expected, atol=1e-6)
    assert published.timestamp == record.timestamp


async def test_a_deleted_item_is_gone_and_its_delete_is_published(worker: CatalogWorker) -> None:
    await worker.apply(worker.item(TEA, version=4))
    gone = worker.delete(TEA)
    await worker.apply(gone)
    assert await worker.title(TEA) is None
    published = worker.producer.latest(worker.topics.vectors)[b"tea"]
    assert published.value is None
    found = read_record(published)
    assert isinstance(found, VectorRecord)
    assert (found.point.vector, found.point.version, found.point.offset) == (None, 4, gone.offset)


async def test_deleted_stays_deleted_when_an_older_version_arrives_late(worker: CatalogWorker) -> None:
    await worker.apply(worker.item(TEA, version=5))
    await worker.apply(worker.delete(TEA))
    await worker.apply(worker.item(TEA, version=4, title="an old one"))
    assert await worker.title(TEA) is None
    assert worker.published_title(TEA) is None
    await worker.apply(worker.item(TEA, version=5, title="the same version, published after the delete"))
    assert await worker.title(TEA) is not None


async def test_an_older_version_never_overrides_a_newer_one(worker: CatalogWorker) -> None:
    await worker.apply(worker.item(TEA, version=2, title="two"))
    await worker.apply(worker.item(TEA, version=1, title="one"))
    assert await worker.title(TEA) == worker.published_title(TEA) == "two"
    await worker.apply(worker.item(TEA, title="no version: inherits, so the offset decides"))
    assert "inherits" in str(await worker.title(TEA))
    await worker.apply(worker.item(TEA, version=1, title="one again"))
    assert "inherits" in str(worker.published_title(TEA))


async def since_ms(worker: CatalogWorker, item_id: str) -> int | None:
    """As the index has it, which is as the next owner of the partition reads it."""
    assert worker.index is not None
    value: int | None = (await worker.index.items([item_key(item_id)]))[item_key(item_id)]["since_ms"]
    record = worker.producer.latest(worker.topics.vectors)[item_id.encode()]
    assert decode_item_vector(record.value).payload["since_ms"] == value
    return value


async def test_an_item_is_as_new_as_its_first_record_through_all_its_changes(worker: CatalogWorker) -> None:
    first = worker.item(TEA)
    await worker.apply(first)
    assert await since_ms(worker, TEA) == first.timestamp
    changed = replace(worker.item(TEA, price=3.0), timestamp=first.timestamp + 5_000)
    await worker.apply(changed)
    assert await since_ms(worker, TEA) == first.timestamp
    worker.own()  # another worker's turn
    await worker.apply(replace(worker.item(TEA, price=4.0), timestamp=first.timestamp + 6_000))
    assert await since_ms(worker, TEA) == first.timestamp


async def test_what_the_shop_says_of_an_items_age_holds_until_it_says_otherwise(
    worker: CatalogWorker,
) -> None:
    year_ms = 365 * 86_400_000
    old = worker.item(TEA)
    await worker.apply(old, worker.item(COFFEE, since_ms=old.timestamp - year_ms))
    await worker.apply(
        worker.item(TEA, since_ms=old.timestamp - 2 * year_ms), worker.item(COFFEE, title="ground coffee")
    )
    assert await since_ms(worker, TEA) == old.timestamp - 2 * year_ms
    assert await since_ms(worker, COFFEE) == old.timestamp - year_ms


@pytest.mark.parametrize("batches", [1, 3])
async def test_an_item_that_comes_back_is_new_again(worker: CatalogWorker, batches: int) -> None:
    story = [worker.item(TEA, since_ms=1_600_000_000_000), worker.delete(TEA), worker.item(TEA)]
    for part in [story] if batches == 1 else [[each] for each in story]:
        await worker.apply(*part)
    assert await since_ms(worker, TEA) == story[-1].timestamp


async def test_an_item_that_an_older_version_has_written_is_not_new(worker: CatalogWorker) -> None:
    await worker.apply(worker.item(TEA))
    worker.path._partitions[0].since_ms[item_key(TEA)] = None  # as its record says nothing
    await worker.apply(worker.item(TEA, price=3.0))
    assert await since_ms(worker, TEA) is None


Step = tuple[str, int | None]  # what happens, and the version it carries
STORY: tuple[Step, ...] = (("item", 3), ("delete", None), ("item", 2), ("item", None))


@pytest.mark.parametrize(
    "story", [*permutations(STORY)], ids=lambda story: ",".join(f"{w}{v or ''}" for w, v in story)
)
async def test_one_batch_and_many_end_in_the_same_place(starter: Encoder, story: tuple[Step, ...]) -> None:
    ends = []
    for one_batch in (True, False):
        worker = CatalogWorker(starter, None)
        records = [
            worker.delete(TEA)
            if what == "delete"
            else worker.item(TEA, title=f"{what} {number}", version=version)
            for number, (what, version) in enumerate(story)
        ]
        for batch in [records] if one_batch else [[record] for record in records]:
            await worker.apply(*batch)
        ends.append((worker.published_title(TEA), worker.path._partitions[0].stamps))
        await worker.close()
    assert ends[0] == ends[1]


async def test_a_worker_that_takes_over_knows_the_versions_from_the_vectors_topic(
    worker: CatalogWorker,
) -> None:
    await worker.apply(worker.item(TEA, version=5), worker.item(COFFEE, version=2), worker.item("none"))
    await worker.apply(worker.delete(TEA))
    before = dict(worker.path._partitions[0].stamps)
    worker.own()
    assert worker.path._partitions[0].stamps == before
    await worker.apply(worker.item(TEA, version=4), worker.item(COFFEE, version=1))
    assert worker.published_title(TEA) is None
    assert len(worker.vectors()) == 4


async def test_a_batch_that_comes_again_writes_nothing(worker: CatalogWorker) -> None:
    records = [worker.item(TEA), worker.item(COFFEE), worker.delete(TEA)]
    await worker.apply(*records)
    written = len(worker.vectors())
    assert written == 2  # of several changes of one item only the newest
    await worker.apply(*records)
    assert len(worker.vectors()) == written


async def test_more_items_than_a_slice_all_arrive_with_their_own_vectors(starter: Encoder) -> None:
    worker = CatalogWorker(starter, None)
    names = [f"product number {number}" for number in range(1_100)]
    await worker.apply(*(worker.item(name) for name in names))
    published = {record.key.decode(): decode_item_vector(record.value).array() for record in worker.vectors()}
    assert set(published) == set(names)
    expected = starter.encode_items(names)
    for place in (0, 511, 512, 1_099):
        assert np.allclose(published[names[place]], expected[place], atol=1e-5)
    await worker.close()


# How far it has come


async def test_a_batch_that_brings_something_new_says_how_far_it_went(worker: CatalogWorker) -> None:
    batch = await worker.apply(worker.item(TEA), worker.item(COFFEE), worker.item("bare", title=""))
    assert worker.claimed() == [batch.last_offset]
    assert worker.producer.records(worker.topics.vectors)[-1].key == CLAIM_KEY, "after its last item"


async def test_records_that_bring_nothing_new_are_passed_by_the_next_claim(worker: CatalogWorker) -> None:
    await worker.apply(worker.item(TEA, version=5))
    batch = await worker.apply(worker.item(TEA, version=4), worker.item("bare", title=""))
    assert worker.claimed()[-1] < batch.last_offset
    await worker.path.claim(0, batch.last_offset + 1)  # a marker of a transaction lies there
    assert worker.claimed()[-1] == batch.last_offset + 1
    written = len(worker.producer.records(worker.topics.vectors))
    await worker.path.claim(0, batch.last_offset + 1)
    await worker.path.claim(0, batch.last_offset)
    assert len(worker.producer.records(worker.topics.vectors)) == written, "nothing new to say"


async def test_nothing_is_claimed_of_a_partition_that_has_gone(worker: CatalogWorker) -> None:
    worker.path.freeze()
    await worker.path.claim(0, 7)
    assert worker.claimed() == []


def ignored(worker: CatalogWorker, reason: str) -> float:
    return worker.metrics.catalog_ignored_total.labels(reason)._value.get()


async def test_an_older_version_after_a_delete_is_counted_and_told(worker: CatalogWorker) -> None:
    await worker.apply(worker.item(TEA, version=5))
    await worker.apply(worker.delete(TEA))
    late = worker.item(TEA, version=1)
    with capture_logs() as logged:
        await worker.apply(late)
    (line,) = logged
    assert (line["event"], line["first_item"], line["offset"], line["version"], line["known_version"]) == (
        *("old_versions_ignored", TEA, late.offset, 1, 5),
    )
    assert (ignored(worker, "old_version"), ignored(worker, "repeated")) == (1, 0)


async def test_what_comes_again_after_a_restart_is_counted_and_not_told(worker: CatalogWorker) -> None:
    records = [worker.item(TEA), worker.item(COFFEE)]
    await worker.apply(*records)
    with capture_logs() as logged:
        await worker.apply(*records)
    assert (ignored(worker, "repeated"), logged) == (2, [])


async def test_texts_that_the_bundle_cannot_read_are_counted_and_told_once(worker: CatalogWorker) -> None:
    with capture_logs() as logged:
        await worker.apply(worker.item(TEA), worker.item(COFFEE, title="咖啡豆", category=""))
        await worker.apply(worker.item("shoes", title="跑步鞋", category=""))
    (line,) = logged
    assert (line["event"], line["first_item"], line["items"], line["unreadable"]) == (
        "texts_unreadable",
        COFFEE,
        2,
        1,
    )
    assert line["unknown_tokens"] == "100%"
    assert worker.metrics.unreadable_items_total._value.get() == 2
    assert b"headwater_unknown_token_share_sum 2.0" in worker.metrics.exposition()
    records = [read_record(record) for record in worker.vectors()]
    _, coffee, shoes = (each.point.vector for each in records if isinstance(each, VectorRecord))
    assert coffee is not None
    assert shoes is not None
    assert abs(float(coffee @ shoes)) < 0.5, "nor are they alike"


# Two items with one key


@pytest.fixture
def one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every item has the key of tea."""
    tea = item_key(TEA)
    for module in (catalog_changes, vectors_topic):
        monkeypatch.setattr(module, "item_key", lambda item_id: tea)


@pytest.mark.usefixtures("one_key")
@pytest.mark.parametrize("batches", [1, 2])
async def test_of_two_items_with_one_key_the_first_stays_and_the_other_is_a_dead_letter(
    worker: CatalogWorker, batches: int
) -> None:
    first, second = worker.item(TEA, title="Green tea"), worker.item("thief", title="Black tea", version=9)
    for part in [[first, second]] if batches == 1 else [[first], [second]]:
        await worker.apply(*part)
    assert worker.reasons() == ["key_collision"]
    assert [record.key for record in worker.vectors()] == [b"tea"]
    assert await worker.title(TEA) == "Green tea"
    await worker.apply(worker.delete("thief"))
    assert worker.reasons() == ["key_collision"] * 2
    assert await worker.title(TEA) == "Green tea", "nor does its deletion touch the first"


@pytest.mark.usefixtures("one_key")
async def test_an_item_with_the_key_of_a_deleted_one_is_new_whatever_the_versions(
    worker: CatalogWorker,
) -> None:
    await worker.apply(worker.item(TEA, version=9))
    await worker.apply(worker.delete(TEA))
    await worker.apply(worker.item("thief", version=1))
    assert worker.reasons() == []
    assert worker.published_title("thief") == "thief"
    await worker.apply(worker.item(TEA, version=10))
    assert worker.reasons() == ["key_collision"]


@pytest.mark.usefixtures("one_key")
async def test_an_item_of_another_partition_keeps_its_key(worker: CatalogWorker) -> None:
    worker.path.holders = {item_key(TEA): "theirs"}
    await worker.apply(worker.item(TEA))
    assert worker.reasons() == ["key_collision"]
    assert worker.vectors() == []


@pytest.mark.usefixtures("one_key")
async def test_an_item_that_only_the_shared_index_knows_keeps_its_key(worker: CatalogWorker) -> None:
    assert worker.index is not None
    theirs = Point(item_key(TEA), "theirs", np.ones(worker.encoder.dim, np.float32), {}, None, 3, 1)
    await worker.index.put([theirs])
    await worker.apply(worker.item(TEA))
    assert worker.reasons() == ["key_collision"]
    assert worker.vectors() == []
    assert worker.path._partitions[0].stamps == {}


# What others wrote


class Written:
    """A consumer of what the recording producer took, one partition at a time."""

    def __init__(self, worker: CatalogWorker, catalog: Sequence[ConsumerRecord] = ()) -> None:
        self._worker, self._catalog = worker, catalog
        self._at: dict[Any, int] = {}

    def _records(self, tp: Any) -> Sequence[ConsumerRecord]:
        is_catalog = tp.topic == self._worker.topics.catalog
        return self._catalog if is_catalog else self._worker.producer.records(tp.topic)

    def assign(self, tps: Any) -> None:
        self._at = dict.fromkeys(tps, 0)

    def seek(self, tp: Any, offset: int) -> None:
        self._at[tp] = offset

    def pause(self, *tps: Any) -> None: ...

    async def seek_to_beginning(self, *tps: Any) -> None:
        self._at.update(dict.fromkeys(tps, 0))

    async def end_offsets(self, tps: Any) -> dict[Any, int]:
        return {tp: len(self._records(tp)) for tp in tps}

    async def position(self, tp: Any) -> int:
        return self._at[tp]

    async def getmany(self, *tps: Any, **_: Any) -> dict[Any, Any]:
        fetched = {tp: self._records(tp)[self._at[tp] :] for tp in tps}
        self._at.update({tp: len(self._records(tp)) for tp in tps})
        return fetched


async def write_as_zombie(
    worker: CatalogWorker, item_id: str, record: ConsumerRecord | None, epoch: int = 0
) -> None:
    """A stale owner's version of an item, from a catalog record at offset 0 unless one is given."""
    vector = np.ones(worker.encoder.dim, np.float32)
    offset = record.offset if record is not None else 0
    stale = Point(item_key(item_id), item_id, vector, {"title": "stale"}, None, 0, offset)
    sent = record_of(stale, worker.encoder.id, 0, epoch)
    await worker.producer.send(worker.topics.vectors, sent.value, sent.key, 0, headers=sent.headers)


async def repaired(worker: CatalogWorker, catalog: Sequence[ConsumerRecord] = ()) -> None:
    versions = worker.path._partitions[0]
    end = len(worker.producer.records(worker.topics.vectors))
    versions.mark_written(end, end)
    await worker.path._repair.repair(cast(Any, Written(worker, catalog)), versions)
    assert (versions.holes, versions.gaps) == ({}, [])


async def test_a_new_bundle_claims_the_catalog_once_it_has_encoded_it_again(
    worker: CatalogWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tea = worker.item(TEA)
    versions = ItemVersions(0)
    versions.is_claimed, versions.position = True, tea.offset
    worker.path._partitions = {0: versions}

    @contextlib.asynccontextmanager
    async def written(*_: object) -> AsyncIterator[Written]:
        yield Written(worker, [tea])

    async def restore(*_: object) -> dict[int, Restored]:
        return {0: Restored({item_key(TEA)}, 1, is_committed=True)}

    monkeypatch.setattr(catalog_repair, "reader", written)
    monkeypatch.setattr(catalog_repair, "restore_versions", restore)
    await worker.path._repair.open([versions])
    assert worker.claimed() == [-1, tea.offset]
    assert [record.key for record in worker.producer.records(worker.topics.vectors)] == [
        *(CLAIM_KEY, TEA.encode(), CLAIM_KEY)
    ]
    assert versions.gate.is_open


@pytest.mark.parametrize(
    ("is_claimed", "is_committed", "encoded"), [(False, True, 1), (False, False, 0), (True, True, 0)]
)
async def test_a_catalog_that_nothing_vouches_for_is_read_again_where_the_group_will_not_read_it(
    worker: CatalogWorker,
    monkeypatch: pytest.MonkeyPatch,
    is_claimed: bool,
    is_committed: bool,
    encoded: int,
) -> None:
    versions = ItemVersions(0)
    versions.is_claimed = is_claimed
    tea = worker.item(TEA)

    @contextlib.asynccontextmanager
    async def written(*_: object) -> AsyncIterator[Written]:
        yield Written(worker, [tea])

    async def restore(*_: object) -> dict[int, Restored]:
        return {0: Restored(set(), -1, is_committed=is_committed)}

    monkeypatch.setattr(catalog_repair, "reader", written)
    monkeypatch.setattr(catalog_repair, "restore_versions", restore)
    worker.path._partitions = {0: versions}
    await worker.path._repair.open([versions])
    assert len(worker.vectors()) == encoded
    assert versions.gate.is_open


async def test_what_a_stale_owner_overwrote_is_written_again(worker: CatalogWorker) -> None:
    tea, coffee = worker.item(TEA, title="Green tea", version=3), worker.item(COFFEE)
    await worker.apply(tea, coffee)
    await worker.apply(worker.delete(COFFEE))
    await write_as_zombie(worker, TEA, None)
    await write_as_zombie(worker, COFFEE, None)
    await repaired(worker)
    assert worker.published_title(TEA) == "Green tea"
    assert worker.published_title(COFFEE) is None
    assert worker.metrics.vectors_repaired_total._value.get() == 2
    written = len(worker.vectors())
    await repaired(worker)
    assert len(worker.vectors()) == written, "it is whole again"


@pytest.mark.parametrize("value", [b"{", None])
async def test_what_nobody_can_read_does_not_stay_the_newest_record_of_an_item(
    worker: CatalogWorker, value: bytes | None
) -> None:
    await worker.apply(worker.item(TEA, title="Green tea"))
    for key in (TEA.encode(), b"nonsense"):
        await worker.producer.send(worker.topics.vectors, value, key, 0)
    await repaired(worker)
    latest = worker.producer.latest(worker.topics.vectors)
    assert {key: latest[key].value is None for key in (TEA.encode(), b"nonsense")} == {
        TEA.encode(): False,
        b"nonsense": True,
    }
    assert worker.published_title(TEA) == "Green tea"


async def test_a_claim_that_nobody_can_read_is_made_again(worker: CatalogWorker) -> None:
    """Else compaction would leave nothing that vouches for the partition."""
    await worker.apply(worker.item(TEA))
    await worker.producer.send(worker.topics.vectors, b"junk", CLAIM_KEY, 0)
    await repaired(worker)
    assert worker.producer.latest(worker.topics.vectors)[CLAIM_KEY].value != b"junk"


async def test_an_item_that_was_deleted_so_long_ago_that_nobody_remembers_is_deleted_again(
    worker: CatalogWorker,
) -> None:
    await worker.apply(worker.item(TEA))
    await write_as_zombie(worker, COFFEE, None)
    await repaired(worker)
    assert worker.published_title(COFFEE) is None
    assert worker.published_title(TEA) == TEA


async def test_a_version_that_compaction_took_is_encoded_again_from_the_catalog(
    worker: CatalogWorker,
) -> None:
    tea = worker.item(TEA, title="Green tea")
    worker.path._partitions[0].position = tea.offset
    await write_as_zombie(worker, TEA, None)
    await repaired(worker, [tea])
    assert worker.published_title(TEA) == "Green tea"


async def test_a_change_at_an_offset_that_the_catalog_has_lost_and_used_again_is_new(
    worker: CatalogWorker,
) -> None:
    """To every index too, which has what was lost; a version that is lower than the lost one is not."""
    lost = [worker.item(TEA, title="lost"), worker.item(COFFEE, version=5), worker.item(CUP, title="lost")]
    await worker.apply(*lost)
    versions = worker.path._partitions[0]
    versions.cut_at(lost[0].offset, lost[-1].offset + 1)
    versions.position = -1
    tea, cup = worker.item(TEA, title="new"), worker.item(CUP, title="new")
    again = [tea, worker.item(COFFEE, title="older", version=4), cup]
    again = [dataclasses.replace(each, offset=old.offset) for each, old in zip(again, lost, strict=True)]
    for _ in range(2):  # the second time it is a repetition
        await worker.apply(*again)
        assert [await worker.title(each) for each in (TEA, COFFEE, CUP)] == ["new", COFFEE, "new"]
        assert [worker.published_title(each) for each in (TEA, COFFEE, CUP)] == ["new", COFFEE, "new"]
    assert (ignored(worker, "old_version"), ignored(worker, "repeated")) == (2, 2)
    assert worker.claimed()[-1] == again[-1].offset
    found = read_record(worker.producer.records(worker.topics.vectors)[-1])
    assert isinstance(found, OwnersClaim)
    assert found.cut == versions.cut


async def test_a_late_copy_of_our_own_write_is_overwritten_too(worker: CatalogWorker) -> None:
    await worker.apply(worker.item(TEA, title="Green tea"))
    await write_as_zombie(worker, TEA, None, epoch=1)
    await repaired(worker)
    assert worker.published_title(TEA) == "Green tea"


async def test_a_later_owners_record_ends_this_worker(
    worker: CatalogWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epochs, "_REBALANCE_S", 0.0)
    await worker.apply(worker.item(TEA))
    await write_as_zombie(worker, TEA, None, epoch=9)
    with pytest.raises(StopWorker, match="written in epoch 9, expected at most ours, 1: another worker owns"):
        await repaired(worker)


@pytest.mark.parametrize("epoch", [9, MAX_EPOCH])
async def test_what_nobody_who_owns_the_partition_wrote_in_a_higher_epoch_is_passed_over_and_out_claimed(
    worker: CatalogWorker, epoch: int
) -> None:
    """Readers have passed over what we wrote after it, so that is written again."""
    worker.is_member = True
    await worker.apply(worker.item(TEA, title="Green tea"))
    forged = claim_of_owner(epoch, 2**62, "no-bundle", "no-topic")
    await worker.producer.send(worker.topics.vectors, forged.value, forged.key, 0, headers=forged.headers)
    await write_as_zombie(worker, TEA, None, epoch=epoch)
    last = await worker.apply(worker.item(COFFEE, title="Black coffee"))
    await repaired(worker)
    assert (worker.published_title(TEA), worker.published_title(COFFEE)) == ("Green tea", "Black coffee")
    newest = {record.key: read_record(record) for record in worker.producer.records(worker.topics.vectors)}
    (ours,) = {each.epoch for each in newest.values()}
    assert epoch < ours or epoch == ours == MAX_EPOCH
    assert worker.claimed()[-1] == last.last_offset
    skipped = worker.metrics.skipped_records_total.labels(worker.topics.vectors, "foreign_epoch")
    assert skipped._value.get() == 2


# Bad input and faults


async def test_an_item_whose_vector_record_no_broker_takes_is_a_dead_letter(worker: CatalogWorker) -> None:
    await worker.apply(worker.item(TEA, tags=["x" * 1_040_000]), worker.item(COFFEE))
    assert worker.reasons() == ["too_large"]
    assert [record.key for record in worker.vectors()] == [b"coffee"]
    assert worker.path._partitions[0].stamps.keys() == {item_key(COFFEE)}


async def test_bad_items_go_to_the_dead_letters_and_the_others_are_indexed(worker: CatalogWorker) -> None:
    batch = await worker.apply(
        worker.item(TEA),
        worker.record(None, b"{"),
        worker.record(TEA, b"{}"),
        worker.record("other", json.dumps({"item_id": TEA, "title": "x"}).encode()),
        worker.item("bare", title=""),
        worker.item("dots", title=" . "),
        worker.record(None, None),
        worker.record(b"\xff", None),
        worker.record("x" * 10_000, None),
        worker.item("x" * 10_000),
        worker.item(COFFEE),
    )
    assert worker.reasons() == [
        *("bad_json", "bad_field", "key_mismatch", "no_text", "no_text"),
        *("null_key", "bad_utf8", "bad_field", "bad_field"),
    ]
    assert await worker.title(TEA) == TEA
    assert await worker.title(COFFEE) == COFFEE
    assert worker.consumer.finished == [batch]


class Broken:
    """The starter with a bug: not finite for one text, failing on another."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def read_items(self, texts: Sequence[str], item_ids: Sequence[str] | None = None) -> ReadItems:
        if "poison" in texts:
            raise ArithmeticError("this text breaks the encoder")
        read = self._encoder.read_items(texts, item_ids)
        read.vectors[[text == "not a number" for text in texts]] = np.nan
        return read


async def test_a_vector_that_is_not_finite_reaches_neither_index_nor_topic(starter: Encoder) -> None:
    worker = CatalogWorker(Broken(starter), None)  # type: ignore[arg-type]
    await worker.apply(worker.item(TEA), worker.item("broken", title="not a number"), worker.item(COFFEE))
    assert worker.reasons() == ["bad_vector"]
    assert {record.key for record in worker.vectors()} == {b"tea", b"coffee"}
    await worker.close()


@pytest.mark.parametrize("place", [0, 2, 5])
async def test_of_a_batch_that_our_own_code_fails_on_the_culprit_alone_is_dead_lettered(
    starter: Encoder, place: int
) -> None:
    worker = CatalogWorker(Broken(starter), None)  # type: ignore[arg-type]
    await worker.apply(worker.item("old"))
    titles = [f"product {number}" for number in range(6)]
    records = [
        worker.item(f"item {n}", title="poison" if n == place else title) for n, title in enumerate(titles)
    ]
    batch = await worker.apply(*records[:3], worker.delete("old"), *records[3:])
    assert worker.reasons() == ["internal_error"]
    published = worker.producer.latest(worker.topics.vectors)
    assert set(published) == {CLAIM_KEY, b"old", *(f"item {n}".encode() for n in range(6) if n != place)}
    assert published[b"old"].value is None
    for number, title in enumerate(titles):
        if number != place:
            message = decode_item_vector(published[f"item {number}".encode()].value)
            assert np.allclose(message.array(), starter.encode_items([title])[0], atol=1e-5)
    assert batch in worker.consumer.finished
    await worker.close()


async def test_a_broker_that_takes_no_writes_stops_the_worker_unacknowledged(starter: Encoder) -> None:
    worker = CatalogWorker(starter, None)
    worker.producer.down = True
    with pytest.raises(StopWorker, match="did not acknowledge"):
        await worker.apply(worker.item(TEA))
    assert worker.consumer.finished == []
    assert worker.path._partitions[0].stamps == {}
    await worker.close()


class _AwayIndex:
    """The index of a worker, whose puts fail for as long as it is away."""

    def __init__(self, index: Index) -> None:
        self._index, self.is_away, self.refused = index, True, 0

    async def put(self, points: Sequence[Point]) -> Stored:
        if self.is_away:
            self.refused += 1
            raise IndexUnavailable("told to be away")
        return await self._index.put(points)


@pytest.fixture
def away(worker: CatalogWorker, monkeypatch: pytest.MonkeyPatch) -> _AwayIndex:
    assert worker.index is not None
    away = _AwayIndex(worker.index)
    monkeypatch.setattr(worker, "served", away)
    monkeypatch.setattr(shared_index, "_RETRY_S", 0.001)
    return away


async def test_changes_wait_for_an_index_that_is_away_and_say_so(
    worker: CatalogWorker, away: _AwayIndex
) -> None:
    assert not worker.path.waits(0)
    applying = asyncio.ensure_future(worker.apply(worker.item(TEA)))
    await until(lambda: away.refused > 2)
    assert worker.path.waits(0)
    assert worker.producer.records(worker.topics.vectors) == []
    away.is_away = False
    assert (await applying).finished
    assert not worker.path.waits(0)
    assert await worker.title(TEA) == worker.published_title(TEA) == TEA


@pytest.mark.parametrize("event", ["rebalance", "stop"])
async def test_a_change_that_waits_for_the_index_is_left_to_the_next_owner_of_its_partition(
    worker: CatalogWorker, away: _AwayIndex, event: str
) -> None:
    """Who may have written newer versions by then, and the vectors topic keeps what comes last."""
    applying = asyncio.ensure_future(worker.apply(worker.item(TEA)))
    await until(lambda: away.refused > 0)
    if event == "rebalance":
        worker.path.freeze()
    else:
        await worker.path.stop()
    away.is_away = False
    with pytest.raises(PartitionLost):
        await applying
    assert worker.producer.records(worker.topics.vectors) == []


async def test_changes_wait_however_long_it_takes_and_arrive_in_order(
    worker: CatalogWorker, away: _AwayIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1_000.0
    clock = SimpleNamespace(monotonic=lambda: now_s, perf_counter=lambda: now_s, time=lambda: now_s)
    for module in (catalog, shared_index):
        monkeypatch.setattr(module, "time", clock)
    assert worker.path.index_away_s == 0
    first = asyncio.ensure_future(worker.apply(worker.item(TEA, price=1.0), worker.item(COFFEE)))
    await until(lambda: away.refused > 2)
    second = asyncio.ensure_future(worker.apply(worker.item(TEA, title="green tea", price=2.0)))
    now_s += 86_400
    seen = away.refused
    await until(lambda: away.refused > seen + 2)
    assert (worker.path.index_away_s, worker.failures) == (86_400, [])
    away.is_away = False
    assert [batch.finished for batch in await asyncio.gather(first, second)] == [True, True]
    assert [record.key for record in worker.vectors()] == [
        b"tea",
        b"coffee",
        b"tea",
    ]
    assert await worker.title(TEA) == worker.published_title(TEA) == "green tea"
    assert worker.path.index_away_s == 0


async def test_an_index_that_will_not_take_changes_ends_the_worker_with_its_reason(
    worker: CatalogWorker, away: _AwayIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(points: Sequence[Point]) -> None:
        raise IndexRefused("it wants another key")

    monkeypatch.setattr(away, "put", refuse)
    with pytest.raises(StopWorker, match="it wants another key"):
        await worker.apply(worker.item(TEA))
    assert worker.consumer.finished == []


async def test_who_listens_is_told_of_items_indexed_and_removed(worker: CatalogWorker) -> None:
    await worker.apply(worker.item(TEA, title="before anybody listened"))
    with worker.observer.listen() as listener:
        item, gone = worker.item(TEA, title="green tea"), worker.delete(COFFEE)
        await worker.apply(item, gone, worker.item("bad", title=""))
        events = [event for event in await listener.next() if isinstance(event, ItemIndexed)]
    assert [(each.item_id, each.title, each.is_removed, each.partition, each.offset) for each in events] == [
        (TEA, "green tea", False, 0, item.offset),
        (COFFEE, "", True, 0, gone.offset),
    ]
    assert all(event.lag_ms > 0 for event in events)


async def test_a_partition_that_was_taken_away_writes_nothing(worker: CatalogWorker) -> None:
    worker.path.freeze()
    with pytest.raises(PartitionLost):
        await worker.apply(worker.item(TEA))
    assert worker.producer.records(worker.topics.vectors) == []


async def test_whoever_waits_for_a_partition_to_open_is_sent_away_at_a_rebalance(
    worker: CatalogWorker,
) -> None:
    worker.path._partitions = {0: ItemVersions(0)}
    waiting = asyncio.ensure_future(worker.apply(worker.item(TEA)))
    await asyncio.sleep(0)
    worker.path.interrupt()
    with pytest.raises(PartitionLost):
        await waiting
