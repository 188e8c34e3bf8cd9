"""Candidate scorers: what they share, and that each finds a preference that no single field shows."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra train)")

from torch import nn  # noqa: E402 - after the skip

from headwater_models.networks import SCORERS  # noqa: E402 - needs torch
from headwater_models.networks.candidate_scorer import Fields, layers  # noqa: E402 - needs torch
from headwater_models.networks.deepfm import pairwise  # noqa: E402 - needs torch

FEATURES, VECTOR = 3, 4


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_features_may_come_in_any_unit(name: str) -> None:
    torch.manual_seed(0)
    config, network = SCORERS[name]
    scorer = network(config(dropout=0.0), FEATURES, VECTOR).eval()
    features, users, items = torch.randn(50, FEATURES), torch.randn(50, VECTOR), torch.randn(50, VECTOR)
    scorer.settle(features)
    plain = scorer(features, users, items)
    scorer.settle(1_000 * features + 7)
    assert plain.shape == (50,)
    torch.testing.assert_close(scorer(1_000 * features + 7, users, items), plain, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_it_learns_that_a_user_likes_what_points_the_same_way(name: str) -> None:
    torch.manual_seed(1)
    config, network = SCORERS[name]
    scorer = network(config(dropout=0.0), FEATURES, VECTOR)
    features, users, items = torch.randn(600, FEATURES), torch.randn(600, VECTOR), torch.randn(600, VECTOR)
    liked = ((users * items).sum(1) > 0).float()
    scorer.settle(features)
    optimizer = torch.optim.Adam(scorer.parameters(), lr=0.01)
    for _ in range(150):
        loss = nn.functional.binary_cross_entropy_with_logits(scorer(features, users, items), liked)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        right = ((scorer.eval()(features, users, items) > 0).float() == liked).float().mean()
    assert right > 0.85


def test_pairs_are_those_of_the_sum_written_out() -> None:
    fields = torch.randn(2, 5, 3)
    written_out = sum(fields[:, a] * fields[:, b] for a in range(5) for b in range(a))
    torch.testing.assert_close(pairwise(fields), written_out)


def test_a_field_is_its_value_times_its_vector() -> None:
    fields = Fields(FEATURES, VECTOR, dim=2)
    found = fields(torch.tensor([[2.0, 0.0, -1.0]]), torch.zeros(1, VECTOR), torch.zeros(1, VECTOR))
    assert found.shape == (1, FEATURES + 2, 2)
    expected = torch.stack([2 * fields.values[0], torch.zeros(2), -fields.values[2]])
    torch.testing.assert_close(found[0, :FEATURES], expected)


def test_the_last_layer_has_neither_bend_nor_dropout() -> None:
    kinds = [type(part).__name__ for part in layers((4, 3, 1), 0.5)]
    assert kinds == ["Linear", "ReLU", "Dropout", "Linear"]
