"""The decayed mean as a bundle's user encoder: its graphs compute its definition."""

from pathlib import Path

import numpy as np
import pytest

from headwater.encoder import runtime as encoder
from headwater.encoder.features import ACTION_CODES
from tests.support.checkout import GROCERIES

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra train)")

from headwater_models.bundles.export import cosines, forgets  # noqa: E402 - needs onnx
from headwater_models.bundles.mean import make_mean  # noqa: E402 - needs onnx
from headwater_models.bundles.mean_config import MeanConfig  # noqa: E402 - needs onnx


@pytest.fixture(scope="module")
def meaned(tmp_path_factory: pytest.TempPathFactory) -> encoder.Encoder:
    return make_mean(GROCERIES, tmp_path_factory.mktemp("mean") / "bundle", command="a test")


def by_hand(items: np.ndarray, actions: list[str], gaps: list[float], config: MeanConfig) -> np.ndarray:
    """The decayed mean as its definition says, one event after another."""
    state = np.zeros(items.shape[1])
    for item, action, gap in zip(items, actions, gaps, strict=True):
        state = state * config.keep * 0.5 ** (gap / config.half_life_s) + getattr(config, action) * item
    return state


def test_mean_is_the_decayed_weighted_mean(meaned: encoder.Encoder) -> None:
    items = meaned.encode_items(["Coffee", "Milk", "Garden hose"])
    actions, gaps = ["click", "purchase", "view"], [0.0, 86_400.0, 3.5]
    codes = np.array([[ACTION_CODES[action] for action in actions]])
    state = meaned.step(
        meaned.initial_state(1), items[None], codes, np.float32([gaps]), np.ones((1, 3), np.float32)
    )
    expected = by_hand(items, actions, gaps, MeanConfig())
    np.testing.assert_allclose(state[0], expected, atol=1e-5)
    interests, weights = meaned.read(state, np.zeros(1, np.float32))
    np.testing.assert_allclose(interests[0, 0], expected / np.linalg.norm(expected), atol=1e-5)
    assert weights.tolist() == [[1.0]]


def test_mean_has_no_interest_in_anything_before_the_first_event(meaned: encoder.Encoder) -> None:
    interests, weights = meaned.read(meaned.initial_state(1), np.zeros(1, np.float32))
    assert not interests.any()
    assert weights.tolist() == [[0.0]]


def test_mean_over_another_tower_compares_directions(meaned: encoder.Encoder) -> None:
    vectors = meaned.encode_items(["Coffee", "Garden hose", ""])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    original = encoder.load(GROCERIES).encode_items(["Coffee", "Garden hose", ""])
    np.testing.assert_allclose(cosines(vectors, original), 1, atol=1e-6)


def test_mean_forgets_and_one_that_keeps_more_does_not(meaned: encoder.Encoder, tmp_path: Path) -> None:
    assert meaned.forgets
    slow = make_mean(GROCERIES, tmp_path / "slow", command="a test", config=MeanConfig(keep=0.98))
    assert not slow.forgets
    assert not forgets(slow)


@pytest.mark.parametrize("action", ["dislike", "hide", "impression", "retract", "forget"])
def test_actions_that_are_no_interest_add_nothing(meaned: encoder.Encoder, action: str) -> None:
    items = meaned.encode_items(["Coffee"])[None]
    codes = np.array([[ACTION_CODES[action]]])
    one = np.ones((1, 1), np.float32)
    assert not meaned.step(meaned.initial_state(1), items, codes, one, one).any()
