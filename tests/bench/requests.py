"""Requests a second and their latency, beside bare queries of the index, and what a restart with all these users takes."""

import asyncio
import time
from collections.abc import Callable, Sequence

import numpy as np

from streams.client import ClientError, HeadwaterClient
from tests.bench import clicks, dataset, edge_queries
from tests.bench.processes import worker
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
    excluded = [item.item_id for item in system.items[:: len(system.items) // _EXCLUDED]][:_EXCLUDED]
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
        async with HeadwaterClient(system.settings) as client:
            await _as_many(client, who, 2.0)
            rate, full = await _as_many(client, who, system.scale.request_s)
            used_s = running.process.used_cpu_s()
            excluding, taken = await _as_many(client, who, system.scale.request_s, excluded)
            worker_ms = 1000.0 * (running.process.used_cpu_s() - used_s) / len(taken)
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
        await _beside_bare_queries(system, excluding, worker_ms, who, excluded),
        Figure(f"requests at {STEADY_RATE}/s, p50", float(np.percentile(steady, 50)), "ms"),
        Figure(
            f"requests at {STEADY_RATE}/s, p99",
            float(np.percentile(steady, 99)),
            "ms",
            note=f"{len(steady):,} answered, {failed} not",
        ),
    )


async def _beside_bare_queries(
    system: System, rate: float, worker_ms: float, who: Sequence[str], excluded: Sequence[str]
) -> Figure:
    bare_ms = await edge_queries.ms_per_query(system, len(system.items), who, excluded)
    ours_ms = 1000.0 / rate
    return Figure(
        f"a request of them, {_EXCLUDED} excluded",
        ours_ms,
        "ms",
        bare_ms,
        "bare edge query",
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
    client: HeadwaterClient, who: list[str], seconds: float, excluded: Sequence[str] = ()
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
    client: HeadwaterClient, who: list[str], rate: int, goes_on: Callable[[], bool]
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


async def _ask(client: HeadwaterClient, user: str, excluded: Sequence[str] = ()) -> float:
    """With items excluded, those that the user has seen are not: it is then as many for everyone."""
    started = time.perf_counter()
    await client.recall(user, limit=_LIMIT, exclude=excluded, exclude_seen=not excluded)
    return (time.perf_counter() - started) * 1000.0
