"""Searches of hyper-parameters: stopped, resumed, and what they found exported."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.extras import needs

needs("optuna", extra="train")

from headwater_models.training.search import Search, SearchError, best_of  # noqa: E402 - after the skip

# Best: 3 and "b".
SPACE = {"fit.size": (1, 2, 3), "network.kind": ("a", "b")}


def quality(values: dict[str, Any]) -> float:
    return (values["network.kind"] == "b") - abs(values["fit.size"] - 3)


class Judge:
    """Keeps what it was asked; `dies_at`: the process is killed while it judges that one."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.asked: list[dict[str, Any]] = []
        self.dies_at = dies_at

    def __call__(self, values: dict[str, Any]) -> float:
        self.asked.append(values)
        if len(self.asked) == self.dies_at:
            raise KeyboardInterrupt
        return quality(values)


def searched(
    study: Path, by: Any, trials: int, judge: Callable[[dict[str, Any]], float], **changes: Any
) -> dict[str, Any]:
    given = {"name": "m", "space": SPACE, "data": "some data", "seed": 1, **changes}
    return best_of(Search(by, trials, study), judge=judge, report=lambda *_: None, **given)


def test_a_grid_is_searched_whole_and_then_ends(tmp_path: Path) -> None:
    judge = Judge()
    assert searched(tmp_path / "s", "grid", 1_000, judge) == {"fit.size": 3, "network.kind": "b"}
    assert len(judge.asked) == len({json.dumps(values) for values in judge.asked}) == 6


@pytest.mark.parametrize("by", ["grid", "random", "tpe"])
def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path: Path, by: str) -> None:
    whole, first, second = Judge(), Judge(dies_at=4), Judge()
    best = searched(tmp_path / "whole", by, 5, whole)
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "s", by, 5, first)
    assert searched(tmp_path / "s", by, 5, second) == best
    assert first.asked == whole.asked[:4]
    assert second.asked == whole.asked[3:]  # the one that was cut short comes again
    assert quality(best) == max(map(quality, whole.asked))


def test_trials_that_are_there_count(tmp_path: Path) -> None:
    searched(tmp_path / "s", "tpe", 3, Judge())
    more = Judge()
    searched(tmp_path / "s", "tpe", 5, more)
    assert len(more.asked) == 2


def test_a_study_of_other_data_is_refused(tmp_path: Path) -> None:
    searched(tmp_path / "s", "random", 1, Judge())
    with pytest.raises(
        SearchError, match=r"holds a search of .*some data.* asked for is .*other data.*another file"
    ):
        searched(tmp_path / "s", "random", 2, Judge(), data="other data")


@pytest.mark.parametrize("place", ["no folder/s", "no study"])
def test_a_study_that_cannot_be_kept_is_one_sentence(tmp_path: Path, place: str) -> None:
    (tmp_path / "no study").write_text("a shopping list, longer than the header of a database " * 9)
    with pytest.raises(SearchError, match="cannot keep a study"):
        searched(tmp_path / place, "random", 1, Judge())


def test_the_best_variant_is_what_is_trained_and_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="torch is not installed (extra train)")
    from headwater_models import commands, train_sequence
    from headwater_models.training import recipes
    from tests.support import cycles

    class Exported(Exception):
        pass

    def make(model: str, data: Any, asked: Any, recipe: recipes.Recipe, *_: Any) -> None:
        raise Exported(recipe.fit.learning_rate)

    monkeypatch.setattr(recipes, "ENCODER_SPACE", {"fit.learning_rate": (1e-6, 1e-2)})
    monkeypatch.setattr(train_sequence, "make", make)
    search = Search("grid", 4, tmp_path / "study")
    with pytest.raises(Exported, match=r"^0\.01$"):
        commands.train_sequence(
            "gru4rec", cycles.dataset(), "leave-one-out", tmp_path / "bundle", epochs=2, search=search
        )
