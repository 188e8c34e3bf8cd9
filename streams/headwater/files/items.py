"""Items of a file: which rows are catalog entries that a worker takes, and why the others are none."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple

from headwater.files.contents import ImportFileError
from headwater.files.fields import Chosen
from headwater.files.markup import plain
from headwater.files.table import BadRow, Table
from headwater.files.times import TimeForm, read_times
from headwater.files.values import (
    LOST_DIGITS,
    Decimal,
    Read,
    Type,
    attribute,
    flags,
    ids,
    lists,
    numbers,
    present,
    undecided,
    whole_numbers,
)
from headwater.messages import BadMessage, Item, MessageT, decode_item, encode, quoted

_TEXTS = ("title", "description", "category", "image")
_PROSE = ("title", "description", "category")
_EXPECTED = {
    "price": "a number, such as 15.00 or 15.00 USD",
    "version": "a whole number",
    "available": "true or false, in stock or out of stock, or a number of pieces",
    "number": "a number, since most values of the column are",
    "flag": "true or false, since most values of the column are",
}


@dataclass(frozen=True)
class ItemForm:
    """How a file writes items. ``list_separator`` stands between tags."""

    times: TimeForm = field(default_factory=TimeForm)
    decimal: Decimal = "auto"
    list_separator: str = "auto"


class ItemRow(NamedTuple):
    """An item, the line it stands on, and its message."""

    line: int
    item: Item
    message: bytes


class Items(NamedTuple):
    """The rows of a file that are items, in its order, and those that are none.

    Attributes:
        types: of the attributes, by name.
        named: ids of rows that are bad for another reason.
        nameless: the number of rows whose id cannot be told.
    """

    rows: list[ItemRow]
    bad: list[BadRow]
    notes: list[str]
    types: dict[str, Type]
    named: set[str]
    nameless: int


def items_of(table: Table, chosen: Chosen, form: ItemForm) -> Items:
    """The items of a table. The worker's own decoder has the last word on each.

    Raises:
        ImportFileError: a time format is none.
    """
    notes = list[str]()
    found, types = read_fields(table, chosen, form, notes)
    checked = checked_rows(table, chosen.columns, found, types, form, _item)
    rows = [ItemRow(line, item, encode(item)) for line, item in checked.rows]
    if repeated := len(rows) - len({row.item.item_id for row in rows}):
        notes.append(f"{repeated:,} rows name an item again; its last row counts")
    return Items(rows, checked.bad, notes, types, checked.named, checked.nameless)


class Checked(NamedTuple, Generic[MessageT]):
    """Rows that are messages, with their lines, and those that are none; see `Items`."""

    rows: list[tuple[int, MessageT]]
    bad: list[BadRow]
    named: set[str]
    nameless: int


def read_fields(
    table: Table, chosen: Chosen, form: ItemForm, notes: list[str]
) -> tuple[dict[str, Read], dict[str, Type]]:
    """The values of each field that has a column, and the types of the attributes. What is told is added to ``notes``.

    Raises:
        ImportFileError: a time format is none, a column of attributes has no objects, or prices may be read in two ways.
    """
    columns, frame = chosen.columns, table.frame
    found: dict[str, Read] = {"item_id": ids(frame[columns["item_id"]], notes.append)}
    for name in _TEXTS:
        if name in columns:
            text, marked = present(frame[columns[name]]), 0
            if name in _PROSE:
                text, marked = plain(text)
            if marked:
                notes.append(f"{name}: {marked:,} rows are read without their HTML")
            found[name] = Read(text, text)
    if "tags" in columns:
        source = frame[columns["tags"]]
        found["tags"] = Read(lists(source, form.list_separator), present(source))
    if "price" in columns:
        source = frame[columns["price"]]
        if form.decimal == "auto" and (shown := undecided(source)) is not None:
            raise ImportFileError(
                f"prices such as {shown!r} may have decimals or thousands behind their mark: say --decimal . or --decimal ,"
            )
        found["price"] = numbers(source, form.decimal)
    if "version" in columns:
        found["version"] = whole_numbers(frame[columns["version"]])
    for name in ("since_ms", "at_ms"):
        if name in columns:
            source = frame[columns[name]]
            found[name] = read_times(source, form.times)
    if "available" in columns:
        found["available"] = flags(frame[columns["available"]])
    types: dict[str, Type] = {}
    for name, column in columns.items():
        if name.startswith("attributes."):
            found[name], kind = attribute(frame[column], chosen.types.get(name), form.decimal)
            types[name] = kind
    if "attributes" in columns:
        raise ImportFileError(
            f"column {columns['attributes']}: got {frame[columns['attributes']].dtype}, expected an object for attributes; "
            "map single columns with --map attributes.NAME=COLUMN"
        )
    return found, types


def checked_rows(
    table: Table,
    columns: dict[str, str],
    found: dict[str, Read],
    types: dict[str, Type],
    form: ItemForm,
    make: Callable[[dict[str, Any], dict[str, str | float | bool]], MessageT | str],
) -> Checked[MessageT]:
    """The message that ``make`` makes of each row's fields and attributes, or its reason why they make none."""
    problems = _unfit(found, columns, types, form)
    bad, rows, named, nameless = list(table.bad), list[tuple[int, MessageT]](), set[str](), len(table.bad)
    plain = [name for name in found if name not in types]
    values = zip(
        table.lines,
        problems,
        zip(*(found[name].values.to_list() for name in plain), strict=True),
        zip(*(found[name].values.to_list() for name in types), strict=True)
        if types
        else [()] * len(table.frame),
        strict=True,
    )
    names = [name.removeprefix("attributes.") for name in types]
    for line, problem, fields, extra in values:
        if problem is None:
            attributes = {name: value for name, value in zip(names, extra, strict=True) if value is not None}
            stated = {name: value for name, value in zip(plain, fields, strict=True) if value is not None}
            row = make(stated, attributes)
            if not isinstance(row, str):
                rows.append((line, row))
                continue
            problem = row
        bad.append(BadRow(line, problem))
        if fields[0] is not None:
            named.add(fields[0])
        else:
            nameless += 1
    return Checked(rows, sorted(bad), named, nameless)


def _item(fields: dict[str, Any], attributes: dict[str, str | float | bool]) -> Item | str:
    """The item that a worker makes of these fields, or why it makes none."""
    try:
        return decode_item(None, encode(Item(**fields, attributes=attributes)))
    except BadMessage as error:
        return str(error)


def _unfit(
    found: dict[str, Read], columns: dict[str, str], types: dict[str, Type], form: ItemForm
) -> list[str | None]:
    """(rows,) what does not fit in each row, the first field first; None where all fits."""
    problems: list[str | None] = []
    for name, read in found.items():
        unfit = read.unfit if name != "item_id" else read.values.is_null()
        if not problems:
            problems = [None] * len(unfit)
        for place in unfit.arg_true().to_list():
            if problems[place] is None:
                problems[place] = _reason(name, read.shown[place], columns[name], types, form)
    return problems


def _reason(name: str, shown: str | None, column: str, types: dict[str, Type], form: ItemForm) -> str:
    if name == "item_id":
        if shown is None:
            return "item_id: missing, expected an id"
        return f"item_id: got {shown}, {LOST_DIGITS}"
    expected = (
        form.times.expected
        if name.endswith("_ms")
        else _EXPECTED.get(types.get(name, name), "a value of its type")
    )
    reason = f"{name}: got {quoted(shown)}, expected {expected}"
    return f"{reason}; --map {name}={column}:text takes all as text" if name in types else reason
