"""How long requests take while clicks come: at a steady rate, beside an idle echo; and while hundreds of thousands wait."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np

from headwater.client import Client
from tests.bench import clicks, dataset, freshness, requests
from tests.bench.processes import BenchError, Worker, python, worker
from tests.bench.report import Figure
from tests.bench.system import System

_CLICK_RATE = 2_000
# The broker compiles this way through it while it is new: half a minute with p50 twice as long, and nobody's broker is that young.
_WARM_UP_S = 20.0
_PAUSE_S = 0.01
# So many times as long as other measures: a virtual machine may stand still for a quarter of a second once a minute, also for
# a process that only sleeps, and in 15 s that alone would be more than one request in a hundred.
_LONGER = 3
# Clicks of these measures are later than all before, as on a live system; the last round ends in the present.
_BACKLOG_SPACING_MS = 4


async def measure(system: System) -> None:
    """Both, with the same worker. Echoes before and after, since none is to run beside."""
    await clicks.fill(system)
    async with worker("interests", system.folder, system.environment) as running:
        await running.wait_graph()
        echoes = await _echoes(system)
        async with Client(system.settings) as client:
            waiting, failed, drained = await _with_backlog(system, running, client)
            steady, unanswered, rate = await _with_clicks(system, running, client)
        echoes += await _echoes(system)
    system.report.details["load"] = {"failed": failed + unanswered, "clicks_per_s": rate}
    note = f"{len(steady):,} requests at {requests.STEADY_RATE}/s, {unanswered} not answered; {rate:,.0f} clicks/s applied"
    for percentile, at_most, aim_ms in ((50, 2.0, 10), (99, 3.0, 50)):
        ours, echo = float(np.percentile(steady, percentile)), float(np.percentile(echoes, percentile))
        system.report.add(
            Figure(
                f"request beside {_CLICK_RATE:,} clicks/s, p{percentile}",
                ours,
                "ms",
                echo,
                "idle Faust echo",
                ours / echo,
                at_most=at_most,
                note=f"aim: below {aim_ms} ms; {note}" if percentile == 50 else f"aim: below {aim_ms} ms",
            )
        )
    ours, beside = float(np.percentile(waiting, 99)), float(np.percentile(steady, 99))
    system.report.add(
        Figure(
            f"request while {system.scale.backlog:,} clicks wait, p99",
            ours,
            "ms",
            beside,
            f"at {_CLICK_RATE:,}/s",
            ours / beside,
            at_most=5.0,
            note=f"aim: 2; p50 {np.percentile(waiting, 50):.1f} ms; {len(waiting):,} requests at "
            f"{requests.STEADY_RATE}/s, {failed} not answered, {system.scale.backlogs} times; "
            f"applied at {drained:,.0f} clicks/s meanwhile",
        )
    )


async def _echoes(system: System) -> list[float]:
    async with freshness.echo(system) as round_trip:
        taken = []
        for number in range(system.scale.rounds // 2 + freshness.WARM_UP):
            taken.append(await round_trip.round_ms(number))
            await asyncio.sleep(_PAUSE_S)
    return taken[freshness.WARM_UP :]


@asynccontextmanager
async def clicking(system: System, running: Worker) -> AsyncIterator[None]:
    """Clicks at a steady rate, from the first one that the worker has applied until the block ends."""
    ids = system.folder / "item-ids.json"
    ids.write_text(json.dumps([item.item_id for item in system.items]))
    settings = system.settings
    arguments = [
        *("-m", "tests.bench.click_load", settings.bootstrap_servers, system.topics.clicks),
        *(str(settings.partitions), str(system.scale.users), str(ids), str(_CLICK_RATE)),
    ]
    before = await clicks.applied(running)
    async with python(arguments, system.folder, "click-load") as load:
        while await clicks.applied(running) == before:
            load.require_running()
            await asyncio.sleep(_PAUSE_S)
        yield


async def _with_clicks(system: System, running: Worker, client: Client) -> tuple[list[float], int, float]:
    """Milliseconds of the requests that were answered, how many were not, and clicks applied a second meanwhile."""
    who = requests.askers(system)
    async with clicking(system, running):
        await requests.at_rate(client, who, requests.STEADY_RATE, requests.lasting(_WARM_UP_S))
        before, started = await clicks.applied(running), time.monotonic()
        taken, failed = await requests.at_rate(
            client, who, requests.STEADY_RATE, requests.lasting(_LONGER * system.scale.request_s)
        )
        rate = (await clicks.applied(running) - before) / (time.monotonic() - started)
    if rate < 0.9 * _CLICK_RATE:
        raise BenchError(f"{rate:,.0f} clicks a second were applied, expected {_CLICK_RATE:,}")
    return taken, failed, rate


async def _with_backlog(system: System, running: Worker, client: Client) -> tuple[list[float], int, float]:
    """The same with a backlog, of all rounds together."""
    rounds = [await _backlog(system, running, client, number) for number in range(system.scale.backlogs)]
    return (
        [each for taken, _, _ in rounds for each in taken],
        sum(failed for _, failed, _ in rounds),
        float(np.mean([rate for _, _, rate in rounds])),
    )


async def _backlog(
    system: System, running: Worker, client: Client, number: int
) -> tuple[list[float], int, float]:
    """Requests from the moment that a held worker is let go until it has applied what waited."""
    before = await clicks.applied(running)
    running.process.hold()
    count = await _publish_backlog(system, number)
    running.process.go_on()
    draining = asyncio.ensure_future(clicks.rate([running], before, count))
    taken, failed = await requests.at_rate(
        client, requests.askers(system), requests.STEADY_RATE, lambda: not draining.done()
    )
    return taken, failed, await draining


async def _publish_backlog(system: System, number: int) -> int:
    count = system.scale.backlog
    until_s_ago = (system.scale.backlogs - 1 - number) * count * _BACKLOG_SPACING_MS // 1000
    records = dataset.clicks(
        [item.item_id for item in system.items],
        system.scale.users,
        count,
        seed=100 + number,
        spacing_ms=_BACKLOG_SPACING_MS,
        until_s_ago=until_s_ago,
    )
    settings = system.settings
    return sum(await dataset.publish(settings, system.topics.clicks, settings.partitions, records))
