"""What `headwater train`, `evaluate`, `export` and `bundle` do, with progress on the terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from models import baselines
from models.datasets import Dataset
from models.evaluation import Quality, bundle_scorer, evaluate, tuned
from models.protocols import At, Protocol, Scorer, Split, split
from streams import encoder
from streams.bundle import Manifest
from streams.encoder import Encoder


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
    """Data -> model -> bundle -> figures. Needs torch and transformers (the extras `train` and `export`).

    One thread by default: on cores that others use too, torch's threads wait for each other most of the time.
    """
    import torch

    from models.export import with_figures
    from models.train_starter import StarterConfig, make

    torch.set_num_threads(threads)
    config = StarterConfig()
    training = replace(config.training, seed=seed, steps=steps or config.training.steps)
    with _progress() as report:
        bundle, data = make(out, replace(config, training=training), command, report)
    results = compare(bundle.path, data, "list-at-split", threads=threads)
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
    resume: bool = False,
    threads: int = 1,
    command: str = "headwater train",
) -> Results:
    """Events -> model -> bundle of item ids -> figures. Needs torch (the extra `train`)."""
    import torch

    from models.export import with_figures
    from models.recipes import recipe
    from models.train_sequence import checkpoint_of, make

    torch.set_num_threads(threads)
    if not resume:
        checkpoint_of(out).unlink(missing_ok=True)
    chosen = recipe(model, data.name)
    fit = replace(chosen.fit, seed=seed, epochs=epochs or chosen.fit.epochs)
    with _progress() as report:
        asked = split(data, protocol, at)
        make(model, data, asked, replace(chosen, fit=fit), out, command, report)
    results = compare(out, data, protocol, at=at, threads=threads)
    with_figures(out, _figures(results))
    return results


def compare(
    bundle: Path | None,
    data: Dataset,
    protocol: Protocol,
    *,
    at: At | None = None,
    sample: int | None = None,
    seed: int = 0,
    k: int | None = None,
    learned: bool = False,
    threads: int = 1,
) -> Results:
    """An exported bundle, if one is named, beside the counting baselines and, if `learned`, ItemKNN, EASE and ALS.

    Lists have length `k`: if it is not said, 10 for leave-one-out and 20 for the others. The learned baselines need scipy and
    implicit (the extra `train`).
    """
    k = k or (10 if protocol == "leave-one-out" else 20)
    asked = split(data, protocol, at, sample, seed)
    makers: dict[str, Callable[[], Scorer]] = {}
    items, methods = len(data.item_ids), {}
    with _progress() as report:
        if bundle is not None:
            loaded = encoder.load(bundle, threads=threads)
            makers[loaded.name] = lambda: bundle_scorer(loaded, data, partial(report, "encoding items"))
        makers |= _baselines(asked, data, k, threads, learned=learned)
        for name, make in makers.items():
            report(name, 0, len(asked.test))
            methods[name] = evaluate(make(), asked, items, k, partial(report, name))
    return Results(
        data.name, data.fingerprint, data.dropped, data.notes, protocol, asked.at_ms, seed, k, methods
    )


def export_lm(model: str, out: Path, *, int8: bool = False, command: str = "headwater export") -> Encoder:
    """A language model as item tower. Needs optimum and transformers (the extra `export`)."""
    from models.language_model import export_language_model

    with _progress() as report:
        report(f"exporting {model}", 0, 1)
        bundle = export_language_model(model, out, int8, command)
        report(f"exporting {model}", 1, 1)
    return bundle


def make_mean(bundle: Path, out: Path, *, command: str = "headwater bundle mean") -> Encoder:
    """The item tower of a bundle under the training-free user encoder. Needs onnx (the extra `train`)."""
    from models.export import make_mean as made

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
        for method, found in results.methods.items():
            quality = found[name]
            cells = []
            for measure in (quality.hit, quality.ndcg):
                cells += [f"{measure.value:.4f}", f"{measure.low:.4f}-{measure.high:.4f}"]
            shown.add_row(method, *cells, f"{quality.coverage:.3f}")
        yield shown


def _baselines(
    asked: Split, data: Dataset, k: int, threads: int, *, learned: bool
) -> dict[str, Callable[[], Scorer]]:
    """Scorers by name, made when they are needed. Under `prequential` the counts go on with the replay."""
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
        from models import item_models

        nearest = partial(item_models.item_knn, asked.train, items)
        makers["ItemKNN"] = lambda: tuned(
            lambda shrink: nearest(shrink=shrink), item_models.SHRINKS, asked, items, k
        )
        ease = f"EASE ({item_models.EASE_ITEMS:,} most popular)" if items > item_models.EASE_ITEMS else "EASE"
        makers[ease] = lambda: item_models.ease(asked.train, items)
        makers["ALS"] = lambda: item_models.als(asked.train, items, threads=threads)
    return makers


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


class _Report:
    """Progress bars by name: report("encoding items", done, total)."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        name = what.split(",")[0]  # what follows a comma changes on the way
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[name], description=what, completed=done, total=total)


@contextmanager
def _progress() -> Iterator[_Report]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_console()) as progress:
        yield _Report(progress)


def _console() -> Console:
    return Console(stderr=True)


def as_json(results: Results) -> bytes:
    """Figures for machines."""
    return msgspec.json.encode(results)
