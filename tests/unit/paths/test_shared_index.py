"""An index that is shared is written patiently, and filled again where it has lost items."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import pytest_asyncio
from aiokafka import ConsumerRecord

from headwater.encoder.features import item_key
from headwater.errors import PartitionLost, StopWorker
from headwater.index import IndexRefused, IndexUnavailable, Point
from headwater.index.edge import EdgeIndex
from headwater.index.vectors_topic import payload_of, record_of
from headwater.kafka.skipped import SkippedRecords
from headwater.messages import Item
from headwater.metrics import Metrics
from headwater.paths import shared_index
from headwater.paths.item_versions import ItemVersions
from headwater.paths.shared_index import has_audited, keep_filled, put_or_wait
from tests.support.interests_worker import until

BUNDLE = "a-bundle"


def point(item_id: str, offset: int, *, title: str = "", deleted: bool = False) -> Point:
    vector = None if deleted else np.ones(2, np.float32)
    payload = {} if deleted else payload_of(Item(item_id, title or item_id), 7)
    return Point(item_key(item_id), item_id, vector, payload, None, 0, offset)


def records(*points: Point, bundle: str = BUNDLE) -> list[ConsumerRecord]:
    sent = [record_of(each, bundle, 0, 1) for each in points]
    return [
        ConsumerRecord("vectors", 0, n, 0, 0, each.key, each.value, None, 0, 0, tuple(each.headers))
        for n, each in enumerate(sent)
    ]


@pytest_asyncio.fixture
async def index(tmp_path: Path) -> AsyncIterator[EdgeIndex]:
    index = await EdgeIndex.open(tmp_path / "index", 2)
    yield index
    await index.close()


@pytest.fixture
def versions() -> ItemVersions:
    versions = ItemVersions(0)
    versions.gate.open()
    return versions


class Faulty:
    """An index whose every call raises."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def put(self, points: Any) -> None:
        raise self._error

    async def items(self, keys: Any) -> Any:
        raise self._error


async def test_what_the_index_refuses_stops_the_worker_with_its_reason(versions: ItemVersions) -> None:
    with pytest.raises(StopWorker, match="it wants another key"):
        await put_or_wait(cast(Any, Faulty(IndexRefused("it wants another key"))), versions, [])
    assert not versions.waits


async def test_a_partition_that_goes_while_the_index_is_away_is_not_written(
    versions: ItemVersions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_index, "_RETRY_S", 0.001)
    away = cast(Any, Faulty(IndexUnavailable("it is away")))
    putting = asyncio.ensure_future(put_or_wait(away, versions, [point("tea", 1)]))
    await until(lambda: versions.away_since_s is not None)
    assert versions.waits
    versions.is_owned = False
    with pytest.raises(PartitionLost):
        await putting
    assert versions.away_since_s is None


async def test_an_index_that_cannot_be_asked_is_taken_to_have_everything(versions: ItemVersions) -> None:
    versions.add_published([point("tea", 1)])
    assert await has_audited(cast(Any, Faulty(IndexUnavailable("it is away"))), versions)


async def test_an_index_without_a_published_item_has_lost_it(
    index: EdgeIndex, versions: ItemVersions
) -> None:
    versions.add_published([point("tea", 1), point("gone", 2), point("gone", 3, deleted=True)])
    assert not await has_audited(index, versions)
    await index.put([point("tea", 1)])
    assert await has_audited(index, versions)


async def test_what_the_index_has_lost_is_put_again_and_what_was_deleted_is_not(
    index: EdgeIndex, versions: ItemVersions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_index, "_AUDIT_S", 0.001)
    changes = [
        *(point("tea", 1), point("coffee", 2), point("gone", 3)),
        *(point("tea", 4, title="green tea"), point("gone", 5, deleted=True)),
    ]
    versions.add_published(changes)
    waited, closed = [], []

    async def published(partition: int) -> AsyncGenerator[Sequence[ConsumerRecord], None]:
        assert partition == 0
        try:
            waited.append(versions.waits)  # or the watchdog takes it for one that stands still
            yield records(*changes[:3])
            yield [*records(*changes[3:]), *records(point("foreign", 9), bundle="another")]
        finally:
            closed.append(True)

    keeping = asyncio.ensure_future(
        keep_filled(index, versions, BUNDLE, "vectors", published, SkippedRecords(Metrics()))
    )
    await until(lambda: closed and not versions.waits)
    found = (await index.items([item_key(name) for name in ("tea", "coffee", "gone", "foreign")])).values()
    assert {each["item_id"]: each["title"] for each in found} == {"tea": "green tea", "coffee": "coffee"}
    await asyncio.sleep(0.01)
    assert waited == [True], "it is whole again, and only looked at"
    versions.is_owned = False
    with pytest.raises(PartitionLost):
        await keeping


async def test_what_a_refill_does_not_bring_back_is_not_asked_for_again(
    index: EdgeIndex, versions: ItemVersions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_index, "_AUDIT_S", 0.001)
    versions.add_published([point("tea", 1), point("vanished", 2)])

    async def published(partition: int) -> AsyncGenerator[Sequence[ConsumerRecord], None]:
        yield records(point("tea", 1))

    keeping = asyncio.ensure_future(
        keep_filled(index, versions, BUNDLE, "vectors", published, SkippedRecords(Metrics()))
    )
    await until(lambda: versions.audited == {item_key("tea")})
    keeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeping
