"""Recipes: the sizes and the training of each model, by dataset where one size does not fit all."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar, get_origin, get_type_hints

import msgspec

from headwater.errors import HeadwaterError
from headwater_models.networks import ARCHITECTURES, SCORERS
from headwater_models.networks.sasrec import SASRecConfig
from headwater_models.training.sequence_loop import FitConfig


class RecipeError(HeadwaterError):
    """A recipe has no such field, or not with this value; the message gives the fields and the allowed values."""


@dataclass(frozen=True)
class Recipe:
    """Sizes and training of a user encoder."""

    encoder: Any  # the config of one of ARCHITECTURES
    fit: FitConfig = field(default_factory=FitConfig)
    temperature: float = 0.0  # above 0, scores are cosines divided by it; 0: dot products


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


# 54,542 items: a few thousand sampled per step, with logQ correction, cost a third of the full softmax.
_MANY_ITEMS: dict[str, Any] = {
    "length": 50,
    "epochs": 12,
    "patience": 2,
    "learning_rate": 2e-3,
    "loss": "sampled",
    "negatives": 3000,
    "average": 0.99,
}
# Long histories over few films, 97,000 events: an epoch is short, and much dropout only slows it down.
_FEW_ITEMS: dict[str, Any] = {
    "length": 200,
    "epochs": 60,
    "patience": 8,
    "learning_rate": 2e-3,
    "average": 0.99,
    "start": "svd",
}

# By dataset, or by model and dataset: encoder sizes and training.
SIZES: dict[str | tuple[str, str], dict[str, Any]] = {
    "ml-100k": {"dropout": 0.3},
}
TEMPERATURES: dict[tuple[str, str], float] = {
    (model, "beauty"): 0.07 for model in ("gru4rec", "lru", "multi-interest", "narm", "sasrec")
}
FITS: dict[str | tuple[str, str], dict[str, Any]] = {
    "beauty": _MANY_ITEMS,
    "complete-journey": _MANY_ITEMS,
    "ml-100k": _FEW_ITEMS,
    **{(model, "beauty"): {"epochs": 15, "start": "svd"} for model in ("gru4rec", "lru", "narm")},
    ("multi-interest", "beauty"): {"start": "svd"},
    ("sasrec", "beauty"): {"epochs": 15, "patience": 3, "start": "svd"},
}

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


def recipe(model: str, data: str) -> Recipe:
    """The default of a model on a dataset; other datasets get the general one."""
    config, _ = ARCHITECTURES[model]
    fit = FitConfig(**FITS.get(data, {}) | FITS.get((model, data), {}))
    sizes = SIZES.get(data, {}) | SIZES.get((model, data), {})
    if issubclass(config, SASRecConfig):
        sizes = {**sizes, "length": fit.length}
    return Recipe(config(**sizes), fit, TEMPERATURES.get((model, data), 0.0))


def scorer_recipe(model: str) -> ScorerRecipe:
    """The default of a candidate scorer, on any data."""
    config, _ = SCORERS[model]
    return ScorerRecipe(config())
