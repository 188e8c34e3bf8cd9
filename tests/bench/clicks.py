"""Clicks a second of one interests worker with a backlog, beside a naive Faust agent on the same topic."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition

from streams.encoder import load
from streams.state_records import ENTRY_BYTES, record_size
from tests.bench import catalog, dataset
from tests.bench.processes import BenchError, Worker, python, worker
from tests.bench.report import Figure
from tests.bench.system import System

_POLL_S = 0.05
_STALLED_S = 120.0
_STAGES = ("decode", "apply", "encode", "changelog")
_LOG_LENGTH = 50
_EVENT_ID_BYTES = 21  # as `dataset.clicks` makes them


async def measure(system: System) -> None:
    """Clicks a second of both; the stages of our worker; what a user's state takes."""
    ours, detail = await _apply(system)
    record_bytes, full_bytes, users = await _state_bytes(system)
    naive, naive_cpu_us = await _naive(system)
    scale, report = system.scale, system.report
    report.details["clicks"] = {
        **detail,
        "users_touched": users,
        "record_bytes_mean": record_bytes,
        "naive_clicks": scale.naive_clicks,
        # Processor time: a busy machine distorts it less than the clock.
        "cpu_us_per_click": {"ours": 1e6 * detail["cpu_s"] / scale.clicks, "naive": naive_cpu_us},
    }
    stages = ", ".join(f"{name} {detail['stage_share'][name]:.0%}" for name in _STAGES)
    report.add(
        Figure(
            "clicks, one worker",
            ours,
            "clicks/s",
            naive,
            "naive Faust",
            ours / naive,
            at_least=25.0,
            note=f"{scale.clicks:,} clicks of {scale.users:,} users by Zipf 1.0; {detail['touched_per_batch']:,.0f} users "
            f"touched per batch of {detail['clicks_per_batch']:,.0f}; {stages}",
        ),
        Figure("memory, after the clicks", detail["memory_mib"], "MiB", note=f"{users:,} users"),
        Figure(
            f"state of a user at {_LOG_LENGTH} events",
            full_bytes,
            "bytes",
            note=f"mean over all users: {record_bytes:,.0f}",
        ),
    )


async def fill(system: System) -> None:
    """Only have the clicks applied, for other measures."""
    if not system.clicked:
        await _apply(system)


async def _apply(system: System) -> tuple[float, dict[str, Any]]:
    """Clicks a second from the first to the last, published while the worker is held."""
    await catalog.fill(system)
    ids = [item.item_id for item in system.items]
    records = dataset.clicks(ids, system.scale.users, system.scale.clicks, seed=1)
    async with worker("interests", system.folder, system.environment) as running:
        await _items_known(system, running)
        await running.wait_graph()
        running.process.hold()
        counts = await dataset.publish(
            system.settings, system.topics.clicks, system.settings.partitions, records
        )
        before = _used_cpu_s(running)
        running.process.go_on()
        rate = await _rate(running, counts)
        detail = await _detail(running)
        detail["cpu_s"] = _used_cpu_s(running) - before
    system.clicked = True
    return rate, detail


async def _items_known(system: System, running: Worker) -> None:
    """Vectors first: what is measured is clicks on items that have one."""
    deadline = time.monotonic() + _STALLED_S
    while ((await running.health())["items"] or 0) < len(system.items):
        if time.monotonic() > deadline:
            raise BenchError(
                f"the worker knows {(await running.health())['items']} items, expected {len(system.items)}"
            )
        await asyncio.sleep(_POLL_S)


async def _rate(running: Worker, counts: list[int]) -> float:
    first: tuple[int, float] | None = None
    started = time.monotonic()
    while True:
        watermarks = (await running.health())["partitions"]
        done, now = sum(watermarks.values()) + len(watermarks), time.monotonic()
        if first is None and done > 0:
            first = done, now
        if done >= sum(counts):
            break
        running.process.require_running()
        if now - started > _STALLED_S:
            raise BenchError(f"{done} of {sum(counts)} clicks applied after {_STALLED_S:.0f} s")
        await asyncio.sleep(_POLL_S)
    assert first is not None
    return (done - first[0]) / (now - first[1])


async def _detail(running: Worker) -> dict[str, Any]:
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


def _used_cpu_s(running: Worker) -> float:
    fields = Path(f"/proc/{running.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _state_bytes(system: System) -> tuple[float, float, int]:
    """Bytes of a user's newest record with its key: the mean, that of users with a full log, and how many users."""
    name = system.topics.profiles
    consumer = AIOKafkaConsumer(**system.settings.kafka_options(), max_partition_fetch_bytes=8 * 1024 * 1024)
    await consumer.start()
    try:
        tps = [TopicPartition(name, number) for number in range(system.settings.partitions)]
        consumer.assign(tps)
        ends = await consumer.end_offsets(tps)
        for tp, start in (await consumer.beginning_offsets(tps)).items():
            consumer.seek(tp, start)
        newest: dict[bytes, tuple[int, int]] = {}
        while any([await consumer.position(tp) < ends[tp] for tp in tps]):
            for records in (await consumer.getmany(*tps, timeout_ms=500)).values():
                for record in records:
                    newest[record.key] = (len(record.key) + len(record.value), record.value[1])
    finally:
        await consumer.stop()
    sizes = np.array(list(newest.values()))
    full = sizes[sizes[:, 1] >= _LOG_LENGTH, 0]
    return float(sizes[:, 0].mean()), float(full.mean()) if len(full) else 0.0, len(sizes)


async def _naive(system: System) -> tuple[float, float]:
    """Clicks a second, and microseconds of processor time for each."""
    head_bytes = record_size(0, load(system.settings.bundle_path).state_size) + _EVENT_ID_BYTES
    arguments = [
        *("-m", "tests.bench.naive_agent", system.settings.bootstrap_servers, system.topics.clicks),
        *(str(system.settings.partitions), str(head_bytes), str(ENTRY_BYTES), str(system.scale.naive_clicks)),
    ]
    async with python(arguments, system.folder, "naive-agent") as agent:
        per_s, cpu_us = (await asyncio.wait_for(agent.finished(), 300.0)).split()
    return float(per_s), float(cpu_us)
