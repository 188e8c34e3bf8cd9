"""What the score graph is told about candidates, and which requests are scored."""

import numpy as np

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


def test_a_source_that_was_not_asked_adds_nothing_to_the_history() -> None:
    history = history_of(Ask(), {}, length=2)
    assert (history.items.tolist(), history.again, history.similar) == ([], {}, {})


def test_a_request_that_weighs_sources_or_asks_in_words_or_has_no_interests_is_not_scored() -> None:
    assert pool_size(50, {}, None, INTERESTS) == 50
    assert pool_size(50, {"interests": 1.0}, None, INTERESTS) == 0
    assert pool_size(50, {}, INTERESTS[0], INTERESTS) == 0
    assert pool_size(50, {}, None, NOBODY) == 0
