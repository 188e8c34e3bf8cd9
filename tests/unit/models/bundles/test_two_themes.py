"""Two interests without training: what the user looks at now, and the other theme of the events before."""

from pathlib import Path

import numpy as np
import pytest

from headwater.encoder import runtime as encoder
from headwater.encoder.features import ACTION_CODES
from headwater.encoder.runtime import Encoder
from headwater.recall.fusion import Ranking, fuse
from tests.support.checkout import STARTER

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra train)")

from headwater_models.bundles.two_themes import TwoThemesConfig, write_user_graphs  # noqa: E402 - needs onnx

COFFEES = [
    "Espresso coffee beans",
    "Decaf coffee, ground",
    "Instant coffee",
    "Coffee capsules",
    "Cold brew coffee",
]
SHOES = ["Trail running shoes", "Mens running shoes", "Walking shoes", "Leather shoes", "Kids tennis shoes"]
RUNNING = ["Trail running shoes", "Mens running shoes", "Ladies running shoes", "Running shoes, size 9"]
OTHERS = [
    "Garden hose",
    "Camera lens",
    "Desk lamp",
    "Car tyre",
    "Paperback novel",
    "Guitar strings",
    "Fishing rod",
]
MORE = {
    "coffee": [
        f"{kind} coffee" for kind in ("Organic", "Dark roast", "Colombian", "Vanilla", "Mocha", "Filter")
    ]
}
MORE["shoes"] = [f"{kind} shoes" for kind in ("Ladies", "Hiking", "Canvas", "Golf", "Dance", "Indoor")]


@pytest.fixture(scope="module")
def starter() -> Encoder:
    return encoder.load(STARTER)


def read(
    starter: Encoder, texts: list[str], actions: list[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Interests (K, D) and weights (K,) after a minute-by-minute log."""
    codes = np.array([[ACTION_CODES[action] for action in actions or ["click"] * len(texts)]])
    gaps, mask = np.full(codes.shape, 60, np.float32), np.ones(codes.shape, np.float32)
    items = starter.encode_items(texts)[None]
    state = starter.step(starter.initial_state(1), items, codes, gaps, mask)
    interests, weights = starter.read(state, np.zeros(1, np.float32))
    return interests[0], weights[0]


def page(starter: Encoder, interests: np.ndarray, weights: np.ndarray) -> list[str]:
    """The ten best of a catalog, fused as recall does it."""
    catalog = MORE["coffee"] + MORE["shoes"] + OTHERS
    vectors = starter.encode_items(catalog)
    rankings = [
        Ranking(str(number), float(weight), [(int(item), "") for item in np.argsort(-(vectors @ interest))])
        for number, (interest, weight) in enumerate(zip(interests, weights, strict=True))
        if weight > 0
    ]
    return [catalog[item.key] for item in fuse(rankings)[:10]]


@pytest.mark.parametrize(
    "log", [COFFEES + SHOES, [text for pair in zip(COFFEES, SHOES, strict=True) for text in pair]]
)
def test_a_user_with_two_themes_sees_both(starter: Encoder, log: list[str]) -> None:
    interests, weights = read(starter, log)
    assert weights.tolist() == pytest.approx([1, TwoThemesConfig().vote])
    seen = page(starter, interests, weights)
    assert sum(text in MORE["shoes"] for text in seen) >= 2
    assert sum(text in MORE["coffee"] for text in seen) >= 2


@pytest.mark.parametrize("arrangement", ["blocks", "in turn", "shuffled"])
def test_of_made_up_users_nine_in_ten_see_both_themes(starter: Encoder, arrangement: str) -> None:
    """Three hundred themes that nobody tuned on. Cosines are about .65 within a theme and .35 between two."""
    rng = np.random.default_rng(4)
    shared, themes, items = (
        rng.normal(size=(*shape, starter.dim)) for shape in ((1, 1), (300, 1), (300, 20))
    )
    vectors = (0.6 * shared + 0.5 * themes + 0.6 * items).reshape(-1, starter.dim).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    users = 200
    two = np.argsort(rng.random((users, 300)), axis=1)[:, :2]
    logs = 20 * two[:, :, None] + np.argsort(rng.random((users, 2, 20)), axis=2)[:, :, :5]  # (users, 2, 5)
    logs = logs.swapaxes(1, 2).reshape(users, 10) if arrangement == "in turn" else logs.reshape(users, 10)
    if arrangement == "shuffled":
        logs = rng.permuted(logs, axis=1)
    codes, gaps = np.ones(logs.shape, np.int64), np.full(logs.shape, 60, np.float32)
    given = (vectors[logs], codes, gaps, np.ones(logs.shape, np.float32))
    interests, weights = starter.read(
        starter.step(starter.initial_state(users), *given), np.zeros(users, np.float32)
    )
    both = 0
    for user in range(users):
        scores = interests[user] @ vectors.T
        scores[:, logs[user]] = -np.inf
        rankings = [
            Ranking("", float(weight), [(int(item), "") for item in np.argsort(-own)[:10]])
            for own, weight in zip(scores, weights[user], strict=True)
            if weight > 0
        ]
        both += set(two[user].tolist()) <= {item.key // 20 for item in fuse(rankings)[:10]}
    assert both >= 0.9 * users


@pytest.mark.parametrize("log", [RUNNING, COFFEES[:1], COFFEES[:1] * 20])
def test_a_user_with_one_theme_has_one_interest(starter: Encoder, log: list[str]) -> None:
    interests, weights = read(starter, log)
    assert weights.tolist() == [1, 0]
    assert not interests[1].any()
    assert np.linalg.norm(interests[0]) == pytest.approx(1, abs=1e-5)


def test_a_user_with_one_broad_theme_sees_it_alone(starter: Encoder) -> None:
    assert set(page(starter, *read(starter, COFFEES))[: len(MORE["coffee"])]) == set(MORE["coffee"])


def test_what_was_bought_counts_more_than_what_was_looked_at(starter: Encoder) -> None:
    (coffee,) = starter.encode_items(COFFEES[:1])
    likes = {}
    for action in ("view", "purchase"):
        (interest, _), _ = read(starter, [COFFEES[0], SHOES[0]], [action, "click"])
        likes[action] = float(interest @ coffee)
    assert likes["purchase"] > likes["view"]
    assert not read(starter, [COFFEES[0]], ["hide"])[1].any()


def test_event_by_event_is_all_at_once_and_old_events_leave_no_trace(starter: Encoder) -> None:
    items = starter.encode_items(COFFEES + SHOES)[None]
    codes, gaps = np.ones((1, 10), np.int64), np.full((1, 10), 3600, np.float32)
    whole = starter.step(starter.initial_state(1), items, codes, gaps, np.ones((1, 10), np.float32))
    state = starter.initial_state(1)
    for place in range(10):
        part = slice(place, place + 1)
        given = (items[:, part], codes[:, part], gaps[:, part])
        state = starter.step(state, *given, np.ones((1, 1), np.float32))
    np.testing.assert_allclose(state, whole, atol=1e-4)
    assert starter.forgets


def test_the_shipped_graphs_are_those_of_the_configuration(starter: Encoder, tmp_path: Path) -> None:
    write_user_graphs(tmp_path, starter.dim, TwoThemesConfig())
    for name in ("step.onnx", "read.onnx"):
        assert (tmp_path / name).read_bytes() == (STARTER / name).read_bytes()
