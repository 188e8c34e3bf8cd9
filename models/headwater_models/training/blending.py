"""The weights of a `Blend` for a bundle: those under which what users took next comes first among its candidates.

The lift of new items is chosen after them. A likelihood would lower such items: many are candidates, and few are taken. A split also
makes items new that are known to the bundle that is served, so there a lift costs more places than it will. Hence new items are dealt
into parts, and the lift is tried with the items of one part at a time.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize

from headwater_models.arrays import F32, F64, I64
from headwater_models.data.events import Log
from headwater_models.judging.candidates import Pooling
from headwater_models.judging.protocols import Cases, some_of
from headwater_models.networks.blend import Blend, terms_of
from headwater_models.progress import Report
from headwater_models.training.weighing import Found, K, lifted

# Candidates of each source: hardly anything that stands behind them in all sources comes among the first ten.
POOL: Final = 50
# Logits of a new item.
LIFTS: Final = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
# New items are worth what these questions cannot show: once seen, they get events. So a lift may cost this share of the NDCG.
LIFT_COST: Final = 0.01
# A dozen weights from fewer answers would be chance.
LEAST: Final = 200
_QUESTIONS: Final = 5_000
_SLICE: Final = 128
# More of them would be of few items each.
_MOST_PARTS: Final = 10
# Pulls the weights of standardised terms towards zero, as so many nats of each question.
_RIDGE: Final = 1e-3


class Question(NamedTuple):
    """What is known of each candidate, and which of them was taken."""

    terms: F32  # (candidates, terms)
    taken: int
    parts: I64  # (candidates,) as `parts_of` has them


def questions_of(
    pooling: Pooling, log: Log, cases: Cases, parts: I64, *, timed: bool, report: Report
) -> list[Question]:
    """Those of the cases, each with one target, whose target is among the candidates.

    Seen items may come: what they are worth is learned too. `parts` (items,) are those of `parts_of`, or 0 where vectors do not mark
    new items.
    """
    asked, found = replace(some_of(cases, _QUESTIONS), mask_seen=False), []
    for start in range(0, len(asked), _SLICE):
        part = slice(start, min(start + _SLICE, len(asked)))
        for pool, target in zip(pooling(log, asked, part)[0], asked.targets[part], strict=True):
            (taken,) = np.flatnonzero(pool.items == target)[:1].tolist() or [-1]
            if taken >= 0:
                own = parts[pool.items]
                terms = terms_of(torch.from_numpy(pool.features), torch.from_numpy(own > 0), timed=timed)
                found.append(Question(terms.numpy(), taken, own))
        report("candidates of past questions", part.stop, len(asked))
    return found


def parts_of(train: Log, log: Log, items: int) -> I64:
    """(items,) 0 for items with an event in `train`; the others are dealt into parts 1, 2, ..., each of about as many items as have no
    event in the whole `log`.
    """
    new, never = (np.flatnonzero(np.bincount(of.items, minlength=items) == 0) for of in (train, log))
    count = min(max(round(len(new) / max(len(never), 1)), 1), _MOST_PARTS)
    parts = np.zeros(items, dtype=np.int64)
    parts[new] = 1 + np.random.default_rng(0).permutation(len(new)) % count
    return parts


def blended(questions: Sequence[Question], *, timed: bool) -> Blend:
    """The blend that finds these questions' answers most likely.

    The loss is the mean of -log softmax(terms @ weights) at what was taken. It is convex, so there is nothing to tune or draw. New
    items are then lifted as far as that finds more of them and costs little of all.
    """
    terms = np.concatenate([each.terms for each in questions]).astype(np.float64)
    starts = np.concatenate([[0], np.cumsum([len(each.terms) for each in questions])])[:-1]
    taken = starts + np.array([each.taken for each in questions])
    scale = terms.std(axis=0)
    scale[scale < 1e-6] = np.inf  # a term that never differs has no say
    weights = _fitted(terms / scale, starts, taken) / scale
    parts = np.concatenate([each.parts for each in questions])
    blend = Blend(timed=timed, marked=bool((parts > 0).any()))
    blend.weight.copy_(torch.from_numpy(weights))
    scores = terms @ weights
    lift = lift_of(scores, parts, starts, taken)
    blend.lift.fill_(lift)
    # The best candidates are near zero, where the logistic function that follows still tells scores apart.
    best = np.maximum.reduceat(scores + lift * (parts > 0), starts)
    blend.bias.fill_(-float(best.mean()))
    return blend


def lift_of(scores: F64, parts: I64, starts: I64, taken: I64) -> float:
    """What to add to the scores of new candidates, so that most of them that were taken are found and few others are lost.

    Args:
        scores, parts: (candidates,) of all questions, one after the other; of new ones the parts are above 0. What is found is the mean
            over the parts, each beside what is known.
        starts, taken: (questions,) the place of its first candidate, and of the one that was taken.
    """
    sizes, new = np.diff(np.append(starts, len(scores))), parts > 0
    by_lift = {}
    for lift in LIFTS:
        lifted_scores = scores + lift * new
        before = lifted_scores > np.repeat(lifted_scores[taken], sizes)
        of_all, of_new = [], []
        for part in range(1, max(int(parts.max()), 1) + 1):
            is_there = ~new | (parts == part)
            ranks = 1 + np.add.reduceat(before & is_there, starts, dtype=np.int64)
            gains = np.where(ranks <= K, 1 / np.log2(ranks + 1), 0.0)
            of_all.append((gains * is_there[taken]).sum() / max(is_there[taken].sum(), 1))
            of_new.append(gains[parts[taken] == part])
        found = np.concatenate(of_new)
        by_lift[lift] = Found(float(np.mean(of_all)), float(found.sum()) / max(len(found), 1))
    return lifted(by_lift, LIFT_COST * by_lift[0.0].all)


def _fitted(terms: F64, starts: I64, taken: I64) -> F64:
    sizes = np.diff(np.append(starts, len(terms)))

    def loss(weights: F64) -> tuple[float, F64]:
        scores = terms @ weights
        scores -= np.repeat(np.maximum.reduceat(scores, starts), sizes)
        shares = np.exp(scores)
        totals = np.add.reduceat(shares, starts)
        shares /= np.repeat(totals, sizes)
        value = (np.log(totals) - scores[taken]).mean() + _RIDGE / 2 * weights @ weights
        slope = (shares @ terms - terms[taken].sum(axis=0)) / len(starts) + _RIDGE * weights
        return float(value), slope

    found = minimize(loss, np.zeros(terms.shape[1]), jac=True, method="L-BFGS-B")
    return np.asarray(found.x, dtype=np.float64)
