"""Requests a second and their latency, beside bare queries of the index, and what a restart with all these users takes."""

import asyncio
import os
import time
from collections.abc import Callable, Sequence

import numpy as np
from qdrant_client.models import CollectionStatus

from headwater.client import Client, ClientError
from headwater.encoder.runtime import load
from headwater.kafka.topics import Topics
from headwater.settings import Settings
from tests.bench import bare_queries, catalog, clicks, dataset
from tests.bench.processes import GRAPH_S, Worker, worker
from tests.bench.report import Figure
from tests.bench.system import System

STEADY_RATE = 100
_IN_FLIGHT = 64
_LIMIT = 20
_EXCLUDED = 50
_STAGES = ("decode", "read", "index", "publish")


async def measure(system: System) -> None:
    """A fresh worker on the filled topics: seconds to ready, memory, as many requests as it takes, then 100 a second."""
    await clicks.fill(system)
    who = askers(system)
    async with worker("interests", system.folder, system.environment) as running:
        health = await running.health()
        system.report.add(
            Figure(
                "start to ready",
                running.ready_s,
                "s",
                note=f"{health['users']:,} users in the changelog, {health['items']:,} items in the edge index",
            ),
            Figure("memory, after a restart", running.process.memory_mib(), "MiB"),
        )
        await running.wait_graph()
        async with Client(system.settings) as client:
            await _as_many(client, who, 2.0)
            rate, full = await _as_many(client, who, system.scale.request_s)
            excluding, worker_ms = await _excluding(system, running, client, who)
            steady, failed = await at_rate(client, who, STEADY_RATE, lasting(system.scale.request_s))
        found = await running.metrics()
    stages = {
        name: 1000.0
        * found[f'headwater_request_stage_seconds_sum{{stage="{name}"}}']
        / max(found[f'headwater_request_stage_seconds_count{{stage="{name}"}}'], 1.0)
        for name in _STAGES
    }
    system.report.details["requests"] = {"stage_ms_per_batch": stages, "failed": failed}
    system.report.add(
        Figure(
            "requests, closed loop",
            rate,
            "requests/s",
            note=f"{_IN_FLIGHT} in flight, limit {_LIMIT}; p50 {np.percentile(full, 50):.1f} ms, "
            f"p99 {np.percentile(full, 99):.1f} ms",
        ),
        await _beside_bare_queries(system, system.settings, excluding, worker_ms, who, "edge"),
        Figure(f"requests at {STEADY_RATE}/s, p50", float(np.percentile(steady, 50)), "ms"),
        Figure(
            f"requests at {STEADY_RATE}/s, p99",
            float(np.percentile(steady, 99)),
            "ms",
            note=f"{len(steady):,} answered, {failed} not",
        ),
    )


async def measure_server(system: System) -> None:
    """The requests with items excluded again, with the index on the server that the contract suite is run on."""
    name = _name_of("server")
    url = os.environ.get("HEADWATER_TEST_QDRANT_URL")
    if url is None:
        why = "HEADWATER_TEST_QDRANT_URL names no Qdrant server"
        system.report.add(Figure(name, None, "ms", note=why, at_most=2.0))
        return
    settings = system.settings.model_copy(
        update={
            "topic_prefix": f"{system.settings.topic_prefix}served.",
            "data_dir": system.folder / "served",
            "qdrant_url": url,
            "qdrant_grpc_port": int(os.environ.get("HEADWATER_TEST_QDRANT_GRPC_PORT", "6334")),
        }
    )
    await system.create(settings)
    await catalog.encode(system, settings, len(system.items))
    who = askers(system)
    item_ids = [item.item_id for item in system.items]
    records = dataset.clicks(item_ids, system.scale.users, system.scale.grown_clicks, seed=1)
    async with worker("interests", system.folder, system.environment_of(settings)) as running:
        before = await clicks.applied(running)
        topic = Topics.named(settings.topic_prefix).clicks
        counts = await dataset.publish(settings, topic, settings.partitions, records)
        await clicks.rate([running], before, sum(counts))
        await _optimised(settings)
        async with Client(settings) as client:
            await _as_many(client, who, 2.0)
            excluding, worker_ms = await _excluding(system, running, client, who)
    system.report.add(await _beside_bare_queries(system, settings, excluding, worker_ms, who, "server"))


async def _optimised(settings: Settings) -> None:
    """Until the server has built its graphs over the items."""
    client = bare_queries.client_of(settings)
    try:
        name = f"items-{load(settings.bundle_path).id}"
        async with asyncio.timeout(GRAPH_S):
            while (await client.get_collection(name)).status is not CollectionStatus.GREEN:
                await asyncio.sleep(0.5)
    finally:
        await client.close()


async def _excluding(system: System, running: Worker, client: Client, who: list[str]) -> tuple[float, float]:
    """Requests a second with items excluded, and milliseconds of the worker's processor time for each."""
    used_s = running.process.used_cpu_s()
    per_s, taken = await _as_many(client, who, system.scale.request_s, _excluded(system))
    return per_s, 1000.0 * (running.process.used_cpu_s() - used_s) / len(taken)


def _excluded(system: System) -> list[str]:
    return [item.item_id for item in system.items[:: len(system.items) // _EXCLUDED]][:_EXCLUDED]


def _name_of(index: str) -> str:
    return f"a request, {_EXCLUDED} items excluded, {index}"


async def _beside_bare_queries(
    system: System, settings: Settings, rate: float, worker_ms: float, who: Sequence[str], index: str
) -> Figure:
    bare_ms = await bare_queries.ms_per_query(system, settings, len(system.items), who, _excluded(system))
    ours_ms = 1000.0 / rate
    return Figure(
        _name_of(index),
        ours_ms,
        "ms",
        bare_ms,
        "bare query",
        ours_ms / bare_ms,
        at_most=2.0,
        note=f"aim: 1.5; {rate:,.0f} requests/s with {_IN_FLIGHT} in flight, from the client through Kafka and back; "
        f"of the worker's processor time {worker_ms:.2f} ms",
    )


def askers(system: System) -> list[str]:
    """Who asks: users by Zipf's law, as they click."""
    rng = np.random.default_rng(2)
    return [f"user-{user:06d}" for user in dataset.zipf(rng, system.scale.users, 50_000).tolist()]


async def _as_many(
    client: Client, who: list[str], seconds: float, excluded: Sequence[str] = ()
) -> tuple[float, list[float]]:
    """Requests a second with always the same number in flight, and their milliseconds."""
    users = iter(who * 20)
    taken: list[float] = []
    ends = time.monotonic() + seconds

    async def one_after_another() -> None:
        while time.monotonic() < ends:
            taken.append(await _ask(client, next(users), excluded))

    started = time.monotonic()
    await asyncio.gather(*(one_after_another() for _ in range(_IN_FLIGHT)))
    return len(taken) / (time.monotonic() - started), taken


async def at_rate(
    client: Client, who: list[str], rate: int, goes_on: Callable[[], bool]
) -> tuple[list[float], int]:
    """Milliseconds of requests sent on a fixed schedule, whatever becomes of those before; and how many failed."""
    started = time.monotonic()
    sent: list[asyncio.Future[float]] = []
    while goes_on():
        await asyncio.sleep(max(started + len(sent) / rate - time.monotonic(), 0.0))
        sent.append(asyncio.ensure_future(_ask(client, who[-len(sent) - 1])))
    done = await asyncio.gather(*sent, return_exceptions=True)
    for each in done:
        if isinstance(each, BaseException) and not isinstance(each, ClientError):
            raise each
    taken = [each for each in done if isinstance(each, float)]
    return taken, len(done) - len(taken)


def lasting(seconds: float) -> Callable[[], bool]:
    """True for so long from now."""
    ends = time.monotonic() + seconds
    return lambda: time.monotonic() < ends


async def _ask(client: Client, user: str, excluded: Sequence[str] = ()) -> float:
    """With items excluded, those that the user has seen are not: it is then as many for everyone."""
    started = time.perf_counter()
    await client.recall(user, limit=_LIMIT, exclude=excluded, exclude_seen=not excluded, reads="own")
    return (time.perf_counter() - started) * 1000.0
