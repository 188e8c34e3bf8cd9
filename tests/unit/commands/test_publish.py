"""`headwater import`, as a process."""

import json

from headwater.commands.terminal import Exit
from tests.support.terminal import Terminal


def test_a_file_that_is_not_there_is_one_sentence(terminal: Terminal) -> None:
    assert "nowhere.csv is no file: expected a CSV, Parquet or JSON lines file" in terminal.fails(
        "import", "clicks", "nowhere.csv", code=Exit.FAILED
    )


def test_a_missing_column_is_named_with_those_that_are_there(terminal: Terminal) -> None:
    (terminal.folder / "c.csv").write_text("who,item_id,when\nann,x,1700000000\n")
    assert "no column for user_id, at_ms: the file has who, item_id, when" in terminal.fails(
        "import", "clicks", "c.csv", code=Exit.FAILED
    )


def test_a_repeated_import_changes_nothing(beside_up: Terminal) -> None:
    path = beside_up.folder / "clicks.csv"
    path.write_text("user_id,item_id,at_ms\neve,c1,2023-11-14 22:13:20\neve,t1,2023-11-14 22:13:20\n")
    last = ""
    for _ in range(2):
        assert beside_up.succeeds("import", "clicks", str(path)).startswith("published 2 of 2 rows")
        place = beside_up.succeeds("click", "eve", "c2", "--event-id", "the same").strip()
        found = json.loads(beside_up.succeeds("ask", "eve", "--json", "--after", place))
        assert found["reflects"]["events"] == 3
        last = place
    assert last


def test_bad_rows_are_shown_and_fail_the_import_unless_accepted(beside_up: Terminal) -> None:
    path = beside_up.folder / "bad.csv"
    path.write_text("item_id,price\nbad-1,cheap\n,1\n")
    done = beside_up.run("import", "catalog", str(path))
    assert done.returncode == 1
    assert "row 1: price: got 'cheap', expected a number >= 0" in done.stderr
    assert "row 2: item_id: empty" in done.stderr
    assert "2 rows of" in done.stderr.splitlines()[-1]
    assert beside_up.run("import", "catalog", str(path), "--skip-bad").returncode == 0
