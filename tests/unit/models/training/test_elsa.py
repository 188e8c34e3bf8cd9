"""Whole histories tune an encoder: the loss sees what belongs together, and two passes give one gradient."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra train)")

from headwater_models.training import elsa, losses  # noqa: E402 - after the skip
from tests.support import cycles  # noqa: E402 - after the skip

TEXTS = ["coffee", "tea", "hose", "shoes", "lamp"]


def test_the_loss_is_least_where_each_history_is_one_direction() -> None:
    taken = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]])
    together = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]]), dim=-1)
    apart = together[[0, 2, 1, 3]]
    assert losses.elsa(together, taken) < 1e-6
    assert losses.elsa(apart, taken) > 0.9


def test_two_passes_give_the_gradient_of_one() -> None:
    torch.manual_seed(0)
    table = torch.nn.Embedding(len(TEXTS), 4)
    taken = np.array([[1, 1, 0, 0, 0], [0, 1, 1, 0, 1]], dtype=np.float32)

    def embed(texts: list[str]) -> torch.Tensor:
        rows = torch.tensor([TEXTS.index(text) for text in texts])
        return torch.nn.functional.normalize(table(rows), dim=-1)

    found = elsa.step(embed, TEXTS, taken, chunk=2)  # type: ignore[arg-type]
    in_chunks = table.weight.grad.clone()
    table.weight.grad = None
    loss = losses.elsa(embed(TEXTS), torch.from_numpy(taken))
    loss.backward()
    assert found == pytest.approx(float(loss.detach()))
    torch.testing.assert_close(in_chunks, table.weight.grad)


def test_a_batch_holds_what_its_users_took_and_what_none_of_them_did() -> None:
    log = cycles.dataset().log
    # Two items share a text, and nobody ever took the last ten.
    of_item = np.concatenate([np.arange(cycles.ITEMS) // 2, np.arange(10) + cycles.ITEMS])
    for batch in islice(elsa.batches(log, of_item, users=3, texts=12, seed=0), 10):
        assert len(batch.texts) == len(np.unique(batch.texts)) <= 12
        assert 1 <= len(batch.taken) <= 3
        assert (batch.taken.sum(axis=1) > 1).all()
        assert set(np.unique(batch.taken)) <= {0.0, 1.0}
        assert batch.taken[:, batch.texts >= cycles.ITEMS].sum() == 0


def test_items_of_one_text_are_one() -> None:
    log = replace(cycles.dataset().log)
    batch = next(elsa.batches(log, np.arange(cycles.ITEMS) // 2, users=2, texts=100, seed=0))
    assert len(batch.texts) == -(-cycles.ITEMS // 2)
