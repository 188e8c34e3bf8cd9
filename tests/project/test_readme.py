"""What the READMEs say is true: the examples run, every setting and every file is named."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from headwater.run_file import Run
from headwater.settings import PREFIX, Settings
from tests.support import file_map, settings_table
from tests.support.checkout import ROOT

_TRIES = 5
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len(README.splitlines()) <= 150


def test_the_table_of_settings_is_current() -> None:
    assert settings_table.is_current(), "run `python -m tests.support.settings_table`"
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("package", file_map.PACKAGES, ids=lambda package: package.name)
def test_the_file_map_is_current(package: Path) -> None:
    assert file_map.is_current(package), "run `python -m tests.support.file_map`"


@pytest.mark.parametrize("package", file_map.PACKAGES, ids=lambda package: package.name)
def test_every_file_says_what_it_holds(package: Path) -> None:
    empty = [path for path in package.rglob("*.py") if not file_map.first_line(path)]
    assert [path for path in empty if path.name != "__init__.py"] == []


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a running `up`."""
    folder = tmp_path_factory.mktemp("up")
    log = folder / "log"
    with log.open("w") as stderr:
        system = subprocess.Popen(
            [sys.executable, "-m", "headwater", "up"],
            cwd=folder,
            env=_environment(folder),
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        try:
            _wait_until_ready(folder, system, log)
            yield folder
        finally:
            system.terminate()
            system.wait(timeout=30)


def check_example(guide: Path, first_line: str, folder: Path, *printed: str) -> None:
    """The guide's example that begins so ends well and prints these patterns.

    It has limits of its own, a second until an item is searchable and two until an answer, which a busy machine may miss. So
    it has several tries, each with a user who has done nothing yet.
    """
    text = guide.read_text(encoding="utf-8")
    example = re.search(rf"```python\n({re.escape(first_line)}\n.*?)```", text, re.DOTALL)
    assert example is not None
    # Another system may have the usual port.
    source = example[1].replace("127.0.0.1:9092", announced(folder).bootstrap_servers)
    script = folder / "example.py"
    for attempt in range(_TRIES):
        script.write_text(re.sub(r"\bann\b", f"ann{attempt}", source), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(script)],
            cwd=folder,
            env=_environment(folder),
            capture_output=True,
            text=True,
            timeout=90,
        )
        if done.returncode == 0 and all(re.search(each, done.stdout, re.MULTILINE) for each in printed):
            return
    pytest.fail(f"{done.stdout}{done.stderr}{(folder / 'log').read_text()}")


def test_the_client_example_runs_against_a_running_system(running: Path) -> None:
    check_example(
        ROOT / "README.md", "import asyncio", running, r"^c2 interests \['c1'\]$", "events=1, pending=0"
    )


def test_the_example_for_other_languages_runs_to_its_answer(running: Path) -> None:
    check_example(ROOT / "streams" / "README.md", "import asyncio, json, time, uuid", running, r"\Aok \['c2'")


def _environment(folder: Path) -> dict[str, str]:
    """Of a terminal that finds the system of this folder and no other."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return {**kept, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / "state")}


def announced(folder: Path) -> Run:
    """What the system of this folder says of itself."""
    (path,) = (folder / "state" / "headwater" / "running").glob("*.json")
    return msgspec.json.decode(path.read_bytes(), type=Run)


def _wait_until_ready(folder: Path, system: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 120
    while "ready: " not in log.read_text():
        assert system.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
