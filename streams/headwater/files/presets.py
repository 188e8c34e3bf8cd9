"""Known file formats by name: which columns are which fields, what their actions mean, and what a row is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, NamedTuple

import polars as pl

from headwater.files.contents import EmptyFile, Files, ImportFileError, files_of, named
from headwater.files.data_sets import (
    GENRES,
    amazon_item,
    amazon_ratings,
    lastfm_catalog,
    lastfm_tracks,
    movielens_genres,
    retailrocket_items,
)
from headwater.files.delimited import Layout
from headwater.files.event_exports import ga4_event, segment_event
from headwater.files.fields import CASES, CATALOG, CLICKS, OFFERS, TRAINING, TYPES, Chosen, Fields, mapping
from headwater.files.json_rows import Flatten
from headwater.files.nested import holds_lists, members, to_unfold, unfolded
from headwater.files.shop_exports import (
    magento,
    merchant,
    shopify_export,
    shopify_orders,
    shopify_product,
    shopify_variants,
    woocommerce,
)
from headwater.files.table import LINE, Table, joined, read
from headwater.files.values import present

PresetName = Literal[
    "movielens", "amazon-reviews", "amazon-items", "retailrocket", "yelp", "lastfm", "shopify", "google-merchant", "segment",
    "ga4", "recbole",
    "woocommerce", "magento",
]  # fmt: skip
Kind = Literal["catalog", "clicks", "offers", "training", "cases"]
Usual = Mapping[str, Sequence[str]]  # field -> columns that may carry it, the first that is there does


@dataclass(frozen=True)
class Shape:
    """One kind of file of a format.

    Attributes:
        usual: the columns of the fields.
        headless: the columns of a file without a header, by their number.
        flatten: makes rows of a JSON object.
        arranged: makes rows of the rows, which have their line in the column ``__line``.
        by_id: such functions for another choice of the item's column, by that column.
        notes: what a person has to know of such files.
    """

    usual: Usual
    headless: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    flatten: Flatten | None = None
    arranged: Callable[[pl.DataFrame], pl.DataFrame] | None = None
    list_separator: str = "auto"
    by_id: Mapping[str, Callable[[pl.DataFrame], pl.DataFrame]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


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
    given: Files,
    kind: Kind,
    maps: Sequence[str] = (),
    layout: Layout | None = None,
    preset: PresetName | None = None,
) -> Opened:
    """A file, or several as one, with their columns mapped to the fields of a kind of message.

    Raises:
        ImportFileError: a file cannot be read, the mapping does not fit it, or the preset has no such files.
    """
    layout, fields = layout or Layout(), FIELDS[kind]
    shape = shape_of(preset, kind)
    table = _read_all(files_of(given), layout, shape)
    if shape is None:
        usual = _USUAL_OF_CASES if kind == "cases" else {}
    else:
        table = _arranged(table, shape, maps, preset)
        usual = {
            name: columns
            for name, columns in shape.usual.items()
            # What a format has of attributes does not change often.
            if name in fields.names or (name.startswith(fields.open_ended) and kind != "offers")
        }
    if (lists := to_unfold(table, [_column_of(pair) for pair in maps])) is not None:
        table = unfolded(table, lists)
    chosen = mapping(fields, table.columns, maps, usual, members(table))
    if kind in ("clicks", "training") and holds_lists(table, chosen.columns["item_id"]):
        table = unfolded(table, chosen.columns["item_id"])
        chosen = mapping(fields, table.columns, maps, usual)
    if shape is None or shape.arranged is None:
        _refuse_strangers(table, fields, chosen)
    return Opened(table, chosen)


def _column_of(pair: str) -> str:
    """The column that a pair of --map names; types have no dot."""
    column = pair.partition("=")[2]
    return column.rpartition(":")[0] if column.rpartition(":")[2] in TYPES else column


def _read_all(paths: Sequence[Path], layout: Layout, shape: Shape | None) -> Table:
    """The files as one table. An empty one among others is noted."""
    if len(paths) == 1:
        return _read(paths[0], layout, shape)
    tables, notes = list[Table](), list[str]()
    for path in paths:
        try:
            tables.append(_read(path, layout, shape))
        except EmptyFile:
            notes.append(f"{path} is empty")
    if not tables:
        raise EmptyFile(f"{named(paths)} cannot be read (they are empty): expected a header and rows")
    table = joined(tables)
    return replace(table, notes=[*table.notes, *notes])


def _read(path: Path, layout: Layout, shape: Shape | None) -> Table:
    """A file; one of a format without a header has the format's columns."""
    if shape is None:
        return read(path, layout)
    table = read(path, layout, shape.flatten)
    headless = shape.headless.get(len(table.columns))
    if headless and not layout.columns and not any(name in headless for name in table.columns):
        return read(path, replace(layout, columns=headless), shape.flatten)
    return table


def _arranged(table: Table, shape: Shape, maps: Sequence[str], preset: PresetName | None) -> Table:
    """The rows as the format means them; their values are text, as in its own files.

    Raises:
        ImportFileError: the columns are not those of the format.
    """
    item = next((pair.partition("=")[2] for pair in reversed(maps) if pair.startswith("item_id=")), "")
    arranged, notes = shape.by_id.get(item, shape.arranged), [*table.notes, *shape.notes]
    if arranged is None:
        return replace(table, notes=notes)
    texts = pl.DataFrame([column if column.dtype == pl.String else present(column) for column in table.frame])
    try:
        frame = arranged(texts.with_columns(table.lines.alias(LINE)))
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0].partition(";")[0]
        raise ImportFileError(
            f"{named(table.paths)} is no file of --preset {preset} ({reason}): expected one as the format has it"
        ) from error
    if len(frame) < len(table.frame):
        notes.append(f"{len(table.frame):,} rows are put together as {len(frame):,}")
    return replace(table, frame=frame.drop(LINE), lines=frame[LINE], notes=notes)


def _refuse_strangers(table: Table, fields: Fields, chosen: Chosen) -> None:
    """Raise ImportFileError where one of several files has no column for a field that all need."""
    for part in table.parts:
        if missing := [name for name in fields.required if chosen.columns[name] not in part.columns]:
            column = chosen.columns[missing[0]]
            raise ImportFileError(
                f"{part.path} has no column {column}, which other files have for {missing[0]}: it has "
                f"{', '.join(part.columns[:20])}; give it alone, with --map, or correct its header"
            )


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


FIELDS: Final[dict[Kind, Fields]] = {
    "catalog": CATALOG,
    "clicks": CLICKS,
    "offers": OFFERS,
    "training": TRAINING,
    "cases": CASES,
}
# Names that such files usually have.
_USUAL_OF_CASES: Final[Usual] = {"target": ("targets", "next"), "history": ("items", "sequence")}


# The second names are those of tables of a warehouse.
_EVENT: Final = {
    "user_id": ("user", "user_id", "user_pseudo_id", "anonymous_id"),
    "item_id": ("item", "item_id", "product_id", "items.item_id", "sku"),
    "at_ms": ("at", "timestamp", "event_timestamp", "original_timestamp", "sent_at", "received_at"),
    "action": ("event", "event_name"),
    "event_id": ("id", "message_id"),
    "title": ("title", "item_name", "name"),
}
_ITEM: Final = {"attributes.brand": ("brand",)}
_PRODUCT: Final = {"item_id": ("item",)}

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
                24: ("movieId", "title", "release_date", "video_release_date", "imdb_url", *GENRES),
            },
            arranged=movielens_genres,
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
            arranged=amazon_ratings,
        ),
        like_from=4,
        dislike_to=2,
    ),
    "amazon-items": Preset(catalog=Shape(_ITEM, flatten=amazon_item)),
    "retailrocket": Preset(
        Shape(
            {"user_id": ("visitorid",), "item_id": ("itemid",), "at_ms": ("timestamp",), "action": ("event",)},
        ),
        Shape(
            {"item_id": ("itemid",), "category": ("categoryid",), "available": ("available",)},
            arranged=retailrocket_items,
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
            arranged=lastfm_tracks,
        ),
        Shape(
            {"item_id": ("track",), "title": ("traname",), "description": ("artname",)},
            {6: ("userid", "timestamp", "artid", "artname", "traid", "traname")},
            arranged=lastfm_catalog,
        ),
    ),
    "shopify": Preset(
        Shape(
            {"user_id": ("Email",), "item_id": ("Lineitem sku",), "at_ms": ("Created at", "Paid at"), "title": ("Lineitem name",)},
            arranged=shopify_orders,
            notes=(
                "orders name variants by their SKU, and `--preset shopify` names products by their handle: publish the catalog "
                "with --map item_id='Variant SKU' too",
            ),
        ),
        Shape(
            {
                "item_id": ("Handle",), "title": ("Title",), "description": ("Body (HTML)",), "tags": ("Tags",),
                "category": ("Type", "Product Category"), "price": ("Variant Price",),
                "available": ("Status", "Published"), "image": ("Image Src",),
                "attributes.brand": ("brand", "Vendor"),
            },
            flatten=shopify_product,
            arranged=shopify_export,
            by_id={"Variant SKU": shopify_variants},
            list_separator=",",
        ),
        actions=("*=purchase",),
    ),
    "woocommerce": Preset(catalog=Shape(_PRODUCT, arranged=woocommerce)),
    "magento": Preset(catalog=Shape(_PRODUCT, arranged=magento)),
    "google-merchant": Preset(
        catalog=Shape(
            {
                "item_id": ("id",), "title": ("title",), "description": ("description",), "price": ("price",),
                "available": ("availability",), "category": ("google_product_category", "google product category"),
                "tags": ("product_type", "product type"), "image": ("image_link", "image link"),
                **{f"attributes.{name}": (name,) for name in ("brand", "condition", "color", "size", "gender", "material")},
            },
            arranged=merchant,
            list_separator=">",
        )
    ),
    "segment": Preset(
        Shape(_EVENT, flatten=segment_event),
        actions=(
            "Product Viewed=view", "Product Clicked=click", "Product Added=add_to_cart", "Order Completed=purchase",
            "Product Added to Wishlist=like", "Product List Viewed=impression", "*=ignore",
        ),
    ),
    "ga4": Preset(
        Shape(_EVENT, flatten=ga4_event),
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
