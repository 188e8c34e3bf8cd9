"""What `headwater train`, `evaluate`, `export` and `bundle` do, with progress on the terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from models import evaluation
from models.complete_journey import Data, load_data
from models.evaluation import WEEK_MS, Quality
from models.events import Log, newest
from streams.bundle import Figures, Manifest
from streams.encoder import Encoder, load
from streams.features import clamp_gap_s, gaps_s

Floats = NDArray[np.float32]
AllFigures = dict[str, dict[str, Figures]]  # method -> set of targets -> figures


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
        figures = _judged(bundle, data, report)
    bundle = with_figures(out, figures)
    _console().print(table(figures))
    return bundle


def evaluate(bundle: Path, *, threads: int = 1) -> AllFigures:
    """The exported bundle against popularity, popularity of the last week and buy-again, on Complete Journey."""
    encoder = load(bundle, threads=threads)
    with _progress() as report:
        return _judged(encoder, load_data(), report)


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
    return load(bundle, device="cpu").manifest


def table(figures: AllFigures) -> Table:
    """Figures as people compare them: one method a line, in percent."""
    sets = list(next(iter(figures.values()), {}))
    shown = Table("method", *[f"{name} {measure}" for name in sets for measure in ("hit@20", "NDCG@20")])
    for method, found in figures.items():
        cells = [f"{value:.2%}" for name in sets for value in (found[name].hit_at_20, found[name].ndcg_at_20)]
        shown.add_row(method, *cells)
    shown.caption = ", ".join(
        f"{name}: {next(iter(figures.values()))[name].targets:,} targets" for name in sets
    )
    return shown


def _judged(encoder: Encoder, data: Data, report: "_Report") -> AllFigures:
    items = len(data.item_ids)
    vectors = np.full((items, encoder.dim), np.nan, dtype=np.float32)
    for start in range(0, len(data.texts), 4096):
        part = slice(start, min(start + 4096, len(data.texts)))
        vectors[part] = encoder.encode_items(data.texts[part], data.item_ids[part])
        report("encoding items", part.stop, len(data.texts))
    interests = _interests(encoder, vectors, data.before, data.split_ms, report)
    scorers = {
        encoder.name: evaluation.dot_products(interests, vectors),
        "popular": evaluation.popularity(data.before, items),
        "popular in the last week": evaluation.popularity(data.before, items, data.split_ms - WEEK_MS),
        "buy again": evaluation.buy_again(data.before, items),
    }
    figures: AllFigures = {}
    for n, (name, scorer) in enumerate(scorers.items()):
        report("ranking", n, len(scorers))
        found = evaluation.evaluate(scorer, data.before, data.after)
        figures[name] = {targets: _figures(quality) for targets, quality in found.items()}
    report("ranking", len(scorers), len(scorers))
    return figures


def _interests(encoder: Encoder, vectors: Floats, log: Log, now_ms: int, report: "_Report") -> Floats:
    """Interests of all users at one moment, from their newest L events, through the bundle's own graphs."""
    users = len(log.users)
    interests = np.zeros((users, encoder.interests, encoder.dim), dtype=np.float32)
    known = np.asarray(np.isfinite(vectors).all(axis=1))
    for start in range(0, users, 256):
        chosen = np.arange(start, min(start + 256, users))
        rows, mask = newest(log, chosen, log.starts[chosen + 1], encoder.log_length)
        mask *= known[log.items[rows]]  # an item that was never encoded is a pending one: it does not count
        last = np.where(mask.any(axis=1), log.at_ms[log.starts[chosen + 1] - 1], now_ms)
        times = np.where(mask > 0, log.at_ms[rows], 0)
        rows, times, mask = _closed_up(rows, times, mask)
        given = (
            np.nan_to_num(vectors[log.items[rows]]),
            log.actions[rows],
            gaps_s(np.where(mask > 0, times, times.max(axis=1, keepdims=True))),
            mask,
        )
        now = clamp_gap_s((now_ms - last) / 1000)
        if encoder.kind == "windowed":
            interests[chosen], _ = encoder.window(*given, now)
        else:
            interests[chosen], _ = encoder.read(encoder.step(encoder.initial_state(len(chosen)), *given), now)
        report("reading logs", int(chosen[-1]) + 1, users)
    return interests


def _closed_up(
    rows: NDArray[np.int64], times: NDArray[np.int64], mask: Floats
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Real events to the front, padding behind them, order kept."""
    order = np.argsort(mask == 0, axis=1, kind="stable")
    return tuple(np.take_along_axis(values, order, axis=1) for values in (rows, times, mask))  # type: ignore[return-value]


def _figures(quality: Quality) -> Figures:
    return Figures(quality.targets, round(quality.hit, 4), round(quality.ndcg, 4))


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


def as_json(figures: AllFigures) -> bytes:
    """Figures for machines."""
    return msgspec.json.encode(figures)
