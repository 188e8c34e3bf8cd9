"""An index that is timed answers as it does without, and its calls are in the metrics."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio

from headwater.index import IndexUnavailable, Query
from headwater.index.edge import EdgeIndex
from headwater.index.timed import TimedIndex
from headwater.metrics import Metrics
from tests.support.edge_items import DIM, items, vectors


@pytest_asyncio.fixture
async def index(tmp_path: Path) -> AsyncIterator[EdgeIndex]:
    index = await EdgeIndex.open(tmp_path, DIM)
    yield index
    await index.close()


def calls(metrics: Metrics, call: str) -> float:
    """How many calls of the index were timed."""
    name = f'headwater_index_seconds_count{{call="{call}"}} '
    lines = metrics.exposition().decode().splitlines()
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))


async def test_answers_are_those_of_the_index(index: EdgeIndex) -> None:
    timed, points = TimedIndex(index, Metrics()), items(40)
    await timed.put(points)
    keys = [point.key for point in points[:3]]
    queries = [Query(vectors(1, seed=3)[0], 5)]
    assert await timed.search(queries) == await index.search(queries)
    assert await timed.items(keys) == await index.items(keys)
    assert await timed.match(keys, None) == await index.match(keys, None)
    assert (await timed.vectors(keys)).keys() == set(keys)
    assert await timed.count() == 40
    assert (timed.in_process, timed.filled_by, timed.health()) == (True, "each worker", index.health())


async def test_each_call_is_counted_by_its_name(index: EdgeIndex) -> None:
    metrics = Metrics()
    timed = TimedIndex(index, metrics)
    await timed.put(items(2))
    await timed.put(items(3))
    await timed.items([])
    assert (calls(metrics, "put"), calls(metrics, "items"), calls(metrics, "search")) == (2, 1, 0)


async def test_a_call_that_fails_is_not_timed(index: EdgeIndex) -> None:
    class Away:
        in_process, filled_by = False, "the catalog worker"

        async def items(self, keys: Any) -> Any:
            raise IndexUnavailable("it is away")

    metrics = Metrics()
    with pytest.raises(IndexUnavailable):
        await TimedIndex(cast(Any, Away()), metrics).items([])
    assert calls(metrics, "items") == 0
