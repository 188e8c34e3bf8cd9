"""Terminals: one with nothing around it, and one beside a running `headwater up`."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.terminal import Terminal, children_of

CATALOG = """sku,name,kind,price
c1,Ground filter coffee,coffee,5.9
c2,Espresso coffee beans,coffee,8.5
t1,Green tea,tea,3.2
"""


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    return Terminal(tmp_path)


@pytest.fixture(scope="package")
def beside_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A terminal in the folder where `headwater up` runs, with a small catalog published."""
    terminal = Terminal(tmp_path_factory.mktemp("up"))
    with terminal.start("up") as running:
        assert running.stderr
        said: list[str] = []
        for line in running.stderr:
            said.append(line)
            if line.startswith("ready: "):
                break
        assert said[-1].startswith("ready: "), "".join(said)
        (terminal.folder / "catalog.csv").write_text(CATALOG)
        maps = [f"--map={pair}" for pair in ("item_id=sku", "title=name", "category=kind")]
        terminal.succeeds("import", "catalog", "catalog.csv", *maps)
        yield terminal
        (announced,) = (terminal.folder / "state" / "headwater" / "running").iterdir()
        assert announced.name.startswith(f"{running.pid}-")
        running.send_signal(signal.SIGTERM)
        stdout, _ = running.communicate(timeout=60)
        assert running.returncode == 0
        assert stdout == ""
    assert not children_of(running.pid)
    assert not announced.exists()
