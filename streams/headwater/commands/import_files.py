"""Publish rows of files to the topics of catalog, clicks and offers; rows that worker or broker refuse are reported by line."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec
import polars as pl
from aiokafka.errors import KafkaError

from headwater.commands.group_checks import places_of
from headwater.commands.terminal import NoAnswer
from headwater.encoder import bundle
from headwater.encoder.features import required_text
from headwater.files.contents import ImportFileError
from headwater.files.events import Events, message_of
from headwater.files.items import ItemRow, Items
from headwater.files.offers import Offers
from headwater.files.table import BadRow, Table
from headwater.kafka.publish import Outgoing, Refused, producer_of, write_accepted, write_keyed
from headwater.kafka.topics import Topics
from headwater.kafka.unreachable import why_unreachable
from headwater.messages import BadMessage, Click
from headwater.paths.item_versions import read_whole, reader
from headwater.settings import Settings
from headwater_models.data.events import in_order

Kind = Literal["catalog", "clicks", "offers"]
Done = Callable[[int], None]  # called with the number of rows published so far

_CONNECT_TIMEOUT_S: Final = 10.0
# Encoding a chunk holds the event loop for about 50 ms, and makes about 256 KiB for each of a few partitions.
_CHUNK: Final = 20_000
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
    """Catalog entries in file order. Those without a text are bad where the bundle in ``folder`` reads texts.

    Raises:
        BundleError: there is no bundle.
    """
    manifest = bundle.manifest_of(folder, bundle.manifest_bytes(folder))
    if manifest.item_inputs != "text":
        return Prepared("catalog", None, [_row_of(row) for row in items.rows], items.bad, items.notes)
    good, bad = list[Row](), list(items.bad)
    for row in items.rows:
        try:
            required_text(row.item, manifest.name)
        except BadMessage as error:
            bad.append(BadRow(row.line, str(error)))
        else:
            good.append(_row_of(row))
    return Prepared("catalog", None, good, sorted(bad), items.notes)


def _row_of(row: ItemRow) -> Row:
    return Row(row.line, row.item.item_id, row.message)


def prepared_offers(offers: Offers) -> Prepared:
    """Offers in file order."""
    rows = [Row(row.line, row.offer.item_id, row.message) for row in offers.rows]
    return Prepared("offers", None, rows, offers.bad, offers.notes)


def messages(prepared: Prepared, count: int) -> list[bytes]:
    """The first ``count`` messages as they would be published."""
    if prepared.clicks is None:
        return [row.message for row in prepared.items[:count]]
    return [message_of(row) for row in prepared.clicks.head(count).select(_MESSAGE).iter_rows()]


def write_rejects(path: Path, table: Table, bad: Sequence[BadRow]) -> None:
    """Write bad rows as JSON lines: line, reason, and the row's values by column where it has any.

    Raises:
        ImportFileError: the file cannot be written.
    """
    wanted = pl.DataFrame({"__line": [row.line for row in bad]}, schema={"__line": pl.Int64}).unique()
    rows = table.frame.with_columns(table.lines.alias("__line")).join(wanted, on="__line", how="semi")
    values = {row.pop("__line"): row for row in rows.iter_rows(named=True)}
    found = [{"line": row.line, "reason": row.reason, "row": values.get(row.line)} for row in bad]
    try:
        path.write_bytes(b"".join(msgspec.json.encode(each, enc_hook=str) + b"\n" for each in found))
    except OSError as error:
        raise ImportFileError(
            f"cannot write {path} ({error.strerror}): name another file with --rejects"
        ) from error


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
    topics = Topics.named(settings.topic_prefix)
    topic: str = getattr(topics, prepared.kind)
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
