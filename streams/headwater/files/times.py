"""Times in any unit, date format and zone, as milliseconds since 1970."""

import re
from dataclasses import dataclass
from typing import Final, Literal
from zoneinfo import ZoneInfo

import polars as pl

from headwater.files.contents import ImportFileError
from headwater.files.values import Read, present
from headwater.messages import MAX_AT_MS, MIN_AT_MS

TimeUnit = Literal["auto", "iso", "seconds", "ms", "us", "ns", "excel"]
_MS_IN: Final = {"seconds": 1_000, "ms": 1}
_UNITS_IN_MS: Final = {"us": 1_000, "ns": 1_000_000}
EXPECTED: Final = (
    "a time: ISO, another date format (--time-format), or a number since 1970 (--time), from 1973 on"
)
# Dates as numbers, 20231114 and 20231114221320: as seconds to nanoseconds since 1970 they lie before 1973 or after 2527.
_DAY_NUMBERS: Final = (19_700_101, 21_001_231)
_MOMENT_NUMBERS: Final = (19_700_101_000_000, 21_001_231_235_959)
# Spreadsheets count days from the end of 1899: from 1973 to 2100. As seconds since 1970 they all lie in its first day. Hardly
# any value lies elsewhere, as those of a clock that starts at 0 do.
_EXCEL_DAYS: Final = (26_665.0, 73_415.0)
_EXCEL_SHARE: Final = 0.9
_EXCEL_EPOCH: Final = 25_569  # 1970 in these days
_DAY_MS: Final = 86_400_000
_SAMPLE: Final = 2_000
# Zones by name: those of RFC 822, which mails and feeds have, and central Europe's. Others mean different zones to different people.
_ZONES: Final = {
    "UTC": "+0000", "GMT": "+0000", "UT": "+0000", "Z": "+0000", "EST": "-0500", "EDT": "-0400", "CST": "-0600", "CDT": "-0500",
    "MST": "-0700", "MDT": "-0600", "PST": "-0800", "PDT": "-0700", "CET": "+0100", "CEST": "+0200",
}  # fmt: skip
# Tried on what is no ISO time. Day and month first come in pairs.
_FORMATS: Final = (
    "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y",
    "%d/%m/%Y %H:%M:%S", "%d/%m/%Y %H:%M", "%d/%m/%Y",
    "%m/%d/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%m/%d/%Y",
    "%d/%m/%Y %I:%M:%S %p", "%m/%d/%Y %I:%M:%S %p", "%d/%m/%Y %I:%M %p", "%m/%d/%Y %I:%M %p",
    "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d %I:%M:%S %p", "%Y-%m-%d %I:%M %p", "%d.%m.%Y %I:%M:%S %p", "%d.%m.%Y %I:%M %p",
    "%d.%m.%y %H:%M:%S", "%d.%m.%y %H:%M", "%d.%m.%y",
    "%d/%m/%y %H:%M:%S", "%d/%m/%y %H:%M", "%d/%m/%y", "%m/%d/%y %H:%M:%S", "%m/%d/%y %H:%M", "%m/%d/%y",
    "%d/%m/%y %I:%M:%S %p", "%d/%m/%y %I:%M %p", "%m/%d/%y %I:%M:%S %p", "%m/%d/%y %I:%M %p",
    "%d-%b-%Y %H:%M:%S", "%d-%b-%y %I:%M:%S%.f %p", "%d-%b-%y",
    "%d-%m-%Y %H:%M:%S", "%d-%m-%Y %H:%M", "%d-%m-%Y",
    "%m-%d-%Y %H:%M:%S", "%m-%d-%Y %H:%M", "%m-%d-%Y",
    "%a, %d %b %Y %H:%M:%S", "%d %b %Y %H:%M:%S", "%d %b %Y %H:%M", "%d %b %Y", "%d-%b-%Y",
    "%b %d, %Y %I:%M:%S %p", "%b %d, %Y %I:%M %p", "%b %d, %Y %H:%M:%S", "%b %d, %Y %H:%M", "%b %d, %Y", "%B %d, %Y", "%d %B %Y", "%m %d, %Y",
    "%d-%m-%y %H:%M:%S", "%d-%m-%y %H:%M", "%d-%m-%y", "%m-%d-%y %H:%M:%S", "%m-%d-%y %H:%M", "%m-%d-%y",
    "%y/%m/%d %H:%M:%S", "%y/%m/%d %H:%M", "%y/%m/%d", "%y-%m-%d %H:%M:%S", "%y-%m-%d %H:%M", "%y-%m-%d",
    "%y.%m.%d %H:%M:%S", "%y.%m.%d %H:%M", "%y.%m.%d",
    "%a %b %d %H:%M:%S %Y", "%Y%m%dT%H%M%S", "%Y%m%dT%H%M%SZ",
)  # fmt: skip
_ZONED_FORMATS: Final = (
    "%a, %d %b %Y %H:%M:%S %z",
    "%d/%b/%Y:%H:%M:%S %z",
    "%a %b %d %H:%M:%S %z %Y",
    "%a %b %d %Y %H:%M:%S %z",
    "%d.%m.%Y %H:%M:%S %z",
    "%Y%m%dT%H%M%S%z",
    "%Y-%m-%d %H:%M:%S %z", "%Y-%m-%d %H:%M:%S%.f %z", "%Y-%m-%dT%H:%M:%S %z", "%Y-%m-%d %H:%M %z",
    "%d %b %Y %H:%M:%S %z", "%d.%m.%Y %H:%M %z",
)  # fmt: skip


_SWAPPED: Final = str.maketrans("dm", "md")
_YEAR_LAST: Final = re.compile(r"%[dm]([/.-])%[dm]\1%y")


@dataclass(frozen=True)
class TimeForm:
    """How times are written.

    Attributes:
        unit: ``auto``: dates are found out, and the median decides the unit of numbers. ``excel`` is days of a spreadsheet.
        pattern: a format of strftime for all times, instead.
        zone: of times that name none.
    """

    unit: TimeUnit = "auto"
    pattern: str | None = None
    zone: str = "UTC"

    @property
    def expected(self) -> str:
        """What a time has to be, for messages."""
        return EXPECTED if self.pattern is None else f"a time as --time-format {self.pattern!r} has it"

    def __post_init__(self) -> None:
        try:
            ZoneInfo(self.zone)
        except (KeyError, ValueError, OSError):
            raise ImportFileError(
                f"--timezone {self.zone}: no such zone; expected one such as Europe/Berlin or UTC"
            ) from None


def at_ms(source: pl.Series, form: TimeForm | None = None) -> pl.Series:
    """(rows,) milliseconds since 1970 of a column of any type; null for values that are no time.

    Raises:
        ImportFileError: days and months cannot be told apart, the pattern is none, or the column has no times.
    """
    form = form or TimeForm()
    if isinstance(source.dtype, pl.Date):
        source = source.cast(pl.Datetime("us"))
    if isinstance(source.dtype, pl.Datetime):
        return _epoch_ms(source, form.zone)
    if form.pattern is not None:
        return _in_pattern(_text(source), form.pattern, form.zone)
    if source.dtype.is_integer():
        return _of_numbers(source.cast(pl.Int64, strict=False), form)
    if source.dtype.is_float():
        return _of_floats(source.fill_nan(None), form)
    text = _text(source).str.replace(r"^\\?/Date\((-?\d+)([+-]\d{4})?\)\\?/$", "${1}")  # ASP.NET's JSON
    text = text.str.replace(r"^(\d{5,}),(\d+)$", "${1}.${2}")  # with a decimal comma
    # A spreadsheet's 1.51154E+09 has lost hours.
    is_number = text.str.contains(r"^[+-]?\d+(\.\d*)?(e\+?\d+|E\d+)?$").fill_null(False)
    if is_number.all():
        return _of_number_texts(text, form)
    dates = text.set(is_number, None)
    numbers = text.set(~is_number, None)
    found = pl.Series([None], dtype=pl.Int64).new_from_index(0, len(text))
    if form.unit in ("auto", "iso"):
        found = _of_dates(dates, form.zone)
    if form.unit != "iso" and is_number.any():
        found = found.zip_with(~is_number, _of_number_texts(numbers, form))
    return found


def read_times(source: pl.Series, form: TimeForm) -> Read:
    """:func:`at_ms` with the times as they were written. What no message may have does not fit: before 1973, or after 2527."""
    found = at_ms(source, form)
    return Read(found.set(~found.is_between(MIN_AT_MS, MAX_AT_MS).fill_null(True), None), present(source))


def _text(source: pl.Series) -> pl.Series:
    try:
        return source.cast(pl.String, strict=False).str.strip_chars()
    except pl.exceptions.PolarsError as error:
        raise ImportFileError(f"column {source.name}: got {source.dtype}, expected times") from error


def _epoch_ms(moments: pl.Series, zone: str) -> pl.Series:
    if getattr(moments.dtype, "time_zone", None) is None and zone != "UTC":
        moments = moments.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
    return moments.dt.epoch("ms")


def _of_number_texts(text: pl.Series, form: TimeForm) -> pl.Series:
    whole = text.cast(pl.Int64, strict=False)
    if whole.null_count() == text.null_count():
        return _of_numbers(whole, form)
    return _of_floats(text.cast(pl.Float64, strict=False), form)


def _unit_of(numbers: pl.Series, median: float) -> TimeUnit:
    """Seconds stay below 10^11 until the year 5138, and each finer unit a thousand times that."""
    size = abs(median)
    if float(numbers.drop_nulls().is_between(*_EXCEL_DAYS).mean() or 0) >= _EXCEL_SHARE:  # type: ignore[arg-type]
        return "excel"
    if size < MIN_AT_MS:
        return "seconds"
    if size < MIN_AT_MS * 1e3:
        return "ms"
    return "us" if size < MIN_AT_MS * 1e6 else "ns"


def _of_numbers(numbers: pl.Series, form: TimeForm) -> pl.Series:
    unit = form.unit
    if unit == "iso":
        return pl.Series([None], dtype=pl.Int64).new_from_index(0, len(numbers))
    if unit == "auto":
        days, moments = numbers.is_between(*_DAY_NUMBERS), numbers.is_between(*_MOMENT_NUMBERS)
        known = len(numbers) - numbers.null_count()
        for chosen, pattern in ((days, "%Y%m%d"), (moments, "%Y%m%d%H%M%S")):
            if 2 * int(chosen.sum() or 0) > known:
                text = numbers.set(~chosen.fill_null(False), None).cast(pl.String)
                return _by_pattern(text, pattern, form.zone)
        median = numbers.median()
        if median is None:
            return numbers
        assert isinstance(median, int | float)
        unit = _unit_of(numbers, float(median))
    if unit in _UNITS_IN_MS:
        return numbers // _UNITS_IN_MS[unit]
    if unit == "excel":
        return _of_excel(numbers.cast(pl.Float64), form.zone)
    # What overflows is no time of ours, and must not come out as one.
    bounded = numbers.clip(-(2**52), 2**52)
    return bounded * _MS_IN[unit]


def _of_floats(numbers: pl.Series, form: TimeForm) -> pl.Series:
    numbers = numbers.set(~numbers.is_finite().fill_null(False), None)
    unit = form.unit
    if unit == "auto":
        median = numbers.median()
        if median is None:
            return numbers.cast(pl.Int64)
        assert isinstance(median, float)
        unit = _unit_of(numbers, median)
        if _DAY_NUMBERS[0] <= median <= _DAY_NUMBERS[1] and (numbers.drop_nulls() % 1 == 0).all():
            return _of_numbers(numbers.clip(-1e15, 1e15).cast(pl.Int64, strict=False), form)
    if unit == "iso":
        return pl.Series([None], dtype=pl.Int64).new_from_index(0, len(numbers))
    if unit == "excel":
        return _of_excel(numbers, form.zone)
    scaled = numbers * _MS_IN[unit] if unit in _MS_IN else numbers / _UNITS_IN_MS[unit]
    return scaled.round(0).clip(-(2.0**62), 2.0**62).cast(pl.Int64, strict=False)


def _of_excel(days: pl.Series, zone: str) -> pl.Series:
    """Days since the end of 1899, of the zone. Their fractions are rounded to the millisecond."""
    days = days.set(~days.is_between(0.0, 2 * _EXCEL_DAYS[1]).fill_null(False), None)
    moments = ((days - _EXCEL_EPOCH) * _DAY_MS).round(0).cast(pl.Int64).cast(pl.Datetime("ms"))
    return _epoch_ms(moments, zone)


def _of_dates(text: pl.Series, zone: str) -> pl.Series:
    """ISO times in their many forms, then the other format that most of the rest has."""
    iso = text.str.replace(r"^(\d{4})[-/.年](\d\d?)[-/.月](\d\d?)日?", "${1}-${2}-${3}")
    iso = iso.str.replace(r"^(\d{4}-\d\d?-\d\d?)$", "${1}T00:00:00")
    # Go writes an offset and its name.
    iso = iso.str.replace(r"^(\d{4}-.*[+-]\d\d:?\d\d) [A-Z]{1,5}$", "${1}")
    iso = iso.str.replace(r"^(\d{4}-\d\d?-\d\d?)[ tT]+", "${1}T").str.replace(r"(?i) ?(z|utc|gmt)$", "+00:00")
    iso = iso.str.replace(r"(T[\d:.,]+) ?([+-]\d\d)(?::?(\d\d))?$", "${1}${2}:${3}").str.replace(
        r"([+-]\d\d:)$", "${1}00"
    )
    iso = iso.str.replace(r"(T\d\d?:\d\d)($|[+-])", "${1}:00${2}").str.replace(r"(:\d\d),(\d)", "${1}.${2}")
    zoned = iso.str.contains(r"T.*[+-]\d\d:\d\d$").fill_null(False)
    found = pl.Series([None], dtype=pl.Int64).new_from_index(0, len(text))
    if zoned.any():
        chosen = iso.set(~zoned, None)
        found = chosen.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%:z", time_unit="us", strict=False).dt.epoch("ms")
    if not zoned.all():
        chosen = iso.set(zoned, None)
        naive = chosen.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False)
        found = found.zip_with(zoned, _epoch_ms(naive, zone))
    left = found.is_null() & text.is_not_null()
    if left.any():
        rest = _normal(text.filter(left))
        if pattern := _pattern_of(rest):
            found = found.scatter(left.arg_true(), _in_pattern(rest, pattern, zone))
    return found


def _in_pattern(text: pl.Series, pattern: str, zone: str) -> pl.Series:
    """Times of a pattern, also where they are only alike once they are normal. A date alone is its midnight, which programs leave out."""
    found = _by_pattern(text, pattern, zone)
    if found.null_count() > text.null_count():
        rest = _normal(text)
        found = found.zip_with(found.is_not_null(), _by_pattern(rest, pattern, zone))
        day, clock, _ = pattern.partition(" %I" if " %I" in pattern else " %H")
        if clock and found.null_count() > text.null_count():
            found = found.zip_with(found.is_not_null(), _by_pattern(rest, day, zone))
    return found


def _normal(text: pl.Series) -> pl.Series:
    """Times with the names of zones as offsets, a.m. as AM, colons in the time, and no comma before it."""
    # JavaScript writes GMT+0100 (Central European Standard Time).
    text = text.str.replace(r" \([^()]*\)$", "").str.replace(r" (?:GMT|UTC)([+-]\d{4})$", " ${1}")
    text = text.str.replace(r"(\d),? (?:at )?(\d\d?[:.]\d\d)", "${1} ${2}")
    text = text.str.replace(r" (\d\d?)\.(\d\d)(\.\d\d)?([. ]|$)", " ${1}:${2}${3}${4}")
    text = text.str.replace(r"( \d\d?:\d\d)\.(\d\d)([. ]|$)", "${1}:${2}${3}")
    for name, offset in _ZONES.items():
        text = (
            text.str.replace(rf"(?i)[ ]?\b{name}$", f" {offset}")
            if name != "Z"
            else text.str.replace(r"(\d)[zZ]$", "${1} +0000")
        )
    text = text.str.replace(r"(?i)\b([ap])\.? ?m\.?$", "${1}m").str.replace(r"(\d)([aApP][mM])$", "${1} ${2}")
    # A date that begins with the year, with an offset or half a day behind its time.
    return text.str.replace(r"^(\d{4})[/.](\d\d?)[/.](\d\d?) ", "${1}-${2}-${3} ")


def _pattern_of(text: pl.Series) -> str | None:
    """The format that most of the times have; None where none of them fits any.

    Raises:
        ImportFileError: days, months and years cannot be told apart.
    """
    sample = text.head(_SAMPLE)
    hits = {
        pattern: len(found) - found.null_count()
        for pattern in (*_ZONED_FORMATS, *_FORMATS)
        for found in [_by_pattern(sample, pattern, "UTC")]
    }
    best = max(hits, key=lambda pattern: hits[pattern])
    if not hits[best]:
        return None
    if _YEAR_LAST.match(best) and _begins_with_year(text, best):
        return _YEAR_LAST.sub(r"%y\1%m\1%d", best)
    for day_first, month_first in (("%d/%m/", "%m/%d/"), ("%d-%m-", "%m-%d-")):
        if best.startswith((day_first, month_first)):
            other = best.replace(day_first, "?").replace(month_first, day_first).replace("?", month_first)
            # The first rows may be of the first days of a month only.
            one, two = (_by_pattern(text, pattern, "UTC") for pattern in (best, other))
            if one.equals(two):
                continue
            if one.null_count() == two.null_count():
                shown = text.filter(one.ne_missing(two))[0]
                raise ImportFileError(
                    f"times such as {shown!r} may begin with the day or the month: say "
                    f"--time-format {best!r} or {other!r}"
                )
            best = best if one.null_count() < two.null_count() else other
    return best


def _begins_with_year(text: pl.Series, year_last: str) -> bool:
    """Whether 17/11/25 is of 2017: more of the times are read so, or they lie closer together, since days vary more than years.

    Raises ImportFileError where neither tells; with dots, the day comes first then.
    """
    year_first = _YEAR_LAST.sub(r"%y\1%m\1%d", year_last)
    last, first = (_by_pattern(text, pattern, "UTC") for pattern in (year_last, year_first))
    if last.null_count() != first.null_count():
        return first.null_count() < last.null_count()
    spans = [int(found.max() or 0) - int(found.min() or 0) for found in (last, first)]  # type: ignore[arg-type]
    swapped = _by_pattern(text, year_last.translate(_SWAPPED), "UTC")
    # Where day and month cannot be told apart either, that is asked for.
    unsaid = swapped.equals(last) or swapped.null_count() > last.null_count()
    if spans[0] == spans[1] and unsaid and not last.equals(first) and "." not in year_last[:8]:
        raise ImportFileError(
            f"times such as {text[0]!r} may begin or end with the year: say --time-format {year_last!r} or {year_first!r}"
        )
    return spans[1] < spans[0]


def _by_pattern(text: pl.Series, pattern: str, zone: str) -> pl.Series:
    try:
        if "%H" not in pattern and "%I" not in pattern and "%T" not in pattern and "%s" not in pattern:
            moments = text.str.to_date(pattern, strict=False).cast(pl.Datetime("us"))
        else:
            moments = text.str.to_datetime(pattern, time_unit="us", strict=False)
        # 24 is no year, but is taken for one.
        return _epoch_ms(moments.set((moments.dt.year() < 1000).fill_null(False), None), zone)
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise ImportFileError(
            f"--time-format {pattern}: {reason}; expected one such as '%d.%m.%Y %H:%M'"
        ) from None
