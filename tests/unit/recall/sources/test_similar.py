"""What goes with a session: the neighbours of its items, and which of its events brought each up."""

import numpy as np
import pytest

from headwater.encoder.features import ACTION_CODES
from headwater.encoder.neighbours import Neighbours
from headwater.recall.session import session_in_hand
from headwater.recall.sources.similar import Session, Similar

BOUGHT = ACTION_CODES["purchase"]
# Item 10 goes with 20, 30 and 40, item 20 with 10 and 40; 30 and 40 have no neighbours of their own.
TABLE = Neighbours(
    keys=np.array([10, 20, 30, 40], dtype=np.uint64),
    starts=np.array([0, 3, 5, 5, 5]),
    items=np.array([1, 2, 3, 0, 3]),
    likeness=np.array([0.5, 0.4, 0.1, 0.5, 0.35], dtype=np.float32),
    pause_ms=100,
)


def taken(*keys: int) -> list[tuple[int, int, int]]:
    return [(key, 1_000 + place, BOUGHT) for place, key in enumerate(keys)]


def at_once(wishes: list[tuple[int, int, int]]) -> Session:
    return Similar(TABLE).session(wishes, now_ms=1_050)


def test_items_come_by_the_sum_of_their_likeness_to_those_of_the_session() -> None:
    assert [*at_once(taken(10, 20)).ranked()] == [40, 30]  # .1 + .35 against .4
    assert [*at_once(taken(10)).ranked()] == [20, 30, 40]


def test_an_item_that_was_taken_twice_counts_once() -> None:
    assert [*at_once(taken(10, 20, 20, 20)).ranked()] == [40, 30]
    twice = at_once(taken(20, 10, 20))
    assert twice.wishes == taken(20, 10, 20)[1:]


def test_what_the_table_does_not_know_brings_nothing_up() -> None:
    assert [*at_once(taken(99, 30)).ranked()] == []
    assert [*at_once([]).ranked()] == []


def test_a_pause_ends_the_session_and_it_may_last_until_now() -> None:
    wishes = [(1, 0, BOUGHT), (2, 101, BOUGHT), (3, 201, BOUGHT), (4, 300, BOUGHT)]
    assert [key for key, _, _ in session_in_hand(wishes, 400, 100)] == [2, 3, 4]
    assert session_in_hand(wishes, 401, 100) == []
    assert session_in_hand([(1, 500, BOUGHT)], 400, 100) == [
        (1, 500, BOUGHT)
    ]  # asked as of before its last event
    assert [*Similar(TABLE).session(taken(10), now_ms=1_101).ranked()] == []


def test_the_events_behind_an_item_are_those_it_is_alike_to() -> None:
    session = at_once(taken(10, 99, 20))
    ((most, share), (least, rest)) = session.behind(40)
    assert (most, least) == ((20, 1_002, "purchase"), (10, 1_000, "purchase"))
    assert (share, rest) == (pytest.approx(0.35 / 0.45), pytest.approx(0.1 / 0.45))
    assert session.behind(30) == [((10, 1_000, "purchase"), 1.0)]
