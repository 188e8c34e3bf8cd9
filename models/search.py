"""Hyper-parameters: a recipe varied within its space, every variant judged by the validation, all of it kept in one file.

The file is an Optuna study (SQLite): a search that was stopped goes on from it, and `optuna-dashboard` shows it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Values = dict[str, Any]  # of a variant, by the names of its space


class SearchError(Exception):
    """A search cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class Search:
    by: Literal["grid", "random", "tpe"]
    trials: int  # in all, those that the file has already among them
    study: Path


def best_of(
    search: Search,
    name: str,
    space: Mapping[str, Sequence[Any]],
    data: str,
    seed: int,
    judge: Callable[[Values], float],
    report: Callable[[str, int, int], None],
) -> Values:
    """The variant that `judge` values most, of as many as the search asks for; a grid ends when nothing is left of it.

    `data` says what is judged on, for one study is of one question. Raises SearchError where the file holds another, and what
    `judge` raises. Needs optuna (the extra `train`).
    """
    import optuna
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{search.study}", study_name=name, direction="maximize", load_if_exists=True
    )
    asked = json.dumps({"data": data, "space": space, "seed": seed})
    if study.user_attrs.setdefault("asked", asked) != asked:
        raise SearchError(
            f"{search.study} holds a search of {study.user_attrs['asked']}, asked for is {asked}: name another file"
        )
    study.set_user_attr("asked", asked)
    for trial in study.get_trials(states=[TrialState.RUNNING]):  # of a search that was killed
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
    grid = optuna.samplers.GridSampler(space, seed)

    def done() -> int:
        return len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]))

    while (number := done()) < search.trials and not (search.by == "grid" and grid.is_exhausted(study)):
        # Seeded by how far it is: a search that goes on draws what it would have drawn.
        samplers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
            "grid": lambda: grid,
            "random": lambda: optuna.samplers.RandomSampler(seed + number),
            "tpe": lambda: optuna.samplers.TPESampler(seed=seed + number),
        }
        study.sampler = samplers[search.by]()
        trial = study.ask()
        values = {key: trial.suggest_categorical(key, choices) for key, choices in space.items()}
        study.tell(trial, judge(values))
        report(f"search, best {study.best_value:.4f} by {_shown(study.best_params)}", done(), search.trials)
    best: Values = study.best_params
    return best


def _shown(values: Values) -> str:
    return " ".join(f"{name.rpartition('.')[2]}={value}" for name, value in values.items())
