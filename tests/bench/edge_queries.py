"""Baseline: the interests of users as bare queries of an edge index in a loop. Prints milliseconds a query.

The index holds the vectors topic's items, with the graph that a worker builds over them; the interests are read from
the states on the profiles topic, so that the queries are those that a worker would make.

python -m tests.bench.edge_queries SERVERS PREFIX PARTITIONS ITEMS FOLDER ASKED.json
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import qdrant_edge as engine
import uvloop
from numpy.typing import NDArray

from streams.columns import Columns
from streams.encoder import Encoder, load
from streams.features import clamp_gap_s, item_key
from streams.index import edge, fields
from streams.settings import Settings
from streams.state_records import bundle_key, unpack
from tests.bench import stored
from tests.bench.processes import GRAPH_ITEMS, python
from tests.bench.system import System

LIMIT = 20
_WARM_UP = 200
_SECONDS = 5.0
# Built here when everything is there, and not again.
_NO_GRAPH = edge.GraphPolicy(min_items=1 << 60)


async def ms_per_query(system: System, items: int, who: Sequence[str], excluded: Sequence[str] = ()) -> float:
    """Of an index of so many items, asked for the interests of ``who``."""
    asked = system.folder / "asked.json"
    asked.write_text(json.dumps([list(who), list(excluded)]))
    settings = system.settings
    arguments = [
        *("-m", "tests.bench.edge_queries", settings.bootstrap_servers, settings.topic_prefix),
        *(str(settings.partitions), str(items), str(system.folder), str(asked)),
    ]
    async with python(arguments, system.folder, "edge-queries") as loop:
        return float(await asyncio.wait_for(loop.finished(), 300.0))


async def _run(servers: str, prefix: str, partitions: str, items: str, folder: str, asked: str) -> None:
    settings = Settings(kafka_bootstrap_servers=servers, topic_prefix=prefix, partitions=int(partitions))
    who, excluded = json.loads(Path(asked).read_text())
    encoder = load(settings.bundle_path)
    vectors = await _interests(settings, encoder, [user.encode() for user in who])
    points = (await stored.item_points(settings))[: int(items)]
    with tempfile.TemporaryDirectory(dir=folder) as own:
        radius = encoder.manifest.radius
        index = await edge.EdgeIndex.open(Path(own), encoder.dim, radius=radius, graph=_NO_GRAPH)
        await index.put(points)
        if len(points) >= GRAPH_ITEMS:
            await index.build_graph()
        print(_loop(index._shard, vectors, {item_key(item_id) for item_id in excluded}), flush=True)
        await index.close()


def _loop(shard: engine.EdgeShard, vectors: NDArray[np.float32], excluded: set[int]) -> float:
    """As an edge index does it, exclusions are searched for too and then dropped."""
    params = engine.SearchParams(hnsw_ef=edge.SEARCH_EF)
    available = edge._filter(fields.condition(None))
    done, started = 0, 0.0
    while not started or time.perf_counter() - started < _SECONDS:
        if done == _WARM_UP:
            started = time.perf_counter()
        nearest = engine.Query.Nearest([*vectors[done % len(vectors)].tolist(), 0.0])
        request = engine.QueryRequest(
            limit=LIMIT + len(excluded), query=nearest, filter=available, params=params
        )
        (scored,) = shard.query_batch(engine.QueryBatchRequest([request]))
        found = [int(each.id) for each in scored if int(each.id) not in excluded][:LIMIT]
        assert len(found) == LIMIT
        done += 1
    return 1000.0 * (time.perf_counter() - started) / (done - _WARM_UP)


async def _interests(settings: Settings, encoder: Encoder, who: list[bytes]) -> NDArray[np.float32]:
    """(users, dim), in the order of ``who``: those who have clicked."""
    records = await stored.user_records(settings)
    known = [user for user in who if user in records]
    users = list(dict.fromkeys(known))
    columns = Columns(encoder.log_length, encoder.state_size, len(users))
    rows = np.array([columns.add(user) for user in users])
    unpack(columns, rows, [records[user] for user in users], bundle_key(encoder.id))
    asked = np.array([columns.rows[user] for user in known])
    gap_s = clamp_gap_s((time.time() * 1000.0 - columns.state_at_ms[asked]) / 1000.0)
    interests, _ = encoder.read(columns.state[asked].astype(np.float32), gap_s.astype(np.float32))
    return interests[:, 0]


if __name__ == "__main__":
    uvloop.run(_run(*sys.argv[1:]))
