"""A trained model becomes a bundle that knows its items by key, and an unknown one by the mean of all."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.extras import needs

torch = pytest.importorskip("torch", reason="torch is not installed (extra train)")
needs("onnxscript", extra="train")

from headwater.encoder.bundle import Origin  # noqa: E402 - after the skip
from headwater_models.bundles import sequence_bundle  # noqa: E402 - needs torch
from headwater_models.bundles.sequence_bundle import Named  # noqa: E402 - needs torch
from headwater_models.networks import ARCHITECTURES  # noqa: E402 - needs torch
from headwater_models.training.sequence_loop import IdModel  # noqa: E402 - needs torch

IDS = ["tea", "coffee", "hose", "decaf", "beans", "milk", "cups"]
ORIGIN = Origin("made up", None, "a test", 0, 0.0, {}, {})


def test_items_are_found_by_id_and_all_vectors_of_a_model_that_scores_by_cosine_have_length_one(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    config, network = ARCHITECTURES["gru4rec"]
    model = IdModel(len(IDS), network(config(dim=8, hidden=8, dropout=0.0)), temperature=0.1)
    bundle = sequence_bundle.write(tmp_path / "bundle", model, IDS, 5, Named("gru4rec", "", ORIGIN))
    vectors = bundle.encode_items([], [*reversed(IDS), "unheard of"])
    np.testing.assert_allclose(vectors[:-1], model.vectors().detach().numpy()[::-1], atol=1e-6)
    mean = vectors[:-1].mean(0)
    np.testing.assert_allclose(vectors[-1], mean / np.linalg.norm(mean), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert bundle.manifest.normalised
    assert (bundle.kind, bundle.log_length, bundle.item_inputs) == ("recurrent", 5, "item_id")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]  # no half-made folder is left


def test_a_second_model_of_one_process_takes_any_number_of_events_too(tmp_path: Path) -> None:
    config, network = ARCHITECTURES["narm"]
    for name in ("first", "second"):
        model = IdModel(len(IDS), network(config(dim=8, hidden=8, dropout=0.0)), temperature=0.1)
        bundle = sequence_bundle.write(tmp_path / name, model, IDS, 20, Named(name, "", ORIGIN))
        for events in (1, 4, 20):
            rows = np.ones((2, events), dtype=np.float32)
            items = np.ones((2, events, 8), dtype=np.float32)
            actions = np.ones((2, events), dtype=np.int64)
            interests, _ = bundle.window(items, actions, rows, rows, np.ones(2, dtype=np.float32))
            assert interests.shape == (2, 1, 8)
