"""Which items of a user new ones are compared with, and for how long an item is new."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from headwater.encoder.features import item_key
from headwater.index import Point
from headwater.index.edge import EdgeIndex
from headwater.index.filters import AnyOf, Range
from headwater.pacing import Pacer
from headwater.recall.popularity import PopularItem
from headwater.recall.similarity import Near
from headwater.recall.sources import Ask, PositiveEvent
from headwater.recall.sources.new_items import (
    LAST_ANCHORS,
    MAX_ANCHORS,
    PAUSE_MS,
    NewItems,
    anchor_items,
    lifts_of,
    most_alike,
    shared_attributes,
)


def anchors(log: list[PositiveEvent], now_ms: int) -> list[int]:
    return anchor_items(Ask(log=log, now_ms=now_ms))


def test_the_newest_items_of_a_long_session_are_anchors_each_once() -> None:
    events = [(item % 15, at_ms, 1) for at_ms, item in enumerate(range(40))]
    assert anchors(events, now_ms=50) == [item % 15 for item in range(40 - MAX_ANCHORS, 40)]
    assert anchors([(1, 0, 1), (2, 1, 1), (1, 2, 1)], now_ms=3) == [2, 1]


def test_outside_a_session_the_last_items_are_anchors() -> None:
    events = [(1, 0, 1), (2, 1, 1), (3, 2, 1), (4, 3, 1), (4, 4, 1)]
    assert anchors(events, now_ms=PAUSE_MS + 5) == [2, 3, 4]
    assert len(anchors(events, now_ms=PAUSE_MS + 5)) == LAST_ANCHORS
    assert anchors([], now_ms=5) == []


def test_an_unwanted_item_is_no_anchor() -> None:
    log = [(1, 0, 1), (2, 1, 1)]
    assert anchor_items(Ask(log=log, unwanted=frozenset({2}), now_ms=5)) == [1]


def test_an_item_is_new_from_its_date_on() -> None:
    """One that is dated years ahead would be new for all these years."""
    day_ms, now_ms = 86_400_000, 1_800_000_000_000
    new = NewItems(cast(Any, None), 30)._where(Ask(now_ms=now_ms))
    assert isinstance(new, Range)
    ages_days = {-3_650: False, -1: False, 0: True, 29: True, 31: False}
    assert {age: new.holds(now_ms - age * day_ms) for age in ages_days} == ages_days


def near(items: dict[int, tuple[float, float]], anchor: tuple[float, float] = (1, 0)) -> Near:
    """Items by key with their vectors, near an anchor of key 0."""
    vectors = {key: np.array(vector, dtype=np.float32) for key, vector in {0: anchor, **items}.items()}
    return Near({key: str(key) for key in items}, vectors, [0])


async def ordered(found: Near, payloads: dict[int, dict[str, Any]]) -> list[int]:
    return [key for key, _ in await most_alike(found, payloads, Pacer())]


async def recalled(
    tmp_path: Path, items: dict[str, dict[str, Any]], rising: Sequence[PopularItem], **fields: Any
) -> list[str]:
    """What the source brings to a user who has just taken `tea`, the one item that is not new. Items have a `vector`."""
    now_ms = 1_800_000_000_000
    index = await EdgeIndex.open(tmp_path / "index", 2)
    points = []
    for offset, (name, given) in enumerate({"tea": {"vector": (1, 0), "since_ms": 1}, **items}.items()):
        payload = {"item_id": name, "available": True, "since_ms": now_ms - 1, **given}
        vector = np.array(payload.pop("vector"), np.float32)
        points.append(Point(item_key(name), name, vector, payload, None, 0, offset))
    await index.put(points)
    ask = Ask(log=[(item_key("tea"), now_ms - 5, 1)], now_ms=now_ms, **fields)
    pending = ask._replace(log=[(item_key("of no vector yet"), now_ms - 5, 1)])
    try:
        found, of_pending = await NewItems(index, 30, lambda: rising).rankings([ask, pending])
    finally:
        await index.close()
    assert of_pending == []
    return [item_id for _, item_id in found]


def popular(**weights: float) -> list[PopularItem]:
    return [PopularItem(item_key(name), name, weight) for name, weight in weights.items()]


async def test_a_new_item_that_others_take_rises(tmp_path: Path) -> None:
    items = {"mug": {"vector": (3, 1)}, "pot": {"vector": (3, 2)}, "cup": {"vector": (2, 3)}}
    assert await recalled(tmp_path / "a", items, ()) == ["mug", "pot", "cup"]
    assert await recalled(tmp_path / "b", items, popular(pot=2.0, mug=0.0)) == ["pot", "mug", "cup"]
    assert await recalled(tmp_path / "c", items, popular(cup=40.0, pot=2.0, mug=2.0)) == ["cup", "mug", "pot"]


async def test_what_others_take_is_compared_wherever_it_lies(tmp_path: Path) -> None:
    """Six near items are asked for where one is wanted."""
    items = {f"mug-{number}": {"vector": (9, 1)} for number in range(20)} | {"far": {"vector": (1, 1)}}
    assert await recalled(tmp_path, items, popular(far=5.0), limit=1) == ["far"]


@pytest.mark.parametrize(
    ("item", "asked"),
    [
        ({"since_ms": 1}, {}),
        ({"since_ms": 1_900_000_000_000}, {}),
        ({"since_ms": None}, {}),
        ({"available": False}, {}),
        ({}, {"exclude": frozenset({item_key("far")})}),
        ({"category": "toys"}, {"where": AnyOf("category", ("kitchen",))}),
    ],
)
async def test_what_others_take_stays_out_where_a_new_item_would(
    tmp_path: Path, item: dict[str, Any], asked: dict[str, Any]
) -> None:
    items = {
        "far": {"vector": (1, 1), "category": "kitchen", **item},
        "mug": {"vector": (9, 1), "category": "kitchen"},
    }
    assert await recalled(tmp_path, items, popular(far=5.0, gone=9.0), **asked) == ["mug"]


async def test_no_weight_of_a_few_outweighs_the_session_without_end() -> None:
    assert lifts_of(popular(captured=1e12, tea=1.0, cup=1.0))[item_key("captured")] == pytest.approx(1.2)
    assert lifts_of([]) == lifts_of(popular(tea=0.0)) == {}


async def test_of_equally_near_items_the_one_of_the_same_maker_comes_first() -> None:
    found = near({1: (1, 0.3), 2: (1, 0.2), 3: (0, 1)})
    makers = {0: "acme", 1: "acme", 2: "other", 3: "acme"}
    payloads = {key: {"attributes": {"maker": maker}} for key, maker in makers.items()}
    assert await ordered(found, payloads) == [1, 2, 3]
    assert await ordered(found, {key: {} for key in makers}) == [2, 1, 3]


async def test_among_equals_the_newest_comes_first() -> None:
    found = near({1: (2, 2), 2: (3, 3), 3: (1, 1), 4: (1, 0)})
    came_in = {1: 5, 2: 9, 3: None, 4: 1}
    assert await ordered(found, {key: {"since_ms": at_ms} for key, at_ms in came_in.items()}) == [4, 2, 1, 3]


async def test_items_that_have_gone_since_the_search_stay_out() -> None:
    found = near({1: (1, 0), 2: (1, 1)})
    assert await ordered(found, {2: {}}) == [2]
    assert await ordered(Near({1: "1"}, {}, ()), {1: {}}) == []


def test_attributes_count_by_name_and_value_whatever_their_type() -> None:
    items = [{"maker": 7, "organic": True}, {"maker": "7", "size": "l"}, {}, {"maker": [7], "size": ["l"]}]
    assert shared_attributes(items, {"maker": 7, "size": "l"}).tolist() == [0.5, 0.5, 0, 0]
    assert shared_attributes(items, {"size": ["l"]}).tolist() == [0, 0, 0, 1], (
        "as records of others may have it"
    )
    assert shared_attributes(items, {}).tolist() == [0, 0, 0, 0]


def test_of_many_attributes_the_first_ones_count() -> None:
    many: dict[str, object] = {str(number): 1 for number in range(1_000)}
    assert shared_attributes([many, {"999": 1}], many).tolist() == [1, 0]
