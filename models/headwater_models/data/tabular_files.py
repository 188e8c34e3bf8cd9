"""Tabular files as tables, and the mapping of their columns to fields."""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import polars as pl

from headwater.errors import HeadwaterError
from headwater.messages import MIN_AT_MS

TimeUnit = Literal["auto", "iso", "seconds", "ms"]


class ImportFileError(HeadwaterError):
    """The file or the mapping cannot be used: one sentence with what is there and what is expected."""


class Fields(NamedTuple):
    """The fields that columns can be mapped to."""

    of: str  # what the rows are, for messages
    names: tuple[str, ...]
    required: tuple[str, ...]
    open_ended: str = ""  # a prefix that allows any name after it


def read(path: Path) -> pl.DataFrame:
    """A file as a table; all columns of CSV files are text. Raises ImportFileError."""
    if not path.is_file():
        near = (
            [other.name for other in sorted(path.parent.glob("*")) if other.is_file()][:20]
            if path.parent.is_dir()
            else []
        )
        there = f"; in {path.parent} there is {', '.join(near)}" if near else ""
        raise ImportFileError(f"{path} is no file: expected a CSV, Parquet or JSON lines file{there}")
    suffix = "".join(path.suffixes).lower().removesuffix(".gz").removesuffix(".zst")
    try:
        if suffix.endswith((".parquet", ".pq")):
            return pl.read_parquet(path)
        if suffix.endswith((".jsonl", ".ndjson", ".json")):
            return pl.read_ndjson(path, infer_schema_length=None)
        if suffix.endswith((".csv", ".tsv", ".txt")):
            separator = "\t" if suffix.endswith(".tsv") else ","
            return pl.read_csv(path, infer_schema=False, separator=separator)
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ImportFileError(f"{path} cannot be read ({reason}): expected what its name says") from error
    raise ImportFileError(
        f"{path}: got the ending {path.suffix or 'none'!r}, expected .csv, .tsv, .parquet, .jsonl or .ndjson"
    )


def mapping(fields: Fields, columns: Sequence[str], given: Iterable[str]) -> dict[str, str]:
    """Field -> column: columns that carry a field's name, overridden by the `field=column` pairs of `given`.

    >>> mapping(Fields("clicks", ("user_id", "item_id"), ("item_id",)), ["user", "item_id"], ["user_id=user"])
    {'item_id': 'item_id', 'user_id': 'user'}

    Raises ImportFileError: a malformed pair, an unknown field or column, or a required field without a column.
    """
    prefix = fields.open_ended

    def fits(name: str) -> bool:
        return name in fields.names or bool(prefix and name.startswith(prefix) and name != prefix)

    found = {name: name for name in columns if fits(name)}
    for pair in given:
        name, equals, column = pair.partition("=")
        if not equals or not name or not column:
            raise ImportFileError(f"--map {pair}: expected field=column, such as --map item_id=sku")
        if not fits(name):
            near = difflib.get_close_matches(name, fields.names, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ImportFileError(
                f"--map {pair}: {name} is no field of {fields.of}{hint}; expected one of {', '.join(fields.names)}"
                + (f" or {prefix}NAME" if prefix else "")
            )
        if column not in columns:
            raise ImportFileError(f"--map {pair}: no column {column}; the file has {', '.join(columns)}")
        found[name] = column
    if missing := [name for name in fields.required if name not in found]:
        raise ImportFileError(
            f"no column for {', '.join(missing)}: the file has {', '.join(columns)}; name it with "
            f"--map {missing[0]}=COLUMN"
        )
    return found


def text(table: pl.DataFrame, column: str, name: str) -> pl.Series:
    """A column as text, renamed to the field; missing values become "".

    Raises ImportFileError: the column's type has no text form.
    """
    source = table[column]
    if source.dtype.is_float():  # ids become floats where some are missing: 7.0 means 7
        whole = source.cast(pl.Int64, strict=False)
        if (whole.cast(pl.Float64) == source).all():
            source = whole
    try:
        return source.cast(pl.String).fill_null("").alias(name)
    except pl.exceptions.PolarsError as error:
        raise ImportFileError(
            f"column {column}: got {source.dtype}, expected text or numbers for {name}"
        ) from error


def at_ms(source: pl.Series, unit: TimeUnit) -> pl.Series:
    """Milliseconds since 1970; null for values that are no time. Times without a zone are UTC.

    With `auto` the column's median decides its unit: seconds stay below 10^11 until the year 5138.
    """
    if isinstance(source.dtype, pl.Datetime | pl.Date):
        return source.cast(pl.Datetime("ms")).dt.epoch("ms")
    number = (
        source.cast(pl.Float64, strict=False)
        if unit != "iso"
        else pl.Series([None] * len(source), dtype=pl.Float64)
    )
    number = number.fill_nan(None)  # a "nan" in a column of dates is no number
    if number.is_not_null().any():
        median = number.median()
        assert isinstance(median, float)
        seconds = unit == "seconds" or (unit == "auto" and abs(median) < MIN_AT_MS)
        scaled = number * 1000.0 if seconds else number
        exact = scaled.round(0).clip(-(2.0**62), 2.0**62).cast(pl.Int64, strict=False)
        if not seconds and source.dtype.is_integer():
            exact = source.cast(pl.Int64, strict=False)
        return exact
    text = source.cast(pl.String).str.strip_chars().str.replace(r"^(\d{4}-\d\d-\d\d)$", "${1}T00:00:00")
    text = text.str.replace(r"^(\d{4}-\d\d-\d\d) ", "${1}T").str.replace(r"(?i)(z| ?utc)$", "+00:00")
    text = text.str.replace(r"([+-]\d\d):?(\d\d)$", "${1}:${2}").str.replace(
        r"^(.{10}T\d\d:\d\d)($|[+-])", "${1}:00${2}"
    )
    zoned = text.str.contains(r"T.*[+-]\d\d:\d\d$").fill_null(False)
    whole = text.zip_with(zoned, text + "+00:00")
    return whole.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%:z", time_unit="ms", strict=False).dt.epoch("ms")
