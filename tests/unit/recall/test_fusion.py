"""One ranking out of several, and its diversity."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.recall.fusion import RRF_K, Fused, Ranking, diversify, fuse


def ranking(source: str, *keys: int, weight: float = 1.0) -> Ranking:
    return Ranking(source, weight, [(key, f"item {key}") for key in keys])


def fused(*scores: float) -> list[Fused]:
    return [Fused(key, f"item {key}", score, "interests") for key, score in enumerate(scores)]


def test_one_ranking_keeps_its_order_and_scores_by_rank() -> None:
    items = fuse([ranking("a", 3, 1, 2)])
    assert [(item.key, item.item_id, item.source) for item in items] == [
        (3, "item 3", "a"),
        (1, "item 1", "a"),
        (2, "item 2", "a"),
    ]
    assert [item.score for item in items] == [1 / (RRF_K + rank) for rank in (1, 2, 3)]


def test_what_two_sources_found_beats_what_one_found_first() -> None:
    items = fuse([ranking("a", 1, 2), ranking("b", 3, 2)])
    assert [item.key for item in items] == [2, 1, 3]
    assert items[0].score == pytest.approx(2 / (RRF_K + 2))


def test_weights_are_the_votes_and_name_the_source() -> None:
    items = fuse([ranking("a", 1, 2), ranking("b", 2, 1, weight=3.0)])
    assert [(item.key, item.source) for item in items] == [(2, "b"), (1, "b")]


def test_the_source_is_the_one_with_the_largest_part() -> None:
    (item,) = fuse([ranking("low", 9, weight=0.5), ranking("high", 9)])
    assert item.source == "high"


def test_ties_keep_the_order_of_the_rankings() -> None:
    assert [item.key for item in fuse([ranking("a", 5), ranking("b", 4)])] == [5, 4]


def test_nothing_fused_is_nothing() -> None:
    assert fuse([]) == []
    assert fuse([ranking("a")]) == []


@given(st.lists(st.lists(st.integers(0, 9), unique=True), max_size=4))
def test_every_item_comes_once_best_first(lists: list[list[int]]) -> None:
    items = fuse([ranking(str(number), *keys) for number, keys in enumerate(lists)])
    assert {item.key for item in items} == {key for keys in lists for key in keys}
    assert len(items) == len({item.key for item in items})
    assert [item.score for item in items] == sorted((item.score for item in items), reverse=True)


SAME = np.array([[1, 0], [1, 0], [0, 1], [1, 0]], dtype=np.float32)


def test_without_diversity_the_ranking_stays() -> None:
    items = fused(4, 3, 2, 1)
    assert diversify(items, SAME, 0.0, 3) == items[:3]


def test_with_diversity_an_unlike_item_comes_before_a_better_like_one() -> None:
    chosen = diversify(fused(4, 3, 2, 1), SAME, 0.6, 3)
    assert [item.key for item in chosen] == [0, 2, 1]


def test_the_best_item_stays_first_below_full_diversity() -> None:
    assert diversify(fused(4, 3, 2, 1), SAME, 0.9, 4)[0].key == 0


def test_likeness_is_the_cosine_whatever_the_lengths() -> None:
    longer = SAME * np.array([[5], [0.1], [3], [7]], dtype=np.float32)
    items = fused(4, 3, 2, 1)
    assert diversify(items, longer, 0.6, 4) == diversify(items, SAME, 0.6, 4)


def test_items_without_a_vector_are_like_nothing_and_still_come() -> None:
    chosen = diversify(fused(4, 3, 2), np.zeros((3, 2), np.float32), 0.5, 3)
    assert [item.key for item in chosen] == [0, 1, 2]


def test_equal_scores_leave_the_choice_to_diversity() -> None:
    assert [item.key for item in diversify(fused(1, 1, 1, 1), SAME, 0.5, 2)] == [0, 2]


@given(st.integers(0, 8), st.integers(1, 10), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_diversity_only_chooses_never_invents_or_repeats(
    count: int, limit: int, diversity: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    items = fused(*sorted(random.random(count), reverse=True))
    chosen = diversify(items, random.normal(size=(count, 3)).astype(np.float32), diversity, limit)
    assert len(chosen) == min(limit, count)
    assert len({item.key for item in chosen}) == len(chosen)
    assert set(chosen) <= set(items)
