"""Columns are mapped by name and by hand; a mapping that does not fit says what is there."""

import pytest

from headwater.files.contents import ImportFileError
from headwater.files.fields import CATALOG, CLICKS, mapping


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
