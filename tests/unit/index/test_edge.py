"""What is the edge engine's own: its folder, items that may not be shown, fields of numbers, its slices."""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from headwater.encoder.features import item_key
from headwater.index import Point, Query
from headwater.index.edge import EdgeIndex
from headwater.index.fields import number_field
from headwater.index.filters import parse
from tests.support.edge_items import BY_HAND, DIM, items, names, remove, vectors


@pytest.fixture
async def index(tmp_path: Path) -> AsyncIterator[EdgeIndex]:
    opened = await EdgeIndex.open(tmp_path, DIM, graph=BY_HAND)
    yield opened
    await opened.close()


@pytest.mark.parametrize("hidden", [0, 1, 5, 9, 60, 100])
async def test_items_that_are_not_available_are_left_out_however_many_and_however_near(
    index: EdgeIndex, hidden: int
) -> None:
    """The nearest are hidden, so that what is looked for beside them does not do; then they are shown again."""
    [asked] = vectors(1, seed=1)
    stored = sorted(items(100), key=lambda point: -float(asked @ point.vector))
    nearest = [point.key for point in stored]

    def shown(points: list[Point], is_available: bool, offset: int) -> list[Point]:
        return [
            msgspec.structs.replace(
                point, payload={**point.payload, "available": is_available}, offset=offset
            )
            for point in points
        ]

    async def found(exclude: list[int]) -> list[int]:
        [hits] = await index.search([Query(asked, 10, exclude=frozenset(exclude))])
        return [hit.key for hit in hits]

    await index.put(shown(stored, True, 0))
    await index.put(shown(stored[:hidden], False, 1))
    left = nearest[hidden:]
    assert await found([]) == left[:10]
    assert await found(left[:3]) == left[3:13]
    await index.put(shown(stored[: hidden // 2], True, 2) + remove(stored[-1].item_id, offset=2))
    left = [key for key in nearest[:-1] if key not in nearest[hidden // 2 : hidden]]
    assert await found([]) == left[:10]


async def test_indexes_opened_at_once_do_not_take_each_others_folders(tmp_path: Path) -> None:
    opened = await asyncio.gather(*(EdgeIndex.open(tmp_path, DIM) for _ in range(8)))
    assert len(names(tmp_path)) == 8
    for index in opened:
        await index.close()
        await index.close()  # twice is once
    assert names(tmp_path) == []


async def test_folders_of_dead_processes_are_removed_and_those_of_living_ones_kept(tmp_path: Path) -> None:
    dead, living = tmp_path / "edge-dead", tmp_path / "edge-living"
    for folder in (dead, living):
        (folder / "shard-0").mkdir(parents=True)
    lock = os.open(living, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    index = await EdgeIndex.open(tmp_path, DIM)
    assert "edge-dead" not in names(tmp_path)
    assert "edge-living" in names(tmp_path)
    await index.close()
    os.close(lock)


async def test_filters_stay_right_beyond_the_indexed_number_fields(index: EdgeIndex) -> None:
    points = [
        Point(item_key(str(i)), str(i), np.ones(DIM, np.float32), {"attributes": {f"n{i}": i}}, None, 0, 0)
        for i in range(80)
    ]
    await index.put(points)
    for i in (0, 63, 64, 79):
        [hits] = await index.search(
            [Query(np.ones(DIM, np.float32), 10, parse({f"attributes.n{i}": {"gte": i}}))]
        )
        assert [hit.item_id for hit in hits] == [str(i)]


async def test_filters_stay_right_while_number_indexes_come_and_go(index: EdgeIndex) -> None:
    def point(number: int, **attributes: float) -> Point:
        vector = np.ones(DIM, np.float32)
        return Point(item_key(str(number)), str(number), vector, {"attributes": attributes}, None, 0, 0)

    greedy = {f"n{number}": 1.0 for number in range(100)}
    await index.put([point(number, **greedy) for number in range(16)])
    assert len(index.shard.number_fields) == 64
    assert number_field("attributes.weight") not in index.shard.number_fields
    await index.put([point(number, weight=float(number)) for number in range(16, 60)])
    assert number_field("attributes.weight") in index.shard.number_fields
    assert len(index.shard.number_fields) == 64
    wanted = [({"attributes.weight": {"lt": 20}}, 4), ({"attributes.n99": {"gte": 1}}, 16)]
    for where, count in [*wanted, ({f"attributes.n{number}": 1.0 for number in range(60)}, 16)]:
        [hits] = await index.search([Query(np.ones(DIM, np.float32), 100, parse(where))])
        assert len(hits) == count, where


async def test_a_deleted_item_leaves_a_mark_and_nothing_else(index: EdgeIndex) -> None:
    await index.put(items(20))
    await index.put([Point(each.key, each.item_id, None, {}, None, 0, 10**6) for each in items(20)])
    assert index._items == {}
    assert (len(index._marks), index.live_items, index._hidden) == (20, 0, 0)
    await index.put(items(20))
    assert index.live_items == 0, "older copies stay out"


async def test_a_deleted_item_gives_its_key_up(index: EdgeIndex) -> None:
    vector = np.ones(DIM, np.float32)
    await index.put([Point(7, "tea", vector, {}, 5, 0, 1), Point(7, "tea", None, {}, None, 0, 2)])
    stored = await index.put([Point(7, "thief", vector, {}, 1, 0, 3), Point(7, "tea", vector, {}, 9, 0, 4)])
    assert [point.item_id for point in stored.points] == ["thief"]
    assert [(refused.item_id, holder) for refused, holder in stored.collisions] == [("tea", "thief")]


async def test_other_work_runs_while_many_items_are_put(index: EdgeIndex) -> None:
    """4,000 items are 32 slices; between them the loop must come to others."""
    turns = 0

    async def other_work() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    other = asyncio.create_task(other_work())
    await index.put(items(4000))
    other.cancel()
    assert turns >= 30
