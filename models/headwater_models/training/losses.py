"""Losses as pure functions of scores. Each returns the mean over its rows, a scalar."""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def next_purchases(scores: Tensor, offsets: Tensor, users: Tensor, items: Tensor) -> Tensor:
    """Softmax with several right answers per user: the mean of -log p(item | user) over pairs (users[n], items[n]).

    scores (users, items); users and items (pairs,) are rows and columns of it; offsets (items,): -log of the chance that
    the item is among the columns at all (logQ correction).
    """
    total = torch.logsumexp(scores + offsets, dim=1)  # (users,)
    return (total[users] - scores[users, items]).mean()


def first_purchases(
    scores: Tensor, offsets: Tensor, users: Tensor, items: Tensor, known: tuple[Tensor, Tensor]
) -> Tensor:
    """`next_purchases` among items that a user never bought: pairs (known[0][n], known[1][n]) are excluded.

    Shapes as there; each part of `known` is (known pairs,).
    """
    out_of_race = torch.zeros_like(scores).index_put(known, scores.new_tensor(-1e4))
    return next_purchases(scores + out_of_race, offsets, users, items)


def same_geometry(vectors: Tensor, teacher: Tensor) -> Tensor:
    """Mean square difference of all pairs' cosines, so that items stay as far apart as the teacher sees them.

    vectors (items, dim); teacher (items, teacher dim), of length one.
    """
    student = F.normalize(vectors, dim=-1)
    return (student @ student.T - teacher @ teacher.T).square().mean()


def full_softmax(users: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy over the whole catalog: the mean of -log p(item | user).

    users (N, dim), items (catalog, dim), targets (N,). Equals cross_entropy(users @ items.T, targets) without holding the
    scores of all pairs. On processors with bfloat16 the products use it, which halves the time and moves the gradient by
    about 2e-4 of its length.
    """
    loss: Tensor = _FullSoftmax.apply(users, items, targets)  # type: ignore[no-untyped-call]  # torch types no Function
    return loss


class _FullSoftmax(torch.autograd.Function):
    """Value and gradient in one pass over chunks of users: the scores of a chunk stay in the cache."""

    CHUNK = 128

    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, targets: Tensor) -> Tensor:
        kind = torch.bfloat16 if users.dtype == torch.float32 and _fast_bfloat16() else users.dtype
        small_users, small_items = users.to(kind), items.to(kind)
        wide = torch.float32 if kind == torch.bfloat16 else kind
        grad_users, grad_items = torch.empty_like(users), torch.zeros_like(items)
        loss = users.new_zeros(())
        buffer = small_users.new_empty(_FullSoftmax.CHUNK, len(items))
        for start in range(0, len(users), _FullSoftmax.CHUNK):
            part = small_users[start : start + _FullSoftmax.CHUNK]
            chunk = slice(start, start + len(part))
            scores = torch.mm(part, small_items.T, out=buffer[: len(part)])
            largest = scores.amax(1, keepdim=True)
            right = scores.gather(1, targets[chunk, None])
            weights = scores.sub_(largest).exp_()  # (chunk, catalog)
            total = weights.sum(1, keepdim=True, dtype=wide)
            loss += (total.log() + largest - right).sum()
            grad_users[chunk] = (weights @ small_items) / total
            grad_items += weights.T @ (part / total).to(kind)
        grad_users -= items[targets]
        grad_items.index_add_(0, targets, users, alpha=-1)
        ctx.save_for_backward(grad_users / len(users), grad_items / len(users))
        return loss / len(users)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_users, grad_items = ctx.saved_tensors
        return grads[0] * grad_users, grads[0] * grad_items, None


@cache
def _fast_bfloat16() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_avx512_bf16_supported()


def sampled_softmax(right: Tensor, sampled: Tensor, log_counts: Tensor, hits: Tensor) -> Tensor:
    """Softmax over the right item and sampled ones, corrected for how often each is sampled (logQ).

    right (N,): scores of the right items; sampled (N, C): of the sampled ones; log_counts (C,): log of how often each is
    expected among the C; hits (N, C): where the sampled item is the right one, which then does not count against itself.
    Bengio and Senecal, 2008. Without the correction popular items are pushed down for being sampled often.
    """
    others = (sampled - log_counts).masked_fill(hits, -torch.inf)
    return (torch.logaddexp(right, others.logsumexp(1)) - right).mean()


def gbce(right: Tensor, sampled: Tensor, items: int, calibration: float = 0.75) -> Tensor:
    """Generalised binary cross-entropy of gSASRec (Petrov and Macdonald, RecSys 2023, arXiv:2308.07192, equation 9).

    right (N,), sampled (N, C): C uniform negatives of `items`. At calibration t the right score's likelihood is raised to
    beta = a (t (1 - 1/a) + 1/a), where a = C / (items - 1) is the sampled share. This undoes the overconfidence that few
    negatives cause.
    """
    share = sampled.shape[1] / (items - 1)
    beta = share * (calibration * (1 - 1 / share) + 1 / share)
    return -(beta * F.logsigmoid(right) + F.logsigmoid(-sampled).sum(1)).mean()


def bpr(right: Tensor, sampled: Tensor) -> Tensor:
    """Bayesian personalised ranking (Rendle et al., UAI 2009): right (N,) above each of sampled (N, C)."""
    return -F.logsigmoid(right[:, None] - sampled).mean()


def info_nce(views: Tensor, others: Tensor, temperature: float) -> Tensor:
    """InfoNCE by cosine: each view (N, dim) against the other of its row among those of all rows (van den
    Oord et al., 2018).
    """
    cosines = F.normalize(views, dim=-1) @ F.normalize(others, dim=-1).T
    return F.cross_entropy(cosines / temperature, torch.arange(len(views), device=views.device))


def elsa(vectors: Tensor, taken: Tensor) -> Tensor:
    """ELSA (Vančura et al., RecSys 2022): what a user took, predicted from everything else that the user took.

    vectors (items, dim) of length one; taken (users, items) of 0 and 1. The squared distance of the directions of `taken`
    and of taken @ (A A^T - I), where negative predictions count as zero.
    """
    predicted = F.relu(taken @ vectors @ vectors.T - taken)
    return (F.normalize(predicted, dim=-1) - F.normalize(taken, dim=-1)).square().sum(-1).mean()


def distillation(students: Tensor, teachers: Tensor, temperature: float) -> Tensor:
    """KL divergence of the student's softmax from the teacher's over the same items, times temperature^2.

    students and teachers (N, C): scores. Hinton et al., 2015 (arXiv:1503.02531); the square keeps the gradient's size when
    the temperature changes. Zero if the scores differ by a constant per row.
    """
    wanted = F.log_softmax(teachers / temperature, dim=1)
    found = F.log_softmax(students / temperature, dim=1)
    return temperature**2 * F.kl_div(found, wanted, reduction="batchmean", log_target=True)
