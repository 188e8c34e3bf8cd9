"""What each source counts in the answers of a bundle, by what finds most of the validation events of its own data.

The weights of the registry suit a shop whose items are told apart by what users do. Where popularity says more than histories,
where sessions say more than tastes, or where nobody takes an item twice, others find more.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from headwater.encoder.runtime import Encoder
from headwater.recall.sources.registry import DEFAULT_WEIGHTS
from headwater_models.arrays import F64
from headwater_models.judging import metrics
from headwater_models.judging.evaluation import Catalog
from headwater_models.judging.protocols import Cases, Split, discoveries, select
from headwater_models.judging.served import Asking, Pipeline
from headwater_models.judging.trending import Trending
from headwater_models.progress import Report

Weights = Mapping[str, float]

K: Final = 20
# Lists are made one by one.
_MOST: Final = 600
# With fewer questions chance decides.
_LEAST: Final = 20
# Weights of a request for what is new to the user, beside those that it has anyway.
NEW: Final[tuple[Weights, ...]] = (
    {"similar": 0.0},
    {"similar": 2.0},
    {"similar": 2.0, "interests": 0.5},
    {"popular": 0.5},
    {"popular": 1.0},
    {"similar": 0.0, "popular": 0.5},
    {"similar": 0.0, "popular": 1.0},
    {"similar": 2.0, "popular": 1.0},
    {"similar": 0.0, "popular": 4.0},
)
# The same where what the user had may come again.
AGAIN: Final[tuple[Weights, ...]] = ({"buy-again": 4.0}, {"buy-again": 1.0}, {"buy-again": 0.0})


class Chosen(NamedTuple):
    """Weights that differ from the usual ones, and what they bring: NDCG with the usual ones and with these."""

    weights: dict[str, float]
    usual: float
    best: float
    questions: int


def chosen(encoder: Encoder, catalog: Catalog, asked: Split, has_times: bool, report: Report) -> Chosen:
    """The weights under which a bundle's answers find most of a split's validation events.

    They differ from the usual ones only where the mean gain is larger than its standard error.
    """
    cases = asked.validation
    some = np.unique(np.linspace(0, len(cases), _MOST, endpoint=False, dtype=np.int64))
    cases = select(cases, some[some < len(cases)])
    new = cases if cases.mask_seen else discoveries(asked.log, cases)
    found: dict[str, float] = {}
    usual = best = 0.0
    if len(new) >= _LEAST:
        answers = _Answers(encoder, catalog, asked, new, has_times)
        options = [each for each in NEW if encoder.neighbours or set(each) != {"similar"}]
        found, usual, best = _best(answers, {}, options, report)
    if not cases.mask_seen and len(cases) >= _LEAST:
        answers = _Answers(encoder, catalog, asked, cases, has_times)
        found = _best(answers, found, AGAIN, report)[0]
    return Chosen(found, usual, best, len(new))


def complete(weights: Weights) -> Weights:
    """Weights of all sources of a request that names none: the usual ones, and these instead."""
    return {**DEFAULT_WEIGHTS, **weights}


def _best(
    answers: "_Answers", base: Weights, options: Sequence[Weights], report: Report
) -> tuple[dict[str, float], float, float]:
    """The best of some weights over `base`, and the NDCG of `base` and of the best."""
    usual = answers.ndcg(complete(base))
    best, best_found = dict(base), usual
    for done, option in enumerate(options, 1):
        tried = {**base, **option}
        found = answers.ndcg(complete(tried))
        gain = found - usual
        is_certain = gain.mean() > gain.std() / np.sqrt(len(gain))
        if is_certain and found.mean() > best_found.mean():
            best, best_found = tried, found
        report("weighing sources", done, len(options))
    return best, float(usual.mean()), float(best_found.mean())


class _Answers:
    """The answers to some questions under any weights. What the encoder makes of histories is worked out once."""

    def __init__(
        self, encoder: Encoder, catalog: Catalog, asked: Split, cases: Cases, has_times: bool
    ) -> None:
        self._cases = cases
        self._pipeline = Pipeline(catalog, encoder.neighbours)
        self._asks, _ = Asking(encoder, catalog)(asked.log, cases, slice(0, len(cases)), K)
        self._trending = Trending.of(asked, len(catalog.keys), has_times=has_times)
        self._days: dict[int, list[int]] = {}
        for place, ask in enumerate(self._asks):
            self._days.setdefault(self._trending.day(ask.now_ms), []).append(place)
        self._keys = catalog.keys

    def ndcg(self, weights: Weights) -> F64:
        """(cases,) NDCG at 20."""
        lists: list[list[int]] = [[]] * len(self._asks)
        for places in self._days.values():
            self._pipeline.popular = self._trending.popular(self._asks[places[0]].now_ms, self._keys)
            asks = [self._asks[place]._replace(weights=weights) for place in places]
            for place, items in zip(places, self._pipeline.lists(asks), strict=True):
                lists[place] = items
        cases, ranks = self._cases, []
        for case, target in zip(cases.case_of_target.tolist(), cases.targets.tolist(), strict=True):
            found = lists[case]
            ranks.append(found.index(target) + 1 if target in found else metrics.NEVER)
        return metrics.by_case(np.array(ranks, dtype=np.int64), cases.target_starts, K)["NDCG"]
