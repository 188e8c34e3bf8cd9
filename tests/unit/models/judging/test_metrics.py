"""Measures are those that can be worked out by hand, and those of the field's own tool on random cases."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater_models.judging import metrics

ir_measures = pytest.importorskip("ir_measures", reason="ir-measures is not installed (extra test)")


@given(seed=st.integers(0, 10_000), k=st.integers(1, 12), items=st.integers(12, 40))
@settings(max_examples=50)
def test_measures_agree_with_ir_measures(seed: int, k: int, items: int) -> None:
    rng = np.random.default_rng(seed)
    cases = rng.integers(1, 6)
    counts = rng.integers(1, 8, cases)
    starts = np.concatenate([[0], np.cumsum(counts)])
    places = [rng.permutation(items)[:count] + 1 for count in counts]
    found = metrics.by_case(np.concatenate(places), starts, k)
    qrels = {str(case): {f"item-{place}": 1 for place in wanted} for case, wanted in enumerate(places)}
    run = {str(case): {f"item-{n}": float(-n) for n in range(1, items + 1)} for case in range(cases)}
    cut = {query: dict(list(ranked.items())[:k]) for query, ranked in run.items()}
    theirs = {
        "HR": (ir_measures.Success @ k, run),
        "recall": (ir_measures.R @ k, run),
        "precision": (ir_measures.P @ k, run),
        "NDCG": (ir_measures.nDCG @ k, run),
        "MRR": (ir_measures.RR @ k, run),
        "F1": (ir_measures.SetF, cut),
    }
    assert set(theirs) == set(metrics.NAMES)
    for name, (measure, ranked) in theirs.items():
        values = {one.query_id: one.value for one in ir_measures.iter_calc([measure], qrels, ranked)}
        expected = [values[str(case)] for case in range(cases)]
        np.testing.assert_allclose(found[name], expected, atol=1e-6, err_msg=name)


def test_what_is_never_recommended_counts_nothing() -> None:
    found = metrics.by_case(np.array([metrics.NEVER, 1]), np.array([0, 1, 2]), 10)
    assert all(values.tolist()[0] == 0 for values in found.values())
    assert found["NDCG"][1] == 1


def test_an_interval_holds_the_mean_and_takes_a_users_values_together() -> None:
    rng = np.random.default_rng(0)
    values = rng.random(400)
    low, high = metrics.interval(values, np.arange(400))
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(400), rel=0.1)
    # The same four hundred values, each ten times: still four hundred users.
    again = metrics.interval(np.repeat(values, 10), np.repeat(np.arange(400), 10))
    assert again == pytest.approx((low, high))


def test_coverage_counts_items_and_not_empty_places() -> None:
    assert metrics.coverage(np.array([[0, 1], [1, -1]]), 4) == 0.5


def test_gini_is_zero_when_all_items_are_shown_alike_and_high_when_one_has_all() -> None:
    assert metrics.gini(np.arange(10)[:, None], 10) == pytest.approx(0)
    assert metrics.gini(np.zeros((5, 1), dtype=np.int64), 10) == pytest.approx(0.9)


def test_novelty_is_the_self_information_of_what_is_shown() -> None:
    counts = np.array([2, 0, 0])  # with one more each: 3, 1, 1 of 5
    assert metrics.novelty(np.array([[0, -1]]), counts) == pytest.approx(-math.log2(3 / 5))
    assert metrics.novelty(np.array([[0, 1]]), counts) == pytest.approx(
        -(math.log2(3 / 5) + math.log2(1 / 5)) / 2
    )


def test_deciles_are_equal_in_items_and_cold_ones_are_apart() -> None:
    deciles = metrics.popularity_deciles(np.array([0, *range(1, 21), 0]))
    assert deciles.tolist() == [0, *np.repeat(np.arange(1, 11), 2), 0]
    assert metrics.DECILES[0] == "cold"
    assert metrics.DECILES[10] == "10"


def test_history_lengths_fall_into_the_groups_that_are_named() -> None:
    groups = metrics.length_groups(np.array([0, 1, 2, 3, 10, 11, 50, 51, 900]))
    names = [metrics.LENGTHS[group] for group in groups]
    assert names == ["0", "1-2", "1-2", "3-5", "6-10", "11-20", "21-50", "51+", "51+"]
