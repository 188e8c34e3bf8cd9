"""Each theme of a history is read as a history of its own, and what actions are worth."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra train)")

from headwater.encoder.features import ACTION_CODES  # noqa: E402 - after the skip
from headwater_models.data.events import Log  # noqa: E402 - after the skip
from headwater_models.networks import ARCHITECTURES, Events, UserEncoder  # noqa: E402 - needs torch
from headwater_models.networks.themes import Themes  # noqa: E402 - needs torch
from headwater_models.training.sequence_loop import measure_worth  # noqa: E402 - needs torch

DIM = 8
LENGTH = 10
AXES = torch.eye(DIM)


def encoder_of(name: str) -> UserEncoder:
    torch.manual_seed(0)
    config, network = ARCHITECTURES[name]
    sizes = {"length": LENGTH} if name in ("sasrec", "bert4rec") else {}
    encoder: UserEncoder = network(config(dim=DIM, **sizes)).eval()
    return encoder


def themes_of(name: str) -> tuple[UserEncoder, Themes]:
    encoder = encoder_of(name)
    return encoder, Themes(encoder, np.zeros((1, DIM), np.float32)).eval()


@pytest.mark.parametrize("name", ["sasrec", "narm", "bert4rec", "lru", "gru4rec"])
def test_an_interest_is_what_the_encoder_makes_of_the_events_of_its_theme(name: str) -> None:
    encoder, themes = themes_of(name)
    which = [0, 1, 1, 0, 1, 0, 1]
    items = torch.stack([AXES[axis] + 0.1 * AXES[2 + n % 3] for n, axis in enumerate(which)])[None]
    actions = torch.tensor([[1, 2, 3, 4, 5, 1, 2]])
    gaps = torch.tensor([[0.0, 5, 10, 20, 40, 80, 160]])
    now = torch.tensor([7.0])
    with torch.inference_mode():
        interests, weights = themes.window(items, actions, gaps, torch.ones(1, 7), now)
        times = gaps.cumsum(1)[0]
        for place, theme in enumerate((1, 0)):  # that of the last event first
            own = [n for n, axis in enumerate(which) if axis == theme]
            own_gaps = torch.diff(times[own], prepend=times[own][:1])[None]
            waited = now + times[-1] - times[own[-1]]
            alone = encoder.answer(
                Events(items[:, own], actions[:, own], own_gaps, torch.ones(1, len(own))), waited
            )
            torch.testing.assert_close(interests[:, place], alone[:, 0], atol=1e-5, rtol=1e-4)
    assert weights.tolist() == [[1.0, 1.0, 0.0]]
    torch.testing.assert_close(
        interests[:, 2], interests[:, 0]
    )  # what is no theme brings nothing of its own up


def test_a_history_of_one_theme_is_read_as_a_whole_and_an_empty_one_has_no_interest() -> None:
    encoder, themes = themes_of("sasrec")
    items = torch.stack([AXES[0]] * 9 + [AXES[1]])[None].flip(1)  # one stray event, too few for a theme
    given = (items, torch.ones(1, 10, dtype=torch.int64), torch.ones(1, 10), torch.ones(1, 10), torch.ones(1))
    with torch.inference_mode():
        interests, weights = themes.window(*given)
        torch.testing.assert_close(interests[:, 0], encoder.answer(Events(*given[:4]), given[4])[:, 0])
        assert weights.tolist() == [[1.0, 0.0, 0.0]]
        nothing = themes.window(*given[:3], torch.zeros(1, 10), torch.ones(1))
    assert nothing[1].tolist() == [[0.0, 0.0, 0.0]]
    assert torch.isfinite(nothing[0]).all()


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_actions_that_the_data_lacks_count_as_usual_and_the_only_action_counts_one(name: str) -> None:
    encoder = encoder_of(name)
    items, gaps, ones = torch.randn(1, 6, DIM), torch.zeros(1, 6), torch.ones(1, 6)

    def read(actions: list[str], usual: str) -> torch.Tensor:
        codes = torch.tensor([[ACTION_CODES[action] for action in actions]])
        log = Log(["a"], np.array([0, 2]), np.zeros(2, int), np.full(2, ACTION_CODES[usual]), np.arange(2))
        measure_worth(encoder, log)
        with torch.inference_mode():
            found: torch.Tensor = encoder.answer(Events(items, codes, gaps, ones), torch.zeros(1))
        return found

    clicks = read(["click"] * 6, "click")
    torch.testing.assert_close(read(["purchase"] * 6, "purchase"), clicks)
    assert (read(["purchase", *["view"] * 5], "click") - clicks).abs().max() > 1e-4
