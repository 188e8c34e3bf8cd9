"""Recipes: the sizes and the training of each model, by the statistics of the data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar, get_origin, get_type_hints

import msgspec

from headwater.errors import HeadwaterError
from headwater_models.bundles.neighbour_table import TableConfig
from headwater_models.data.statistics import Statistics
from headwater_models.networks import ARCHITECTURES, SCORERS
from headwater_models.networks.sasrec import SASRecConfig
from headwater_models.networks.text_head import TextHeadConfig
from headwater_models.training.sequence_loop import FitConfig


class RecipeError(HeadwaterError):
    """A recipe has no such field, or not with this value; the message gives the fields and the allowed values."""


@dataclass(frozen=True)
class Recipe:
    """Sizes and training of a user encoder."""

    encoder: Any  # the config of one of ARCHITECTURES
    fit: FitConfig = field(default_factory=FitConfig)
    temperature: float = 0.0  # above 0, scores are cosines divided by it; 0: dot products
    head: TextHeadConfig | None = None  # of a model over texts; None: a model over item ids


@dataclass(frozen=True)
class ScorerFit:
    """How a candidate scorer is trained."""

    questions: int = 24_000  # drawn from the training events
    newest: float = (
        0.1  # over a table of neighbours: this share of the events, with a table made from the others
    )
    least: int = 3  # events before a question, at least
    pool: int = 200  # candidates of a question
    negatives: int = 40  # of the pool, drawn once per question
    epochs: int = 10
    patience: int = 2  # epochs without a better validation
    batch: int = 64  # questions
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class ScorerRecipe:
    """Sizes and training of a candidate scorer."""

    network: Any  # the config of one of SCORERS
    fit: ScorerFit = field(default_factory=ScorerFit)


# Where the encoders differ on short histories: a recurrent unit and a causal attention gain from more epochs.
_SPARSE_FIT: dict[str, dict[str, Any]] = {
    "gru4rec": {"epochs": 15},
    "lru": {"epochs": 15},
    "narm": {"epochs": 15},
    "sasrec": {"epochs": 15, "patience": 3},
}
# Cosines are no help to BERT4Rec, whose hidden events have no item.
_BY_COSINE = ("gru4rec", "lru", "multi-interest", "narm", "sasrec")
# An optimiser's step reads this many events. With fewer steps an epoch, a mean of the weights over a hundred lags behind.
_POSITIONS = 1024
_STEPS_TO_AVERAGE = 50

# Events that a shop's training reads in all its epochs, at most: 15 minutes on one core, at 0.08 ms each with texts and a sampled
# softmax, and 27 in windows of 200, at 0.27 ms with one over 5,900 items. It is trained twice.
_MOST_READ = 11_000_000
_MOST_READ_DENSE = 6_000_000
_LEAST_EPOCHS = 4

# What `headwater train MODEL --search` tries: part.field -> values.
Space = Mapping[str, Sequence[Any]]
ENCODER_SPACE: Space = {
    "encoder.dropout": (0.1, 0.3, 0.5, 0.7),
    "fit.learning_rate": (5e-4, 1e-3, 2e-3, 4e-3),
    "fit.weight_decay": (0.0, 0.01, 0.1),
    "fit.average": (0.0, 0.99),
}
SCORER_SPACE: Space = {
    "network.dim": (8, 16, 32),
    "network.dropout": (0.0, 0.1, 0.3),
    "fit.learning_rate": (1e-3, 2e-3, 5e-3),
    "fit.weight_decay": (0.0, 0.01, 0.1),
}
AnyRecipe = TypeVar("AnyRecipe", Recipe, ScorerRecipe)


def varied(recipe: AnyRecipe, values: Mapping[str, Any]) -> AnyRecipe:
    """The recipe with other values of some fields: {"fit.learning_rate": 0.001, "fit.augmentation.crop": 0.5}."""
    for name, value in values.items():
        recipe = _with(recipe, name.split("."), value)
    return recipe


def _with(part: Any, path: Sequence[str], value: Any) -> Any:
    name, *rest = path
    return replace(part, **{name: _with(getattr(part, name), rest, value) if rest else value})


# Fields that have their own option, and fields that are shares (0 to 1).
_OPTIONS = {"fit.seed": "--seed", "fit.epochs": "--epochs", "fit.nested": "--nested"}
_SHARES = {"newest", "dropout", "mask", "average", "crop", "drop", "reorder"}


def settings(recipe: Recipe | ScorerRecipe, given: Sequence[str]) -> dict[str, Any]:
    """Command-line values for `varied`: ["fit.loss=gbce", "encoder.dim=32"].

    Raises RecipeError: an unknown field, a value of another type or out of range, or a field that has its own option.
    """
    values = {}
    for one in given:
        name, _, text = one.partition("=")
        if name in _OPTIONS:
            raise RecipeError(f"--set {one}: expected {_OPTIONS[name]}, which sets it")
        values[name] = _read(recipe, name, text)
    if "fit.length" in values and hasattr(recipe.encoder if isinstance(recipe, Recipe) else None, "length"):
        values.setdefault("encoder.length", values["fit.length"])
    return values


def _read(recipe: Recipe | ScorerRecipe, name: str, text: str) -> Any:
    part: Any = recipe
    kind: Any = None
    for step in name.split("."):
        if not is_dataclass(part) or step not in {known.name for known in fields(part)}:
            raise RecipeError(f"--set {name}={text}: expected a field of {recipe}")
        part, kind = getattr(part, step), get_type_hints(type(part))[step]
    try:
        value = msgspec.convert(text.split(",") if get_origin(kind) is tuple else text, kind, strict=False)
    except msgspec.ValidationError as error:
        raise RecipeError(f"--set {name}={text}: {error}") from error
    most = 1.0 if name.rpartition(".")[2] in _SHARES else math.inf
    if isinstance(value, int | float) and not 0 <= value <= most:
        raise RecipeError(f"--set {name}={text}: expected a number from 0 to {most:g}")
    return value


def model_for(data: Statistics) -> str:
    """The user encoder for data with these statistics: what found most in `models/RESULTS.md` on data of that kind."""
    return "narm" if data.is_dense else "sasrec"


def table_for(data: Statistics) -> TableConfig:
    """How neighbours are counted: the rarer an item, the fewer sessions two have to share, and the less they are damped.

    Without times nothing tells a session from a user's whole history, so only what comes close together counts.
    """
    per_item = data.events / max(data.taken, 1)
    usual = TableConfig()
    if per_item >= 50:
        return usual
    together, shrink = (2, 20.0) if per_item >= 15 else (1, 10.0)
    return replace(usual, together=together, shrink=shrink, reach=0 if data.has_times else 5)


def recipe(model: str, data: Statistics, *, texts: bool = False) -> Recipe:
    """The default of a model on data with these statistics; with `texts`, of a model over the items' texts.

    | data | what follows |
    |---|---|
    | many items (`has_costly_softmax`) | the softmax is over 3,000 drawn items, with logQ correction: a third of the cost |
    | short histories (`is_sparse`), by ids | item vectors start from users x items, scores are cosines, dropout .5 |
    | long histories over few items (`is_dense`) | windows of 200 events, vectors start from users x items, dropout .3 |
    | texts | vectors start from users x items as far as the texts can say them, scores are cosines, dropout .3 |
    """
    config, _ = ARCHITECTURES[model]
    fit = FitConfig(
        length=200 if data.is_dense else 50,
        epochs=60 if data.is_dense else 12 if data.has_many_items else 30,
        patience=8 if data.is_dense else 2 if data.has_many_items else 4,
        positions=_POSITIONS,
        learning_rate=2e-3,
        loss="sampled" if data.has_costly_softmax else "softmax",
        negatives=3000,
        average=0.99 if data.events / _POSITIONS >= _STEPS_TO_AVERAGE else 0.9,
    )
    # Vectors of texts are long from the start: dot products would begin far from any answer, and did not recover.
    cosines = texts or (data.is_sparse and model in _BY_COSINE)
    starts_known = data.is_dense or cosines
    fit = replace(fit, start="svd" if starts_known else "chance")
    if data.is_sparse and data.has_many_items:
        fit = replace(fit, **_SPARSE_FIT.get(model, {}))
    sizes: dict[str, Any] = {"dropout": 0.3} if data.is_dense or texts else {}
    if issubclass(config, SASRecConfig):
        sizes["length"] = fit.length
    return Recipe(config(**sizes), fit, 0.07 if cosines else 0.0, TextHeadConfig() if texts else None)


def within_the_hour(chosen: Recipe, data: Statistics) -> Recipe:
    """The recipe with fewer epochs where there are many events, which need few of them: data of the usual size keeps its own."""
    fit = chosen.fit
    most = max(_LEAST_EPOCHS, (_MOST_READ_DENSE if data.is_dense else _MOST_READ) // max(data.events, 1))
    if most >= fit.epochs:
        return chosen
    return replace(chosen, fit=replace(fit, epochs=most, patience=max(2, fit.patience * most // fit.epochs)))


def scorer_recipe(model: str) -> ScorerRecipe:
    """The default of a candidate scorer, on any data."""
    config, _ = SCORERS[model]
    return ScorerRecipe(config())
