"""Which items of a user new ones are compared with, and for how long an item is new."""

from typing import Any, cast

from headwater.index.filters import Range
from headwater.recall.sources import Ask, PositiveEvent
from headwater.recall.sources.new_items import (
    LAST_ANCHORS,
    MAX_ANCHORS,
    PAUSE_MS,
    NewItems,
    anchor_items,
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
