"""Times of any unit, format and zone; what is no time is null, and spoils no other."""

from datetime import UTC, date, datetime

import polars as pl
import pytest

from headwater.files.contents import ImportFileError
from headwater.files.times import TimeForm, at_ms

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
    ["2023-11-14", "14.11.2023", "20231114", "Nov 14, 2023", "11 14, 2023", 20231114, date(2023, 11, 14)],
)
def test_a_date_is_its_midnight(value: object) -> None:
    assert at_ms(pl.Series([value])).to_list() == [DAY]


def test_an_odd_value_spoils_no_other() -> None:
    texts = pl.Series(["2023-11-14T22:13:20Z"] * 6 + ["0", "soon", None])
    assert at_ms(texts).to_list() == [MS] * 6 + [0, None, None]
    assert at_ms(pl.Series([str(MS), str(MS), "2023-11-14T22:13:20Z"])).to_list() == [MS] * 3


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


@pytest.mark.parametrize("value", [2.0**63, float("inf"), -(2.0**70), "9" * 30, 2**63 - 1])
def test_a_number_that_overflows_is_no_time_of_ours(value: object) -> None:
    (found,) = at_ms(pl.Series([value]), TimeForm("seconds"))
    assert found is None or not 10**11 < found < 2**44
