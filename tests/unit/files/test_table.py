"""Files become tables row by row: what is no row is named by its line, whatever the container, encoding or form."""

import bz2
import gzip
import io
import lzma
import os
import sqlite3
import tarfile
import zipfile
from pathlib import Path

import cramjam
import polars as pl
import pytest

from headwater.files.contents import ImportFileError, files_of
from headwater.files.delimited import Layout
from headwater.files.table import Table, joined, read
from headwater.files.times import at_ms

ROWS = [("ann", "x"), ("ben", "y")]
CSV = "user_id,item_id\nann,x\nben,y\n"


def of(folder: Path, content: str | bytes, layout: Layout | None = None) -> Table:
    path = folder / "file"
    encoding = "utf-16" if isinstance(content, str) and 'encoding="utf-16"' in content else "utf-8"
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return read(path, layout)


@pytest.mark.parametrize(
    "content",
    [
        CSV,
        CSV.replace(",", ";"),
        CSV.replace(",", "\t"),
        CSV.replace(",", "|"),
        CSV.replace(",", "::"),
        CSV.replace(",", "\x01"),
        CSV.replace("\n", "\r\n"),
        CSV.replace("\n", "\r\r\n"),
        'user_id,item_id\r\r\n"ann","x"\r\r\n"ben","y"\r\r\n',
        "user_id,item_id\rann,x\nben,y\r\n",
        CSV.encode("utf-32"),
        "{u'user_id': u'ann', u'item_id': 'x'}\n{u'user_id': u'ben', u'item_id': u\"y\"}\n",
        'user_id,item_id\n="ann","=""x"""\n="ben","=""y"""\n',
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
        bz2.compress(CSV.encode()),
        lzma.compress(CSV.encode()),
        gzip.compress(CSV[:8].encode()) + gzip.compress(CSV[8:].encode()),
        "sep=;\r\n" + CSV.replace(",", ";"),
        '"sep=\t"\n' + CSV.replace(",", "\t"),
        "# exported, today\n# by hand\n" + CSV.replace(",", ";"),
        '[{"user_id":"ann","item_id":"x"},\n{"user_id":"ben","item_id":"y"},\n]',
        '{"user_id":"ann","item_id":"x"},\n{"user_id":"ben","item_id":"y"},\n',
        '{"user_id":["ann","ben"],"item_id":["x","y"]}',
        '{"user_id":{"0":"ann","1":"ben"},"item_id":{"0":"x","1":"y"}}',
        '{"columns":["user_id","item_id"],"data":[["ann","x"],["ben","y"]]}',
        '{"count":2,"next":null,"results":[{"user_id":"ann","item_id":"x"},{"user_id":"ben","item_id":"y"}]}',
        '{"status":"ok","data":{"clicks":[{"user_id":"ann","item_id":"x"},{"user_id":"ben","item_id":"y"}]}}',
        '{"user_id":"ann","item_id":"x"}{"user_id":"ben","item_id":"y"}',
        '[{"user_id":"ann","item_id":"x"}]\n[{"user_id":"ben","item_id":"y"}]\n',
        '{\n "user_id":"ann",\n "item_id":"x"\n}\n{\n "user_id":"ben",\n "item_id":"y"\n}\n',
        '"user_id", "item_id"\n"ann", "x"\n"ben", "y"\n',
        "user_id,item_id\n'ann','x'\n'ben','y'\n",
        "<clicks><click><user_id>ann</user_id><item_id>x</item_id></click><click user_id='ben'><item_id>y</item_id></click></clicks>",
        '<?xml version="1.0" encoding="utf-16"?>'
        "<a><row><user_id>ann</user_id><item_id>x</item_id></row><row><user_id>ben</user_id><item_id>y</item_id></row></a>",
    ],
    ids=range(46),
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
        for hidden in ("__MACOSX/._ratings.csv", ".DS_Store", "ml/.DS_Store", "Thumbs.db"):
            archive.writestr(hidden, "")
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


def tar() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.csv"))
    return packed.getvalue()


def database() -> bytes:
    with sqlite3.connect(":memory:") as connection:
        connection.execute("create table clicks (id)")
        return connection.serialize()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (tar(), "a tar archive, expected one of the files in it, unpacked"),
        (database(), "an SQLite database, expected one of its tables exported as CSV"),
        (b"%PDF-1.4\n1 0 obj", "a PDF document"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "a spreadsheet, expected it saved as CSV"),
        (b"<!DOCTYPE html>\n<html><body>404", "a web page, expected the file itself"),
        (
            b"-- MySQL dump\n\nINSERT INTO `clicks` VALUES (1);",
            "SQL statements, expected the table exported as CSV",
        ),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"PK\x05\x06" + bytes(18), "an archive without a file"),
    ],
)
def test_what_people_take_for_a_table_is_called_by_its_name(
    tmp_path: Path, content: bytes, what: str
) -> None:
    with pytest.raises(ImportFileError, match=f"cannot be read: got {what}"):
        of(tmp_path, content)


def test_an_archive_with_a_password_is_one_sentence(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.csv", CSV)
    raw = bytearray(packed.getvalue())
    raw[6] |= 1  # as both headers of the file say it
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(ImportFileError, match=r"a\.csv has a password"):
        of(tmp_path, bytes(raw))


def test_a_gzip_in_a_zip_is_read(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.csv.gz", gzip.compress(CSV.encode()))
    assert of(tmp_path, packed.getvalue()).frame.rows() == ROWS


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


def test_an_encoding_that_is_named_is_not_judged(tmp_path: Path) -> None:
    found = of(tmp_path, b"a,b\n1,caf\xe9\n2,x\n", Layout(encoding="utf-8"))
    assert (found.frame.rows(), [row.line for row in found.bad]) == ([("2", "x")], [2])


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Привет мир", "windows-1251"),
        ("Καλημέρα", "windows-1253"),
        ("绿茶 250 克", "gbk"),
        ("日本語の本", "shift_jis"),
        ("Zażółć gęślą", "windows-1250"),
    ],
)
def test_an_encoding_that_nobody_named_is_asked_for(tmp_path: Path, text: str, encoding: str) -> None:
    raw = f"a,b\n1,{text}\n".encode(encoding)
    with pytest.raises(
        ImportFileError, match=r"as windows-1252 they read .*name its encoding with --encoding"
    ):
        of(tmp_path, raw)
    assert of(tmp_path, raw, Layout(encoding=encoding)).frame["b"].to_list() == [text]


@pytest.mark.parametrize(
    "text", ["Größe: 38 – süß", "créée à Besançon…", "«¿Qué?» 5 m² à 3 €", "Blåbærgrød", "L·lucià", "“Ça”"]
)
def test_western_texts_are_read_without_being_asked_for(tmp_path: Path, text: str) -> None:
    assert of(tmp_path, f"a\tb\n1\t{text}\n".encode("windows-1252")).frame["b"].to_list() == [text]


def test_a_separator_at_the_end_of_each_row_is_no_value(tmp_path: Path) -> None:
    assert of(tmp_path, "a,b\n1,2,\n3,4,\n").frame.rows() == [("1", "2", None), ("3", "4", None)]


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


def test_a_title_before_the_header_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        ImportFileError, match=r"first line, 'Orders of May', has 1 of the 2 fields that lines from 3 on have"
    ):
        of(tmp_path, "Orders of May\n\nuser_id,item_id\nann,x\nben,y\n")
    assert [row.line for row in of(tmp_path, "a,b,c\n1,2,3\n1,2,3,4\n1,2,3,4\n").bad] == [3, 4]


def test_the_header_of_a_file_that_was_joined_is_no_row(tmp_path: Path) -> None:
    found = of(tmp_path, f"{CSV}\ufeff{CSV}")
    assert found.frame.rows() == ROWS * 2
    assert found.notes == ["1 lines repeat the header and are left out, as in files that were joined"]


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


def test_a_nul_byte_spoils_its_line_alone(tmp_path: Path) -> None:
    found = of(tmp_path, "a,b\n1,x\0y\n2,z\n")
    assert found.frame.rows() == [("2", "z")]
    assert [tuple(row) for row in found.bad] == [(2, "got a NUL byte, expected text")]
    assert of(tmp_path, "a,b\n1,x\0y\n2,z\n".encode("utf-16")).bad == found.bad


def test_half_a_surrogate_pair_as_python_prints_it_is_bad_alone(tmp_path: Path) -> None:
    found = of(tmp_path, "{'a': 'x'}\n{'a': '\\ud800'}\n{'a': 1j}\n")
    assert (found.frame.rows(), [row.line for row in found.bad]) == ([("x",)], [2, 3])


def test_a_carriage_return_in_a_quoted_value_ends_no_line(tmp_path: Path) -> None:
    assert of(tmp_path, 'a,b\n1,"x\ry"\n').frame.rows() == [("1", "x\ry")]


def test_a_code_that_is_kept_from_spreadsheets_is_told(tmp_path: Path) -> None:
    found = of(tmp_path, 'a,b\n="007",<a href="x">\n')
    assert found.frame.rows() == [("007", '<a href="x">')]
    assert found.notes == ['a: values such as ="007" are formulas of a spreadsheet, and are read as 007']


def test_a_backslash_before_a_quote_is_read_as_it_was_meant(tmp_path: Path) -> None:
    found = of(tmp_path, 'a,b\n1,"19\\" wide"\n2,"C:\\"\n')
    assert found.frame.rows()[0] == ("1", '19" wide')
    assert of(tmp_path, 'a,b\n1,"C:\\"\n2,"19"" wide"\n').frame.rows() == [("1", "C:\\"), ("2", '19" wide')]


def test_a_column_that_is_named_twice_is_told(tmp_path: Path) -> None:
    found = of(tmp_path, "item_id,price,price\na,1,2\n")
    assert found.columns == ["item_id", "price", "price_2"]
    assert found.notes == ["the header has price more than once; the later one is called price_2"]


@pytest.mark.parametrize(
    ("content", "bad"),
    [
        ('{"a":1}\n\n{"a":2},\n{"a', (4, "not JSON: Input data was truncated")),
        ('[\n{"a":1},\n{"a":2},\n{"a', (4, "not JSON: Input data was truncated")),
        ('[{"a":1},{"a":2},{"a', (3, "not JSON: Unterminated string")),
        ('[\n  {\n    "a": 1\n  },\n  {\n    "a": 2\n  },\n  {\n    "a": ', (3, "not JSON: Expecting value")),
    ],
)
def test_json_that_is_cut_keeps_what_comes_before(tmp_path: Path, content: str, bad: tuple[int, str]) -> None:
    found = of(tmp_path, content)
    assert found.frame["a"].to_list() == [1, 2]
    [row] = found.bad
    assert row.line == bad[0]
    assert row.reason.startswith(bad[1])


# XML


def test_an_element_has_its_parts_attributes_and_lists(tmp_path: Path) -> None:
    offer = (
        '<offer id="7" available="true"><name>Tea</name><price currency="EUR">2</price><picture>a</picture><picture>b</picture>'
        '<param name="Size">M</param><param name="Colour">red</param><dim><w>1</w><h>2</h></dim><empty/></offer>'
    )
    found = of(
        tmp_path,
        f"<shop>\n<categories><category id='1'>Food</category><category id='2'>Tea</category></categories>\n<offers>{offer}</offers></shop>",
    )
    assert found.frame.to_dicts() == [
        {
            "id": "7", "available": "true", "name": "Tea", "price": "2", "price.currency": "EUR", "picture": '["a","b"]',
            "param.Size": "M", "param.Colour": "red", "dim.w": "1", "dim.h": "2", "empty": None,
        }
    ]  # fmt: skip
    assert found.lines.to_list() == [3]


def test_xml_that_is_cut_keeps_the_rows_before_and_names_the_line(tmp_path: Path) -> None:
    found = of(tmp_path, "<a>\n<row><id>1</id></row>\n<row><id>2</id></row>\n<row><id>3</i")
    assert found.frame.to_dicts() == [{"id": "1"}, {"id": "2"}]
    assert [tuple(row) for row in found.bad] == [
        (4, "not XML: unclosed token; what comes after it in the document is not read")
    ]


def test_an_ampersand_that_is_not_escaped_is_mended(tmp_path: Path) -> None:
    found = of(
        tmp_path, "<a><row><id>1</id><t>B&B &amp; tea\x0b</t></row><row><id>2</id><t>&nbsp;</t></row></a>"
    )
    assert found.frame["t"].to_list() == ["B&B & tea", "&nbsp;"]
    (note,) = found.notes
    assert note.startswith("damage is mended: ampersands")
    latin = b"<a>\n<row><id>1</id><t>K\xe4se</t></row>\n<row><id>2</id><t>K\xc3\xa4se</t></row></a>"
    assert of(tmp_path, latin).frame["t"].to_list() == ["Käse", "Käse"]


def test_entities_and_depth_are_refused(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE a [<!ENTITY x "aaaa"><!ENTITY y "&x;&x;">]><a><row><id>&y;</id></row></a>'
    with pytest.raises(ImportFileError, match="got a document that declares entities"):
        of(tmp_path, bomb)
    outside = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a><row><id>&x;</id></row></a>'
    with pytest.raises(ImportFileError, match="got a document that declares entities"):
        of(tmp_path, outside)
    with pytest.raises(ImportFileError, match="elements in more than 64 others"):
        of(tmp_path, "<a>" * 100)
    with pytest.raises(ImportFileError, match="no element with others in it is there twice"):
        of(tmp_path, "<a><b>1</b></a>")


# Several files


def test_files_of_several_days_are_one_table_that_knows_where_each_row_stands(tmp_path: Path) -> None:
    days = tmp_path / "days"
    (days / "later").mkdir(parents=True)
    (days / "1.csv").write_text("user_id,price\n7.0,1\n8.0\n")
    pl.DataFrame({"user_id": [7, 8], "extra": [True, False]}).write_parquet(days / "later" / "2.parquet")
    (days / "3.jsonl").write_text('{"user_id": "guest", "price": 2.5}\n')
    for ignored in ("_SUCCESS", ".hidden"):
        (days / ignored).write_text("x")
    paths = files_of(days)
    assert [path.name for path in paths] == ["1.csv", "3.jsonl", "2.parquet"]
    assert files_of([days / "1.csv", days / "*.csv", days / "1.csv"]) == [days / "1.csv"]
    table = joined([read(path) for path in paths])
    assert table.frame.rows() == [
        ("7.0", "1", None), ("guest", "2.5", None), ("7", None, True), ("8", None, False),
    ]  # fmt: skip
    assert [str(table.place(line)) for line in table.lines] == [
        f"{days / '1.csv'} line 2", f"{days / '3.jsonl'} line 1",
        f"{days / 'later' / '2.parquet'} row 1", f"{days / 'later' / '2.parquet'} row 2",
    ]  # fmt: skip
    assert [str(table.place(row.line)) for row in table.bad] == [f"{days / '1.csv'} line 3"]


def test_times_and_numbers_of_several_files_keep_their_type_where_they_share_it(tmp_path: Path) -> None:
    for name, unit, size in (("a", "ms", pl.Int32), ("b", "us", pl.Int64)):
        pl.DataFrame(
            {"at": pl.Series([0]).cast(pl.Datetime(unit, "Europe/Berlin")), "n": pl.Series([1], dtype=size)}
        ).write_parquet(tmp_path / name)
    table = joined([read(tmp_path / "a"), read(tmp_path / "b")])
    assert table.frame["n"].to_list() == [1, 1]
    assert at_ms(table.frame["at"]).to_list() == [0, 0]


def test_a_folder_or_a_pattern_without_a_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ImportFileError, match="is a folder without a file"):
        files_of(tmp_path)
    with pytest.raises(ImportFileError, match="is a pattern without a file"):
        files_of(tmp_path / "*.csv")


def test_a_link_to_itself_and_a_pipe_are_one_sentence(tmp_path: Path) -> None:
    loop, pipe = tmp_path / "loop", tmp_path / "pipe"
    loop.symlink_to(loop)
    os.mkfifo(pipe)
    with pytest.raises(ImportFileError, match="loop is no file"):
        read(files_of(loop)[0])
    with pytest.raises(ImportFileError, match="is a pipe"):
        read(pipe)
