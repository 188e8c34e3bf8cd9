"""What a web service installs: the wheel without extras, in a project that has folders named like ours."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checkout import ROOT

LOCK = ROOT / "deploy" / "requirements" / "client.txt"
# Of the installed packages, ours and the starter bundle included. A worker's install takes 488 MB.
MOST_MB = 60

PROGRAM = """
import asyncio

from headwater import Client, Item, Position, Response, SessionEvent
from models import prices
from streams import readers


async def shelf(servers: str, user: str) -> list[str]:
    async with Client(servers) as client:
        await client.put_item(Item("coffee-1", title="Ground coffee"))
        position: Position = await client.click(user, "coffee-1")
        answer: Response = await client.recall(user, after=position, session=[SessionEvent("coffee-1")])
        return [item.item_id for item in answer.items]


if __name__ == "__main__":
    print(readers.NAME, prices.NAME, asyncio.iscoroutinefunction(shelf))
"""


def uv() -> str:
    """The uv that installs this checkout's environments, or the machine's."""
    for candidate in ("uv", ROOT / ".uv" / "bin" / "uv", ROOT / ".uv" / "lib" / "bin" / "uv"):
        if found := shutil.which(candidate):
            return found
    pytest.skip("no uv here: neither on the PATH nor in .uv/, where deploy/install.sh puts it")


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280, check=False
    )


def succeeds(*command: str | Path, cwd: Path) -> str:
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with an environment of its own, in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("shop")
    for package, module in (("streams", "readers"), ("models", "prices")):
        (folder / package).mkdir()
        (folder / package / "__init__.py").touch()
        (folder / package / f"{module}.py").write_text(f'NAME = "own {package}"\n')
    (folder / "shelf.py").write_text(PROGRAM)
    succeeds(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "dist", cwd=ROOT)
    (wheel,) = (folder / "dist").glob("*.whl")
    succeeds(uv(), "venv", "--quiet", "--python", sys.executable, "--no-config", folder / "env", cwd=folder)
    python = folder / "env" / "bin" / "python"
    succeeds(uv(), "pip", "install", "--quiet", "--python", python, "--constraints", LOCK, wheel, cwd=folder)
    yield folder
    shutil.rmtree(folder / "env")


def test_the_wheel_brings_the_client_and_nothing_else(project: Path) -> None:
    listed = succeeds(uv(), "pip", "freeze", "--python", project / "env" / "bin" / "python", cwd=project)
    installed = {re.split("==| @ ", line)[0] for line in listed.splitlines()}
    locked = {line.partition("==")[0] for line in LOCK.read_text().splitlines() if re.match("[a-z]", line)}
    assert "headwater" in installed
    assert installed - {"headwater"} <= locked
    (packages,) = (project / "env" / "lib").glob("python*/site-packages")
    size_mb = sum(path.stat().st_size for path in packages.rglob("*") if path.is_file()) / 1e6
    print(f"{len(installed)} packages, {size_mb:.1f} MB")
    assert size_mb < MOST_MB


def test_a_program_with_its_own_streams_and_models_runs(project: Path) -> None:
    printed = succeeds(project / "env" / "bin" / "python", "-W", "error", "shelf.py", cwd=project)
    assert printed == "own streams own models True\n"


def mypy(project: Path, program: str) -> subprocess.CompletedProcess[str]:
    python = project / "env" / "bin" / "python"
    options = ("--strict", "--no-incremental", "--python-executable", python)
    return run(sys.executable, "-m", "mypy", *options, program, cwd=project)


def test_the_client_type_checks_under_mypy_strict(project: Path) -> None:
    done = mypy(project, "shelf.py")
    assert done.returncode == 0, done.stdout
    assert "no issues found" in done.stdout


def test_mypy_sees_a_wrong_use_of_the_client(project: Path) -> None:
    """Otherwise the test above would pass on a client of type Any."""
    (project / "wrong.py").write_text(
        'from headwater import Client\n\n\nasync def ask(client: Client) -> int:\n    return await client.recall("ann")\n'
    )
    done = mypy(project, "wrong.py")
    assert done.returncode == 1
    assert 'got "Response", expected "int"' in done.stdout


def test_the_command_line_says_which_install_brings_it(project: Path) -> None:
    done = run(project / "env" / "bin" / "headwater", "--help", cwd=project)
    assert done.returncode == 1
    assert "install the extra cpu or gpu" in done.stderr
    assert "Traceback" not in done.stderr
