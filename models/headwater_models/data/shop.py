"""A shop's files as one data set: the catalog with its texts, and what users did with it."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl

from headwater.encoder.features import item_text
from headwater.files.contents import Files, files_of, named
from headwater.files.events import Events
from headwater_models.data.datasets import Dataset, DatasetError, fingerprint_of
from headwater_models.data.events import POSITIVE_ACTIONS, in_order, log_of

if TYPE_CHECKING:
    from headwater.files.items import Items

_SHOWN = 5
_STRANGE = "the item is not in the catalog"
_MARKS = re.compile(r"[\W_]+")
_NEGATIVE = f"action is none of {', '.join(POSITIVE_ACTIONS)}"


class Shop(NamedTuple):
    """The data set of a shop, and what a person has to know of how it was made."""

    data: Dataset
    said: list[str]


def shop_of(items: "Items | None", events: Events, files: Sequence[Files]) -> Shop:
    """Catalog and events of a shop. `files`: those of the catalog, if there is one, and those of the clicks.

    Without a catalog (None) the items are those of the events, known by their ids. Items with a text come first. Of the
    events, those on items of the catalog that are positive stay, of users with two or more. An item that stands in several
    rows counts as its last one, as a worker takes it.

    Raises DatasetError: no items, no events to learn from, or events on one item only.
    """
    clicks, said = named(files[-1]), []
    if items is None:
        catalog, texts = "a catalog", dict.fromkeys(events.rows["item_id"].unique(maintain_order=True), "")
        said.append(
            "no catalog: the items are those of the clicks; --catalog FILE with their texts also finds new ones"
        )
    else:
        catalog, texts = named(files[0]), _texts(items)
        if not texts:
            raise DatasetError(f"{catalog} has no item that can be used: correct the file or --map")
    titled = [item_id for item_id, text in texts.items() if text.strip(" .")]
    bare = [item_id for item_id, text in texts.items() if not text.strip(" .")]
    if bare and titled:
        said.append(
            f"{catalog}: {len(bare):,} of {len(texts):,} items have no text{_such_as(bare)}; a bundle that reads texts "
            "cannot recommend them"
        )
    item_ids = pl.Series(titled + bare, dtype=pl.String)
    rows, dropped = events.rows, dict[str, int]()
    otherwise = ""
    known = rows["item_id"].is_in(item_ids.implode())
    if not known.all():
        strange = rows.filter(~known)
        ids = strange["item_id"].unique(maintain_order=True).to_list()
        said.append(
            f"{clicks}: {len(strange):,} of {len(rows):,} events ({len(strange) / len(rows):.1%}) are on {len(ids):,} items "
            f"that are not in the catalog{_such_as(ids)}; nothing is learned from them, and a worker counts such clicks as "
            "soon as it is given the item"
        )
        otherwise = _written_otherwise(ids, texts)
        if otherwise:
            said.append(f"{clicks}: {otherwise}")
        dropped[_STRANGE] = len(strange)
        rows = rows.filter(known)
    checks = {
        _NEGATIVE: pl.col("action").is_in(POSITIVE_ACTIONS),
        "the user's only event": pl.len().over("user_id") > 1,
    }
    for reason, keep in checks.items():
        kept = rows.filter(keep)
        if left_out := rows.height - kept.height:
            dropped[reason] = left_out
            said.append(f"{clicks}: {left_out:,} events are left out: {reason}")
        rows = kept
    if not rows.height:
        why = "; ".join(f"{reason}: {count:,}" for reason, count in dropped.items()) or "it has none"
        most = max(dropped, key=dropped.__getitem__, default="")
        remedy = "export more of them"
        if most == _STRANGE:
            remedy = (
                otherwise
                or f"see which column is the item's id (--map item_id=COLUMN), and that {catalog} is of the same shop"
            )
        elif most == _NEGATIVE:
            remedy = "say which names are positive (--action NAME=click), or give the events of what users looked at"
        raise DatasetError(
            f"nothing is left of the {len(events.rows):,} events of {clicks} ({why}): expected positive events of users with "
            f"two or more, on items of {catalog}; {remedy}"
        )
    if rows["item_id"].n_unique() < 2:
        raise DatasetError(
            f"all events of {clicks} that are left are on one item, {rows['item_id'][0]}: expected two items or more, since "
            "there is nothing to choose between"
        )
    ordered = in_order(rows.select("user_id", "item_id", "action", "at_ms"))
    data = Dataset(
        files_of(files[-1])[0].name,
        item_ids.to_list(),
        [texts[item_id] for item_id in titled],
        log_of(ordered, item_ids),
        fingerprint_of(file for each in files for file in files_of(each)),
        dropped,
        list(events.notes),
    )
    if items is not None:
        by_id = {row.item.item_id: row.item for row in items.rows}
        listed = [by_id[item_id] for item_id in data.item_ids]
        came_in = np.array([item.since_ms or 0 for item in listed], dtype=np.int64)
        data = replace(data, attributes=[item.attributes for item in listed], came_in=came_in)
    return Shop(data, said)


def _texts(items: "Items") -> dict[str, str]:
    """The text of each item, by its id."""
    return {
        row.item.item_id: item_text(
            row.item.title, row.item.description, row.item.category, row.item.tags, row.item.attributes
        )
        for row in items.rows
    }


def _written_otherwise(ids: Sequence[str], catalog: Iterable[str]) -> str:
    """What is told of ids that are one of the catalog but for how they are written; "" without any."""
    known = {bare: each for each in catalog if (bare := _bare(each))}
    found = [each for each in ids if _bare(each) in known]
    if not found:
        return ""
    return (
        f"{len(found):,} of these ids differ from one of the catalog in leading zeros, capitals or marks alone, such as "
        f"{found[0]} and {known[_bare(found[0])]}: export both files with the same ids"
    )


def _bare(item_id: str) -> str:
    """An id without capitals, marks and the zeros before it."""
    return _MARKS.sub("", item_id.removesuffix(".0").lower()).lstrip("0")


def _such_as(ids: Sequence[str]) -> str:
    return f", such as {', '.join(ids[:_SHOWN])}"
