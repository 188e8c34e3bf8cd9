"""Figures are those that can be worked out by hand, and a bundle is asked as it is served."""

import math
from datetime import UTC, datetime
from typing import cast

import numpy as np
import pytest

from headwater.encoder.features import ACTION_CODES
from headwater.encoder.neighbours import Neighbours
from headwater.encoder.runtime import Encoder, load
from headwater_models.arrays import F32
from headwater_models.data.datasets import Dataset, DatasetError
from headwater_models.judging import evaluation, metrics
from headwater_models.judging.evaluation import (
    bundle_scorer,
    encoded,
    evaluate,
    freshness,
    fused,
    ranking,
    tuned,
)
from headwater_models.judging.protocols import Cases, Scorer, Split, split
from tests.support.checkout import GROCERIES
from tests.unit.models.judging.test_protocols import dataset

ITEMS = 50
# Ann buys 0 twice and 1 once, Bob 1 once; later Ann buys 0 again and 2 twice, Bob 3.
SHOP = dataset(
    {
        "ann": [(0, 1), (0, 2), (1, 3), (0, 11), (2, 12), (2, 13)],
        "bob": [(1, 4), (3, 14)],
    }
)
LISTS = split(SHOP, "list-at-split", datetime.fromtimestamp(0.01, UTC))


def best_first(*items: int) -> Scorer:
    row = np.full(ITEMS, -1.0, dtype=np.float32)
    row[list(items)] = np.arange(len(items), 0, -1)
    return lambda _log, _cases, part: np.tile(row, (part.stop - part.start, 1))


def test_each_later_purchase_is_a_target_and_each_first_one_a_discovery() -> None:
    found = evaluate(best_first(0, 1, 2, 3), LISTS, ITEMS, 20)
    assert (found["all"].targets, found["all"].cases) == (4, 2)
    assert (found["discovery"].targets, found["discovery"].cases) == (2, 2)  # ann's first 2 and bob's 3


def test_hit_and_ndcg_take_each_target_as_a_question_and_lists_each_case() -> None:
    found = evaluate(best_first(0, 1, 2, 3), LISTS, ITEMS, 20)["all"]
    assert found.hit.value == 1.0
    assert found.ndcg.value == pytest.approx((1 + 2 / math.log2(4) + 1 / math.log2(5)) / 4)
    # Ann's distinct targets are at ranks 1 and 3, Bob's at 4.
    assert found.lists["precision"].value == pytest.approx((2 / 20 + 1 / 20) / 2)
    assert found.lists["MRR"].value == pytest.approx((1 + 1 / 4) / 2)
    ideal = 1 + 1 / math.log2(3)
    assert found.lists["NDCG"].value == pytest.approx((1.5 / ideal + 1 / math.log2(5)) / 2)


def test_discovery_masks_what_was_bought() -> None:
    found = evaluate(best_first(0, 1, 2, 3), LISTS, ITEMS, 20)["discovery"]
    # Ann's list begins with 2; Bob has bought 1 only, so his is 0, 2, 3.
    assert found.ndcg.value == pytest.approx((1 + 1 / math.log2(4)) / 2)


def test_newcomers_are_ranked_among_what_nobody_had() -> None:
    found = evaluate(best_first(0, 1, 3, 2), LISTS, ITEMS, 20)["newcomers"]
    assert (found.targets, found.cases) == (3, 2)  # ann's 2, twice, and bob's 3: nobody had either before
    assert found.ndcg.value == pytest.approx((2 / math.log2(3) + 1) / 3)


def test_a_target_below_the_last_place_counts_nothing() -> None:
    found = evaluate(best_first(*range(4, 24), 0, 2, 3), LISTS, ITEMS, 20)
    assert found["all"].hit.value == found["discovery"].hit.value == 0


def test_where_seen_items_are_masked_anyway_there_is_one_set_of_targets() -> None:
    assert list(evaluate(best_first(0), split(SHOP, "leave-one-out"), ITEMS, 10)) == ["all"]


def test_fused_ranks_are_those_that_recall_would_serve() -> None:
    asked = split(SHOP, "leave-one-out")  # ann's question; 0, 1 and 2 are masked
    one, two = best_first(0, 3, 4, 5), best_first(4, 6, 3)
    together = fused([one, two], depth=6)
    (scores,) = together(asked.log, asked.test, slice(0, 1))
    # Without what is masked: 3 4 5 and 4 6 3, each before items that only fill up.
    assert np.argsort(-scores, kind="stable")[:4].tolist() == [4, 3, 6, 5]
    assert np.isneginf(scores[[0, 1, 2]]).all()
    assert len(np.unique(scores[np.isfinite(scores)])) == np.isfinite(scores).sum() <= 12


def test_tuning_chooses_what_finds_the_validation_targets() -> None:
    asked = split(SHOP, "leave-one-out")  # ann's one before last is 2, then the last, 2 again
    tried = []

    def make(value: float) -> Scorer:
        tried.append(value)
        return best_first(*([4] * int(value)), 2, 3)

    chosen = tuned(make, [1, 0, 1], asked, ITEMS, 1)
    assert tried == [1, 0, 1, 0]
    assert chosen(asked.log, asked.test, slice(0, 1))[0].argmax() == 2


def test_ties_count_against_the_target() -> None:
    cases = split(SHOP, "leave-one-out").test  # ann: 2 after 0, 0, 1, 0, 2; masked: 0, 1 and 2 itself
    loose = Cases(cases.users, cases.ends, cases.now_ms, cases.target_starts, cases.targets, mask_seen=False)

    def level(_log: object, _cases: object, part: slice) -> F32:
        return np.zeros((part.stop - part.start, ITEMS), dtype=np.float32)

    assert ranking(level, SHOP.log, loose, ITEMS, 5)[0].tolist() == [ITEMS]
    ranks, lists = ranking(level, SHOP.log, cases, ITEMS, 5)
    assert ranks.tolist() == [metrics.NEVER]  # a repeat where seen items are out of the ranking
    assert lists.tolist() == [[3, 4, 5, 6, 7]]


def test_ranks_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).random((2, ITEMS)).astype(np.float32)
    found = []
    for size in (2**24, 1):
        monkeypatch.setattr(evaluation, "_SCORES", size)
        found.append(ranking(lambda _log, _cases, part: scores[part], SHOP.log, LISTS.test, ITEMS, 7))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_a_scorer_that_gives_nan_is_our_bug() -> None:
    with pytest.raises(ValueError, match="gave NaN"):
        ranking(lambda *_: np.full((2, ITEMS), np.nan, np.float32), SHOP.log, LISTS.test, ITEMS, 5)


def test_the_best_are_the_same_as_by_sorting_with_the_lower_column_first_among_equals() -> None:
    rng = np.random.default_rng(0)
    for columns in (3, 20, 333, 1000):
        scores = rng.integers(0, 30, (4, columns)).astype(np.float32)
        expected = np.argsort(-scores, axis=1, kind="stable")[:, :20]
        np.testing.assert_array_equal(evaluation.best(scores, 20), expected)


def test_groups_tell_cold_items_and_short_histories_apart() -> None:
    found = evaluate(best_first(2), LISTS, ITEMS, 1)["all"]
    assert found.by_popularity["cold"] == evaluation.Group(3, pytest.approx(2 / 3))  # 2 twice, 3 once
    assert found.by_history == {
        "1-2": evaluation.Group(1, 0.0),
        "3-5": evaluation.Group(3, pytest.approx(2 / 3)),
    }


def test_what_is_late_is_not_known_yet() -> None:
    """The next item is always the one before plus one: who knows the newest event is right."""
    walk = dataset({"ann": [(n, 1000 * n) for n in range(10)]})

    def one_more(log: object, cases: Cases, part: slice) -> F32:
        out = np.zeros((part.stop - part.start, ITEMS), dtype=np.float32)
        out[np.arange(len(out)), walk.log.items[cases.ends[part] - 1] + 1] = 1
        return out

    asked = split(walk, "prequential", 0.5)
    found = freshness(lambda _delay_ms: one_more, asked.log, asked.test, ITEMS, 1, [0, 1000, 1001])
    assert [measure.value for measure in found.values()] == [1, 1, 0]


# A bundle


class Stand:
    """An encoder whose item vectors are one-hot and whose interests are the newest item and, twice as much, the one before."""

    id = name = "stand-in"
    dim, log_length, interests, kind, item_inputs = 4, 3, 2, "windowed", "item_id"
    neighbours: Neighbours | None = None

    def __init__(self) -> None:
        self.seen: list[tuple[F32, ...]] = []

    def encode_items(self, texts: list[str], item_ids: list[str]) -> F32:
        return np.eye(self.dim, dtype=np.float32)[[int(item_id[-1]) for item_id in item_ids]]

    def answer(self, items: F32, actions: F32, gaps: F32, mask: F32, now: F32) -> tuple[F32, F32]:
        self.seen.append((items, actions, gaps, mask, now))
        last = mask.sum(axis=1).astype(int) - 1
        rows = np.arange(len(items))
        found = np.stack([items[rows, last], 2 * items[rows, last - 1]], axis=1)
        return found, np.ones(found.shape[:2], np.float32)


def small(texts: list[str] | None) -> tuple[Dataset, Split]:
    base = dataset({"ann": [(0, 1000), (1, 3000), (3, 4000), (2, 9000)]})
    made = Dataset("small", ["item-0", "item-1", "item-2", "item-3"], texts, base.log, "")
    return made, split(made, "leave-one-out")


def scored(encoder: Encoder, data: Dataset, asked: Split) -> F32:
    return bundle_scorer(encoder, encoded(encoder, data))(asked.log, asked.test, slice(0, 1))


def test_the_best_interest_scores_an_item_and_the_moment_counts() -> None:
    encoder = Stand()
    data, asked = small(None)
    scores = scored(cast(Encoder, encoder), data, asked)
    assert scores.tolist() == [[0, 2, 0, 1]]
    _, actions, gaps, mask, now = encoder.seen[0]
    assert actions.tolist() == [[ACTION_CODES["click"]] * 3]
    assert gaps.tolist() == [[0, 2, 1]]
    assert mask.tolist() == [[1, 1, 1]]
    assert now.tolist() == [5]


def test_an_item_without_a_text_is_pending_and_never_recommended() -> None:
    encoder = Stand()
    encoder.item_inputs = "text"
    data, asked = small(["zero", "one", "two"])  # item 3 has none
    scores = scored(cast(Encoder, encoder), data, asked)
    assert scores.tolist() == [[2, 1, 0, -np.inf]]
    _, _, gaps, mask, now = encoder.seen[0]
    assert mask.tolist() == [[1, 1, 0]]
    assert gaps.tolist() == [[0, 2, 0]]
    assert now.tolist() == [6]  # since the last event that counts


def test_a_bundle_of_texts_needs_texts() -> None:
    encoder = Stand()
    encoder.item_inputs = "text"
    data, _ = small(None)
    with pytest.raises(DatasetError, match="small has none: use a bundle of item ids"):
        encoded(cast(Encoder, encoder), data)


def test_the_shipped_bundle_scores_what_its_graphs_compute() -> None:
    encoder = load(GROCERIES, device="cpu")
    data, asked = small(["Ground coffee", "Coffee filters", "Garden hose", "Tea"])
    found = scored(encoder, data, asked)
    vectors = encoder.encode_items(data.texts or [], data.item_ids)
    gaps = np.array([[0, 2, 1]], np.float32)
    state = encoder.step(
        encoder.initial_state(1),
        vectors[[0, 1, 3]][None],
        np.full((1, 3), 1),
        gaps,
        np.ones((1, 3), np.float32),
    )
    interests, _ = encoder.read(state, np.array([5], np.float32))
    np.testing.assert_allclose(found, interests[0] @ vectors.T, rtol=1e-5)
