"""The weights of a blend are those of the rule by which users take items, where there is enough to tell it."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra train)")
pytest.importorskip("scipy", reason="scipy is not installed (extra train)")

from headwater.encoder.features import CANDIDATE_FEATURES  # noqa: E402 - after the skip
from headwater_models.networks.blend import TERMS, TIMED_TERMS, Blend, terms_of  # noqa: E402 - needs torch
from headwater_models.training.blending import LEAST, Question, blended  # noqa: E402 - needs torch


def questions(count: int, rule: np.ndarray) -> list[Question]:
    """Of six candidates each; one is taken with the chance that a conditional logit of this rule gives it."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        terms = rng.normal(size=(6, len(rule))).astype(np.float32)
        chances = np.exp(terms @ rule)
        found.append(Question(terms, int(rng.choice(6, p=chances / chances.sum()))))
    return found


def test_weights_are_those_of_the_rule_and_a_term_that_never_differs_has_none() -> None:
    rule = np.zeros(len(TERMS))
    rule[[0, 3]] = -1.0, 2.0
    asked = questions(2_000, rule)
    for question in asked:
        question.terms[:, 5] = 7.0
    blend = blended(asked, timed=False)
    assert blend is not None
    np.testing.assert_allclose(blend.weight.numpy(), rule, atol=0.15)
    assert blend.weight[5] == 0
    again = blended(asked, timed=False)
    assert again is not None
    np.testing.assert_array_equal(again.weight.numpy(), blend.weight.numpy())


def test_too_few_answers_give_no_weights() -> None:
    assert blended(questions(LEAST - 1, np.zeros(len(TERMS))), timed=False) is None


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
    found = terms_of(torch.from_numpy(features), timed=True)
    named = dict(zip(TERMS + TIMED_TERMS, found.T.tolist(), strict=True))
    assert named["had"] == [0, 1, 1]
    assert named["last"] == [0, 1, 0]
    assert named["last_repeats"] == [0, 1.5, 0]
    assert named["own_place"] == pytest.approx([1, 1 / 2, 1 / 3])
    assert named["similar_place"] == pytest.approx([0, 1, 1 / 2])
    assert named["again_place"] == pytest.approx([0, 1, 0])
    assert terms_of(torch.from_numpy(features), timed=False).shape == (3, len(TERMS))


def test_a_blend_orders_by_its_terms_alone() -> None:
    blend = Blend(timed=False)
    blend.weight[TERMS.index("had")] = 2.0
    features = torch.zeros(2, len(CANDIDATE_FEATURES))
    features[1, CANDIDATE_FEATURES.index("times_had")] = 1.0
    found = blend(features, torch.randn(2, 4), torch.randn(2, 4))
    assert found.tolist() == [0.0, 2.0]
