"""Any scorer over any split: full ranking of the catalog, in numpy, the same code for bundles, models and baselines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models import metrics
from models.datasets import Dataset, DatasetError
from models.events import Log, newest
from models.protocols import (
    Cases,
    Floats,
    Ints,
    Scorer,
    Split,
    delayed,
    discoveries,
    histories,
    of_targets,
    select,
)
from streams.encoder import Encoder
from streams.features import clamp_gap_s, gaps_s

Done = Callable[[int, int], None]  # done, of
# Scores held at once: 64 MB of them.
_SCORES: Final = 2**24


@dataclass(frozen=True)
class Measure:
    value: float
    low: float  # 95 % bootstrap interval over users
    high: float


@dataclass(frozen=True)
class Group:
    """Some of the targets."""

    targets: int
    hit: float


@dataclass(frozen=True)
class Quality:
    """How good the lists of length k are.

    `hit` and `NDCG` take each target as a question of its own (a target at rank r counts 1 / log2(r + 1)). `lists` are the
    measures of whole lists, each over the distinct targets of its case; where a case has one target they say the same.
    """

    k: int
    cases: int
    targets: int
    hit: Measure
    ndcg: Measure
    lists: dict[str, Measure]
    coverage: float
    novelty: float
    gini: float
    by_popularity: dict[str, Group]  # deciles of the trained items, and "cold" for those never trained on
    by_history: dict[str, Group]


def evaluate(
    scorer: Scorer, split: Split, items: int, k: int, done: Done = lambda *_: None
) -> dict[str, Quality]:
    """Quality on `all` targets and, where seen items are not masked anyway, on `discovery`: those new to the user.

    After a split in time also on `newcomers`: the targets that nobody had before it, ranked among the items that nobody had.
    """
    sets = {"all": (split.test, scorer)}
    if not split.test.mask_seen:
        sets["discovery"] = (discoveries(split.log, split.test), scorer)
    counts = np.bincount(split.train.items, minlength=items)
    if split.at_ms is not None and not counts[split.test.targets].all():
        sets["newcomers"] = (of_targets(split.test, counts == 0), _only(counts == 0, scorer))
    found = {}
    for name, (cases, scored_by) in sets.items():
        ranks, lists = ranking(scored_by, split.log, cases, items, k, done)
        found[name] = _quality(ranks, lists, split.log, cases, counts, k)
    return found


def ranking(
    scorer: Scorer, log: Log, cases: Cases, items: int, k: int, done: Done = lambda *_: None
) -> tuple[Ints, Ints]:
    """The rank of each target (ties count against it), and the best k items of each case, -1 where there are fewer."""
    size = max(1, _SCORES // items)
    ranks = np.empty(len(cases.targets), dtype=np.int64)
    lists = np.empty((len(cases), min(k, items)), dtype=np.int64)
    for start in range(0, len(cases), size):
        part = slice(start, min(start + size, len(cases)))
        scores = np.array(scorer(log, cases, part), dtype=np.float32, order="C")
        if np.isnan(scores).any():
            raise ValueError(
                f"a scorer gave NaN among cases {part.start} to {part.stop}: expected numbers or -inf"
            )
        if cases.mask_seen:
            owners, rows = histories(log, cases, part)
            scores[owners, log.items[rows]] = -np.inf
        lists[part] = best(scores, k)
        for row, case in enumerate(range(part.start, part.stop)):
            for target in range(cases.target_starts[case], cases.target_starts[case + 1]):
                score = scores[row, cases.targets[target]]
                never = score == -np.inf
                ranks[target] = metrics.NEVER if never else np.count_nonzero(scores[row] >= score)
        lists[part][np.isneginf(np.take_along_axis(scores, lists[part], axis=1))] = -1
        done(part.stop, len(cases))
    return ranks, lists


def _only(items: NDArray[np.bool_], scorer: Scorer) -> Scorer:
    """The scorer with all other items out of the ranking."""

    def scores(log: Log, cases: Cases, part: slice) -> Floats:
        return np.where(items, scorer(log, cases, part), np.float32(-np.inf))

    return scores


def tuned(
    make: Callable[[float], Scorer], values: Sequence[float], split: Split, items: int, k: int
) -> Scorer:
    """The scorer of the value whose NDCG at k on the validation cases, at most 5,000 of them, is best."""
    some = np.unique(np.linspace(0, len(split.validation), 5_000, endpoint=False, dtype=np.int64))
    cases = select(split.validation, some[some < len(split.validation)])

    def quality(value: float) -> float:
        ranks, _ = ranking(make(value), split.log, cases, items, k)
        return float(metrics.by_case(ranks, cases.target_starts, k)["NDCG"].sum())

    return make(max(values, key=quality))


def best(scores: Floats, count: int) -> Ints:
    """Columns of the highest scores of each row, best first; among equal scores the lower column."""
    columns = scores.shape[1]
    count = min(count, columns)
    # As many blocks as the count have a maximum of at least `bound`, so the best are among the scores that reach it.
    blocks = min(16 * count, columns)
    width = columns // blocks
    maxima = scores[:, : blocks * width].reshape(len(scores), blocks, width).max(axis=2)
    bound = np.sort(maxima, axis=1)[:, -count]
    out = np.empty((len(scores), count), dtype=np.int64)
    for row, least in enumerate(bound):
        above = np.flatnonzero(scores[row] >= least)
        out[row] = above[np.argsort(-scores[row, above], kind="stable")][:count]
    return out


def bundle_scorer(encoder: Encoder, dataset: Dataset, done: Done = lambda *_: None) -> Scorer:
    """An exported bundle as it serves: interests of the newest L events at the moment asked, an item's best dot product.

    Raises DatasetError where the bundle reads texts and the data has none.
    """
    encoded = len(dataset.item_ids)
    if encoder.item_inputs == "text":
        if dataset.texts is None:
            raise DatasetError(
                f"bundle {encoder.id} reads the texts of items and {dataset.name} has none: use a bundle of item ids"
            )
        encoded = len(dataset.texts)
    vectors = np.zeros((len(dataset.item_ids), encoder.dim), dtype=np.float32)
    for start in range(0, encoded, 4096):
        part = slice(start, min(start + 4096, encoded))
        vectors[part] = encoder.encode_items((dataset.texts or [])[part], dataset.item_ids[part])
        done(part.stop, encoded)
    known = np.arange(len(vectors)) < encoded

    def scores(log: Log, cases: Cases, part: slice) -> Floats:
        interests = _interests(encoder, vectors, known, log, cases, part)
        found = interests[:, 0] @ vectors.T  # (cases, items)
        for interest in range(1, encoder.interests):
            np.maximum(found, interests[:, interest] @ vectors.T, out=found)
        found[:, ~known] = -np.inf
        return found

    return scores


def _interests(
    encoder: Encoder, vectors: Floats, known: NDArray[np.bool_], log: Log, cases: Cases, part: slice
) -> Floats:
    """Interests (cases, K, D) at each case's moment, through the bundle's own graphs."""
    rows, mask = newest(log, cases.users[part], cases.ends[part], encoder.log_length)
    mask *= known[log.items[rows]]  # an item that was never encoded is a pending one: it does not count
    # Real events to the front, padding behind them, order kept.
    order = np.argsort(mask == 0, axis=1, kind="stable")
    rows, mask = np.take_along_axis(rows, order, axis=1), np.take_along_axis(mask, order, axis=1)
    last = np.where(mask > 0, log.at_ms[rows], 0).max(axis=1, keepdims=True)
    times = np.where(mask > 0, log.at_ms[rows], last)
    given = (vectors[log.items[rows]], log.actions[rows], gaps_s(times), mask)
    now_ms = cases.now_ms[part]
    now = clamp_gap_s(np.where(mask.any(axis=1), now_ms - last[:, 0], 0) / 1000)
    if encoder.kind == "windowed":
        return encoder.window(*given, now)[0]
    return encoder.read(encoder.step(encoder.initial_state(len(rows)), *given), now)[0]


def freshness(
    scorer: Scorer,
    log: Log,
    cases: Cases,
    items: int,
    k: int,
    delays_ms: Sequence[int],
    done: Done = lambda *_: None,
) -> dict[int, Measure]:
    """Share of targets found when events reach the history only after a delay: delay in ms -> recall at k."""
    found = {}
    for n, delay_ms in enumerate(delays_ms):
        ranks, _ = ranking(scorer, log, delayed(log, cases, delay_ms), items, k)
        found[delay_ms] = _measure((ranks <= k).astype(np.float64), cases.users[cases.case_of_target])
        done(n + 1, len(delays_ms))
    return found


def _quality(ranks: Ints, lists: Ints, log: Log, cases: Cases, counts: Ints, k: int) -> Quality:
    items, owners = len(counts), cases.case_of_target
    each = metrics.by_case(ranks, np.arange(len(ranks) + 1), k)
    hits, users = each["HR"], cases.users[owners]
    _, distinct = np.unique(owners * items + cases.targets, return_index=True)
    starts = np.searchsorted(owners[distinct], np.arange(len(cases) + 1))
    whole = metrics.by_case(ranks[distinct], starts, k)
    lengths = (cases.ends - log.starts[cases.users])[owners]
    return Quality(
        k=k,
        cases=len(cases),
        targets=len(cases.targets),
        hit=_measure(hits, users),
        ndcg=_measure(each["NDCG"], users),
        lists={name: _measure(values, cases.users) for name, values in whole.items()},
        coverage=metrics.coverage(lists, items),
        novelty=metrics.novelty(lists, counts),
        gini=metrics.gini(lists, items),
        by_popularity=_groups(hits, metrics.popularity_deciles(counts)[cases.targets], metrics.DECILES),
        by_history=_groups(hits, metrics.length_groups(lengths), metrics.LENGTHS),
    )


def _measure(values: NDArray[np.float64], users: Ints) -> Measure:
    if not len(values):
        return Measure(0.0, 0.0, 0.0)
    return Measure(float(values.mean()), *metrics.interval(values, users))


def _groups(hits: NDArray[np.float64], groups: Ints, names: tuple[str, ...]) -> dict[str, Group]:
    counts, sums = np.bincount(groups), np.bincount(groups, weights=hits)
    return {names[n]: Group(int(counts[n]), float(sums[n] / counts[n])) for n in np.flatnonzero(counts)}
