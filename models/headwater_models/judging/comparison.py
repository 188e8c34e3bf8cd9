"""Bundles and baselines side by side on the questions of a protocol, and bundles by quality and cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from headwater.encoder import runtime as encoder
from headwater.encoder.runtime import Encoder
from headwater.recall.sources.registry import DEFAULT_WEIGHTS
from headwater_models.data.datasets import Dataset
from headwater_models.data.statistics import tells_times
from headwater_models.judging import baselines
from headwater_models.judging.candidates import Pooling, rescored
from headwater_models.judging.costs import Cost, measured
from headwater_models.judging.evaluation import (
    Catalog,
    Measure,
    Quality,
    bundle_scorer,
    encoded,
    evaluate,
    fused,
    newcomers,
    tuned,
)
from headwater_models.judging.protocols import At, Protocol, Scorer, Split, split
from headwater_models.judging.served import served
from headwater_models.judging.source_weights import complete
from headwater_models.judging.trending import Trending
from headwater_models.progress import progress


class Method(NamedTuple):
    """A scorer to judge, made when its turn comes, and how many newest events of a user it and the masks know."""

    make: Callable[[], Scorer]
    remembered: int | None = None  # None: all


@dataclass(frozen=True)
class Results:
    """What was asked of which data, and each method's quality on each question set."""

    data: str
    fingerprint: str
    dropped: dict[str, int]
    notes: list[str]
    protocol: str
    at_ms: int | None
    seed: int
    k: int
    methods: dict[str, dict[str, Quality]]


def compare(
    bundle: Path | None,
    data: Dataset,
    protocol: Protocol,
    *,
    other: Path | None = None,
    at: At | None = None,
    sample: int | None = None,
    seed: int = 0,
    k: int | None = None,
    learned: bool = False,
    threads: int = 1,
) -> Results:
    """Judge a bundle, another one beside it, and baselines, on the questions of a protocol: see :func:`judge`.

    Raises BundleError, or DatasetError if the data does not fit the bundle or the protocol.
    """
    asked = split(data, protocol, at, sample, seed)
    return judge(bundle, data, asked, other=other, seed=seed, k=k, learned=learned, threads=threads)


def judge(
    bundle: Path | None,
    data: Dataset,
    asked: Split,
    *,
    catalog: Catalog | None = None,
    other: Path | None = None,
    seed: int = 0,
    k: int | None = None,
    learned: bool = False,
    threads: int = 1,
) -> Results:
    """Judge a bundle, another one beside it, and baselines, on the same questions.

    A bundle is judged alone, with its neighbours if it has a table, as it is served with buy-again where seen items may
    come, and with its scorer if it has one. With an `other` bundle, their ranks are fused too. `learned` adds ItemKNN, EASE
    and ALS, or TIFU-KNN for baskets, which need scipy and implicit (extra `train`). `k` defaults to the protocol's usual
    length, `catalog` to the items of `data` as the bundle encodes them.

    Raises BundleError, or DatasetError if the data does not fit the bundle.
    """
    k = k or usual_k(asked.protocol)
    judged: dict[str, Method] = {}
    items, methods = len(data.item_ids), {}
    with progress() as report:
        if bundle is not None:
            one = encoder.load(bundle, threads=threads)
            if catalog is None:
                catalog = encoded(one, data, partial(report, f"encoding items of {one.name}"))
            own = _of_bundle(one, one.name, data, catalog, asked, k)
            judged |= own
            if asked.protocol == "cases":
                judged |= _of_tower(one, catalog)
            if other is not None:
                two = encoder.load(other, threads=threads)
                name = two.name if two.name != one.name else two.id
                seen_by_two = encoded(two, data, partial(report, f"encoding items of {name}"))
                others = _of_bundle(two, name, data, seen_by_two, asked, k)
                # Each as it is served: the last method of a bundle.
                both = [[*own.values()][-1], [*others.values()][-1]]
                known = min(one.log_length, two.log_length) if not asked.test.mask_seen else None
                judged |= others
                judged[f"{one.name} + {name}"] = Method(
                    lambda: fused([method.make() for method in both]), known
                )
        judged |= _baselines(asked, data, k, threads, learned=learned)
        for name, method in judged.items():
            report(name, 0, len(asked.test))
            done = partial(report, name)
            methods[name] = evaluate(method.make(), asked, items, k, done, remembered=method.remembered)
    return Results(
        data.name, data.fingerprint, data.dropped, data.notes, asked.protocol, asked.at_ms, seed, k, methods
    )


# Here a list answers for several targets at once, and is judged as a whole.
BY_LIST: Final = ("next-basket",)


def measures(quality: Quality, protocol: str) -> tuple[Measure, Measure]:
    """The two figures that stand in tables: how much is found, and NDCG; of whole lists, or of each target as a question."""
    if protocol in BY_LIST:
        return quality.lists["recall"], quality.lists["NDCG"]
    return quality.hit, quality.ndcg


def usual_k(protocol: str) -> int:
    """The list length that figures are usually given for."""
    return 10 if protocol in ("leave-one-out", "next-basket", "cases") else 20


@dataclass(frozen=True)
class Weighed:
    """A bundle's quality and its costs."""

    hit: Measure
    ndcg: Measure
    cost: Cost


def weigh(
    bundles: Sequence[Path],
    data: Dataset,
    protocol: Protocol,
    *,
    at: At | None = None,
    sample: int | None = None,
) -> dict[str, Weighed]:
    """Quality and cost of bundles, by folder: quality on all targets, after the second order of candidates where a bundle has
    a scorer; costs measured in turns, on one thread.

    Raises BundleError, or DatasetError if the data does not fit a bundle or the protocol.
    """
    asked = split(data, protocol, at, sample)
    k = usual_k(protocol)
    loaded = [encoder.load(bundle, threads=1, device="cpu") for bundle in bundles]
    items, found = len(data.item_ids), []
    with progress() as report:
        for bundle in loaded:
            catalog = encoded(bundle, data, partial(report, f"{bundle.name}: items"))
            again = bundle.pool and rescored(bundle, Pooling(bundle, catalog, asked, bundle.pool))
            done = partial(report, f"{bundle.name}: questions")
            quality = evaluate(again or bundle_scorer(bundle, catalog), asked, items, k, done)
            found.append(quality["all"])
    costs = measured(loaded, items)
    return {
        str(bundle): Weighed(quality.hit, quality.ndcg, cost)
        for bundle, quality, cost in zip(bundles, found, costs, strict=True)
    }


# Ends the name of a bundle with its own order of candidates.
SCORED: Final = ", scored again"


def _of_bundle(
    loaded: Encoder, name: str, data: Dataset, catalog: Catalog, asked: Split, k: int
) -> dict[str, Method]:
    """The methods by which a bundle is judged: alone; new items alone, after a split in time; its neighbours alone and with
    it, if it has a table; where seen items may come, buy-again alone and all as usually served; by its own weights of sources and
    with its scorer, if it has them.
    """
    length = loaded.log_length
    judged = {name: Method(lambda: bundle_scorer(loaded, catalog))}
    unknown = newcomers(asked, len(data.item_ids))
    trending = Trending.of(asked, len(data.item_ids), has_times=tells_times(data))
    # To a bundle of item ids all new items are alike.
    if unknown is not None and loaded.item_inputs == "text":
        judged[f"{name}: new"] = Method(lambda: served(loaded, catalog, k, {"new": 1.0}, unknown, trending))
    together = f"{name} and buy again"
    if loaded.neighbours:
        alone = {"similar": 1.0}
        new = {source: DEFAULT_WEIGHTS[source] for source in ("interests", "similar")}
        judged[f"{name}: similar"] = Method(lambda: served(loaded, catalog, k, alone))
        judged[f"{name} and similar"] = Method(lambda: served(loaded, catalog, k, new))
        together = f"{name}, similar and buy again"
    if not asked.test.mask_seen:
        judged[f"{name}: buy again"] = Method(lambda: served(loaded, catalog, k, {"buy-again": 1.0}), length)
        judged[together] = Method(lambda: served(loaded, catalog, k, DEFAULT_WEIGHTS), length)
    if weights := loaded.manifest.sources:
        judged[f"{name}, as it serves"] = Method(
            lambda: served(loaded, catalog, k, complete(weights), trending=trending), length
        )
    if loaded.pool:
        pooling = partial(Pooling, loaded, catalog, asked, loaded.pool)
        judged[f"{name}{SCORED}"] = Method(lambda: rescored(loaded, pooling()), length)
    return judged


def _of_tower(loaded: Encoder, catalog: Catalog) -> dict[str, Method]:
    """What a bundle's item tower finds without its user encoder."""
    vectors, known = catalog.vectors, catalog.known
    return {
        f"{loaded.name}: nearest to the last item": Method(lambda: baselines.nearest_to_last(vectors, known)),
        f"{loaded.name}: mean over its tower": Method(
            lambda: baselines.mean_of_tower(vectors, known, loaded.log_length)
        ),
    }


def _baselines(asked: Split, data: Dataset, k: int, threads: int, *, learned: bool) -> dict[str, Method]:
    """Baselines by name. Under `prequential` their counts go on with the replay."""
    items = len(data.item_ids)
    if asked.protocol == "prequential":
        popular = baselines.popularity_now(asked.log, items)
        week = baselines.popularity_now(asked.log, items, days=7)
    else:
        popular = baselines.popularity(asked.train, items)
        week = baselines.popularity_now(asked.train, items, days=7, until_ms=asked.at_ms)
    makers: dict[str, Callable[[], Scorer]] = {"popular": lambda: popular}
    if asked.protocol == "next-basket":
        makers["personal top"] = lambda: baselines.buy_again(popular)
        makers["personal top, the latest first"] = lambda: baselines.personal_top(popular)
        makers["repeats by time"] = lambda: baselines.repeats_by_time(asked.train, items)
    elif asked.protocol == "cases":
        if not asked.test.mask_seen:
            makers["buy again"] = lambda: baselines.buy_again(popular)
    else:
        makers["popular in the last week"] = lambda: week
        makers["buy again"] = lambda: baselines.buy_again(popular)
    if (texts := data.texts) and asked.protocol != "next-basket":
        makers["popular texts"] = lambda: baselines.popularity_of_texts(asked.train, texts, items)
    if learned:
        from headwater_models.judging import item_models

        if asked.protocol == "next-basket":
            makers["TIFU-KNN"] = lambda: item_models.tifu_knn(asked.train, items)
        else:
            makers |= _item_models(asked, items, k, threads)
    return {name: Method(make) for name, make in makers.items()}


def _item_models(asked: Split, items: int, k: int, threads: int) -> dict[str, Callable[[], Scorer]]:
    from headwater_models.judging import item_models

    nearest = partial(item_models.item_knn, asked.train, items)
    ease = f"EASE ({item_models.EASE_ITEMS:,} most popular)" if items > item_models.EASE_ITEMS else "EASE"
    return {
        "ItemKNN": lambda: tuned(lambda shrink: nearest(shrink=shrink), item_models.SHRINKS, asked, items, k),
        ease: lambda: item_models.ease(asked.train, items),
        "ALS": lambda: item_models.als(asked.train, items, threads=threads),
    }


def figures(results: Results) -> dict[str, dict[str, dict[str, float]]]:
    """What a manifest keeps of an evaluation: method -> question set -> measure -> value."""
    name = "recall" if results.protocol in BY_LIST else "hit"
    return {
        method: {
            of: {
                "targets": quality.targets,
                f"{name}_at_{quality.k}": round(found.value, 4),
                f"ndcg_at_{quality.k}": round(ndcg.value, 4),
            }
            for of, quality in sets.items()
            for found, ndcg in [measures(quality, results.protocol)]
        }
        for method, sets in results.methods.items()
    }
