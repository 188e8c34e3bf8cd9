"""Rows become items that a worker takes; the others are named with the reason."""

from pathlib import Path

import pytest

from headwater.files.contents import ImportFileError
from headwater.files.fields import CATALOG, mapping
from headwater.files.items import ItemForm, Items, items_of
from headwater.files.table import read
from headwater.messages import Item

AT_MS = 1_700_000_000_000


def items(folder: Path, content: str, *maps: str, form: ItemForm | None = None) -> Items:
    path = folder / "file"
    path.write_text(content)
    table = read(path)
    return items_of(table, mapping(CATALOG, table.columns, maps), form or ItemForm())


def found(items: Items) -> list[Item]:
    return [row.item for row in items.rows]


def test_a_row_becomes_an_item(tmp_path: Path) -> None:
    content = (
        "sku,title,tags,price,available,colour,weight,code\n"
        "7,Filter coffee,coffee| hot drinks|,4.50 USD,out of stock,red,2.5,007\n"
        "8,Tea,,,,,,\n"
    )
    maps = ["item_id=sku", "attributes.colour=colour", "attributes.weight=weight", "attributes.code=code"]
    read_items = items(tmp_path, content, *maps)
    assert found(read_items) == [
        Item(
            "7",
            "Filter coffee",
            tags=["coffee", "hot drinks"],
            price=4.5,
            available=False,
            attributes={"colour": "red", "weight": 2.5, "code": "007"},
        ),
        Item("8", "Tea"),
    ]
    assert read_items.types == {
        "attributes.colour": "text",
        "attributes.weight": "number",
        "attributes.code": "text",
    }


def test_semicolons_and_decimal_commas_are_read(tmp_path: Path) -> None:
    content = "item_id;title;price\n1;Tee;15,00\n2;Kaffee;1.234,5\n"
    assert [item.price for item in found(items(tmp_path, content))] == [15, 1234.5]


@pytest.mark.parametrize("whole", [[], ["attributes=props"]])
def test_nested_attributes_are_taken_as_they_are(tmp_path: Path, whole: list[str]) -> None:
    name = "props" if whole else "attributes"
    content = (
        f'{{"item_id": 7, "tags": ["a", "b"], "{name}": {{"colour": "red", "organic": true}}}}\n'
        f'{{"item_id": 8, "tags": null, "{name}": {{"colour": null, "size": 3}}}}\n'
        f'{{"item_id": 9, "{name}": null}}\n'
    )
    assert found(items(tmp_path, content, *whole)) == [
        Item("7", tags=["a", "b"], attributes={"colour": "red", "organic": True}),
        Item("8", attributes={"size": 3.0}),
        Item("9"),
    ]


def test_bad_rows_are_told_apart_from_good_ones(tmp_path: Path) -> None:
    content = (
        "item_id,title,price,available,version,since_ms,attributes.weight\n"
        "NULL,x,1,,1,,1\n"
        "a,x,cheap,,1,,1\n"
        "b,x,-2,,1,,1\n"
        "c,x,3,maybe,1,,1\n"
        "d,x,3,,-1,,1\n"
        "e,x,3,,9007199254740993,,1\n"
        "f,x,3,,1.5,,1\n"
        "g,x,3,,1,1900-01-01,1\n"
        "h,x,3,,1,yesterday,1\n"
        "i,x,3,,1,,heavy\n"
        "j,x,,yes,,2023-11-14T22:13:20Z,2\n"
    )
    read_items = items(tmp_path, content)
    assert found(read_items) == [Item("j", "x", available=True, since_ms=AT_MS, attributes={"weight": 2.0})]
    expected = [
        "item_id: missing, expected an id",
        "price: got 'cheap', expected a number",
        "price: got -2.0, expected `float` >= 0",
        "available: got 'maybe', expected true or false",
        "version: got -1, expected `int` >= 0",
        "version: got 9007199254740993, expected `int` <= 9007199254740992",
        "version: got '1.5', expected a whole number",
        "since_ms: got '1900-01-01', expected a time",
        "since_ms: got 'yesterday', expected a time",
        "attributes.weight: got 'heavy', expected a number, since most values of the column are; "
        "--map attributes.weight=attributes.weight:text takes all as text",
    ]
    assert [bad.line for bad in read_items.bad] == list(range(2, 12))
    for bad, reason in zip(read_items.bad, expected, strict=True):
        assert bad.reason.startswith(reason)
    assert read_items.named == set("abcdefghi")


def test_one_odd_value_leaves_an_attribute_its_type_and_a_named_one_takes_all(tmp_path: Path) -> None:
    content = "item_id,size\na,38\nb,40\nc,XL\n"
    assert [item.attributes for item in found(items(tmp_path, content, "attributes.size=size"))] == [
        {"size": 38.0},
        {"size": 40.0},
    ]
    named = items(tmp_path, content, "attributes.size=size:text")
    assert [item.attributes for item in found(named)] == [{"size": "38"}, {"size": "40"}, {"size": "XL"}]


def test_prices_that_may_be_read_in_two_ways_are_asked_for(tmp_path: Path) -> None:
    content = 'item_id,title,price\na,x,"1,299"\nb,y,"5"\n'
    with pytest.raises(
        ImportFileError, match=r"prices such as '1,299' may have decimals or thousands.*--decimal"
    ):
        items(tmp_path, content)


def test_texts_lose_their_markup_and_an_item_that_comes_again_is_noted(tmp_path: Path) -> None:
    content = 'item_id,title,description\na,Salt &amp; 5 < 6,"<p>Fine.<br/>Very <b>fine</b></p><style>p {}</style>"\na,b <3 c,\n'
    read_items = items(tmp_path, content)
    assert [(item.title, item.description) for item in found(read_items)] == [
        ("Salt & 5 < 6", "Fine. Very fine"),
        ("b <3 c", ""),
    ]
    assert read_items.notes == [
        "title: 1 rows are read without their HTML",
        "description: 1 rows are read without their HTML",
        "1 rows name an item again; its last row counts",
    ]
