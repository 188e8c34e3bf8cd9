"""Baseline: the interests of users as bare queries of an index in a loop. Prints milliseconds a query.

The edge index holds the vectors topic's items, with the graph that a worker builds over them; a server's collection is
queried as it is. The interests are read from the states on the profiles topic, so that the queries are those that a worker
would make, asked in the same way but for one thing: that an item is available is a condition, as anybody would write it.

python -m tests.bench.bare_queries SERVERS PREFIX PARTITIONS ITEMS FOLDER ASKED.json
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
import qdrant_edge as engine
import uvloop
from numpy.typing import NDArray
from qdrant_client import AsyncQdrantClient, models

from headwater.encoder.features import clamp_gap_s, item_key
from headwater.encoder.runtime import Encoder, load
from headwater.index import edge, edge_graph, edge_shard, fields, server_terms
from headwater.profiles.columns import Columns
from headwater.profiles.state_records import bundle_key, unpack
from headwater.settings import Settings
from tests.bench import stored
from tests.bench.processes import GRAPH_ITEMS, python
from tests.bench.system import System

LIMIT = 20
_WARM_UP = 200
_SECONDS = 5.0
# Built here when everything is there, and not again.
_NO_GRAPH = edge_graph.GraphPolicy(min_items=1 << 60)

F32 = NDArray[np.float32]
Find = Callable[[F32, int], Awaitable[list[int]]]  # so many items nearest to a vector


async def ms_per_query(
    system: System,
    settings: Settings,
    items: int,
    who: Sequence[str],
    excluded: Sequence[str] = (),
) -> float:
    """Of an index of so many items, asked for the interests of ``who``: the server's that the settings name, or an edge
    index."""
    asked = system.folder / "asked.json"
    asked.write_text(json.dumps([list(who), list(excluded)]))
    arguments = [
        *("-m", "tests.bench.bare_queries", settings.bootstrap_servers, settings.topic_prefix),
        *(str(settings.partitions), str(items), str(system.folder), str(asked)),
    ]
    environment = system.environment_of(settings)
    async with python(arguments, system.folder, "bare-queries", environment) as loop:
        return float(await asyncio.wait_for(loop.finished(), 300.0))


async def _run(servers: str, prefix: str, partitions: str, items: str, folder: str, asked: str) -> None:
    settings = Settings(kafka_bootstrap_servers=servers, topic_prefix=prefix, partitions=int(partitions))
    who, excluded = json.loads(Path(asked).read_text())
    encoder = load(settings.bundle_path)
    vectors = await _interests(settings, encoder, [user.encode() for user in who])
    unwanted = {item_key(item_id) for item_id in excluded}
    if settings.qdrant_url is None:
        print(await _of_edge(settings, encoder, int(items), Path(folder), vectors, unwanted), flush=True)
    else:
        print(await _of_server(settings, encoder, vectors, unwanted), flush=True)


async def _of_edge(
    settings: Settings, encoder: Encoder, items: int, folder: Path, vectors: F32, excluded: set[int]
) -> float:
    """As an edge index does it, exclusions are searched for too and then dropped."""
    points = (await stored.item_points(settings))[:items]
    params = engine.SearchParams(hnsw_ef=edge_shard.SEARCH_EF)
    available = edge_shard.engine_filter(fields.condition(None))
    with tempfile.TemporaryDirectory(dir=folder) as own:
        radius = encoder.manifest.radius
        index = await edge.EdgeIndex.open(Path(own), encoder.dim, radius=radius, graph=_NO_GRAPH)
        await index.put(points)
        if len(points) >= GRAPH_ITEMS:
            await index.graph.build()

        async def find(vector: F32, limit: int) -> list[int]:
            nearest = engine.Query.Nearest([*vector.tolist(), 0.0])
            request = engine.QueryRequest(
                limit=limit + len(excluded), query=nearest, filter=available, params=params
            )
            (scored,) = index.shard._shard.query_batch(engine.QueryBatchRequest([request]))
            return [int(each.id) for each in scored if int(each.id) not in excluded][:limit]

        taken_ms = await _timed(find, vectors)
        await index.close()
    return taken_ms


async def _of_server(settings: Settings, encoder: Encoder, vectors: F32, excluded: set[int]) -> float:
    """As its documentation does it: one call of `query_batch_points` after the other, over gRPC."""
    client = client_of(settings)
    condition = server_terms.server_filter(fields.condition(None, frozenset(excluded)))
    params = models.SearchParams(hnsw_ef=server_terms.SEARCH_EF)

    async def find(vector: F32, limit: int) -> list[int]:
        nearest = models.NearestQuery(nearest=[*vector.tolist(), 0.0])
        request = models.QueryRequest(
            query=nearest, filter=condition, params=params, limit=limit, with_payload=["item_id"]
        )
        (found,) = await client.query_batch_points(f"items-{encoder.id}", [request])
        return [int(point.id) for point in found.points]

    taken_ms = await _timed(find, vectors)
    await client.close()
    return taken_ms


def client_of(settings: Settings) -> AsyncQdrantClient:
    """Of the server that the settings name."""
    key = settings.qdrant_api_key
    return AsyncQdrantClient(
        url=settings.qdrant_url,
        grpc_port=settings.qdrant_grpc_port,
        api_key=key.get_secret_value() if key else None,
        prefer_grpc=True,
        check_compatibility=False,
    )


async def _timed(find: Find, vectors: F32) -> float:
    done, started = 0, 0.0
    while not started or time.perf_counter() - started < _SECONDS:
        if done == _WARM_UP:
            started = time.perf_counter()
        assert len(await find(vectors[done % len(vectors)], LIMIT)) == LIMIT
        done += 1
    return 1000.0 * (time.perf_counter() - started) / (done - _WARM_UP)


async def _interests(settings: Settings, encoder: Encoder, who: list[bytes]) -> F32:
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
