"""Files become tables and columns become fields, or one sentence says why not."""

from pathlib import Path

import polars as pl
import pytest

from headwater_models.data.tabular_files import Fields, ImportFileError, at_ms, mapping, read, text

CLICKS = Fields("clicks", ("user_id", "item_id", "at_ms"), required=("user_id", "item_id"))
MS = 1_700_000_000_000


def test_a_csv_is_read_as_text(tmp_path: Path) -> None:
    (tmp_path / "clicks.csv").write_text("user_id,item_id\n007,1\n")
    assert read(tmp_path / "clicks.csv").rows() == [("007", "1")]


def test_a_missing_file_is_told_with_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "clicks.csv").write_text("")
    with pytest.raises(ImportFileError, match=r"is no file: .*clicks\.csv"):
        read(tmp_path / "click.csv")


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clicks.xlsx").write_text("")
    with pytest.raises(ImportFileError, match=r"got the ending '\.xlsx'"):
        read(tmp_path / "clicks.xlsx")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("user_id", "expected field=column"),
        ("usr_id=user", r"did you mean user_id\?"),
        ("user_id=nobody", "no column nobody"),
        ("at_ms=user", "no column for user_id"),
    ],
)
def test_a_wrong_mapping_is_told(given: str, said: str) -> None:
    with pytest.raises(ImportFileError, match=said):
        mapping(CLICKS, ["user", "item_id"], [given])


def test_ids_that_went_through_floats_are_whole_again() -> None:
    table = pl.DataFrame({"item": [7.0, None]})
    assert text(table, "item", "item_id").to_list() == ["7", ""]


@pytest.mark.parametrize(
    "value", [MS, MS // 1000, "2023-11-14T22:13:20Z", "2023-11-14 22:13:20", "2023-11-14T23:13:20+01:00"]
)
def test_times_are_read_in_their_unit(value: int | str) -> None:
    assert at_ms(pl.Series([value]), "auto").to_list() == [MS]


def test_what_is_no_time_is_null() -> None:
    assert at_ms(pl.Series(["soon", "2023-11-14T22:13:20Z"]), "auto").to_list() == [None, MS]
