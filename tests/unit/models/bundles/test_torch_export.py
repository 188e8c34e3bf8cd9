"""Torch and ONNX Runtime agree on towers and user encoders, and a difference is noticed."""

import numpy as np
import pytest

from tests.support.extras import needs

torch = pytest.importorskip("torch", reason="torch is not installed (extra train)")
needs("onnxscript", extra="train")

from headwater.encoder.bundle import ItemRows, Origin, TextInput  # noqa: E402 - after the skip
from headwater.encoder.features import item_key  # noqa: E402 - after the skip
from headwater.encoder.runtime import Encoder  # noqa: E402 - after the skip
from headwater_models.bundles import export, torch_export  # noqa: E402 - after the skip
from headwater_models.networks.groceries_encoder import GroceriesEncoder, GroceriesEncoderConfig  # noqa: E402 - needs torch
from headwater_models.networks.static_tower import StaticTower, StaticTowerConfig, Whitening  # noqa: E402 - needs torch
from tests.support.checkout import GROCERIES  # noqa: E402 - after the skip

VOCABULARY = 30_522


@pytest.fixture(scope="module")
def parts() -> tuple[StaticTower, GroceriesEncoder]:
    """Untrained modules with every weight in play."""
    torch.manual_seed(0)
    table = np.random.default_rng(0).normal(size=(VOCABULARY, 32)).astype(np.float32)
    tower = StaticTower(
        StaticTowerConfig(token_dim=32, hidden=16, rows=3, residual_dim=4), table, Whitening.of(table)
    )
    encoder = GroceriesEncoder(GroceriesEncoderConfig(state=128, hidden=32))
    for module in (tower, encoder):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return tower.eval(), encoder.eval()


@pytest.fixture(scope="module")
def exported(
    parts: tuple[StaticTower, GroceriesEncoder], tmp_path_factory: pytest.TempPathFactory
) -> Encoder:
    tower, encoder = parts
    folder = tmp_path_factory.mktemp("bundle")
    torch_export.save_tower(tower, folder / "item.onnx")
    torch_export.save_recurrent(encoder, folder)
    (folder / "tokenizer.json").write_bytes((GROCERIES / "tokenizer.json").read_bytes())
    keys = np.sort(np.array([item_key(name) for name in ("a", "b", "c")], dtype="<u8"))
    keys.tofile(folder / "items.u64")
    origin = Origin("nothing", None, "a test", 0, 0.0, {}, {})
    return export.write_manifest(
        folder,
        export.Parts(
            name="untrained",
            summary="random weights",
            dim=64,
            state_size=128,
            text=TextInput("tokenizer.json", 64, special_tokens=False, pad_id=0),
            rows=ItemRows("items.u64", 3),
            origin=origin,
        ),
    )


def test_onnx_agrees_with_torch(exported: Encoder, parts: tuple[StaticTower, GroceriesEncoder]) -> None:
    tower, encoder = parts
    torch_export.check_tower(exported, tower, ["Ground coffee", "", "a much longer text about garden tools"])
    torch_export.check_recurrent(exported, encoder)


def test_a_graph_does_not_say_where_the_code_lay_that_made_it(exported: Encoder) -> None:
    for graph in ("item.onnx", "step.onnx", "read.onnx"):
        assert b".py" not in (exported.path / graph).read_bytes()


def test_a_difference_between_onnx_and_torch_is_an_error(exported: Encoder) -> None:
    other = GroceriesEncoder(GroceriesEncoderConfig(state=128, hidden=32)).eval()
    with pytest.raises(AssertionError, match="differ by"):
        torch_export.check_recurrent(exported, other)


def test_a_known_item_has_its_own_numbers_and_an_unknown_one_none(
    exported: Encoder, parts: tuple[StaticTower, GroceriesEncoder]
) -> None:
    texts = ["Ground coffee"] * 4
    vectors = exported.encode_items(texts, ["a", "b", "c", "unknown"])
    np.testing.assert_array_equal(vectors[3:], exported.encode_items(texts[:1]))
    assert len(np.unique(vectors.round(4), axis=0)) == 4
    tower, _ = parts
    row = 1 + sorted(["a", "b", "c"], key=item_key).index("b")
    own = torch.cat([tower.spread(tower.residual.weight[row]), tower.bias.weight[row]]).detach().numpy()
    np.testing.assert_allclose(vectors[1] - vectors[3], own, atol=5e-3)  # half precision


def test_the_quantised_table_points_where_the_float_table_does() -> None:
    table = np.random.default_rng(1).normal(size=(500, 64)).astype(np.float32)
    table *= np.random.default_rng(2).exponential(size=(500, 1)).astype(np.float32)
    tower = StaticTower(StaticTowerConfig(token_dim=64), table, Whitening.of(table))
    restored = (tower.table.float() * tower.scales.float()).numpy()
    assert export.cosines(restored, table).min() > 0.9998


def test_whitened_vectors_have_covariance_one() -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(4000, 8)) @ rng.normal(size=(8, 8)) + 3).astype(np.float32)
    whitening = Whitening.of(vectors, shrink=0.0)
    white = (vectors - whitening.mean) @ whitening.matrix
    np.testing.assert_allclose(np.cov(white, rowvar=False), np.eye(8), atol=1e-2)
