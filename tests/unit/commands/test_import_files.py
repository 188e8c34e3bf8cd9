"""Files into topics: what is read from them, what is said about bad ones, what really lands on the broker."""

import gzip
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from headwater.commands.import_files import (
    ImportFileError,
    Prepared,
    mapping,
    prepared_clicks,
    prepared_items,
    publish,
    records,
)
from headwater.commands.terminal import NoAnswer
from headwater.kafka import topics
from headwater.kafka.partitioner import partition_of
from headwater.kafka.topics import Topics
from headwater.messages import MAX_AHEAD_MS, BadMessage, Click, Item, decode_click, decode_item
from headwater.settings import Settings
from headwater_models.data.tabular_files import read

NOW_MS = 1_760_000_000_000
AT_MS = 1_700_000_000_000


def clicks_of(prepared: Prepared) -> list[Click]:
    return [
        decode_click(record.key, record.value, NOW_MS)
        for chunk in records("clicks", prepared.rows)
        for record in chunk
    ]


def items_of(prepared: Prepared) -> list[Item]:
    chunks = list(records("catalog", prepared.rows))
    return [decode_item(record.key, record.value or b"") for chunk in chunks for record in chunk]


def clicks(table: pl.DataFrame, *maps: str) -> Prepared:
    return prepared_clicks(table, mapping("clicks", table.columns, maps), now_ms=NOW_MS)


def items(table: pl.DataFrame, *maps: str) -> Prepared:
    return prepared_items(table, mapping("catalog", table.columns, maps))


def click_table(**columns: list[object]) -> pl.DataFrame:
    size = len(next(iter(columns.values())))
    return pl.DataFrame(
        {"user_id": ["ann"] * size, "item_id": ["x"] * size, "at_ms": [AT_MS] * size, **columns}
    )


# Files


def test_csv_parquet_and_json_lines_give_the_same_clicks(tmp_path: Path) -> None:
    table = click_table(item_id=["007", "b"], at_ms=[AT_MS, AT_MS + 5])
    table.write_csv(tmp_path / "c.csv")
    table.write_parquet(tmp_path / "c.parquet")
    table.write_ndjson(tmp_path / "c.jsonl")
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress((tmp_path / "c.csv").read_bytes()))
    found = [
        clicks_of(clicks(read(tmp_path / name))) for name in ("c.csv", "c.parquet", "c.jsonl", "c.csv.gz")
    ]
    assert [click.item_id for click in found[0]] == ["007", "b"]
    assert found[0] == found[1] == found[2] == found[3]


def test_a_file_that_is_not_there_is_named_with_what_is(tmp_path: Path) -> None:
    (tmp_path / "clicks.csv").touch()
    with pytest.raises(ImportFileError, match=r"click\.csv is no file.*there is clicks\.csv"):
        read(tmp_path / "click.csv")


def test_an_ending_nobody_can_read_is_refused_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "clicks.xlsx").touch()
    with pytest.raises(ImportFileError, match=r"'\.xlsx', expected \.csv.*\.parquet"):
        read(tmp_path / "clicks.xlsx")


@pytest.mark.parametrize("name", ["c.parquet", "c.jsonl", "c.csv"])
def test_a_file_that_is_not_what_its_name_says_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x00\xff\xfe{{{" * 10 if name != "c.csv" else b"")
    with pytest.raises(ImportFileError, match="cannot be read") as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


# Mapping


def test_columns_are_mapped_by_name_and_by_hand() -> None:
    table = pl.DataFrame({"who": ["ann"], "sku": ["x"], "at_ms": [AT_MS], "page": ["home"]})
    (click,) = clicks_of(clicks(table, "user_id=who", "item_id=sku", "context.page=page"))
    assert (click.user_id, click.item_id, bytes(click.context)) == ("ann", "x", b'{"page":"home"}')


@pytest.mark.parametrize(
    ("given_maps", "reason"),
    [
        ([], r"no column for user_id, at_ms: the file has who, item_id, when; .*--map user_id=COLUMN"),
        (["user_id=wo"], r"no column wo; the file has who, item_id, when"),
        (["usr_id=who"], r"usr_id is no field of clicks \(did you mean user_id\?\)"),
        (["user_id"], r"expected field=column"),
    ],
)
def test_a_mapping_that_does_not_fit_says_what_is_there(given_maps: list[str], reason: str) -> None:
    with pytest.raises(ImportFileError, match=reason):
        mapping("clicks", ["who", "item_id", "when"], given_maps)


# Times


@pytest.mark.parametrize(
    "value",
    [
        "2023-11-14T22:13:20Z",
        "2023-11-14 22:13:20",
        "2023-11-14T22:13:20.000+00:00",
        "2023-11-14T23:13:20+0100",
        "1700000000",
        "1700000000.0",
        "1700000000000",
        1_700_000_000,
        1_700_000_000_000,
        1_700_000_000.0,
        datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC),
    ],
)
def test_a_time_may_be_iso_seconds_or_milliseconds(value: object) -> None:
    (click,) = clicks_of(clicks(click_table(at_ms=[value])))
    assert click.at_ms == AT_MS


def test_one_unit_holds_for_a_whole_column() -> None:
    prepared = clicks(click_table(at_ms=[AT_MS, AT_MS + 1, 1_700_000_000]))
    assert [bad.number for bad in prepared.first_bad] == [3]


def test_a_declared_unit_wins_over_what_the_numbers_look_like() -> None:
    table = click_table(at_ms=[1_700_000_000])
    columns = mapping("clicks", table.columns, [])
    assert prepared_clicks(table, columns, now_ms=NOW_MS, unit="ms").bad == 1
    assert prepared_clicks(table, columns, now_ms=NOW_MS, unit="seconds").bad == 0


def test_tied_times_of_a_user_keep_the_order_of_the_file() -> None:
    table = click_table(
        user_id=["ann", "ben", "ann", "ann"], item_id=["1", "2", "3", "4"], at_ms=[AT_MS] * 3 + [AT_MS + 1]
    )
    found = clicks_of(clicks(table))
    assert [(each.item_id, each.at_ms - AT_MS) for each in found if each.user_id == "ann"] == [
        ("1", 0),
        ("3", 1),
        ("4", 2),
    ]
    assert [each.at_ms - AT_MS for each in found if each.user_id == "ben"] == [0]


# Event ids


def test_a_repeated_import_gives_the_same_event_ids_and_equal_rows_differ() -> None:
    table = click_table(item_id=["x", "x"])
    first, again = clicks_of(clicks(table)), clicks_of(clicks(table))
    assert first == again
    assert first[0].event_id != first[1].event_id


def test_event_ids_of_the_file_are_kept_and_missing_ones_made() -> None:
    found = clicks_of(clicks(click_table(event_id=["e1", None], at_ms=[AT_MS, AT_MS + 1])))
    assert found[0].event_id == "e1"
    assert len(found[1].event_id) == 32


# Bad rows

AWKWARD = [
    {"user_id": "", "item_id": "x", "at_ms": AT_MS, "action": "click"},
    {"user_id": "é" * 256, "item_id": "x", "at_ms": AT_MS, "action": "click"},
    {"user_id": "é" * 257, "item_id": "x", "at_ms": AT_MS, "action": "click"},
    {"user_id": "ann", "item_id": "", "at_ms": AT_MS, "action": "click"},
    {"user_id": "ann", "item_id": "", "at_ms": AT_MS, "action": "forget"},
    {"user_id": "ann", "item_id": "x", "at_ms": AT_MS, "action": "buy"},
    {"user_id": "ann", "item_id": "x", "at_ms": 5, "action": "click"},
    {"user_id": "ann", "item_id": "x", "at_ms": NOW_MS + MAX_AHEAD_MS - 100, "action": "click"},
    {"user_id": "ann", "item_id": "x", "at_ms": NOW_MS + MAX_AHEAD_MS + 1, "action": "click"},
    {"user_id": "ann", "item_id": "y" * 513, "at_ms": AT_MS, "action": "view"},
]


def accepted_by_a_worker(row: dict[str, object]) -> bool:
    value = {"event_id": "e", **row}
    try:
        decode_click(None, pl.DataFrame([value]).write_ndjson().encode(), NOW_MS)
    except BadMessage:
        return False
    return True


@given(st.lists(st.sampled_from(AWKWARD), min_size=1, max_size=6))
def test_a_row_is_bad_exactly_when_a_worker_would_refuse_it(rows: list[dict[str, object]]) -> None:
    # Two good rows, so that the whole column is in milliseconds.
    good = {"user_id": "zoe", "item_id": "x", "at_ms": AT_MS, "action": "click"}
    table = pl.DataFrame([*rows, *[good] * (len(rows) + 1)])
    prepared = clicks(table)
    refused = [number for number, row in enumerate(rows, 1) if not accepted_by_a_worker(row)]
    assert prepared.bad == len(refused)
    assert [bad.number for bad in prepared.first_bad] == refused[:5]
    assert len(clicks_of(prepared)) == len(table) - len(refused)


def test_a_bad_row_names_its_field_the_value_and_what_is_expected() -> None:
    prepared = clicks(click_table(action=["buy", "click"], at_ms=[str(AT_MS), "soon"]))
    first, second = prepared.first_bad
    assert first.number == 1
    assert first.reason.startswith("action: got 'buy', expected one of click, view")
    assert second == (2, "at_ms: got 'soon', expected an ISO time, seconds or milliseconds")


def test_a_retraction_needs_the_event_it_takes_back() -> None:
    prepared = clicks(click_table(action=["retract", "retract"], event_id=["e1", ""], item_id=["", ""]))
    assert [bad.number for bad in prepared.first_bad] == [2]


# Catalog


def test_a_catalog_row_becomes_an_item(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text(
        "sku,title,tags,price,available,colour,weight,code\n"
        "7,Filter coffee,coffee| hot drinks|,4.50,no,red,2.5,007\n"
        "8,Tea,,,,,,\n"
    )
    maps = ["item_id=sku", "attributes.colour=colour", "attributes.weight=weight", "attributes.code=code"]
    found = items_of(items(read(tmp_path / "c.csv"), *maps))
    assert found == [
        Item(
            "7",
            "Filter coffee",
            tags=["coffee", "hot drinks"],
            price=4.5,
            available=False,
            attributes={"colour": "red", "weight": 2.5, "code": "007"},
        ),
        Item("8", "Tea"),
    ]


@pytest.mark.parametrize("since", [AT_MS, str(AT_MS), "2023-11-14T22:13:20Z"])
def test_a_catalog_row_may_say_since_when_the_item_is_there(since: object) -> None:
    table = pl.DataFrame({"item_id": ["a", "b"], "created": [since, None]})
    told, untold = items_of(items(table, "since_ms=created"))
    assert (told.since_ms, untold.since_ms) == (AT_MS, None)
    bad = items(pl.DataFrame({"item_id": ["a"], "since_ms": ["yesterday"]}))
    assert [row.reason for row in bad.first_bad] == [
        "since_ms: got 'yesterday', expected an ISO time, seconds or milliseconds, from 1973 on"
    ]


def test_nested_attributes_and_lists_of_tags_are_taken_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(
        '{"item_id": 7, "tags": ["a", "b"], "attributes": {"colour": "red", "organic": true}}\n'
        '{"item_id": 8, "tags": null, "attributes": {"colour": null, "size": 3}}\n'
    )
    assert items_of(items(read(tmp_path / "c.jsonl"))) == [
        Item("7", tags=["a", "b"], attributes={"colour": "red", "organic": True}),
        Item("8", attributes={"size": 3.0}),
    ]


def test_bad_catalog_rows_are_told_apart_from_good_ones() -> None:
    table = pl.DataFrame(
        {
            "item_id": ["", "a", "b", "c", "d"],
            "price": ["1", "cheap", "-2", "3", ""],
            "available": ["", "", "", "maybe", "yes"],
        }
    )
    prepared = items(table)
    assert [tuple(bad) for bad in prepared.first_bad] == [
        (1, "item_id: empty, expected an id"),
        (2, "price: got 'cheap', expected a number >= 0"),
        (3, "price: got '-2', expected a number >= 0"),
        (4, "available: got 'maybe', expected true or false"),
    ]
    assert items_of(prepared) == [Item("d")]


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
    settings: Settings,
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
    report = await publish(settings, "clicks", clicks(table), progress.append)
    assert (report.rows, report.published, report.bad) == (size, size, 0)
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


async def test_a_topic_that_is_missing_is_named_with_the_remedy(settings: Settings) -> None:
    with pytest.raises(ImportFileError, match=r"has no topic .*clicks.*headwater topics create"):
        await publish(settings, "clicks", clicks(click_table(item_id=["x"])))


async def test_a_broker_that_is_down_is_said_so() -> None:
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1")
    with pytest.raises(NoAnswer, match=r"127\.0\.0\.1:1 \(no connection\)"):
        await publish(settings, "clicks", clicks(click_table(item_id=["x"])))
