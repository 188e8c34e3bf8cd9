"""An hour of clicks, requests and catalog changes with users and items that come and go: what grows, and what is lost.

The worker runs under `census.py`, so that what grows has a name. `soak_load.py` says what is published. Everything is
written to a folder while it goes on: `samples.jsonl`, `census.jsonl`; and at the end `soak.json` and `soak.png`. A
file `stop` in that folder ends it early.

What is promised for weeks grows all that time. In an hour at these rates: 30 bytes for each of 180,000 users who expire,
5 MiB; 32 bytes for each of 36,000 deleted items, in the catalog worker and in the index of the process, 2 MiB. What else
is kept of users and items that have gone has its bound within a quarter of an hour, but for half a MiB: counts of items
that never were, and logs to be closed a day after an erasure.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition

from headwater.encoder.features import ACTION_CODES, event_key, item_key
from headwater.encoder.runtime import load
from headwater.profiles.columns import Columns
from headwater.profiles.event_log import Event
from headwater.profiles.state_records import bundle_key, unpack
from headwater.settings import Settings
from tests.bench import stored
from tests.bench.processes import BenchError, Worker, worker
from tests.bench.report import RESULTS, Figure
from tests.bench.soak_load import CHANGES_PER_S, CLICKS_PER_S, ITEMS, REQUESTS_PER_S, Load
from tests.bench.system import System

SAMPLE_S: Final = 5.0
WARM_UP_MIN: Final = 10.0
# Users expire after five minutes without an event, so that an hour holds many generations of them.
_TTL_S = 300.0
_TTL_SLACK_S = 60.0
_GRAPH_MIN_ITEMS = 2_000
# The slope that counts as flat: an hour of it is less than what one burst leaves behind.
_FLAT_MIB_PER_H = 10.0
_SETTLE_S = 180.0
_MIB = 2**20


class Slope(NamedTuple):
    """A line through the samples after the warm-up, per hour, and half the width of its 95 % interval."""

    per_h: float
    within: float


async def measure(system: System) -> None:
    """Run it for ``system.soak_minutes``."""
    folder = system.soak_folder or RESULTS / f"soak-{time.strftime('%Y%m%d-%H%M%S')}"
    folder.mkdir(parents=True, exist_ok=True)
    settings = system.settings.model_copy(
        update={"topic_prefix": f"{system.settings.topic_prefix}soak.", "data_dir": system.folder / "soak"}
    )
    await system.create(settings)
    environment = {
        **system.environment_of(settings),
        "HEADWATER_USER_TTL_DAYS": str(_TTL_S / 86_400),
        "HEADWATER_GRAPH_MIN_ITEMS": str(_GRAPH_MIN_ITEMS),
    }
    census = folder / "census.jsonl"
    command = ("-m", "tests.bench.census", str(census))
    async with (
        worker("all", folder, environment, command) as running,
        Load(settings, system.items[:ITEMS]) as given,
    ):
        await given.stock()
        await _until(running, "the first items are indexed", lambda health: health["items"] == ITEMS)
        samples = await _soaked(running, given, settings, folder, 60.0 * system.soak_minutes)
        unanswered = await given.settled()
        lost = await _lost_clicks(running, settings)
        compared, differing = await _differing(settings, given)
        metrics = await running.metrics()
    dead = sum(count for name, count in metrics.items() if name.startswith("headwater_dead_letters_total{"))
    warm_s = min(60.0 * WARM_UP_MIN, 20.0 * system.soak_minutes)
    slopes = {
        name: slope(samples, name, warm_s)
        for name in ("rss_mib", "pss_mib", "anon_mib", "handles", "threads")
    }
    grown = _grown(census, samples[0]["at"] + warm_s)
    outcome = {
        "minutes": round(samples[-1]["elapsed_s"] / 60, 1),
        "per_s": {"clicks": CLICKS_PER_S, "requests": REQUESTS_PER_S, "catalog changes": CHANGES_PER_S},
        "warm_up_s": warm_s,
        "slopes_per_h": {name: found and found._asdict() for name, found in slopes.items()},
        "unanswered": unanswered,
        "clicks_not_applied": lost,
        "users_compared": compared,
        "users_differing": differing,
        "dead_letters": dead,
        "clicks": {name: metrics[f"headwater_{name}_total"] for name in ("clicks", "duplicates", "too_late")},
        "published": given.ledger.as_dict(),
        "grown": grown,
    }
    system.report.details["soak"] = outcome
    whole = outcome | {"samples": samples, "metrics": metrics}
    (folder / "soak.json").write_text(json.dumps(whole, indent=1) + "\n")
    plot(samples, slopes, warm_s, folder / "soak.png")
    system.report.add(
        _growth("memory, resident", slopes["rss_mib"], _FLAT_MIB_PER_H, "MiB/h"),
        _growth("open files", slopes["handles"], 1.0, "1/h"),
        _none("requests without an answer", unanswered, f"of {sum(given.ledger.requests.values()):,}"),
        _none("answers that are not as they should be", given.ledger.unexpected_count, ""),
        _none("clicks not applied", lost, f"of {sum(given.ledger.clicks.values()):,}"),
        _none("users with another log than published", len(differing), f"of {compared:,} compared"),
        _none(
            "dead letters too many or too few",
            abs(dead - given.ledger.junk),
            f"{given.ledger.junk:,} expected",
        ),
    )
    for each in grown[:12]:
        print(f"{each['way']}: {each['length']} elements, {each['mib']} MiB, since the warm-up")
    print(f"written to {folder}")


def _growth(name: str, found: Slope | None, flat: float, unit: str) -> Figure:
    if found is None:
        return Figure(f"soak: growth of {name}", None, unit, at_most=1.0, note="too short for a line")
    note = f"95 % within {found.within:.2f} either way, after the warm-up"
    return Figure(
        f"soak: growth of {name}",
        found.per_h,
        unit,
        flat,
        "counts as flat",
        found.per_h / flat,
        at_most=1.0,
        note=note,
    )


def _none(name: str, count: float, note: str) -> Figure:
    return Figure(f"soak: {name}", count, "", ratio=float(count > 0), at_most=0.0, note=note)


async def _soaked(
    running: Worker, given: Load, settings: Settings, folder: Path, seconds: float
) -> list[dict[str, Any]]:
    """The samples of the whole time, written down as they come."""
    samples = []
    publishing = asyncio.ensure_future(given.run(seconds))
    started = time.monotonic()
    try:
        with (folder / "samples.jsonl").open("w") as out:
            while not publishing.done():
                running.process.require_running()
                taken = await _sample(running, given, settings.data_dir)
                samples.append(taken | {"elapsed_s": time.monotonic() - started})
                out.write(json.dumps(samples[-1]) + "\n")
                out.flush()
                await asyncio.wait({publishing}, timeout=SAMPLE_S)
                if (folder / "stop").exists():
                    given.end()
        await publishing
    finally:
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
    return samples


async def _sample(running: Worker, given: Load, data_dir: Path) -> dict[str, Any]:
    process = running.process
    try:
        metrics, health = await running.metrics(), await running.health()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise BenchError(f"the worker does not answer ({error})") from error
    proportional = process.proportional_mib()
    latencies, given.ledger.latencies_ms = given.ledger.latencies_ms, []
    # A worker may have thousands of series; only those of one number each are kept, and the lag of each topic.
    gauges = {
        name.removeprefix("headwater_"): value
        for name, value in metrics.items()
        if name.startswith("headwater_") and "{" not in name and not name.endswith(("_sum", "_count"))
    }
    return {
        "at": time.time(),
        "rss_mib": process.memory_mib(),
        "file_mib": process.mapped_mib(),
        "pss_mib": proportional["Pss"],
        "anon_mib": proportional["Pss_Anon"],
        "handles": process.open_files(),
        "threads": process.threads(),
        "cpu_s": process.used_cpu_s(),
        "disk_mib": _on_disk_mib(data_dir),
        "users": health["users"],
        "items": health["items"],
        "graph": health["graph"],
        "ok": health["ok"],
        "reason": health["reason"],
        "parked": metrics.get("headwater_parked_requests", 0.0),
        "lag": sum(value for name, value in metrics.items() if name.startswith("headwater_lag{")),
        "waiting": given.waiting,
        "overdue": given.overdue(),
        "unexpected": given.ledger.unexpected_count,
        "p50_ms": float(np.percentile(latencies, 50)) if latencies else None,
        "p99_ms": float(np.percentile(latencies, 99)) if latencies else None,
        "gauges": gauges,
    }


def _on_disk_mib(folder: Path) -> float:
    """Blocks that the files take: a sparse one takes fewer than its size."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a graph was swapped meanwhile
            total += path.stat().st_blocks * 512
    return total / _MIB


async def _until(running: Worker, what: str, is_true: Any) -> dict[str, Any]:
    deadline = time.monotonic() + _SETTLE_S
    while not is_true(health := await running.health()):
        running.process.require_running()
        if time.monotonic() > deadline:
            raise BenchError(f"waited {_SETTLE_S:.0f} s until {what}: {health}")
        await asyncio.sleep(0.2)
    return health


async def _lost_clicks(running: Worker, settings: Settings) -> int:
    """How far the watermarks are from the end of the clicks topic, once nothing moves any more."""
    topic = f"{settings.topic_prefix}clicks.v1"
    deadline = time.monotonic() + _SETTLE_S
    consumer = AIOKafkaConsumer(**settings.kafka_options())
    await consumer.start()
    try:
        while True:
            places = [TopicPartition(topic, number) for number in range(settings.partitions)]
            ends = await consumer.end_offsets(places)
            marks = (await running.health())["partitions"]
            behind = sum(end - 1 - int(marks[str(place.partition)]) for place, end in ends.items())
            if not behind or time.monotonic() > deadline:
                return behind
            await asyncio.sleep(0.5)
    finally:
        await consumer.stop()


async def _differing(settings: Settings, given: Load) -> tuple[int, list[str]]:
    """Users of the oracle who clicked lately: how many, and those whose log in the changelog is another than published."""
    encoder = load(settings.bundle_path)
    records = await stored.user_records(settings)
    columns = Columns(encoder.log_length, encoder.state_size)
    now_ms = time.time() * 1000
    told = {
        user: events
        for user, events in given.told().items()
        if _is_kept([each["at_ms"] for each in events], now_ms)
    }
    kept = [user for user in told if user.encode() in records]
    rows = np.array([columns.add(user.encode()) for user in kept], dtype=np.int64)
    unpack(columns, rows, [records[user.encode()] for user in kept], bundle_key(encoder.id))
    differing = [user for user in told if user not in kept]
    for user, row in zip(kept, rows.tolist(), strict=True):
        expected = sorted(
            Event(
                each["at_ms"],
                event_key(each["event_id"]),
                item_key(each["item_id"]),
                ACTION_CODES[each["action"]],
            )
            for each in told[user]
        )[-encoder.log_length :]
        if columns.log(np.array([row])).events(0) != expected:
            differing.append(user)
    return len(told), differing


def _is_kept(at_ms: Sequence[int], now_ms: float) -> bool:
    """Whether a user with events at these times has never been without one for so long that it may have expired."""
    gaps = np.diff([*sorted(at_ms), now_ms])
    return bool(gaps.max() < 1000.0 * (_TTL_S - _TTL_SLACK_S))


def slope(samples: Sequence[Mapping[str, Any]], name: str, after_s: float) -> Slope | None:
    """Fitted to the means of minutes, since samples of seconds are not independent; None for fewer than three."""
    late = [each for each in samples if each["elapsed_s"] >= after_s]
    minutes: dict[int, list[float]] = {}
    for each in late:
        minutes.setdefault(int(each["elapsed_s"] // 60), []).append(float(each[name]))
    hours = np.array(list(minutes)) / 60.0
    means = np.array([np.mean(values) for values in minutes.values()])
    if len(means) < 3:
        return None
    around = hours - hours.mean()
    per_h = float(around @ means / (around @ around))
    left = means - means.mean() - per_h * around
    error = np.sqrt(left @ left / (len(means) - 2) / (around @ around))
    return Slope(per_h, float(2.0 * error))


def _grown(census: Path, after: float) -> list[dict[str, Any]]:
    """The containers that grew most since then, in bytes, or by the share of their elements."""
    lines = [json.loads(line) for line in census.read_text().splitlines()]
    walks = [line for line in lines if "containers" in line]
    late = [line for line in walks if line["at"] >= after] or walks
    if not late:
        return []
    first, last = late[0]["containers"], late[-1]["containers"]
    found = []
    for way, (_, length, size) in last.items():
        _, length_before, size_before = first.get(way, (0, 0, 0))
        if length > 1.05 * length_before or size > size_before:
            found.append(
                {
                    "way": way,
                    "length": [length_before, length],
                    "mib": [round(size_before / _MIB, 3), round(size / _MIB, 3)],
                }
            )
    return sorted(
        found, key=lambda each: (each["mib"][0] - each["mib"][1], each["length"][0] - each["length"][1])
    )


def plot(
    samples: Sequence[Mapping[str, Any]], slopes: Mapping[str, Slope | None], warm_s: float, path: Path
) -> None:
    """Memory, handles, what there is of users, items and lag, and latency, over the minutes."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    minutes = [each["elapsed_s"] / 60 for each in samples]
    figure, panels = plt.subplots(4, 1, sharex=True, figsize=(10, 12), layout="constrained")
    memory, handles, held, speed = panels
    for name, label in (("rss_mib", "resident"), ("pss_mib", "proportional"), ("anon_mib", "anonymous")):
        memory.plot(minutes, [each[name] for each in samples], label=label, linewidth=1)
    rss = slopes["rss_mib"]
    if rss is not None:
        memory.set_title(
            f"resident: {rss.per_h:+.1f} ± {rss.within:.1f} MiB/h after the warm-up", fontsize=10
        )
    memory.set_ylabel("MiB")
    for name, label in (("handles", "open files"), ("threads", "threads")):
        handles.plot(minutes, [each[name] for each in samples], label=label, linewidth=1)
    for name, label in (
        ("users", "users"),
        ("items", "items"),
        ("lag", "lag"),
        ("parked", "parked requests"),
    ):
        held.plot(minutes, [max(each[name] or 0, 0.5) for each in samples], label=label, linewidth=1)
    held.set_yscale("log")
    for name, label in (("p50_ms", "p50"), ("p99_ms", "p99")):
        speed.plot(minutes, [each[name] for each in samples], label=f"request, {label}", linewidth=1)
    speed.set_yscale("log")
    speed.set_ylabel("ms")
    speed.set_xlabel("minutes")
    for panel in panels:
        panel.axvline(warm_s / 60, color="grey", linewidth=0.5, linestyle="--")
        panel.grid(alpha=0.3)
        panel.legend(loc="upper left", fontsize=8)
    for panel in (memory, handles):
        panel.set_ylim(bottom=0)
    figure.suptitle(
        f"{CLICKS_PER_S:,} clicks/s, {REQUESTS_PER_S} requests/s, {CHANGES_PER_S} catalog changes/s",
        fontsize=11,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)
