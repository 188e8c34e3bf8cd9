"""What a user may want again, from the user's own log."""

from headwater.profiles.counters import HALF_LIFE, ONE
from headwater.recall.sources.buy_again import REST_MS, buy_again

LATER_MS = 100 * REST_MS


def test_what_was_wished_most_often_comes_first_and_among_equals_what_was_wished_last() -> None:
    wishes = [("milk", 1), ("tea", 2), ("milk", 3), ("soap", 4), ("bread", 5), ("tea", 6), ("milk", 7)]
    keys = {name: key for key, name in enumerate(("milk", "tea", "soap", "bread"))}
    found = buy_again([(keys[name], at_ms) for name, at_ms in wishes], LATER_MS)
    assert [*found] == [keys[name] for name in ("milk", "tea", "bread", "soap")]


def test_what_is_in_the_basket_in_hand_rests() -> None:
    wishes = [(1, 0), (2, 0), (1, LATER_MS - REST_MS + 1), (2, LATER_MS - REST_MS)]
    assert [*buy_again(wishes, LATER_MS)] == [2]


def test_what_left_the_log_counts_on_beside_it() -> None:
    wishes = [(1, 0), (2, 1), (2, 2)]
    counters = [(3, ONE + HALF_LIFE + 20), (1, ONE + HALF_LIFE), (4, ONE - HALF_LIFE)]
    assert [*buy_again(wishes, LATER_MS, counters)] == [1, 3, 2, 4]


def test_a_wish_in_the_log_fades_as_it_does_when_it_has_left() -> None:
    wishes = [(1, 0), (2, 1)]
    # As heavy as the older wish of the log, and heavier by one step.
    assert [*buy_again(wishes, LATER_MS, [(3, ONE)])][-1] == 3
    assert next(iter(buy_again(wishes, LATER_MS, [(3, ONE + 2)]))) == 3


def test_what_is_counted_from_before_the_log_has_rested_unless_the_log_says_otherwise() -> None:
    counters = [(1, ONE), (2, ONE)]
    assert [*buy_again([(1, LATER_MS)], LATER_MS, counters)] == [2]


def test_nothing_comes_of_an_empty_log() -> None:
    assert [*buy_again([], LATER_MS)] == []
