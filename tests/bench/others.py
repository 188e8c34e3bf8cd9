"""The clicks of one worker beside other stream processors on the same topic, each in an environment of its own.

They do less: neither of them encodes. Their environments are made by uv, anew for each run; where that cannot be done, the
figure says so.
"""

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

from tests.bench import clicks
from tests.bench.processes import BenchError, python, worker
from tests.bench.report import Figure
from tests.bench.system import System

_INSTALL_S: Final = 300.0
_HERE: Final = Path(__file__).parent


class _Other(NamedTuple):
    name: str
    script: str
    requirements: tuple[str, ...]
    at_least: float
    aim: float
    does: str


_OTHERS: Final = (
    _Other("Quix Streams 3.28", "quix_job.py", ("quixstreams==3.28.*",), 2.0, 5.0, "state and changelog"),
    _Other("Bytewax 0.21", "bytewax_job.py", ("bytewax[kafka]==0.21.*",), 1.0, 2.0, "state in memory only"),
)


async def measure(system: System) -> None:
    """Clicks a second of each, and of ours right before and after: a minute later a machine may be half as quick."""
    await clicks.fill(system)
    problems = [await asyncio.to_thread(_install, _home(system, other), other) for other in _OTHERS]
    async with worker("interests", system.folder, system.environment) as running:
        await running.wait_graph()
        before = await clicks.again(system, running)
        for other, problem in zip(_OTHERS, problems, strict=True):
            found = problem or await _rate_of(system, other)
            after = await clicks.again(system, running)
            system.report.add(_beside(other, found, before, after))
            before = after


def _beside(other: _Other, found: tuple[float, float] | str, before: float, after: float) -> Figure:
    name = f"clicks, beside {other.name}"
    if isinstance(found, str):
        return Figure(name, None, "clicks/s", note=f"not measured: {found}")
    (theirs, cpu_us), ours = found, (before + after) / 2
    return Figure(
        name,
        ours,
        "clicks/s",
        theirs,
        other.name,
        ours / theirs,
        at_least=other.at_least,
        note=f"aim: {other.aim:g}; ours {before:,.0f} before it and {after:,.0f} after; it has {other.does}, "
        f"and no encoder; processor time per click {cpu_us:.1f} us",
    )


def _home(system: System, other: _Other) -> Path:
    return system.folder / other.script.removesuffix(".py")


async def _rate_of(system: System, other: _Other) -> tuple[float, float] | str:
    """Clicks a second, and microseconds of processor time for each; or why there are none."""
    home = _home(system, other)
    arguments = [
        # -P: our own modules have names that theirs may import.
        *("-P", str(_HERE / other.script), system.settings.bootstrap_servers, system.topics.clicks),
        *(*clicks.record_shape(system), str(system.scale.clicks)),
    ]
    try:
        async with python(
            arguments, system.folder, home.name, interpreter=str(home / "bin" / "python")
        ) as job:
            theirs, cpu_us = map(float, (await asyncio.wait_for(job.finished(), 300.0)).split())
    except (BenchError, TimeoutError, ValueError) as error:
        return repr(error)
    return theirs, cpu_us


def _install(home: Path, other: _Other) -> str:
    """Make its environment; what went wrong, if anything."""
    # As `deploy/install.sh` finds or brings it.
    uv = next(filter(None, map(shutil.which, ("uv", ".uv/bin/uv", ".uv/lib/bin/uv"))), None)
    if uv is None:
        return "its environment is made by uv, which is not on the PATH"
    commands = (
        [uv, "venv", "--quiet", "--python", sys.executable, str(home)],
        [uv, "pip", "install", "--quiet", "--python", str(home / "bin" / "python"), *other.requirements],
    )
    for command in commands:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S)
        except subprocess.TimeoutExpired:
            return f"{command[1]} took more than {_INSTALL_S:.0f} s"
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["uv failed"])[-1]
    return ""
