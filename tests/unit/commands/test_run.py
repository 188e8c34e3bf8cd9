"""`headwater up` and `demo`, as processes."""

import json
from pathlib import Path

from headwater.commands.terminal import Exit
from tests.support.terminal import Terminal


def test_the_demo_wants_a_number_of_purchases(terminal: Terminal) -> None:
    assert "--events is many: expected a number of purchases, or all" in terminal.fails(
        "demo", "--events", "many", code=Exit.USAGE
    )


def test_the_running_system_is_found_from_any_folder(beside_up: Terminal, tmp_path: Path) -> None:
    elsewhere = Terminal(tmp_path, XDG_STATE_HOME=beside_up.environment["XDG_STATE_HOME"])
    elsewhere.succeeds("click", "fay", "c1")
    assert json.loads(elsewhere.succeeds("ask", "fay", "--json"))["reflects"]["events"] == 1
    assert "Ground filter coffee" in elsewhere.succeeds("user", "fay")


def test_a_second_up_in_the_same_folder_is_refused(beside_up: Terminal) -> None:
    assert "another Headwater runs in .headwater" in beside_up.fails("up", code=Exit.FAILED)
