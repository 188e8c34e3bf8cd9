"""The search graph of an index in the process: when it is built, beside what, and what it finds."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from headwater.encoder.features import item_key
from headwater.index import Point, Query, hnsw
from headwater.index.edge import EdgeIndex
from headwater.index.edge_graph import GraphPolicy
from headwater.index.filters import parse
from tests.support.checkout import ROOT
from tests.support.edge_items import BY_HAND, DIM, answers, items, names, remove, until


@pytest.fixture
async def index(tmp_path: Path) -> AsyncIterator[EdgeIndex]:
    opened = await EdgeIndex.open(tmp_path, DIM, graph=BY_HAND)
    yield opened
    await opened.close()


async def test_graph_answers_as_the_scan_does(index: EdgeIndex) -> None:
    await index.put(items(3000))
    wheres = [None, {"category": "kind 3"}, {"price": {"lt": 500}}, {"attributes.weight": {"gte": 5}}]
    scanned = [await answers(index, where) for where in wheres]
    await index.graph.build()
    assert index.graph.covers == 3000
    for where, expected in zip(wheres, scanned, strict=True):
        got = await answers(index, where)
        agreeing = sum(len(set(a) & set(b)) for a, b in zip(got, expected, strict=True))
        assert agreeing >= 0.99 * sum(map(len, expected))


async def test_graph_over_lifted_vectors_finds_the_greatest_products_in_tight_kinds(tmp_path: Path) -> None:
    dim, random = 32, np.random.default_rng(1)
    kinds = random.normal(size=(20, dim))
    near = (kinds[np.arange(10_060) % 20] + 0.3 * random.normal(size=(10_060, dim))).astype(np.float32)
    asked, stored = near[:60], near[60:] * random.lognormal(0, 0.3, size=(10_000, 1)).astype(np.float32)
    best = np.argsort(-asked @ stored.T, axis=1)[:, :100]
    found: dict[float, float] = {}
    for radius in (0.0, float(np.linalg.norm(stored, axis=1).max())):
        index = await EdgeIndex.open(tmp_path, dim, radius=radius, graph=BY_HAND)
        try:
            await index.put([Point(n, str(n), vector, {}, None, 0, 0) for n, vector in enumerate(stored)])
            await index.graph.build()
            hits = await index.search([Query(vector, 100) for vector in asked])
            assert (await index.vectors([7]))[7].tolist() == stored[7].tolist()
        finally:
            await index.close()
        for vector, each in zip(asked, hits, strict=True):
            products = np.array([stored[hit.key] @ vector for hit in each])
            assert np.allclose([hit.score for hit in each], products, atol=1e-3)
        agreeing = [len({hit.key for hit in each} & set(row)) for each, row in zip(hits, best, strict=True)]
        found[radius] = sum(agreeing) / best.size
    raw, lifted = found.values()
    assert lifted > 0.85 > 0.7 > raw  # 0.93 to 0.99, and 0.53: graphs differ from build to build


async def test_changes_made_during_a_build_are_in_the_new_graph(index: EdgeIndex) -> None:
    await index.put(items(1500))
    build = asyncio.create_task(index.graph.build())
    await until(lambda: index.graph.building is not None or build.done())
    await index.put(remove("item 0", "item 1", offset=1))
    await index.put(items(400, offset=2, seed=5)[2:])  # moved elsewhere, more of them than one slice holds
    added = Point(
        item_key("added"), "added", 9 * np.ones(DIM, np.float32), {"attributes": {"new": 4}}, None, 0, 3
    )
    await index.put([added])
    assert not build.done()
    before = await answers(index)
    await build
    assert await index.count() == 1499
    assert [set(a) for a in await answers(index)] == [set(b) for b in before]
    [hits, weighed] = await index.search(
        [Query(added.vector, 1), Query(added.vector, 5, parse({"attributes.new": {"gt": 3}}))]
    )
    assert [hit.item_id for hit in hits] == [hit.item_id for hit in weighed] == ["added"]
    gone = {item_key("item 0"), item_key("item 1")}
    assert not any(gone & set(keys) for keys in await answers(index, limit=1000))


async def test_second_build_covers_what_came_after_the_first(index: EdgeIndex) -> None:
    points = items(2000)
    await index.put(points[:1000])
    await index.graph.build()
    await index.put(points[1000:])
    scanned = await answers(index)
    await index.graph.build()
    assert index.graph.covers == 2000
    got = await answers(index)
    assert sum(len(set(a) & set(b)) for a, b in zip(got, scanned, strict=True)) >= 0.99 * 800


async def test_graph_is_built_by_itself_once_it_is_due(tmp_path: Path) -> None:
    index = await EdgeIndex.open(tmp_path, DIM, graph=GraphPolicy(min_items=500, quiet_s=0.01))
    try:
        await index.put(items(499))
        await asyncio.sleep(0.1)
        assert index.graph.covers == 0
        await index.put(items(500))
        await until(lambda: index.graph.covers > 0)
        assert index.graph.covers == 500
    finally:
        await index.close()


@pytest.mark.parametrize(
    ("outside", "within", "quiet_s", "since_last_s", "due"),
    [
        (9_999, 0, 60, 600, False),  # too few to matter
        (10_000, 0, 5, 5, True),  # enough, and quiet
        (10_000, 0, 4, 119, False),  # still filling
        (10_000, 0, 0, 120, True),  # filling for too long
        (10_000, 92_000, 60, 600, False),  # few beside those in the graph
        (23_000, 92_000, 60, 600, True),
    ],
)
def test_graph_is_due(outside: int, within: int, quiet_s: float, since_last_s: float, due: bool) -> None:
    assert GraphPolicy().is_due(outside, within, quiet_s, since_last_s) is due


async def test_failed_build_leaves_the_index_as_it_was(
    index: EdgeIndex, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await index.put(items(200))
    before = await answers(index)
    monkeypatch.setattr(
        hnsw, "command", lambda path, dim: [sys.executable, "-c", "raise SystemExit('no space left')"]
    )
    with pytest.raises(RuntimeError, match="the build ended with 1: no space left"):
        await index.graph.build()
    assert index.graph.covers == 0
    assert await answers(index) == before
    await index.put(items(210, offset=1))
    assert await index.count() == 210
    assert names(tmp_path, "edge-*/shard-*") == ["shard-0"]
    monkeypatch.undo()
    await index.graph.build()
    assert index.graph.covers == 210


async def test_close_ends_a_build_and_leaves_no_process_and_no_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forever = [
        sys.executable,
        "-c",
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)",
    ]
    monkeypatch.setattr(hnsw, "command", lambda path, dim: forever)
    index = await EdgeIndex.open(tmp_path, DIM, graph=GraphPolicy(min_items=1, quiet_s=0.01))
    await index.put(items(10))
    await until(lambda: index.graph.building is not None)
    pid = index.graph.building
    os.kill(pid, 0)
    await index.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert names(tmp_path) == []


async def test_close_ends_a_build_that_was_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        hnsw, "command", lambda path, dim: [sys.executable, "-c", "import time; time.sleep(600)"]
    )
    index = await EdgeIndex.open(tmp_path, DIM, graph=BY_HAND)
    await index.put(items(10))
    build = asyncio.create_task(index.graph.build())
    await until(lambda: index.graph.building is not None)
    await index.close()
    with pytest.raises(RuntimeError, match="the build ended with -9"):
        await build
    assert names(tmp_path) == []


SERVES_AND_BUILDS = """
import asyncio, sys
from pathlib import Path
from headwater.index.edge import EdgeIndex
from tests.support.edge_items import BY_HAND, DIM, items

async def main() -> None:
    index = await EdgeIndex.open(Path(sys.argv[1]), DIM, graph=BY_HAND)
    await index.put(items(15_000))
    build = asyncio.create_task(index.graph.build())
    while index.graph.building is None:
        await asyncio.sleep(0.01)
    print(index.graph.building, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
async def test_build_ends_with_a_process_that_is_killed(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVES_AND_BUILDS, str(tmp_path), stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    state = Path(f"/proc/{pid}/stat")
    assert is_running(state)
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(2.0):  # the build itself would go on for longer
        await until(lambda: not is_running(state))


def is_running(state: Path) -> bool:
    """A killed process may stay as a zombie until its new parent looks."""
    try:
        return state.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
