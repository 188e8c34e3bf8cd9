"""What goes with the current session: the neighbours of its items, and which of its events brought each up."""

import numpy as np
import pytest

from headwater.encoder.features import ACTION_CODES
from headwater.encoder.neighbours import Neighbours
from headwater.recall.sources import Ask, PositiveEvent
from headwater.recall.sources.similar import Similar

BOUGHT = ACTION_CODES["purchase"]
# Item 10 goes with 20, 30 and 40, item 20 with 10 and 40; 30 and 40 have no neighbours of their own.
TABLE = Neighbours(
    keys=np.array([10, 20, 30, 40], dtype=np.uint64),
    starts=np.array([0, 3, 5, 5, 5]),
    items=np.array([1, 2, 3, 0, 3]),
    likeness=np.array([0.5, 0.4, 0.1, 0.5, 0.35], dtype=np.float32),
    pause_ms=100,
)
SIMILAR = Similar(TABLE)


def bought(*keys: int) -> list[PositiveEvent]:
    return [(key, 1_000 + place, BOUGHT) for place, key in enumerate(keys)]


def similar(*keys: int) -> list[int]:
    return [*SIMILAR.keys(Ask(log=bought(*keys), now_ms=1_050))]


def test_items_come_by_the_sum_of_their_likeness_to_those_of_the_session() -> None:
    assert similar(10, 20) == [40, 30]  # .1 + .35 against .4
    assert similar(10) == [20, 30, 40]


def test_an_item_that_was_bought_twice_counts_once() -> None:
    assert similar(10, 20, 20, 20) == [40, 30]
    once, twice = (Ask(log=bought(*keys), now_ms=1_050) for keys in ((20, 10), (20, 20, 10)))
    assert SIMILAR.keys(once) == SIMILAR.keys(twice)


def test_what_if_events_belong_to_the_session() -> None:
    asked = Ask(log=bought(10), session=[(20, 1_040, BOUGHT)], now_ms=1_050)
    assert [*SIMILAR.keys(asked)] == [40, 30]


def test_an_unwanted_item_brings_nothing_up() -> None:
    asked = Ask(log=bought(10, 20), unwanted=frozenset({10}), now_ms=1_050)
    assert [*SIMILAR.keys(asked)] == [10, 40]


def test_an_item_that_the_table_does_not_know_brings_nothing_up() -> None:
    assert similar(99, 30) == []
    assert similar() == []


def test_an_old_session_brings_nothing_up() -> None:
    assert SIMILAR.keys(Ask(log=bought(10), now_ms=1_101)) == {}


def test_the_events_behind_an_item_are_those_it_is_alike_to() -> None:
    because = SIMILAR.because(Ask(log=bought(10, 99, 20), now_ms=1_050), [40, 30])
    ((most, share), (least, rest)) = because[40]
    assert (most, least) == ((20, 1_002, BOUGHT), (10, 1_000, BOUGHT))
    assert (share, rest) == (pytest.approx(0.35 / 0.45), pytest.approx(0.1 / 0.45))
    assert because[30] == [((10, 1_000, BOUGHT), 1.0)]


def test_without_a_table_the_source_is_not_there_and_names_nothing() -> None:
    source = Similar(None)
    assert not source.is_there
    assert source.keys(Ask(log=bought(10), now_ms=1_050)) == {}
