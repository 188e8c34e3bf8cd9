"""The request's text as a query."""

import numpy as np

from headwater.recall.sources import Ask
from headwater.recall.sources.query import TextQuery


def test_a_text_has_the_whole_vote() -> None:
    text = np.ones(3, dtype=np.float32)
    assert [*TextQuery().vectors(Ask(query=text), vote=0.5)] == [(text, 0.5)]


def test_a_request_without_text_names_no_vector() -> None:
    assert [*TextQuery().vectors(Ask(), vote=1.0)] == []
