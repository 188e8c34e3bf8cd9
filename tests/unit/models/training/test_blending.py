"""The weights of a blend are those of the rule by which users take items, where there is enough to tell it."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra train)")
pytest.importorskip("scipy", reason="scipy is not installed (extra train)")

from headwater.encoder.features import CANDIDATE_FEATURES  # noqa: E402 - after the skip
from headwater_models.data.events import Log  # noqa: E402 - after the skip
from headwater_models.networks.blend import TERMS, TIMED_TERMS, Blend, terms_of  # noqa: E402 - needs torch
from headwater_models.networks.text_beside import Beside  # noqa: E402 - needs torch
from headwater_models.training.blending import Question, blended, lift_of, parts_of  # noqa: E402 - needs torch


def questions(count: int, rule: np.ndarray) -> list[Question]:
    """Of six candidates each; one is taken with the chance that a conditional logit of this rule gives it."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        terms = rng.normal(size=(6, len(rule))).astype(np.float32)
        chances = np.exp(terms @ rule)
        found.append(Question(terms, int(rng.choice(6, p=chances / chances.sum())), np.zeros(6, np.int64)))
    return found


def test_weights_are_those_of_the_rule_and_a_term_that_never_differs_has_none() -> None:
    rule = np.zeros(len(TERMS))
    rule[[0, 3]] = -1.0, 2.0
    asked = questions(2_000, rule)
    for question in asked:
        question.terms[:, 5] = 7.0
    blend = blended(asked, timed=False)
    np.testing.assert_allclose(blend.weight.numpy(), rule, atol=0.15)
    assert blend.weight[5] == 0
    assert blend.lift == 0  # nothing is new
    again = blended(asked, timed=False)
    np.testing.assert_array_equal(again.weight.numpy(), blend.weight.numpy())


@pytest.mark.parametrize(
    ("of_new", "lift"), [(5, 1.5), (60, 2.0), (0, 0.0)], ids=["few are taken", "many", "none"]
)
def test_new_items_are_lifted_as_far_as_that_costs_little_of_all(of_new: int, lift: float) -> None:
    scores = np.tile(np.linspace(2.2, 0, 12), 100)
    starts = np.arange(0, len(scores), 12)
    parts = np.tile(np.arange(12) // 11, 100)
    # The fourth, which a lift of 2 moves to the fifth place, or the last, which is new.
    taken = starts + np.where(np.arange(100) < of_new, 11, 3)
    assert lift_of(scores, parts, starts, taken) == lift


def test_a_lift_costs_only_the_places_of_as_many_new_items_as_are_served() -> None:
    # The third, which is known, or of a few questions the last, which is new, is taken. A tenth has two other new ones.
    scores = np.tile([4.0, 3.0, 2.0, -5.0, -5.0, 1.8, 1.2, 0.9, 0.8, 0.7, 0.6, 0.5], 100)
    starts = np.arange(0, len(scores), 12)
    for place in (3, 4):
        scores[starts[-10:] + place] = 1.5
    taken = starts + np.where(np.arange(100) < 2, 11, 2)
    together, apart = np.zeros((2, len(scores)), dtype=np.int64)
    for part, place in enumerate((3, 4, 11), 1):
        together[place::12], apart[place::12] = 1, part
    assert lift_of(scores, together, starts, taken) == 0.5
    assert lift_of(scores, apart, starts, taken) > 0.5


def test_new_items_of_a_split_are_dealt_into_parts_as_large_as_what_stays_new() -> None:
    log = Log(["a"], np.array([0, 7]), np.arange(7), np.ones(7, int), np.arange(7))
    train = Log(["a"], np.array([0, 3]), np.arange(3), np.ones(3, int), np.arange(3))
    parts = parts_of(train, log, 9)  # 6 have no event in training, 2 none at all
    assert parts[:3].tolist() == [0, 0, 0]
    assert sorted(parts[3:].tolist()) == [1, 1, 2, 2, 3, 3]


def test_terms_say_what_was_had_last_and_what_comes_first_in_a_source() -> None:
    features = np.zeros((3, len(CANDIDATE_FEATURES)), np.float32)
    told = {name: features[:, place] for place, name in enumerate(CANDIDATE_FEATURES)}
    told["times_had"][:] = 0.0, 0.7, 0.7
    told["place"][:] = 1.0, 0.0, 0.02
    told["repeats"][:] = 0.0, 1.5, -0.5
    told["own_rank"][:] = np.log1p([0, 1, 2]) / 7
    told["similar"][:] = 0.0, 0.4, 0.2
    told["similar_rank"][:] = 1.0, 0.0, np.log1p(1) / 7
    told["again"][:] = 0.0, 0.3, 0.0
    told["in_table"][:2] = 1.0
    none = torch.zeros(3, dtype=torch.bool)
    found = terms_of(torch.from_numpy(features), none, timed=True)
    named = dict(zip(TERMS + TIMED_TERMS, found.T.tolist(), strict=True))
    assert named["had"] == [0, 1, 1]
    assert named["last"] == [0, 1, 0]
    assert named["last_repeats"] == [0, 1.5, 0]
    assert named["own_place"] == pytest.approx([1, 1 / 2, 1 / 3])
    assert named["similar_place"] == pytest.approx([0, 1, 1 / 2])
    assert named["again_place"] == pytest.approx([0, 1, 0])
    assert terms_of(torch.from_numpy(features), none, timed=False).shape == (3, len(TERMS))
    named = dict(zip(TERMS, terms_of(torch.from_numpy(features), ~none, timed=False).T.tolist(), strict=True))
    assert named["new_near"] == [0, 1, 1]
    assert named["new_far"] == [1, 0, 0]
    assert named["similar"] == named["similar_place"] == [0, 0, 0]
    assert named["similar_rank"] == [1, 1, 1]


def test_a_blend_orders_by_its_terms_alone() -> None:
    blend = Blend(timed=False)
    blend.weight[TERMS.index("had")] = 2.0
    features = torch.zeros(2, len(CANDIDATE_FEATURES))
    features[1, CANDIDATE_FEATURES.index("times_had")] = 1.0
    found = blend(features, torch.randn(2, 4), torch.randn(2, 4))
    assert found.tolist() == [0.0, 2.0]


def test_a_lift_is_of_items_that_their_vectors_mark_as_new() -> None:
    blend = Blend(timed=False, marked=True)
    blend.lift.fill_(0.5)
    new, nothing = torch.tensor([True, False]), torch.zeros(2, len(CANDIDATE_FEATURES))
    for lift, wanted in ((0.1, [0.5, 0.0]), (0.0, [0.0, 0.0])):
        vectors = Beside(0.4, lift).vectors(torch.randn(2, 3), torch.randn(2, 4), new)
        assert blend(nothing, torch.randn(2, 9), vectors).tolist() == pytest.approx(wanted)
