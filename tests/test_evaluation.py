"""Figures are those that can be worked out by hand."""

import math

import numpy as np
import polars as pl
import pytest

from models import evaluation
from models.events import Log, log_of, split

ITEMS = pl.Series("item_id", [f"item-{n}" for n in range(50)])


def log(rows: list[tuple[str, int, int]]) -> Log:
    """Purchases (user, item number, at_ms)."""
    frame = pl.DataFrame(
        {
            "user_id": [user for user, _, _ in rows],
            "item_id": [f"item-{item}" for _, item, _ in rows],
            "action": ["purchase"] * len(rows),
            "at_ms": [at_ms for _, _, at_ms in rows],
        }
    )
    return log_of(frame, ITEMS)


# Ann buys 0 twice and 1 once, Bob 1 once; later Ann buys 0 again and 2 twice, Bob 3.
BEFORE_AND_AFTER = split(
    log(
        [
            ("ann", 0, 1),
            ("ann", 0, 2),
            ("ann", 1, 3),
            ("bob", 1, 4),
            ("ann", 0, 11),
            ("ann", 2, 12),
            ("ann", 2, 13),
            ("bob", 3, 14),
        ]
    ),
    10,
)


def scores(best_first: list[int]) -> evaluation.Scorer:
    row = np.full(len(ITEMS), -1.0, dtype=np.float32)
    row[best_first] = np.arange(len(best_first), 0, -1)
    return lambda users: np.tile(row, (len(users), 1))


def test_each_later_purchase_is_a_target_and_each_first_one_a_discovery() -> None:
    found = evaluation.evaluate(scores([0, 1, 2, 3]), *BEFORE_AND_AFTER)
    assert found["all"].targets == 4
    assert found["discovery"].targets == 2  # ann's first 2 and bob's 3


def test_hit_and_ndcg_count_ranks_from_one() -> None:
    found = evaluation.evaluate(scores([0, 1, 2, 3]), *BEFORE_AND_AFTER)
    assert found["all"].hit == 1.0
    assert found["all"].ndcg == pytest.approx((1 + 2 / math.log2(4) + 1 / math.log2(5)) / 4)


def test_discovery_masks_what_was_bought() -> None:
    found = evaluation.evaluate(scores([0, 1, 2, 3]), *BEFORE_AND_AFTER)
    # Ann's list begins with 2; Bob has bought 1 only, so his is 0, 2, 3.
    assert found["discovery"].ndcg == pytest.approx((1 + 1 / math.log2(4)) / 2)


def test_a_target_below_the_twentieth_place_counts_nothing() -> None:
    order = list(range(4, 24))
    found = evaluation.evaluate(scores([*order, 0, 2, 3]), *BEFORE_AND_AFTER)
    assert found["all"].hit == 0.0
    assert found["discovery"].hit == 0.0


def test_an_item_without_a_vector_is_never_recommended() -> None:
    vectors = np.eye(4, dtype=np.float32)
    vectors[3] = np.nan
    found = evaluation.dot_products(np.ones((1, 1, 4), np.float32), vectors)(np.array([0]))
    assert found[0, 3] == -np.inf
    assert np.isfinite(found[0, :3]).all()


def test_the_best_interest_of_a_user_scores_an_item() -> None:
    interests = np.array([[[1, 0], [0, 2]]], dtype=np.float32)
    vectors = np.array([[3, 0], [0, 1]], dtype=np.float32)
    np.testing.assert_array_equal(evaluation.dot_products(interests, vectors)(np.array([0])), [[3, 2]])


def test_popularity_of_the_last_week_forgets_what_is_older() -> None:
    before, _ = BEFORE_AND_AFTER
    everything = evaluation.popularity(before, len(ITEMS))(np.array([0]))
    recent = evaluation.popularity(before, len(ITEMS), since_ms=3)(np.array([0]))
    assert set(evaluation.best(everything, 2)[0]) == {0, 1}
    assert evaluation.best(recent, 1)[0, 0] == 1


def test_buy_again_ranks_a_users_own_counts_and_fills_with_the_popular() -> None:
    before, _ = BEFORE_AND_AFTER
    ann, bob = evaluation.best(evaluation.buy_again(before, len(ITEMS))(np.array([0, 1])), 3)
    assert list(ann[:2]) == [0, 1]
    assert list(bob[:2]) == [1, 0]


def test_among_equal_scores_the_lower_column_comes_first() -> None:
    assert list(evaluation.best(np.zeros((1, 9), np.float32), 3)[0]) == [0, 1, 2]


def test_users_without_later_events_count_nothing() -> None:
    before, after = split(log([("ann", 0, 1), ("bob", 1, 2)]), 10)
    found = evaluation.evaluate(scores([0]), before, after)
    assert found["all"].targets == 0
    assert found["all"].hit == 0.0
