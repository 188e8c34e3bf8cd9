"""A score is the learned cosine, the cosine of the texts by its weight, and the lift of what is new."""

import math

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra train)")

import torch.nn.functional as F  # noqa: E402 - after the skip

from headwater.encoder.features import ACTION_CODES  # noqa: E402 - after the skip
from headwater_models.networks.sasrec import SASRec, SASRecConfig  # noqa: E402 - needs torch
from headwater_models.networks.text_beside import Beside, TextBeside  # noqa: E402 - needs torch

DIM, WIDTH, ITEMS, TEMPERATURE = 8, 6, 12, 0.1


def sasrec() -> SASRec:
    torch.manual_seed(0)
    encoder = SASRec(SASRecConfig(dim=DIM, length=5, blocks=1)).eval()
    encoder.temperature = TEMPERATURE
    return encoder


@pytest.mark.parametrize("beside", [Beside(0.6, 0.1), Beside(0.4), Beside(0.0, 0.2)])
def test_a_score_is_the_sum_of_its_parts_and_padding_changes_nothing(beside: Beside) -> None:
    encoder = sasrec()
    learned, texts = (F.normalize(torch.randn(ITEMS, width), dim=-1) for width in (DIM, WIDTH))
    new = torch.arange(ITEMS) >= 9
    vectors = beside.vectors(learned, texts, new)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(ITEMS))
    history, actions, gaps = torch.tensor([[3, 5, 1]]), torch.ones(1, 3, dtype=torch.long), torch.zeros(1, 3)
    both = TextBeside(encoder, WIDTH, beside).eval()
    with torch.inference_mode():
        alone, _ = encoder.window(learned[history], actions, gaps, torch.ones(1, 3), torch.zeros(1))
        found, weights = both.window(vectors[history], actions, gaps, torch.ones(1, 3), torch.zeros(1))
        newest = F.normalize(texts[1] + texts[5] / 2 + texts[3] / 4, dim=-1)
        wanted = F.normalize(alone[0, 0], dim=-1) @ learned.T + beside.weight * (newest @ texts.T)
        wanted = (wanted + beside.lift * new) / TEMPERATURE
        torch.testing.assert_close(found[0, 0] @ vectors.T, wanted, atol=1e-4, rtol=1e-4)
        padded = F.pad(vectors[history], (0, 0, 0, 2))
        mask = torch.tensor([[1.0, 1, 1, 0, 0]])
        more, _ = both.window(padded, F.pad(actions, (0, 2)), F.pad(gaps, (0, 2)), mask, torch.zeros(1))
        torch.testing.assert_close(more, found, atol=1e-4, rtol=1e-4)
    assert weights.tolist() == [[1.0]]


def test_the_text_of_a_purchase_counts_more_than_that_of_a_view() -> None:
    beside = Beside(0.5)
    learned, texts = (F.normalize(torch.randn(2, width), dim=-1) for width in (DIM, WIDTH))
    vectors = beside.vectors(learned, texts, torch.zeros(2, dtype=torch.bool))
    near = {}
    for first in ("purchase", "view"):
        actions = torch.tensor([[ACTION_CODES[first], ACTION_CODES["click"]]])
        with torch.inference_mode():
            found, _ = TextBeside(sasrec(), WIDTH, beside).window(
                vectors[None], actions, torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1)
            )
        near[first] = float(F.normalize(found[0, 0, DIM:-2], dim=-1) @ texts[0])
    assert near["purchase"] > near["view"]


def test_texts_do_not_stand_beside_dot_products() -> None:
    encoder = sasrec()
    encoder.temperature = 0.0
    with pytest.raises(ValueError, match="expected cosines"):
        TextBeside(encoder, WIDTH, Beside(0.5))
    assert math.isclose(Beside(0.5, 0.1).length, math.sqrt(1.6))
