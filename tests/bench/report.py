"""Figures, each beside its baseline and its target, as one table and as JSON."""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.support.kafka_server import VERSION as KAFKA_VERSION
from tests.support.kafka_server import external_servers

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("faust-streaming", "aiokafka", "uvloop", "onnxruntime", "numpy", "msgspec", "qdrant-edge-py")


@dataclass(frozen=True)
class Figure:
    """One measured value; ``ratio`` is against the baseline of the same run, ``at_least``/``at_most`` its target."""

    name: str
    value: float | None
    unit: str
    baseline: float | None = None
    baseline_is: str = ""
    ratio: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is no target or no measurement."""
        if self.ratio is None or (self.at_least is None and self.at_most is None):
            return None
        if self.at_least is not None:
            return self.ratio >= self.at_least
        assert self.at_most is not None
        return self.ratio <= self.at_most


@dataclass
class Report:
    """What a run found, in the order it was measured."""

    quick: bool
    cores: list[int]
    figures: list[Figure] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def add(self, *figures: Figure) -> None:
        self.figures += figures

    def missed(self) -> list[Figure]:
        return [figure for figure in self.figures if figure.met is False]

    def show(self, console: Console) -> None:
        table = Table(title="Headwater" + (" (quick)" if self.quick else ""), title_justify="left")
        for column in ("measure", "value", "baseline", "ratio", "target", "note"):
            table.add_column(column, justify="left" if column in ("measure", "note") else "right")
        for figure in self.figures:
            baseline = (
                f"{_shown(figure.baseline)} {figure.baseline_is}" if figure.baseline is not None else ""
            )
            ratio = f"{figure.ratio:.2f}" if figure.ratio is not None else ""
            if figure.met is not None:
                ratio = f"[{'green' if figure.met else 'red'}]{ratio}[/]"
            value = f"{_shown(figure.value)} {figure.unit}" if figure.value is not None else "skipped"
            table.add_row(figure.name, value, baseline, ratio, target_of(figure), figure.note)
        console.print(table)

    def as_dict(self) -> dict[str, Any]:
        """The run for machines: when, by what, on what, every figure."""
        return {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": ["python", "-m", "tests.bench", *sys.argv[1:]],
            "commit": _commit(),
            "quick": self.quick,
            "machine": _machine(self.cores),
            "versions": _versions(),
            "figures": [asdict(figure) | {"met": figure.met} for figure in self.figures],
            "details": self.details,
        }

    def write(self, path: Path) -> None:
        """The run as a JSON file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_dict(), indent=1) + "\n")


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def target_of(figure: Figure) -> str:
    """The target of a ratio, "" where there is none."""
    if figure.at_least is not None:
        return f"≥ {figure.at_least:g}"
    return f"≤ {figure.at_most:g}" if figure.at_most is not None else ""


def _machine(cores: list[int]) -> dict[str, Any]:
    cpu = re.search(r"model name\s*: (.*)", _read("/proc/cpuinfo"))
    memory = re.search(r"MemTotal:\s*(\d+)", _read("/proc/meminfo"))
    return {
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores_used": cores,
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
        "system": platform.platform(),
        "load_before": os.getloadavg()[0],
    }


def _versions() -> dict[str, str]:
    broker = (
        "the cluster of KAFKA_BOOTSTRAP_SERVERS" if external_servers() else f"Apache Kafka {KAFKA_VERSION}"
    )
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "broker": broker, **versions}


def _commit() -> str | None:
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
