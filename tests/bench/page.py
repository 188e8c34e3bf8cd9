"""The published figures: one JSON file, and the page that is made from it.

A whole run (all measures, not `--quick`) replaces `figures.json` and writes `FIGURES.md` from it. `python -m tests.bench
report` writes the page again without measuring.
"""

import json
from pathlib import Path
from typing import Any

from tests.bench.report import Figure, target_of

FIGURES = Path(__file__).parent / "figures.json"
PAGE = Path(__file__).parent / "FIGURES.md"
_EARLIER = "of the run of"
_HEAD = """<!-- Written by `python -m tests.bench`; `python -m tests.bench report` writes it again from figures.json. Do not edit. -->
# Figures of the last whole run

What each row measures, and what not to conclude from it, is in [README.md](README.md).
"""


def publish(run: dict[str, Any]) -> None:
    """Keep a run as the published one, and write its page.

    What it could not measure (no language model, no Qdrant server) keeps the value of an earlier run, and says of which.
    """
    if FIGURES.exists():
        run = run | {"figures": completed(run["figures"], json.loads(FIGURES.read_text(encoding="utf-8")))}
    FIGURES.write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_page()


def completed(figures: list[dict[str, Any]], before: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures of a run, those without a value taken from the run ``before`` where that has one."""
    known = {figure["name"]: figure for figure in before["figures"] if figure["value"] is not None}
    return [
        _dated(known[figure["name"]], before["at"])
        if figure["value"] is None and figure["name"] in known
        else figure
        for figure in figures
    ]


def _dated(figure: dict[str, Any], at: str) -> dict[str, Any]:
    note = figure["note"]
    return figure if _EARLIER in note else figure | {"note": f"{note}; {_EARLIER} {at}".removeprefix("; ")}


def write_page() -> None:
    """The page anew, from the figures that are kept."""
    PAGE.write_text(page(json.loads(FIGURES.read_text(encoding="utf-8"))), encoding="utf-8")


def page(run: dict[str, Any]) -> str:
    """A run, as `Report.as_dict` gives it, as a page of Markdown."""
    machine = run["machine"]
    on = [
        f"{len(machine['cores_used'])} of {machine['cores']} cores" if machine.get("cores") else "two cores",
        machine.get("cpu"),
        f"{machine['memory_gib']} GiB" if machine.get("memory_gib") else None,
        machine.get("system"),
    ]
    facts = {
        "measured": run["at"],
        "commit": run["commit"],
        "command": f"`{' '.join(run['command'])}`",
        "machine": ", ".join(part for part in on if part) + ", shared with the broker",
        "versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
        "remarks": run.get("remarks"),
    }
    lines = [_HEAD, "| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(str(fact))} |" for name, fact in facts.items() if fact]
    lines += [
        "",
        "| measure | value | baseline | ratio | target | met | note |",
        "|---|--:|--:|--:|--:|---|---|",
    ]
    lines += [_row(_figure(raw)) for raw in run["figures"]]
    return "\n".join(lines) + "\n"


def _figure(raw: dict[str, Any]) -> Figure:
    return Figure(**{name: value for name, value in raw.items() if name != "met"})


def _row(figure: Figure) -> str:
    met = {True: "yes", False: "**no**", None: ""}[figure.met]
    cells = (
        figure.name,
        f"{_number(figure.value)} {figure.unit}" if figure.value is not None else "not measured",
        f"{_number(figure.baseline)} {figure.baseline_is}" if figure.baseline is not None else "",
        _number(figure.ratio) if figure.ratio is not None else "",
        target_of(figure),
        met,
        figure.note,
    )
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _number(value: float) -> str:
    """Three digits; whole numbers from 100 on."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").strip()
