"""Records of the vectors topic are points, points are records, and the topic fills the index of a worker."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from aiokafka import ConsumerRecord
from structlog.testing import capture_logs

from headwater.encoder.features import item_key
from headwater.errors import StopWorker
from headwater.index import FilledBy, NoRoom, Point, vectors_topic
from headwater.index.edge import EdgeIndex
from headwater.index.item_vectors import ItemVectors
from headwater.index.vectors_follower import VectorsFollower
from headwater.index.vectors_topic import (
    OwnersClaim,
    VectorRecord,
    claim_of_owner,
    payload_of,
    read_record,
    record_of,
)
from headwater.kafka.epochs import CLAIM_KEY
from headwater.kafka.headers import CLAIM, DELETE
from headwater.kafka.publish import Outgoing
from headwater.messages import Item
from headwater.metrics import Metrics

BUNDLE = "a-bundle"
DIM = 2


def point(item_id: str, offset: int = 0, **fields: Any) -> Point:
    given = {
        "vector": np.array([1.0, offset], np.float32),
        "payload": payload_of(Item(item_id, item_id), since_ms=7),
        "version": None,
        "partition": 3,
        **fields,
    }
    return Point(key=item_key(item_id), item_id=item_id, offset=offset, **given)


def deleted(item_id: str, offset: int, **fields: Any) -> Point:
    return point(item_id, offset, vector=None, payload={}, **fields)


def as_read(sent: Outgoing, offset: int = 0) -> ConsumerRecord:
    return ConsumerRecord(
        "vectors", 3, offset, sent.timestamp_ms or 0, 0, sent.key, sent.value, None, 0, 0, sent.headers
    )


def records(*points: Point, bundle: str = BUNDLE, epoch: int = 1) -> list[ConsumerRecord]:
    return [as_read(record_of(each, bundle, 1_000, epoch)) for each in points]


def claim(position: int, *, bundle: str = BUNDLE, epoch: int = 1) -> ConsumerRecord:
    return as_read(claim_of_owner(epoch, position, bundle))


def test_a_point_comes_back_from_its_record_with_its_bundle_and_its_owners_epoch() -> None:
    sent = point("tea", 12, version=4)
    (record,) = records(sent, epoch=7)
    found = read_record(record)
    assert isinstance(found, VectorRecord)
    back = found.point
    assert (found.bundle, found.epoch) == (BUNDLE, 7)
    assert back.vector is not None
    assert sent.vector is not None
    assert back.vector.tolist() == sent.vector.tolist()
    assert (back.key, back.item_id, back.payload) == (sent.key, sent.item_id, sent.payload)
    assert (back.version, back.partition, back.offset) == (4, 3, 12)
    assert (record.key, record.timestamp) == (b"tea", 1_000)


@pytest.mark.parametrize("named", ["", "soap", "x" * 600])
def test_an_item_has_one_name_whatever_its_payload_says(named: str) -> None:
    """Answers and trends take it from there, and a trend with a name that is none is read by nobody."""
    found = read_record(as_read(changed(TEA, payload={**TEA.payload, "item_id": named})))
    assert isinstance(found, VectorRecord)
    assert found.point.payload == TEA.payload


def test_a_delete_comes_back_with_its_place_in_the_order_and_no_bundle() -> None:
    (record,) = records(deleted("tea", 12, version=4))
    assert record.value is None
    assert read_record(record) == (deleted("tea", 12, version=4), "", 1)


def test_an_owners_claim_comes_back() -> None:
    assert read_record(claim(41, epoch=7)) == OwnersClaim(3, 7, 41, BUNDLE)


def test_a_record_of_a_version_without_epochs_is_read() -> None:
    (record,) = records(point("tea"))
    record.headers = ()
    assert read_record(record).epoch == -1


def changed(item: Point, **fields: Any) -> Outgoing:
    """The record of an item with other fields in its JSON."""
    sent = record_of(item, BUNDLE, 0, 1)
    assert sent.value is not None
    return Outgoing(sent.key, json.dumps(json.loads(sent.value) | fields).encode(), sent.headers)


TEA = point("tea", 3)
OURS = record_of(TEA, BUNDLE, 0, 1)
BAD: dict[str, tuple[Outgoing, str]] = {
    "no JSON": (Outgoing(b"tea", b"{"), "bad_json"),
    "no fields": (Outgoing(b"tea", b"{}"), "bad_field"),
    "no UTF-8": (Outgoing(b"tea", b'{"item_id": "\xff"}'), "bad_utf8"),
    "nested for ever": (Outgoing(b"tea", b'{"payload":{"a":' + b"[" * 100_000), "bad_json"),
    "another key": (Outgoing(b"soap", OURS.value), "key_mismatch"),
    "no key": (Outgoing(None, OURS.value), "key_mismatch"),
    "an id without end": (changed(point("x" * 600)), "key_mismatch"),
    "another partition": (changed(TEA, partition=4), "wrong_partition"),
    "a negative offset": (changed(TEA, offset=-1), "bad_field"),
    "an offset beyond 64 bits": (changed(TEA, offset=2**63), "bad_field"),
    "a version beyond 64 bits": (changed(TEA, version=2**63), "bad_field"),
    "half a number": (changed(TEA, vector="AAA="), "bad_vector"),
    "tags that are no list": (changed(TEA, payload={"tags": 5}), "bad_payload"),
    "attributes that are no object": (changed(TEA, payload={"attributes": [1]}), "bad_payload"),
    "a since_ms beyond 64 bits": (changed(TEA, payload={"since_ms": 2**70}), "bad_payload"),
    "a delete without its header": (Outgoing(b"tea", None), "bad_delete"),
    "a delete whose header is null": (Outgoing(b"tea", None, [(DELETE.name, None)]), "bad_delete"),
    "a delete whose header is no JSON": (Outgoing(b"tea", None, [(DELETE.name, b"\xff")]), "bad_delete"),
    "a delete without a key": (
        Outgoing(None, None, record_of(deleted("tea", 1), BUNDLE, 0, 1).headers),
        "null_key",
    ),
    "a delete whose key is no UTF-8": (
        Outgoing(b"\xffx", None, record_of(deleted("tea", 1), BUNDLE, 0, 1).headers),
        "bad_utf8",
    ),
    "a bad claim header": (Outgoing(b"tea", OURS.value, [(CLAIM.name, b"{")]), "bad_header"),
    "an epoch that nobody reaches": (record_of(TEA, BUNDLE, 0, 2**31 - 1), "bad_epoch"),
    "a claim without its header": (Outgoing(CLAIM_KEY, b"{}"), "bad_claim"),
    "a claim without a value": (Outgoing(CLAIM_KEY, None, claim_of_owner(1, 1, BUNDLE).headers), "bad_claim"),
    "a claim whose value is no JSON": (
        Outgoing(CLAIM_KEY, b"\xff", claim_of_owner(1, 1, BUNDLE).headers),
        "bad_claim",
    ),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_record_is_passed_over_counted_and_told_once(name: str, following: "Following") -> None:
    sent, reason = BAD[name]
    with capture_logs() as logged:
        await following.follower.put([as_read(sent, 1), *records(point("soap", 4)), as_read(sent, 2)])
    assert following.skipped(reason) == 2
    (line,) = logged
    assert (line["event"], line["reason"], line["offset"]) == ("record_skipped", reason, 1)
    assert await following.index.count() == 1


@pytest.mark.parametrize("vector", [[np.nan, 0.0], [np.inf, 0.0], [1.0], [1.0, 2.0, 3.0], []])
async def test_a_vector_that_no_index_takes_is_passed_over_and_the_others_are_put(
    following: "Following", vector: list[float]
) -> None:
    await following.put(point("tea", 1, vector=np.array(vector, np.float32)), point("soap", 2))
    assert await following.index.count() == 1
    assert len(following.vectors) == 1
    assert following.skipped("bad_vector") == 1


class Following:
    """A follower whose records are put by hand."""

    def __init__(self, index: Any, **vectors: Any) -> None:
        self.index, self.vectors = index, ItemVectors(DIM, **vectors)
        self.metrics = Metrics()
        self.deleted: list[int] = []
        self.follower = VectorsFollower(
            index, self.vectors, BUNDLE, self.metrics, Path("/full/disk"), self.deleted.append
        )

    async def put(self, *points: Point) -> None:
        await self.follower.put(records(*points))

    def skipped(self, reason: str) -> float:
        """How many records were passed over for this reason."""
        return self.metrics.skipped_records_total.labels("vectors", reason)._value.get()


@pytest_asyncio.fixture
async def index(tmp_path: Path) -> AsyncIterator[EdgeIndex]:
    index = await EdgeIndex.open(tmp_path / "index", DIM)
    yield index
    await index.close()


@pytest.fixture
def following(index: EdgeIndex) -> Following:
    return Following(index)


async def test_an_index_of_the_workers_own_is_filled(following: Following) -> None:
    await following.put(point("tea", 1), point("soap", 2))
    assert set(await following.index.items([item_key("tea"), item_key("soap")])) == {
        item_key("tea"),
        item_key("soap"),
    }
    assert len(following.vectors) == 2


async def test_a_deleted_item_is_in_neither_index_nor_vectors_and_is_told(following: Following) -> None:
    await following.put(point("tea", 1), deleted("tea", 2))
    assert await following.index.count() == 0
    assert item_key("tea") not in following.vectors
    assert following.deleted == [item_key("tea")]


async def test_a_position_is_what_an_owner_claimed_last(following: Following) -> None:
    await following.put(point("tea", 9))
    assert following.follower.offsets == {}, "others of its batch may follow"
    await following.follower.put([claim(12)])
    assert following.follower.offsets == {3: 12}
    await following.follower.put([claim(2**62)])  # of somebody who owns nothing
    await following.follower.put([claim(13)])  # of the owner, who takes it back
    assert following.follower.offsets == {3: 13}


async def test_an_owner_of_a_version_without_claims_is_as_far_as_its_newest_record(
    following: Following,
) -> None:
    read = records(point("tea", 9), point("soap", 4))
    for record in read:
        record.headers = ()
    await following.follower.put(read)
    assert following.follower.offsets == {3: 9}


async def test_a_stale_owner_changes_nothing(following: Following) -> None:
    await following.follower.put([*records(point("tea", 9), epoch=3), claim(9, epoch=3)])
    await following.follower.put(
        [*records(deleted("tea", 99), point("soap", 98), epoch=2), claim(99, epoch=2)]
    )
    assert following.vectors.rows([item_key("tea"), item_key("soap")]).tolist() == [1, -1]
    assert (following.follower.offsets, following.deleted) == ({3: 9}, [])
    assert following.skipped("stale_epoch") == 3


async def test_an_older_version_changes_neither_index_nor_vectors_whenever_it_arrives(
    following: Following,
) -> None:
    await following.put(point("tea", 9), deleted("soap", 8))
    await following.put(point("tea", 4), point("soap", 3))
    assert await following.index.count() == 1
    assert following.vectors.rows([item_key("soap")]).tolist() == [-1]
    assert following.vectors.matrix[following.vectors.rows([item_key("tea")])[0]].tolist() == [1.0, 9.0]


async def test_an_item_whose_key_another_one_has_is_in_neither_index_nor_vectors(
    following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors_topic, "item_key", lambda item_id: 7)
    await following.put(point("tea", 1), point("thief", 2))
    (payload,) = (await following.index.items([7])).values()
    assert payload["item_id"] == "tea"
    assert following.vectors.matrix[following.vectors.rows([7])[0]].tolist() == [1.0, 1.0]
    assert following.skipped("key_collision") == 1


async def test_another_bundles_items_and_claims_count_for_nothing_and_it_is_named(
    following: Following,
) -> None:
    await following.put(point("tea", 1))
    assert following.follower.other_bundles == set()
    await following.follower.put([*records(point("soap", 2), bundle="another"), claim(2, bundle="another")])
    assert (await following.index.count(), following.follower.offsets) == (1, {})
    assert following.follower.other_bundles == {"another"}
    await following.follower.put([claim(3)])
    assert following.follower.other_bundles == set(), "its owner has been replaced"


class Pretending:
    """An index that is there for what it says of itself, and refuses to be written."""

    in_process = True

    def __init__(self, filled_by: FilledBy, put: Callable[[], None]) -> None:
        self.filled_by, self._put = filled_by, put

    async def put(self, points: Any) -> None:
        self._put()


def no_room() -> None:
    raise NoRoom("1 MB is free")


async def test_a_full_disk_stops_the_worker_and_names_the_folder() -> None:
    with pytest.raises(StopWorker, match=r"HEADWATER_DATA_DIR is /full/disk: 1 MB is free"):
        await Following(Pretending("each worker", no_room)).put(point("tea"))


async def test_an_index_that_the_catalog_worker_fills_is_not_written() -> None:
    async def fetch(keys: Any) -> Any:
        return {}

    following = Following(Pretending("the catalog worker", no_room), fetch=fetch)
    await following.put(point("tea", 5))
    assert len(following.vectors) == 0, "nothing asked for it yet"


async def test_ages_are_measured_once_the_topic_has_been_read(following: Following) -> None:
    def measured() -> bool:
        exposed = following.metrics.exposition().decode()
        return "headwater_catalog_to_indexed_seconds_count 0.0" not in exposed

    await following.put(point("tea", 1))
    assert not measured()
    following.follower.is_caught_up = True
    await following.put(point("tea", 2))
    assert measured()
