"""Datasets by name: catalog and events in the form that every protocol, model and baseline takes.

`complete-journey` (an installed package), `ml-100k` (the atomic files in RecBole's wheel), `beauty` (BERT4Rec's file), or
a CSV, Parquet or JSON lines file of events with a mapping of its columns.
"""

import hashlib
import importlib.util
import io
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import polars as pl

from headwater.encoder.features import item_text
from headwater.errors import HeadwaterError
from headwater_models.data import complete_journey, tabular_files
from headwater_models.data.events import POSITIVE_ACTIONS, Log, in_order, log_of
from headwater_models.data.tabular_files import Fields, TimeUnit

FIELDS: Final = Fields(
    "events", ("user_id", "item_id", "at_ms", "action", "price", "title"), required=("user_id", "item_id")
)
_NOTHING: Final = ["", "nan", "null"]  # how files write a missing id, in lower case
# For files without times: from 2000 on, each user's events one minute apart.
_MADE_UP_MS: Final = 946_684_800_000 + 60_000 * pl.int_range(pl.len()).over("user_id")
_NO_TIMES: Final = (
    "no times: each user's events in file order, one minute apart, so gaps carry no information"
)


class DatasetError(HeadwaterError):
    """The data is missing, or holds nothing to learn from: one sentence with the remedy."""


@dataclass(frozen=True)
class Dataset:
    """All events, user by user, with at_ms strictly increasing within a user (ties move one millisecond apart).

    Items with a text come first: texts[n] is the text of item_ids[n], and later items have none.
    """

    name: str
    item_ids: list[str]  # the catalog; an item's number is its position here
    texts: list[str] | None
    log: Log
    fingerprint: str  # SHA-256 over the files it came from
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> rows left out
    notes: list[str] = field(default_factory=list)  # how the data was changed when read


def load(name: str, path: Path | None = None, maps: Iterable[str] = (), unit: TimeUnit = "auto") -> Dataset:
    """A built-in dataset by name (`path`: where its files are), or the events of a file, whose path is the name.

    `maps` (field=column) and `unit` apply to files. Raises DatasetError, DataMissing or ImportFileError.
    """
    built_in = _BUILT_IN.get(name)
    if built_in is None and path is None and Path(name).suffix:
        return from_file(Path(name), maps, unit)
    if built_in is None:
        raise DatasetError(f"{name} is no dataset: expected {', '.join(_BUILT_IN)}, or a file of events")
    if maps := list(maps):
        raise DatasetError(f"--map {maps[0]}: {name} is built in, so its columns are known; leave --map out")
    return built_in(path)


def from_file(path: Path, maps: Iterable[str] = (), unit: TimeUnit = "auto") -> Dataset:
    """The events of a file: user_id, item_id and, if present, at_ms, action, price and title.

    Rows are left out and counted: no user or item, no readable time, an action that is no positive event, a price that is
    no number (only in files with prices), repeated rows, a user's only event. The title becomes the item's text.

    Raises DatasetError (no rows, or none left) or ImportFileError (the file or the mapping cannot be used).
    """
    table = tabular_files.read(path)
    columns = tabular_files.mapping(FIELDS, table.columns, maps)
    given = table.height
    if not given:
        raise DatasetError(f"{path} has columns but no rows: expected one row an event")
    notes: list[str] = []
    rows = pl.DataFrame(
        {
            name: _ids(tabular_files.text(table, columns[name], name), columns[name], notes)
            for name in ("user_id", "item_id")
        }
    )
    if "action" in columns:
        rows = rows.with_columns(tabular_files.text(table, columns["action"], "action").replace("", "click"))
    else:
        rows = rows.with_columns(action=pl.lit("click"))
    if "at_ms" in columns:
        rows = rows.with_columns(at_ms=tabular_files.at_ms(table[columns["at_ms"]], unit))
    else:
        rows = rows.with_columns(at_ms=_MADE_UP_MS)
        notes.append(_NO_TIMES)
    priced = pl.lit(True)
    if "price" in columns:
        rows = rows.with_columns(price=table[columns["price"]].cast(pl.Float64, strict=False))
        priced = pl.col("price").is_finite().fill_null(False)
    titles = "title" in columns
    if titles:
        rows = rows.with_columns(tabular_files.text(table, columns["title"], "title"))

    there = ~pl.col("user_id").str.to_lowercase().is_in(_NOTHING)
    there &= ~pl.col("item_id").str.to_lowercase().is_in(_NOTHING)
    event = pl.struct("user_id", "item_id", "action", "at_ms")
    checks = {
        "no user or no item": there,
        "no readable time": pl.col("at_ms").is_not_null(),
        f"action is none of {', '.join(POSITIVE_ACTIONS)}": pl.col("action").is_in(POSITIVE_ACTIONS),
        "price is no number": priced,
        "the same row again": event.is_first_distinct() if "at_ms" in columns else pl.lit(True),
        "the user's only event": pl.len().over("user_id") > 1,
    }
    dropped = {}
    for reason, keep in checks.items():
        kept = rows.filter(keep)
        if left_out := rows.height - kept.height:
            dropped[reason] = left_out
        rows = kept
    if not rows.height:
        why = ", ".join(f"{reason}: {count:,}" for reason, count in dropped.items())
        raise DatasetError(
            f"nothing is left of the {given:,} rows of {path} ({why}): correct the file or --map"
        )
    if not titles:
        item_ids, texts = rows["item_id"].unique().sort(), None
    else:
        named = rows.filter(pl.col("title") != "").group_by("item_id").agg(pl.first("title")).sort("item_id")
        bare = rows.select("item_id").unique().join(named, on="item_id", how="anti").sort("item_id")
        item_ids = pl.concat([named["item_id"], bare["item_id"]])
        texts = [item_text(title) for title in named["title"]]
    events = in_order(rows.select("user_id", "item_id", "action", "at_ms"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Dataset(path.name, item_ids.to_list(), texts, log_of(events, item_ids), digest, dropped, notes)


def _ids(source: pl.Series, column: str, notes: list[str]) -> pl.Series:
    """Ids that went through a table of floats, 7.0 for 7, as they were: only where all of the column are numbers."""
    numbers = source.cast(pl.Float64, strict=False).is_not_null() | source.str.to_lowercase().is_in(_NOTHING)
    floats = source.str.contains(r"^-?\d+\.0+$")
    if not (numbers.all() and floats.any()):
        return source
    notes.append(f"{column}: {floats.sum():,} ids written as floats are read as whole numbers")
    return source.str.replace(r"^(-?\d+)\.0+$", "${1}")


def _complete_journey(path: Path | None) -> Dataset:
    products, purchases = complete_journey.catalog(path), complete_journey.events(path)
    unlisted = purchases.select("item_id").unique().join(products, on="item_id", how="anti").sort("item_id")
    item_ids = pl.concat([products["item_id"], unlisted["item_id"]])
    return Dataset(
        name="complete-journey",
        item_ids=item_ids.to_list(),
        texts=complete_journey.item_texts(products),
        log=log_of(purchases, item_ids),
        fingerprint=complete_journey.fingerprint(path),
        notes=["the items of a basket share a second: in an order of chance, one millisecond apart"],
    )


def _ml_100k(path: Path | None) -> Dataset:
    """943 users, 1,682 films, 100,000 ratings of any height as clicks.

    Three quarters share their second with another.
    """
    inter, item = (_atomic_file(path, f"ml-100k.{kind}") for kind in ("inter", "item"))
    films = _atomic(item).with_columns(pl.col("movie_title", "release_year", "class").fill_null(""))
    ratings = _atomic(inter).select(
        "user_id",
        "item_id",
        action=pl.lit("click"),
        at_ms=pl.col("timestamp").cast(pl.Float64).cast(pl.Int64) * 1000,
    )
    texts = [
        item_text(title, category=kind, attributes={"year": year} if year else {})
        for title, kind, year in films.select("movie_title", "class", "release_year").iter_rows()
    ]
    return Dataset(
        name="ml-100k",
        item_ids=films["item_id"].to_list(),
        texts=texts,
        log=log_of(in_order(ratings), films["item_id"]),
        fingerprint=hashlib.sha256(inter + item).hexdigest(),
        notes=["ratings that share a second: file order, one millisecond apart"],
    )


def _atomic_file(path: Path | None, name: str) -> bytes:
    """A file of RecBole's ml-100k: in a folder, in the wheel, or in the installed package."""
    if path is None:
        spec = importlib.util.find_spec("recbole")
        if spec is None or not spec.submodule_search_locations:
            raise DatasetError(
                "ml-100k is not here: `pip download recbole==1.2.1 --no-deps` and name the wheel with --path"
            )
        path = Path(next(iter(spec.submodule_search_locations))) / "dataset_example" / "ml-100k"
    if (path / name).is_file():
        return (path / name).read_bytes()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as wheel:
            for inside in wheel.namelist():
                if inside.endswith(f"/{name}"):
                    return wheel.read(inside)
    raise DatasetError(f"{path} holds no {name}: expected a folder with it, or the wheel of recbole 1.2.1")


def _atomic(raw: bytes) -> pl.DataFrame:
    """RecBole's atomic format: tabs, and a header of name:type."""
    table = pl.read_csv(io.BytesIO(raw), separator="\t", quote_char=None, infer_schema=False)
    return table.rename({column: column.partition(":")[0] for column in table.columns})


def _beauty(path: Path | None) -> Dataset:
    """40,226 users, 54,542 items, 353,962 reviews in order: one `user item` a line."""
    if path is None:
        raise DatasetError("beauty needs --path: the file beauty.txt of FeiSun/BERT4Rec, plain or gzipped")
    try:
        raw = path.read_bytes()
        pairs = pl.read_csv(
            raw, has_header=False, separator=" ", new_columns=["user_id", "item_id"], infer_schema=False
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DatasetError(f"{path} cannot be read ({error}): expected lines of `user item`") from error
    if pairs.null_count().row(0) != (0, 0):
        raise DatasetError(f"{path} has lines with one id only: expected lines of `user item`")
    events = pairs.with_columns(action=pl.lit("click"), at_ms=_MADE_UP_MS)
    item_ids = pairs["item_id"].unique().sort()
    return Dataset(
        name="beauty",
        item_ids=item_ids.to_list(),
        texts=None,
        log=log_of(events, item_ids),
        fingerprint=hashlib.sha256(raw).hexdigest(),
        notes=[_NO_TIMES],
    )


_BUILT_IN: Final[dict[str, Callable[[Path | None], Dataset]]] = {
    "complete-journey": _complete_journey,
    "ml-100k": _ml_100k,
    "beauty": _beauty,
}
