"""Hyper-parameter search: variants of a recipe, each judged by validation, all kept in one file.

The file is an Optuna study (SQLite). A search that was stopped continues from it, and `optuna-dashboard` shows it.
"""

import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from headwater.errors import HeadwaterError

Values = dict[str, Any]  # a variant: field of the recipe -> value


class SearchError(HeadwaterError):
    """A search cannot continue; the message says why and what to do."""


@dataclass(frozen=True)
class Search:
    """How to search, and the file that keeps it."""

    by: Literal["grid", "random", "tpe"]
    trials: int  # in total, those already in the file included
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
    """The values that `judge` scores highest, after `search.trials` variants. A grid ends earlier when it is exhausted.

    `data` names the data and the question, since a study belongs to one of them. Needs optuna (extra `train`).

    Raises SearchError: the file holds a study of other data, or cannot hold one. Errors of `judge` pass through.
    """
    import optuna
    from optuna.trial import TrialState
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            storage=f"sqlite:///{search.study}", study_name=name, direction="maximize", load_if_exists=True
        )
    except SQLAlchemyError as error:
        raise SearchError(
            f"{search.study} cannot keep a study ({type(error).__name__}): expected a new file in a folder that is there, or "
            "the file of a search"
        ) from error
    asked = json.dumps({"data": data, "space": space, "seed": seed})
    if study.user_attrs.setdefault("asked", asked) != asked:
        raise SearchError(
            f"{search.study} holds a search of {study.user_attrs['asked']}, asked for is {asked}: name another file"
        )
    study.set_user_attr("asked", asked)
    for left_over in study.get_trials(states=[TrialState.RUNNING]):  # of a search that was killed
        study.tell(left_over.number, state=TrialState.FAIL)
        if search.by != "grid" and left_over.params.keys() == space.keys():
            study.enqueue_trial(left_over.params)
    judged = [trial.params for trial in study.get_trials(states=[TrialState.COMPLETE])]
    while len(judged) < search.trials:
        if search.by == "grid":
            left = [values for values in _grid(space, seed) if values not in judged]
            if not left:
                break
            if not study.get_trials(states=[TrialState.WAITING]):  # else a killed search left one enqueued
                study.enqueue_trial(left[0])
        # Seeded by the number of trials done, so a resumed search draws what it would have drawn.
        elif search.by == "random":
            study.sampler = optuna.samplers.RandomSampler(seed + len(judged))
        else:
            study.sampler = optuna.samplers.TPESampler(seed=seed + len(judged))
        trial = study.ask()
        values = {key: trial.suggest_categorical(key, choices) for key, choices in space.items()}
        study.tell(trial, judge(values))
        judged.append(values)
        report(
            f"search, best {study.best_value:.4f} by {_shown(study.best_params)}", len(judged), search.trials
        )
    best: Values = study.best_params
    return best


def _grid(space: Mapping[str, Sequence[Any]], seed: int) -> list[Values]:
    """Every combination, shuffled, so that the first few spread over the space."""
    every = [dict(zip(space, chosen, strict=True)) for chosen in itertools.product(*space.values())]
    random.Random(seed).shuffle(every)
    return every


def _shown(values: Values) -> str:
    return " ".join(f"{name.rpartition('.')[2]}={value}" for name, value in values.items())
