"""Lighter bundles answer as the bundle they were made of, as far as what was taken from them allows."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from tests.support.extras import needs

torch = pytest.importorskip("torch", reason="torch is not installed (extra train)")
needs("onnxscript", extra="train")

from headwater.encoder.bundle import Origin  # noqa: E402 - after the skip
from headwater.encoder.runtime import Encoder, fold, load  # noqa: E402 - after the skip
from headwater_models.bundles import sequence_bundle  # noqa: E402 - needs torch
from headwater_models.bundles.export import ExportError  # noqa: E402 - needs onnx
from headwater_models.bundles.light import lighten  # noqa: E402 - needs onnx
from headwater_models.bundles.sequence_bundle import Named  # noqa: E402 - needs torch
from headwater_models.judging.costs import measured  # noqa: E402 - after the skip
from headwater_models.networks import ARCHITECTURES  # noqa: E402 - needs torch
from headwater_models.training.sequence_loop import IdModel  # noqa: E402 - needs torch
from tests.support.checkout import GROCERIES  # noqa: E402 - after the skip

IDS = [f"item-{n}" for n in range(200)]
ORIGIN = Origin("nothing", None, "a test", 0, 0.0, {}, {})
DIM, LENGTH, USELESS = 16, 6, 20  # hidden units that say nothing


def untrained(out: Path, name: str) -> Encoder:
    torch.manual_seed(0)
    config, network = ARCHITECTURES[name]
    sizes = {"dim": DIM, "length": LENGTH, "dropout": 0.0}
    sizes = {field.name: sizes[field.name] for field in fields(config) if field.name in sizes}
    model = IdModel(len(IDS), network(config(**sizes)))
    return sequence_bundle.write(out, model, IDS, LENGTH, Named(name, "", ORIGIN))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """An untrained bundle with every weight in play, but for a part of the feed-forward."""
    torch.manual_seed(0)
    config, network = ARCHITECTURES["sasrec"]
    model = IdModel(len(IDS), network(config(dim=DIM, length=LENGTH, blocks=1, dropout=0.0)))
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        for name, module in model.named_modules():
            if name.endswith("feed_forward"):
                module.out.weight[:, :USELESS] = 0
    out = tmp_path_factory.mktemp("whole") / "bundle"
    return sequence_bundle.write(out, model, IDS, LENGTH, Named("sasrec", "", ORIGIN))


def interests(bundle: Encoder, items: np.ndarray, gap_s: float = 1.0) -> np.ndarray:
    users, length = items.shape[:2]
    return fold(
        bundle,
        items,
        [["click"] * length] * users,
        np.full((users, length), gap_s, np.float32),
        np.full(users, gap_s, np.float32),
    )[0]


def histories(bundle: Encoder, users: int = 4) -> np.ndarray:
    ids = np.random.default_rng(1).choice(IDS, users * LENGTH)
    return bundle.encode_items([], list(ids)).reshape(users, LENGTH, -1)


def test_int8_moves_no_number_further_than_half_a_step(whole: Encoder, tmp_path: Path) -> None:
    light = lighten(whole.path, tmp_path / "light", int8=True, dim=None, prune=0, command="a test")
    exact, found = whole.encode_items([], IDS), light.encode_items([], IDS)
    steps = np.abs(exact).max(axis=1, keepdims=True) / 127
    assert (np.abs(found - exact) <= 0.5001 * steps).all()
    assert np.abs(found - exact).max() > 0
    items = histories(whole)
    np.testing.assert_allclose(interests(light, items), interests(whole, items), atol=0.1)
    # As far as the format of a graph allows: these are small.
    assert measured([light], 10, rounds=1)[0].bytes < measured([whole], 10, rounds=1)[0].bytes - 10_000


@pytest.mark.parametrize("shipped", [False, True])
def test_an_int8_answer_does_not_depend_on_who_else_asks(
    whole: Encoder, tmp_path: Path, shipped: bool
) -> None:
    source = GROCERIES if shipped else whole.path
    light = lighten(source, tmp_path / "light", int8=True, dim=None, prune=0, command="a test")
    items = np.random.default_rng(1).normal(size=(4, LENGTH, light.dim)).astype(np.float32)
    loud = np.concatenate([items[:1], 100 * items[1:]])
    np.testing.assert_allclose(interests(light, loud)[0], interests(light, items[:1])[0], atol=1e-5)


@pytest.mark.parametrize("model", ["groceries", *ARCHITECTURES])
def test_half_precision_changes_little_however_long_the_gaps_are(tmp_path: Path, model: str) -> None:
    shipped = model == "groceries"
    source = load(GROCERIES) if shipped else untrained(tmp_path / "whole", model)
    light = lighten(source.path, tmp_path / "light", fp16=True, command="a test")
    assert light.name == f"{source.name}-fp16"
    known = list(source.manifest.probe.item_ids) if shipped else IDS
    texts = ["Ground coffee"] * len(known) if shipped else []
    exact, found = source.encode_items(texts, known), light.encode_items(texts, known)
    np.testing.assert_allclose(found, exact, atol=0.003)
    assert np.abs(found - exact).max() > 0
    items = np.random.default_rng(1).choice(exact, (4, LENGTH))
    for gap_s in (1.0, 3_600.0, 30 * 86_400.0):
        np.testing.assert_allclose(
            interests(light, items, gap_s), interests(source, items, gap_s), rtol=0.02, atol=0.03
        )


def test_truncation_keeps_the_first_dimensions_and_reads_the_others_as_zero(
    whole: Encoder, tmp_path: Path
) -> None:
    light = lighten(whole.path, tmp_path / "light", int8=False, dim=6, prune=0, command="a test")
    np.testing.assert_array_equal(light.encode_items([], IDS), whole.encode_items([], IDS)[:, :6])
    items = histories(whole)
    padded = np.concatenate([items[..., :6], np.zeros_like(items[..., 6:])], axis=-1)
    np.testing.assert_allclose(interests(light, items[..., :6]), interests(whole, padded)[..., :6], atol=1e-5)


def test_pruning_takes_the_hidden_units_that_say_least(whole: Encoder, tmp_path: Path) -> None:
    light = lighten(
        whole.path, tmp_path / "light", int8=False, dim=None, prune=USELESS / (4 * DIM), command="a test"
    )
    assert f"{USELESS} hidden units pruned" in light.manifest.origin.notes[0]
    items = histories(whole)
    np.testing.assert_allclose(interests(light, items), interests(whole, items), atol=1e-5)
    more = lighten(whole.path, tmp_path / "more", int8=False, dim=None, prune=0.9, command="a test")
    assert np.abs(interests(more, items) - interests(whole, items)).max() > 1e-3


def test_all_of_it_together_on_texts(tmp_path: Path) -> None:
    groceries = load(GROCERIES)
    light = lighten(groceries.path, tmp_path / "light", int8=True, dim=32, prune=0, command="a test")
    assert light.name == "groceries-dim32-int8"
    assert light.manifest.radius == groceries.manifest.radius
    items = groceries.encode_items(["Ground coffee"] * LENGTH)
    np.testing.assert_allclose(light.encode_items(["Ground coffee"]), items[:1, :32], atol=0.1)
    padded = np.where(np.arange(64) < 32, items, 0)[None]
    found = interests(light, items[None, :, :32])
    np.testing.assert_allclose(found, interests(groceries, padded)[..., :32], atol=0.2)
    with pytest.raises(ExportError, match="no feed-forward"):
        lighten(groceries.path, tmp_path / "pruned", int8=False, dim=None, prune=0.5, command="a test")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "nothing to do"),
        ({"int8": True, "fp16": True}, "--int8 and --fp16: expected one"),
        ({"int8": True, "dim": 64, "prune": 0.0}, "--dim is 64: expected 1 to 63"),
        ({"int8": True, "dim": 0, "prune": 0.0}, "--dim is 0"),
        ({"int8": True, "dim": None, "prune": 1.0}, "--prune is 1"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, asked: dict[str, object], said: str) -> None:
    with pytest.raises(ExportError, match=said):
        lighten(GROCERIES, tmp_path / "light", command="a test", **asked)  # type: ignore[arg-type]


def test_a_bundle_cannot_be_written_over_something_else(whole: Encoder, tmp_path: Path) -> None:
    (tmp_path / "thesis").write_text("irreplaceable")
    with pytest.raises(ExportError, match="holds no bundle"):
        lighten(whole.path, tmp_path, int8=True, dim=None, prune=0, command="a test")


def test_costs_are_of_what_a_bundle_has(whole: Encoder) -> None:
    windowed, recurrent = measured([whole, load(GROCERIES)], 1000, rounds=3)
    assert windowed.click_us is None
    for us in (windowed.answer_us, windowed.search_us, recurrent.click_us, recurrent.answer_us):
        assert us is not None
        # Which of the two is less depends on who else uses the machine meanwhile.
        assert min(us) > 0
