"""A file as a table: named columns, the line of each row, and the lines that are no rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec
import polars as pl

from headwater.files import delimited, json_rows, xml_rows
from headwater.files.contents import EmptyFile, ImportFileError, is_parquet, text_of, unpacked
from headwater.files.delimited import Layout
from headwater.files.values import present

LINE: Final = "__line"  # the column of the lines, where rows are arranged anew


Counted = Literal["line", "row"]


class BadRow(NamedTuple):
    """A row that is not used, with the line it begins on: counted from 1, and the header is a line too.

    In Parquet and JSON arrays it is the number of the row. In a table of several files, `Table.place` says which file's.
    """

    line: int
    reason: str


class Part(NamedTuple):
    """A file of several: its lines are those of the table after ``before``."""

    path: Path
    before: int
    counted: Counted
    columns: list[str]


class Place(NamedTuple):
    """Where a row stands. It reads as "line 7", and where there are several files as "day2.csv line 7"."""

    path: Path
    line: int
    counted: Counted
    alone: bool

    def __str__(self) -> str:
        return f"{self.counted} {self.line}" if self.alone else f"{self.path} {self.counted} {self.line}"


@dataclass(frozen=True)
class Table:
    """The rows of a file, or of several. Columns of text files are text; others have types."""

    path: Path
    frame: pl.DataFrame
    lines: pl.Series  # Int64, one a row
    counted: Counted = "line"
    bad: list[BadRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # how the file was read
    parts: tuple[Part, ...] = ()  # of several files

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return self.frame.columns

    @property
    def rows(self) -> int:
        """All rows, with those that are no rows of the table."""
        return len(self.frame) + len(self.bad)

    @property
    def paths(self) -> list[Path]:
        """The files that it is read from."""
        return [part.path for part in self.parts] or [self.path]

    def place(self, line: int) -> Place:
        """Where a line of the table stands."""
        for part in reversed(self.parts):
            if line > part.before:
                return Place(part.path, line - part.before, part.counted, False)
        return Place(self.path, line, self.counted, True)


def joined(tables: Sequence[Table]) -> Table:
    """Several files as one table. Columns of different types become text, and those that a file does not have are null in it."""
    if len(tables) == 1:
        return tables[0]
    parts, lines, bad, notes, before = list[Part](), list[pl.Series](), list[BadRow](), list[str](), 0
    for table in tables:
        parts.append(Part(table.path, before, table.counted, table.columns))
        lines.append(table.lines + before)
        bad += [BadRow(row.line + before, row.reason) for row in table.bad]
        notes += [f"{table.path.name}: {note}" for note in table.notes]
        before += max([0, *table.lines.tail(1), *(row.line for row in table.bad)])
    names = dict.fromkeys(name for table in tables for name in table.columns)
    columns = [pl.concat(_alike([_column(table, name) for table in tables])) for name in names]
    frame = pl.DataFrame(columns)
    return Table(tables[0].path, frame, pl.concat(lines), tables[0].counted, bad, notes, tuple(parts))


def _column(table: Table, name: str) -> pl.Series:
    if name in table.frame.columns:
        return table.frame[name]
    return pl.Series(name, [None] * len(table.frame), dtype=pl.Null)


def _alike(columns: list[pl.Series]) -> list[pl.Series]:
    """Columns with one type: that of all that have any value, else text."""
    types = {column.dtype for column in columns if column.null_count() < len(column)}
    if all(kind.is_integer() and kind != pl.UInt64 for kind in types) and types:
        types = {pl.Int64()}
    elif types and all(kind.is_float() for kind in types):
        types = {pl.Float64()}
    if len(types) == 1:
        return [column.cast(next(iter(types))) for column in columns]
    texts = [
        column.dt.convert_time_zone("UTC")
        if isinstance(column.dtype, pl.Datetime) and column.dtype.time_zone
        else column
        for column in columns
    ]
    return [present(column) if column.dtype != pl.String else column for column in texts]


def read(path: Path, layout: Layout | None = None, flatten: json_rows.Flatten | None = None) -> Table:
    """A file as a table, by what it holds and not by its name: Parquet, JSON (lines, an array, one object), XML, or separated values.

    Args:
        layout: what is known of the file; the rest is found out.
        flatten: makes rows of each JSON object, where the objects are not the rows.

    Raises:
        ImportFileError: no file, or it is nothing of these.
    """
    layout = layout or Layout()
    raw = unpacked(path, layout.member)
    if is_parquet(raw):
        try:
            frame = pl.read_parquet(raw)
        except pl.exceptions.PolarsError as error:
            reason = str(error).splitlines()[0]
            raise ImportFileError(
                f"{path} cannot be read ({reason}): expected a whole Parquet file"
            ) from error
        numbers = list(range(1, len(frame) + 1))
        if flatten is None:
            return Table(path, _plain(frame), _numbers(numbers), "row")
        rows, numbers = json_rows.flattened(frame.to_dicts(), numbers, flatten)
        return Table(path, json_rows.frame_of(rows), _numbers(numbers), "row")
    if xml_rows.is_xml(raw):
        document = xml_rows.rows_of(path, raw, layout.encoding, flatten)
        return _of_rows(path, document.rows, document.notes)
    text = text_of(path, raw, layout.encoding)
    del raw
    first = next((line for line in text.lines if line.strip()), "")
    if not first and not text.bad:
        raise EmptyFile(f"{path} cannot be read (it is empty): expected a header and rows")
    notes = [] if text.encoding == "utf-8" else [f"read as {text.encoding}; --encoding names another"]
    if first.lstrip()[:1] in ("{", "["):
        return _of_rows(path, json_rows.rows_of(path, text, flatten), notes)
    parsed = delimited.parsed(path, text, layout)
    bad = [BadRow(*each) for each in sorted(parsed.bad.items())]
    return Table(path, parsed.frame, _numbers(parsed.lines), "line", bad, notes + parsed.notes)


def _of_rows(path: Path, found: json_rows.Rows, notes: list[str]) -> Table:
    bad = [BadRow(*each) for each in sorted(found.bad.items())]
    return Table(path, json_rows.frame_of(found.rows), _numbers(found.lines), found.counted, bad, notes)


def _numbers(lines: list[int]) -> pl.Series:
    return pl.Series(lines, dtype=pl.Int64)


def _plain(frame: pl.DataFrame) -> pl.DataFrame:
    """Nested columns by path, as in JSON: structs become columns with a dot in their names, lists become JSON."""
    columns: list[pl.Series] = []
    waiting = frame.get_columns()[::-1]
    while waiting:
        column = waiting.pop()
        if isinstance(column.dtype, pl.Struct):
            parts = column.struct.unnest().get_columns()
            waiting += [part.alias(f"{column.name}.{part.name}") for part in reversed(parts)]
        elif isinstance(column.dtype, pl.List | pl.Array):
            columns.append(
                pl.Series(column.name, [_json(value) for value in column.to_list()], dtype=pl.String)
            )
        elif isinstance(column.dtype, pl.Categorical | pl.Enum):
            columns.append(column.cast(pl.String))
        else:
            columns.append(column)
    return pl.DataFrame(columns)


def _json(value: Any) -> str | None:
    return None if value is None else msgspec.json.encode(value, enc_hook=str).decode()
