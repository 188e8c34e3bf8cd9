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


def test_files_of_several_days_are_one_import(terminal: Terminal) -> None:
    (terminal.folder / "1.csv").write_text("user_id,item_id,at_ms\n7.0,10,1700000000\n8.0,,1700000000\n")
    (terminal.folder / "2.csv").write_text("user_id,item_id,at_ms\n7,a,2023-11-14\n7,10,1700000000\n")
    done = terminal.run("import", "clicks", "1.csv", "2.csv", "--dry-run", "--skip-bad")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["user_id"] for line in done.stdout.splitlines()[:-1]] == ["7", "7"]
    assert done.stdout.splitlines()[-1] == "would publish 2 of 4 rows"
    assert "1.csv line 3: item_id: missing, expected an id" in done.stderr
    assert "1 rows repeat an event of another row" in done.stderr


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
    path.write_text("item_id,title,price\nbad-1,Tea,cheap\n,Tea,1\ngood-1,Tea,1\n")
    done = beside_up.run("import", "catalog", str(path), "--rejects", "rejects.jsonl")
    assert done.returncode == 1
    assert "line 2: price: got 'cheap', expected a number" in done.stderr
    assert "line 3: item_id: missing, expected an id" in done.stderr
    assert "2 rows of" in done.stderr.splitlines()[-1]
    assert done.stdout.startswith("published 1 of 3 rows")
    assert len((beside_up.folder / "rejects.jsonl").read_text().splitlines()) == 2
    assert beside_up.run("import", "catalog", str(path), "--skip-bad").returncode == 0


def test_a_dry_run_shows_what_would_be_published_and_what_a_row_empties(terminal: Terminal) -> None:
    (terminal.folder / "c.csv").write_text("item_id,title,price\np3,Tea,5\n")
    done = terminal.run("import", "catalog", "c.csv", "--dry-run")
    assert done.returncode == 0
    assert json.loads(done.stdout.splitlines()[0]) | {
        "item_id": "p3",
        "title": "Tea",
        "price": 5.0,
    } == json.loads(done.stdout.splitlines()[0])
    assert done.stdout.splitlines()[-1] == "would publish 1 of 1 rows"
    assert (
        "each row replaces its item, so what the file does not have is emptied: description, tags"
        in done.stderr
    )


def test_a_file_that_yields_no_row_fails_even_where_bad_rows_are_accepted(terminal: Terminal) -> None:
    (terminal.folder / "c.csv").write_text("user_id,item_id,at_ms\nnan,x,1700000000\n")
    assert "no row of c.csv can be published" in terminal.fails(
        "import", "clicks", "c.csv", "--skip-bad", "--dry-run", code=Exit.FAILED
    )


def test_a_whole_catalog_with_a_row_that_nobody_can_name_deletes_nothing(terminal: Terminal) -> None:
    (terminal.folder / "c.csv").write_text("item_id,title\na,Tea\nb,Tea,torn\n")
    assert "--full: 1 rows of c.csv have no id that can be read" in terminal.fails(
        "import", "catalog", "c.csv", "--full", code=Exit.FAILED
    )
