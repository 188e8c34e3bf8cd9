"""What is popular is published where it has changed, with the ids that the index knows."""

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import pytest_asyncio

from headwater.encoder.features import ACTION_CODES, item_key
from headwater.errors import StopWorker
from headwater.index import IndexUnavailable, Point
from headwater.index.edge import EdgeIndex
from headwater.kafka.publish import MAX_BATCH_BYTES
from headwater.messages import BadMessage, Trend, decode_trend, encode
from headwater.recall.popularity import HALF_LIFE_S, Counts
from headwater.worker.trends_publisher import TrendsPublisher, bounded, read_trend
from tests.support.recording_producer import RecordingProducer

TOPIC = "test.trends"
NOW_MS = int(time.time() * 1000)


class AwayIndex:
    """Cannot be reached."""

    async def items(self, keys: Any) -> Any:
        raise IndexUnavailable("it is away")


@pytest_asyncio.fixture
async def index(tmp_path: Path) -> AsyncIterator[EdgeIndex]:
    index = await EdgeIndex.open(tmp_path / "index", 2)
    await index.put([point("tea", 1), point("coffee", 2)])
    yield index
    await index.close()


def point(item_id: str, offset: int, *, deleted: bool = False, age_days: float | None = None) -> Point:
    vector = None if deleted else np.ones(2, np.float32)
    payload = {} if deleted else {"item_id": item_id, "available": True}
    if age_days is not None:
        payload["since_ms"] = NOW_MS - int(age_days * 86_400_000)
    return Point(item_key(item_id), item_id, vector, payload, None, 0, offset)


def bought(counts: Counts, *items: str) -> None:
    keys = np.array([item_key(item) for item in items], np.uint64)
    actions = np.full(len(items), ACTION_CODES["purchase"], np.uint8)
    counts.add(keys, actions, np.full(len(items), NOW_MS, np.int64))


def published(producer: RecordingProducer) -> dict[int, list[str]]:
    """By partition: the items of the newest record, most popular first."""
    trends = [decode_trend(record.value) for record in producer.records(TOPIC)]
    return {trend.partition: [item_id for item_id, _ in trend.counts] for trend in trends}


async def test_items_are_named_most_popular_first(index: EdgeIndex) -> None:
    producer, counts = RecordingProducer(1), Counts()
    bought(counts, "tea", "coffee", "coffee")
    await TrendsPublisher(cast(Any, producer), TOPIC, index, {3: counts}, "a-bundle", 30).publish()
    assert published(producer) == {3: ["coffee", "tea"]}


async def test_a_partition_without_new_clicks_is_not_published_again(index: EdgeIndex) -> None:
    producer, counts = RecordingProducer(1), {0: Counts(), 1: Counts()}
    publisher = TrendsPublisher(cast(Any, producer), TOPIC, index, counts, "a-bundle", 30)
    bought(counts[0], "tea")
    await publisher.publish()
    bought(counts[1], "coffee")
    await publisher.publish()
    await publisher.publish()
    assert [decode_trend(record.value).partition for record in producer.records(TOPIC)] == [0, 1]


async def test_an_item_that_the_index_does_not_have_is_left_out(index: EdgeIndex) -> None:
    producer, counts = RecordingProducer(1), Counts()
    bought(counts, "tea", "unheard of")
    await TrendsPublisher(cast(Any, producer), TOPIC, index, {0: counts}, "a-bundle", 30).publish()
    assert published(producer) == {0: ["tea"]}


async def test_a_deleted_item_is_no_longer_named(index: EdgeIndex) -> None:
    producer, counts = RecordingProducer(1), Counts()
    publisher = TrendsPublisher(cast(Any, producer), TOPIC, index, {0: counts}, "a-bundle", 30)
    bought(counts, "tea", "coffee")
    await publisher.publish()
    await index.put([point("tea", 9, deleted=True)])
    publisher.forget(item_key("tea"))
    bought(counts, "tea")
    await publisher.publish()
    assert published(producer) == {0: ["coffee"]}


async def test_an_item_that_stays_deleted_is_no_longer_counted_and_one_that_comes_back_is(
    index: EdgeIndex,
) -> None:
    counts, now_s = Counts(), [0.0]
    bought(counts, "tea", "coffee", "cup")
    publisher = TrendsPublisher(
        cast(Any, RecordingProducer(1)), TOPIC, index, {0: counts}, "a-bundle", 30, lambda: now_s[0]
    )
    await index.put([point(name, 1) for name in ("tea", "coffee", "cup")])
    await index.put([point(name, 9, deleted=True) for name in ("tea", "coffee")])
    for name in ("tea", "coffee"):
        publisher.forget(item_key(name))
    await index.put([point("coffee", 10)])
    now_s[0] = 599.0
    await publisher.drop_deleted()
    assert len(counts) == 3
    now_s[0] = 601.0
    await publisher.drop_deleted()
    assert {key for key, _ in counts.top()} == {item_key("coffee"), item_key("cup")}
    assert publisher._deleted == {}


async def test_counts_keep_while_the_index_is_away() -> None:
    producer, counts = RecordingProducer(1), Counts()
    bought(counts, "tea")
    await TrendsPublisher(
        cast(Any, producer), TOPIC, cast(Any, AwayIndex()), {0: counts}, "a-bundle", 30
    ).publish()
    assert producer.records(TOPIC) == []
    assert counts.changed


async def test_the_last_trends_hold_up_no_rebalance_where_the_broker_takes_nothing(index: EdgeIndex) -> None:
    producer, counts = RecordingProducer(1), Counts()
    producer.down = True
    bought(counts, "tea")
    publisher = TrendsPublisher(cast(Any, producer), TOPIC, index, {0: counts}, "a-bundle", 30)
    with pytest.raises(StopWorker):
        await publisher.publish()
    bought(counts, "tea")
    await publisher.publish_last()


# New items


def rising(producer: RecordingProducer) -> list[str]:
    """Of the newest record, heaviest first."""
    return [item_id for item_id, _ in decode_trend(producer.records(TOPIC)[-1].value).rising]


async def test_new_items_are_named_apart_however_much_others_weigh(index: EdgeIndex) -> None:
    producer, counts = RecordingProducer(1), Counts()
    ages: list[tuple[str, float | None]] = [
        ("new", 1),
        ("newer", 29),
        ("old", 31),
        ("coming", -1),
        ("undated", None),
    ]
    await index.put([point(name, 9, age_days=age) for name, age in ages])
    bought(counts, *["old", "undated", "coming"] * 9, "newer", "new", "new", "unheard of")
    publisher = TrendsPublisher(cast(Any, producer), TOPIC, index, {0: counts}, "a-bundle", 30)
    await publisher.publish()
    assert rising(producer) == ["new", "newer"]
    assert published(producer)[0][-2:] == ["new", "newer"], "they are popular as before"


async def test_an_item_that_is_clicked_before_the_catalog_has_it_rises_with_the_next_click(
    index: EdgeIndex,
) -> None:
    producer, counts = RecordingProducer(1), Counts()
    publisher = TrendsPublisher(cast(Any, producer), TOPIC, index, {0: counts}, "a-bundle", 30)
    bought(counts, "new")
    await publisher.publish()
    await index.put([point("new", 9, age_days=0)])
    bought(counts, "new")
    await publisher.publish()
    assert rising(producer) == ["new"]
    await index.put([point("new", 10, deleted=True)])
    publisher.forget(item_key("new"))
    bought(counts, "tea")
    await publisher.publish()
    assert rising(producer) == [], "a deleted item is no longer named"


async def test_when_an_item_came_in_is_looked_up_once() -> None:
    class Asked:
        def __init__(self) -> None:
            self.keys: list[int] = []

        async def items(self, keys: list[int]) -> dict[int, dict[str, Any]]:
            self.keys += keys
            return {key: {"item_id": str(key), "since_ms": NOW_MS} for key in keys}

    index, counts = Asked(), Counts()
    publisher = TrendsPublisher(
        cast(Any, RecordingProducer(1)), TOPIC, cast(Any, index), {0: counts}, "a-bundle", 30
    )
    for _ in range(5):
        bought(counts, "tea", "cup")
        await publisher.publish()
    assert sorted(index.keys) == sorted(2 * [item_key("tea"), item_key("cup")]), (
        "for its time, and for its id"
    )


def test_a_trend_of_long_ids_fits_its_topic() -> None:
    """Control characters take six bytes of JSON. New items go first, and the heaviest stay."""
    ids = [f"{number:03}" + "\x01" * 509 for number in range(1_000)]
    named = [(item_id, 1.0) for item_id in ids]
    fitting = decode_trend(bounded(Trend(0, NOW_MS, HALF_LIFE_S, named[:250], rising=named[:500])))
    assert (fitting.counts, fitting.rising) == (named[:250], named[:31])
    longer = bounded(Trend(0, NOW_MS, HALF_LIFE_S, named, rising=named[:500]))
    assert len(longer) <= MAX_BATCH_BYTES
    assert decode_trend(longer).counts == named[:250]
    usual = Trend(0, NOW_MS, HALF_LIFE_S, [("tea", 1.0)], rising=[("tea", 1.0)])
    assert bounded(usual) == encode(usual)


# Reading


def trend(**fields: Any) -> bytes:
    given = {"partition": 3, "at_ms": NOW_MS, "half_life_s": 604_800.0, "counts": [["tea", 1.5]], **fields}
    return json.dumps(given).encode()


def test_what_an_owner_publishes_is_read() -> None:
    read = read_trend(b"3", trend(epoch=4, written_ms=NOW_MS, bundle="a-bundle"), 4, NOW_MS)
    assert (read.counts, read.epoch, read.bundle) == ([("tea", 1.5)], 4, "a-bundle")
    assert read_trend(b"3", trend(), 4, NOW_MS).epoch == 0, "of a version without epochs"
    assert read_trend(b"3", trend(), 4, NOW_MS).rising == [], (
        "of a version that does not tell new items apart"
    )
    assert read_trend(b"3", trend(rising=[["cup", 2]]), 4, NOW_MS).rising == [("cup", 2.0)]


def test_an_earlier_version_reads_what_this_one_publishes() -> None:
    class Before(msgspec.Struct, frozen=True):
        partition: int
        at_ms: int
        half_life_s: float
        counts: list[tuple[str, float]]
        epoch: int = 0
        written_ms: int = 0
        bundle: str = ""

    sent = Trend(3, NOW_MS, HALF_LIFE_S, [("tea", 1.5)], 4, NOW_MS, "a-bundle", [("tea", 1.5)])
    assert msgspec.json.decode(encode(sent), type=Before) == Before(*msgspec.structs.astuple(sent)[:-1])


BAD = {
    "no JSON": b"{",
    "no UTF-8": b'{"partition": "\xff"}',
    "null": None,
    "half-life 0": trend(half_life_s=0),
    "a negative half-life": trend(half_life_s=-1),
    "a half-life that is no number": trend().replace(b"604800.0", b"NaN"),
    "a half-life beyond all numbers": trend().replace(b"604800.0", b"1e999"),
    "another partition": trend(partition=4),
    "a negative partition": trend(partition=-1),
    "the future": trend(at_ms=NOW_MS + 3 * 86_400_000),
    "before time": trend(at_ms=-1),
    "written in the future": trend(written_ms=NOW_MS + 3 * 86_400_000),
    "an epoch that nobody reaches": trend(epoch=2**31),
    "more weight than there is": trend(counts=[["tea", 1e300]]),
    "less than nothing": trend(counts=[["tea", -1.0]]),
    "no id": trend(counts=[["", 1.0]]),
    "an id without end": trend(counts=[["x" * 1_000, 1.0]]),
    "a new item of more weight than there is": trend(rising=[["tea", 1e300]]),
    "a new item without an id": trend(rising=[["", 1.0]]),
    "too many new items": trend(rising=[[str(number), 1.0] for number in range(201)]),
    "too many items": trend(counts=[[str(number), 1.0] for number in range(1_001)]),
}


@pytest.mark.parametrize("name", BAD)
def test_what_no_owner_publishes_is_refused(name: str) -> None:
    with pytest.raises(BadMessage):
        read_trend(b"3", BAD[name], 4, NOW_MS)


@pytest.mark.parametrize("key", [b"2", b"", None, b"\xff"])
def test_a_trend_under_another_key_is_refused(key: bytes | None) -> None:
    with pytest.raises(BadMessage, match="under the key"):
        read_trend(key, trend(), 4, NOW_MS)


def test_a_partition_that_counts_for_years_is_read_all_the_time() -> None:
    counts, week_ms = Counts(), int(HALF_LIFE_S * 1000)
    items, actions = np.array([item_key("tea")], np.uint64), np.array([ACTION_CODES["purchase"]], np.uint8)
    for week in range(160):
        now_ms = NOW_MS + week * week_ms
        counts.add(items, actions, np.array([now_ms], np.int64))
        named = [("tea", weight) for _, weight in counts.top()]
        trend = Trend(0, counts.at_ms, HALF_LIFE_S, named, 1, now_ms)
        assert read_trend(b"0", encode(trend), 1, now_ms) == trend


def test_weights_as_of_two_years_ago_are_read() -> None:
    """The version before told them so."""
    now_ms = NOW_MS + int(99 * HALF_LIFE_S * 1000)
    trend = Trend(0, NOW_MS, HALF_LIFE_S, [("tea", 5_000.0 * 2.0**99)])
    assert read_trend(b"0", encode(trend), 1, now_ms) == trend
    with pytest.raises(BadMessage, match="counts"):
        read_trend(b"0", encode(trend), 1, NOW_MS)
