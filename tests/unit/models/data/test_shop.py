"""A shop's two files become one data set, and what cannot be learned from is told."""

from pathlib import Path

import pytest

from headwater.files.events import EventForm
from headwater.files.items import ItemForm, items_of
from headwater.files.presets import opened
from headwater_models.data.datasets import DatasetError, read_events
from headwater_models.data.shop import Shop, shop_of

ITEMS = ["item_id,title,category", "a,Anvil,tools", "b,,", "a,Anvil of steel,tools", "c,Chisel,tools"]
CLICKS = [
    "user_id,item_id,at_ms,action",
    *(f"u,{item},170000000000{n},{action}" for n, (item, action) in enumerate(
        [("a", "click"), ("c", "purchase"), ("b", "view"), ("gone", "click"), ("a", "dislike")]
    )),
    "once,a,1700000000000,click",
]  # fmt: skip


def shop(tmp_path: Path, items: list[str], clicks: list[str]) -> Shop:
    files = tmp_path / "items.csv", tmp_path / "clicks.csv"
    for file, lines in zip(files, (items, clicks), strict=True):
        file.write_text("\n".join(lines) + "\n")
    catalog = opened(files[0], "catalog")
    events = read_events(opened(files[1], "training"), EventForm())
    return shop_of(items_of(catalog.table, catalog.chosen, ItemForm()), events, files)


def test_items_with_a_text_come_first_and_the_last_row_of_an_item_counts(tmp_path: Path) -> None:
    data, said = shop(tmp_path, ITEMS, CLICKS)
    assert data.item_ids == ["a", "c", "b"]
    assert data.texts == ["Anvil of steel. tools", "Chisel. tools"]
    assert data.log.items.tolist() == [0, 1, 2]
    assert any("1 of 3 items have no text, such as b" in line for line in said)


def test_attributes_and_dates_of_items_go_along(tmp_path: Path) -> None:
    items = [
        "item_id,title,attributes.maker,since_ms",
        "a,Anvil,acme,1700000000000",
        "b,,acme,",
        "c,Chisel,other,",
    ]
    data, _ = shop(tmp_path, items, CLICKS)
    assert data.attributes == [{"maker": "acme"}, {"maker": "acme"}, {"maker": "other"}]
    assert data.came_in is not None
    assert data.came_in.tolist() == [1_700_000_000_000, 0, 0]


def test_what_becomes_of_each_event_that_is_not_learned_from_is_said(tmp_path: Path) -> None:
    data, said = shop(tmp_path, ITEMS, CLICKS)
    assert any(
        "1 of 6 events (16.7%) are on 1 items that are not in the catalog, such as gone" in line
        for line in said
    )
    assert sum(data.dropped.values()) == 3
    assert data.log.users == ["u"]


def test_ids_that_two_exports_write_in_two_ways_are_told(tmp_path: Path) -> None:
    items = ["item_id,title", "00123,Anvil", "SW-7,Chisel"]
    clicks = ["user_id,item_id", "u,123", "u,sw7", "v,00123", "v,SW-7"]
    _, said = shop(tmp_path, items, clicks)
    assert any(
        "2 of these ids differ from one of the catalog in leading zeros, capitals or marks alone, such as 123 and 00123"
        in line
        for line in said
    )
    with pytest.raises(DatasetError, match="such as 123 and 00123: export both files with the same ids"):
        shop(tmp_path, items, clicks[:3])


def test_without_a_catalog_the_items_are_those_of_the_events(tmp_path: Path) -> None:
    file = tmp_path / "clicks.csv"
    file.write_text("\n".join(CLICKS) + "\n")
    data, said = shop_of(None, read_events(opened(file, "training"), EventForm()), [file])
    assert (data.item_ids, data.texts) == (["a", "c", "b", "gone"], [])
    assert data.log.items.tolist() == [0, 1, 2, 3]
    assert "no catalog" in said[0]


@pytest.mark.parametrize(
    ("items", "clicks", "why"),
    [
        (ITEMS[:1], CLICKS, "no item that can be used"),
        (ITEMS, [*CLICKS[:1], "u,gone,1700000000000,click", "u,lost,1700000001000,click"], "nothing is left of the 2 events"),
        (ITEMS, [*CLICKS[:1], "u,a,1700000000000,dislike", "u,b,1700000001000,dislike"], "say which names are positive"),
        (ITEMS, [*CLICKS[:1], "u,a,1700000000000,click", "u,a,1700000001000,click"], "on one item, a"),
    ],
)  # fmt: skip
def test_files_without_anything_to_learn_are_one_sentence(
    tmp_path: Path, items: list[str], clicks: list[str], why: str
) -> None:
    with pytest.raises(DatasetError, match=why):
        shop(tmp_path, items, clicks)
