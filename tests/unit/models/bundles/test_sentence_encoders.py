"""Sentence encoders are read as their own files say, or as the options do; what nothing says is an error."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.extras import needs

needs("onnx", extra="train")

import onnx  # noqa: E402 - after the skip
import onnx.helper  # noqa: E402 - after the skip
import onnx.numpy_helper  # noqa: E402 - after the skip

from headwater_models.bundles.language_model import (  # noqa: E402 - needs onnx
    Configured,
    ModelMissing,
    open_language_model,
)
from headwater_models.bundles.text_encoder import POOLINGS, TextEncoder, UnfitModel  # noqa: E402 - needs onnx
from headwater_models.commands import export_lm  # noqa: E402 - needs onnx
from headwater_models.progress import silent  # noqa: E402 - after the skip
from tests.support.text_encoders import (  # noqa: E402 - needs onnx
    WORDS,
    embedding,
    network,
    save,
    word_tokenizer,
)

SAID = Configured(pooling="mean", prefix="", query_prefix="", max_tokens=16)
MODULES = "sentence_transformers.models."


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("bare"))


def folder(
    place: Path, *, parts: tuple[str, ...] = ("Transformer", "Pooling", "Normalize"), **files: object
) -> Path:
    """A folder as sentence-transformers saves it, with a ready network; `files`: JSON by name, `__` for a slash."""
    save(place)
    listed = [
        {"path": "" if part == "Transformer" else f"1_{part}", "type": MODULES + part} for part in parts
    ]
    usual = {
        "config": {},
        "modules": listed,
        "1_Pooling__config": {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True},
        "sentence_bert_config": {"max_seq_length": 8, "do_lower_case": False},
    }
    for name, content in (usual | files).items():
        file = place / f"{name.replace('__', '/')}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))
    return place


def tokens_of(encoder: TextEncoder, text: str) -> np.ndarray:
    """(tokens, dim) what the tiny network gives for a text between [CLS] and [SEP]."""
    ids = [WORDS.index(word) for word in ("[CLS]", *text.split(), "[SEP]")]
    return embedding()[ids] + 0.1 * np.arange(1, len(ids) + 1, dtype=np.float32)[:, None]


EXPECTED = {
    "mean": lambda x: x.mean(0),
    "cls": lambda x: x[0],
    "lasttoken": lambda x: x[-1],
    "max": lambda x: x.max(0),
    "mean_sqrt_len_tokens": lambda x: x.sum(0) / len(x) ** 0.5,
    "weightedmean": lambda x: np.average(x, axis=0, weights=np.arange(1, len(x) + 1)),
}


@pytest.mark.parametrize("pooling", POOLINGS)
def test_each_pooling_makes_one_vector_of_a_texts_tokens_and_leaves_padding_out(
    bare: Path, pooling: str
) -> None:
    encoder = open_language_model(str(bare), replace(SAID, pooling=pooling))  # type: ignore[arg-type]
    texts = ["tea", "coffee beans garden hose", ""]
    wanted = np.stack([EXPECTED[pooling](tokens_of(encoder, text)) for text in texts])
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.vectors(texts, silent), wanted, atol=1e-5)


def test_a_folder_is_read_as_its_files_say(tmp_path: Path) -> None:
    encoder = open_language_model(
        str(
            folder(
                tmp_path / "model",
                parts=("Transformer", "Pooling"),
                **{
                    "1_Pooling__config": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
                    "sentence_bert_config": {"max_seq_length": 5},
                    "config_sentence_transformers": {"prompts": {"query": "query: ", "passage": "passage: "}},
                },
            )
        )
    )
    assert (encoder.text.prefix, encoder.text.query_prefix, encoder.text.max_tokens) == (
        "passage: ",
        "query: ",
        5,
    )
    assert not encoder.normalised
    # CLS is the first token whatever follows, and without Normalize it keeps its length.
    np.testing.assert_allclose(encoder.vectors(["tea"], silent)[0], embedding()[2] + 0.1, atol=1e-5)
    assert len(encoder.notes) == 3


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, "lasttoken"),
        ({"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
    ],
)
def test_old_and_new_names_of_poolings_are_known(tmp_path: Path, config: object, pooling: str) -> None:
    encoder = open_language_model(str(folder(tmp_path / "model", **{"1_Pooling__config": config})))
    assert f"pooling '{pooling}' by 1_Pooling/config.json" in encoder.notes


def test_options_overrule_the_files(tmp_path: Path) -> None:
    options = Configured(pooling="max", prefix="item: ", max_tokens=4)
    encoder = open_language_model(str(folder(tmp_path / "model")), options)
    assert encoder.text.prefix == "item: "
    assert encoder.text.max_tokens == 4
    assert "pooling 'max' by option" in encoder.notes
    assert not any("mean" in note for note in encoder.notes)


def test_one_prompt_for_all_is_read_before_items_and_queries(tmp_path: Path) -> None:
    prompts = {"prompts": {"all": "represent: "}, "default_prompt_name": "all"}
    encoder = open_language_model(str(folder(tmp_path / "model", config_sentence_transformers=prompts)))
    assert encoder.text.prefix == encoder.text.query_prefix == "represent: "


def test_a_dense_layer_behind_the_pooling_is_part_of_the_encoder(tmp_path: Path) -> None:
    safetensors = pytest.importorskip(
        "safetensors.numpy", reason="safetensors is not installed (extra export)"
    )
    model = folder(
        tmp_path / "model",
        parts=("Transformer", "Pooling", "Dense"),
        **{"1_Dense__config": {"activation_function": "torch.nn.modules.activation.Tanh"}},
    )
    weight, bias = np.ones((2, 6), dtype=np.float32), np.array([0.5, -0.5], dtype=np.float32)
    safetensors.save_file(
        {"linear.weight": weight, "linear.bias": bias}, model / "1_Dense" / "model.safetensors"
    )
    encoder = open_language_model(str(model))
    assert encoder.dim == 2
    wanted = np.tanh(tokens_of(encoder, "tea").mean(0) @ weight.T + bias)
    np.testing.assert_allclose(encoder.vectors(["tea"], silent)[0], wanted, atol=1e-5)


def test_a_jar_holds_network_and_tokenizer(bare: Path, tmp_path: Path) -> None:
    jar = tmp_path / "encoder.jar"
    with zipfile.ZipFile(jar, "w") as packed:
        packed.write(bare, "deep/tiny.onnx")
        packed.write(bare.with_name("tokenizer.json"), "tiny-tokenizer.json")
    encoder = open_language_model(str(jar), SAID)
    expected = open_language_model(str(bare), SAID).vectors(["coffee"], silent)
    np.testing.assert_array_equal(encoder.vectors(["coffee"], silent), expected)
    with zipfile.ZipFile(tmp_path / "half.jar", "w") as packed:
        packed.write(bare, "tiny.onnx")
    assert "holds 1 ONNX files and 0 tokenizers" in refused(tmp_path / "half.jar")
    with zipfile.ZipFile(jar, "a") as packed:
        packed.write(bare, "another.onnx")
    with pytest.raises(ModelMissing, match="holds 2 ONNX files and 1 tokenizers, expected one of each"):
        open_language_model(str(jar), SAID)


def test_an_old_network_with_other_inputs_is_lifted_to_what_workers_run(tmp_path: Path, bare: Path) -> None:
    model = network(opset=14)
    for port in model.graph.input:
        port.type.tensor_type.elem_type = onnx.TensorProto.INT32
    own = next(node for node in model.graph.node if node.op_type == "Add")
    own.input[0] = "placed"
    model.graph.node.insert(0, onnx.helper.make_node("Cast", ["position_ids"], ["position_as_float"], to=1))
    model.graph.node.insert(
        1, onnx.helper.make_node("Unsqueeze", ["position_as_float", "last"], ["position_column"])
    )
    gather = next(node for node in model.graph.node if node.op_type == "Gather")
    model.graph.node.insert(
        list(model.graph.node).index(gather) + 1,
        onnx.helper.make_node("Add", [gather.output[0], "position_column"], ["placed"]),
    )
    model.graph.input.append(
        onnx.helper.make_tensor_value_info("position_ids", onnx.TensorProto.INT64, ["items", "tokens"])
    )
    onnx.save(model, tmp_path / "old.onnx")
    options = replace(SAID, tokenizer=bare.with_name("tokenizer.json"), pooling="lasttoken")
    encoder = open_language_model(str(tmp_path / "old.onnx"), options)
    found = encoder.vectors(["coffee beans", "tea"], silent)
    # Positions count from 0, so the last of four tokens has 3 more, that of three 2 more.
    wanted = np.stack([tokens_of(encoder, "coffee beans")[-1] + 3, tokens_of(encoder, "tea")[-1] + 2])
    np.testing.assert_allclose(found, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-5)


def test_a_network_that_gives_a_vector_per_text_needs_no_pooling(bare: Path, tmp_path: Path) -> None:
    model = network()
    model.graph.node.append(
        onnx.helper.make_node("ReduceSum", ["last_hidden_state", "first"], ["sentence_embedding"], keepdims=0)
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "first"))
    model.graph.output[0].CopyFrom(
        onnx.helper.make_tensor_value_info("sentence_embedding", onnx.TensorProto.FLOAT, ["items", 6])
    )
    onnx.save(model, tmp_path / "whole.onnx")
    options = Configured(prefix="", query_prefix="", max_tokens=9, tokenizer=bare.with_name("tokenizer.json"))
    wanted = tokens_of(open_language_model(str(tmp_path / "whole.onnx"), options), "tea").sum(0)
    found = open_language_model(str(tmp_path / "whole.onnx"), options).vectors(["tea"], silent)[0]
    np.testing.assert_allclose(found, wanted / np.linalg.norm(wanted), atol=1e-5)
    assert "leave out --pooling" in refused(tmp_path / "whole.onnx", replace(options, pooling="mean"))
    onnx.save(model, folder(tmp_path / "model") / "model.onnx")
    assert "pooled by the network itself" in open_language_model(str(tmp_path / "model")).notes


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("no route"), "the Hugging Face hub cannot be reached (ConnectionError)"),
        (TimeoutError(), "the Hugging Face hub cannot be reached (TimeoutError)"),
        (type("RepositoryNotFoundError", (Exception,), {})(), "has none of that name, or a private one"),
    ],
)
def test_why_the_hub_gave_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (extra export)")

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(hub, "snapshot_download", fail)
    assert message in refused(Path("owner/model"), Configured())


def test_a_network_in_half_precision_is_pooled_in_single(bare: Path, tmp_path: Path) -> None:
    model = network()
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(
        onnx.helper.make_node("Cast", ["before"], ["last_hidden_state"], to=onnx.TensorProto.FLOAT16)
    )
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(model, tmp_path / "half.onnx")
    options = replace(SAID, tokenizer=bare.with_name("tokenizer.json"))
    found = open_language_model(str(tmp_path / "half.onnx"), options).vectors(["coffee"], silent)
    np.testing.assert_allclose(
        found, open_language_model(str(bare), SAID).vectors(["coffee"], silent), atol=2e-3
    )


def test_texts_that_are_none_have_no_vectors(bare: Path) -> None:
    encoder = open_language_model(str(bare), SAID)
    assert encoder.vectors([], silent).shape == (0, 6)
    assert np.isfinite(encoder.vectors(["", "??"], silent)).all()


def test_longer_texts_than_the_network_takes_are_refused(bare: Path, tmp_path: Path) -> None:
    model = network()
    # Places beyond the fourth have no row.
    model.graph.node.append(onnx.helper.make_node("Cast", ["place"], ["row"], to=onnx.TensorProto.INT64))
    model.graph.node.append(onnx.helper.make_node("Gather", ["places", "row"], ["of_place"]))
    next(node for node in model.graph.node if node.output[0] == "last_hidden_state").output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Add", ["before", "of_place"], ["last_hidden_state"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((5, 6), dtype=np.float32), "places"))
    onnx.save(model, tmp_path / "short.onnx")
    options = replace(SAID, tokenizer=bare.with_name("tokenizer.json"))
    message = refused(tmp_path / "short.onnx", options)
    assert "cannot read a text of 16 tokens" in message
    assert "--max-tokens" in message
    assert open_language_model(str(tmp_path / "short.onnx"), replace(options, max_tokens=4)).dim == 6


def refused(model: Path, said: Configured = SAID) -> str:
    with pytest.raises((UnfitModel, ModelMissing)) as caught:
        open_language_model(str(model), said)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_a_bare_network_does_not_say_must_be_said(bare: Path) -> None:
    message = refused(bare, Configured(prefix=""))
    assert all(option in message for option in ("--pooling", "--query-prefix", "--max-tokens"))
    assert "--prefix" not in message.replace("--query-prefix", "")


def test_a_folder_without_a_pooling_is_refused(tmp_path: Path) -> None:
    model = folder(tmp_path / "model")
    for file in ("modules.json", "1_Pooling/config.json"):
        (model / file).unlink()
    assert "--pooling mean|cls|lasttoken" in refused(model, Configured())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"1_Pooling__config": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}},
            "pools by cls and mean",
        ),
        (
            {"1_Pooling__config": {"pooling_mode": "attention"}},
            "pools by attention, expected one of mean, cls",
        ),
        (
            {"modules": [{"type": MODULES + "CNN", "path": "1_CNN"}]},
            "has a part CNN, expected Transformer, Pooling",
        ),
        ({"modules": {}}, "holds dict, expected a JSON array of objects"),
        ({"config_sentence_transformers": {"prompts": ["query: "]}}, "has prompts of type list"),
        ({"sentence_bert_config": {}}, "say --max-tokens"),
    ],
    ids=["two poolings", "unknown pooling", "unknown part", "no list", "prompts without names", "no length"],
)
def test_a_configuration_that_cannot_be_followed_is_named(
    tmp_path: Path, files: dict[str, object], message: str
) -> None:
    assert message in refused(folder(tmp_path / "model", **files), Configured())


def test_a_tokenizer_that_does_not_fit_is_refused(bare: Path, tmp_path: Path) -> None:
    word_tokenizer([*WORDS, *(f"word{n}" for n in range(20))]).save(str(tmp_path / "larger.json"))
    message = refused(bare, replace(SAID, tokenizer=tmp_path / "larger.json"))
    assert "the tokenizer knows 32 tokens and the model has 12 rows in its embedding" in message
    (tmp_path / "broken.json").write_text("{}")
    assert "cannot read the tokenizer" in refused(bare, replace(SAID, tokenizer=tmp_path / "broken.json"))
    assert "there is no tokenizer" in refused(bare, replace(SAID, tokenizer=tmp_path / "absent.json"))


def test_a_file_that_is_no_text_encoder_is_refused(bare: Path, tmp_path: Path) -> None:
    tokenizer = replace(SAID, tokenizer=bare.with_name("tokenizer.json"))
    (tmp_path / "torn.onnx").write_bytes(bare.read_bytes()[:100])
    assert "is no ONNX model" in refused(tmp_path / "torn.onnx", tokenizer)
    assert "there is no file" in refused(tmp_path / "absent.onnx", tokenizer)
    image = network()
    image.graph.input[0].name = "pixel_values"
    onnx.save(image, tmp_path / "image.onnx")
    assert "takes pixel_values" in refused(tmp_path / "image.onnx", tokenizer)
    fixed = network()
    fixed.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 128
    onnx.save(fixed, tmp_path / "fixed.onnx")
    assert "in a fixed shape ([128])" in refused(tmp_path / "fixed.onnx", tokenizer)
    onnx.save(network(opset=25), tmp_path / "new.onnx")
    assert "has opset 25, workers run 17 to 21" in refused(tmp_path / "new.onnx", tokenizer)
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refused(tmp_path / "empty")
    (tmp_path / "text.jar").write_text("no archive")
    assert "is no zip archive" in refused(tmp_path / "text.jar")


def test_an_installed_package_without_a_model_is_told_apart_from_one_that_is_absent() -> None:
    assert "the installed package 'msgspec' holds no model" in refused(Path("msgspec"))


def test_an_exported_encoder_keeps_how_it_is_read(bare: Path, tmp_path: Path) -> None:
    bundle = export_lm(
        str(bare),
        tmp_path / "bundle",
        pooling="cls",
        prefix="passage: ",
        query_prefix="query: ",
        max_tokens=9,
    )
    text = bundle.manifest.text
    assert text is not None
    assert (text.prefix, text.query_prefix, text.max_tokens) == ("passage: ", "query: ", 9)
    assert bundle.manifest.normalised
    assert bundle.forgets
    assert "pooling 'cls' by option" in bundle.manifest.origin.notes


def test_a_text_has_one_vector_whatever_is_read_beside_it_even_in_int8(bare: Path, tmp_path: Path) -> None:
    model = network()
    onnx.save(with_int8_layer(model), tmp_path / "int8.onnx")
    options = replace(SAID, tokenizer=bare.with_name("tokenizer.json"))
    encoder = open_language_model(str(tmp_path / "int8.onnx"), options)
    texts = ["tea", "coffee", "shoes", "garden hose"]
    alone = np.concatenate([encoder.vectors([text], silent) for text in texts])
    np.testing.assert_array_equal(encoder.vectors(texts, silent), alone)
    assert encoder.int8


def with_int8_layer(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network with a product in 8 bits behind it, whose scale is that of the largest number in the call."""
    weight = np.random.default_rng(3).integers(-100, 100, (6, 6)).astype(np.int8)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
    model.graph.node[-1].output[0] = "before"
    make = onnx.helper.make_node
    model.graph.node.extend(
        [
            make("DynamicQuantizeLinear", ["before"], ["stored", "scale", "zero"]),
            make("MatMulInteger", ["stored", "weight", "zero"], ["whole"]),
            make("Cast", ["whole"], ["numbers"], to=onnx.TensorProto.FLOAT),
            make("Mul", ["numbers", "scale"], ["last_hidden_state"]),
        ]
    )
    return model
