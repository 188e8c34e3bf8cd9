"""What the score graph is told about candidates, and which requests are scored."""

import numpy as np

from headwater.encoder.neighbours import Neighbours, Repeats
from headwater.recall.rescoring import history_of, pool_size
from headwater.recall.sources import Ask

INTERESTS = np.ones((1, 2), dtype=np.float32)
NOBODY = np.zeros((0, 2), dtype=np.float32)


def test_the_history_is_the_newest_events_of_log_and_session_oldest_first() -> None:
    ask = Ask(log=[(1, 10, 0), (2, 20, 0)], session=[(3, 30, 0)], now_ms=40)
    history = history_of(ask, {"buy-again": {2: 0.5}, "similar": {7: 0.25}}, length=2)
    assert history.items.tolist() == [2, 3]
    assert history.at_ms.tolist() == [20, 30]
    assert (history.now_ms, history.length) == (40, 2)
    assert (history.again, history.similar) == ({2: 0.5}, {7: 0.25})


def test_the_history_says_how_its_items_are_taken_again_as_far_as_the_table_tells() -> None:
    nothing = np.zeros(0)
    repeats = Repeats(np.array([0.5, 3.0], np.float32), np.ones(2, np.float32), 0)
    table = Neighbours(
        np.array([2, 9], np.uint64), np.zeros(3, int), nothing.astype(int), nothing, 1, repeats
    )
    ask = Ask(log=[(1, 10, 0), (2, 20, 0), (9, 30, 0), (10, 40, 0)])
    assert history_of(ask, {}, 3, table).repeats == {2: 0.5, 9: 3.0}
    assert history_of(ask, {}, 2, table).repeats == {9: 3.0}
    assert history_of(ask, {}, 3, table._replace(repeats=None)).repeats == {}


def test_a_source_that_was_not_asked_adds_nothing_to_the_history() -> None:
    history = history_of(Ask(), {}, length=2)
    assert (history.items.tolist(), history.again, history.similar) == ([], {}, {})


def test_a_request_that_weighs_sources_or_asks_in_words_or_has_no_interests_is_not_scored() -> None:
    assert pool_size(50, {}, None, INTERESTS) == 50
    assert pool_size(50, {"interests": 1.0}, None, INTERESTS) == 0
    assert pool_size(50, {}, INTERESTS[0], INTERESTS) == 0
    assert pool_size(50, {}, None, NOBODY) == 0
