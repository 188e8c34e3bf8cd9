"""What `headwater train`, `evaluate`, `tune`, `export` and `bundle` do, with progress on the terminal."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from rich.console import Console
from rich.table import Table

from headwater.encoder import runtime as encoder
from headwater.encoder.bundle import Manifest
from headwater.encoder.runtime import Encoder
from headwater_models.data.datasets import Dataset
from headwater_models.data.statistics import statistics_of
from headwater_models.judging.comparison import (
    BY_LIST,
    Results,
    Weighed,
    compare,
    figures,
    judge,
    measures,
    usual_k,
    weigh,
)
from headwater_models.judging.costs import USERS
from headwater_models.judging.freshness import Freshness, named
from headwater_models.judging.protocols import At, Protocol, Split, split
from headwater_models.progress import Report, progress
from headwater_models.training.search import Search, best_of

if TYPE_CHECKING:
    from headwater.files.contents import Files
    from headwater.files.events import Events
    from headwater.files.items import Items
    from headwater_models.bundles.sentence_config import Configured
    from headwater_models.bundles.text_encoder import Pooling
    from headwater_models.training.recipes import AnyRecipe, Space

__all__ = [
    "Report",
    "Results",
    "Weighed",
    "as_json",
    "compare",
    "describe",
    "export_lm",
    "freshness_table",
    "judge",
    "lighten",
    "make_mean",
    "progress",
    "require_torch",
    "tables",
    "train_groceries",
    "train_scorer",
    "train_sequence",
    "train_shop",
    "train_similar",
    "train_starter",
    "tune_lm",
    "usual_k",
    "weigh",
    "weighed_table",
]

# Questions that a bundle with a scorer or a table is judged on: its lists are made one by one.
_JUDGED: Final = 10_000


def train_starter(out: Path, *, threads: int = 1, command: str = "headwater train starter") -> Encoder:
    """The vocabulary of a sentence encoder -> the shipped bundle. Needs the extras `train` and `export`."""
    import torch

    from headwater_models.train_starter import StarterConfig, make

    torch.set_num_threads(threads)
    with progress() as report:
        return make(out, StarterConfig(), command, report)


def train_groceries(
    out: Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    threads: int = 1,
    command: str = "headwater train groceries",
) -> Encoder:
    """Data -> model -> bundle -> its table of neighbours -> figures. Needs the extras `train` and `export`.

    One thread by default: on cores that do other work, torch's threads mostly wait for each other.
    """
    import torch

    from headwater_models.bundles import neighbour_table
    from headwater_models.bundles.export import with_figures
    from headwater_models.train_groceries import GroceriesConfig, make

    torch.set_num_threads(threads)
    config = GroceriesConfig()
    training = replace(config.training, seed=seed, steps=steps or config.training.steps)
    with progress() as report:
        bundle, data = make(out, replace(config, training=training), command, report)
    asked = split(data, "global-time")
    neighbour_table.make(bundle.path, data, asked, out, command, neighbour_table.TableConfig())
    results = compare(bundle.path, data, "global-time", sample=_JUDGED, threads=threads)
    for table in tables(results):
        Console(stderr=True).print(table)
    return with_figures(out, figures(results))


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
    """Events -> model -> bundle of item ids -> figures. Needs torch (extra `train`).

    Args:
        settings: values of recipe fields, such as "fit.loss=gbce"
        teacher: a bundle whose scores the model learns too
        nested: numbers of first dimensions that must serve alone

    Raises DatasetError, RecipeError, FitError, SearchError or ExportError.
    """
    import torch

    from headwater_models.bundles.export import make_place
    from headwater_models.train_sequence import checkpoint_of, make, validated
    from headwater_models.training import recipes
    from headwater_models.training.teacher import BundleTeacher

    torch.set_num_threads(threads)
    if not resume:
        checkpoint_of(out).unlink(missing_ok=True)
    chosen = recipes.recipe(model, statistics_of(data))
    chosen = recipes.varied(chosen, recipes.settings(chosen, settings))
    chosen = recipes.varied(
        chosen,
        {"fit.seed": seed, "fit.epochs": epochs or chosen.fit.epochs, "fit.nested": tuple(nested)},
    )
    taught = BundleTeacher.of(encoder.load(teacher, device="cpu"), data) if teacher else None
    make_place(out)
    with progress() as report:
        asked = split(data, protocol, at)
        if search is not None:
            over = f"{_named(data, asked)}, {chosen}, taught by {taught.encoder.id if taught else 'nobody'}"
            judge = partial(validated, model, data, asked, report=report, teacher=taught)
            chosen = _best(search, model, chosen, recipes.ENCODER_SPACE, over, judge, report)
        make(model, data, asked, chosen, out, command, report, taught)
    return _judged(out, data, protocol, at=at, threads=threads)


def require_torch() -> None:
    """Raises ModuleNotFoundError without torch, before any file is read."""
    import torch  # noqa: F401 - only whether it is there


def train_shop(
    items: "Items | None",
    events: "Events",
    files: "Sequence[Files]",
    out: Path,
    *,
    text_encoder: str = "static",
    reading: "Configured | None" = None,
    user_encoder: str | None = None,
    interests: int | None = None,
    at: At | None = None,
    seed: int = 0,
    epochs: int | None = None,
    settings: Sequence[str] = (),
    resume: bool = False,
    threads: int = 1,
    say: Callable[[str], None] = print,
    command: str = "headwater train shop",
) -> Results:
    """A shop's catalog and clicks -> bundle -> figures. Needs torch (extra `train`).

    Args:
        items: those of the catalog; None: there is none, so the items are those of the clicks
        files: of the catalog, if there is one, and of the clicks
        text_encoder: see `headwater_models.bundles.text_tower.open_text_encoder`
        reading: how it reads, where its own configuration does not say, or is overruled
        user_encoder: None: by the statistics of the data
        interests: of users whose encoder has one; None: several, unless they cost too much of what the validation finds
        settings: values of recipe fields, such as "fit.loss=gbce"
        say: takes what a person has to know, one sentence at a time

    Raises DatasetError, RecipeError, ModelMissing, UnfitModel, FitError or ExportError.
    """
    import torch

    from headwater_models import train_shop as shop
    from headwater_models.bundles.export import make_place
    from headwater_models.bundles.language_model import AS_CONFIGURED
    from headwater_models.bundles.text_tower import open_text_encoder
    from headwater_models.data.shop import shop_of

    torch.set_num_threads(threads)
    make_place(out)
    data, said = shop_of(items, events, files)
    chosen = shop.plan(data, user_encoder, epochs, seed, settings, interests, at)
    for line in (*said, str(chosen.statistics), *chosen.why):
        say(line)
    with progress() as report:
        texts = None
        if chosen.statistics.has_texts:
            texts = open_text_encoder(text_encoder, reading or AS_CONFIGURED, report)
            for note in texts.notes:
                say(f"{text_encoder}: {note}")
            if unread := texts.unreadable(data.texts or []):
                say(
                    f"{text_encoder} cannot read the texts of {unread:.1%} of the items, since it does not know most of their tokens: "
                    "name an encoder of their language with --text-encoder"
                )
        results = shop.make(data, texts, chosen, out, at, command, report, resume=resume, say=say)
    say(shop.verdict(results))
    return results


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
    """A bundle and events -> the bundle with a score graph -> figures. Needs torch (extra `train`).

    Raises BundleError, DatasetError, RecipeError, FitError, SearchError or ExportError.
    """
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
    """A bundle and events -> the bundle with a table of neighbours -> figures. Needs scipy (extra `train`).

    Raises BundleError, DatasetError or ExportError.
    """
    from headwater_models.bundles import neighbour_table
    from headwater_models.bundles.export import make_place

    make_place(out)
    neighbour_table.make(base, data, split(data, protocol, at), out, command, neighbour_table.TableConfig())
    return _judged(out, data, protocol, at=at, sample=_JUDGED, threads=threads)


def _judged(bundle: Path, data: Dataset, protocol: Protocol, **asked: Any) -> Results:
    """Judge a bundle where it was made, and write what was found into its manifest; `asked`: see `compare`."""
    from headwater_models.bundles.export import with_figures

    results = compare(bundle, data, protocol, **asked)
    with_figures(bundle, figures(results))
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


def export_lm(
    model: str,
    out: Path,
    *,
    pooling: "Pooling | None" = None,
    prefix: str | None = None,
    query_prefix: str | None = None,
    max_tokens: int | None = None,
    tokenizer: Path | None = None,
    int8: bool = False,
    command: str = "headwater export",
) -> Encoder:
    """A sentence encoder as item tower, read as its own configuration says where an option is None.

    Needs onnx (extra `train`), and for a model without an ONNX file optimum and transformers (extra `export`). Raises
    ModelMissing, UnfitModel or ExportError.
    """
    from headwater_models.bundles.export import make_place
    from headwater_models.bundles.language_model import Configured
    from headwater_models.bundles.text_tower import open_text_encoder, write_bundle

    started = time.monotonic()
    configured = Configured(pooling, prefix, query_prefix, max_tokens, tokenizer, int8)
    make_place(out)
    with progress() as report:
        report(f"exporting {model}", 0, 1)
        opened = open_text_encoder(model, configured, report)
        bundle = write_bundle(opened, model, out, command, time.monotonic() - started)
        report(f"exporting {model}", 1, 1)
    for note in opened.notes:
        Console(stderr=True).print(note, markup=False)
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
    pooling: "Pooling | None" = None,
    loss: Literal["contrastive", "elsa"] = "contrastive",
    seed: int = 0,
    threads: int = 1,
) -> None:
    """A language model tuned to what users take together, for `export_lm`.

    Needs the extra `export`. Raises TuneError, ModelMissing or UnfitModel.
    """
    import torch

    from headwater_models.training.tuning import TuneConfig, tune

    torch.set_num_threads(threads)
    usual = TuneConfig()
    config = replace(
        usual,
        seed=seed,
        steps=steps or usual.steps,
        rank=usual.rank if rank is None else rank,
        pooling=pooling,
        loss=loss,
    )
    with progress() as report:
        tune(model, data, split(data, protocol, at).train, out, config, report)


def lighten(
    bundle: Path, out: Path, *, int8: bool, fp16: bool, dim: int | None, prune: float, command: str
) -> Encoder:
    """A lighter bundle. Needs onnx (extra `train`). Raises BundleError or ExportError."""
    from headwater_models.bundles.light import lighten as made

    return made(bundle, out, int8=int8, fp16=fp16, dim=dim, prune=prune, command=command)


def weighed_table(weighed: dict[str, Weighed], title: str) -> Table:
    """One bundle per line; microseconds for one user, and per user in a batch."""
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
    """The item tower of a bundle under the training-free user encoder.

    Needs onnx (extra `train`). Raises BundleError.
    """
    from headwater_models.bundles.mean import make_mean as made

    return made(bundle, out, command)


def describe(bundle: Path) -> Manifest:
    """The manifest of a bundle that passed every check. Raises BundleError."""
    return encoder.load(bundle, device="cpu").manifest


def tables(results: Results) -> Iterator[Table]:
    """Figures for a terminal: a table per question set, one method per line."""
    at = f" at {datetime.fromtimestamp(results.at_ms / 1000, UTC):%Y-%m-%d %H:%M}" if results.at_ms else ""
    in_lists = results.protocol in BY_LIST
    found_as = "recall" if in_lists else "hit"
    for name, first in next(iter(results.methods.values())).items():
        shown = Table(
            "method",
            title=f"{results.data}, {results.protocol}{at}: {name}",
            caption=f"{first.targets:,} targets of {first.cases:,} lists; interval: 95 %, bootstrap over users",
        )
        for column in (f"{found_as}@{results.k}", "interval", f"NDCG@{results.k}", "interval", "coverage"):
            shown.add_column(column, justify="right")
        # Not every method has every set: newcomers are ranked among each other, which no request asks for.
        having = {method: found[name] for method, found in results.methods.items() if name in found}
        for method, quality in having.items():
            cells = []
            for measure in measures(quality, results.protocol):
                cells += [f"{measure.value:.4f}", f"{measure.low:.4f}-{measure.high:.4f}"]
            shown.add_row(method, *cells, f"{quality.coverage:.3f}")
        yield shown


def freshness_table(found: Freshness) -> Table:
    """Recall by delay, one delay per line."""
    shown = Table(
        "clicks count after",
        title=f"{found.data}, {found.bundle} as it serves: recall@{found.k}",
        caption="interval: 95 %, bootstrap over users",
    )
    for name, targets in found.questions.items():
        shown.add_column(f"{name}, {targets:,} targets", justify="right")
        shown.add_column("interval", justify="right")
    for delay_ms in next(iter(found.curves.values())):
        cells = []
        for curve in found.curves.values():
            measure = curve[delay_ms]
            cells += [f"{measure.value:.4f}", f"{measure.low:.4f}-{measure.high:.4f}"]
        shown.add_row(named(delay_ms), *cells)
    return shown


def as_json(results: Results | Freshness | dict[str, Weighed]) -> bytes:
    """Figures for machines."""
    return msgspec.json.encode(results)
