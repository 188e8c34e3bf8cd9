"""What a bundle costs is measured for what it has: a step for states, a window without, a score for a scorer."""

from typing import cast

import numpy as np

from headwater.encoder.runtime import Encoder, load
from headwater_models.judging.costs import USERS, measured
from tests.support.checkout import STARTER


class Windowed:
    """A windowed encoder with a scorer that computes nothing, and notes what it is given."""

    kind, dim, log_length, pool = "windowed", 4, 6, 5

    class manifest:  # noqa: N801 - stands for an attribute
        files: dict[str, object] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.windows: set[tuple[int, ...]] = set()
        self.scored: set[int] = set()

    def window(self, items: np.ndarray, *_: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.windows.add(items.shape)
        return np.ones((len(items), 2, self.dim), dtype=np.float32), np.ones((len(items), 2))

    def score(self, features: np.ndarray, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        assert len(features) == len(users) == len(items)
        self.scored.add(len(items))
        return features[:, 0]


def test_a_recurrent_bundle_has_the_costs_of_a_click_an_answer_and_a_search() -> None:
    starter = load(STARTER, threads=1, device="cpu")
    (cost,) = measured([starter], items=100, rounds=2)
    assert cost.bytes == sum(file.bytes for file in starter.manifest.files.values())
    assert cost.click_us is not None
    assert all(us > 0 for us in (*cost.click_us, *cost.answer_us, *cost.search_us))
    assert cost.score_us is None


def test_a_windowed_bundle_has_no_click_and_its_scorer_is_given_a_whole_pool_of_each_user() -> None:
    bundle = Windowed()
    (cost,) = measured([cast(Encoder, bundle)], items=30, rounds=2)
    assert cost.click_us is None
    assert bundle.windows == {(1, 6, 4), (USERS, 6, 4)}
    assert cost.score_us is not None
    assert bundle.scored == {5, 5 * USERS}


def test_several_bundles_are_measured_in_one_run() -> None:
    costs = measured([cast(Encoder, Windowed()), cast(Encoder, Windowed())], items=30, rounds=1)
    assert len(costs) == 2
