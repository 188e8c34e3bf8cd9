"""What HTTP costs: a request over the gateway beside the same request over the Python client."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import aiohttp
import numpy as np

from headwater.client import Client
from tests.bench import catalog
from tests.bench.processes import BenchError, Process, python, worker
from tests.bench.report import Figure
from tests.bench.system import System

_BLOCK: Final = 10  # requests of one kind before those of the other
_WARM_UP: Final = 2  # blocks
_PAUSE_S: Final = 0.005
_IN_FLIGHT: Final = 32
_START_S: Final = 30.0
_MOST_MS: Final = 2.0
_LEAST_PER_CORE: Final = 500.0
_ADDRESS: Final = re.compile(r"gateway: (http://\S+), described")

Ask = Callable[[str], Awaitable[None]]


async def measure(system: System) -> None:
    """p50 and p99 in turns, then requests/s with 32 in flight and the gateway's processor time of each."""
    await catalog.fill(system)
    environment = {**system.environment, "HEADWATER_GATEWAY_RATE": "1e9"}
    arguments = ["-m", "headwater.commands.main", "gateway", "--port", "0"]
    async with (
        worker("interests", system.folder, system.environment) as running,
        python(arguments, system.folder, "gateway", environment) as gateway,
        Client(system.settings) as client,
        aiohttp.ClientSession() as http,
    ):
        await running.wait_graph()
        address = await address_of(gateway, system.folder)

        async def by_client(user: str) -> None:
            await client.recall(user, limit=20, reads="any")

        async def by_gateway(user: str) -> None:
            body: dict[str, Any] = {"user_id": user, "limit": 20, "reads": "any"}
            async with http.post(f"{address}/recall", json=body) as answer:
                if answer.status != 200:
                    raise BenchError(f"the gateway answered {answer.status}: {await answer.text()}")
                await answer.read()

        for number, item in enumerate(system.items[:100]):
            await client.click(_user(number), item.item_id)
        ways = {"client": by_client, "gateway": by_gateway}
        took_ms = await _in_turns(ways, system.scale.rounds)
        direct_s, _ = await _rate(by_client, system.scale.request_s, gateway)
        over_s, cpu_s = await _rate(by_gateway, system.scale.request_s, gateway)
    p50 = {way: float(np.percentile(ms, 50)) for way, ms in took_ms.items()}
    p99 = {way: float(np.percentile(ms, 99)) for way, ms in took_ms.items()}
    more_ms = p50["gateway"] - p50["client"]
    system.report.add(
        Figure(
            "gateway: over the client, p50",
            more_ms,
            "ms",
            _MOST_MS,
            "ms at most",
            more_ms / _MOST_MS,
            at_most=1.0,
            note=f"p50 {p50['gateway']:.2f} and {p50['client']:.2f}, p99 {p99['gateway']:.2f} and {p99['client']:.2f} ms",
        ),
        Figure(
            "gateway: requests/s of one core",
            1 / cpu_s,
            "requests/s",
            _LEAST_PER_CORE,
            "at least",
            1 / cpu_s / _LEAST_PER_CORE,
            at_least=1.0,
            note=f"by its processor time, {cpu_s * 1000:.2f} ms a request; {over_s:,.0f}/s here with {_IN_FLIGHT} in flight, "
            f"{direct_s:,.0f}/s over the client, all on the same cores",
        ),
    )


async def address_of(gateway: Process, folder: Path) -> str:
    """http://host:port of a gateway that starts. Raises BenchError."""
    until_s = time.monotonic() + _START_S
    while time.monotonic() < until_s:
        gateway.require_running()
        if found := _ADDRESS.search(gateway.last_words()):
            return found[1]
        await asyncio.sleep(0.1)
    raise BenchError(f"the gateway in {folder} did not listen within {_START_S:g} s")


async def _in_turns(ways: dict[str, Ask], rounds: int) -> dict[str, list[float]]:
    took_ms: dict[str, list[float]] = {way: [] for way in ways}
    for block in range(rounds // _BLOCK + _WARM_UP):
        for way, ask in ways.items():
            for number in range(_BLOCK):
                started_s = time.perf_counter()
                await ask(_user(number))
                if block >= _WARM_UP:
                    took_ms[way].append((time.perf_counter() - started_s) * 1000.0)
                await asyncio.sleep(_PAUSE_S)
    return took_ms


async def _rate(ask: Ask, seconds: float, gateway: Process) -> tuple[float, float]:
    """Requests a second, and the gateway's processor time of each in seconds."""
    until_s, done = time.perf_counter() + seconds, 0

    async def again(number: int) -> None:
        nonlocal done
        while time.perf_counter() < until_s:
            await ask(_user(number))
            done += 1

    started_s, used_s = time.perf_counter(), gateway.used_cpu_s()
    await asyncio.gather(*map(again, range(_IN_FLIGHT)))
    return done / (time.perf_counter() - started_s), (gateway.used_cpu_s() - used_s) / done


def _user(number: int) -> str:
    return f"asks-{number % 100}"
