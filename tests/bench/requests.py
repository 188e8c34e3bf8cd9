"""Requests a second and their latency, and what a restart with all these users takes."""

import asyncio
import time

import numpy as np

from streams.client import ClientError, HeadwaterClient
from tests.bench import clicks, dataset
from tests.bench.processes import worker
from tests.bench.report import Figure
from tests.bench.system import System

_IN_FLIGHT = 64
_STEADY_RATE = 100
_LIMIT = 20


async def measure(system: System) -> None:
    """A fresh worker on the filled topics: seconds to ready, memory, as many requests as it takes, then 100 a second."""
    await clicks.fill(system)
    rng = np.random.default_rng(2)
    who = [f"user-{user:06d}" for user in dataset.zipf(rng, system.scale.users, 50_000).tolist()]
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
            steady, failed = await _at(client, who, _STEADY_RATE, system.scale.request_s)
        found = await running.metrics()
    stages = {
        name: 1000.0
        * found[f'headwater_request_stage_seconds_sum{{stage="{name}"}}']
        / max(found[f'headwater_request_stage_seconds_count{{stage="{name}"}}'], 1.0)
        for name in ("decode", "read", "index", "publish")
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
        Figure(f"requests at {_STEADY_RATE}/s, p50", float(np.percentile(steady, 50)), "ms"),
        Figure(
            f"requests at {_STEADY_RATE}/s, p99",
            float(np.percentile(steady, 99)),
            "ms",
            note=f"{len(steady):,} answered, {failed} not",
        ),
    )


async def _as_many(client: HeadwaterClient, who: list[str], seconds: float) -> tuple[float, list[float]]:
    """Requests a second with always the same number in flight, and their milliseconds."""
    users = iter(who * 20)
    taken: list[float] = []
    ends = time.monotonic() + seconds

    async def one_after_another() -> None:
        while time.monotonic() < ends:
            taken.append(await _ask(client, next(users)))

    started = time.monotonic()
    await asyncio.gather(*(one_after_another() for _ in range(_IN_FLIGHT)))
    return len(taken) / (time.monotonic() - started), taken


async def _at(client: HeadwaterClient, who: list[str], rate: int, seconds: float) -> tuple[list[float], int]:
    """Milliseconds of requests sent on a fixed schedule, whatever becomes of those before."""
    started = time.monotonic()
    sent = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(started + number / rate - time.monotonic(), 0.0))
        sent.append(asyncio.ensure_future(_ask(client, who[-number - 1])))
    done = await asyncio.gather(*sent, return_exceptions=True)
    for each in done:
        if isinstance(each, BaseException) and not isinstance(each, ClientError):
            raise each
    taken = [each for each in done if isinstance(each, float)]
    return taken, len(done) - len(taken)


async def _ask(client: HeadwaterClient, user: str) -> float:
    started = time.perf_counter()
    await client.recall(user, limit=_LIMIT)
    return (time.perf_counter() - started) * 1000.0
