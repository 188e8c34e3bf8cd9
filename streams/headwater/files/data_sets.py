"""Files of public data sets, as rows of items and events: MovieLens, Amazon, RetailRocket, Last.fm."""

from collections.abc import Iterator
from typing import Any, Final

import polars as pl

from headwater.files.json_rows import Object, listed
from headwater.files.markup import plain_text
from headwater.files.table import LINE
from headwater.files.values import PRICE

# MovieLens

GENRES: Final = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip


def movielens_genres(frame: pl.DataFrame) -> pl.DataFrame:
    """The genres of ML-100K, a column of flags each, as one column; "(no genres listed)" is none."""
    if GENRES[1] in frame.columns:
        named = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in GENRES[1:]]
        frame = frame.with_columns(pl.concat_str(named, separator="|", ignore_nulls=True).alias("genres"))
    if "genres" in frame.columns:
        frame = frame.with_columns(pl.col("genres").replace("(no genres listed)", None))
    return frame


# Amazon


def amazon_ratings(frame: pl.DataFrame) -> pl.DataFrame:
    """Files of ratings without a header: those of 2018 have the item first, those of 2014 the user."""
    if frame.columns[:2] == ["first", "second"]:
        asin = r"^[0-9A-Z]{10}$"
        items_first = frame["first"].str.contains(asin).sum() > frame["second"].str.contains(asin).sum()
        names = ("asin", "reviewerID") if items_first else ("reviewerID", "asin")
        return frame.rename(dict(zip(("first", "second"), names, strict=True)))
    return frame


def amazon_item(row: Object) -> Iterator[Object]:
    """Metadata of 2014, 2018 or 2023. A price that is none, such as a range, is missing."""
    price = row.get("price")
    categories = row.get("categories") or row.get("category") or []
    yield {
        "item_id": row.get("parent_asin") or row.get("asin"),
        "title": plain_text(row.get("title")),
        "description": " ".join(
            _strings([row.get("features") or row.get("feature"), row.get("description")])
        ),
        "tags": list(dict.fromkeys(_strings(categories))),
        "category": next(iter(_strings([row.get("main_category") or row.get("main_cat"), categories])), None),
        "price": price if isinstance(price, int | float) or PRICE.match(str(price)) else None,
        "brand": next(iter(_strings([row.get("brand") or row.get("store")])), None),
        "image": next(iter(_images(row)), None),
    }


def _images(row: Object) -> Iterator[str]:
    for name in ("imUrl", "imageURLHighRes", "imageURL", "images"):
        for value in listed(row.get(name)):
            found = (value.get("large") or value.get("thumb")) if isinstance(value, dict) else value
            if isinstance(found, str):
                yield found


def _strings(value: Any) -> list[str]:
    if isinstance(value, list):
        return [part for each in value for part in _strings(each)]
    return [text] if (text := plain_text(value)) else []


# RetailRocket


def retailrocket_items(frame: pl.DataFrame) -> pl.DataFrame:
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
        .join(wanted.group_by("itemid").agg(pl.col(LINE).max()), on="itemid")
        .sort(LINE)
    )


# Last.fm


def lastfm_tracks(frame: pl.DataFrame) -> pl.DataFrame:
    """Listens of the 1K users. A track without an id is known by artist and name."""
    if "traid" not in frame.columns:
        return frame
    return frame.with_columns(
        pl.coalesce(pl.col("traid").replace("", None), pl.format("{} - {}", "artname", "traname")).alias(
            "track"
        )
    )


def lastfm_catalog(frame: pl.DataFrame) -> pl.DataFrame:
    """The tracks of listens, each once."""
    found = lastfm_tracks(frame)
    return found.unique("track", keep="first", maintain_order=True) if "track" in found.columns else found
