"""JSON as rows: lines, an array, or one object that holds the rows. Numbers of any size are kept as they are written."""

import ast
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec
import polars as pl

from headwater.files.contents import ImportFileError, Text

Object = dict[str, Any]
Flatten = Callable[[Object], Iterable[Object]]
# Numbers and times of MongoDB's and DynamoDB's exports are objects with one of these keys.
_WRAPPERS: Final = ("$numberLong", "$numberInt", "$numberDouble", "$numberDecimal", "$oid", "$date")
# An object with more keys than this is a table of its own, such as counts by user: it stays one value.
_MAX_KEYS: Final = 2_000
_INT64: Final = range(-(2**63), 2**63)
_DECODER: Final = msgspec.json.Decoder()
_SAMPLE: Final = 20
# What the rows of an answer are called, beside their number and the like.
_ENVELOPES: Final = (
    "data",
    "results",
    "records",
    "rows",
    "hits",
    "docs",
    "objects",
    "value",
    "entries",
    "events",
)
# As Python prints an object: Amazon's metadata of 2014, and with the u of Python 2 Steam's reviews.
_PYTHON: Final = re.compile(r"""\s*\{(u?'|u")""")
_BRACKETS: Final = ("", "[", "]", "];", ",")
_BETWEEN: Final = re.compile(r"[\s,\[\]]*")  # also the end of an array and the begin of the next


class Rows(NamedTuple):
    """The objects of a file with their lines (or their numbers in an array), and what is no object, with the reason."""

    rows: list[Object]
    lines: list[int]
    bad: dict[int, str]
    counted: Literal["line", "row"]


def rows_of(path: Path, text: Text, flatten: Flatten | None = None) -> Rows:
    """The rows of JSON lines, of an array of objects, or of one object with one list of objects.

    Raises:
        ImportFileError: it is none of these.
    """
    numbers = [number for number, line in enumerate(text.lines, 1) if line and not line.isspace()]
    lines = text.lines if len(numbers) == len(text.lines) else [text.lines[number - 1] for number in numbers]
    bad = dict(text.bad)
    values: list[Any]
    first = _decoded(lines[0])
    if isinstance(first, dict) and (len(lines) > 1 or not (_list_in(first) or _of_columns(first))):
        counted: Literal["line", "row"] = "line"
        try:
            values = _DECODER.decode_lines("\n".join(lines))
        except (msgspec.DecodeError, RecursionError):
            values = [_decoded_line(line) for line in lines]
    else:
        counted = "row"
        whole = _decoded("\n".join(text.lines))
        if isinstance(whole, dict):
            whole = _list_in(whole) or _of_columns(whole) or [whole]
        # An array may begin and end on the lines of its objects.
        inner = [lines[0].lstrip().removeprefix("["), *lines[1:]]
        inner[-1] = inner[-1].rstrip().removesuffix("]")
        pairs = [
            (number, line)
            for number, line in zip(numbers, inner, strict=True)
            if line.strip() not in _BRACKETS
        ]
        objects = sum(isinstance(_decoded_line(line), dict) for _, line in pairs[:_SAMPLE])
        if whole == []:
            raise ImportFileError(
                f"{path} cannot be read (it is an empty array): expected an array of objects"
            )
        if isinstance(whole, list):
            values, numbers, bad = whole, list(range(1, len(whole) + 1)), {}
        elif objects and 2 * objects >= len(pairs[:_SAMPLE]):
            # Lines that are objects, some of them damaged; or an array of such lines that has no end.
            counted = "line"
            numbers, values = [number for number, _ in pairs], [_decoded_line(line) for _, line in pairs]
        else:
            values = _until_damage(text.lines)
            numbers, bad = list(range(1, len(values) + 1)), {}
            if len(values) < 2:  # nothing but the damage
                reason = whole.reason if isinstance(whole, _Undecoded) else _reason(whole)
                raise ImportFileError(
                    f"{path} cannot be read ({reason}): expected JSON lines, or an array of objects"
                )
    if not any(isinstance(value, dict) for value in values) and values:
        raise ImportFileError(
            f"{path} cannot be read ({_reason(values[0])}): expected JSON lines, or an array of objects"
        )
    bad |= {
        number: _reason(value)
        for number, value in zip(numbers, values, strict=True)
        if not isinstance(value, dict)
    }
    if bad:
        numbers = [number for number, value in zip(numbers, values, strict=True) if isinstance(value, dict)]
        values = [value for value in values if isinstance(value, dict)]
    if flatten is not None:
        values, numbers = flattened(values, numbers, flatten)
    return Rows(values, numbers, bad, counted)


def flattened(
    rows: Iterable[Object], lines: Iterable[int], flatten: Flatten
) -> tuple[list[Object], list[int]]:
    """The rows that ``flatten`` makes of each object, and the line of each."""
    made = [(each, line) for row, line in zip(rows, lines, strict=True) for each in flatten(row)]
    return [row for row, _ in made], [line for _, line in made]


class _Undecoded(NamedTuple):
    reason: str


def _decoded_line(line: str) -> Any:
    """The value of a line, also with the comma after it that it has in an array."""
    return _decoded(line.rstrip().removesuffix(","))


def _until_damage(lines: Sequence[str]) -> list[Any]:
    """The values of arrays, or values one after another, up to damage, which is the last one."""
    text, place, found = "\n".join(lines), 0, list[Any]()
    decoder = json.JSONDecoder(parse_constant=lambda _: None)
    while (between := _BETWEEN.match(text, place)) and between.end() < len(text):
        try:
            value, place = decoder.raw_decode(text, between.end())
        except (ValueError, RecursionError) as error:
            found.append(_Undecoded(f"not JSON: {error}; what comes after it is not read"))
            break
        found.append(value)
    return found


def _decoded(text: str) -> Any:
    """The value of a JSON text; what is none is returned as the reason."""
    try:
        return _DECODER.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
        if _PYTHON.match(text):
            try:
                # Types that JSON has; a lone half of a surrogate pair or a complex number is none of them.
                return _DECODER.decode(msgspec.json.encode(ast.literal_eval(text)))
            except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
                pass
        if "NaN" in text or "Infinity" in text:  # as Python and pandas write missing numbers
            try:
                return json.loads(text, parse_constant=lambda _: None)
            except (ValueError, RecursionError):
                pass
        lone = any(
            f"\\{mark}" in text.lower() for mark in ("ud8", "ud9", "uda", "udb", "udc", "udd", "ude", "udf")
        )
        return _Undecoded(
            "got half a surrogate pair, expected valid Unicode" if lone else f"not JSON: {error}"
        )


def _reason(value: Any) -> str:
    if isinstance(value, _Undecoded):
        return value.reason
    return f"got {repr(value)[:60]}, expected a JSON object"


def _list_in(value: Object) -> list[Any] | None:
    """The one list of objects in an object: the products of an export, or the results of a page of an interface."""
    lists = {
        name: part
        for name, part in value.items()
        if isinstance(part, list) and part and isinstance(part[0], dict)
    }
    others = [part for part in value.values() if not isinstance(part, list | dict)]
    if len(lists) == 1:
        ((name, found),) = lists.items()
        return found if not others or name.lower() in _ENVELOPES else None
    inner = value.get("data")
    return _list_in(inner) if isinstance(inner, dict) else None


def _of_columns(value: Object) -> list[Any] | None:
    """The rows of a table that is written by columns, as pandas writes them: lists of one length, or objects by row."""
    if (
        value.keys() >= {"columns", "data"}
        and isinstance(value["columns"], list)
        and isinstance(value["data"], list)
    ):
        names = [str(name) for name in value["columns"]]
        return [
            dict(zip(names, row, strict=True)) if isinstance(row, list) and len(row) == len(names) else row
            for row in value["data"]
        ]
    columns = list(value.values())
    if len(columns) < 2:
        return None
    if all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
    if (
        all(isinstance(column, dict) and column.keys() == columns[0].keys() for column in columns)
        and "0" in columns[0]
    ):
        return [{name: column[key] for name, column in value.items()} for key in columns[0]]
    return None


def listed(value: Any) -> list[Any]:
    """A value as a list: itself, nothing for null, or the value alone."""
    return value if isinstance(value, list) else [] if value is None else [value]


def frame_of(rows: Sequence[Object]) -> pl.DataFrame:
    """Objects as columns. Objects in objects become columns with a dot in their names, and lists JSON.

    A column of one type has it; a column of several is text, each value as it was written.
    """
    columns: list[pl.Series] = []
    for key in _keys(rows):
        _add(columns, key, [row.get(key) for row in rows])
    return pl.DataFrame(columns)


def _keys(rows: Iterable[Object | None]) -> list[str]:
    found: dict[str, None] = {}
    for row in rows:
        if row is not None and not row.keys() <= found.keys():
            found.update(dict.fromkeys(row))
    return list(found)


def _add(columns: list[pl.Series], name: str, values: list[Any]) -> None:
    types = set(map(type, values)) - {type(None)}
    if dict in types:
        values = [_unwrapped(value) if type(value) is dict else value for value in values]
        types = set(map(type, values)) - {type(None)}
    if dict in types:
        parts = [value if type(value) is dict else None for value in values]
        keys = _keys(parts)
        if len(keys) <= _MAX_KEYS:
            for key in keys:
                _add(columns, f"{name}.{key}", [None if part is None else part.get(key) for part in parts])
            values = [None if type(value) is dict else value for value in values]
            types = types - {dict}
            if not types:
                return
    if types <= {str}:
        columns.append(pl.Series(name, values, dtype=pl.String))
    elif types == {bool}:
        columns.append(pl.Series(name, values, dtype=pl.Boolean))
    elif types == {float}:
        columns.append(pl.Series(name, values, dtype=pl.Float64))
    elif types == {int} and all(value is None or value in _INT64 for value in values):
        columns.append(pl.Series(name, values, dtype=pl.Int64))
    else:
        columns.append(pl.Series(name, [_text(value) for value in values], dtype=pl.String))


def _unwrapped(value: Object) -> Any:
    if len(value) == 1:
        ((key, inner),) = value.items()
        if key in _WRAPPERS:
            return _unwrapped(inner) if isinstance(inner, dict) else inner
    return value


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) <= 2**53 else repr(value)
    return msgspec.json.encode(value).decode()
