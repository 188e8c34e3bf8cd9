"""Themes are left out where they find fewer of what users took next, and only there."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra train)")

from headwater_models.data.events import Log  # noqa: E402 - after the skip
from headwater_models.judging.protocols import Split, next_events  # noqa: E402 - after the skip
from headwater_models.networks import Events, WindowedEncoder  # noqa: E402 - needs torch
from headwater_models.training.how_many_interests import SEVERAL, Themed, themed  # noqa: E402 - needs torch

EACH, USERS, LENGTH = 30, 40, 8
RNG = np.random.default_rng(0)
# Items of two themes, and of what lies between them.
AXES = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.8, 0.8, 0.0]])
VECTORS = (np.repeat(AXES, EACH, axis=0) + 0.01 * RNG.normal(size=(3 * EACH, 3))).astype(np.float32)


class Mean(WindowedEncoder):
    """A user is the mean of the events."""

    def __init__(self) -> None:
        super().__init__(3)

    def forward(self, *_: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        raise NotImplementedError

    def answer(self, events: Events, gap_to_now_s: torch.Tensor) -> torch.Tensor:
        mask = events.mask[..., None]
        found: torch.Tensor = (events.items * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        return found


def asked(themes: list[int], target: int) -> Split:
    """Users who took items of these themes in turn, and then one of the theme `target`."""
    own = [[RNG.integers(EACH) + EACH * theme for theme in (themes * LENGTH)[:LENGTH]] for _ in range(USERS)]
    rows = np.array([[*items, RNG.integers(EACH) + EACH * target] for items in own])
    starts = np.arange(USERS + 1) * (LENGTH + 1)
    log = Log(
        [str(user) for user in range(USERS)],
        starts,
        rows.ravel(),
        np.ones(rows.size, int),
        np.arange(rows.size),
    )
    cases = next_events(log, starts[1:] - 1, mask_seen=True)
    return Split("global-time", log, log, cases, cases)


def test_one_interest_is_kept_where_what_follows_lies_between_the_themes() -> None:
    found = themed(Mean(), VECTORS, asked([0, 1], target=2), LENGTH)
    assert found.one > found.themes + 0.1
    assert (found.interests, found.questions) == (1, USERS)


def test_themes_are_kept_where_users_go_on_with_either() -> None:
    found = themed(Mean(), VECTORS, asked([0, 1], target=1), LENGTH)
    assert found.themes > found.one
    assert found.interests == SEVERAL


def test_themes_are_kept_where_histories_have_one() -> None:
    found = themed(Mean(), VECTORS, asked([0], target=0), LENGTH)
    assert found.themes == found.one
    assert found.interests == SEVERAL


@pytest.mark.parametrize(
    ("themes", "error", "interests"),
    [(0.090, 0.004, 1), (0.090, 0.012, SEVERAL), (0.098, 0.001, SEVERAL), (0.110, 0.001, SEVERAL)],
    ids=["cost too much", "by chance", "cost little", "bring more"],
)
def test_themes_may_cost_a_little_and_chance_does_not_take_them_away(
    themes: float, error: float, interests: int
) -> None:
    assert Themed(0.100, themes, error, 400).interests == interests
