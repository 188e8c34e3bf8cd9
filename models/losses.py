"""Losses as pure functions of scores."""

import torch
from torch import Tensor


def next_purchases(scores: Tensor, offsets: Tensor, users: Tensor, items: Tensor) -> Tensor:
    """Softmax with many right answers a user: the mean of -log p(item | user) over pairs (users[n], items[n]).

    scores (users, items); offsets (items,): -log of the chance that the item is among the columns at all (logQ correction).
    """
    total = torch.logsumexp(scores + offsets, dim=1)  # (users,)
    return (total[users] - scores[users, items]).mean()


def first_purchases(
    scores: Tensor, offsets: Tensor, users: Tensor, items: Tensor, known: tuple[Tensor, Tensor]
) -> Tensor:
    """The same among the items that a user has never bought: pairs (known[0][n], known[1][n]) are out of the race."""
    out_of_race = torch.zeros_like(scores).index_put(known, scores.new_tensor(-1e4))
    return next_purchases(scores + out_of_race, offsets, users, items)


def same_geometry(vectors: Tensor, teacher: Tensor) -> Tensor:
    """Mean square difference of all pairs' cosines: items stay as far apart as the teacher sees them."""
    student = torch.nn.functional.normalize(vectors, dim=-1)
    return (student @ student.T - teacher @ teacher.T).square().mean()
