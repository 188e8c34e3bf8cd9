"""Which items of a user new ones have to be like, and which of them are."""

import numpy as np

from headwater.recall.sources.new_items import LAST_TAKEN, MOST_TAKEN, PAUSE_MS, by_likeness, taken


def test_of_a_long_session_the_newest_items_count_each_once() -> None:
    wishes = [(item % 15, at_ms, 1) for at_ms, item in enumerate(range(40))]
    assert taken(wishes, now_ms=50) == [item % 15 for item in range(40 - MOST_TAKEN, 40)]
    assert taken([(1, 0, 1), (2, 1, 1), (1, 2, 1)], now_ms=3) == [2, 1]


def test_whose_session_is_over_has_what_they_took_last() -> None:
    wishes = [(1, 0, 1), (2, 1, 1), (3, 2, 1), (4, 3, 1), (4, 4, 1)]
    assert taken(wishes, now_ms=PAUSE_MS + 5) == [2, 3, 4]
    assert len(taken(wishes, now_ms=PAUSE_MS + 5)) == LAST_TAKEN
    assert taken([], now_ms=5) == []


def test_the_likest_to_any_of_what_was_taken_comes_first_whatever_its_length() -> None:
    candidates = np.array([[9, 9], [1, 0], [0, 0], [0, 5]], dtype=np.float32)
    takes = np.array([[3, 0], [1, 7]], dtype=np.float32)
    assert by_likeness(candidates, takes).tolist() == [1, 3, 0, 2]
