"""Items a second of one catalog worker, beside a plain loop around the same ONNX session."""

import asyncio
import json
import time
from pathlib import Path

from headwater.encoder.features import item_text
from headwater.messages import Item
from headwater.settings import STARTER_BUNDLE, Settings
from tests.bench.processes import python, worker
from tests.bench.report import Figure
from tests.bench.system import System

_POLL_S = 0.05
# The first items warm the session and the producer up.
_WARM_UP = 0.05
# A language model encodes some hundreds of items a second on a laptop's core.
_LM_ITEMS = 3_000


async def measure(system: System) -> None:
    """Both kinds of bundle; the starter's vectors stay for the measures that follow."""
    static = await _compared(system, system.settings, STARTER_BUNDLE, "static", len(system.items), 0.6)
    system.report.add(static)
    system.filled = True
    if system.lm_bundle is None:
        why = "no bundle of a language model: --lm-bundle FOLDER, made by `headwater export`"
        system.report.add(Figure("catalog, lm", None, "items/s", note=why, at_least=0.9))
        return
    settings = system.settings.model_copy(
        update={"topic_prefix": f"{system.settings.topic_prefix}lm.", "data_dir": system.folder / "lm"}
    )
    await system.create(settings)
    count = min(_LM_ITEMS, len(system.items))
    system.report.add(await _compared(system, settings, system.lm_bundle, "lm", count, 0.9))


async def fill(system: System) -> None:
    """Only have the catalog encoded, for other measures."""
    if not system.filled:
        await encode(system, system.settings, len(system.items))
        system.filled = True


async def encode(system: System, settings: Settings, count: int) -> None:
    """Have the first items encoded."""
    await _worker_rate(system, settings, STARTER_BUNDLE, count)


async def _compared(
    system: System, settings: Settings, bundle: Path, name: str, count: int, at_least: float
) -> Figure:
    before = await _plain_loop(system, bundle, count)
    ours = await _worker_rate(system, settings, bundle, count)
    after = await _plain_loop(system, bundle, count)
    baseline = (before + after) / 2
    system.report.details[f"catalog_{name}"] = {"plain_loop": [before, after], "worker": ours}
    return Figure(
        f"catalog, {name}",
        ours,
        "items/s",
        baseline,
        "plain loop",
        ours / baseline,
        at_least=at_least,
        note=f"{count:,} items, from text to the vectors topic, 1 encoder thread",
    )


async def _worker_rate(system: System, settings: Settings, bundle: Path, count: int) -> float:
    """Items a second of a catalog worker that finds ``count`` items waiting."""
    environment = system.environment_of(settings) | {"HEADWATER_BUNDLE": str(bundle)}
    async with worker("catalog", system.folder, environment) as running:
        running.process.hold()
        await system.publish_items(settings, count)
        running.process.go_on()
        first: tuple[float, float] | None = None
        while True:
            done = (await running.metrics()).get("headwater_catalog_items_total", 0.0)
            now = time.monotonic()
            if first is None and done >= count * _WARM_UP:
                first = done, now
            if done >= count:
                break
            running.process.require_running()
            await asyncio.sleep(_POLL_S)
    assert first is not None
    return (count - first[0]) / (now - first[1])


async def _plain_loop(system: System, bundle: Path, count: int) -> float:
    path = system.folder / "texts.json"
    items = system.items[:count]
    path.write_text(json.dumps([[_text(item) for item in items], [item.item_id for item in items]]))
    arguments = ["-m", "tests.bench.plain_loop", str(bundle), str(path)]
    async with python(arguments, system.folder, "plain-loop") as loop:
        return float(await loop.finished())


def _text(item: Item) -> str:
    return item_text(item.title, item.description, item.category, item.tags, item.attributes)
