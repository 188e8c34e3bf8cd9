"""Values are read by what most of a column is; one that does not fit is told apart, and spoils no other."""

import polars as pl
import pytest

from headwater.files.values import attribute, flags, ids, lists, numbers, undecided, whole_numbers


@pytest.mark.parametrize("word", ["", " ", "nan", "NaN", "NULL", "None", "<NA>", "N/A", r"\N"])
def test_words_for_nothing_are_missing(word: str) -> None:
    assert ids(pl.Series(["ann", word])).shown.to_list() == ["ann", None]


def test_ids_keep_what_they_are() -> None:
    assert ids(pl.Series(["007", "1.50"])).values.to_list() == ["007", "1.50"]
    assert ids(pl.Series([9_007_199_254_740_993])).values.to_list() == ["9007199254740993"]
    assert ids(pl.Series([1.0, 2.0, 3.5, None])).values.to_list() == ["1", "2", "3.5", None]
    notes: list[str] = []
    assert ids(pl.Series("u", ["1.0", "2", "3", "x"]), notes.append).values.to_list() == ["1", "2", "3", "x"]
    assert notes == ["u: 1 ids written as floats are read as whole numbers"]


def test_a_float_that_lost_digits_is_no_id() -> None:
    found = ids(pl.Series([1.0, 2.0**53 + 2]))
    assert found.unfit.to_list() == [False, True]
    shortened = ids(pl.Series(["8.71235E+12", "8,71235E+12", "1E+05", "1.2345678E17", "8712350000000"]))
    assert shortened.unfit.to_list() == [True, True, True, True, False]


def test_whole_numbers_that_went_through_floats_are_whole_again() -> None:
    assert ids(pl.Series(["1.2345678E7", "1e+05", "100001"])).values.to_list() == [
        "12345678",
        "100000",
        "100001",
    ]
    codes = ["1e5", "3f2", "12e", "1.5E2x"]
    assert ids(pl.Series(codes)).values.to_list() == codes


def test_what_r_does_not_have_is_missing_but_in_texts() -> None:
    assert ids(pl.Series(["NA", "na"])).shown.to_list() == [None, "na"]
    assert numbers(pl.Series(["NA", "1"])).unfit.to_list() == [False, False]
    assert attribute(pl.Series(["NA", "DE"]))[0].values.to_list() == ["NA", "DE"]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("15.00 USD", 15),
        ("USD 15.00", 15),
        ("$1,234.50", 1234.5),
        ("15,00 €", 15),
        ("1.234,56", 1234.56),
        ("1'234.50", 1234.5),
        ("1 234,50 zł", 1234.5),
        ("1e3", 1000),
        ("-2", -2),
        ("1,234", 1234),
        (".5", 0.5),
        ("CHF 12.-", 12),
        ("12,– €", 12),
        ("₹1,29,999.00", 129999),
        ("12 Euro", 12),
        ("US$5", 5),
        ("cheap", None),
        ("1.2.3", None),
        ("1 - 2", None),
        ("inf", None),
    ],
)
def test_a_price_is_read_as_shops_write_it(written: str, value: float | None) -> None:
    found = numbers(pl.Series([written]))
    assert found.values.to_list() == [value]
    assert found.unfit.to_list() == [value is None]


def test_most_values_say_what_the_decimal_mark_is() -> None:
    assert numbers(pl.Series(["1,5", "2,25", "1,234"])).values.to_list() == [1.5, 2.25, 1.234]
    assert numbers(pl.Series(["1.5", "1,234", "x"])).values.to_list() == [1.5, 1234, None]
    assert numbers(pl.Series(["1,234"]), ",").values.to_list() == [1.234]


@pytest.mark.parametrize(
    ("column", "shown"),
    [
        (["1.299", "5", "2.500"], "1.299"),
        (["1,299 €", "x"], "1,299 €"),
        (["1.299", "5.5"], None),
        (["1.299,00", "2.500"], None),
        (["1.299", "1.299.000"], None),
        (["$1,299", "$5"], None),
        (["0.299"], None),
        (["12", "x"], None),
        ([1.299], None),
    ],
)
def test_a_mark_of_decimals_or_thousands_is_asked_for_where_no_value_tells(
    column: list[object], shown: str | None
) -> None:
    assert undecided(pl.Series(column)) == shown


def test_ids_lose_the_blanks_around_them_and_that_is_noted() -> None:
    notes: list[str] = []
    read = ids(pl.Series("u", [" ann", "ann\u00a0", "a b", "\u200b", "\ufeff7.0 ", "8", "9"]), notes.append)
    assert read.values.to_list() == ["ann", "ann", "a b", None, "7.0", "8", "9"]
    assert notes == ["u: 4 ids are read without the blanks around them"]


def test_ids_of_one_file_that_another_has_as_floats_are_the_same_ids() -> None:
    of_both = pl.Series(["7.0", "8.0", "7", "8", "guest", "x1", "x2", "x3", "x4", "x5"])
    assert ids(of_both).values.head(4).to_list() == ["7", "8", "7", "8"]
    assert ids(pl.Series(["1.0", "2.0", "a", "b", "c", "d"])).values[0] == "1.0"


def test_an_endless_number_is_no_price() -> None:
    assert numbers(pl.Series([1.0, float("inf"), float("nan")])).unfit.to_list() == [False, True, False]


def test_whole_numbers_are_exact() -> None:
    assert whole_numbers(pl.Series(["9007199254740993", "3.0", "x", ""])).values.to_list() == [
        2**53 + 1,
        3,
        None,
        None,
    ]


def test_availability_is_read_in_the_words_of_shops() -> None:
    words = [
        "true",
        "In Stock",
        "in_stock",
        "https://schema.org/InStock",
        "preorder",
        "5",
        "no",
        "out of stock",
        "0",
        "-1",
        "maybe",
        "",
    ]
    assert (
        flags(pl.Series(["Ja", "nein", "WAHR", "ausverkauft", "oui", "non"])).values.to_list()
        == [True, False] * 3
    )
    found = flags(pl.Series(words))
    assert found.values.to_list() == [True] * 6 + [False] * 4 + [None, None]
    assert found.unfit.arg_true().to_list() == [10]


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("a| b |", ["a", "b"]),
        ("a, b", ["a", "b"]),
        ("a; b, c", ["a", "b, c"]),
        ('["a", "b"]', ["a", "b"]),
        ("['a', 'b']", ["a", "b"]),
        ('[["x", "a"], ["b"]]', ["x", "a", "b"]),
        ('[{"id": 1, "name": "a"}]', ["a"]),
        (None, []),
    ],
)
def test_tags_are_lists_however_they_are_written(written: str | None, found: list[str]) -> None:
    assert lists(pl.Series([written], dtype=pl.String)).to_list() == [found]


@pytest.mark.parametrize(
    ("column", "kind", "values"),
    [
        (["1.5", "2", "heavy"], "number", [1.5, 2.0, None]),
        (["38", "XL"], "text", ["38", "XL"]),
        (["38", "40", "007"], "text", ["38", "40", "007"]),
        (["true", "False", None], "flag", [True, False, None]),
        (["12345678901234567", "1"], "text", ["12345678901234567", "1"]),
        ([3, 4], "number", [3.0, 4.0]),
        ([2**53 + 1], "text", ["9007199254740993"]),
        ([True], "flag", [True]),
        (["1,5", "2,5"], "number", [1.5, 2.5]),
        (["Yes", "no", "yes"], "flag", [True, False, True]),
        (["no", "no", "sv"], "text", ["no", "no", "sv"]),
        (['["a","b"]'], "text", ["a, b"]),
    ],
)
def test_an_attribute_has_the_type_of_most_of_its_values(
    column: list[object], kind: str, values: list[object]
) -> None:
    found, chosen = attribute(pl.Series(column))
    assert (chosen, found.values.to_list()) == (kind, values)


def test_the_type_of_an_attribute_can_be_named() -> None:
    assert attribute(pl.Series(["38", "40"]), "text")[0].values.to_list() == ["38", "40"]
    assert attribute(pl.Series(["38", "XL"]), "number")[0].unfit.to_list() == [False, True]
