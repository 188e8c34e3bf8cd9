"""What becomes of the figures as the system grows: users, items, partitions. Each pair in one run, on topics of its own."""

from typing import NamedTuple

from streams.publish import Outgoing
from streams.settings import Settings
from streams.topics import Topics
from tests.bench import bare_queries, clicks, dataset, recovery, requests, stored
from tests.bench.processes import GRAPH_ITEMS, worker
from tests.bench.report import Figure
from tests.bench.system import System

# Too few for a search graph, whose building would take a core for half a minute of each measure.
_ITEMS = GRAPH_ITEMS // 2
_FEW_USERS = 10_000
_FEW_ITEMS = 1_000
_MANY_PARTITIONS = 64


class _Applied(NamedTuple):
    per_s: float
    cpu_us: float  # of the worker, per click
    touched: float  # users, in a batch
    batch: float  # clicks
    memory_mib: float  # with the users, before the clicks; without pages of files


async def measure(system: System) -> None:
    """Clicks of few and many users, on few and many partitions; queries of few and many items."""
    await clicks.fill(system)
    many_users, partitions = system.scale.recovered, system.settings.partitions
    few = await _applied(system, "few", _FEW_USERS, partitions)
    many = await _applied(system, "many", many_users, partitions)
    spread = await _applied(system, "spread", _FEW_USERS, _MANY_PARTITIONS)
    per_user = (many.memory_mib - few.memory_mib) * 2**20 / (many_users - _FEW_USERS)
    system.report.details["growth"] = {
        name: each._asdict() for name, each in (("few", few), ("many", many), ("spread", spread))
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
            "clicks, 2 workers",
            None,
            "clicks/s",
            note="one worker and the broker fill the two cores that everything is measured on: a second worker would "
            "only take turns with them",
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


async def _applied(system: System, name: str, users: int, partitions: int) -> _Applied:
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
    async with worker("interests", system.folder, system.environment_of(settings)) as running:
        memory_mib = running.process.memory_mib() - running.process.mapped_mib()
        before = await clicks.applied(running)
        running.process.hold()
        counts = await dataset.publish(
            settings, Topics.named(settings.topic_prefix).clicks, partitions, records
        )
        used_s = running.process.used_cpu_s()
        running.process.go_on()
        per_s = await clicks.rate(running, before, sum(counts))
        used_s = running.process.used_cpu_s() - used_s
        detail = await clicks.detail(running)
    cpu_us = 1e6 * used_s / sum(counts)
    return _Applied(per_s, cpu_us, detail["touched_per_batch"], detail["clicks_per_batch"], memory_mib)


async def _copy_items(system: System, settings: Settings) -> None:
    """The vectors of the first items, from the topic that they are on."""
    wanted = {item.item_id.encode() for item in system.items[:_ITEMS]}
    found = stored.records_of(system.settings, system.topics.vectors, system.settings.catalog_partitions)
    copies = [Outgoing(record.key, record.value) async for record in found if record.key in wanted]
    vectors = Topics.named(settings.topic_prefix).vectors
    await dataset.publish(settings, vectors, settings.catalog_partitions, iter(copies))
