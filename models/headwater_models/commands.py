"""What `headwater train`, `evaluate`, `export` and `bundle` do, with progress on the terminal."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from headwater.encoder import runtime as encoder
from headwater.encoder.bundle import Manifest
from headwater.encoder.runtime import Encoder
from headwater.recall.fusion import DEFAULT_WEIGHTS
from headwater_models.data.datasets import Dataset
from headwater_models.judging import baselines
from headwater_models.judging.candidates import Pooling, rescored
from headwater_models.judging.costs import USERS, Cost, measured
from headwater_models.judging.evaluation import (
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
from headwater_models.training.search import Search, best_of

if TYPE_CHECKING:
    from headwater_models.training.recipes import AnyRecipe, Space

Report = Callable[[str, int, int], None]  # report("encoding items", done, of)

# Questions that a bundle is judged on where it gets a scorer or a table: a list each takes its time.
_JUDGED: Final = 10_000


class Method(NamedTuple):
    """What is judged: a scorer, made when it is its turn, and how many of a user's newest events it and the masks know."""

    make: Callable[[], Scorer]
    remembered: int | None = None  # None: all of them


@dataclass(frozen=True)
class Results:
    """What was asked of which data, and how well each method did on each set of targets."""

    data: str
    fingerprint: str
    dropped: dict[str, int]
    notes: list[str]
    protocol: str
    at_ms: int | None
    seed: int
    k: int
    methods: dict[str, dict[str, Quality]]


def train_starter(
    out: Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    threads: int = 1,
    command: str = "headwater train starter",
) -> Encoder:
    """Data -> model -> bundle -> its table of neighbours -> figures. Needs torch and transformers (the extras `train` and `export`).

    One thread by default: on cores that others use too, torch's threads wait for each other most of the time.
    """
    import torch

    from headwater_models.bundles import neighbours
    from headwater_models.bundles.export import with_figures
    from headwater_models.train_starter import StarterConfig, make

    torch.set_num_threads(threads)
    config = StarterConfig()
    training = replace(config.training, seed=seed, steps=steps or config.training.steps)
    with progress() as report:
        bundle, data = make(out, replace(config, training=training), command, report)
    asked = split(data, "global-time")
    neighbours.make(bundle.path, data, asked, out, command, neighbours.TableConfig())
    results = compare(bundle.path, data, "global-time", sample=_JUDGED, threads=threads)
    for table in tables(results):
        _console().print(table)
    return with_figures(out, _figures(results))


def train_sequence(
    model: str,
    data: Dataset,
    protocol: Protocol,
    out: Path,
    *,
    at: At | None = None,
    seed: int = 0,
    epochs: int | None = None,
    settings: Sequence[str] = (),
    search: Search | None = None,
    teacher: Path | None = None,
    nested: Sequence[int] = (),
    resume: bool = False,
    threads: int = 1,
    command: str = "headwater train",
) -> Results:
    """Events -> model -> bundle of item ids -> figures. Needs torch (the extra `train`).

    settings: other values of the recipe's fields, "fit.loss=gbce"; teacher: a bundle whose answers are learned too; nested:
    numbers of first dimensions that have to do alone as well.
    """
    import torch

    from headwater_models.bundles.export import make_place
    from headwater_models.train_sequence import checkpoint_of, make, validated
    from headwater_models.training import recipes
    from headwater_models.training.teacher import Teacher

    torch.set_num_threads(threads)
    if not resume:
        checkpoint_of(out).unlink(missing_ok=True)
    chosen = recipes.recipe(model, data.name)
    chosen = recipes.varied(chosen, recipes.settings(chosen, settings))
    chosen = recipes.varied(
        chosen,
        {"fit.seed": seed, "fit.epochs": epochs or chosen.fit.epochs, "fit.nested": tuple(nested)},
    )
    taught = Teacher.of(encoder.load(teacher, device="cpu"), data) if teacher else None
    make_place(out)
    with progress() as report:
        asked = split(data, protocol, at)
        if search is not None:
            over = f"{_named(data, asked)}, {chosen}, taught by {taught.encoder.id if taught else 'nobody'}"
            judge = partial(validated, model, data, asked, report=report, teacher=taught)
            chosen = _best(search, model, chosen, recipes.ENCODER_SPACE, over, judge, report)
        make(model, data, asked, chosen, out, command, report, taught)
    return _judged(out, data, protocol, at=at, threads=threads)


def train_scorer(
    model: str,
    base: Path,
    data: Dataset,
    protocol: Protocol,
    out: Path,
    *,
    at: At | None = None,
    seed: int = 0,
    epochs: int | None = None,
    settings: Sequence[str] = (),
    search: Search | None = None,
    threads: int = 1,
    command: str = "headwater train",
) -> Results:
    """A bundle and events -> the bundle with a score graph -> figures. Needs torch (the extra `train`)."""
    import torch

    from headwater_models.bundles.export import make_place
    from headwater_models.train_scorer import make, prepare, validated
    from headwater_models.training import recipes

    torch.set_num_threads(threads)
    chosen = recipes.scorer_recipe(model)
    chosen = recipes.varied(chosen, recipes.settings(chosen, settings))
    chosen = recipes.varied(chosen, {"fit.seed": seed, "fit.epochs": epochs or chosen.fit.epochs})
    make_place(out)
    with progress() as report:
        asked = split(data, protocol, at)
        material = prepare(base, data, asked, chosen.fit, report)
        if search is not None:
            over = f"{_named(data, asked)}, {chosen}, {material.encoder.id}"
            judge = partial(validated, model, material, report=report)
            chosen = _best(search, model, chosen, recipes.SCORER_SPACE, over, judge, report)
        make(model, material, data, asked, chosen, out, command, report)
    return _judged(out, data, protocol, at=at, sample=_JUDGED, threads=threads)


def train_similar(
    base: Path,
    data: Dataset,
    protocol: Protocol,
    out: Path,
    *,
    at: At | None = None,
    threads: int = 1,
    command: str = "headwater train similar",
) -> Results:
    """A bundle and events -> the bundle with a table of neighbours -> figures. Needs scipy (the extra `train`)."""
    from headwater_models.bundles import neighbours
    from headwater_models.bundles.export import make_place

    make_place(out)
    neighbours.make(base, data, split(data, protocol, at), out, command, neighbours.TableConfig())
    return _judged(out, data, protocol, at=at, sample=_JUDGED, threads=threads)


def _judged(bundle: Path, data: Dataset, protocol: Protocol, **asked: Any) -> Results:
    """Judge a bundle where it was made, and write what was found into its manifest; `asked`: see `compare`."""
    from headwater_models.bundles.export import with_figures

    results = compare(bundle, data, protocol, **asked)
    with_figures(bundle, _figures(results))
    return results


def _best(
    search: Search,
    model: str,
    recipe: "AnyRecipe",
    space: "Space",
    over: str,
    judge: "Callable[[AnyRecipe], float]",
    report: Report,
) -> "AnyRecipe":
    """The variant of a recipe that validates best; `over`: what it is judged on."""
    from headwater_models.training.recipes import varied

    def judged(values: dict[str, Any]) -> float:
        return judge(varied(recipe, values))

    return varied(recipe, best_of(search, model, space, over, recipe.fit.seed, judged, report))


def _named(data: Dataset, asked: Split) -> str:
    """What a study is of: a search on other questions is another one."""
    return f"{data.name} ({data.fingerprint[:12]}), {asked.protocol} at {asked.at_ms}"


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
    """An exported bundle, if one is named, alone, with its neighbours if it has a table of them and, where seen items may come,
    as it is served with buy-again, beside the counting baselines and, if `learned`, ItemKNN, EASE and ALS.

    With an `other` bundle beside it: that one too, and the ranks of both fused. Lists have length `k`, if it is not said the
    usual one. The learned baselines need scipy and implicit (the extra `train`).
    """
    k = k or usual_k(protocol)
    asked = split(data, protocol, at, sample, seed)
    judged: dict[str, Method] = {}
    items, methods = len(data.item_ids), {}
    with progress() as report:
        if bundle is not None:
            one = encoder.load(bundle, threads=threads)
            judged |= _of_bundle(one, one.name, data, asked, k, report)
            if other is not None:
                two = encoder.load(other, threads=threads)
                name = two.name if two.name != one.name else two.id
                others = _of_bundle(two, name, data, asked, k, report)
                # Each at its best: what is made last of a bundle is how it is served.
                both = [[*judged.values()][-1], [*others.values()][-1]]
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
        data.name, data.fingerprint, data.dropped, data.notes, protocol, asked.at_ms, seed, k, methods
    )


def usual_k(protocol: Protocol) -> int:
    """The length of lists that figures are usually given for."""
    return 10 if protocol == "leave-one-out" else 20


def export_lm(model: str, out: Path, *, int8: bool = False, command: str = "headwater export") -> Encoder:
    """A language model as item tower. Needs optimum and transformers (the extra `export`)."""
    from headwater_models.bundles.language_model import export_language_model

    with progress() as report:
        report(f"exporting {model}", 0, 1)
        bundle = export_language_model(model, out, int8, command)
        report(f"exporting {model}", 1, 1)
    return bundle


def tune_lm(
    model: str,
    data: Dataset,
    protocol: Protocol,
    out: Path,
    *,
    at: At | None = None,
    steps: int | None = None,
    rank: int | None = None,
    seed: int = 0,
    threads: int = 1,
) -> None:
    """A language model that knows what users take together, for `export_lm`. Needs the extra `export`."""
    import torch

    from headwater_models.training.tuning import TuneConfig, tune

    torch.set_num_threads(threads)
    usual = TuneConfig()
    config = replace(usual, seed=seed, steps=steps or usual.steps, rank=usual.rank if rank is None else rank)
    with progress() as report:
        tune(model, data, split(data, protocol, at).train, out, config, report)


def lighten(
    bundle: Path, out: Path, *, int8: bool, fp16: bool, dim: int | None, prune: float, command: str
) -> Encoder:
    """A lighter bundle. Needs onnx (the extra `train`)."""
    from headwater_models.bundles.light import lighten as made

    return made(bundle, out, int8=int8, fp16=fp16, dim=dim, prune=prune, command=command)


@dataclass(frozen=True)
class Weighed:
    """A bundle's worth and its costs."""

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
    """Bundles by their folders: quality on all targets, of candidates scored again where a bundle does, and costs measured in
    turns, on one thread."""
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


def weighed_table(weighed: dict[str, Weighed], title: str) -> Table:
    """One bundle a line; microseconds of one user, and a user in a batch."""
    shown = Table(
        "bundle", title=title, caption=f"us for one user / a user in a batch of {USERS}; one thread"
    )
    for column in ("hit", "NDCG", "MB", "click", "answer", "search", "score"):
        shown.add_column(column, justify="right")
    for name, found in weighed.items():
        cost = found.cost
        times = (cost.click_us, cost.answer_us, cost.search_us, cost.score_us)
        shown.add_row(
            Path(name).name,
            f"{found.hit.value:.4f}",
            f"{found.ndcg.value:.4f}",
            f"{cost.bytes / 1e6:.2f}",
            *("" if us is None else f"{us[0]:,.1f} / {us[1]:,.1f}" for us in times),
        )
    return shown


def make_mean(bundle: Path, out: Path, *, command: str = "headwater bundle mean") -> Encoder:
    """The item tower of a bundle under the training-free user encoder. Needs onnx (the extra `train`)."""
    from headwater_models.bundles.export import make_mean as made

    return made(bundle, out, command)


def describe(bundle: Path) -> Manifest:
    """The manifest of a bundle that has passed every check."""
    return encoder.load(bundle, device="cpu").manifest


def tables(results: Results) -> Iterator[Table]:
    """Figures as people compare them: a table for each set of targets, one method a line."""
    at = f" at {datetime.fromtimestamp(results.at_ms / 1000, UTC):%Y-%m-%d %H:%M}" if results.at_ms else ""
    for name, first in next(iter(results.methods.values())).items():
        shown = Table(
            "method",
            title=f"{results.data}, {results.protocol}{at}: {name}",
            caption=f"{first.targets:,} targets of {first.cases:,} lists; interval: 95 %, bootstrap over users",
        )
        for column in (f"hit@{results.k}", "interval", f"NDCG@{results.k}", "interval", "coverage"):
            shown.add_column(column, justify="right")
        # Newcomers are ranked among each other, which no request asks for: not every method has all sets.
        having = {method: found[name] for method, found in results.methods.items() if name in found}
        for method, quality in having.items():
            cells = []
            for measure in (quality.hit, quality.ndcg):
                cells += [f"{measure.value:.4f}", f"{measure.low:.4f}-{measure.high:.4f}"]
            shown.add_row(method, *cells, f"{quality.coverage:.3f}")
        yield shown


def _of_bundle(
    loaded: Encoder, name: str, data: Dataset, asked: Split, k: int, report: Report
) -> dict[str, Method]:
    """A bundle alone; what is new alone, after a split in time; its neighbours alone and with it, if it has a table of them; where
    seen items may come, what its log and counters say of that alone, and all of it as it is served; and with its scorer, if it
    has one."""
    catalog = encoded(loaded, data, partial(report, f"encoding items of {name}"))
    length = loaded.log_length
    judged = {name: Method(lambda: bundle_scorer(loaded, catalog))}
    unknown = newcomers(asked, len(data.item_ids))
    # To a bundle of item ids all new items are alike.
    if unknown is not None and loaded.item_inputs == "text":
        judged[f"{name}: new"] = Method(lambda: served(loaded, catalog, k, {"new": 1.0}, unknown))
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
    if loaded.pool:
        pooling = partial(Pooling, loaded, catalog, asked, loaded.pool)
        judged[f"{name}, scored again"] = Method(lambda: rescored(loaded, pooling()), length)
    return judged


def _baselines(asked: Split, data: Dataset, k: int, threads: int, *, learned: bool) -> dict[str, Method]:
    """Baselines by name. Under `prequential` the counts go on with the replay."""
    items = len(data.item_ids)
    if asked.protocol == "prequential":
        popular = baselines.popularity_now(asked.log, items)
        week = baselines.popularity_now(asked.log, items, days=7)
    else:
        popular = baselines.popularity(asked.train, items)
        week = baselines.popularity_now(asked.train, items, days=7, until_ms=asked.at_ms)
    makers: dict[str, Callable[[], Scorer]] = {
        "popular": lambda: popular,
        "popular in the last week": lambda: week,
        "buy again": lambda: baselines.buy_again(popular),
    }
    if texts := data.texts:
        makers["popular texts"] = lambda: baselines.popularity_of_texts(asked.train, texts, items)
    if learned:
        from headwater_models.judging import item_models

        nearest = partial(item_models.item_knn, asked.train, items)
        makers["ItemKNN"] = lambda: tuned(
            lambda shrink: nearest(shrink=shrink), item_models.SHRINKS, asked, items, k
        )
        ease = f"EASE ({item_models.EASE_ITEMS:,} most popular)" if items > item_models.EASE_ITEMS else "EASE"
        makers[ease] = lambda: item_models.ease(asked.train, items)
        makers["ALS"] = lambda: item_models.als(asked.train, items, threads=threads)
    return {name: Method(make) for name, make in makers.items()}


def _figures(results: Results) -> dict[str, dict[str, dict[str, float]]]:
    """What a manifest keeps of an evaluation."""
    return {
        method: {
            name: {
                "targets": quality.targets,
                f"hit_at_{quality.k}": round(quality.hit.value, 4),
                f"ndcg_at_{quality.k}": round(quality.ndcg.value, 4),
            }
            for name, quality in found.items()
        }
        for method, found in results.methods.items()
    }


class _Bars:
    """Progress bars by name."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        name = what.split(",")[0]  # what follows a comma changes on the way
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[name], description=what, completed=done, total=total)


@contextmanager
def progress() -> Iterator[Report]:
    """Bars on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_console()) as bars:
        yield _Bars(bars)


def _console() -> Console:
    return Console(stderr=True)


def as_json(results: Results | dict[str, Weighed]) -> bytes:
    """Figures for machines."""
    return msgspec.json.encode(results)
