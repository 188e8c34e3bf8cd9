"""What is popular at a moment of a split is what a worker would have counted by then."""

from typing import cast

import numpy as np
import pytest

from headwater.encoder.runtime import Encoder
from headwater_models.judging.evaluation import Catalog, ranking
from headwater_models.judging.protocols import Split, next_events
from headwater_models.judging.served import served
from headwater_models.judging.trending import HOUR_MS, Trending
from tests.unit.models.judging.test_evaluation import Stand
from tests.unit.models.judging.test_protocols import dataset

# Bob takes the new items 2 and 3, and Ann is asked later.
DATA = dataset(
    {
        "ann": [(0, 9 * HOUR_MS), (2, 9 * HOUR_MS + 2_000)],
        "bob": [(3, 7 * HOUR_MS), (2, 8 * HOUR_MS - 1), (2, 9 * HOUR_MS - 1)],
    }
)
NEW = np.array([False, False, True, True])
KEYS = np.arange(10, 14, dtype=np.uint64)


def asked(protocol: str) -> Split:
    cases = next_events(DATA.log, np.array([1]), mask_seen=False)
    return Split(protocol, DATA.log, dataset({"ann": [(0, 0)], "bob": [(1, 0)]}).log, cases, cases, 1)


@pytest.mark.parametrize(("hour", "rising"), [(7.5, []), (8.5, [12, 13]), (9.5, [12, 13])])
def test_new_items_rise_by_what_was_taken_up_to_the_hour(hour: float, rising: list[int]) -> None:
    found = Trending.of(asked("prequential"), 4).rising(int(hour * HOUR_MS), KEYS, NEW)
    assert [item.key for item in found] == rising
    if hour > 9:
        assert found[0].weight == pytest.approx(2.0, abs=0.01)


def test_after_the_split_counts_go_on_under_prequential_only() -> None:
    now_ms = 10 * HOUR_MS
    assert Trending.of(asked("prequential"), 4).rising(now_ms, KEYS, NEW)
    assert not Trending.of(asked("global-time"), 4).rising(now_ms, KEYS, NEW)


def test_a_new_item_that_others_have_taken_comes_first() -> None:
    """Items 2 and 3 are as near to what Ann takes, and item 3 came in later."""
    vectors = np.array([[1, 0], [0, 1], [1, 1], [1, 1]], np.float32)
    catalog = Catalog(vectors, np.ones(4, np.bool_), KEYS, came_in=np.array([0, 0, 1, 2]))
    split, encoder = asked("prequential"), cast(Encoder, Stand())

    def first(trending: Trending | None) -> list[int]:
        scorer = served(encoder, catalog, 2, {"new": 1.0}, NEW, trending)
        found: list[int] = ranking(scorer, split.log, split.test, 4, 2)[1][0].tolist()
        return found

    assert first(None) == [3, 2]
    assert first(Trending.of(split, 4)) == [2, 3]
