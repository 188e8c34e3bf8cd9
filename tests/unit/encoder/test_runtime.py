"""Bundles are refused with a reason or served exactly, however events are batched and padded."""

import shutil
import threading
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.encoder import runtime as encoder
from headwater.encoder.bundle import BundleError
from headwater.encoder.features import ACTION_CODES
from headwater.encoder.runtime import Encoder
from tests.support.bundles import rewritten
from tests.support.checkout import STARTER

TEXTS = [
    "Ground coffee, 12 oz",
    "Garden hose",
    "Whole milk, gal",
    "",
    "Dog food, dry",
    "☕ кофе \x00 " + "word " * 300,
]


@pytest.fixture(scope="module")
def starter() -> Encoder:
    return encoder.load(STARTER)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(STARTER, tmp_path / "bundle"))


def events(bundle: Encoder, users: int, count: int, seed: int) -> tuple[np.ndarray, ...]:
    """Logs of real items, with every positive action and gaps from milliseconds to weeks."""
    rng = np.random.default_rng(seed)
    vectors = bundle.encode_items(TEXTS[:5])
    items = vectors[rng.integers(0, 5, (users, count))]
    actions = rng.integers(1, 6, (users, count))
    gaps = (10.0 ** rng.uniform(-3, 6, (users, count))).astype(np.float32)
    return items, actions, gaps


def test_a_query_has_none_of_the_marks_that_tell_items_apart(tmp_path: Path) -> None:
    """Read as an unknown item, it would prefer every new item."""
    plain = encoder.load(STARTER).encode_queries(["Ground coffee"])
    folder = Path(shutil.copytree(STARTER, tmp_path / "bundle"))
    rewritten(folder, marks=2)
    marked = encoder.load(folder)
    query = marked.encode_queries(["Ground coffee"])
    np.testing.assert_array_equal(query[:, :-2], plain[:, :-2])
    assert not query[:, -2:].any()
    assert marked.encode_items(["Ground coffee"])[:, -2:].all()


def test_shipped_bundle_loads_and_says_what_it_is(starter: Encoder) -> None:
    assert starter.kind == "recurrent"
    assert starter.item_inputs == "text"
    assert starter.forgets
    assert starter.id.startswith("starter-")
    assert len(starter.id) == len("starter-") + 12
    assert starter.providers == ["CPUExecutionProvider"]
    assert sum(file.stat().st_size for file in STARTER.iterdir()) <= 8 * 2**20


def test_items_get_one_finite_vector_each_whatever_their_text(starter: Encoder) -> None:
    vectors = starter.encode_items(TEXTS)
    assert vectors.shape == (len(TEXTS), starter.dim)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    assert starter.encode_items([]).shape == (0, starter.dim)


def test_a_text_is_its_own_tokens_only_and_cut_where_the_manifest_says(starter: Encoder) -> None:
    coffee, nothing, long = starter.tokens(["coffee", "", "coffee " * 500])
    assert len(coffee) == 1  # without [CLS] and [SEP], which this tower was not trained on
    assert nothing == []
    assert starter.manifest.text is not None
    assert long == coffee * starter.manifest.text.max_tokens


def test_an_items_vector_does_not_depend_on_its_batch(starter: Encoder) -> None:
    alone = np.concatenate([starter.encode_items([text]) for text in TEXTS])
    together = starter.encode_items(TEXTS * 400)
    np.testing.assert_allclose(together[: len(TEXTS)], alone, atol=1e-5)
    np.testing.assert_allclose(together[-len(TEXTS) :], alone, atol=1e-5)


def test_an_unknown_item_is_encoded_from_its_text_alone(starter: Encoder) -> None:
    by_text = starter.encode_items(["Ground coffee, 12 oz"])
    np.testing.assert_array_equal(starter.encode_items(["Ground coffee, 12 oz"], ["never sold"]), by_text)


@settings(max_examples=40)
@given(
    cuts=st.lists(st.integers(0, 30), max_size=6),
    padding=st.integers(0, 7),
    seed=st.integers(0, 1000),
    others=st.integers(0, 3),
)
def test_any_split_into_steps_gives_the_state_of_the_whole_fold(
    starter: Encoder, cuts: list[int], padding: int, seed: int, others: int
) -> None:
    count = 30
    items, actions, gaps = events(starter, 1, count, seed)
    whole = starter.step(starter.initial_state(1), items, actions, gaps, np.ones((1, count), np.float32))
    state = starter.initial_state(1 + others)
    edges = sorted({0, count, *cuts})
    for start, end in pairwise(edges):
        width = end - start + padding
        given_items = np.full(
            (1 + others, width, starter.dim), 7.0, dtype=np.float32
        )  # padding holds rubbish
        given_actions = np.full((1 + others, width), ACTION_CODES["purchase"])
        given_gaps = np.full((1 + others, width), 1e6, dtype=np.float32)
        mask = np.zeros((1 + others, width), dtype=np.float32)
        given_items[0, : end - start] = items[0, start:end]
        given_actions[0, : end - start] = actions[0, start:end]
        given_gaps[0, : end - start] = gaps[0, start:end]
        mask[0, : end - start] = 1
        state = starter.step(state, given_items, given_actions, given_gaps, mask)
    np.testing.assert_allclose(state[:1], whole, rtol=1e-4, atol=1e-5 * np.abs(whole).max())
    assert not state[1:].any(), "rows of padding only keep their state"


def test_a_row_of_padding_keeps_its_state_bit_for_bit(starter: Encoder) -> None:
    state = np.random.default_rng(0).normal(size=(3, starter.state_size)).astype(np.float32)
    items, actions, gaps = events(starter, 3, 4, seed=1)
    np.testing.assert_array_equal(
        starter.step(state, items, actions, gaps, np.zeros((3, 4), np.float32)), state
    )


def test_stepping_past_evicted_events_equals_the_fold_over_the_newest(starter: Encoder) -> None:
    items, actions, gaps = events(starter, 16, 4 * starter.log_length, seed=2)
    gaps[:] = 1e-3
    mask = np.ones(gaps.shape, np.float32)
    newest = slice(-starter.log_length, None)
    long = starter.step(starter.initial_state(16), items, actions, gaps, mask)
    short = starter.step(
        starter.initial_state(16), items[:, newest], actions[:, newest], gaps[:, newest], mask[:, newest]
    )
    lengths = np.linalg.norm(long, axis=1) * np.linalg.norm(short, axis=1)
    assert ((long * short).sum(1, dtype=np.float64) / lengths).min() >= 1 - 2e-6


def test_a_state_kept_in_half_precision_reads_the_same_interests(starter: Encoder) -> None:
    items, actions, gaps = events(starter, 8, 20, seed=3)
    state = starter.step(starter.initial_state(8), items, actions, gaps, np.ones(gaps.shape, np.float32))
    now = np.full(8, 60.0, np.float32)
    exact, _ = starter.read(state, now)
    stored, _ = starter.read(state.astype(np.float16).astype(np.float32), now)
    assert np.abs(exact - stored).max() < 0.01 * np.abs(exact).max()


@pytest.mark.parametrize("action", ["click", "view", "like", "add_to_cart", "purchase"])
def test_who_looks_at_coffee_is_shown_coffee(starter: Encoder, action: str) -> None:
    history = starter.encode_items(["Filter coffee beans", "Espresso coffee, dark roast"])
    catalog = [
        "Arabica coffee, ground",
        "Cold brew coffee",
        "Garden hose",
        "Running shoes",
        "Laptop sleeve",
        "Cat litter",
    ]
    actions = np.full((1, 2), ACTION_CODES[action])
    gaps = np.array([[0, 30]], np.float32)
    state = starter.step(starter.initial_state(1), history[None], actions, gaps, np.ones((1, 2), np.float32))
    interests, _ = starter.read(state, np.array([5], np.float32))
    scores = (interests[0] @ starter.encode_items(catalog).T).max(axis=0)
    assert set(np.argsort(-scores)[:2]) == {0, 1}


def test_a_user_without_events_gets_finite_interests(starter: Encoder) -> None:
    interests, weights = starter.read(starter.initial_state(2), np.zeros(2, np.float32))
    assert interests.shape == (2, starter.interests, starter.dim)
    assert weights.shape == (2, starter.interests)
    assert np.isfinite(interests).all()
    assert np.isfinite(weights).all()


def test_threads_may_share_an_encoder(starter: Encoder) -> None:
    expected = starter.encode_items(TEXTS)
    agreed: list[bool] = []

    def work() -> None:
        found = [starter.encode_items(TEXTS) for _ in range(20)]
        agreed.append(all(np.allclose(vectors, expected, atol=1e-6) for vectors in found))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert agreed == [True] * 4


def test_a_recurrent_bundle_says_that_it_has_no_window(starter: Encoder) -> None:
    items, actions, gaps = events(starter, 1, 2, seed=0)
    with pytest.raises(BundleError, match="is recurrent, not windowed: use step"):
        starter.window(items, actions, gaps, np.ones((1, 2), np.float32), np.zeros(1, np.float32))


def test_a_wrong_dimension_is_refused_with_both_numbers(copy: Path) -> None:
    rewritten(copy, dim=65)
    with pytest.raises(BundleError, match=r"64.*65"):
        encoder.load(copy)


def test_a_wrong_opset_is_refused_with_both_numbers(copy: Path) -> None:
    rewritten(copy, opset=17)
    with pytest.raises(BundleError, match="has opset 18, its manifest says 17"):
        encoder.load(copy)


def test_a_bundle_with_fewer_actions_reads_the_others_as_a_click(starter: Encoder, copy: Path) -> None:
    known = {name: ACTION_CODES[name] for name in ("click", "view", "purchase")}
    rewritten(copy, actions=known)
    fewer = Encoder(copy, threads=1, device="cpu")  # not `load`: its probe holds all five
    items, _, gaps = events(starter, 1, 4, seed=5)
    mask = np.ones((1, 4), np.float32)

    def stepped(bundle: Encoder, *names: str) -> np.ndarray:
        codes = np.array([[ACTION_CODES[name] for name in names]])
        return bundle.step(bundle.initial_state(1), items, codes, gaps, mask)

    unknown = stepped(fewer, "view", "add_to_cart", "like", "purchase")
    np.testing.assert_array_equal(unknown, stepped(starter, "view", "click", "click", "purchase"))
    assert not np.array_equal(unknown, stepped(starter, "view", "add_to_cart", "like", "purchase"))


def test_a_bundle_with_more_actions_is_served_as_it_is(starter: Encoder, copy: Path) -> None:
    rewritten(copy, actions={**ACTION_CODES, "share": 11})
    more = encoder.load(copy)
    items, actions, gaps = events(starter, 2, 4, seed=6)
    given = (starter.initial_state(2), items, actions, gaps, np.ones((2, 4), np.float32))
    np.testing.assert_array_equal(more.step(*given), starter.step(*given))


def test_a_bundle_that_computes_something_else_is_refused(copy: Path) -> None:
    probe = encoder.load(copy).manifest.probe
    off = [[value + 0.5 for value in row] for row in probe.vectors]
    rewritten(copy, probe=msgspec.structs.replace(probe, vectors=off))
    with pytest.raises(BundleError, match=r"item vectors that differ by 0\.5"):
        encoder.load(copy)


def test_asking_for_cuda_without_it_says_what_runs(copy: Path) -> None:
    if "CUDAExecutionProvider" in encoder.ort.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(BundleError, match="runs on CPUExecutionProvider"):
        encoder.load(copy, device="cuda")
