"""The user's interests as queries, one each: the strongest has the whole vote."""

import numpy as np
import pytest

from headwater.recall.sources import Ask
from headwater.recall.sources.interests import Interests

INTERESTS = np.eye(3, dtype=np.float32)


def test_the_strongest_interest_has_the_whole_vote_and_others_less() -> None:
    ask = Ask(interests=INTERESTS, interest_weights=np.array([3.0, 1.0, 0.0], dtype=np.float32))
    (first, large), (second, small) = Interests().vectors(ask, vote=2.0)
    assert (first.tolist(), second.tolist()) == ([1, 0, 0], [0, 1, 0])
    assert (large, small) == (2.0, pytest.approx(2 / 3))


def test_a_user_without_events_names_no_vector() -> None:
    assert [*Interests().vectors(Ask(), vote=1.0)] == []
