"""A plot shows the curve it was given, and drawing it twice changes nothing."""

from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra train)")

from models.evaluation import Measure
from models.plots import DELAYS_MS, draw_freshness


def test_a_freshness_curve_is_drawn_with_its_delays_and_always_alike(tmp_path: Path) -> None:
    curve = {delay: Measure(0.1 / (n + 1), 0.01, 0.2) for n, delay in enumerate(DELAYS_MS.values())}
    for name in ("one.svg", "two.svg"):
        draw_freshness({"all purchases": curve}, tmp_path / name)
    one, two = ((tmp_path / name).read_text() for name in ("one.svg", "two.svg"))
    assert one == two
    for text in (*DELAYS_MS, "all purchases", "recall@20"):
        assert f">{text}</text>" in one
