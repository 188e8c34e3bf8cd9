"""Lists in a column as rows of their own: the lines of an order, or the events of a session.

    {"session": 1, "events": [{"aid": 7}, {"aid": 8}]}

is two rows with the columns ``session`` and ``events.aid``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import polars as pl

from headwater.files.json_rows import frame_of
from headwater.files.table import Table
from headwater.files.values import list_of

_SAMPLE: Final = 20


def members(table: Table) -> dict[str, str]:
    """The columns that lists of objects would have as rows, each with the column of the lists; of the first lists only."""
    found = dict[str, str]()
    for column in _columns_of_lists(table):
        sample = table.frame[column].drop_nulls().head(_SAMPLE)
        objects = [each for text in sample for each in list_of(text) or () if isinstance(each, dict)]
        if objects:
            found.update(dict.fromkeys(frame_of([{column: each} for each in objects]).columns, column))
    return found


def _columns_of_lists(table: Table) -> Iterator[str]:
    for column in table.frame:
        if column.dtype == pl.String:
            sample = column.drop_nulls().head(_SAMPLE)
            if len(sample) and 2 * int(sample.str.contains(r"^\s*\[").sum()) > len(sample):
                yield column.name


def holds_lists(table: Table, column: str) -> bool:
    """Whether most values of a column are lists in JSON, or as Python prints them."""
    return column in _columns_of_lists(table)


def unfolded(table: Table, column: str) -> Table:
    """A table with a row for each member of the lists in a column. What is no list, or has no member, is a row without one."""
    places, parts = list[int](), list[Any]()
    for place, text in enumerate(table.frame[column]):
        inside = (list_of(text) if text else None) or [None]
        places += [place] * len(inside)
        parts += inside
    rows = table.frame.drop(column)[places]
    made = frame_of([{column: each} for each in parts])
    return replace(
        table,
        frame=pl.concat([rows, made], how="horizontal"),
        lines=table.lines[places],
        notes=[
            *table.notes,
            f"{column}: the lists of {len(table.frame):,} rows are read as {len(rows):,}, one for each member",
        ],
        parts=tuple(
            part._replace(columns=[*part.columns, *made.columns]) if column in part.columns else part
            for part in table.parts
        ),
    )


def to_unfold(table: Table, named: Sequence[str]) -> str | None:
    """The column of lists whose members are named, such as ``events.aid``; None without one."""
    wanted = [name for name in named if name not in table.columns]
    if not wanted:
        return None
    inside = members(table)
    return next((inside[name] for name in wanted if name in inside), None)
