"""What a user may want again, from the user's own log."""

from collections.abc import Sequence

import numpy as np
import pytest

from headwater.encoder.neighbours import Neighbours, Repeats
from headwater.profiles.counters import HALF_LIFE, ONE
from headwater.recall.sources import Ask
from headwater.recall.sources.buy_again import LOYALTY, REST_MS, SEASON, SEASON_HALF_LIFE_MS, BuyAgain

LATER_MS = 100 * REST_MS


def again(
    log: Sequence[tuple[int, int]], counters: Sequence[tuple[int, int]] = (), session: Sequence[int] = ()
) -> list[int]:
    events = [(key, at_ms, 1) for key, at_ms in log]
    in_hand = [(key, LATER_MS, 1) for key in session]
    return [*BuyAgain().keys(Ask(log=events, session=in_hand, counters=counters, now_ms=LATER_MS))]


def test_the_most_frequent_item_comes_first_and_among_equals_the_latest() -> None:
    events = [("milk", 1), ("tea", 2), ("milk", 3), ("soap", 4), ("bread", 5), ("tea", 6), ("milk", 7)]
    keys = {name: key for key, name in enumerate(("milk", "tea", "soap", "bread"))}
    found = again([(keys[name], at_ms) for name, at_ms in events])
    assert found == [keys[name] for name in ("milk", "tea", "bread", "soap")]


def test_items_of_the_current_basket_are_left_out() -> None:
    assert again([(1, 0), (2, 0), (1, LATER_MS - REST_MS + 1), (2, LATER_MS - REST_MS)]) == [2]
    assert again([(1, 0), (2, 0)], session=[2]) == [1]


def test_counters_add_to_the_log() -> None:
    counters = [(3, ONE + HALF_LIFE + 20), (1, ONE + HALF_LIFE), (4, ONE - HALF_LIFE)]
    assert again([(1, 0), (2, 1), (2, 2)], counters) == [1, 3, 2, 4]


def test_an_event_fades_in_the_log_as_it_does_in_the_counters() -> None:
    events = [(1, 0), (2, 1)]
    # As heavy as the older event of the log, and heavier by one step.
    assert again(events, [(3, ONE)])[-1] == 3
    assert again(events, [(3, ONE + 2)])[0] == 3


def test_a_counted_item_is_left_out_where_the_log_has_it_within_the_hour() -> None:
    assert again([(1, LATER_MS)], [(1, ONE), (2, ONE)]) == [2]


def table(again: dict[int, float], lately: dict[int, float], at_ms: int = LATER_MS) -> Neighbours:
    keys = sorted(again)
    repeats = Repeats(
        np.array([again[key] for key in keys], dtype=np.float32),
        np.array([lately.get(key, 1.0) for key in keys], dtype=np.float32),
        at_ms,
    )
    nothing = np.zeros(0, dtype=np.int64)
    starts = np.zeros(len(keys) + 1, dtype=np.int64)
    return Neighbours(
        np.array(keys, dtype=np.uint64), starts, nothing, nothing.astype(np.float32), 1_000, repeats
    )


def test_an_item_that_users_come_back_to_goes_before_one_that_they_do_not() -> None:
    log = [(1, 0, 1), (2, 1, 1), (3, 2, 1), (9, 3, 1)]
    ask = Ask(log=log, counters=[(7, ONE), (8, ONE)], now_ms=LATER_MS)
    assert [*BuyAgain().keys(ask)] == [9, 3, 2, 1, 7, 8]
    known = table({1: 4.0, 3: 0.25, 8: 4.0}, {})
    found = BuyAgain(known).keys(ask)
    assert [*found] == [1, 8, 9, 2, 7, 3]  # what the table does not know counts as before
    plain = BuyAgain().keys(ask)
    assert found[1] / plain[1] == pytest.approx(4.0**LOYALTY)
    assert found[9] == plain[9]
    assert [*BuyAgain(known._replace(repeats=None)).keys(ask)] == [*plain]  # a table of an earlier version


def test_a_season_counts_while_it_lasts() -> None:
    log = [(1, 0, 1), (2, 1, 1)]
    known = table({1: 1.0, 2: 1.0}, {1: 3.0, 2: 0.5})
    in_season = BuyAgain(known).keys(Ask(log=log, now_ms=LATER_MS))
    assert in_season[1] / in_season[2] == pytest.approx(6.0**SEASON, rel=0.01)
    months = 12 * SEASON_HALF_LIFE_MS
    for now_ms, at_ms in ((LATER_MS + months, LATER_MS), (LATER_MS, LATER_MS + months)):
        found = BuyAgain(known._replace(repeats=known.repeats and known.repeats._replace(at_ms=at_ms))).keys(
            Ask(log=log, now_ms=now_ms)
        )
        assert [*found] == [2, 1]  # the later of two events, as without a season


def test_nothing_comes_of_an_empty_log() -> None:
    assert again([]) == []


def test_nothing_comes_again_where_seen_items_are_excluded() -> None:
    assert BuyAgain().keys(Ask(log=[(1, 0, 1)], now_ms=LATER_MS, exclude_seen=True)) == {}
