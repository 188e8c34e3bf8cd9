"""Rows into topics: what really lands on the broker, and what is said about rows that it does not take."""

from collections import defaultdict
from pathlib import Path

import msgspec
import polars as pl
import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from headwater.commands.import_files import (
    ImportFileError,
    Prepared,
    Row,
    _sizes,
    check_rejects,
    gone,
    messages,
    prepared_clicks,
    prepared_items,
    prepared_offers,
    publish,
    records,
    without_too_large,
    write_rejects,
)
from headwater.commands.terminal import NoAnswer
from headwater.files.events import EventForm, events_of
from headwater.files.items import ItemForm, items_of
from headwater.files.offers import offers_of
from headwater.files.presets import opened
from headwater.kafka import topics
from headwater.kafka.partitioner import partition_of
from headwater.kafka.topics import Topics
from headwater.messages import Click, decode_click
from headwater.settings import Settings

NOW_MS = 1_760_000_000_000
AT_MS = 1_700_000_000_000


def clicks(folder: Path, table: pl.DataFrame) -> Prepared:
    path = folder / "clicks.csv"
    table.write_csv(path)
    return prepared_clicks(events_of(*opened(path, "clicks"), EventForm(), now_ms=NOW_MS))


def items(folder: Path, table: pl.DataFrame, settings: Settings) -> Prepared:
    path = folder / "items.csv"
    table.write_csv(path)
    return prepared_items(items_of(*opened(path, "catalog"), ItemForm()), settings.bundle_path)


def click_table(**columns: list[object]) -> pl.DataFrame:
    size = len(next(iter(columns.values())))
    return pl.DataFrame(
        {"user_id": ["ann"] * size, "item_id": ["x"] * size, "at_ms": [AT_MS] * size, **columns}
    )


def clicks_of(prepared: Prepared) -> list[Click]:
    return [decode_click(record.key, record.value, NOW_MS) for chunk in records(prepared) for record in chunk]


def test_tied_times_of_a_user_keep_the_order_of_the_file(tmp_path: Path) -> None:
    table = click_table(
        user_id=["ann", "ben", "ann", "ann"], item_id=["1", "2", "3", "4"], at_ms=[AT_MS] * 3 + [AT_MS + 1]
    )
    found = clicks_of(clicks(tmp_path, table))
    assert [(each.item_id, each.at_ms - AT_MS) for each in found if each.user_id == "ann"] == [
        ("1", 0),
        ("3", 1),
        ("4", 2),
    ]
    assert [each.at_ms - AT_MS for each in found if each.user_id == "ben"] == [0]


def test_what_is_shown_is_what_is_published(tmp_path: Path) -> None:
    prepared = clicks(tmp_path, click_table(item_id=["a", "b", "c"]))
    assert messages(prepared, 2) == [record.value for chunk in records(prepared) for record in chunk][:2]
    catalog = items(tmp_path, pl.DataFrame({"item_id": ["a"], "title": ["Tea"]}), Settings())
    assert [msgspec.json.decode(each)["title"] for each in messages(catalog, 5)] == ["Tea"]


def test_offers_go_to_their_topic_with_what_the_row_states(tmp_path: Path) -> None:
    path = tmp_path / "prices.csv"
    path.write_text("item_id,available\np3,false\np4,\n")
    offers = offers_of(*opened(path, "offers"), ItemForm(), now_ms=NOW_MS)
    prepared = prepared_offers(offers)
    [[record]] = records(prepared)
    assert (prepared.kind, record.key, record.value) == (
        *("offers", b"p3", b'{"item_id":"p3","available":false}'),
    )
    assert [(row.line, row.reason[:10]) for row in prepared.bad] == [(3, "offer: got")]


def test_an_item_without_a_text_is_bad_where_the_bundle_reads_texts(tmp_path: Path) -> None:
    prepared = items(tmp_path, pl.DataFrame({"item_id": ["p3"], "available": ["false"]}), Settings())
    assert len(prepared) == 0
    assert prepared.bad[0].line == 2
    assert prepared.bad[0].reason.startswith("title: got '' and no other text, expected some")


def test_rejects_have_line_reason_and_row(tmp_path: Path) -> None:
    path = tmp_path / "clicks.csv"
    path.write_text("user_id,item_id,at_ms\nann,,5\nann\n")
    opened_file = opened(path, "clicks")
    events = events_of(*opened_file, EventForm(), now_ms=NOW_MS)
    write_rejects(tmp_path / "bad.jsonl", opened_file.table, events.bad)
    assert [msgspec.json.decode(line) for line in (tmp_path / "bad.jsonl").read_bytes().splitlines()] == [
        {
            "line": 2,
            "reason": "item_id: missing, expected an id",
            "row": {"user_id": "ann", "item_id": None, "at_ms": "5"},
        },
        {"line": 3, "reason": "got 1 fields, expected 3, as the header has", "row": None},
    ]


def test_rejects_of_a_line_of_several_rows_have_them_all(tmp_path: Path) -> None:
    path, rejects = tmp_path / "orders.jsonl", tmp_path / "bad.jsonl"
    path.write_text('{"user_id":"ann","at_ms":"2023-11-14","lines":[{"sku":"a"},{"sku":""}]}\n')
    found = opened(path, "clicks", ["item_id=lines.sku"])
    bad = events_of(*found, EventForm(), now_ms=NOW_MS).bad
    write_rejects(rejects, found.table, bad)
    (line,) = rejects.read_text().splitlines()
    assert [row["lines.sku"] for row in msgspec.json.decode(line)["row"]] == ["a", ""]


def test_rejects_of_several_files_name_the_file(tmp_path: Path) -> None:
    for name in ("1.csv", "2.csv"):
        (tmp_path / name).write_text("user_id,item_id,at_ms\nann,,1700000000\n")
    found = opened(tmp_path, "clicks")
    bad = events_of(*found, EventForm(), now_ms=NOW_MS).bad
    write_rejects(tmp_path / "bad.jsonl", found.table, bad)
    rows = [msgspec.json.decode(line) for line in (tmp_path / "bad.jsonl").read_bytes().splitlines()]
    assert [(row["file"], row["line"]) for row in rows] == [(str(tmp_path / f"{n}.csv"), 2) for n in (1, 2)]


def test_a_place_for_rejects_is_refused_before_anything_is_published(tmp_path: Path) -> None:
    path = tmp_path / "clicks.csv"
    path.write_text("user_id,item_id,at_ms\nann,x,5\n")
    table = opened(path, "clicks").table
    with pytest.raises(ImportFileError, match=r"clicks\.csv is the file that is read"):
        check_rejects(tmp_path / "." / "clicks.csv", table)
    with pytest.raises(ImportFileError, match=r"cannot write .* name another file"):
        check_rejects(tmp_path / "none" / "bad.jsonl", table)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ImportFileError, match=r"cannot write .*loop"):
        check_rejects(tmp_path / "loop", table)
    assert path.read_text().endswith("ann,x,5\n")


async def test_a_dry_run_refuses_what_the_topic_would_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = items(
        tmp_path, pl.DataFrame({"item_id": ["a", "b"], "title": ["T", "T"], "description": ["d" * 1_048_600, "d" * 99_999]}), Settings()
    )  # fmt: skip
    said: list[str] = []

    async def silent(settings: Settings) -> dict[str, dict[str, str]]:
        raise topics.NoBroker("no broker")

    monkeypatch.setattr(topics, "configs", silent)
    found = await without_too_large(Settings(), wanted, said.append)
    assert [row.item_id for row in found.items] == ["b"]
    assert [row.line for row in found.bad] == [2]
    assert "bytes, expected at most 1,048,588, Kafka's default: shorten its texts" in found.bad[0].reason
    assert len(said) == 1

    async def small(settings: Settings) -> dict[str, dict[str, str]]:
        return {Topics.named(settings.topic_prefix).catalog: {"max.message.bytes": "70000"}}

    monkeypatch.setattr(topics, "configs", small)
    found = await without_too_large(Settings(), wanted, said.append)
    assert [row.line for row in found.bad] == [2, 3]
    assert "expected at most 70,000, max.message.bytes of" in found.bad[1].reason
    assert len(said) == 1
    large = clicks(
        tmp_path,
        pl.DataFrame({"user_id": ["ann"], "item_id": ["x"], "at_ms": [AT_MS], "context.x": ["c" * 70_000]}),
    )
    assert (
        len(await without_too_large(Settings(), large, said.append)) == 1
    )  # another topic, which this broker lacks
    assert len(said) == 2


def test_the_size_of_a_record_is_what_a_broker_measures() -> None:
    # Kafka's own head of a record batch is 61 bytes, and this record has 14 more than its value.
    row = Row(1, "a", b"x" * 2_000_000)
    assert _sizes(Prepared("catalog", None, [row], [], [])) == [2_000_075]


def test_what_is_too_large_for_a_worker_is_bad(tmp_path: Path) -> None:
    (bad,) = items(tmp_path, pl.DataFrame({"item_id": ["a"], "title": ["t" * 1_000_000]}), Settings()).bad
    assert bad.reason.endswith(
        "with the item's vector, expected at most 1,000,000: shorten title, tags or attributes"
    )
    path = tmp_path / "offers.jsonl"
    path.write_bytes(msgspec.json.encode({"item_id": "a", "attributes": {"x": "y" * 66_000}}))
    offers = prepared_offers(offers_of(*opened(path, "offers"), ItemForm(), now_ms=NOW_MS))
    assert len(offers) == 0
    assert "expected at most 65,536: shorten its attributes" in offers.bad[0].reason


# Onto the broker


async def everything(settings: Settings, topic: str, partitions: int) -> list[ConsumerRecord]:
    places = [TopicPartition(topic, number) for number in range(partitions)]
    found: list[ConsumerRecord] = []
    async with AIOKafkaConsumer(**settings.kafka_options(), auto_offset_reset="earliest") as consumer:
        consumer.assign(places)
        ends = await consumer.end_offsets(places)
        for place in places:
            consumer.seek(place, 0)
        while len(found) < sum(ends.values()):
            for batch in (await consumer.getmany(timeout_ms=1000)).values():
                found += batch
    return found


async def test_every_click_lands_once_on_its_users_partition_in_the_order_of_the_file(
    settings: Settings, tmp_path: Path
) -> None:
    await topics.create(settings)
    size = 50_000
    table = pl.DataFrame(
        {
            "user_id": [f"user-{n % 700}" for n in range(size)],
            "item_id": [str(n) for n in range(size)],
            "at_ms": [AT_MS + n // 900 for n in range(size)],
        }
    )
    progress: list[int] = []
    report = await publish(settings, clicks(tmp_path, table), progress.append)
    assert (report.published, report.bad) == (size, [])
    assert progress == sorted(progress)
    assert progress[-1] == size
    by_user: dict[str, list[int]] = defaultdict(list)
    for record in await everything(settings, Topics.named(settings.topic_prefix).clicks, settings.partitions):
        click = decode_click(record.key, record.value, record.timestamp)
        assert record.partition == partition_of(record.key, settings.partitions)
        by_user[click.user_id].append(int(click.item_id))
    assert sum(map(len, by_user.values())) == size
    for found in by_user.values():
        assert found == sorted(found)


async def test_a_row_that_the_topic_does_not_take_is_named_and_the_others_are_published(
    settings: Settings, tmp_path: Path
) -> None:
    await topics.create(settings)
    texts = ["Tea", "x" * 1_200_000, "Coffee"]
    prepared = items(tmp_path, pl.DataFrame({"item_id": list("abc"), "description": texts}), settings)
    report = await publish(settings, prepared)
    assert report.published == 2
    assert [(bad.line, "does not take it: got 1200" in bad.reason) for bad in report.bad] == [(3, True)]
    told = await without_too_large(settings, prepared, lambda _: None)
    assert ([row.item_id for row in told.items], [bad.line for bad in told.bad]) == (["a", "c"], [3])


async def test_a_dry_run_and_the_broker_agree_to_the_byte(settings: Settings, tmp_path: Path) -> None:
    await topics.create(settings)

    def of(*lengths: int) -> Prepared:
        texts = ["x" * length for length in lengths]
        table = pl.DataFrame({"item_id": [str(n) for n in range(len(lengths))], "description": texts})
        return items(tmp_path, table, settings)

    rest = _sizes(of(1_000_000))[0] - 1_000_000  # of the record beside its text
    prepared = of(1_048_588 - rest, 1_048_589 - rest)
    told = await without_too_large(settings, prepared, lambda _: None)
    report = await publish(settings, prepared)
    assert [bad.line for bad in told.bad] == [bad.line for bad in report.bad] == [3]


async def test_what_a_whole_catalog_no_longer_has_is_deleted_and_nothing_else(
    settings: Settings, tmp_path: Path
) -> None:
    await topics.create(settings)
    assert await gone(settings, {"a"}) == []
    whole = pl.DataFrame({"item_id": ["a", "b", "c"], "title": ["Tea", "Coffee", "Juice"]})
    await publish(settings, items(tmp_path, whole, settings))
    assert await gone(settings, {"a", "bad"}) == ["b", "c"]
    await publish(settings, items(tmp_path, whole[:1], settings), deleted=["b", "c"])
    topic = Topics.named(settings.topic_prefix).catalog
    newest = {
        record.key: record.value for record in await everything(settings, topic, settings.catalog_partitions)
    }
    assert {key for key, value in newest.items() if value is None} == {b"b", b"c"}
    assert await gone(settings, {"a"}) == []


async def test_a_topic_that_is_missing_is_named_with_the_remedy(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ImportFileError, match=r"has no topic .*clicks.*headwater topics create"):
        await publish(settings, clicks(tmp_path, click_table(item_id=["x"])))


async def test_a_broker_that_is_down_is_said_so(tmp_path: Path) -> None:
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1")
    with pytest.raises(NoAnswer, match=r"127\.0\.0\.1:1 \(no connection\)"):
        await publish(settings, clicks(tmp_path, click_table(item_id=["x"])))
