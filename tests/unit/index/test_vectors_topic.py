"""Records of the vectors topic are points, points are records, and the topic fills the index of a worker."""

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
from headwater.index import FilledBy, NoRoom, Point
from headwater.index.edge import EdgeIndex
from headwater.index.item_vectors import ItemVectors
from headwater.index.vectors_topic import VectorsFollower, payload_of, point_of, points_of, record_of
from headwater.kafka.publish import Outgoing
from headwater.messages import BadMessage, Item
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


def as_read(sent: Outgoing) -> ConsumerRecord:
    return ConsumerRecord(
        "vectors", 3, 0, sent.timestamp_ms, 0, sent.key, sent.value, None, 0, 0, sent.headers
    )


def records(*points: Point, bundle: str = BUNDLE) -> list[ConsumerRecord]:
    return [as_read(record_of(each, bundle, 1_000)) for each in points]


def test_a_point_comes_back_from_its_record_with_its_bundle() -> None:
    sent = point("tea", 12, version=4)
    (record,) = records(sent)
    found = point_of(record)
    assert found is not None
    back, bundle = found
    assert bundle == BUNDLE
    assert back.vector is not None
    assert sent.vector is not None
    assert back.vector.tolist() == sent.vector.tolist()
    assert (back.key, back.item_id, back.payload) == (sent.key, sent.item_id, sent.payload)
    assert (back.version, back.partition, back.offset) == (4, 3, 12)
    assert (record.key, record.timestamp) == (b"tea", 1_000)


def test_a_delete_comes_back_with_its_place_in_the_order_and_no_bundle() -> None:
    (record,) = records(deleted("tea", 12, version=4))
    assert record.value is None
    assert point_of(record) == (deleted("tea", 12, version=4), "")


def test_a_null_value_without_our_header_is_nothing() -> None:
    assert point_of(as_read(Outgoing(b"tea", None, (), 0))) is None


def test_what_is_no_vector_is_refused() -> None:
    with pytest.raises(BadMessage):
        point_of(as_read(Outgoing(b"tea", b"{}", (), 0)))


def test_points_are_those_of_the_bundle_and_deletes_and_what_cannot_be_read_is_logged() -> None:
    bad = as_read(Outgoing(b"tea", b"{}", (), 0))
    read = [
        *records(point("tea")),
        *records(point("soap"), bundle="another"),
        bad,
        *records(deleted("cup", 1)),
    ]
    with capture_logs() as logged:
        assert [each.item_id for each in points_of(read, BUNDLE)] == ["tea", "cup"]
    assert [line["event"] for line in logged] == ["bad_vector_record"]


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
    assert following.follower.offsets == {3: 2}


async def test_a_deleted_item_is_in_neither_index_nor_vectors_and_is_told(following: Following) -> None:
    await following.put(point("tea", 1), deleted("tea", 2))
    assert await following.index.count() == 0
    assert item_key("tea") not in following.vectors
    assert following.deleted == [item_key("tea")]
    assert following.follower.offsets == {3: 2}


async def test_an_older_offset_does_not_take_the_position_back(following: Following) -> None:
    await following.put(point("tea", 9))
    await following.put(point("soap", 4))
    assert following.follower.offsets == {3: 9}


async def test_a_vector_that_the_index_refuses_is_logged_and_the_worker_goes_on(following: Following) -> None:
    with capture_logs() as logged:
        await following.put(point("tea", 1, vector=np.array([np.nan, 0.0], np.float32)))
    assert [line["event"] for line in logged] == ["vector_refused"]


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
    assert following.follower.offsets == {3: 5}
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
