"""The item tower: the mean of token vectors, whitened; a residual for known items only; what is served is what was trained."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra train)")

from headwater_models.networks.static_tower import (  # noqa: E402 - needs torch
    ServedTower,
    StaticTower,
    StaticTowerConfig,
    Whitening,
)

TOKENS, TOKEN_DIM, DIM, ROWS = 30, 8, 6, 4


@pytest.fixture
def tower() -> StaticTower:
    torch.manual_seed(0)
    table = np.random.default_rng(1).normal(size=(TOKENS, TOKEN_DIM)).astype(np.float32)
    made = StaticTower(
        StaticTowerConfig(TOKEN_DIM, hidden=8, dim=DIM, rows=ROWS, residual_dim=3), table, Whitening.of(table)
    )
    torch.nn.init.normal_(made.bias.weight)
    return made.eval()


def encoded(tower: torch.nn.Module, ids: list[int], row: int = 0, padding: int = 0) -> torch.Tensor:
    mask = [1] * len(ids) + [0] * padding
    given = torch.tensor([ids + [7] * padding]), torch.tensor([mask]), torch.tensor([row])
    found: torch.Tensor = tower(*given)[0]
    return found


def test_neither_the_order_of_tokens_nor_padding_counts(tower: StaticTower) -> None:
    plain = encoded(tower, [3, 9, 4])
    torch.testing.assert_close(encoded(tower, [9, 4, 3]), plain)
    torch.testing.assert_close(encoded(tower, [3, 9, 4], padding=5), plain)


def test_a_known_item_differs_from_its_text_and_an_unknown_one_does_not(tower: StaticTower) -> None:
    text = tower.from_text(tower.text(torch.tensor([[3, 9]]), torch.ones(1, 2)))[0]
    torch.testing.assert_close(encoded(tower, [3, 9]), text)
    assert (encoded(tower, [3, 9], row=2) - text).abs().max() > 1e-3


def test_in_training_a_residual_is_left_out_now_and_then(tower: StaticTower) -> None:
    tower.train()
    text = encoded(tower, [3, 9])
    is_plain = [torch.equal(encoded(tower, [3, 9], row=2), text) for _ in range(100)]
    assert 0 < sum(is_plain) < 100


def test_the_served_tower_computes_what_was_trained_in_half_the_room(tower: StaticTower) -> None:
    served = ServedTower(tower)
    for row in range(ROWS + 1):
        torch.testing.assert_close(
            encoded(served, [3, 9, 4], row=row), encoded(tower, [3, 9, 4], row=row), atol=2e-3, rtol=0
        )
    assert served.own.dtype == torch.float16


def test_what_the_text_can_say_is_cheaper_than_a_residual(tower: StaticTower) -> None:
    before = tower.residual_penalty()
    with torch.no_grad():
        tower.residual.weight.mul_(2)
    assert tower.residual_penalty() > before
