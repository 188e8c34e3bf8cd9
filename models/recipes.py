"""What each model is trained with: its sizes and its training, by data where one size does not fit all."""

from dataclasses import dataclass, field
from typing import Any

from models.architectures import ARCHITECTURES
from models.architectures.sasrec import SASRecConfig
from models.fitting import FitConfig


@dataclass(frozen=True)
class Recipe:
    encoder: Any  # the config of one of ARCHITECTURES
    fit: FitConfig = field(default_factory=FitConfig)
    temperature: float = 0.0  # of scores that are cosines; 0: scores are dot products


# 54,542 items: some thousands of them a step, corrected for how they are drawn, cost a third of the softmax over all.
_MANY_ITEMS: dict[str, Any] = {
    "length": 50,
    "epochs": 12,
    "patience": 2,
    "learning_rate": 2e-3,
    "loss": "sampled",
    "negatives": 3000,
    "average": 0.99,
}
# Long histories of few films, 97,000 events in all: an epoch is short, and much dropout only slows it down.
_FEW_ITEMS: dict[str, Any] = {
    "length": 200,
    "epochs": 60,
    "patience": 8,
    "learning_rate": 2e-3,
    "average": 0.99,
    "start": "svd",
}

# By data, then by model and data: sizes of the encoder, and its training.
SIZES: dict[str | tuple[str, str], dict[str, Any]] = {
    "ml-100k": {"dropout": 0.3},
}
TEMPERATURES: dict[tuple[str, str], float] = {("sasrec", "beauty"): 0.07}
FITS: dict[str | tuple[str, str], dict[str, Any]] = {
    "beauty": _MANY_ITEMS,
    "complete-journey": _MANY_ITEMS,
    "ml-100k": _FEW_ITEMS,
    ("lru", "beauty"): {"learning_rate": 4e-3},
    ("sasrec", "beauty"): {"epochs": 15, "patience": 3, "start": "svd"},
}


def recipe(model: str, data: str) -> Recipe:
    """The default for a model on a dataset; a dataset without its own gets the general one."""
    config, _ = ARCHITECTURES[model]
    fit = FitConfig(**FITS.get(data, {}) | FITS.get((model, data), {}))
    sizes = SIZES.get(data, {}) | SIZES.get((model, data), {})
    if issubclass(config, SASRecConfig):
        sizes = {**sizes, "length": fit.length}
    return Recipe(config(**sizes), fit, TEMPERATURES.get((model, data), 0.0))
