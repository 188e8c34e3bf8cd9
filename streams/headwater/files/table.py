"""A file as a table: named columns, the line of each row, and the lines that are no rows."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import polars as pl

from headwater.files import delimited, json_rows
from headwater.files.contents import ImportFileError, is_parquet, text_of, unpacked
from headwater.files.delimited import Layout


class BadRow(NamedTuple):
    """A row that is not used, with the line it begins on: counted from 1, and the header is a line too.

    In Parquet and JSON arrays it is the number of the row.
    """

    line: int
    reason: str


@dataclass(frozen=True)
class Table:
    """The rows of a file. Columns of text files are text; others have types."""

    path: Path
    frame: pl.DataFrame
    lines: pl.Series  # Int64, one a row
    counted: Literal["line", "row"] = "line"
    bad: list[BadRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # how the file was read

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return self.frame.columns

    @property
    def rows(self) -> int:
        """All rows, with those that are no rows of the table."""
        return len(self.frame) + len(self.bad)


def read(path: Path, layout: Layout | None = None, flatten: json_rows.Flatten | None = None) -> Table:
    """A file as a table, by what it holds and not by its name: Parquet, JSON (lines, an array, one object), or separated values.

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
    text = text_of(path, raw, layout.encoding)
    del raw
    first = next((line for line in text.lines if line.strip()), "")
    if not first and not text.bad:
        raise ImportFileError(f"{path} cannot be read (it is empty): expected a header and rows")
    notes = [] if text.encoding == "utf-8" else [f"read as {text.encoding}; --encoding names another"]
    if first.lstrip()[:1] in ("{", "["):
        found = json_rows.rows_of(path, text, flatten)
        bad = [BadRow(*each) for each in sorted(found.bad.items())]
        return Table(path, json_rows.frame_of(found.rows), _numbers(found.lines), found.counted, bad, notes)
    parsed = delimited.parsed(path, text, layout)
    bad = [BadRow(*each) for each in sorted(parsed.bad.items())]
    return Table(path, parsed.frame, _numbers(parsed.lines), "line", bad, notes + parsed.notes)


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
