"""Rows become cases, a history and what came next, and every other row is named with the reason."""

from pathlib import Path

import polars as pl
import pytest

from headwater.files.cases import Case, Cases, cases_of
from headwater.files.contents import ImportFileError
from headwater.files.events import MADE_UP_GAP_MS, MADE_UP_MS
from headwater.files.presets import opened
from headwater.files.times import TimeForm

AT_S = 1_700_000_000


def read(folder: Path, text: str, *maps: str, name: str = "cases.jsonl") -> Cases:
    (folder / name).write_text(text)
    found = opened(folder / name, "cases", maps)
    return cases_of(found.table, found.chosen, TimeForm())


def test_lines_of_json_have_one_target_or_several_and_ids_of_any_type(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        '{"user_id": "ann", "history": ["tea", 7], "target": "bread"}\n'
        '{"history": [], "target": ["milk", "bread", "milk"]}\n',
    )
    first, second = found.rows
    assert first == Case(
        1,
        "ann",
        ["tea", "7"],
        [MADE_UP_MS, MADE_UP_MS + MADE_UP_GAP_MS],
        MADE_UP_MS + 2 * MADE_UP_GAP_MS,
        ["bread"],
    )
    assert (second.user_id, second.history, second.target) == (None, [], ["milk", "bread"])
    assert not found.bad


def test_times_are_those_of_the_history_and_of_the_question(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        f'{{"history": ["tea", "milk"], "target": "bread", "times": [{AT_S}, {AT_S + 1.5}], "at_ms": {AT_S + 60}}}\n'
        f'{{"history": ["tea"], "target": "bread", "times": [{AT_S}]}}\n',
    )
    assert [row.times for row in found.rows] == [[AT_S * 1000, AT_S * 1000 + 1500], [AT_S * 1000]]
    assert [row.at_ms for row in found.rows] == [(AT_S + 60) * 1000, AT_S * 1000 + MADE_UP_GAP_MS]


@pytest.mark.parametrize("separator", ["|", ";", " "])
def test_columns_hold_lists_between_separators(separator: str, tmp_path: Path) -> None:
    text = f"who,past,target\nann,{separator.join(('tea', 'milk', 'tea'))},bread\nbob,tea,milk\n"
    found = read(tmp_path, text, "user_id=who", "history=past", name="cases.csv")
    assert [(row.user_id, row.history) for row in found.rows] == [
        ("ann", ["tea", "milk", "tea"]),
        ("bob", ["tea"]),
    ]


def test_columns_of_parquet_hold_lists(tmp_path: Path) -> None:
    frame = pl.DataFrame({"sequence": [[1, 2], [3]], "targets": [[4], [5, 6]]})
    frame.write_parquet(tmp_path / "cases.parquet")
    found = opened(tmp_path / "cases.parquet", "cases")
    rows = cases_of(found.table, found.chosen, TimeForm()).rows
    assert [(row.history, row.target) for row in rows] == [(["1", "2"], ["4"]), (["3"], ["5", "6"])]


def test_a_row_that_is_no_case_is_named_by_its_line_and_its_reason(tmp_path: Path) -> None:
    good = '"history": ["tea"], "target": "bread"'
    lines = [
        (f"{{{good}}}", None),
        (
            '{"target": "bread"}',
            'history: missing, expected a list of item ids, such as ["tea", "milk"] or tea|milk',
        ),
        ('{"history": ["tea"], "target": []}', "target: got no item, expected at least one that came next"),
        ('{"history": ["tea", {"id": 1}], "target": "bread"}', "expected a list of item ids"),
        ('{"history": ["tea", ""], "target": "bread"}', "history: got '', expected ids of 1 to 512 bytes"),
        (
            f'{{{good}, "times": [{AT_S}, {AT_S}]}}',
            "times: got 2, expected 1, one for each event of the history",
        ),
        (f'{{{good}, "times": [{AT_S}], "at_ms": {AT_S - 1}}}', "expected a time at or after the last event"),
        (
            '{"history": ["tea", "tea"], "target": "bread", "times": [1700000001, 1700000000]}',
            "expected the oldest first",
        ),
        ("no json", "not JSON"),
    ]
    with_times = [
        line if "times" in line or "history" not in line else f'{line[:-1]}, "times": [{AT_S}]}}'
        for line, _ in lines
    ]
    found = read(tmp_path, "\n".join(with_times))
    assert [row.line for row in found.rows] == [1]
    assert [bad.line for bad in found.bad] == [*range(2, len(lines) + 1)]
    for bad, (_, reason) in zip(found.bad, lines[1:], strict=True):
        assert reason is not None
        assert reason in bad.reason


def test_a_list_that_is_nested_too_deep_to_read_is_a_bad_row(tmp_path: Path) -> None:
    deep = "[" * 5_000 + "]" * 5_000
    rows = f'{{"history": "tea", "target": "milk"}}\n{{"history": "{deep}", "target": "bread"}}\n'
    found = read(tmp_path, rows)
    assert [row.line for row in found.rows] == [1]
    assert "history: got '[[[" in found.bad[0].reason


def test_a_file_without_targets_or_of_a_preset_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ImportFileError, match=r"no column for target.*--map target=COLUMN"):
        read(tmp_path, '{"history": ["tea"]}')
    with pytest.raises(ImportFileError, match="--preset movielens is a format of events"):
        opened(tmp_path / "cases.jsonl", "cases", preset="movielens")
