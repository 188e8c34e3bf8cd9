"""What a user may want again, from the user's own log."""

from collections.abc import Sequence

from headwater.profiles.counters import HALF_LIFE, ONE
from headwater.recall.sources import Ask
from headwater.recall.sources.buy_again import REST_MS, BuyAgain

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


def test_nothing_comes_of_an_empty_log() -> None:
    assert again([]) == []


def test_nothing_comes_again_where_seen_items_are_excluded() -> None:
    assert BuyAgain().keys(Ask(log=[(1, 0, 1)], now_ms=LATER_MS, exclude_seen=True)) == {}
