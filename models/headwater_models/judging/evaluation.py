"""Any scorer over any split: full ranking of the catalog in numpy, the same code for bundles, models and
baselines.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np

from headwater.encoder.features import clamp_gap_s, gaps_s, item_keys
from headwater.encoder.runtime import Encoder
from headwater.recall.fusion import Ranking, fuse
from headwater_models.arrays import F32, F64, I64, U64, Bools
from headwater_models.data.datasets import Dataset, DatasetError
from headwater_models.data.events import Log, newest
from headwater_models.judging import metrics
from headwater_models.judging.protocols import (
    Cases,
    Scorer,
    Split,
    delayed,
    discoveries,
    histories,
    of_targets,
    select,
)

Done = Callable[[int, int], None]  # done, of
# Scores held at once: 64 MB.
_SCORES: Final = 2**24
# Histories read at once: a windowed encoder of several themes holds a megabyte for each.
READ: Final = 256


@dataclass(frozen=True)
class Measure:
    """A mean with its interval."""

    value: float
    low: float  # 95 % bootstrap interval over users
    high: float


@dataclass(frozen=True)
class Group:
    """A part of the targets, and the share of it that was found."""

    targets: int
    hit: float


@dataclass(frozen=True)
class Quality:
    """How good the lists of length k are.

    `hit` and `ndcg` take each target as a question of its own (rank r counts 1 / log2(r + 1)). `lists` holds measures of
    whole lists over the distinct targets of each case; with one target per case both agree.
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


def question_sets(split: Split) -> dict[str, Cases]:
    """`all` questions, and those that stand apart: unless the split names others, or seen items are masked anyway, those of
    `discovery`, whose targets are new to the user.
    """
    if split.apart is not None:
        return {"all": split.test, **split.apart}
    if split.test.mask_seen:
        return {"all": split.test}
    return {"all": split.test, "discovery": discoveries(split.log, split.test)}


def evaluate(
    scorer: Scorer,
    split: Split,
    items: int,
    k: int,
    done: Done = lambda *_: None,
    *,
    remembered: int | None = None,
) -> dict[str, Quality]:
    """Quality on each question set. With `remembered`, scorers and masks know only that many newest events of a user.

    After a split in time also on `newcomers`: targets without a training event, ranked among such items only.
    """
    sets = {name: (cases, scorer) for name, cases in question_sets(split).items()}
    new = newcomers(split, items)
    if new is not None and new[split.test.targets].any():
        sets["newcomers"] = (of_targets(split.test, new), _only(new, scorer))
    found = {}
    for name, (cases, scored_by) in sets.items():
        known = replace(cases, remembered=remembered)
        found[name] = quality(*ranking(scored_by, split.log, known, items, k, done), split, cases, items, k)
    return found


def newcomers(split: Split, items: int) -> Bools | None:
    """Which items (items,) have no training event. None unless the split is in time."""
    return np.bincount(split.train.items, minlength=items) == 0 if split.at_ms is not None else None


def ranking(
    scorer: Scorer, log: Log, cases: Cases, items: int, k: int, done: Done = lambda *_: None
) -> tuple[I64, I64]:
    """The rank of each target (targets,), where ties count against it, and the best k items of each case (cases, k).

    Lists end with -1 where a case has fewer items. Raises ValueError: the scorer gave NaN.
    """
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


def _only(items: Bools, scorer: Scorer) -> Scorer:
    """The scorer with all other items out of the ranking."""

    def scores(log: Log, cases: Cases, part: slice) -> F32:
        return np.where(items, scorer(log, cases, part), np.float32(-np.inf))

    return scores


def tuned(
    make: Callable[[float], Scorer], values: Sequence[float], split: Split, items: int, k: int
) -> Scorer:
    """The scorer of the value with the best NDCG at k on at most 5,000 validation cases."""
    some = np.unique(np.linspace(0, len(split.validation), 5_000, endpoint=False, dtype=np.int64))
    cases = select(split.validation, some[some < len(split.validation)])

    def quality(value: float) -> float:
        ranks, _ = ranking(make(value), split.log, cases, items, k)
        return float(metrics.by_case(ranks, cases.target_starts, k)["NDCG"].sum())

    return make(max(values, key=quality))


def best(scores: F32, count: int) -> I64:
    """Columns of the `count` highest scores of each row, best first: (rows, columns) -> (rows, count).

    Among equal scores the lower column comes first.
    """
    columns = scores.shape[1]
    count = min(count, columns)
    # At least `count` blocks have a maximum of at least `bound`, so the best are among the scores that reach it.
    blocks = min(16 * count, columns)
    width = columns // blocks
    maxima = scores[:, : blocks * width].reshape(len(scores), blocks, width).max(axis=2)
    bound = np.sort(maxima, axis=1)[:, -count]
    out = np.empty((len(scores), count), dtype=np.int64)
    for row, least in enumerate(bound):
        above = np.flatnonzero(scores[row] >= least)
        out[row] = above[np.argsort(-scores[row, above], kind="stable")][:count]
    return out


class Catalog(NamedTuple):
    """The items of a dataset as a bundle sees them."""

    vectors: F32  # (items, D), zeros where there is none
    known: Bools  # (items,) whether an item has a vector
    keys: U64  # (items,) as the table of neighbours names them
    attributes: Sequence[Mapping[str, object]] = ()  # of the first items; later ones have none
    came_in: I64 | None = None  # (items,) when each came into the assortment, in ms, or in what order


def encoded(encoder: Encoder, dataset: Dataset, done: Done = lambda *_: None) -> Catalog:
    """The whole catalog through a bundle's item tower.

    Raises DatasetError: the bundle reads texts and the data has none.
    """
    count = len(dataset.item_ids)
    known = np.ones(count, dtype=np.bool_)
    if encoder.item_inputs == "text":
        if dataset.texts is None:
            raise DatasetError(
                f"bundle {encoder.id} reads the texts of items and {dataset.name} has none: use a bundle of item ids"
            )
        count = len(dataset.texts)
        known[:count] = [bool(text.strip(" .")) for text in dataset.texts]
        known[count:] = False
    vectors = np.zeros((len(known), encoder.dim), dtype=np.float32)
    for start in range(0, count, 4096):
        part = slice(start, min(start + 4096, count))
        vectors[part] = encoder.encode_items((dataset.texts or [])[part], dataset.item_ids[part])
        done(part.stop, count)
    keys = item_keys(item_id.encode() for item_id in dataset.item_ids)
    return Catalog(vectors, known, keys, dataset.attributes, dataset.came_in)


def bundle_scorer(encoder: Encoder, catalog: Catalog) -> Scorer:
    """An exported bundle as a scorer: interests of the newest L events at the question, an item's best dot
    product.
    """

    def scores(log: Log, cases: Cases, part: slice) -> F32:
        asked = interests_of(encoder, catalog, log, cases, part)
        found = bundle_products(asked.interests, catalog)
        found[~asked.any_event] = -np.inf
        return found

    return scores


def bundle_products(interests: F32, catalog: Catalog) -> F32:
    """Each item's dot product with the nearest of a case's interests: (cases, K, D) -> (cases, items), -inf
    without a vector.
    """
    found = interests[:, 0] @ catalog.vectors.T
    for interest in range(1, interests.shape[1]):
        np.maximum(found, interests[:, interest] @ catalog.vectors.T, out=found)
    found[:, ~catalog.known] = -np.inf
    return found


class Interests(NamedTuple):
    """What a bundle makes of each case's history."""

    interests: F32  # (cases, K, D)
    weights: F32  # (cases, K)
    any_event: Bools  # (cases,); without an event that counts, serving has no interests


def interests_of(encoder: Encoder, catalog: Catalog, log: Log, cases: Cases, part: slice) -> Interests:
    """Interests (cases, K, D) and weights (cases, K) at each case's moment, through the bundle's own graphs."""
    length = min(encoder.log_length, cases.remembered or encoder.log_length)
    rows, mask = newest(log, cases.users[part], cases.ends[part], length)
    mask *= catalog.known[log.items[rows]]  # an item without a vector is pending and does not count
    # Events to the front, padding after them, order kept.
    order = np.argsort(mask == 0, axis=1, kind="stable")
    rows, mask = np.take_along_axis(rows, order, axis=1), np.take_along_axis(mask, order, axis=1)
    last = np.where(mask > 0, log.at_ms[rows], 0).max(axis=1, keepdims=True)
    times = np.where(mask > 0, log.at_ms[rows], last)
    items, actions, gaps = catalog.vectors[log.items[rows]], log.actions[rows], gaps_s(times)
    any_event = mask.max(axis=1) > 0
    now = clamp_gap_s(np.where(any_event, cases.now_ms[part] - last[:, 0], 0) / 1000)
    some = [slice(start, start + READ) for start in range(0, max(len(now), 1), READ)]
    answers = [encoder.answer(items[each], actions[each], gaps[each], mask[each], now[each]) for each in some]
    interests, weights = (np.concatenate(parts) for parts in zip(*answers, strict=True))
    return Interests(interests, weights, any_event)


def fused(scorers: Sequence[Scorer], depth: int = 200) -> Scorer:
    """The best `depth` items of each scorer, fused by rank as recall fuses its sources; other items are never
    found.
    """

    def scores(log: Log, cases: Cases, part: slice) -> F32:
        rankings: list[list[Ranking]] = [[] for _ in range(part.stop - part.start)]
        for number, scorer in enumerate(scorers):
            found = np.array(scorer(log, cases, part))
            if cases.mask_seen:
                owners, rows = histories(log, cases, part)
                found[owners, log.items[rows]] = -np.inf
            for row, items in enumerate(best(found, depth)):
                real = items[np.isfinite(found[row, items])]
                rankings[row].append(Ranking(str(number), 1.0, [(item, "") for item in real.tolist()]))
        together = np.full(found.shape, -np.inf, dtype=np.float32)
        for row, of_case in enumerate(rankings):
            for place, item in enumerate(fuse(of_case)):
                together[row, item.key] = -place  # equal scores are served in this order too
        return together

    return scores


def freshness(
    late: Callable[[int], Scorer],
    log: Log,
    cases: Cases,
    items: int,
    k: int,
    delays_ms: Sequence[int],
    done: Done = lambda *_: None,
) -> dict[int, Measure]:
    """Recall at k when events reach the history only after a delay: delay in ms -> recall.

    `late` gives the scorer for a delay in ms, in which other things may lag too.
    """
    found = {}
    for n, delay_ms in enumerate(delays_ms):
        ranks, _ = ranking(late(delay_ms), log, delayed(log, cases, delay_ms), items, k)
        found[delay_ms] = _measure((ranks <= k).astype(np.float64), cases.users[cases.case_of_target])
        done(n + 1, len(delays_ms))
    return found


def quality(ranks: I64, lists: I64, asked: Split, cases: Cases, items: int, k: int) -> Quality:
    """Quality from the rank of each target (targets,) (metrics.NEVER: not found) and lists (cases, k), -1 for
    an empty place.
    """
    counts, owners = np.bincount(asked.train.items, minlength=items), cases.case_of_target
    each = metrics.by_case(ranks, np.arange(len(ranks) + 1), k)
    people = cases.users if cases.people is None else cases.people
    hits, users = each["HR"], people[owners]
    _, distinct = np.unique(owners * items + cases.targets, return_index=True)
    starts = np.searchsorted(owners[distinct], np.arange(len(cases) + 1))
    whole = metrics.by_case(ranks[distinct], starts, k)
    lengths = (cases.ends - asked.log.starts[cases.users])[owners]
    return Quality(
        k=k,
        cases=len(cases),
        targets=len(cases.targets),
        hit=_measure(hits, users),
        ndcg=_measure(each["NDCG"], users),
        lists={name: _measure(values, people) for name, values in whole.items()},
        coverage=metrics.coverage(lists, items),
        novelty=metrics.novelty(lists, counts),
        gini=metrics.gini(lists, items),
        by_popularity=_groups(hits, metrics.popularity_deciles(counts)[cases.targets], metrics.DECILES),
        by_history=_groups(hits, metrics.length_groups(lengths), metrics.LENGTHS),
    )


def _measure(values: F64, users: I64) -> Measure:
    if not len(values):
        return Measure(0.0, 0.0, 0.0)
    return Measure(float(values.mean()), *metrics.interval(values, users))


def _groups(hits: F64, groups: I64, names: tuple[str, ...]) -> dict[str, Group]:
    counts, sums = np.bincount(groups), np.bincount(groups, weights=hits)
    return {names[n]: Group(int(counts[n]), float(sums[n] / counts[n])) for n in np.flatnonzero(counts)}
