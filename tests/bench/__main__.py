"""Runs the benchmarks: python -m tests.bench [MEASURE ...] [--quick] [--lm-bundle FOLDER] [--state-on-disk] [--json FILE].

`python -m tests.bench report` measures nothing: it writes the page of the published figures again.
"""

import argparse
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop
from rich.console import Console

from headwater.settings import Settings
from tests.bench import (
    catalog,
    clicks,
    freshness,
    gateway,
    growth,
    load,
    machine,
    others,
    patches,
    read_your_writes,
    recovery,
    requests,
    soak,
    window,
)
from tests.bench.page import PAGE, publish, write_page
from tests.bench.processes import BenchError
from tests.bench.report import RESULTS, Report
from tests.bench.system import FULL, QUICK, System
from tests.support.kafka_server import CannotRunError, KafkaFailedError, kafka_server

# In the order they run: each leaves behind what the next ones need.
MEASURES: dict[str, Callable[[System], Awaitable[None]]] = {
    "machine": machine.measure,
    "catalog": catalog.measure,
    "freshness": freshness.measure,
    "reads": read_your_writes.measure,
    "gateway": gateway.measure,
    "clicks": clicks.measure,
    "others": others.measure,
    "window": window.measure,
    "requests": requests.measure,
    "served": requests.measure_server,
    "load": load.measure,
    "recovery": recovery.measure,
    "growth": growth.measure,
}
# Only when they are named: they take a quarter of an hour, or as long as `--minutes` says.
ON_REQUEST: dict[str, Callable[[System], Awaitable[None]]] = {
    "patches": patches.measure,
    "patches-idle": patches.measure_idle,
    "soak": soak.measure,
}
# What is published is measured on two cores, broker included.
_CORES = 2
_REPORT = "report"


def main() -> int:
    """0: all targets met. 1: some were missed. 2: it could not be measured."""
    options = _options()
    if options.measures == [_REPORT]:
        write_page()
        print(f"written to {PAGE}")
        return 0
    cores = sorted(os.sched_getaffinity(0))[:_CORES]
    os.environ.pop("HEADWATER_QDRANT_URL", None)  # the measure that wants a server names it
    os.sched_setaffinity(0, cores)  # the broker, the workers and the baselines inherit it
    report = Report(options.quick, cores)
    console = Console(stderr=True)
    out = (
        options.json or RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}{'-quick' if options.quick else ''}.json"
    )
    try:
        with (
            kafka_server(is_measured=True) as servers,
            tempfile.TemporaryDirectory(prefix="headwater-bench-") as folder,
        ):
            uvloop.run(_measure(options, servers, Path(folder), report, console))
    except (BenchError, CannotRunError, KafkaFailedError) as error:
        console.print(f"[red]not measured:[/] {error}")
        return 2
    finally:
        if report.figures or report.details:
            report.write(out)
    report.show(Console(width=max(Console().width, 150)))
    console.print(f"written to {out}")
    if not (options.measures or options.quick or options.state_on_disk):
        publish(report.as_dict())
        console.print(f"published in {PAGE}")
    for figure in report.missed():
        console.print(f"[red]missed:[/] {figure.name}")
    return 1 if report.missed() else 0


async def _measure(
    options: argparse.Namespace, servers: str, folder: Path, report: Report, console: Console
) -> None:
    settings = Settings(
        kafka_bootstrap_servers=servers,
        topic_prefix=f"bench-{uuid.uuid4().hex[:8]}.",
        data_dir=folder / "data",
        state_on_disk=options.state_on_disk,
    )
    scale = QUICK if options.quick else FULL
    system = System(settings, folder, scale, report, options.lm_bundle, options.minutes, options.out)
    await system.open()
    measures = {**MEASURES, **ON_REQUEST}
    for name in measures:
        if name in (options.measures or MEASURES):
            with console.status(f"measuring: {name}"):
                await measures[name](system)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "measures",
        nargs="*",
        choices=[[], *MEASURES, *ON_REQUEST, _REPORT],
        metavar="MEASURE",
        help=f"{', '.join([*MEASURES, *ON_REQUEST])}; or {_REPORT}: the page of the published figures anew",
    )
    parser.add_argument("--quick", action="store_true", help="fewer items, clicks and rounds")
    parser.add_argument("--lm-bundle", type=Path, metavar="FOLDER", help="an exported language model")
    parser.add_argument("--state-on-disk", action="store_true", help="of all workers of ours")
    parser.add_argument("--minutes", type=float, default=60.0, help="of a soak")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="of a soak; default: a new one in the results"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"default: a new file in {RESULTS}")
    options = parser.parse_args()
    if _REPORT in options.measures and len(options.measures) > 1:
        parser.error(f"{_REPORT} measures nothing: expected it alone")
    return options


if __name__ == "__main__":
    sys.exit(main())
