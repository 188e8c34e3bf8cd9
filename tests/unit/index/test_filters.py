"""What a request's filter may say, how it is refused, and what it means for one item."""

from typing import Any

import pytest

from headwater.index.filters import (
    MAX_ALL_VALUES,
    MAX_VALUES,
    And,
    AnyOf,
    CostlyFilter,
    FilterError,
    Not,
    Or,
    Range,
    admitting,
    names_available,
    parse,
    size,
)

COFFEE: dict[str, Any] = {
    "item_id": "coffee-1",
    "category": "grocery",
    "tags": ["coffee", "organic"],
    "price": 12.5,
    "available": True,
    "attributes": {"colour": "red", "weight": 500, "fair": True, "sizes": ["S", "M"], "a.b": "dotted"},
}


def test_equality_range_and_logic_are_read_into_a_tree() -> None:
    parsed = parse({"category": "garden", "price": {"gte": 5, "lt": 20}})
    assert parsed == And((AnyOf("category", ("garden",)), Range("price", gte=5.0, lt=20.0)))
    assert parse({"or": [{"tags": {"any": ["a", "b"]}}, {"not": {"available": False}}]}) == Or(
        (AnyOf("tags", ("a", "b")), Not(AnyOf("available", (False,))))
    )


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({}, True),
        ({"category": "grocery"}, True),
        ({"category": "Grocery"}, False),
        ({"item_id": "coffee-1"}, True),
        ({"tags": "organic"}, True),
        ({"tags": {"any": ["tea", "coffee"]}}, True),
        ({"tags": {"any": ["tea", "milk"]}}, False),
        ({"price": 12.5}, True),
        ({"price": {"any": [1, 12.5]}}, True),
        ({"price": {"gte": 12.5, "lte": 12.5}}, True),
        ({"price": {"gt": 12.5}}, False),
        ({"price": {"lt": 12.5}}, False),
        ({"available": True}, True),
        ({"attributes.colour": "red"}, True),
        ({"attributes.weight": 500.0}, True),
        ({"attributes.weight": {"lt": 501}}, True),
        ({"attributes.weight": "500"}, False),
        ({"attributes.fair": True}, True),
        ({"attributes.fair": 1}, False),
        ({"attributes.fair": "true"}, False),
        ({"attributes.sizes": "M"}, True),
        ({"attributes.a.b": "dotted"}, True),
        ({"attributes.missing": "x"}, False),
        ({"not": {"attributes.missing": "x"}}, True),
        ({"category": "grocery", "price": {"gt": 20}}, False),
        ({"or": [{"category": "garden"}, {"price": {"lt": 13}}]}, True),
        ({"and": [{"category": "grocery"}, {"not": {"tags": "tea"}}]}, True),
    ],
)
def test_filter_means(raw: object, expected: bool) -> None:
    assert admitting(parse(raw))(COFFEE) is expected


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"price": "cheap"}, "filter.price: got 'cheap', expected a number or {gte, gt, lt, lte}"),
        ({"price": True}, "filter.price: got true, expected a number or {gte, gt, lt, lte}"),
        ({"price": {"gte": "5"}}, "filter.price.gte: got '5', expected a number"),
        ({"price": {"above": 5}}, "filter.price: got an object with above, expected a number or"),
        ({"price": {}}, "filter.price: got an empty object, expected a number or"),
        ({"price": float("nan")}, "filter.price: got nan, expected a finite number"),
        ({"price": 10**400}, "filter.price: got a number of more than 128 bits, expected a finite number"),
        ({"category": 5}, "filter.category: got 5, expected a text or {any: [...]}"),
        ({"category": None}, "filter.category: got null, expected a text or"),
        ({"category": {"gte": "a"}}, "filter.category: got an object with gte, expected a text or"),
        (
            {"category": {"any": []}},
            "filter.category.any: got a list of 0, expected a list of at least one text",
        ),
        ({"category": {"any": ["a", 5]}}, "filter.category.any[1]: got 5, expected text"),
        ({"category": {"any": ["a"] * 257}}, "filter.category.any: got 257 values, expected at most 256"),
        ({"category": "x" * 513}, "filter.category: got 513 bytes of text, expected at most 512"),
        ({"category": "\ud800"}, "filter.category: got text that is not valid Unicode, expected UTF-8"),
        ({"available": "yes"}, "filter.available: got 'yes', expected true or false"),
        ({"available": {"gte": 0}}, "filter.available: got an object with gte, expected true or false"),
        ({"attributes.x": None}, "filter.attributes.x: got null, expected a text, a number, true, false"),
        (
            {"attributes.x": {"any": ["a", []]}},
            "filter.attributes.x.any[1]: got a list of 0, expected text, number",
        ),
        (
            {"attributes.": "x"},
            "filter.attributes.: unknown field, expected one of item_id, category, tags, price",
        ),
        (
            {"colour": "red"},
            "filter.colour: unknown field, expected one of item_id, category, tags, price, available",
        ),
        ({"or": []}, "filter.or: got a list of 0, expected a list of at least one filter"),
        ({"or": {"category": "a"}}, "filter.or: got an object with category, expected a list"),
        ({"not": {}}, "filter.not: got an empty object, expected an object such as"),
        ({"and": [{"category": "a"}, "b"]}, "filter.and[1]: got 'b', expected an object"),
        (["category"], "filter: got a list of 1, expected an object"),
        ("category", "filter: got 'category', expected an object"),
        (None, "filter: got null, expected an object"),
    ],
)
def test_refusal_names_field_value_and_what_is_allowed(raw: object, message: str) -> None:
    with pytest.raises(FilterError) as refused:
        parse(raw)
    assert str(refused.value).startswith(message)
    assert len(str(refused.value)) < 300


def test_sixty_four_conditions_pass_and_a_thousand_are_refused() -> None:
    parse({"or": [{"category": "a"}] * 64})
    with pytest.raises(FilterError, match="got more than 64 conditions, expected at most 64"):
        parse({"or": [{"category": "a"}] * 1000})


def test_eight_levels_pass_and_ten_thousand_are_refused() -> None:
    def nested(levels: int) -> object:
        raw: object = {"category": "a"}
        for _ in range(levels - 1):
            raw = {"not": raw}
        return raw

    parse(nested(8))
    with pytest.raises(FilterError, match="got more than 8 levels, expected at most 8"):
        parse(nested(10_000))


def test_unavailable_items_are_admitted_only_where_the_filter_speaks_of_it() -> None:
    sold_out = {**COFFEE, "available": False}
    assert admitting(None)(COFFEE)
    assert not admitting(None)(sold_out)
    assert not admitting(parse({"category": "grocery"}))(sold_out)
    assert admitting(parse({"category": "grocery", "available": False}))(sold_out)
    assert admitting(parse({"available": {"any": [True, False]}}))(sold_out)
    deep = parse({"or": [{"category": "garden"}, {"not": {"available": True}}]})
    assert names_available(deep)
    assert admitting(deep)(sold_out)


def test_item_that_says_nothing_of_availability_is_available() -> None:
    assert admitting(None)({"category": "garden"})
    assert admitting(parse({"available": True}))({})


def test_the_values_of_all_conditions_together_are_bounded_before_they_are_looked_at() -> None:
    full = {"tags": {"any": [f"tag {n}" for n in range(MAX_VALUES)]}}
    most = MAX_ALL_VALUES // MAX_VALUES
    where = parse({"or": [full] * most})
    assert size(where) == (most, MAX_ALL_VALUES)
    with pytest.raises(CostlyFilter, match=f"more than {MAX_ALL_VALUES} values"):
        parse({"or": [*[full] * most, {"tags": {"any": [object()]}}]})


def test_the_size_of_a_filter_counts_its_conditions_and_values() -> None:
    assert size(None) == (0, 0)
    where = parse({"not": {"price": {"gt": 1}}, "or": [{"tags": "a"}, {"category": {"any": ["a", "b"]}}]})
    assert size(where) == (3, 4)
