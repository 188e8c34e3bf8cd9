"""From events to a bundle of item ids, top to bottom: split, train, export.

The caller judges it and adds the figures.
"""

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

from headwater.encoder.bundle import Origin
from headwater.encoder.runtime import Encoder
from headwater_models.bundles import export, sequence_bundle
from headwater_models.bundles.sequence_bundle import Named
from headwater_models.data.datasets import Dataset
from headwater_models.judging.protocols import Split
from headwater_models.networks import ARCHITECTURES
from headwater_models.progress import Report
from headwater_models.training.recipes import Recipe
from headwater_models.training.sequence_loop import IdModel, Model, Progress, fit, measure_worth
from headwater_models.training.teacher import BundleTeacher


def make(
    model: str,
    data: Dataset,
    asked: Split,
    recipe: Recipe,
    out: Path,
    command: str,
    report: Report,
    teacher: BundleTeacher | None = None,
) -> Encoder:
    """Train, with a teacher if there is one, and write the bundle.

    A checkpoint lies beside `out` until the bundle is written; an existing one is continued. Raises FitError, or ExportError.
    """
    started = time.monotonic()
    export.make_place(out)
    trained, progress = _trained(model, data, asked, recipe, checkpoint_of(out), report, teacher)
    report("exporting", 0, 1)
    bundle = sequence_bundle.write(
        out,
        trained,
        data.item_ids,
        recipe.fit.length,
        Named(
            f"{model}-{Path(data.name).stem}",
            f"{model} over the item ids of {data.name}",
            Origin(
                data=f"{data.name}, {asked.protocol}: {len(asked.train.items):,} events of {len(asked.train.users):,} users",
                data_sha256=data.fingerprint,
                command=command,
                seed=recipe.fit.seed,
                seconds=round(time.monotonic() - started, 1),
                versions=export.versions("torch", "onnx", "numpy"),
                figures={},
                notes=[
                    f"configuration: {json.dumps(asdict(recipe))}",
                    f"best of {progress.epoch} epochs: {progress.best_epoch}, validation NDCG@10 {progress.best:.4f}",
                    f"{export.CURVE}{json.dumps(progress.curve)}",
                    *([f"taught by {teacher.encoder.id}"] if teacher else []),
                    *(f"left out, {reason}: {rows:,}" for reason, rows in data.dropped.items()),
                    *data.notes,
                ],
            ),
        ),
    )
    checkpoint_of(out).unlink()
    report("exporting", 1, 1)
    return bundle


def validated(
    model: str,
    data: Dataset,
    asked: Split,
    recipe: Recipe,
    report: Report,
    teacher: BundleTeacher | None = None,
) -> float:
    """The best validation NDCG@10 of a training of which nothing else is kept. Raises FitError."""
    with tempfile.TemporaryDirectory() as scratch:
        return _trained(model, data, asked, recipe, Path(scratch) / "checkpoint", report, teacher)[1].best


def _trained(
    model: str,
    data: Dataset,
    asked: Split,
    recipe: Recipe,
    checkpoint: Path,
    report: Report,
    teacher: BundleTeacher | None,
) -> tuple[Model, Progress]:
    torch.manual_seed(recipe.fit.seed)
    _, network = ARCHITECTURES[model]
    trained = IdModel(len(data.item_ids), network(recipe.encoder), recipe.temperature)
    measure_worth(trained.encoder, asked.train)
    return trained, fit(trained, asked, recipe.fit, checkpoint, report, teacher)


def checkpoint_of(out: Path) -> Path:
    """Where the checkpoint of a training into `out` lies."""
    return out.with_name(out.name + ".checkpoint")
