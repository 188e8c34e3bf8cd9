"""What the READMEs say is true: the example runs, every setting and every file is named."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headwater import run_file
from headwater.settings import PREFIX, Settings
from tests.support.checkout import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_setting_is_in_the_table() -> None:
    named = set(re.findall(rf"{PREFIX}([A-Z0-9_]+)", README)) - {"CONFIG"}
    assert named == {name.upper() for name in Settings.model_fields}


def test_every_file_of_streams_is_in_its_map() -> None:
    text = (ROOT / "streams" / "README.md").read_text(encoding="utf-8")
    files = {path.name for path in (ROOT / "streams" / "headwater").glob("*.py")} - {"__init__.py"}
    folders = {
        f"{path.name}/"
        for path in (ROOT / "streams" / "headwater").iterdir()
        if (path / "__init__.py").exists()
    }
    assert {name for name in files | folders if f"`{name}`" not in text} == set()


def test_every_command_of_the_table_exists() -> None:
    rows = [line for line in README.splitlines() if line.startswith("| `headwater ")]
    first_cells = [row.split(" | ")[0] for row in rows]
    commands = {
        words.split()[0]
        for cell in first_cells
        for words in re.findall(r"`(?:headwater )?([a-z][^`]*)`", cell)
    }
    for command in sorted(commands):
        done = subprocess.run(
            [sys.executable, "-m", "headwater.commands.main", command, "--help"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, (command, done.stderr)


@pytest.mark.timeout(120)
def test_the_client_example_runs_against_a_running_system(tmp_path: Path) -> None:
    example = re.search(r"```python\n(import asyncio\n.*?)```", README, re.DOTALL)
    assert example is not None
    script = tmp_path / "example.py"
    script.write_text(example[1], encoding="utf-8")
    system = subprocess.Popen(
        [sys.executable, "-m", "headwater.commands.main", "up"],
        cwd=tmp_path,
        env=_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _wait_until_announced(tmp_path, system)
        done = subprocess.run(
            [sys.executable, str(script)],
            cwd=tmp_path,
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        system.terminate()
        _, log = system.communicate(timeout=20)
    assert done.returncode == 0, (done.stderr, log)
    assert re.search(r"^c2 interests \['c1'\]$", done.stdout, re.MULTILINE), done.stdout
    assert "events=1, pending=0" in done.stdout


def _environment() -> dict[str, str]:
    return {**{k: v for k, v in os.environ.items() if not k.startswith(PREFIX)}, "PYTHONPATH": str(ROOT)}


def _wait_until_announced(folder: Path, system: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 60
    while run_file.of_folder(folder / ".headwater") is None:
        assert system.poll() is None, system.communicate()[1]
        assert time.monotonic() < deadline, "the system did not announce itself within 60 s"
        time.sleep(0.1)
