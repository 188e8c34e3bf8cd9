"""Files into the catalog and clicks topics: columns become message fields, rows become record batches.

Each column is checked at once. A bad row is counted, the first few are shown, and the others are published.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import msgspec
import polars as pl
import xxhash
from aiokafka.errors import KafkaError

from headwater.commands.terminal import NoAnswer
from headwater.kafka.publish import Outgoing, producer_of, write_keyed
from headwater.kafka.topics import Topics
from headwater.kafka.unreachable import why_unreachable
from headwater.messages import ACTIONS, MAX_AHEAD_MS, MAX_ID_BYTES, MIN_AT_MS, Click, Item, encode
from headwater.settings import Settings
from headwater_models.data import tabular_files
from headwater_models.data.events import in_order
from headwater_models.data.tabular_files import Fields, ImportFileError, TimeUnit, at_ms, text

Kind = Literal["catalog", "clicks"]
Done = Callable[[int], None]  # called with the number of rows published so far

CLICK_FIELDS: Final = ("user_id", "item_id", "at_ms", "action", "event_id")
ITEM_FIELDS: Final = (
    "item_id", "title", "description", "tags", "category", "price", "available", "image", "version", "since_ms",
    "attributes",
)  # fmt: skip
FIELDS: Final[dict[Kind, Fields]] = {
    "clicks": Fields("clicks", CLICK_FIELDS, required=("user_id", "item_id", "at_ms"), open_ended="context."),
    "catalog": Fields("catalog", ITEM_FIELDS, required=("item_id",), open_ended="attributes."),
}
_CONNECT_TIMEOUT_S: Final = 10.0
# Encoding a chunk holds the event loop for about 50 ms, and makes about 256 KiB for each of a few partitions.
_CHUNK: Final = 20_000
_SHOWN: Final = 5
_NOTE: Final = "__problem"
_ROW: Final = "__row"


class BadRow(NamedTuple):
    """A row that is not published. Rows count from 1, without the header line."""

    number: int
    reason: str


@dataclass
class Report:
    """What an import did: numbers of rows, the first bad ones, and the time that publishing took."""

    rows: int = 0
    published: int = 0
    bad: int = 0
    first_bad: list[BadRow] = field(default_factory=list)
    seconds: float = 0.0


class Prepared(NamedTuple):
    """The good rows as message fields, in the order of publishing, and what is wrong with the others.

    Attributes:
        rows: a column for each message field.
        total: all rows of the file.
        bad: how many of them are not in ``rows``.
    """

    rows: pl.DataFrame
    total: int
    bad: int
    first_bad: list[BadRow]


async def publish(settings: Settings, kind: Kind, prepared: Prepared, done: Done = lambda _: None) -> Report:
    """Publish the good rows and wait until the broker has acknowledged all of them.

    Raises:
        NoAnswer: no broker.
        ImportFileError: no topic.
        StopWorker: the broker stopped acknowledging.
    """
    topics = Topics.named(settings.topic_prefix)
    topic = topics.clicks if kind == "clicks" else topics.catalog
    started = time.perf_counter()
    producer = producer_of(settings)
    try:
        try:
            await asyncio.wait_for(producer.start(), _CONNECT_TIMEOUT_S)
        except (KafkaError, OSError, TimeoutError) as error:
            failure = str(error) or f"waited {_CONNECT_TIMEOUT_S:g} s"
            raise NoAnswer(await why_unreachable(settings, failure)) from error
        existing = (await producer.client.fetch_all_metadata()).topics()
        if topic not in existing:
            raise ImportFileError(
                f"the broker at {settings.bootstrap_servers} has no topic {topic}: run `headwater topics create`"
            )
        partitions = len(await producer.partitions_for(topic))
        published = await write_keyed(producer, topic, partitions, records(kind, prepared.rows), done)
    finally:
        await producer.stop()
    return Report(
        prepared.total, published, prepared.bad, prepared.first_bad, round(time.perf_counter() - started, 3)
    )


# From table to message fields


def mapping(kind: Kind, columns: Sequence[str], given: Iterable[str]) -> dict[str, str]:
    """The column of each field of a kind of message: see :func:`headwater_models.data.tabular_files.mapping`.

    Raises:
        ImportFileError: a required field has no column, or ``given`` names what is not there.
    """
    return tabular_files.mapping(FIELDS[kind], columns, given)


def prepared_clicks(
    table: pl.DataFrame, columns: dict[str, str], *, now_ms: int, unit: TimeUnit = "auto"
) -> Prepared:
    """Clicks by time, in file order among equal times; equal times of one user are spread 1 ms apart.

    A row without an event id gets one made from its place and content, so a repeated import changes nothing.
    """
    rows = table.select(
        pl.int_range(1, pl.len() + 1).alias(_ROW),
        text(table, columns["user_id"], "user_id"),
        text(table, columns["item_id"], "item_id"),
        at_ms(table[columns["at_ms"]], unit).alias("at_ms"),
        table[columns["at_ms"]].cast(pl.String, strict=False).alias("__at"),
        (
            text(table, columns["action"], "action")
            if "action" in columns
            else pl.lit("click").alias("action")
        ),
        (
            text(table, columns["event_id"], "event_id")
            if "event_id" in columns
            else pl.lit("").alias("event_id")
        ),
        _context(table, columns),
    ).with_columns(pl.col("action").replace("", "click"))
    without_item = pl.col("action").is_in(["retract", "forget"])
    latest = now_ms + MAX_AHEAD_MS
    rows = rows.with_columns(
        _first_problem(
            *_bad_id("user_id"),
            (~pl.col("action").is_in(list(ACTIONS)), _got("action", f"one of {', '.join(ACTIONS)}")),
            *((condition & ~without_item, text) for condition, text in _bad_id("item_id")),
            (
                pl.col("event_id").str.len_bytes() > MAX_ID_BYTES,
                _got("event_id", f"at most {MAX_ID_BYTES} bytes"),
            ),
            (
                (pl.col("action") == "retract") & (pl.col("event_id") == ""),
                pl.lit("event_id: got '', expected the id of the event to retract"),
            ),
            (
                pl.col("at_ms").is_null(),
                pl.format(
                    "at_ms: got '{}', expected an ISO time, seconds or milliseconds",
                    pl.col("__at").fill_null(""),
                ),
            ),
            (
                ~pl.col("at_ms").is_between(MIN_AT_MS, latest),
                pl.format(
                    "at_ms: got '{}', expected a time from 1973 to two days from now",
                    pl.col("__at").fill_null(""),
                ),
            ),
        )
    )
    good, total, bad, first = _parted(rows)
    missing = good["event_id"] == ""
    if missing.any():
        content = good.select(
            pl.concat_str(_ROW, "user_id", "item_id", "action", "at_ms", separator="\x1f")
        ).to_series()
        made = [xxhash.xxh3_128_hexdigest(text.encode()) for text in content]
        good = good.with_columns(
            pl.when(missing)
            .then(pl.Series(made, dtype=pl.String))
            .otherwise(pl.col("event_id"))
            .alias("event_id")
        )
    ordered = in_order(good) if len(good) else good
    return Prepared(ordered.drop(_ROW, _NOTE, "__at"), total, bad, first)


def prepared_items(table: pl.DataFrame, columns: dict[str, str], *, unit: TimeUnit = "auto") -> Prepared:
    """Catalog entries in file order.

    Raises:
        ImportFileError: the column of all attributes holds no objects.
    """
    given = [name for name in columns if name in ("title", "description", "category", "image")]
    chosen: list[pl.Expr | pl.Series] = [
        pl.int_range(1, pl.len() + 1).alias(_ROW),
        text(table, columns["item_id"], "item_id"),
    ]
    problems = list(_bad_id("item_id"))
    chosen += [text(table, columns[name], name) for name in given]
    if "tags" in columns:
        chosen.append(_tags(table[columns["tags"]]).alias("tags"))
    for name, dtype, expected in (
        ("price", pl.Float64, "a number >= 0"),
        ("version", pl.Int64, "a whole number >= 0"),
    ):
        if name in columns:
            source = table[columns[name]]
            if source.dtype == pl.String:
                source = source.str.strip_chars().replace("", None)
            chosen += [
                source.cast(dtype, strict=False).alias(name),
                source.cast(pl.String, strict=False).alias(f"__{name}"),
            ]
            wrong = pl.col(f"__{name}").is_not_null() & (
                pl.col(name).is_null() | ~(pl.col(name) >= 0) | ~pl.col(name).cast(pl.Float64).is_finite()
            )
            problems.append((wrong, pl.format(f"{name}: got '{{}}', expected {expected}", f"__{name}")))
    if "since_ms" in columns:
        source = table[columns["since_ms"]]
        shown = source.cast(pl.String, strict=False).str.strip_chars().replace("", None)
        chosen += [at_ms(source, unit).alias("since_ms"), shown.alias("__since_ms")]
        wrong = pl.col("since_ms").is_null() | (pl.col("since_ms") < MIN_AT_MS)
        expected = "an ISO time, seconds or milliseconds, from 1973 on"
        problems.append(
            (
                pl.col("__since_ms").is_not_null() & wrong,
                pl.format(f"since_ms: got '{{}}', expected {expected}", "__since_ms"),
            )
        )
    if "available" in columns:
        chosen += [
            _flag(table[columns["available"]]).alias("available"),
            table[columns["available"]].cast(pl.String, strict=False).fill_null("").alias("__available"),
        ]
        problems.append(
            (
                pl.col("available").is_null(),
                pl.format("available: got '{}', expected true or false", "__available"),
            )
        )
    extra = {
        name.removeprefix("attributes."): columns[name] for name in columns if name.startswith("attributes.")
    }
    attributes = [_attribute(table[column]).alias(f"attributes.{name}") for name, column in extra.items()]
    if "attributes" in columns:
        whole = table[columns["attributes"]]
        if not isinstance(whole.dtype, pl.Struct):
            raise ImportFileError(
                f"column {columns['attributes']}: got {whole.dtype}, expected an object for attributes; map single "
                "columns with --map attributes.NAME=COLUMN"
            )
        attributes += [
            _attribute(part).alias(f"attributes.{part.name}") for part in whole.struct.unnest().get_columns()
        ]
    rows = table.select(*chosen, *attributes).with_columns(_first_problem(*problems))
    good, total, bad, first = _parted(rows)
    hidden = [name for name in good.columns if name.startswith("__")]
    return Prepared(good.drop(hidden), total, bad, first)


# From message fields to records


def records(kind: Kind, rows: pl.DataFrame) -> Iterator[list[Outgoing]]:
    """The records of prepared rows, in chunks."""
    of_slice = _click_records if kind == "clicks" else _item_records
    for part in rows.iter_slices(_CHUNK):
        yield of_slice(part)


def _click_records(rows: pl.DataFrame) -> list[Outgoing]:
    contexts: Iterable[str | None] = rows["context"]
    names = ("event_id", "user_id", "at_ms", "item_id", "action")
    empty = msgspec.Raw(b"{}")
    return [
        Outgoing(
            user_id.encode(),
            encode(
                Click(
                    event_id,
                    user_id,
                    at_ms,
                    item_id,
                    action,
                    msgspec.Raw(context.encode()) if context else empty,
                )
            ),
        )
        for event_id, user_id, at_ms, item_id, action, context in zip(
            *(rows[name].to_list() for name in names), contexts, strict=True
        )
    ]


def _item_records(rows: pl.DataFrame) -> list[Outgoing]:
    found = []
    for row in rows.iter_rows(named=True):
        attributes = {
            name.removeprefix("attributes."): row.pop(name)
            for name in list(row)
            if name.startswith("attributes.")
        }
        present = {name: value for name, value in row.items() if value is not None}
        item = Item(
            **present, attributes={name: value for name, value in attributes.items() if value is not None}
        )
        found.append(Outgoing(item.item_id.encode(), encode(item)))
    return found


# Columns


def _tags(source: pl.Series) -> pl.Series:
    if isinstance(source.dtype, pl.List):
        return source.cast(pl.List(pl.String)).list.drop_nulls().fill_null([])
    split = source.cast(pl.String).fill_null("").str.split("|").list.eval(pl.element().str.strip_chars())
    return split.list.eval(pl.element().filter(pl.element() != ""))


def _flag(source: pl.Series) -> pl.Series:
    """True or false; an empty cell means available."""
    if source.dtype == pl.Boolean:
        return source.fill_null(True)
    text = source.cast(pl.String).fill_null("").str.strip_chars().str.to_lowercase()
    words = {"": True, "true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    return text.replace_strict(words, default=None, return_dtype=pl.Boolean)


def _attribute(source: pl.Series) -> pl.Series:
    """Text, numbers or flags. A text column of numbers becomes numbers, unless one is a code such as 007."""
    if source.dtype == pl.Boolean:
        return source
    if source.dtype.is_numeric():
        return source.cast(pl.Float64)
    text = source.cast(pl.String)
    values = text.drop_nulls().filter(text.drop_nulls() != "")
    if len(values) and values.str.contains(r"^-?(0|[1-9]\d*)(\.\d+)?$").all():
        return text.replace("", None).cast(pl.Float64)
    return text


def _context(table: pl.DataFrame, columns: dict[str, str]) -> pl.Series | pl.Expr:
    """The `context.x` columns of each row as one JSON object."""
    parts = {
        name.removeprefix("context."): column
        for name, column in columns.items()
        if name.startswith("context.")
    }
    if not parts:
        return pl.lit(None, dtype=pl.String).alias("context")
    objects = table.select(**{name: table[column] for name, column in parts.items()})
    return pl.Series("context", [msgspec.json.encode(row).decode() for row in objects.iter_rows(named=True)])


# Rows that are wrong


def _got(name: str, expected: str) -> pl.Expr:
    return pl.format(f"{name}: got '{{}}', expected {expected}", pl.col(name).str.slice(0, 60))


def _bad_id(name: str) -> list[tuple[pl.Expr, pl.Expr]]:
    size = pl.col(name).str.len_bytes()
    return [
        (size == 0, pl.lit(f"{name}: empty, expected an id")),
        (size > MAX_ID_BYTES, pl.format(f"{name}: got {{}} bytes, expected at most {MAX_ID_BYTES}", size)),
    ]


def _first_problem(*problems: tuple[pl.Expr, pl.Expr]) -> pl.Expr:
    """The text of the first condition that holds; null where none does."""
    return pl.coalesce(
        *(pl.when(condition).then(text) for condition, text in problems), pl.lit(None, dtype=pl.String)
    ).alias(_NOTE)


def _parted(rows: pl.DataFrame) -> tuple[pl.DataFrame, int, int, list[BadRow]]:
    bad = rows.filter(pl.col(_NOTE).is_not_null())
    first = [BadRow(number, reason) for number, reason in bad.head(_SHOWN).select(_ROW, _NOTE).iter_rows()]
    return rows.filter(pl.col(_NOTE).is_null()), len(rows), len(bad), first
