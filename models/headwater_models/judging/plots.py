"""The plots of models/RESULTS.md. `python -m headwater_models.judging.plots WHAT FROM...` draws one and prints its numbers.

freshness FILE...       recall by the delay of clicks, a panel for each file of `headwater evaluate --delay --json`
learning BUNDLE...      validation by epoch, as bundles of `headwater train` tell it
groups FILE             hits by history length and popularity, from `headwater evaluate --json`
light FILE...           speed against recall, a panel for each file of `headwater bundle compare --json`
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import msgspec
from matplotlib.figure import Figure

from headwater.encoder import runtime as encoder
from headwater_models.bundles.export import CURVE
from headwater_models.judging.comparison import Results, Weighed
from headwater_models.judging.evaluation import Group
from headwater_models.judging.freshness import Freshness, named
from headwater_models.judging.metrics import DECILES, LENGTHS

PAGE_FOLDER: Final = Path(__file__).parents[2]  # of RESULTS.md, which shows the plots


def draw_freshness(found: Sequence[Freshness], path: Path) -> None:
    """Recall over delay, one panel for each data, one line per question set, with intervals. Equal curves give equal files."""
    figure, panels = _figure(len(found))
    for axes, each in zip(panels, found, strict=True):
        for name, curve in each.curves.items():
            values = [measure.value for measure in curve.values()]
            below = [measure.value - measure.low for measure in curve.values()]
            above = [measure.high - measure.value for measure in curve.values()]
            delays = [named(delay_ms) for delay_ms in curve]
            axes.errorbar(delays, values, yerr=[below, above], marker="o", capsize=3, label=name)
        axes.set(title=each.data, xlabel="a click counts after", ylabel=f"recall@{each.k}", ylim=(0, None))
        axes.legend(fontsize="small")
    _save(figure, path)


def learning_curves(bundles: Sequence[Path]) -> dict[str, list[float]]:
    """Validation NDCG@10 after each epoch, by bundle name. Bundles without a learning curve are left out."""
    curves = {}
    for bundle in bundles:
        manifest = encoder.load(bundle, device="cpu").manifest
        for note in manifest.origin.notes:
            if note.startswith(CURVE):
                curves[bundle.name] = [quality for _, quality in json.loads(note.removeprefix(CURVE))]
    return curves


def draw_learning(curves: dict[str, list[float]], path: Path) -> None:
    """Validation over epochs, one line per bundle."""
    figure, (axes,) = _figure(1)
    for name, curve in curves.items():
        axes.plot(range(1, len(curve) + 1), curve, marker=".", label=name)
    axes.set(xlabel="epoch", ylabel="validation NDCG@10", ylim=(0, None))
    axes.legend()
    _save(figure, path)


def draw_groups(results: Results, path: Path) -> None:
    """Hits of each method by length of the history and by the target's popularity decile."""
    figure, (by_history, by_popularity) = _figure(2)
    for name, found in results.methods.items():
        quality = found["all"]
        _draw_group(by_history, quality.by_history, LENGTHS, name)
        _draw_group(by_popularity, quality.by_popularity, DECILES, name)
    by_history.set(xlabel="events known of the user", ylabel=f"hit@{results.k}", ylim=(0, None))
    by_popularity.set(xlabel="decile of the item by events in training, 10 the most popular", ylim=(0, None))
    by_history.legend(fontsize="small")
    _save(figure, path)


def _draw_group(axes: Any, groups: dict[str, Group], names: Sequence[str], label: str) -> None:
    there = [name for name in names if name in groups]
    axes.plot(there, [groups[name].hit for name in there], marker=".", label=label)


def draw_light(panels: dict[str, dict[str, Weighed]], path: Path) -> None:
    """Hit over the microseconds of a click, an answer and a search together.

    One panel per dataset, one point per bundle, labelled with its size in MB.
    """
    figure, every = _figure(len(panels))
    for axes, (data, weighed) in zip(every, panels.items(), strict=True):
        for name, found in weighed.items():
            cost = found.cost
            us = sum(one for one, _ in (cost.click_us or (0, 0), cost.answer_us, cost.search_us))
            low, high = found.hit.value - found.hit.low, found.hit.high - found.hit.value
            said = f"{Path(name).name}, {cost.bytes / 1e6:.1f} MB"
            axes.errorbar([us], [found.hit.value], yerr=[[low], [high]], fmt="o", capsize=3, label=said)
        axes.set(title=data, xlabel="us for one user: click, answer and exact search", ylim=(0, None))
        axes.legend(fontsize="small")
    every[0].set(ylabel="hit")
    _save(figure, path)


def _figure(panels: int) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(6 if panels == 1 else 9, 3.2), layout="constrained")
    found = [figure.add_subplot(1, panels, n + 1) for n in range(panels)]
    for axes in found:
        axes.grid(axis="y", alpha=0.3)
    return figure, found


def _save(figure: Figure, path: Path) -> None:
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "headwater"}):
        figure.savefig(path, metadata={"Date": None})


def _freshness(given: Sequence[Path]) -> None:
    found = [msgspec.json.decode(file.read_bytes(), type=Freshness) for file in given]
    draw_freshness(found, PAGE_FOLDER / "freshness.svg")


def _learning(given: Sequence[Path]) -> None:
    curves = learning_curves(given)
    draw_learning(curves, PAGE_FOLDER / "learning.svg")
    for name, curve in curves.items():
        sys.stdout.write(f"{name}: {', '.join(f'{quality:.4f}' for quality in curve)}\n")


def _groups(given: Sequence[Path]) -> None:
    draw_groups(msgspec.json.decode(given[0].read_bytes(), type=Results), PAGE_FOLDER / "groups.svg")


def _light(given: Sequence[Path]) -> None:
    read = {file.stem: msgspec.json.decode(file.read_bytes(), type=dict[str, Weighed]) for file in given}
    draw_light(read, PAGE_FOLDER / "light.svg")


_PLOTS: Final[dict[str, Callable[[Sequence[Path]], None]]] = {
    "freshness": _freshness,
    "learning": _learning,
    "groups": _groups,
    "light": _light,
}

if __name__ == "__main__":
    what, *given = sys.argv[1:] or [""]
    if what not in _PLOTS or not given:
        raise SystemExit(f"{what!r} is no plot, or nothing to draw it from is named:\n{__doc__}")
    _PLOTS[what]([Path(name) for name in given])
