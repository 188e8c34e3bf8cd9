"""Files become tables row by row: what is no row is named by its line, whatever the container, encoding or form."""

import gzip
import zipfile
from pathlib import Path

import cramjam
import polars as pl
import pytest

from headwater.files.contents import ImportFileError
from headwater.files.delimited import Layout
from headwater.files.table import Table, read

ROWS = [("ann", "x"), ("ben", "y")]
CSV = "user_id,item_id\nann,x\nben,y\n"


def of(folder: Path, content: str | bytes, layout: Layout | None = None) -> Table:
    path = folder / "file"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read(path, layout)


@pytest.mark.parametrize(
    "content",
    [
        CSV,
        CSV.replace(",", ";"),
        CSV.replace(",", "\t"),
        CSV.replace(",", "|"),
        CSV.replace(",", "::"),
        CSV.replace("\n", "\r\n"),
        CSV.replace("\n", "\r"),
        CSV.replace("user_id,", "user_id:token,"),
        '"user_id","item_id"\n"ann","x"\n"ben",y\n',
        "\n" + CSV + "\n\n",
        '{"user_id":"ann","item_id":"x"}\n\n{"user_id":"ben","item_id":"y"}\n',
        '[{"user_id":"ann","item_id":"x"},\n{"user_id":"ben","item_id":"y"}]',
        '{"events": [{"user_id":"ann","item_id":"x"}, {"user_id":"ben","item_id":"y"}]}',
        CSV.encode("utf-8-sig"),
        CSV.encode("utf-16"),
        CSV.encode("utf-16-le"),
        CSV.encode("utf-16-be"),
        gzip.compress(CSV.encode()),
        bytes(cramjam.zstd.compress(CSV.encode())),
    ],
    ids=range(19),
)
def test_a_table_is_read_by_what_the_file_holds(tmp_path: Path, content: str | bytes) -> None:
    found = of(tmp_path, content)
    assert (found.columns, found.frame.rows(), found.bad) == (["user_id", "item_id"], ROWS, [])


def test_parquet_keeps_its_types_and_nested_columns_have_a_dot(tmp_path: Path) -> None:
    path = tmp_path / "file.parquet"
    pl.DataFrame(
        {
            "user": [{"id": 9_007_199_254_740_993}],
            "tags": [["a", "b"]],
            "kind": pl.Series(["x"], dtype=pl.Categorical),
        }
    ).write_parquet(path)
    found = read(path)
    assert found.frame.to_dicts() == [{"user.id": 9_007_199_254_740_993, "tags": '["a","b"]', "kind": "x"}]


def test_an_archive_of_one_file_is_that_file_and_one_of_several_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ml/ratings.csv", CSV)
        archive.writestr("__MACOSX/._ratings.csv", "")
    assert read(path).frame.rows() == ROWS
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("ml/README", "hello")
    with pytest.raises(
        ImportFileError, match=r"2 files: name one of ml/ratings\.csv, ml/README with --member"
    ):
        read(path)
    assert read(path, Layout(member="ratings.csv")).frame.rows() == ROWS


def test_a_file_that_is_not_there_is_named_with_what_is(tmp_path: Path) -> None:
    (tmp_path / "clicks.csv").touch()
    with pytest.raises(ImportFileError, match=r"click\.csv is no file.*there is clicks\.csv"):
        read(tmp_path / "click.csv")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"\x00\xff\xfe{{{" * 10,
        gzip.compress(CSV.encode())[:-9],
        b"PAR1",
        b"PK\x03\x04nothing",
        b"[1, 2",
        b"[1]",
    ],
)
def test_a_file_that_is_no_table_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ImportFileError, match="cannot be read") as caught:
        of(tmp_path, content)
    assert "\n" not in str(caught.value)


def test_a_spreadsheet_is_to_be_saved_as_csv(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w") as archive:
        archive.writestr("[Content_Types].xml", "")
    with pytest.raises(ImportFileError, match="got a spreadsheet, expected it saved as CSV"):
        read(tmp_path / "a.xlsx")


# Rows stand alone


def test_a_line_with_other_fields_is_bad_alone(tmp_path: Path) -> None:
    found = of(tmp_path, "a,b\n1,2\n3,4,5\n6\n\n7,8\n")
    assert found.frame.rows() == [("1", "2"), ("7", "8")]
    assert found.lines.to_list() == [2, 6]
    assert [tuple(row) for row in found.bad] == [
        (3, "got 3 fields, expected 2, as the header has"),
        (4, "got 1 fields, expected 2, as the header has"),
    ]


def test_a_byte_that_is_no_utf8_spoils_its_line_alone(tmp_path: Path) -> None:
    found = of(tmp_path, "a,b\n1,café\n".encode() + b"2,\xff\n3,x\n")
    assert found.frame.rows() == [("1", "café"), ("3", "x")]
    assert found.bad[0].line == 3
    assert found.bad[0].reason.startswith("got the byte 0xff, expected UTF-8")


def test_a_file_of_another_encoding_is_read_in_it_and_that_is_noted(tmp_path: Path) -> None:
    found = of(tmp_path, "a,b\n1,café\n2,crème\n".encode("latin-1"))
    assert found.frame["b"].to_list() == ["café", "crème"]
    assert "windows-1252" in found.notes[0]
    assert of(tmp_path, "a\nż\n".encode("iso-8859-2"), Layout(encoding="iso-8859-2")).frame[
        "a"
    ].to_list() == ["ż"]
    with pytest.raises(ImportFileError, match="--encoding klingon: no such encoding"):
        of(tmp_path, "a\n1\n", Layout(encoding="klingon"))


def test_quotes_are_quotes_where_tables_quote(tmp_path: Path) -> None:
    found = of(tmp_path, 'a,b\n"1, 2","say ""x"""\n3,"two\n\nlines"\n5" pipe,6" pipe\n')
    assert found.frame.rows() == [("1, 2", 'say "x"'), ("3", "two\n\nlines"), ('5" pipe', '6" pipe')]
    assert found.lines.to_list() == [2, 3, 6]


def test_a_quote_that_nobody_closes_swallows_no_row(tmp_path: Path) -> None:
    found = of(tmp_path, 'a,b\n1,"open\n2,x\n3,"y"\n4,"a" b\n')
    assert found.frame.rows() == [("2", "x"), ("3", "y")]
    assert [row.line for row in found.bad] == [2, 5]


def test_a_table_with_tabs_that_does_not_quote_keeps_its_quotes_and_all_rows(tmp_path: Path) -> None:
    found = of(tmp_path, 'a\tb\n1\t"Foo" bar\n2\t"open\n3\tclose"\n4\tx\n')
    assert found.frame["b"].to_list() == ['"Foo" bar', '"open', 'close"', "x"]
    assert "--quote" in found.notes[0]
    quoting = of(tmp_path, 'a\tb\n1\t"x\ty"\n')
    assert quoting.frame["b"].to_list() == ["x\ty"]
    assert of(tmp_path, 'a\tb\n1\t"x"\n', Layout(quote="none")).frame["b"].to_list() == ['"x"']


def test_a_file_without_a_header_is_named(tmp_path: Path) -> None:
    found = of(tmp_path, "1::2::3\n4::5::6\n", Layout(columns=("u", "i", "r")))
    assert (found.columns, found.frame.rows()) == (["u", "i", "r"], [("1", "2", "3"), ("4", "5", "6")])


def test_columns_of_one_name_are_told_apart(tmp_path: Path) -> None:
    assert of(tmp_path, "a,a,\n1,2,3\n").columns == ["a", "a_2", "column_3"]


# JSON


def test_nested_values_have_a_path_and_numbers_keep_their_digits(tmp_path: Path) -> None:
    line = '{"user":{"id":{"$numberLong":"9007199254740993"}},"n":9007199254740993,"tags":["a"],"x":null}'
    found = of(tmp_path, f"{line}\n{line}\n")
    assert found.frame.row(0, named=True) == {
        "user.id": "9007199254740993",
        "n": 9_007_199_254_740_993,
        "tags": '["a"]',
        "x": None,
    }


def test_values_of_several_types_are_text_as_they_were_written(tmp_path: Path) -> None:
    found = of(tmp_path, '[{"a":1},{"a":2},{"a":3.5},{"a":"x"},{"a":true},{"a":{"b":1}}]')
    assert found.frame["a"].to_list() == ["1", "2", "3.5", "x", "true", None]


def test_a_bad_line_of_json_is_bad_alone(tmp_path: Path) -> None:
    found = of(tmp_path, '{"a":1}\nbroken\n{"a":NaN}\n{"a":"\\ud800"}\n7\n{"a":2}\n')
    assert found.frame["a"].to_list() == [1, None, 2]
    assert found.lines.to_list() == [1, 3, 6]
    assert [row.line for row in found.bad] == [2, 4, 5]
    assert found.bad[1].reason == "got half a surrogate pair, expected valid Unicode"
    assert found.bad[2].reason == "got 7, expected a JSON object"
