"""Times of any unit, format and zone; what is no time is null, and spoils no other."""

from datetime import UTC, date, datetime

import polars as pl
import pytest

from headwater.files.contents import ImportFileError
from headwater.files.times import TimeForm, at_ms, read_times

MS = 1_700_000_000_000  # 2023-11-14 22:13:20 UTC
DAY = 1_699_920_000_000


@pytest.mark.parametrize(
    "value",
    [
        "2023-11-14T22:13:20Z",
        "2023-11-14 22:13:20",
        "2023/11/14 22:13:20",
        "2023-11-14T22:13:20.000+00:00",
        "2023-11-14T22:13:20,000Z",
        "2023-11-14T23:13:20+0100",
        "2023-11-14 22:13:20+00",
        "2023-11-14 22:13:20 UTC",
        " 2023-11-14t22:13:20z ",
        "14.11.2023 22:13:20",
        "14/11/2023 22:13:20",
        "11/14/2023 22:13:20",
        "11/14/2023 10:13:20 PM",
        "Tue, 14 Nov 2023 22:13:20 GMT",
        "Tue Nov 14 22:13:20 2023",
        "14/Nov/2023:23:13:20 +0100",
        "2023-11-14 10:13:20 PM",
        "14.11.2023 10:13:20 pm",
        "11/14/2023 10:13:20 p.m.",
        "11/14/23 10:13:20 PM",
        "14.11.23 22:13:20",
        "14.11.2023, 22:13:20",
        "14.11.2023 22.13.20",
        "14. 11. 2023 22:13:20",
        "14/11/2023, 10:13:20 pm",
        "Nov 14, 2023, 10:13:20 PM",
        "Nov 14, 2023 at 10:13:20 PM",
        "2023年11月14日 22:13:20",
        "2023-11-14 22.13.20",
        "2023-11-14 22:13:20.000000 +0000 UTC",
        "Tue Nov 14 2023 23:13:20 GMT+0100 (Central European Standard Time)",
        "2023-11-14 23:13:20 CET",
        "Tue, 14 Nov 2023 14:13:20 PST",
        "14-NOV-23 10.13.20.000000 PM",
        "20231114T231320+0100",
        "/Date(1700000000000)/",
        "45244.9259259259",
        "45244,9259259259",
        45244.9259259259,
        "20231114221320",
        "1700000000",
        "1700000000.0",
        "1.7e9",
        "1700000000000",
        "1700000000000000",
        "1700000000000000000",
        1_700_000_000,
        1_700_000_000_000,
        1_700_000_000_000_000,
        1_700_000_000.0,
        datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC),
    ],
)
def test_a_time_is_read_as_it_is_written(value: object) -> None:
    assert at_ms(pl.Series([value])).to_list() == [MS]


@pytest.mark.parametrize(
    "value",
    [
        "2023-11-14",
        "14.11.2023",
        "14.11.23",
        "11/14/23",
        "45244",
        45244,
        "20231114",
        "Nov 14, 2023",
        "11 14, 2023",
        20231114,
        date(2023, 11, 14),
    ],
)
def test_a_date_is_its_midnight(value: object) -> None:
    assert at_ms(pl.Series([value])).to_list() == [DAY]


def test_an_odd_value_spoils_no_other() -> None:
    texts = pl.Series(["2023-11-14T22:13:20Z"] * 6 + ["0", "soon", None])
    assert at_ms(texts).to_list() == [MS] * 6 + [0, None, None]
    assert at_ms(pl.Series([str(MS), str(MS), "2023-11-14T22:13:20Z"])).to_list() == [MS] * 3


def test_an_hour_of_one_digit_is_one() -> None:
    assert at_ms(pl.Series(["2023/11/14 2:05", "2023-11-14 2:05:00"])).to_list() == [DAY + 7_500_000] * 2


@pytest.mark.parametrize("mark", ["/", "-", "."])
def test_a_year_of_two_digits_before_or_after_the_day_is_told_by_the_days(mark: str) -> None:
    for written in ("{year}{mark}11{mark}{day}", "{day}{mark}11{mark}{year}"):
        texts = [written.format(mark=mark, year="23", day=f"{day:02d}") for day in range(14, 28)]
        assert at_ms(pl.Series(texts)).to_list() == [DAY + n * 86_400_000 for n in range(14)]


def test_a_year_that_may_be_a_day_is_asked_for() -> None:
    with pytest.raises(
        ImportFileError, match=r"'17/11/25' may begin or end with the year: say --time-format"
    ):
        at_ms(pl.Series(["17/11/25"]))


def test_a_date_among_times_is_its_midnight() -> None:
    assert at_ms(pl.Series(["14.11.2023 22:13:20", "14.11.2023"])).to_list() == [MS, DAY]
    form = TimeForm(pattern="%d/%m/%Y %H:%M:%S")
    assert at_ms(pl.Series(["14/11/2023, 22:13:20", "14/11/2023"]), form).to_list() == [MS, DAY]


def test_a_clock_that_starts_at_0_has_no_days_of_a_spreadsheet() -> None:
    clock = [second * 1_000 for second in range(100)]
    assert read_times(pl.Series(clock), TimeForm()).values.null_count() == len(clock)


def test_a_time_that_a_spreadsheet_shortened_is_none() -> None:
    assert at_ms(pl.Series(["1.51154E+09", "1700000000"])).to_list() == [None, MS]


def test_one_unit_holds_for_the_numbers_of_a_column() -> None:
    assert at_ms(pl.Series([MS, MS + 1, 1_700_000_000])).to_list() == [MS, MS + 1, 1_700_000_000]
    assert at_ms(pl.Series([1_700_000_000]), TimeForm("ms")).to_list() == [1_700_000_000]
    assert at_ms(pl.Series(["1700000000"]), TimeForm("iso")).to_list() == [None]


def test_times_without_a_zone_are_of_the_one_that_is_named() -> None:
    berlin = TimeForm(zone="Europe/Berlin")
    times = pl.Series(["2023-11-14 23:13:20", "2023-11-14T22:13:20Z"])
    assert at_ms(times, berlin).to_list() == [MS, MS]
    with pytest.raises(ImportFileError, match="--timezone Mars: no such zone"):
        TimeForm(zone="Mars")


def test_a_pattern_holds_for_all() -> None:
    assert at_ms(pl.Series(["14|11|23"]), TimeForm(pattern="%d|%m|%y")).to_list() == [DAY]


def test_days_and_months_that_cannot_be_told_apart_are_asked_for() -> None:
    with pytest.raises(
        ImportFileError,
        match=r"'03/04/2023' may begin with the day or the month: say --time-format '%d/%m/%Y'",
    ):
        at_ms(pl.Series(["03/04/2023", "05/06/2023"]))
    assert at_ms(pl.Series(["03/04/2023", "25/06/2023"])).null_count() == 0


def test_later_rows_tell_days_from_months_which_the_first_ones_leave_open() -> None:
    rows = ["03/04/2023"] * 2_500 + ["03/25/2023"]
    march = at_ms(pl.Series(["2023-03-04", "2023-03-25"])).to_list()
    assert at_ms(pl.Series(rows))[[0, -1]].to_list() == march


def test_days_of_a_spreadsheet_are_of_the_zone_that_is_named() -> None:
    berlin = TimeForm(zone="Europe/Berlin")
    assert at_ms(pl.Series([45244.0]), berlin).to_list() == [DAY - 3_600_000]
    # As days since 1970, which nobody asks for, it would be another century.
    assert at_ms(pl.Series([19_675]), TimeForm("excel"))[0] < 0


def test_a_year_of_two_digits_is_of_this_century_and_24_is_no_year() -> None:
    assert at_ms(pl.Series(["14.11.24"]), TimeForm(pattern="%d.%m.%Y")).to_list() == [None]
    with pytest.raises(ImportFileError, match=r"'01/02/24' may begin with the day or the month"):
        at_ms(pl.Series(["01/02/24"]))


@pytest.mark.parametrize("value", ["0", "-1", "1900-01-01", "9" * 14, "2023"])
def test_a_time_that_no_message_may_have_does_not_fit_and_is_shown_as_it_is_written(value: str) -> None:
    read = read_times(pl.Series([value, *["2023-11-14"] * 3]), TimeForm())
    assert read.values.to_list() == [None, DAY, DAY, DAY]
    assert read.shown[0] == value


@pytest.mark.parametrize("value", [2.0**63, float("inf"), -(2.0**70), "9" * 30, 2**63 - 1])
def test_a_number_that_overflows_is_no_time_of_ours(value: object) -> None:
    (found,) = at_ms(pl.Series([value]), TimeForm("seconds"))
    assert found is None or not 10**11 < found < 2**44


def test_a_column_that_has_no_times_is_one_sentence() -> None:
    with pytest.raises(ImportFileError, match=r"column at: got Duration.*, expected times"):
        at_ms(pl.Series("at", [1]).cast(pl.Duration))
