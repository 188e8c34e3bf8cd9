"""Lists become rows: a line of an order, or an event of a session, is one each, and none is lost."""

from pathlib import Path

import polars as pl
import pytest

from headwater.files.contents import ImportFileError
from headwater.files.events import EventForm, events_of
from headwater.files.presets import opened

NOW_MS = 1_700_000_000_000
SESSIONS = (
    '{"session":1,"events":[{"aid":7,"ts":1600000000000,"type":"click"},{"aid":8,"ts":1600000001000,"type":"like"}]}\n'
    '{"session":2,"events":[]}\n{"session":3,"events":null}\n{"session":4,"events":[{"aid":9007199254740993,"ts":1600000002000}]}\n'
)
MAPS = ["user_id=session", "item_id=events.aid", "at_ms=events.ts", "action=events.type"]


def test_each_member_of_a_list_is_a_row_and_a_list_without_one_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "sessions.jsonl"
    path.write_text(SESSIONS)
    found = opened(path, "clicks", MAPS)
    events = events_of(*found, EventForm(), now_ms=NOW_MS)
    assert events.rows.select("line", "user_id", "item_id", "at_ms", "action").rows() == [
        (1, "1", "7", 1_600_000_000_000, "click"),
        (1, "1", "8", 1_600_000_001_000, "like"),
        (4, "4", "9007199254740993", 1_600_000_002_000, "click"),
    ]
    assert [tuple(row) for row in events.bad] == [
        (2, "item_id: missing, expected an id"),
        (3, "item_id: missing, expected an id"),
    ]
    assert found.table.notes == ["events: the lists of 4 rows are read as 5, one for each member"]


def test_what_is_in_lists_is_told_where_a_column_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "sessions.jsonl"
    path.write_text(SESSIONS)
    with pytest.raises(
        ImportFileError,
        match=r"has session, events, and in lists events\.aid, events\.ts, events\.type; .*"
        r"perhaps --map user_id=session --map item_id=events\.aid --map at_ms=events\.ts",
    ):
        opened(path, "clicks")


def test_a_list_of_items_is_a_row_for_each(tmp_path: Path) -> None:
    path = tmp_path / "orders.parquet"
    pl.DataFrame({"user_id": ["ann"], "at_ms": [NOW_MS], "item_id": [["007", "b"]]}).write_parquet(path)
    assert opened(path, "clicks").table.frame["item_id"].to_list() == ["007", "b"]


def test_several_files_of_lists_are_one_table(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(SESSIONS)
    found = opened(tmp_path, "clicks", MAPS).table
    assert (len(found.frame), str(found.place(found.lines[-1]))) == (10, f"{tmp_path / 'b.jsonl'} line 4")
