"""Clicks a second of one interests worker with a backlog, beside two baselines on the same topic: a naive Faust agent,
and a loop around aiokafka written by hand."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwater.encoder.runtime import load
from headwater.kafka.publish import Outgoing
from headwater.kafka.topics import Topics
from headwater.profiles.state_records import ENTRY_BYTES, FORMAT_WITH_COUNTERS, record_size
from headwater.settings import Settings
from tests.bench import catalog, dataset, stored
from tests.bench.processes import BenchError, Worker, python, worker
from tests.bench.report import Figure
from tests.bench.system import System

_POLL_S = 0.05
_STALLED_S = 120.0
_STAGES = ("decode", "apply", "encode", "changelog")
_LOG_LENGTH = 50
_EVENT_ID_BYTES = 21  # as `dataset.clicks` makes them
# Other measures click later than all of these.
_UNTIL_S_AGO = 7200
_AGAIN_SPACING_MS = 1


async def measure(system: System) -> None:
    """Clicks a second of all three; the stages of our worker; what a user's state takes."""
    ours, found = await _apply(system)
    state = await _state_bytes(system)
    naive, naive_cpu_us = await _naive(system)
    by_hand, by_hand_cpu_us = await _by_hand(system)
    scale, report = system.scale, system.report
    report.details["clicks"] = {
        **found,
        "users_touched": state.users,
        "record_bytes_mean": state.mean,
        "naive_clicks": scale.naive_clicks,
        # Processor time: a busy machine distorts it less than the clock.
        "cpu_us_per_click": {
            "ours": 1e6 * found["cpu_s"] / scale.clicks,
            "naive": naive_cpu_us,
            "by_hand": by_hand_cpu_us,
        },
    }
    stages = ", ".join(f"{name} {found['stage_share'][name]:.0%}" for name in _STAGES)
    report.add(
        Figure(
            "clicks, one worker",
            ours,
            "clicks/s",
            naive,
            "naive Faust",
            ours / naive,
            at_least=25.0,
            note=f"{scale.clicks:,} clicks of {scale.users:,} users by Zipf 1.0; {found['touched_per_batch']:,.0f} users "
            f"touched per batch of {found['clicks_per_batch']:,.0f}; {stages}",
        ),
        Figure(
            "clicks, one worker",
            ours,
            "clicks/s",
            by_hand,
            "aiokafka by hand",
            ours / by_hand,
            at_least=0.8,
            note=f"aim: 1.2; processor time per click: {1e6 * found['cpu_s'] / scale.clicks:.1f} us, "
            f"by hand {by_hand_cpu_us:.1f} us",
        ),
        Figure("memory, after the clicks", found["memory_mib"], "MiB", note=f"{state.users:,} users"),
        Figure(
            f"state of a user at {_LOG_LENGTH} events",
            state.full,
            "bytes",
            note=f"mean over all users: {state.mean:,.0f}",
        ),
        Figure(
            "the same with what came before",
            state.counting,
            "bytes",
            note=f"mean of those who had more; the largest: {state.largest:,}",
        ),
    )


async def fill(system: System) -> None:
    """Only have the clicks applied, for other measures."""
    if not system.clicked:
        await _apply(system)


async def _apply(system: System) -> tuple[float, dict[str, Any]]:
    """Clicks a second, and what the worker says of them."""
    await catalog.fill(system)
    ids, scale = [item.item_id for item in system.items], system.scale
    async with worker("interests", system.folder, system.environment) as running:
        await _items_known(system, running)
        await running.wait_graph()
        records = dataset.clicks(ids, scale.users, scale.clicks, seed=1, until_s_ago=_UNTIL_S_AGO)
        per_s, cpu_s = await backlog([running], system.settings, records)
        found = await detail(running)
    system.clicked = True
    return per_s, {**found, "cpu_s": cpu_s}


async def again(system: System, running: Worker) -> float:
    """Clicks a second of the same clicks, as later events. So many times at most: they must not be of the future."""
    system.clicked_again += 1
    ids, scale, number = [item.item_id for item in system.items], system.scale, system.clicked_again
    assert number * scale.clicks * _AGAIN_SPACING_MS < 1000 * _UNTIL_S_AGO
    records = dataset.clicks(
        ids,
        scale.users,
        scale.clicks,
        seed=1,
        spacing_ms=_AGAIN_SPACING_MS,
        until_s_ago=_UNTIL_S_AGO - number * scale.clicks * _AGAIN_SPACING_MS // 1000,
        first=number * scale.clicks,
    )
    per_s, _ = await backlog([running], system.settings, records)
    return per_s


async def backlog(
    crew: Sequence[Worker], settings: Settings, records: Iterator[Outgoing]
) -> tuple[float, float]:
    """Clicks a second, and seconds of processor time, of all workers, for records published while they are held."""
    before = await applied(*crew)
    for each in crew:
        each.process.hold()
    topic = Topics.named(settings.topic_prefix).clicks
    counts = await dataset.publish(settings, topic, settings.partitions, records)
    used_s = sum(each.process.used_cpu_s() for each in crew)
    for each in crew:
        each.process.go_on()
    per_s = await rate(crew, before, sum(counts))
    return per_s, sum(each.process.used_cpu_s() for each in crew) - used_s


async def _items_known(system: System, running: Worker) -> None:
    """Vectors first: what is measured is clicks on items that have one."""
    deadline = time.monotonic() + _STALLED_S
    while ((await running.health())["items"] or 0) < len(system.items):
        if time.monotonic() > deadline:
            raise BenchError(
                f"the worker knows {(await running.health())['items']} items, expected {len(system.items)}"
            )
        await asyncio.sleep(_POLL_S)


async def applied(*crew: Worker) -> int:
    """How many clicks are applied and stored, of all partitions."""
    watermarks = [mark for each in crew for mark in (await each.health())["partitions"].values()]
    return sum(watermarks) + len(watermarks)


async def rate(crew: Sequence[Worker], before: int, count: int) -> float:
    """Clicks a second of all workers, from the first after ``before`` to the last of ``count``."""
    first: tuple[int, float] | None = None
    started = time.monotonic()
    while True:
        done, now = await applied(*crew), time.monotonic()
        if first is None and done > before:
            first = done, now
        if done >= before + count:
            break
        for each in crew:
            each.process.require_running()
        if now - started > _STALLED_S:
            raise BenchError(f"{done - before} of {count} clicks applied after {_STALLED_S:.0f} s")
        await asyncio.sleep(_POLL_S)
    assert first is not None
    return (done - first[0]) / (now - first[1])


async def detail(running: Worker) -> dict[str, Any]:
    """Its own account of the clicks that it has applied. Raises BenchError where some became dead letters."""
    found = await running.metrics()
    if lost := [name for name, value in found.items() if "dead_letters_total{" in name and value]:
        raise BenchError(f"clicks became dead letters ({', '.join(lost)}):\n{running.process.last_words()}")
    batches = found['headwater_batch_size_count{path="clicks"}']
    seconds = {name: found[f'headwater_click_batch_stage_seconds_sum{{stage="{name}"}}'] for name in _STAGES}
    total = sum(seconds.values())
    return {
        "batches": batches,
        "clicks_per_batch": found['headwater_batch_size_sum{path="clicks"}'] / batches,
        "touched_per_batch": found["headwater_changelog_records_total"] / batches,
        "stage_s": seconds,
        "stage_share": {name: value / total for name, value in seconds.items()},
        "memory_mib": running.process.memory_mib(),
    }


class _StateBytes(NamedTuple):
    """Of users' newest records with their keys."""

    users: int
    mean: float
    full: float  # of users whose log is full and has lost nothing
    counting: float  # of users whose log has lost something
    largest: int


async def _state_bytes(system: System) -> _StateBytes:
    newest = await stored.user_records(system.settings)
    found = [(len(user) + len(record), record[1], record[0]) for user, record in newest.items()]
    sizes, events, formats = np.array(found).T
    counting = formats == FORMAT_WITH_COUNTERS
    full = (events >= _LOG_LENGTH) & ~counting
    return _StateBytes(
        len(sizes), float(sizes.mean()), _mean(sizes[full]), _mean(sizes[counting]), int(sizes.max())
    )


def _mean(sizes: NDArray[np.int64]) -> float:
    return float(sizes.mean()) if len(sizes) else 0.0


def record_shape(system: System) -> tuple[str, str]:
    """Bytes of the head of our record of a user, and of each entry, as arguments."""
    head_bytes = record_size(0, load(system.settings.bundle_path).state_size) + _EVENT_ID_BYTES
    return str(head_bytes), str(ENTRY_BYTES)


async def _naive(system: System) -> tuple[float, float]:
    """Clicks a second, and microseconds of processor time for each."""
    arguments = [
        *("-m", "tests.bench.naive_agent", system.settings.bootstrap_servers, system.topics.clicks),
        *(str(system.settings.partitions), *record_shape(system), str(system.scale.naive_clicks)),
    ]
    async with python(arguments, system.folder, "naive-agent") as agent:
        per_s, cpu_us = (await asyncio.wait_for(agent.finished(), 300.0)).split()
    return float(per_s), float(cpu_us)


async def _by_hand(system: System) -> tuple[float, float]:
    """Clicks a second, and microseconds of processor time for each."""
    settings = system.settings
    out = f"{settings.topic_prefix}by-hand"
    await system.create_plain(out)
    arguments = [
        *("-m", "tests.bench.poll_loop", settings.bootstrap_servers, settings.topic_prefix),
        *(str(settings.partitions), out),
    ]
    async with python(arguments, system.folder, "poll-loop") as loop:
        per_s, cpu_us = (await asyncio.wait_for(loop.finished(), 300.0)).split()
    return float(per_s), float(cpu_us)
