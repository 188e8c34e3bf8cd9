"""A plot shows the curve it was given, and drawing it twice changes nothing."""

import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra train)")

pytest.importorskip("onnx", reason="onnx is not installed (extra train)")

from headwater_models.judging.comparison import Results, Weighed
from headwater_models.judging.costs import Cost
from headwater_models.judging.evaluation import Group, Measure, Quality
from headwater_models.judging.freshness import Freshness
from headwater_models.judging.plots import (
    PAGE_FOLDER,
    draw_freshness,
    draw_groups,
    draw_learning,
    draw_light,
)


def test_freshness_curves_are_drawn_with_their_delays_and_always_alike(tmp_path: Path) -> None:
    curve = {delay: Measure(0.1 / (n + 1), 0.01, 0.2) for n, delay in enumerate((0, 60_000, 86_400_000))}
    found = Freshness("shop.csv", "", "lru", 0, 20, {"all": 9}, {"all": curve})
    for name in ("one.svg", "two.svg"):
        draw_freshness([found, found], tmp_path / name)
    one, two = ((tmp_path / name).read_text() for name in ("one.svg", "two.svg"))
    assert one == two
    for text in ("0 s", "1 min", "1 day", "shop.csv", "all", "recall@20"):
        assert f">{text}</text>" in one


def test_learning_curves_are_drawn_with_their_names(tmp_path: Path) -> None:
    draw_learning({"lru": [0.1, 0.2], "sasrec": [0.1, 0.3, 0.2]}, tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    for text in ("lru", "sasrec", "epoch", "validation NDCG@10"):
        assert f">{text}</text>" in drawn


def test_groups_are_drawn_in_order_and_only_where_there_are_targets(tmp_path: Path) -> None:
    nothing = Measure(0.0, 0.0, 0.0)
    quality = Quality(
        k=10,
        cases=3,
        targets=3,
        hit=nothing,
        ndcg=nothing,
        lists={},
        coverage=0,
        novelty=0,
        gini=0,
        by_popularity={"10": Group(2, 0.5), "cold": Group(1, 0.0)},
        by_history={"3-5": Group(3, 0.4)},
    )
    results = Results("shop", "", {}, [], "leave-one-out", None, 0, 10, {"sasrec": {"all": quality}})
    draw_groups(results, tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    assert drawn.index(">cold</text>") < drawn.index(">10</text>")
    assert ">3-5</text>" in drawn
    assert ">51+</text>" not in drawn


def test_bundles_are_drawn_with_folder_and_size(tmp_path: Path) -> None:
    half = Measure(0.5, 0.4, 0.6)
    weighed = {
        "bundles/lru": Weighed(half, half, Cost(2_500_000, (20.0, 1.0), (10.0, 1.0), (100.0, 50.0))),
        "bundles/sasrec": Weighed(half, half, Cost(9_000_000, None, (500.0, 300.0), (100.0, 50.0))),
    }
    draw_light({"beauty": weighed, "ml-100k": weighed}, tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    assert all(f">{data}</text>" in drawn for data in ("beauty", "ml-100k"))
    assert "lru, 2.5 MB</text>" in drawn
    assert "sasrec, 9.0 MB</text>" in drawn


def test_plots_are_drawn_where_the_results_show_them() -> None:
    page = (PAGE_FOLDER / "RESULTS.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[.*\]\((\w+\.svg)\)", page)
    assert sorted(shown) == ["freshness.svg", "groups.svg", "learning.svg", "light.svg"]
    assert all((PAGE_FOLDER / name).is_file() for name in shown)
