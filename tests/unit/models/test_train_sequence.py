"""`headwater train` from a file of events to a bundle with its figures."""

from pathlib import Path

import pytest

from tests.support.extras import needs

torch = pytest.importorskip("torch", reason="torch is not installed (extra train)")
needs("onnxscript", extra="train")

from headwater.encoder.runtime import load  # noqa: E402 - after the skip
from headwater_models import commands  # noqa: E402 - needs torch
from tests.support import cycles  # noqa: E402 - after the skip
from tests.support.checkout import GROCERIES  # noqa: E402 - after the skip


def test_a_bundle_comes_with_its_figures_and_says_where_it_is_from(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    results = commands.train_sequence(
        "gru4rec", cycles.dataset(), "leave-one-out", out, epochs=1, seed=3, command="headwater train gru4rec"
    )
    bundle = load(out)
    origin = bundle.manifest.origin
    assert set(origin.figures) == set(results.methods) >= {"gru4rec-cycles", "popular"}
    found = origin.figures["gru4rec-cycles"]["all"]
    assert found == {
        "targets": 150,
        "hit_at_10": round(results.methods["gru4rec-cycles"]["all"].hit.value, 4),
        "ndcg_at_10": round(results.methods["gru4rec-cycles"]["all"].ndcg.value, 4),
    }
    assert (origin.seed, origin.command, origin.data_sha256) == (3, "headwater train gru4rec", "made up")
    assert bundle.item_inputs == "item_id"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]  # the checkpoint is gone


def test_the_shipped_bundle_is_read_as_it_was() -> None:
    groceries = load(GROCERIES)
    assert groceries.id == "groceries-0bfb677a520a"
    figures = groceries.manifest.origin.figures["groceries"]["discovery"]
    assert figures == {"targets": 5_075.0, "hit_at_20": 0.0298, "ndcg_at_20": 0.0112}
