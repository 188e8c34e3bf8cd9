"""What it costs that an answer reflects the clicks of all programs, and whether it does."""

import asyncio
import time
from typing import Final, get_args

import numpy as np

from headwater.client import Client, Reads
from headwater.messages import Position, Response
from tests.bench import catalog
from tests.bench.processes import BenchError, worker
from tests.bench.report import Figure
from tests.bench.system import System

_BLOCK: Final = (
    10  # rounds of one kind before those of the next: what disturbs the machine disturbs all kinds
)
_WARM_UP: Final = 2  # blocks
_PAUSE_S: Final = 0.005


async def measure(system: System) -> None:
    """p50 of a request for each of ``reads``, after an own click; then stale answers of a second client."""
    await catalog.fill(system)
    async with (
        worker("interests", system.folder, system.environment) as running,
        Client(system.settings) as client,
        Client(system.settings) as other,
    ):
        await running.wait_graph()
        took_ms = await _by_reads(system, client)
        count = 2 * system.scale.rounds
        stale = {reads: await _stale(system, client, other, reads, count) for reads in get_args(Reads)}
    own = float(np.percentile(took_ms["own"], 50))
    for reads, ms in took_ms.items():
        p50, p99 = np.percentile(ms, (50, 99)).tolist()
        note = f"{len(ms)} rounds, in turns; p99 {p99:.2f} ms"
        system.report.add(
            Figure(f'request, reads="{reads}", p50', p50, "ms", own, "own", p50 / own, note=note)
        )
    for reads, found in stale.items():
        note = f"of {count:,}, each asked for by another client when the click was acknowledged"
        system.report.add(Figure(f'stale answers, reads="{reads}"', found, "", note=note))
    if stale["all"]:
        raise BenchError(f'{stale["all"]} of {count} answers with reads="all" do not reflect their click')


async def _by_reads(system: System, client: Client) -> dict[Reads, list[float]]:
    took_ms: dict[Reads, list[float]] = {reads: [] for reads in get_args(Reads)}
    for block in range(system.scale.rounds // _BLOCK + _WARM_UP):
        for reads, found in took_ms.items():
            for number in range(_BLOCK):
                user, item_id = f"reads-{number}", system.items[block * _BLOCK + number].item_id
                await client.click(user, item_id)
                started = time.perf_counter()
                await client.recall(user, limit=20, reads=reads)
                if block >= _WARM_UP:
                    found.append((time.perf_counter() - started) * 1000.0)
                await asyncio.sleep(_PAUSE_S)
    return took_ms


async def _stale(system: System, clicks: Client, asks: Client, reads: Reads, count: int) -> int:
    stale = 0
    for number in range(count):
        user = f"others-{reads}-{number % 50}"
        place = await clicks.click(user, system.items[number % len(system.items)].item_id)
        stale += not _reflects(await asks.recall(user, limit=20, reads=reads), place)
    return stale


def _reflects(answer: Response, place: Position) -> bool:
    return answer.reflects is not None and answer.reflects.offset >= place.offset
