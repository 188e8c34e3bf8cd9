"""The plots of models/README.md: `python -m models.plots [BUNDLE]` draws them anew."""

import sys
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure

from models.datasets import load
from models.evaluation import Measure, bundle_scorer, encoded, freshness
from models.protocols import discoveries, split
from streams import encoder

HERE: Final = Path(__file__).parent
DELAYS_MS: Final = {"0 s": 0, "1 min": 60_000, "1 h": 3_600_000, "1 day": 86_400_000}


def starter_freshness(bundle: Path, sample: int = 10_000, k: int = 20) -> dict[str, dict[int, Measure]]:
    """Recall of a bundle on Complete Journey by the delay of clicks, for all purchases and for discoveries."""
    data = load("complete-journey")
    asked = split(data, "prequential", sample=sample)
    loaded = encoder.load(bundle)
    scorer = bundle_scorer(loaded, encoded(loaded, data))
    sets = {"all purchases": asked.test, "first purchases": discoveries(asked.log, asked.test)}
    return {
        name: freshness(scorer, asked.log, cases, len(data.item_ids), k, list(DELAYS_MS.values()))
        for name, cases in sets.items()
    }


def draw_freshness(curves: dict[str, dict[int, Measure]], path: Path) -> None:
    """Recall over delay, one line a set of targets, with its intervals; the same curves give the same file."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        values = [measure.value for measure in curve.values()]
        below = [measure.value - measure.low for measure in curve.values()]
        above = [measure.high - measure.value for measure in curve.values()]
        axes.errorbar(list(DELAYS_MS), values, yerr=[below, above], marker="o", capsize=3, label=name)
    axes.set(xlabel="a click reaches the state after", ylabel="recall@20", ylim=(0, None))
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "headwater"}):
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    curves = starter_freshness(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "starter")
    draw_freshness(curves, HERE / "freshness.svg")
    for name, curve in curves.items():
        found = ", ".join(
            f"{delay} {measure.value:.4f} ({measure.low:.4f}-{measure.high:.4f})"
            for delay, measure in zip(DELAYS_MS, curve.values(), strict=True)
        )
        sys.stdout.write(f"{name}: {found}\n")
