"""Columns are mapped by name and by hand; a mapping that does not fit says what is there."""

import pytest

from headwater.files.contents import ImportFileError
from headwater.files.fields import CATALOG, CLICKS, mapping, overlooked


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            [],
            r"no column for user_id, at_ms: the file has who, item_id, when; .*--map user_id=COLUMN.*--columns",
        ),
        (["user_id=wo"], r"no column wo; the file has who, item_id, when"),
        (["usr_id=who"], r"usr_id is no field of clicks \(did you mean user_id\?\)"),
        (["user_id"], r"expected field=column"),
        (["user_id=who:number"], r"got number, but user_id is always text; leave :number out"),
        (["user_id=who:string"], r"no type string; expected text, number, flag, list, time"),
    ],
)
def test_a_mapping_that_does_not_fit_says_what_is_there(given: list[str], reason: str) -> None:
    with pytest.raises(ImportFileError, match=reason):
        mapping(CLICKS, ["who", "item_id", "when"], given)


def test_types_can_be_named_and_a_colon_may_be_part_of_a_name() -> None:
    chosen = mapping(
        CATALOG,
        ["sku", "cost", "a:b"],
        ["item_id=sku", "price=cost:number", "attributes.x=a:b", "attributes.y=cost:text"],
    )
    assert chosen.columns == {
        "item_id": "sku",
        "price": "cost",
        "attributes.x": "a:b",
        "attributes.y": "cost",
    }
    assert chosen.types == {"price": "number", "attributes.y": "text"}


def test_usual_columns_are_found_and_what_is_given_wins() -> None:
    usual = {"item_id": ("id", "sku"), "title": ("name",)}
    assert mapping(CATALOG, ["sku", "name", "label"], ["title=label"], usual).columns == {
        "item_id": "sku",
        "title": "label",
    }


def test_a_field_is_known_by_its_letters_and_what_shops_call_it_is_a_hint() -> None:
    assert mapping(CLICKS, ["User_ID", "itemId", "At ms"], []).columns == {
        "user_id": "User_ID",
        "item_id": "itemId",
        "at_ms": "At ms",
    }
    assert mapping(CLICKS, ["USER_ID", "user_id", "item_id", "at_ms"], []).columns["user_id"] == "user_id"
    with pytest.raises(
        ImportFileError,
        match=r"perhaps --map user_id=customerId --map item_id=sku --map 'at_ms=Created at'$",
    ):
        mapping(CLICKS, ["customerId", "sku", "Created at"], [])


def test_columns_that_are_likely_overlooked_are_hints() -> None:
    columns = ["user_id", "item_id", "when", "timestamp", "event", "colour"]
    chosen = mapping(CLICKS, columns, ["at_ms=when"])
    assert overlooked(CLICKS, chosen, columns) == "; perhaps --map action=event"
    assert overlooked(CLICKS, chosen, ["user_id", "colour"]) == ""


def test_a_file_of_many_columns_is_told_in_a_line() -> None:
    columns = ["item_id", *(f"attributes.{number}" for number in range(198)), "x" * 500]
    assert str(mapping(CATALOG, columns, [])).endswith("and 159 more")
    with pytest.raises(ImportFileError, match="and 160 more") as caught:
        mapping(CATALOG, [*columns[1:], "a"], [])
    assert len(str(caught.value)) < 1_500
