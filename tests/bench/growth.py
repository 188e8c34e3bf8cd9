"""What becomes of the figures as the system grows: users, items, partitions, workers. Each pair in one run, on topics of
its own."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple

import numpy as np

from headwater.kafka.publish import Outgoing
from headwater.kafka.topics import Topics
from headwater.settings import Settings
from tests.bench import bare_queries, clicks, dataset, recovery, requests, stored
from tests.bench.processes import GRAPH_ITEMS, START_S, BenchError, Worker, worker
from tests.bench.report import Figure
from tests.bench.system import System

# Too few for a search graph, whose building would take a core for half a minute of each measure.
_ITEMS = GRAPH_ITEMS // 2
_FEW_USERS = 10_000
_FEW_ITEMS = 1_000
_MANY_PARTITIONS = 64
_WORKERS = 3
_POLL_S = 0.2


class _Applied(NamedTuple):
    per_s: float
    cpu_us: float  # of all workers, per click
    touched: float  # users, in a batch
    batch: float  # clicks
    memory_mib: float  # of all workers with the users, before the clicks; without pages of files


async def measure(system: System) -> None:
    """Clicks of few and many users, on few and many partitions; queries of few and many items."""
    await clicks.fill(system)
    many_users, partitions = system.scale.recovered, system.settings.partitions
    few = await _applied(system, "few", _FEW_USERS, partitions)
    many = await _applied(system, "many", many_users, partitions)
    spread = await _applied(system, "spread", _FEW_USERS, _MANY_PARTITIONS)
    crew = await _applied(system, "crew", _FEW_USERS, partitions, _WORKERS)
    per_user = (many.memory_mib - few.memory_mib) * 2**20 / (many_users - _FEW_USERS)
    system.report.details["growth"] = {
        name: each._asdict()
        for name, each in (("few", few), ("many", many), ("spread", spread), ("crew", crew))
    }
    system.report.add(
        _beside(f"clicks, {many_users:,} users", many, few, f"with {_FEW_USERS:,}"),
        Figure(
            "memory of a user with 20 events",
            per_user,
            "bytes",
            note="of the worker, beyond the first 10,000; without pages of files",
        ),
        _beside(f"clicks, {_MANY_PARTITIONS} partitions", spread, few, f"on {partitions}"),
        await _queries(system),
        Figure(
            f"a click, {_WORKERS} workers",
            crew.cpu_us,
            "us",
            few.cpu_us,
            "one",
            crew.cpu_us / few.cpu_us,
            note="processor time of all workers together; what they apply in a second says nothing here, where they take "
            f"turns on the cores ({crew.per_s:,.0f} clicks/s)",
        ),
    )


def _beside(name: str, grown: _Applied, small: _Applied, small_is: str) -> Figure:
    return Figure(
        name,
        grown.per_s,
        "clicks/s",
        small.per_s,
        small_is,
        grown.per_s / small.per_s,
        note=f"{grown.touched:,.0f} users touched per batch of {grown.batch:,.0f}, before {small.touched:,.0f} of "
        f"{small.batch:,.0f}; processor time per click {grown.cpu_us:.1f} us, before {small.cpu_us:.1f} us",
    )


async def _queries(system: System) -> Figure:
    who, items = requests.askers(system), len(system.items)
    few_us = 1000.0 * await bare_queries.ms_per_query(system, system.settings, _FEW_ITEMS, who)
    many_us = 1000.0 * await bare_queries.ms_per_query(system, system.settings, items, who)
    return Figure(
        f"a query of {items:,} items",
        many_us,
        "us",
        few_us,
        f"of {_FEW_ITEMS:,}",
        many_us / few_us,
        note=f"limit {bare_queries.LIMIT}, bare edge queries; up to {GRAPH_ITEMS:,} items are scanned",
    )


async def _applied(system: System, name: str, users: int, partitions: int, workers: int = 1) -> _Applied:
    """Clicks of users who all have a state, by Zipf 1.0."""
    settings = system.settings.model_copy(
        update={
            "topic_prefix": f"{system.settings.topic_prefix}{name}.",
            "data_dir": system.folder / name,
            "partitions": partitions,
        }
    )
    await system.create(settings)
    await _copy_items(system, settings)
    await recovery.write_users(settings, users)
    item_ids = [item.item_id for item in system.items[:_ITEMS]]
    records = dataset.clicks(item_ids, users, system.scale.grown_clicks, seed=4)
    async with AsyncExitStack() as running:
        crew = []
        for number in range(workers):
            own = settings.model_copy(update={"data_dir": settings.data_dir / str(number)})
            environment = system.environment_of(own)
            crew.append(await running.enter_async_context(worker("interests", system.folder, environment)))
        await _shared_out(crew, partitions)
        memory_mib = sum(each.process.memory_mib() - each.process.mapped_mib() for each in crew)
        per_s, used_s = await clicks.backlog(crew, settings, records)
        details = [await clicks.detail(each) for each in crew]
    touched, batch = (
        float(np.mean([each[name] for each in details])) for name in ("touched_per_batch", "clicks_per_batch")
    )
    return _Applied(per_s, 1e6 * used_s / system.scale.grown_clicks, touched, batch, memory_mib)


async def _shared_out(crew: Sequence[Worker], partitions: int) -> None:
    """Wait until each worker serves a part of all partitions."""
    deadline = time.monotonic() + START_S
    while True:
        parts = [len((await each.health())["partitions"]) for each in crew]
        if all(parts) and sum(parts) == partitions:
            return
        if time.monotonic() > deadline:
            raise BenchError(f"the workers serve {parts} of {partitions} partitions after {START_S:.0f} s")
        await asyncio.sleep(_POLL_S)


async def _copy_items(system: System, settings: Settings) -> None:
    """The vectors of the first items, from the topic that they are on."""
    wanted = {item.item_id.encode() for item in system.items[:_ITEMS]}
    found = stored.records_of(system.settings, system.topics.vectors, system.settings.catalog_partitions)
    copies = [Outgoing(record.key, record.value) async for record in found if record.key in wanted]
    vectors = Topics.named(settings.topic_prefix).vectors
    await dataset.publish(settings, vectors, settings.catalog_partitions, iter(copies))
