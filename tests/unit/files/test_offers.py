"""Rows become offers that a worker takes; the others are named with the reason."""

from pathlib import Path

from headwater.files.items import ItemForm
from headwater.files.offers import Offers, offers_of
from headwater.files.presets import PresetName, opened
from headwater.messages import Offer

AT_MS = 1_700_000_000_000


def offers(folder: Path, content: str, *maps: str, preset: PresetName | None = None) -> Offers:
    path = folder / "file"
    path.write_text(content)
    return offers_of(*opened(path, "offers", maps, preset=preset), ItemForm(), now_ms=AT_MS)


def test_a_row_states_what_it_has_and_nothing_else(tmp_path: Path) -> None:
    content = "sku,price,stock,colour,title\n7,4.50 USD,0,red,Filter coffee\n8,,5,,\n9,3,,,\n"
    found = offers(tmp_path, content, "item_id=sku", "available=stock", "attributes.colour=colour")
    assert [row.offer for row in found.rows] == [
        Offer("7", 4.5, False, {"colour": "red"}),
        Offer("8", available=True),
        Offer("9", 3.0),
    ]
    assert found.rows[2].message == b'{"item_id":"9","price":3.0}'
    assert found.types == {"attributes.colour": "text"}


def test_a_time_of_each_row_is_the_offers(tmp_path: Path) -> None:
    found = offers(tmp_path, "item_id,price,at\na,1,2023-11-14T22:13:20Z\n", "at_ms=at")
    assert [row.offer.at_ms for row in found.rows] == [AT_MS]


def test_bad_rows_are_named_and_the_others_go_on(tmp_path: Path) -> None:
    content = "item_id,price,available,at_ms\na,-1,,\nb,,,\n,2,,\nc,2,maybe,\nd,2,yes,2033-01-01\ne,2,,\n"
    found = offers(tmp_path, content)
    assert [row.offer for row in found.rows] == [Offer("e", 2.0)]
    expected = {
        2: "price: got -1.0, expected `float` >= 0",
        3: "offer: got none of price, available and attributes",
        4: "item_id: missing, expected an id",
        5: "available: got 'maybe', expected true or false",
        6: "at_ms: got",
    }
    assert {row.line for row in found.bad} == set(expected)
    for row in found.bad:
        assert row.reason.startswith(expected[row.line])


def test_of_a_formats_catalog_prices_and_availability_are_taken(tmp_path: Path) -> None:
    feed = "id\ttitle\tavailability\tprice\tbrand\n1\tMonitor\tout of stock\t15.00 USD\tAcme\n"
    found = offers(tmp_path, feed, preset="google-merchant")
    assert [row.offer for row in found.rows] == [Offer("1", 15.0, False)]
