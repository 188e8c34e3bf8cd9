"""Known file formats by name: which columns are which fields, what their actions mean, and what a row is."""

import html
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import polars as pl

from headwater.files.contents import ImportFileError
from headwater.files.delimited import Layout
from headwater.files.fields import CASES, CATALOG, CLICKS, OFFERS, TRAINING, Chosen, Fields, mapping
from headwater.files.json_rows import Flatten, Object
from headwater.files.table import Table, read

PresetName = Literal[
    "movielens", "amazon-reviews", "amazon-items", "retailrocket", "yelp", "lastfm", "shopify", "google-merchant", "segment",
    "ga4", "recbole",
]  # fmt: skip
Kind = Literal["catalog", "clicks", "offers", "training", "cases"]
Usual = Mapping[str, Sequence[str]]  # field -> columns that may carry it, the first that is there does
_LINE: Final = "__line"


@dataclass(frozen=True)
class Shape:
    """One kind of file of a format.

    Attributes:
        usual: the columns of the fields.
        headless: the columns of a file without a header, by their number.
        flatten: makes rows of a JSON object.
        arranged: makes rows of the rows, which have their line in the column ``__line``.
    """

    usual: Usual
    headless: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    flatten: Flatten | None = None
    arranged: Callable[[pl.DataFrame], pl.DataFrame] | None = None
    list_separator: str = "auto"


@dataclass(frozen=True)
class Preset:
    """A format: its events, its catalog, or both; and what its actions and ratings mean."""

    clicks: Shape | None = None
    catalog: Shape | None = None
    actions: tuple[str, ...] = ()
    like_from: float | None = None
    dislike_to: float | None = None


class Opened(NamedTuple):
    """The rows of a file, and which column is which field."""

    table: Table
    chosen: Chosen


def opened(
    path: Path,
    kind: Kind,
    maps: Sequence[str] = (),
    layout: Layout | None = None,
    preset: PresetName | None = None,
) -> Opened:
    """A file with its columns mapped to the fields of a kind of message.

    Raises:
        ImportFileError: the file cannot be read, the mapping does not fit it, or the preset has no such files.
    """
    layout, fields = layout or Layout(), _FIELDS[kind]
    shape = shape_of(preset, kind)
    if shape is None:
        table = read(path, layout)
        usual_names = _USUAL_OF_CASES if kind == "cases" else None
        return Opened(table, mapping(fields, table.columns, maps, usual_names))
    table = read(path, layout, shape.flatten)
    headless = shape.headless.get(len(table.columns))
    if headless and not layout.columns and not any(name in headless for name in table.columns):
        table = read(path, replace(layout, columns=headless), shape.flatten)
    if shape.arranged is not None:
        frame = shape.arranged(table.frame.with_columns(table.lines.alias(_LINE)))
        table = replace(table, frame=frame.drop(_LINE), lines=frame[_LINE])
    usual = {
        name: columns
        for name, columns in shape.usual.items()
        # What a format has of attributes does not change often.
        if name in fields.names or (name.startswith(fields.open_ended) and kind != "offers")
    }
    return Opened(table, mapping(fields, table.columns, maps, usual))


def shape_of(preset: PresetName | None, kind: Kind) -> Shape | None:
    """The files of a kind in a format; None without a preset. Offers are in the files of its catalog.

    Raises:
        ImportFileError: the format has no such files.
    """
    if preset is None:
        return None
    if kind == "cases":
        raise ImportFileError(f"--preset {preset} is a format of events: leave it out for a file of cases")
    of_items = kind in ("catalog", "offers")
    found = PRESETS[preset].catalog if of_items else PRESETS[preset].clicks
    if found is None:
        other = "clicks" if of_items else "catalog"
        raise ImportFileError(
            f"--preset {preset} is a format of a {other} file: expected `headwater import {other}`"
        )
    return found


_FIELDS: Final[dict[Kind, Fields]] = {
    "catalog": CATALOG,
    "clicks": CLICKS,
    "offers": OFFERS,
    "training": TRAINING,
    "cases": CASES,
}
# Names that such files usually have.
_USUAL_OF_CASES: Final[Usual] = {"target": ("targets", "next"), "history": ("items", "sequence")}


# MovieLens

_GENRES: Final = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip


def _movielens_genres(frame: pl.DataFrame) -> pl.DataFrame:
    """The genres of ML-100K, a column of flags each, as one column; "(no genres listed)" is none."""
    if _GENRES[1] in frame.columns:
        named = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in _GENRES[1:]]
        frame = frame.with_columns(pl.concat_str(named, separator="|", ignore_nulls=True).alias("genres"))
    if "genres" in frame.columns:
        frame = frame.with_columns(pl.col("genres").replace("(no genres listed)", None))
    return frame


# Amazon


def _amazon_ratings(frame: pl.DataFrame) -> pl.DataFrame:
    """Files of ratings without a header: those of 2018 have the item first, those of 2014 the user."""
    if frame.columns[:2] == ["first", "second"]:
        asin = r"^[0-9A-Z]{10}$"
        items_first = frame["first"].str.contains(asin).sum() > frame["second"].str.contains(asin).sum()
        names = ("asin", "reviewerID") if items_first else ("reviewerID", "asin")
        return frame.rename(dict(zip(("first", "second"), names, strict=True)))
    return frame


_PRICE: Final = re.compile(r"^\s*\$?\s*\d[\d,]*(\.\d+)?\s*$")


def _amazon_item(row: Object) -> Iterator[Object]:
    """Metadata of 2014, 2018 or 2023. A price that is none, such as a range, is missing."""
    price = row.get("price")
    categories = row.get("categories") or row.get("category") or []
    yield {
        "item_id": row.get("parent_asin") or row.get("asin"),
        "title": _clean(row.get("title")),
        "description": " ".join(
            _strings([row.get("features") or row.get("feature"), row.get("description")])
        ),
        "tags": list(dict.fromkeys(_strings(categories))),
        "category": next(iter(_strings([row.get("main_category") or row.get("main_cat"), categories])), None),
        "price": price if isinstance(price, int | float) or _PRICE.match(str(price)) else None,
        "brand": next(iter(_strings([row.get("brand") or row.get("store")])), None),
        "image": next(iter(_images(row)), None),
    }


def _images(row: Object) -> Iterator[str]:
    for name in ("imUrl", "imageURLHighRes", "imageURL", "images"):
        for value in _listed(row.get(name)):
            found = (value.get("large") or value.get("thumb")) if isinstance(value, dict) else value
            if isinstance(found, str):
                yield found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _strings(value: Any) -> list[str]:
    if isinstance(value, list):
        return [part for each in value for part in _strings(each)]
    return [text] if (text := _clean(value)) else []


def _clean(value: Any) -> str | None:
    """A text without markup and entities."""
    if not isinstance(value, str):
        return None
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", value))).strip()


# RetailRocket


def _retailrocket_items(frame: pl.DataFrame) -> pl.DataFrame:
    """Properties, one a row with a time, as items: the newest category and availability. The others are hashes."""
    wanted = frame.filter(pl.col("property").is_in(["categoryid", "available"]))
    newest = wanted.sort(pl.col("timestamp").cast(pl.Int64, strict=False)).group_by(
        "itemid", maintain_order=True
    )
    return (
        newest.agg(
            pl.col("value").filter(pl.col("property") == name).last().alias(name)
            for name in ("categoryid", "available")
        )
        .join(wanted.group_by("itemid").agg(pl.col(_LINE).max()), on="itemid")
        .sort(_LINE)
    )


# Last.fm


def _lastfm_tracks(frame: pl.DataFrame) -> pl.DataFrame:
    """Listens of the 1K users. A track without an id is known by artist and name."""
    if "traid" not in frame.columns:
        return frame
    return frame.with_columns(
        pl.coalesce(pl.col("traid").replace("", None), pl.format("{} - {}", "artname", "traname")).alias(
            "track"
        )
    )


def _lastfm_catalog(frame: pl.DataFrame) -> pl.DataFrame:
    found = _lastfm_tracks(frame)
    return found.unique("track", keep="first", maintain_order=True) if "track" in found.columns else found


# Shopify


def _shopify_product(row: Object) -> Iterator[Object]:
    """A product of `products.json`: the lowest price of its variants, available while one of them is."""
    variants = [each for each in _listed(row.get("variants")) if isinstance(each, dict)]
    prices = [
        float(each["price"]) for each in variants if _PRICE.match(str(each.get("price")).removeprefix("-"))
    ]
    stocks = [each.get("available", (each.get("inventory_quantity") or 0) > 0) for each in variants]
    tags = row.get("tags")
    yield {
        "item_id": row.get("handle") or row.get("id"),
        "title": row.get("title"),
        "description": _clean(row.get("body_html")),
        "tags": tags
        if isinstance(tags, list)
        else [part.strip() for part in str(tags or "").split(",") if part.strip()],
        "category": row.get("product_type"),
        "price": min(prices) if prices else None,
        "available": any(stocks) if stocks else None,
        "brand": row.get("vendor"),
        "image": next(
            (each.get("src") for each in _listed(row.get("images")) if isinstance(each, dict)), None
        ),
        "since_ms": row.get("published_at") or row.get("created_at"),
    }


def _shopify_export(frame: pl.DataFrame) -> pl.DataFrame:
    """The products of an export, which has a row for each variant and picture: of each the first value that is there."""
    if "Handle" not in frame.columns:
        return frame
    rest = [name for name in frame.columns if name not in ("Handle", _LINE)]
    found = frame.group_by("Handle", maintain_order=True).agg(
        pl.col(_LINE).min(), *(pl.col(name).drop_nulls().first() for name in rest)
    )
    if "Body (HTML)" in rest:
        body = pl.Series([_clean(text) for text in found["Body (HTML)"]], dtype=pl.String)
        found = found.with_columns(body.alias("Body (HTML)"))
    return found


# Segment and GA4


def _segment_event(row: Object) -> Iterator[Object]:
    """A track call: its product, or one row for each of its products."""
    properties = row.get("properties") if isinstance(row.get("properties"), dict) else {}
    assert isinstance(properties, dict)
    shared = {
        "user": row.get("userId") or row.get("user_id") or row.get("anonymousId") or row.get("anonymous_id"),
        "event": row.get("event") or row.get("type"),
        "at": row.get("timestamp")
        or row.get("originalTimestamp")
        or row.get("sentAt")
        or row.get("receivedAt"),
        "id": row.get("messageId") or row.get("message_id"),
    }
    products = [each for each in _listed(properties.get("products")) if isinstance(each, dict)]
    for product in products or [properties]:
        yield {**shared, "item": product.get("product_id") or product.get("sku") or product.get("id")}


def _ga4_event(row: Object) -> Iterator[Object]:
    """An event of the BigQuery export: a row for each of its items."""
    shared = {
        "user": row.get("user_id") or row.get("user_pseudo_id"),
        "event": row.get("event_name"),
        "at": row.get("event_timestamp"),
    }
    items = [each for each in _listed(row.get("items")) if isinstance(each, dict)]
    for item in items or [{}]:
        yield {**shared, "item": item.get("item_id"), "title": item.get("item_name")}


_EVENT: Final = {
    "user_id": ("user",),
    "item_id": ("item",),
    "at_ms": ("at",),
    "action": ("event",),
    "event_id": ("id",),
    "title": ("title",),
}
_ITEM: Final = {"attributes.brand": ("brand",)}

PRESETS: Final[Mapping[PresetName, Preset]] = {
    "movielens": Preset(
        Shape(
            {
                "user_id": ("userId", "UserID"), "item_id": ("movieId", "MovieID"), "at_ms": ("timestamp", "Timestamp"),
                "rating": ("rating", "Rating"),
            },
            {4: ("userId", "movieId", "rating", "timestamp")},
        ),
        Shape(
            {"item_id": ("movieId", "MovieID"), "title": ("title", "Title"), "tags": ("genres", "Genres")},
            {
                3: ("movieId", "title", "genres"),
                24: ("movieId", "title", "release_date", "video_release_date", "imdb_url", *_GENRES),
            },
            arranged=_movielens_genres,
            list_separator="|",
        ),
        like_from=4,
        dislike_to=2,
    ),
    "amazon-reviews": Preset(
        Shape(
            {
                "user_id": ("reviewerID", "user_id"), "item_id": ("parent_asin", "asin"),
                "at_ms": ("unixReviewTime", "timestamp", "reviewTime"), "rating": ("overall", "rating"),
            },
            {4: ("first", "second", "rating", "timestamp")},
            arranged=_amazon_ratings,
        ),
        like_from=4,
        dislike_to=2,
    ),
    "amazon-items": Preset(catalog=Shape(_ITEM, flatten=_amazon_item)),
    "retailrocket": Preset(
        Shape(
            {"user_id": ("visitorid",), "item_id": ("itemid",), "at_ms": ("timestamp",), "action": ("event",)},
        ),
        Shape(
            {"item_id": ("itemid",), "category": ("categoryid",), "available": ("available",)},
            arranged=_retailrocket_items,
        ),
        actions=("view=view", "addtocart=add_to_cart", "transaction=purchase"),
    ),
    "yelp": Preset(
        Shape(
            {
                "user_id": ("user_id",), "item_id": ("business_id",), "at_ms": ("date",), "rating": ("stars",),
                "event_id": ("review_id",),
            }
        ),
        Shape(
            {
                "item_id": ("business_id",), "title": ("name",), "tags": ("categories",), "available": ("is_open",),
                "attributes.city": ("city",), "attributes.stars": ("stars",),
            },
            list_separator=",",
        ),
        like_from=4,
        dislike_to=2,
    ),
    "lastfm": Preset(
        Shape(
            {
                "user_id": ("userid", "userID"), "item_id": ("track", "artistID"), "at_ms": ("timestamp",),
                "title": ("traname",),
            },
            {
                6: ("userid", "timestamp", "artid", "artname", "traid", "traname"),
                5: ("userid", "artist", "album", "track", "timestamp"),
            },
            arranged=_lastfm_tracks,
        ),
        Shape(
            {"item_id": ("track",), "title": ("traname",), "description": ("artname",)},
            {6: ("userid", "timestamp", "artid", "artname", "traid", "traname")},
            arranged=_lastfm_catalog,
        ),
    ),
    "shopify": Preset(
        catalog=Shape(
            {
                "item_id": ("Handle",), "title": ("Title",), "description": ("Body (HTML)",), "tags": ("Tags",),
                "category": ("Type", "Product Category"), "price": ("Variant Price",),
                "available": ("Status", "Published"), "image": ("Image Src",),
                "attributes.brand": ("brand", "Vendor"),
            },
            flatten=_shopify_product,
            arranged=_shopify_export,
            list_separator=",",
        )
    ),
    "google-merchant": Preset(
        catalog=Shape(
            {
                "item_id": ("id",), "title": ("title",), "description": ("description",), "price": ("price",),
                "available": ("availability",), "category": ("google_product_category", "google product category"),
                "tags": ("product_type", "product type"), "image": ("image_link", "image link"),
                **{f"attributes.{name}": (name,) for name in ("brand", "condition", "color", "size", "gender", "material")},
            },
            list_separator=">",
        )
    ),
    "segment": Preset(
        Shape(_EVENT, flatten=_segment_event),
        actions=(
            "Product Viewed=view", "Product Clicked=click", "Product Added=add_to_cart", "Order Completed=purchase",
            "Product Added to Wishlist=like", "Product List Viewed=impression", "*=ignore",
        ),
    ),
    "ga4": Preset(
        Shape(_EVENT, flatten=_ga4_event),
        actions=(
            "view_item=view", "select_item=click", "add_to_cart=add_to_cart", "purchase=purchase", "add_to_wishlist=like",
            "view_item_list=impression", "*=ignore",
        ),
    ),
    "recbole": Preset(
        Shape({"at_ms": ("timestamp",), "rating": ("rating",)}),
        Shape(
            {
                "title": ("title", "movie_title", "item_name", "name"), "tags": ("class", "genre", "categories"),
                "category": ("category",),
            },
            list_separator=" ",
        ),
    ),
}  # fmt: skip
