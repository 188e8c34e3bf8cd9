"""Exports of shop systems as rows of items and purchases: Shopify, WooCommerce, Magento, and feeds for Google Merchant."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec
import polars as pl

from headwater.files.json_rows import Object, frame_of, listed
from headwater.files.markup import plain_text
from headwater.files.table import LINE
from headwater.files.values import PRICE, numbers

# Shopify


def shopify_product(row: Object) -> Iterator[Object]:
    """A product of `products.json`: the lowest price of its variants, available while one of them is."""
    variants = [each for each in listed(row.get("variants")) if isinstance(each, dict)]
    price = _lowest([str(each.get("price")) for each in variants], _amount)
    stocks = [_is_stock(each) for each in variants]
    tags = row.get("tags")
    yield {
        "item_id": row.get("handle") or row.get("id"),
        "title": row.get("title"),
        "description": plain_text(row.get("body_html")),
        "tags": tags
        if isinstance(tags, list)
        else [part.strip() for part in str(tags or "").split(",") if part.strip()],
        "category": row.get("product_type"),
        "price": price,
        "available": any(stocks) if stocks else None,
        "brand": row.get("vendor"),
        "image": next(
            (each.get("src") for each in listed(row.get("images")) if isinstance(each, dict)), None
        ),
        "since_ms": row.get("published_at") or row.get("created_at"),
    }


def _is_stock(variant: Object) -> bool:
    """Whether a variant says that it can be bought, else whether there are pieces of it."""
    if "available" in variant:
        return variant["available"] is True
    return (_amount(str(variant.get("inventory_quantity"))) or 0) > 0


def shopify_export(frame: pl.DataFrame) -> pl.DataFrame:
    """The products of an export, which has a row for each variant and picture: of each the first value that is there."""
    if "Handle" not in frame.columns:
        return frame
    rest = [name for name in frame.columns if name not in ("Handle", LINE)]
    found = frame.group_by("Handle", maintain_order=True).agg(
        pl.col(LINE).min(), *(pl.col(name).drop_nulls().first() for name in rest)
    )
    if "Body (HTML)" in rest:
        body = pl.Series([plain_text(text) for text in found["Body (HTML)"]], dtype=pl.String)
        found = found.with_columns(body.alias("Body (HTML)"))
    return found


def shopify_variants(frame: pl.DataFrame) -> pl.DataFrame:
    """The variants of an export, each with what the first row of its product says."""
    if "Handle" not in frame.columns or "Variant SKU" not in frame.columns:
        return frame
    own = [name for name in frame.columns if name.startswith(("Variant ", "Option"))]
    rest = [name for name in frame.columns if name not in (*own, "Handle", LINE)]
    # Of each product the first value that is there, in every row.
    whole = frame.with_columns(pl.col(name).drop_nulls().first().over("Handle") for name in rest)
    found = whole.filter(pl.col("Variant SKU").is_not_null())
    names = [name for name in own if re.fullmatch(r"Option\d Value", name)]
    options = pl.concat_str(
        [pl.col(name).replace("Default Title", None) for name in names], separator=" / ", ignore_nulls=True
    )
    if names and "Title" in rest:
        title = pl.concat_str(
            [pl.col("Title"), options.replace("", None)], separator=" - ", ignore_nulls=True
        )
        found = found.with_columns(title.alias("Title"))
    return found


def shopify_orders(frame: pl.DataFrame) -> pl.DataFrame:
    """The lines of orders. What is the whole order's stands in its first row alone."""
    if "Name" not in frame.columns:
        return frame
    shared = [name for name in ("Email", "Created at", "Paid at") if name in frame.columns]
    return frame.with_columns(pl.col(name).drop_nulls().first().over("Name") for name in shared)


# WooCommerce and Magento


def _lowest(prices: Iterable[str | None], amount: Callable[[str], float | None]) -> str | None:
    """The lowest of prices as they are written; without any that is a number the first, which is then told as bad."""
    written = [each for each in prices if each]
    known = [(found, each) for each in written if (found := amount(each)) is not None]
    return min(known)[1] if known else next(iter(written), None)


def _amount(price: str) -> float | None:
    """A price of an interface, with a dot as its decimal mark."""
    return float(price.strip().lstrip("$").replace(",", "")) if PRICE.match(price) else None


def _amounts(frame: pl.DataFrame, *names: str) -> dict[str, float]:
    """The numbers of all prices in these columns, by how they are written: shops export them in their own language."""
    written = pl.concat(
        [frame[name] for name in names if name in frame.columns] or [pl.Series(dtype=pl.String)]
    )
    read = numbers(written.drop_nulls().unique())
    return {text: value for text, value in zip(read.shown, read.values, strict=True) if value is not None}


def _paths(text: str | None, between: str, below: str, root: str = "") -> tuple[str | None, str | None]:
    """The first path of categories, and the names of all as a JSON array."""
    paths = [
        [name.strip() for name in path.split(below) if name.strip() and name.strip() != root]
        for path in (text or "").split(between)
    ]
    paths = [path for path in paths if path]
    names = list(dict.fromkeys(name for path in paths for name in path))
    return (" > ".join(paths[0]) if paths else None), (_json_list(names) if names else None)


def _json_list(names: Sequence[str]) -> str:
    return msgspec.json.encode(names).decode()


def _products(
    frame: pl.DataFrame, rows: Sequence[Object], sources: Mapping[str, tuple[str, ...]]
) -> pl.DataFrame:
    """Products as a frame, without the fields that the export has no columns of; without any product, the frame's columns alone."""
    if not rows:
        return pl.DataFrame(schema={**frame.schema, "item": pl.String})
    absent = [name for name, columns in sources.items() if not any(each in frame.columns for each in columns)]
    return frame_of(rows).drop(absent)


_WOO_SOURCES: Final = {
    "description": ("Short description", "Description"),
    "category": ("Categories",),
    "tags": ("Categories", "Tags"),
    "price": ("Sale price", "Regular price"),
    "available": ("Published", "In stock?"),
    "image": ("Images",),
    "sku": ("SKU",),
}
_MAGENTO_SOURCES: Final = {
    "description": ("short_description", "description"),
    "category": ("categories",),
    "tags": ("categories",),
    "price": ("special_price", "price"),
    "available": ("product_online", "is_in_stock"),
    "image": ("base_image",),
}
_WOO_ATTRIBUTE: Final = re.compile(r"Attribute (\d+) name")


def woocommerce(frame: pl.DataFrame) -> pl.DataFrame:
    """The products of an export. The variations of a product, rows with a parent, give their prices and stock to it.

    An export in another language, which names its columns in it, stays as it is.
    """
    known = {"Type", *(name for names in _WOO_SOURCES.values() for name in names)} - {"SKU"}
    if not {"ID", "Name"} <= set(frame.columns) or known.isdisjoint(frame.columns):
        return frame
    rows = frame.to_dicts()
    amount = _amounts(frame, "Sale price", "Regular price").get
    variations: dict[str, list[Object]] = {}
    products = {row.get(name) for row in rows for name in ("ID", "SKU") if not row.get("Parent")}
    made = []
    for row in rows:
        parent = (row.get("Parent") or "").removeprefix("id:")
        if parent and parent in products:
            variations.setdefault(parent, []).append(row)
    for row in rows:
        if (row.get("Parent") or "").removeprefix("id:") in variations:
            continue
        own = [row, *variations.get(row["ID"] or "", []), *variations.get(row.get("SKU") or "", [])]
        category, tags = _paths(row.get("Categories"), ",", ">")
        more = [each.strip() for each in (row.get("Tags") or "").split(",") if each.strip()]
        texts = [row.get("Short description"), row.get("Description")]
        published = row.get("Published", "1") in ("1", None)
        made.append(
            {
                "item": row["ID"],
                "title": row["Name"],
                # The export writes the end of a line as these two characters.
                "description": " ".join(each.replace("\\n", "\n") for each in texts if each) or None,
                "category": category,
                "tags": _json_list(
                    list(dict.fromkeys([*(msgspec.json.decode(tags) if tags else []), *more]))
                ),
                "price": _lowest(
                    [each.get("Sale price") or each.get("Regular price") for each in own], amount
                ),
                "available": published and any(each.get("In stock?", "1") not in ("0", None) for each in own),
                "image": (row.get("Images") or "").split(",")[0].strip() or None,
                "sku": row.get("SKU"),
                **{
                    f"attributes.{row[name]}": row.get(f"Attribute {found[1]} value(s)")
                    for name in row
                    if (found := _WOO_ATTRIBUTE.fullmatch(name)) and row[name]
                },
                LINE: row[LINE],
            }
        )
    return _products(frame, made, _WOO_SOURCES)


_MAGENTO_PAIR: Final = re.compile(r",(?=[A-Za-z_][A-Za-z0-9_]*=)")


def magento(frame: pl.DataFrame) -> pl.DataFrame:
    """The products of an export that customers see: no texts of other store views, and of a variant its price alone."""
    if "sku" not in frame.columns or "name" not in frame.columns:
        return frame
    rows = [
        row
        for row in frame.to_dicts()
        if (row.get("store_view_code") or "default") in ("default", "admin", "all")
    ]
    of_sku = {row["sku"]: row for row in rows}
    amount = _amounts(frame, "special_price", "price").get
    made = []
    for row in rows:
        if row.get("visibility") == "Not Visible Individually":
            continue
        variants = re.findall(r"(?:^|\|)sku=([^,|]+)", row.get("configurable_variations") or "")
        own = [row, *(of_sku[sku] for sku in variants if sku in of_sku)]
        category, tags = _paths(row.get("categories"), ",", "/", "Default Category")
        pairs = [each.partition("=") for each in _MAGENTO_PAIR.split(row.get("additional_attributes") or "")]
        texts = [row.get("short_description"), row.get("description")]
        prices = [each.get("special_price") or each.get("price") for each in own]
        made.append(
            {
                "item": row["sku"],
                "title": row["name"],
                "description": " ".join(each for each in texts if each) or None,
                "category": category,
                "tags": tags,
                "price": _lowest([each for each in prices if each and each.strip("0.")], amount)
                or _lowest(prices, amount),
                "available": row.get("product_online", "1") in ("1", None)
                and row.get("is_in_stock", "1") in ("1", None),
                "image": row.get("base_image"),
                **{
                    f"attributes.{name}": value.replace("|", ", ")
                    for name, _, value in pairs
                    if name and value
                },
                LINE: row[LINE],
            }
        )
    return _products(frame, made, _MAGENTO_SOURCES)


# Google Merchant


def merchant(frame: pl.DataFrame) -> pl.DataFrame:
    """A feed in XML may have several paths of categories."""
    name = "product_type"
    if name not in frame.columns or not frame[name].str.starts_with("[").any():
        return frame
    joined = [_joined_path(each) if each and each.startswith("[") else each for each in frame[name]]
    return frame.with_columns(pl.Series(name, joined, dtype=pl.String))


def _joined_path(text: str) -> str:
    """The paths of a JSON array as one; another text that begins with a bracket as it is."""
    try:
        return " > ".join(msgspec.json.decode(text, type=list[str]))
    except msgspec.DecodeError:
        return text
