"""Separated values, line by line: a line that does not fit is named, and the others are read.

Lines without quotes, or with whole quoted fields, go through polars at once. Only records that span lines, and lines that
do not fit, are looked at one by one.
"""

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import polars as pl

from headwater.files.contents import ImportFileError, Text
from headwater.messages import quoted

SEPARATORS: Final = {"tab": "\t", "space": " ", "\\t": "\t", "\\x01": "\x01"}
_CANDIDATES: Final = ("\x01", "\t", "::", ";", ",", "|")  # the first is Hive's
_SAMPLE: Final = 200
# A quoted field may span lines, such as a description; one that is longer than this is a quote that nobody closed.
_MAX_RECORD_CHARS: Final = 2_000_000
_MAX_RECORD_LINES: Final = 2_000
# The type in a column name of RecBole's atomic files.
_ATOMIC: Final = re.compile(r":(token|float|token_seq|float_seq)$")
_UNIT_SEPARATOR: Final = "\x1f"  # stands for a separator of several characters, which polars does not take
# The first line of Excel's own files, which other programs take for the header.
_EXCEL: Final = re.compile(r'^"?sep=(?P<separator>.|\\t)"?\s*$', re.IGNORECASE)


# How exports keep spreadsheets from reading a code as a number: ="007".
_FORMULA: Final = '^="([^"]*)"$'


@dataclass(frozen=True)
class Layout:
    """What is known of a file before it is read; "auto" and None are found out."""

    encoding: str = "auto"
    separator: str = "auto"  # or one of SEPARATORS by name
    quote: str = "auto"  # a character, or "none"
    columns: tuple[str, ...] = ()  # the names of a file without a header
    member: str | None = None  # of a zip archive


class Parsed(NamedTuple):
    """The rows of a file with the lines they begin on, and the lines that are no rows, with the reason."""

    frame: pl.DataFrame
    lines: list[int]
    bad: dict[int, str]
    notes: list[str]


def parsed(path: Path, text: Text, layout: Layout) -> Parsed:
    """The rows of a file of separated values; all columns are text, and empty cells null.

    Raises:
        ImportFileError: a separator or quote that is none, or no header.
    """
    all_lines, notes = text.lines, list[str]()
    first = next((place for place, line in enumerate(all_lines) if line.strip()), 0)
    separator = SEPARATORS.get(layout.separator, layout.separator)
    if excel := _EXCEL.match(all_lines[first]):
        if separator == "auto":
            separator = SEPARATORS.get(excel["separator"], excel["separator"])
        first += 1
    if separator == "auto":
        sample = [line for line in all_lines[first : first + _SAMPLE] if line.strip()]
        separator = _separator_of([line for line in sample if not line.startswith("#")] or sample)
    if not separator:
        raise ImportFileError("--separator is empty: expected a character, ::, tab or space")
    comments = 0 if layout.columns else _comments(all_lines[first : first + _SAMPLE], separator)
    if comments:
        notes.append(f"{comments} lines before the header begin with # and are left out")
    first += comments
    lines = pl.DataFrame({"text": pl.Series(all_lines, dtype=pl.String)}).with_row_index("line", offset=1)
    lines = lines.filter((pl.col("line") > first) & (pl.col("text").str.strip_chars(" \r") != ""))
    if len(separator) > 1:
        lines = lines.with_columns(pl.col("text").str.replace_all(separator, _UNIT_SEPARATOR, literal=True))
    mark = separator if len(separator) == 1 else _UNIT_SEPARATOR
    if layout.quote in ("auto", '"') and mark != " " and _blank_before_quotes(lines["text"], mark):
        lines = lines.with_columns(pl.col("text").str.replace_all(rf'({re.escape(mark)}) +"', '${1}"'))
        all_lines = [re.sub(rf'({re.escape(separator)}) +"', r'\1"', line) for line in all_lines]
    quote = _quote_of(lines["text"], mark) if layout.quote == "auto" else layout.quote
    if quote not in ("", "none") and (len(quote) != 1 or not quote.isascii()):
        raise ImportFileError(f"--quote {quote}: expected one character, or none")
    form = _Form(mark, "" if quote == "none" else quote)
    if form.quote and _escapes(lines["text"], form):
        notes.append(f"\\{form.quote} stands for {form.quote} in a value")
        all_lines = [form.unescaped(line) for line in all_lines]
        lines = lines.with_columns(
            text=pl.Series([form.unescaped(line) for line in lines["text"]], dtype=pl.String)
        )
    quotes = lines["text"].str.replace_all('="[^"]*"', "").str.contains('"', literal=True)
    if not form.quote and quotes.any():
        notes.append("quotes are part of the values; --quote '\"' reads them as quoting")
    bad = dict(text.bad)
    records = _records(lines, all_lines, form, bad)
    header = list(layout.columns)
    if not header:
        if not len(records):
            raise ImportFileError(f"{path} cannot be read (no line is a header): expected a header and rows")
        header = [_ATOMIC.sub("", name.strip()) for name in form.fields(records["text"][0])]
        again = records["text"].str.strip_chars_start("\ufeff") == records["text"][0]
        if (repeated := int(again.sum()) - 1) > 0:
            notes.append(
                f"{repeated:,} lines repeat the header and are left out, as in files that were joined"
            )
        records = records.filter(~again)
    if _ends_with_separator(records, form, len(header)):
        header.append("")
    elif not layout.columns:
        _check_header(path, header, records)
    fitting = records.filter(pl.col("fields") == len(header))
    whose = "--columns names" if layout.columns else "the header has"
    for line, fields in records.filter(pl.col("fields") != len(header)).select("line", "fields").iter_rows():
        bad[line] = f"got {fields} fields, expected {len(header)}, as {whose}"
    names = _unique(header)
    for given, name in zip(header, names, strict=True):
        if given and given != name:
            notes.append(f"the header has {given} more than once; the later one is called {name}")
    frame = _without_formulas(form.frame(fitting["text"], names), notes)
    return Parsed(frame, fitting["line"].to_list(), bad, notes)


def _check_header(path: Path, header: list[str], records: pl.DataFrame) -> None:
    """Raise ImportFileError where the first line is a report's title: it has one field, or as many as no other line, and most have more."""
    usual = records["fields"].head(_SAMPLE).mode().max()
    if not isinstance(usual, int) or usual <= len(header):
        return
    if len(header) == 1 or not (records["fields"] == len(header)).any():
        begin = records.filter(pl.col("fields") == usual)["line"][0]
        raise ImportFileError(
            f"{path} cannot be read: its first line, {quoted(', '.join(header))}, has {len(header)} of the {usual} fields that "
            f"lines from {begin} on have; expected the header first: remove what stands before it, or name the columns with --columns"
        )


def _without_formulas(frame: pl.DataFrame, notes: list[str]) -> pl.DataFrame:
    """The values of formulas that hold nothing but a text."""
    written = [name for name in frame.columns if frame[name].str.contains(_FORMULA).any()]
    notes += [
        f'{name}: values such as ="007" are formulas of a spreadsheet, and are read as 007'
        for name in written
    ]
    return frame.with_columns(pl.col(written).str.replace(_FORMULA, "${1}"))


def _ends_with_separator(records: pl.DataFrame, form: "_Form", fields: int) -> bool:
    """Whether every record has one field more than the header, and it is empty."""
    if not len(records) or not (records["fields"] == fields + 1).all():
        return False
    return bool(records["text"].str.ends_with(form.separator).all())


def _blank_before_quotes(lines: pl.Series, separator: str) -> bool:
    """Whether quoted values have a blank before them, as in ``"a", "b, c"``; where quotes follow separators they have none."""
    mark = re.escape(separator)
    return bool(lines.str.contains(rf'{mark} +"[^"]*"\s*(?:{mark}|$)').any()) and not bool(
        lines.str.contains(rf'{mark}"').any()
    )


def _comments(lines: list[str], separator: str) -> int:
    """How many lines that begin with # stand before the header. Where the header itself begins so, it has its fields."""
    count = next((place for place, line in enumerate(lines) if not line.startswith("#")), 0)
    if not count or _Form(separator, '"').unquoted(lines[count]).count(separator) == 0:
        return 0
    fields = lines[count].count(separator)
    return count if lines[count - 1].count(separator) != fields else count - 1


def _escapes(lines: pl.Series, form: "_Form") -> bool:
    """Whether a quote in a value is written with a backslash before it: lines that are no records are some, read so."""
    mark = f"\\{form.quote}"
    torn = lines.filter(lines.str.contains(mark, literal=True) & ~lines.str.contains(form.whole))
    return bool(torn.str.replace_all(mark, form.quote * 2, literal=True).str.contains(form.whole).any())


def _separator_of(sample: list[str]) -> str:
    """The candidate that gives most sample lines as many fields as the first line has, and the most of these."""
    best, best_score = ",", (0.0, 0)
    for candidate in _CANDIDATES:
        form = _Form(candidate, '"')
        counts = [form.unquoted(line).count(candidate) for line in sample]
        if not counts or not counts[0]:
            continue
        share = sum(count == counts[0] for count in counts) / len(counts)
        # A separator of most lines wins over one that stands in their texts; among equals the one with more fields.
        score = (round(share, 1), counts[0])
        if score > best_score:
            best, best_score = candidate, score
    return best


def _quote_of(lines: pl.Series, separator: str) -> str:
    """Tables with commas or semicolons quote. One with other separators does where most of its opened quotes are closed."""
    form = _Form(separator, '"')
    opening = lines.filter(lines.str.contains(f'(?:^|{form.mark})"'))
    if not len(opening):
        # A database may write '1','tea'. An apostrophe begins few values, and closes none.
        single = _Form(separator, "'")
        opening = lines.filter(lines.str.contains(f"(?:^|{form.mark})'"))
        return "'" if 2 * int(opening.str.contains(single.whole).sum()) > len(lines) else ""
    if separator in (",", ";"):
        return '"'
    return '"' if 2 * opening.str.contains(form.whole).sum() > len(opening) else ""


class _Form:
    """How the records of a table are written: the separator, and the quote or ""."""

    def __init__(self, separator: str, quote: str) -> None:
        self.separator, self.quote = separator, quote
        self.mark = mark = re.escape(separator)
        q = re.escape(quote)
        if not quote:
            return
        q = re.escape(quote)
        self._quoted = f"(^|{mark}){q}(?:[^{q}]|{q}{q})*{q}"
        field = f"(?:{q}(?:[^{q}]|{q}{q})*{q}|[^{q}{mark}][^{mark}]*|)"
        self.whole = f"(?s)^{field}(?:{mark}{field})*$"
        self._open = re.compile(f"(?s)^(?:{field}{mark})*{q}(?:[^{q}]|{q}{q})*$")
        self._whole = re.compile(self.whole)

    def is_whole(self, text: str) -> bool:
        """Whether each field is quoted as a whole, or does not begin with a quote."""
        return self._whole.match(text) is not None

    def unescaped(self, line: str) -> str:
        """A line that is no record as it stands, with its quotes after a backslash doubled instead."""
        mark = f"\\{self.quote}"
        return line.replace(mark, self.quote * 2) if mark in line and not self.is_whole(line) else line

    def is_open(self, text: str) -> bool:
        """Whether the last field begins with a quote that is not closed."""
        return self._open.match(text) is not None

    def unquoted(self, line: str) -> str:
        """The line with its quoted fields empty."""
        return re.sub(self._quoted, r"\1", line) if self.quote and self.quote in line else line

    def counts(self, lines: pl.Series) -> pl.Series:
        """The number of fields of each line, (lines,)."""
        if self.quote:
            lines = lines.str.replace_all(self._quoted, "${1}")
        return lines.str.count_matches(self.separator, literal=True) + 1

    def fields(self, line: str) -> list[str]:
        """The values of one record."""
        if not self.quote:
            return line.split(self.separator)
        return next(csv.reader([line], delimiter=self.separator, quotechar=self.quote))

    def frame(self, records: pl.Series, header: list[str]) -> pl.DataFrame:
        """Records of ``len(header)`` fields each as columns of text."""
        if not len(records):
            return pl.DataFrame(schema=dict.fromkeys(header, pl.String))
        if len(header) == 1 and not self.quote:
            return pl.DataFrame({header[0]: records})
        found = pl.read_csv(
            "\n".join(records.to_list()).encode(),
            has_header=False,
            new_columns=header,
            schema_overrides=[pl.String] * len(header),
            infer_schema=False,
            separator=self.separator,
            quote_char=self.quote or None,
        )
        if found.shape != (len(records), len(header)):
            raise ImportFileError(
                f"got {found.shape[0]} rows of {found.shape[1]} fields from {len(records)} records of {len(header)}: "
                "name --separator and --quote"
            )
        return found


def _records(lines: pl.DataFrame, all_lines: list[str], form: _Form, bad: dict[int, str]) -> pl.DataFrame:
    """Records with the line they begin on and the number of their fields. Lines that are none go to ``bad``."""
    if form.quote:
        quoted = lines["text"].str.contains(form.quote, literal=True)
        whole = ~quoted | lines["text"].str.contains(form.whole)
        if not whole.all():
            lines = _joined(lines, lines.filter(~whole)["line"].to_list(), all_lines, form, bad)
    return lines.with_columns(form.counts(lines["text"]).alias("fields"))


def _joined(
    lines: pl.DataFrame, torn: list[int], all_lines: list[str], form: _Form, bad: dict[int, str]
) -> pl.DataFrame:
    """The records, with those that span lines put together. ``torn`` are the lines that are no record alone."""
    records: dict[int, str] = {}
    parts: list[int] = []
    after = 0
    for line in torn:
        if line < after:
            continue
        text = all_lines[line - 1]
        stop = line  # the line after the record, counted from 0
        while stop < len(all_lines) and stop - line < _MAX_RECORD_LINES and len(text) < _MAX_RECORD_CHARS:
            if not form.is_open(text):
                break
            text += "\n" + all_lines[stop]
            stop += 1
            while stop < len(all_lines) and form.quote not in all_lines[stop - 1]:
                text += "\n" + all_lines[stop]
                stop += 1
            if form.is_whole(text):
                break
        if form.is_whole(text):
            records[line] = text
            parts += range(line, stop + 1)
            after = stop + 1
        else:
            bad[line] = (
                f"got a quote that is not closed, expected {form.quote} at the end of the value, or {form.quote * 2} in it"
            )
            parts.append(line)
    whole = lines.filter(~pl.col("line").is_in(parts))
    spanning = pl.DataFrame(
        {"line": list(records), "text": list(records.values())}, schema={"line": pl.UInt32, "text": pl.String}
    )
    return pl.concat([whole.cast({"line": pl.UInt32}), spanning]).sort("line")


def _unique(header: list[str]) -> list[str]:
    """Column names without repeats: the second price is price_2, a nameless third column column_3."""
    found: list[str] = []
    for place, name in enumerate(header, 1):
        given, again = name or f"column_{place}", 2
        name = given
        while name in found:
            name, again = f"{given}_{again}", again + 1
        found.append(name)
    return found
