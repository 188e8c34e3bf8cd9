"""The user's interests as queries: one each, sharing the vote."""

import numpy as np

from headwater.recall.sources import Ask
from headwater.recall.sources.interests import Interests

INTERESTS = np.eye(3, dtype=np.float32)


def test_interests_share_the_vote_by_their_weights() -> None:
    ask = Ask(interests=INTERESTS, interest_weights=np.array([3.0, 1.0, 0.0], dtype=np.float32))
    (first, large), (second, small) = Interests().vectors(ask, vote=2.0)
    assert (first.tolist(), second.tolist()) == ([1, 0, 0], [0, 1, 0])
    assert (large, small) == (1.5, 0.5)


def test_a_user_without_events_names_no_vector() -> None:
    assert [*Interests().vectors(Ask(), vote=1.0)] == []
