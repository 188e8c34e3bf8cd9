"""The weights of sources follow what finds most in a shop's own events, and only where that is certain."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from headwater.encoder.runtime import Encoder
from headwater.recall.sources.registry import DEFAULT_WEIGHTS
from headwater_models.arrays import F64
from headwater_models.data.datasets import Dataset
from headwater_models.judging import source_weights
from headwater_models.judging.evaluation import encoded
from headwater_models.judging.protocols import Cases, split
from headwater_models.judging.source_weights import chosen, complete
from headwater_models.progress import silent
from tests.unit.models.judging.test_evaluation import Stand
from tests.unit.models.judging.test_protocols import dataset

DAY_MS = 86_400_000


def found_by(monkeypatch: pytest.MonkeyPatch, gains: Mapping[str, float], noise: float = 0.0) -> None:
    """Answers whose NDCG is .2, and more by what is gained for each unit of weight of a source."""

    class Answers:
        def __init__(self, _encoder: Any, _catalog: Any, _asked: Any, cases: Cases, _has_times: bool) -> None:
            self._count = len(cases)

        def ndcg(self, weights: Mapping[str, float]) -> F64:
            rng = np.random.default_rng(0)
            gained = sum(
                gain * (weights.get(source, 0.0) - DEFAULT_WEIGHTS.get(source, 0.0))
                for source, gain in gains.items()
            )
            return 0.2 + gained * (1 + noise * rng.normal(size=self._count))

    monkeypatch.setattr(source_weights, "_Answers", Answers)


def shop(users: int) -> Dataset:
    """Half of the users take 0, 1, 2, 3 and the others 2, 3, 0, 1, each user on later days than the one before."""
    orders = ((0, 1, 2, 3), (2, 3, 0, 1))
    events = {
        f"u{n:02}": [(item, 10**12 + (4 * n + place) * DAY_MS) for place, item in enumerate(orders[n % 2])]
        for n in range(users)
    }
    data = dataset(events)
    return replace(data, item_ids=data.item_ids[:4])


def weights_of(users: int = 60) -> dict[str, float]:
    data, encoder = shop(users), cast(Encoder, Stand())
    asked = split(data, "leave-one-out")
    return chosen(encoder, encoded(encoder, data), asked, True, silent).weights


def test_a_source_that_finds_more_gets_the_weight_that_finds_most(monkeypatch: pytest.MonkeyPatch) -> None:
    found_by(monkeypatch, {"popular": 0.01})
    assert weights_of() == {"similar": 0.0, "popular": 4.0}
    found_by(monkeypatch, {"popular": -0.01})
    assert weights_of() == {}


def test_a_gain_within_chance_and_few_questions_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found_by(monkeypatch, {"popular": 0.01}, noise=100.0)
    assert weights_of() == {}
    found_by(monkeypatch, {"popular": 0.01})
    assert weights_of(users=19) == {}


def test_the_answers_are_those_of_the_request_path() -> None:
    data = shop(60)
    asked = split(data, "leave-one-out")
    encoder = cast(Encoder, Stand())
    answers = source_weights._Answers(encoder, encoded(encoder, data), asked, asked.validation, True)
    found = answers.ndcg({"popular": 1.0})
    assert found[0] == 0, "nothing is popular before the first day is over"
    # Later users have had two of the four items, so the one that comes next is the first or the second of the others.
    assert found[2:].min() == pytest.approx(1 / np.log2(3), abs=1e-6)
    assert complete({"popular": 2.0}) == {**DEFAULT_WEIGHTS, "popular": 2.0}
