"""Cases of a file: a history and what came next, one a row, and why the other rows are none.

    {"user_id": "ann", "history": ["tea", "milk"], "target": "bread"}
    {"history": ["tea"], "target": ["milk", "bread"], "times": [1700000000], "at_ms": 1700000360}

Lists are JSON arrays, or values between separators.
"""

from itertools import pairwise
from typing import Final, NamedTuple

import polars as pl

from headwater.files.events import MADE_UP_GAP_MS, MADE_UP_MS, NO_TIMES
from headwater.files.fields import Chosen
from headwater.files.table import BadRow, Table
from headwater.files.times import EXPECTED, TimeForm, at_ms
from headwater.files.values import ids, list_of, lists, present
from headwater.messages import MAX_AT_MS, MAX_ID_BYTES, MIN_AT_MS, quoted

_LIST: Final = 'a list of item ids, such as ["tea", "milk"] or tea|milk'


class Case(NamedTuple):
    """One question: the items of a history, oldest first, with their times, and the items that came next."""

    line: int
    user_id: str | None
    history: list[str]
    times: list[int]  # ms, ascending
    at_ms: int  # of the question
    target: list[str]  # each once


class Cases(NamedTuple):
    """The rows of a file that are cases, in its order, and those that are none."""

    rows: list[Case]
    bad: list[BadRow]
    notes: list[str]


def cases_of(table: Table, chosen: Chosen, form: TimeForm) -> Cases:
    """The cases of a table. Without times, events are one minute apart and the question comes a minute after the last.

    Raises:
        ImportFileError: a time format is none.
    """
    columns, frame, notes = chosen.columns, table.frame, list[str]()
    nothing = [None] * len(frame)
    users = ids(frame[columns["user_id"]], notes.append).shown.to_list() if "user_id" in columns else nothing
    history, target = (_lists_of(frame[columns[name]]) for name in ("history", "target"))
    times = _times(frame[columns["times"]], form) if "times" in columns else None
    if times is None:
        notes.append(NO_TIMES)
    asked: list[_Moment] = [_Moment(None, None)] * len(frame)
    if "at_ms" in columns:
        source = frame[columns["at_ms"]]
        read = zip(present(source).to_list(), at_ms(source, form).to_list(), strict=True)
        asked = [_Moment(*each) for each in read]
    rows, bad = list[Case](), list(table.bad)
    each = zip(table.lines.to_list(), users, history, target, times or nothing, asked, strict=True)
    for line, user, had, wanted, own, moment in each:
        try:
            past, next_ = _ids("history", had), _ids("target", wanted)
            if not next_:
                raise _BadCase("target: got no item, expected at least one that came next")
            when = [MADE_UP_MS + MADE_UP_GAP_MS * n for n in range(len(past))]
            if times is not None:
                when = _in_order(own, len(past))
            now_ms = _asked_at(moment, when)
        except _BadCase as error:
            bad.append(BadRow(line, str(error)))
        else:
            rows.append(Case(line, user, past, when, now_ms, list(dict.fromkeys(next_))))
    return Cases(rows, sorted(bad), notes)


class _BadCase(ValueError):
    """Why a row is no case."""


class _Moment(NamedTuple):
    """A time as it was written, None where there is none, and as it was read."""

    shown: str | None
    at_ms: int | None


def _lists_of(source: pl.Series) -> list[list[str] | str | None]:
    """For each row its ids; None where there is no value, and the value itself where it is no list."""
    shown = present(source)
    plain = shown.filter(shown.is_not_null() & ~shown.str.starts_with("[").fill_null(False))
    # Files of sequences often have nothing but blanks between ids.
    blanks = (
        plain.len() > 0 and not plain.str.contains(r"[|;,]").any() and plain.str.contains(r"\S\s\S").any()
    )
    split = lists(shown, " " if blanks else "auto").to_list()
    found: list[list[str] | str | None] = []
    for text, parts in zip(shown.to_list(), split, strict=True):
        found.append(None if text is None else _array(text) if text.lstrip().startswith("[") else parts)
    return found


def _array(text: str) -> list[str] | str:
    """The ids in an array of JSON, or as Python prints it; the text itself where it is none, or holds anything else."""
    values = list_of(text)
    if values is None or not all(isinstance(each, str | int | float) for each in values):
        return text
    # 7.0 went through a table of floats, and was 7.
    return [str(int(each)) if isinstance(each, float) and each.is_integer() else str(each) for each in values]


def _ids(name: str, given: list[str] | str | None) -> list[str]:
    if given is None:
        raise _BadCase(f"{name}: missing, expected {_LIST}")
    if isinstance(given, str):
        raise _BadCase(f"{name}: got {quoted(given)}, expected {_LIST}")
    for each in given:
        if not 0 < len(each.encode()) <= MAX_ID_BYTES:
            raise _BadCase(f"{name}: got {quoted(each)}, expected ids of 1 to {MAX_ID_BYTES} bytes")
    return given


def _times(source: pl.Series, form: TimeForm) -> list[list[int | None] | None]:
    """For each row the times in it, None for what is none; None for what is no list."""
    split = _lists_of(source)
    flat = [part for parts in split if isinstance(parts, list) for part in parts]
    read = iter(at_ms(pl.Series(source.name, flat, dtype=pl.String), form).to_list())
    return [[next(read) for _ in parts] if isinstance(parts, list) else None for parts in split]


def _in_order(times: list[int | None] | None, count: int) -> list[int]:
    """The times of the events of a history."""
    known = [each for each in times or () if each is not None]
    if (times is None and count) or len(known) < len(times or ()):
        raise _BadCase(f"times: expected for each event of the history {EXPECTED}")
    if len(known) != count:
        raise _BadCase(f"times: got {len(known)}, expected {count}, one for each event of the history")
    if any(later < earlier for earlier, later in pairwise(known)):
        raise _BadCase("times: got a later event before an earlier one, expected the oldest first")
    if known and not MIN_AT_MS <= known[0] <= known[-1] <= MAX_AT_MS:
        raise _BadCase(f"times: got {known[0]} to {known[-1]} ms, expected times from 1973 on")
    return known


def _asked_at(moment: _Moment, times: list[int]) -> int:
    """When the question is asked, after these events."""
    last = times[-1] if times else MADE_UP_MS
    if moment.shown is None:
        return last + MADE_UP_GAP_MS
    if moment.at_ms is None or not MIN_AT_MS <= moment.at_ms <= MAX_AT_MS:
        raise _BadCase(f"at_ms: got {quoted(moment.shown)}, expected {EXPECTED}")
    if times and moment.at_ms < last:
        raise _BadCase(
            f"at_ms: got {quoted(moment.shown)}, expected a time at or after the last event of the history"
        )
    return moment.at_ms
