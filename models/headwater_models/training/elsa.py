"""Tuning a sentence encoder on whole histories: texts as the items of a shallow autoencoder.

After beeFormer (Vančura, Kordík and Straka, RecSys 2024, arXiv:2409.10309). A step encodes some hundred texts, far more than
fit one backward pass, so it runs twice: once for the gradient of each vector, then text by text with those gradients.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headwater_models.arrays import F32, I64
from headwater_models.data.events import Log
from headwater_models.training import losses


@dataclass(frozen=True)
class Batch:
    """Users, and what they took of some texts."""

    texts: I64  # (texts,) numbers of distinct texts
    taken: F32  # (users, texts) 1 where a user took an item of that text


def batches(log: Log, of_item: I64, users: int, texts: int, seed: int) -> Iterator[Batch]:
    """Endless batches of at most `users` and `texts`; `of_item` (items,): the text of each item.

    Half of the texts, or more where the users took few, are drawn at random: what nobody of the batch took.
    Users who took fewer than two of the batch's texts are left out.
    """
    rng = np.random.default_rng(seed)
    count = int(of_item.max()) + 1
    pairs = np.unique(log.owners * count + of_item[log.items])  # each user and text once
    owners, took = np.divmod(pairs, count)
    sizes = np.bincount(owners, minlength=len(log.users))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    asked = np.flatnonzero(sizes > 1)
    all_texts = np.unique(of_item)
    while True:
        chosen = rng.choice(asked, min(users, len(asked)), replace=False)
        theirs = [took[starts[user] : starts[user + 1]] for user in chosen]
        liked = rng.permutation(np.unique(np.concatenate(theirs)))[: max(2, texts // 2)]
        others = rng.permutation(np.setdiff1d(all_texts, liked))[: max(0, texts - len(liked))]
        batch = np.sort(np.concatenate([liked, others]))
        taken = np.zeros((len(chosen), len(batch)), dtype=np.float32)
        for row, history in enumerate(theirs):
            taken[row, np.isin(batch, history, assume_unique=True)] = 1
        taken = taken[taken.sum(axis=1) > 1]
        if len(taken):
            yield Batch(batch, taken)


def step(embed: Callable[[Sequence[str]], Tensor], texts: Sequence[str], taken: F32, chunk: int) -> float:
    """The loss of a batch; its gradient is added to that of the encoder's weights.

    Args:
        embed: texts -> vectors of length one (texts, dim), the same for the same text (no dropout).
        texts: of the batch.
        taken: (users, texts).
        chunk: texts of one backward pass.
    """
    with torch.no_grad():
        vectors = torch.cat([embed(texts[at : at + chunk]) for at in range(0, len(texts), chunk)])
    vectors.requires_grad_(True)
    loss = losses.elsa(vectors, torch.from_numpy(taken))
    (gradient,) = torch.autograd.grad(loss, vectors)
    for at in range(0, len(texts), chunk):
        embed(texts[at : at + chunk]).backward(gradient[at : at + chunk])
    return float(loss.detach())
