"""The weights of a `Blend` for a bundle: those under which what users took next comes first among its candidates."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize

from headwater_models.arrays import F32, F64, I64
from headwater_models.data.events import Log
from headwater_models.judging.candidates import Pooling
from headwater_models.judging.protocols import Cases, select
from headwater_models.networks.blend import Blend, terms_of
from headwater_models.progress import Report

# Candidates of each source: hardly anything that stands behind them in all sources comes among the first ten.
POOL: Final = 50
# A dozen weights from fewer answers would be chance.
LEAST: Final = 200
_QUESTIONS: Final = 5_000
_SLICE: Final = 128
# Pulls the weights of standardised terms towards zero, as so many nats of each question.
_RIDGE: Final = 1e-3


class Question(NamedTuple):
    """The terms of each candidate (candidates, terms), and which of them was taken."""

    terms: F32
    taken: int


def questions_of(
    pooling: Pooling, log: Log, asked: Sequence[Cases], *, timed: bool, report: Report
) -> list[Question]:
    """Those of the cases, each with one target, whose target is among the candidates."""
    rng, found = np.random.default_rng(0), []
    for cases in asked:
        chosen = select(cases, np.sort(rng.permutation(len(cases))[: _QUESTIONS // len(asked)]))
        for start in range(0, len(chosen), _SLICE):
            part = slice(start, min(start + _SLICE, len(chosen)))
            for pool, target in zip(pooling(log, chosen, part)[0], chosen.targets[part], strict=True):
                (taken,) = np.flatnonzero(pool.items == target)[:1].tolist() or [-1]
                if taken >= 0:
                    terms = terms_of(torch.from_numpy(pool.features), timed=timed).numpy()
                    found.append(Question(terms, taken))
            report("candidates of past questions", part.stop, len(chosen))
    return found


def blended(questions: Sequence[Question], *, timed: bool) -> Blend | None:
    """The blend that finds these questions' answers most likely; None: there are too few to tell.

    The loss is the mean of -log softmax(terms @ weights) at what was taken. It is convex, so there is nothing to tune or draw.
    """
    if len(questions) < LEAST:
        return None
    terms = np.concatenate([each.terms for each in questions]).astype(np.float64)
    starts = np.concatenate([[0], np.cumsum([len(each.terms) for each in questions])])[:-1]
    taken = starts + np.array([each.taken for each in questions])
    scale = terms.std(axis=0)
    scale[scale < 1e-6] = np.inf  # a term that never differs has no say
    weights = _fitted(terms / scale, starts, taken) / scale
    blend = Blend(timed=timed)
    blend.weight.copy_(torch.from_numpy(weights))
    # The best candidates are near zero, where the logistic function that follows still tells scores apart.
    blend.bias.fill_(-float(np.maximum.reduceat(terms @ weights, starts).mean()))
    return blend


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
