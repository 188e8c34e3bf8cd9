"""Publish rows of files to the topics of catalog, clicks and offers; rows that worker or broker refuse are reported by line."""

import asyncio
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec
import polars as pl
from aiokafka.errors import KafkaError
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from headwater.commands.group_checks import places_of
from headwater.commands.terminal import NoAnswer
from headwater.encoder import bundle
from headwater.encoder.features import required_text
from headwater.files.contents import ImportFileError
from headwater.files.events import Events, message_of
from headwater.files.items import ItemRow, Items
from headwater.files.offers import Offers
from headwater.files.table import BadRow, Table
from headwater.index.vectors_topic import payload_of
from headwater.kafka import topics
from headwater.kafka.publish import Outgoing, Refused, producer_of, write_accepted, write_keyed
from headwater.kafka.read_to_end import read_whole, reader
from headwater.kafka.topics import Topics
from headwater.kafka.unreachable import why_unreachable
from headwater.messages import MAX_AT_MS, MAX_OFFSET, BadMessage, Click, Item, ItemVector, OfferState, encode
from headwater.paths.catalog_offers import MAX_STATE_BYTES
from headwater.paths.catalog_publishing import MAX_RECORD_BYTES
from headwater.settings import Settings
from headwater_models.data.events import in_order

Kind = Literal["catalog", "clicks", "offers"]
Done = Callable[[int], None]  # called with the number of rows published so far

_CONNECT_TIMEOUT_S: Final = 10.0
# Encoding a chunk holds the event loop for about 50 ms, and makes about 256 KiB for each of a few partitions.
_CHUNK: Final = 20_000
# Of a smaller message, the record with the vector is within the bound too: a vector takes a few kB.
_LARGE_ITEM_BYTES: Final = MAX_RECORD_BYTES // 2
_OFFER_FIELDS_BYTES: Final = 120  # price and availability, with their times
_LOOK_TIMEOUT_S: Final = 3.0
# What every topic takes that takes records at all; a bound below this is a mistake that `topics check` tells.
_ANY_TOPIC_BYTES: Final = 65_536
_KAFKA_BYTES: Final = 1_048_588  # max.message.bytes where nobody sets it
_MESSAGE: Final = ("event_id", "user_id", "at_ms", "item_id", "action", "context")


@dataclass
class Report:
    """What an import did: records published, rows that the topic did not take, and the time that publishing took."""

    published: int = 0
    bad: list[BadRow] = field(default_factory=list)
    seconds: float = 0.0


class Row(NamedTuple):
    """A record of an item: its line, the item's id, and the message."""

    line: int
    item_id: str
    message: bytes


class Prepared(NamedTuple):
    """What is to be published, in that order, and the rows that are not.

    Attributes:
        clicks: the message fields, and the line; None for a catalog and for offers.
        items: rows of a catalog or offers.
    """

    kind: Kind
    clicks: pl.DataFrame | None
    items: Sequence[Row]
    bad: list[BadRow]
    notes: list[str]

    def __len__(self) -> int:
        return len(self.items) if self.clicks is None else len(self.clicks)


def prepared_clicks(events: Events) -> Prepared:
    """Clicks by time, in file order among equal times; equal times of one user are spread 1 ms apart."""
    rows = events.rows
    return Prepared("clicks", in_order(rows) if len(rows) else rows, (), events.bad, events.notes)


def prepared_items(items: Items, folder: Path) -> Prepared:
    """Catalog entries in file order. Those that are too large for a worker, or without a text where the bundle in ``folder``
    reads texts, are bad.

    Raises:
        BundleError: there is no bundle.
    """
    manifest = bundle.manifest_of(folder, bundle.manifest_bytes(folder))
    good, bad = list[Row](), list(items.bad)
    for row in items.rows:
        try:
            if manifest.item_inputs == "text":
                required_text(row.item, manifest.name)
            if len(row.message) > _LARGE_ITEM_BYTES:
                _check_vector_record(row.item, manifest.dim)
        except BadMessage as error:
            bad.append(BadRow(row.line, str(error)))
        else:
            good.append(_row_of(row))
    return Prepared("catalog", None, good, sorted(bad), items.notes)


def _check_vector_record(item: Item, dimension: int) -> None:
    """Raise BadMessage for an item whose record with its vector is larger than a catalog worker writes."""
    made = ItemVector(
        item.item_id, bytes(4 * dimension), payload_of(item, 0, 0), "", 2**31 - 1, MAX_OFFSET, item.version
    )
    size = len(item.item_id.encode()) + len(encode(made))
    if size > MAX_RECORD_BYTES:
        raise BadMessage(
            "too_large",
            f"got {size:,} bytes with the item's vector, expected at most {MAX_RECORD_BYTES:,}: shorten title, tags or attributes",
        )


def _row_of(row: ItemRow) -> Row:
    return Row(row.line, row.item.item_id, row.message)


def prepared_offers(offers: Offers) -> Prepared:
    """Offers in file order. Those that are too large for a worker are bad."""
    good, bad = list[Row](), list(offers.bad)
    for row in offers.rows:
        size = len(row.message)
        if size > MAX_STATE_BYTES // 2:
            stated = {name: (value, MAX_AT_MS) for name, value in row.offer.attributes.items()}
            size = (
                len(encode(OfferState(row.offer.item_id, MAX_OFFSET, attributes=stated)))
                + _OFFER_FIELDS_BYTES
            )
        if size > MAX_STATE_BYTES:
            reason = f"got an offer of {size:,} bytes, expected at most {MAX_STATE_BYTES:,}: shorten its attributes"
            bad.append(BadRow(row.line, reason))
        else:
            good.append(Row(row.line, row.offer.item_id, row.message))
    return Prepared("offers", None, good, sorted(bad), offers.notes)


def messages(prepared: Prepared, count: int) -> list[bytes]:
    """The first ``count`` messages as they would be published."""
    if prepared.clicks is None:
        return [row.message for row in prepared.items[:count]]
    return [message_of(row) for row in prepared.clicks.head(count).select(_MESSAGE).iter_rows()]


def write_rejects(path: Path, table: Table, bad: Sequence[BadRow]) -> None:
    """Write bad rows as JSON lines: line, reason, and the row's values by column where it has any; of several files the file.

    Where a line is several rows, such as those of an order, all of them are written.

    Raises:
        ImportFileError: the file cannot be written.
    """
    wanted = pl.DataFrame({"__line": [row.line for row in bad]}, schema={"__line": pl.Int64}).unique()
    rows = table.frame.with_columns(table.lines.alias("__line")).join(wanted, on="__line", how="semi")
    values = dict[int, list[dict[str, Any]]]()
    for each in rows.iter_rows(named=True):
        values.setdefault(each.pop("__line"), []).append(each)
    found = []
    for row in bad:
        place = table.place(row.line)
        where = {"line": place.line} if place.alone else {"file": str(place.path), "line": place.line}
        of_line = values.get(row.line, [None])
        found.append({**where, "reason": row.reason, "row": of_line[0] if len(of_line) == 1 else of_line})
    try:
        path.write_bytes(b"".join(msgspec.json.encode(each, enc_hook=str) + b"\n" for each in found))
    except OSError as error:
        raise ImportFileError(
            f"cannot write {path} ({error.strerror}): name another file with --rejects"
        ) from error


def check_rejects(path: Path, table: Table) -> None:
    """Refuse a place for bad rows that cannot be written, or that is a file they are read from.

    Raises:
        ImportFileError: it is such a place.
    """
    if os.path.realpath(path) in [os.path.realpath(each) for each in table.paths]:
        raise ImportFileError(
            f"--rejects {path} is the file that is read: name another file for the bad rows"
        )
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise ImportFileError(
            f"cannot write {path} ({error.strerror}): name another file with --rejects"
        ) from error


async def without_too_large(settings: Settings, prepared: Prepared, tell: Callable[[str], None]) -> Prepared:
    """What would be published, without what the topic would not take; such rows are bad.

    The broker is asked for the bound of the topic where a record is larger than any topic's bound should be. One that does not
    tell it in three seconds is taken to have Kafka's default, and this is told.
    """
    sizes = _sizes(prepared)
    if max(sizes, default=0) <= _ANY_TOPIC_BYTES:
        return prepared
    topic: str = getattr(Topics.named(settings.topic_prefix), prepared.kind)
    bound, whose = _KAFKA_BYTES, "Kafka's default"
    try:
        async with asyncio.timeout(_LOOK_TIMEOUT_S):
            configs = await topics.configs(settings)
        bound, whose = int(configs[topic]["max.message.bytes"]), f"max.message.bytes of {topic}"
    except (topics.TopicsError, TimeoutError, KeyError):
        tell(
            f"no broker tells the bound of {topic}, so records are held against Kafka's default of {_KAFKA_BYTES:,} bytes"
        )
    wrong = {place: size for place, size in enumerate(sizes) if size > bound}
    if not wrong:
        return prepared
    lines = (
        [row.line for row in prepared.items] if prepared.clicks is None else prepared.clicks["line"].to_list()
    )
    bad = [
        BadRow(
            lines[place],
            f"got a record of {size:,} bytes, expected at most {bound:,}, {whose}: shorten its texts",
        )
        for place, size in wrong.items()
    ]
    items = [row for place, row in enumerate(prepared.items) if place not in wrong]
    clicks = prepared.clicks
    if clicks is not None:
        clicks = clicks.filter(~pl.int_range(pl.len()).is_in(list(wrong)))
    return Prepared(prepared.kind, clicks, items, sorted([*prepared.bad, *bad]), prepared.notes)


def _sizes(prepared: Prepared) -> list[int]:
    """(records,) the bytes of a batch of each record alone, which is what a broker measures; exact for those that matter."""
    if prepared.clicks is None:
        return [
            _batch_bytes(row.item_id.encode(), row.message) if len(row.message) > _ANY_TOPIC_BYTES // 2 else 0
            for row in prepared.items
        ]
    rows = prepared.clicks
    # Ids are short, so only a context makes a click large.
    contexts = rows.select(pl.col("context").str.len_bytes().fill_null(0)).to_series()
    if not len(rows) or max(contexts) <= _ANY_TOPIC_BYTES // 2:
        return []
    return [
        _batch_bytes(row[1].encode(), message_of(row)) if length > _ANY_TOPIC_BYTES // 2 else 0
        for length, row in zip(contexts, rows.select(_MESSAGE).iter_rows(), strict=True)
    ]


def _batch_bytes(key: bytes, value: bytes) -> int:
    """The size of a record batch with this record alone, as our producer sends it: not packed."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=0,
    )
    builder.append(0, timestamp=0, key=key, value=value, headers=[])
    return len(builder.build())


async def gone(settings: Settings, kept: Collection[str]) -> list[str]:
    """The ids of the items that the catalog topic has, without those of ``kept``: what a full import deletes.

    Raises:
        NoAnswer: no broker.
        StopWorker: the broker gave nothing for two minutes.
    """
    topic, found = Topics.named(settings.topic_prefix).catalog, set[str]()
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S) as connecting, reader(settings) as consumer:
            if topic not in await consumer.topics():
                return []
            partitions = [place.partition for place in await places_of(consumer, topic)]
            connecting.reschedule(None)
            async for run in read_whole(consumer, topic, partitions):
                for record in run.records:
                    if (item_id := _id_of(record.key, record.value)) is not None:
                        (found.discard if record.value is None else found.add)(item_id)
    except (KafkaError, OSError, TimeoutError) as error:
        raise NoAnswer(await why_unreachable(settings, str(error) or type(error).__name__)) from error
    return sorted(found.difference(kept))


class _Named(msgspec.Struct):
    item_id: str


def _id_of(key: bytes | None, value: bytes | None) -> str | None:
    """The item of a catalog record; None for one that names none."""
    try:
        return key.decode() if key else msgspec.json.decode(value or b"", type=_Named).item_id
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


async def publish(
    settings: Settings, prepared: Prepared, done: Done = lambda _: None, *, deleted: Sequence[str] = ()
) -> Report:
    """Publish the good rows, then deletes of items, and wait until the broker has acknowledged all that it takes.

    Raises:
        NoAnswer: no broker.
        ImportFileError: no topic.
        StopWorker: the broker stopped acknowledging.
    """
    topic: str = getattr(Topics.named(settings.topic_prefix), prepared.kind)
    started = time.perf_counter()
    producer = producer_of(settings)
    try:
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await producer.start()
        except (KafkaError, OSError, TimeoutError) as error:
            failure = str(error) or f"waited {_CONNECT_TIMEOUT_S:g} s"
            raise NoAnswer(await why_unreachable(settings, failure)) from error
        existing = (await producer.client.fetch_all_metadata()).topics()
        if topic not in existing:
            raise ImportFileError(
                f"the broker at {settings.bootstrap_servers} has no topic {topic}: run `headwater topics create`"
            )
        partitions = len(await producer.partitions_for(topic))
        published, refused = await write_accepted(producer, topic, partitions, records(prepared), done)
        deletes = [Outgoing(item_id.encode(), None) for item_id in deleted]
        await write_keyed(producer, topic, partitions, [deletes] if deletes else [], lambda _: None)
    finally:
        await producer.stop()
    return Report(published, _lines_of(prepared, refused), round(time.perf_counter() - started, 3))


def records(prepared: Prepared) -> Iterator[list[Outgoing]]:
    """The records of what was prepared, in chunks."""
    if prepared.clicks is None:
        for start in range(0, len(prepared.items), _CHUNK):
            rows = prepared.items[start : start + _CHUNK]
            yield [Outgoing(row.item_id.encode(), row.message) for row in rows]
        return
    for part in prepared.clicks.select(_MESSAGE).iter_slices(_CHUNK):
        yield [Outgoing(row[1].encode(), message_of(row)) for row in part.iter_rows()]


def _lines_of(prepared: Prepared, refused: Sequence[Refused]) -> list[BadRow]:
    """The rows of records that the topic did not take."""
    found = []
    for each in refused:
        value = each.record.value or b""
        if prepared.clicks is None:
            lines = [row.line for row in prepared.items if row.message == value]
        else:
            click = msgspec.json.decode(value, type=Click)
            same = (pl.col("event_id") == click.event_id) & (pl.col("user_id") == click.user_id)
            lines = prepared.clicks.filter(same)["line"].to_list()
        found.append(BadRow(lines[0], each.message))
    return sorted(found)
