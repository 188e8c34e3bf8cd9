"""From a shop's catalog and clicks to its bundle, top to bottom: a plan by statistics, training, figures, everything, export.

The figures are of a bundle that learned up to a split in time. The bundle that is kept learns from all events, by the same
plan and for as many epochs as that one was best after.
"""

import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from headwater.encoder.bundle import Origin
from headwater.encoder.runtime import Encoder, load
from headwater_models.arrays import F32
from headwater_models.bundles import export, neighbour_table, sequence_bundle
from headwater_models.bundles.neighbour_table import TableConfig
from headwater_models.bundles.sequence_bundle import Named
from headwater_models.bundles.text_encoder import TextEncoder
from headwater_models.bundles.text_tower import Whitened, whitened
from headwater_models.data.datasets import Dataset, DatasetError
from headwater_models.data.events import of_items
from headwater_models.data.statistics import Statistics, statistics_of
from headwater_models.judging.comparison import Results, compare, figures
from headwater_models.judging.protocols import At, Protocol, Split, split
from headwater_models.networks import ARCHITECTURES, UserEncoder, WindowedEncoder
from headwater_models.networks.text_head import TextHead, TextHeadConfig
from headwater_models.networks.themes import Themes
from headwater_models.progress import Report
from headwater_models.training import recipes
from headwater_models.training.recipes import Recipe
from headwater_models.training.sequence_loop import IdModel, Model, Progress, TextModel, fit, measure_worth

INTERESTS: Final = 3
# Questions that the bundle is judged on: lists with a table of neighbours are made one by one.
_JUDGED: Final = 5_000


@dataclass(frozen=True)
class Plan:
    """What is trained, and why."""

    statistics: Statistics
    model: str  # one of ARCHITECTURES
    recipe: Recipe
    protocol: Protocol
    table: TableConfig
    why: list[str] = field(default_factory=list)  # for a person


class Trained(NamedTuple):
    """A model, its text vectors' whitening (None: it reads ids), and how its training went."""

    model: Model
    white: Whitened | None
    progress: Progress


def plan(
    data: Dataset, model: str | None, epochs: int | None, seed: int, settings: Sequence[str] = ()
) -> Plan:
    """Choose by the statistics of the data; `model`, `epochs` and `settings` (field=value) where a person chose.

    Raises RecipeError: settings that the recipe does not have.
    """
    found = statistics_of(data)
    why = []
    if found.has_texts:
        why.append(f"items are read by their texts ({found.with_text:.0%} have one, {found.texts:,} differ)")
    else:
        why.append(
            f"items are known by their ids, since texts do not tell them apart ({found.with_text:.0%} have one, "
            f"{found.texts:,} differ): an item without events is not recommended"
        )
    chosen = model or recipes.model_for(found)
    lengths = "short" if found.is_sparse else "long" if found.is_dense else "middling"
    why.append(
        f"user encoder {chosen}: "
        + ("as asked" if model else f"{lengths} histories, {found.events_per_user:.1f} events per user")
    )
    recipe = recipes.recipe(chosen, found, texts=found.has_texts)
    recipe = recipes.varied(recipe, recipes.settings(recipe, settings))
    recipe = recipes.varied(recipe, {"fit.seed": seed, "fit.epochs": epochs or recipe.fit.epochs})
    if found.has_times:
        why.append("figures by a split in time: the newest tenth of the events is asked for")
    else:
        why.append("no times, so figures ask for each user's last event")
    return Plan(
        found,
        chosen,
        recipe,
        "global-time" if found.has_times else "leave-one-out",
        recipes.table_for(found),
        why,
    )


def make(
    data: Dataset,
    texts: TextEncoder | None,
    chosen: Plan,
    out: Path,
    at: At | None,
    command: str,
    report: Report,
) -> Results:
    """Train, judge, train on everything, and write the bundle with its table of neighbours and its figures.

    Checkpoints lie beside `out` until the bundle is written; existing ones are continued. `texts` is None for a plan without
    texts. Raises FitError, DatasetError or ExportError.
    """
    started = time.monotonic()
    export.make_place(out)
    vectors = None
    if texts is not None:
        data = with_texts(data)
        vectors = texts.vectors(data.texts or [], report)
    asked = split(data, chosen.protocol, at)
    learned = _trained(data, asked, vectors, chosen.recipe, chosen.model, checkpoints(out)[0], report)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        judged = Path(scratch) / "judged"
        notes = [f"learned up to a split: {chosen.protocol}"]
        _written(judged, data, asked, texts, learned, chosen, command, started, notes, report)
        results = compare(judged, data, chosen.protocol, at=at, sample=_JUDGED)
    best = learned.progress.best_epoch
    recipe = recipes.varied(chosen.recipe, {"fit.epochs": best, "fit.judged": 0})
    every = replace(asked, protocol="all events", train=data.log)
    together = helps(results)
    report("with neighbours" if together else "without neighbours, which would find less", 1, 1)
    final = _trained(data, every, vectors, recipe, chosen.model, checkpoints(out)[1], report)
    notes = [
        f"learned from all events for {best} epochs; the figures are of the same plan up to a split: {chosen.protocol}",
        f"validation NDCG@10 {learned.progress.best:.4f} after {best} of {learned.progress.epoch} epochs",
        f"{export.CURVE}{json.dumps(learned.progress.curve)}",
    ]
    _written(out, data, every, texts, final, chosen, command, started, notes, report, together=together)
    export.with_figures(out, figures(results))
    for checkpoint in checkpoints(out):
        checkpoint.unlink(missing_ok=True)
    return results


def helps(results: Results) -> bool:
    """Whether the bundle finds more with its table of neighbours than alone, by the NDCG of what is new to the user.

    The source `similar` has one weight for all bundles. Where items have few events its list is poor, and takes places from
    better ones.
    """
    ndcg = {
        name: (found.get("discovery") or found["all"]).ndcg.value
        for name, found in results.methods.items()
        if name.startswith("shop-")
    }
    alone = [value for name, value in ndcg.items() if ":" not in name and " and " not in name]
    together = [value for name, value in ndcg.items() if name.endswith(" and similar")]
    return bool(together) and together[0] >= alone[0]


def checkpoints(out: Path) -> tuple[Path, Path]:
    """Where the checkpoints of a training into `out` lie: up to the split, and of all events."""
    return out.with_name(out.name + ".checkpoint"), out.with_name(out.name + ".all.checkpoint")


def with_texts(data: Dataset) -> Dataset:
    """The data without the items that have no text: a bundle of texts cannot have them."""
    assert data.texts is not None
    count = len(data.texts)
    return replace(data, item_ids=data.item_ids[:count], log=of_items(data.log, count))


def _trained(
    data: Dataset,
    asked: Split,
    vectors: F32 | None,
    recipe: Recipe,
    name: str,
    checkpoint: Path,
    report: Report,
) -> Trained:
    torch.manual_seed(recipe.fit.seed)
    _, network = ARCHITECTURES[name]
    encoder: UserEncoder = network(recipe.encoder)
    measure_worth(encoder, asked.train)
    model: Model
    white = None
    if vectors is None:
        model = IdModel(len(data.item_ids), encoder, recipe.temperature)
    else:
        white = whitened(vectors)
        counts = np.bincount(asked.train.items, minlength=len(vectors))
        model = TextModel(
            TextHead(recipe.head or TextHeadConfig(), unit_white(vectors, white), counts, encoder.dim),
            encoder,
            recipe.temperature,
        )
    return Trained(model, white, fit(model, asked, recipe.fit, checkpoint, report))


def unit_white(vectors: F32, white: Whitened) -> torch.Tensor:
    """Whitened texts of length sqrt(k), as the exported head makes them: (items, d) -> (items, k)."""
    found = torch.from_numpy((vectors - white.mean) @ white.matrix)
    return F.normalize(found, dim=-1) * math.sqrt(found.shape[1])


def _written(
    out: Path,
    data: Dataset,
    asked: Split,
    texts: TextEncoder | None,
    trained: Trained,
    chosen: Plan,
    command: str,
    started: float,
    notes: list[str],
    report: Report,
    *,
    together: bool = True,
) -> Encoder:
    """Export a trained model, and give it a table of neighbours of the training events if `together`."""
    report("exporting", 0, 1)
    model, length = trained.model, chosen.recipe.fit.length
    with torch.inference_mode():
        vectors = model.vectors().numpy()
    served = model.encoder
    if isinstance(served, WindowedEncoder) and served.interests == 1:
        served = Themes(served, vectors, INTERESTS)
    stem = Path(data.name).name.partition(".")[0]
    reads = "ids" if texts is None else f"texts, by {texts.name},"
    named = Named(
        f"shop-{stem}",
        f"item {reads} and {chosen.model} with {served.interests} interests, trained on {data.name}",
        Origin(
            data=f"{data.name}: {len(asked.train.items):,} events of {len(asked.train.users):,} users on {len(data.item_ids):,} items",
            data_sha256=data.fingerprint,
            command=command,
            seed=chosen.recipe.fit.seed,
            seconds=round(time.monotonic() - started, 1),
            versions=export.versions("torch", "onnx", "numpy"),
            figures={},
            notes=[
                *notes,
                f"statistics: {chosen.statistics}",
                f"configuration: {json.dumps(asdict(chosen.recipe))}",
                *(texts.notes if texts else ()),
                *([trained.white.note] if trained.white else []),
                *(f"left out, {reason}: {rows:,}" for reason, rows in data.dropped.items()),
                *data.notes,
            ],
        ),
    )
    if texts is None or trained.white is None:
        sequence_bundle.write(out, model, data.item_ids, length, named, served)
    else:
        assert isinstance(model, TextModel)
        assert data.texts is not None
        items = list(zip(data.item_ids, data.texts, strict=True))
        sequence_bundle.write_text(out, model, texts, trained.white, items, length, named, served)
    try:
        if together:
            neighbour_table.make(out, data, asked, out, command, chosen.table)
    except DatasetError as none:  # without a table the bundle serves as well, with one source less
        report(f"no table of neighbours, {none}", 1, 1)
    report("exporting", 1, 1)
    return load(out, device="cpu")
