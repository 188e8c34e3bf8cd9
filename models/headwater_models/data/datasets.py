"""Datasets by name: catalog and events in the form that every protocol, model and baseline takes.

`complete-journey` (an installed package), `ml-100k` (the atomic files in RecBole's wheel), `beauty` (BERT4Rec's file), or
a file of events as `headwater.files` reads it.
"""

import hashlib
import importlib.util
import io
import re
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import polars as pl

from headwater.encoder.features import item_text
from headwater.errors import HeadwaterError
from headwater.files.contents import named
from headwater.files.events import MADE_UP_GAP_MS, MADE_UP_MS, NO_TIMES, EventForm, Events, events_of
from headwater.files.presets import Opened, opened
from headwater.files.table import BadRow, Table
from headwater.files.values import numbers, present
from headwater_models.arrays import I64
from headwater_models.data import complete_journey
from headwater_models.data.events import POSITIVE_ACTIONS, Log, in_order, log_of

_MADE_UP_MS: Final = MADE_UP_MS + MADE_UP_GAP_MS * pl.int_range(pl.len()).over("user_id")


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
    usual_at: float | datetime = (
        0.9  # the split in time of its published figures: a share of the events, or a moment
    )
    attributes: Sequence[Mapping[str, object]] = ()  # of the first items; later ones have none
    came_in: I64 | None = None  # (items,) when each came into the assortment, in ms, or in what order


def fingerprint_of(files: Iterable[Path]) -> str:
    """SHA-256 over what is in the files, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def is_file(name: str) -> bool:
    """Whether the name of a dataset is the path of a file, a folder or a pattern, and not that of a built-in one."""
    return name not in _BUILT_IN and (bool(Path(name).suffix) or "/" in name or Path(name).is_dir())


def load(name: str, path: Path | None = None, maps: Sequence[str] = ()) -> Dataset:
    """A built-in dataset by name (`path`: where its files are), or the events of a file, whose path is the name.

    `maps` (field=column) apply to files. Raises DatasetError, DataMissing or ImportFileError.
    """
    if is_file(name) and path is None:
        return from_events(opened(Path(name), "training", maps))
    if name not in _BUILT_IN:
        raise DatasetError(f"{name} is no dataset: expected {', '.join(_BUILT_IN)}, or a file of events")
    return _BUILT_IN[name](path)


def from_events(found: Opened, form: EventForm | None = None, *, lone: bool = False) -> Dataset:
    """The events of a file: user_id, item_id and, if present, at_ms, action, rating, price and title.

    Rows are left out and counted: those that `headwater import` refuses, with the first line of each kind; then actions that
    are no positive event, prices that are no number (only in files with prices), and a user's only event, unless `lone` ones
    count too. The title becomes the item's text.

    Raises DatasetError (no rows, or none left) or ImportFileError (the form does not fit the file).
    """
    table, columns = found.table, found.chosen.columns
    if not table.rows:
        raise DatasetError(f"{named(table.paths)} has columns but no rows: expected one row an event")
    also = []
    if "price" in columns:
        price = numbers(table.frame[columns["price"]], (form or EventForm()).decimal)
        also.append(price.values.alias("price"))
    if titles := "title" in columns:
        also.append(present(table.frame[columns["title"]]).alias("title"))
    events = events_of(
        table, found.chosen, form or EventForm(), now_ms=time.time_ns() // 1_000_000, also=also
    )
    dropped = _by_kind(events.bad, table)
    rows = events.rows
    checks = {
        f"action is none of {', '.join(POSITIVE_ACTIONS)}": pl.col("action").is_in(POSITIVE_ACTIONS),
        "price is no number": pl.col("price").is_not_null() if "price" in columns else pl.lit(True),
        "the user's only event": (pl.len().over("user_id") > 1) | lone,
    }
    for reason, keep in checks.items():
        kept = rows.filter(keep)
        if left_out := rows.height - kept.height:
            dropped[reason] = left_out
        rows = kept
    if not rows.height:
        why = "; ".join(f"{reason}: {count:,}" for reason, count in dropped.items())
        raise DatasetError(
            f"nothing is left of the {table.rows:,} rows of {named(table.paths)} ({why}): correct the file or --map"
        )
    if not titles:
        item_ids, texts = rows["item_id"].unique().sort(), None
    else:
        titled = (
            rows.filter(pl.col("title").str.strip_chars() != "")
            .group_by("item_id", maintain_order=True)
            .agg(pl.first("title"))
            .sort("item_id")
        )
        bare = rows.select("item_id").unique().join(titled, on="item_id", how="anti").sort("item_id")
        item_ids = pl.concat([titled["item_id"], bare["item_id"]])
        texts = [item_text(title) for title in titled["title"]]
    ordered = in_order(rows.select("user_id", "item_id", "action", "at_ms"))
    return Dataset(
        table.path.name,
        item_ids.to_list(),
        texts,
        log_of(ordered, item_ids),
        fingerprint_of(table.paths),
        dropped,
        [*table.notes, *events.notes],
    )


def read_events(found: Opened, form: EventForm) -> Events:
    """The events of a file, as `headwater import clicks` takes them. Raises ImportFileError: the form does not fit it."""
    return events_of(found.table, found.chosen, form, now_ms=time.time_ns() // 1_000_000)


def _by_kind(bad: Sequence[BadRow], table: Table) -> dict[str, int]:
    """The number of bad rows of each kind, told by the first of them."""
    kinds: dict[str, list[str]] = {}
    for row in bad:
        kind = re.sub(r"got .*?, expected", "", row.reason, flags=re.DOTALL)
        kinds.setdefault(kind, []).append(f"such as {table.place(row.line)}: {row.reason}")
    return {reasons[0]: len(reasons) for reasons in kinds.values()}


def _complete_journey(path: Path | None) -> Dataset:
    products, purchases = complete_journey.catalog(path), complete_journey.events(path)
    unlisted = purchases.select("item_id").unique().join(products, on="item_id", how="anti").sort("item_id")
    item_ids = pl.concat([products["item_id"], unlisted["item_id"]])
    # Products are numbered as they come in: the median number of those first sold is 1.1 million in January and February,
    # 8.2 million in September and October.
    numbers = item_ids.cast(pl.Int64).to_numpy()
    return Dataset(
        name="complete-journey",
        item_ids=item_ids.to_list(),
        texts=complete_journey.item_texts(products),
        log=log_of(purchases, item_ids),
        fingerprint=complete_journey.fingerprint(path),
        notes=["the items of a basket share a second: in an order of chance, one millisecond apart"],
        usual_at=complete_journey.SPLIT,
        attributes=products["attributes"].to_list(),
        came_in=numbers,
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
        notes=[NO_TIMES],
    )


_BUILT_IN: Final[dict[str, Callable[[Path | None], Dataset]]] = {
    "complete-journey": _complete_journey,
    "ml-100k": _ml_100k,
    "beauty": _beauty,
}
