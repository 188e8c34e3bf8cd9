"""How a sentence encoder wants to be read, from the files that sentence-transformers keeps beside its weights.

| file | says |
|---|---|
| `modules.json` | the parts in order: Transformer, Pooling, at times Dense, Normalize |
| `1_Pooling/config.json` | how token vectors become one |
| `sentence_bert_config.json` | the longest text, and whether texts are put in lower case |
| `config_sentence_transformers.json` | prompts: what is read before a query and before a document |
| `tokenizer_config.json`, `config.json` | the longest text that tokenizer and network take |
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from headwater_models.arrays import F32
from headwater_models.bundles.text_encoder import POOLINGS, Pooling, UnfitModel

# The names that models give to the prompt of what is searched, and to that of the search, the usual ones first.
_ITEM_PROMPTS = ("document", "passage", "search_document", "corpus", "item")
_QUERY_PROMPTS = ("query", "search_query", "web_search_query", "s2p_query")
# tokenizer_config.json holds 10^30 where nobody set a length.
_NO_LENGTH = 10**6


@dataclass(frozen=True)
class Configured:
    """How texts are read. None: as the model's own configuration says."""

    pooling: Pooling | None = None
    prefix: str | None = None  # before an item's text
    query_prefix: str | None = None  # before a query
    max_tokens: int | None = None  # longer texts are cut, special tokens included
    tokenizer: Path | None = None  # of a bare ONNX file
    int8: bool = False  # weights per channel, activations dynamically: about twice as fast on CPUs with VNNI


AS_CONFIGURED = Configured()


@dataclass(frozen=True)
class Dense:
    """A linear layer behind the pooling: x @ weight + bias, then tanh if so said."""

    weight: F32  # (inputs, outputs)
    bias: F32 | None  # (outputs,)
    tanh: bool


@dataclass(frozen=True)
class Reading:
    """How texts are read, and which file or option says so; None: nothing says it."""

    pooling: Pooling | None = None
    normalise: bool = True
    dense: tuple[Dense, ...] = ()
    prefix: str | None = None
    query_prefix: str | None = None
    max_tokens: int | None = None
    lower_case: bool = False
    notes: tuple[str, ...] = ()

    def overruled(self, options: Configured) -> "Reading":
        """With what the user says instead. Raises UnfitModel: an option that cannot be."""
        if options.pooling is not None and options.pooling not in POOLINGS:
            raise UnfitModel(f"--pooling is {options.pooling!r}, expected one of {', '.join(POOLINGS)}")
        if options.max_tokens is not None and options.max_tokens < 3:
            raise UnfitModel(
                f"--max-tokens is {options.max_tokens}, expected 3 or more: two of them mark the ends of a text"
            )
        given = {
            "pooling": options.pooling,
            "prefix": options.prefix,
            "query_prefix": options.query_prefix,
            "max_tokens": options.max_tokens,
        }
        said = {name: value for name, value in given.items() if value is not None}
        notes = tuple(f"{name.replace('_', ' ')} {value!r} by option" for name, value in said.items())
        kept = tuple(
            note for note in self.notes if not note.startswith(tuple(n.replace("_", " ") for n in said))
        )
        return replace(self, **said, notes=(*kept, *notes))  # type: ignore[arg-type]


def reading_of(folder: Path) -> Reading:
    """What the files of a model's folder say.

    Raises UnfitModel: a part that we cannot export, or a file that is no JSON object.
    """
    pooling: Pooling | None = None
    normalise, dense, notes = True, [], []
    modules = folder / "modules.json"
    if modules.is_file():
        normalise = False
        for module in _json(modules, list):
            kind, place = str(module.get("type", "")).rsplit(".", 1)[-1], folder / str(module.get("path", ""))
            if kind == "Pooling":
                pooling = _pooling(place / "config.json")
                notes.append(f"pooling {pooling!r} by {(place / 'config.json').relative_to(folder)}")
            elif kind == "Dense":
                dense.append(_dense(place))
            elif kind == "Normalize":
                normalise = True
            elif kind != "Transformer":
                raise UnfitModel(
                    f"{modules} has a part {kind or 'without a type'}, expected Transformer, Pooling, Dense and Normalize: "
                    "choose another model, or export it to ONNX with one vector per text"
                )
    elif (folder / "1_Pooling" / "config.json").is_file():
        pooling = _pooling(folder / "1_Pooling" / "config.json")
        notes.append(f"pooling {pooling!r} by 1_Pooling/config.json")
    prefix, query_prefix, said = _prompts(folder / "config_sentence_transformers.json")
    notes += said
    longest, lower_case, said = _lengths(folder)
    notes += said
    return Reading(pooling, normalise, tuple(dense), prefix, query_prefix, longest, lower_case, tuple(notes))


def _pooling(file: Path) -> Pooling:
    config = _json(file, dict)
    if isinstance(config.get("pooling_mode"), str):  # sentence-transformers 5
        modes = [config["pooling_mode"]]
    else:
        named = {f"pooling_mode_{name}": name for name in POOLINGS}
        named |= {
            "pooling_mode_cls_token": "cls",
            "pooling_mode_mean_tokens": "mean",
            "pooling_mode_max_tokens": "max",
            "pooling_mode_weightedmean_tokens": "weightedmean",
        }
        modes = [named.get(key, key) for key, on in config.items() if key.startswith("pooling_mode") and on]
    found = [mode for mode in POOLINGS if mode in modes]
    if len(modes) != 1 or not found:
        raise UnfitModel(
            f"{file} pools by {' and '.join(modes) or 'nothing'}, expected one of {', '.join(POOLINGS)}: choose another "
            "model, or overrule it with --pooling"
        )
    return found[0]


def _prompts(file: Path) -> tuple[str | None, str | None, list[str]]:
    """Item prefix, query prefix, and what was found."""
    if not file.is_file():
        return "", "", ["no prefixes: no config_sentence_transformers.json"]
    config = _json(file, dict)
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise UnfitModel(f"{file} has prompts of type {type(prompts).__name__}, expected texts by name")
    usual = str(prompts.get(config.get("default_prompt_name"), ""))
    item, query = (
        next((str(prompts[name]) for name in names if prompts.get(name) is not None), usual)
        for names in (_ITEM_PROMPTS, _QUERY_PROMPTS)
    )
    return item, query, [f"prefix {item!r} and query prefix {query!r} by {file.name}"]


def _lengths(folder: Path) -> tuple[int | None, bool, list[str]]:
    """The longest text in tokens, whether texts are put in lower case, and what was found."""
    lengths = {}
    lower_case = False
    if (file := folder / "sentence_bert_config.json").is_file():
        config = _json(file, dict)
        lower_case = bool(config.get("do_lower_case"))
        lengths[file.name] = config.get("max_seq_length")
    if not lengths.get("sentence_bert_config.json"):
        for name, field in (
            ("tokenizer_config.json", "model_max_length"),
            ("config.json", "max_position_embeddings"),
        ):
            if (file := folder / name).is_file():
                lengths[name] = _json(file, dict).get(field)
    known = {
        name: int(length)
        for name, length in lengths.items()
        if isinstance(length, int | float) and 0 < length < _NO_LENGTH
    }
    if not known:
        return None, lower_case, []
    name = min(known, key=known.__getitem__)
    return known[name], lower_case, [f"max tokens {known[name]} by {name}"]


def _dense(folder: Path) -> Dense:
    config = _json(folder / "config.json", dict)
    activation = str(config.get("activation_function", "")).rsplit(".", 1)[-1]
    if activation not in ("Tanh", "Identity"):
        raise UnfitModel(
            f"{folder / 'config.json'} has the activation {activation or 'none'}, expected Tanh or Identity: choose another "
            "model, or export it to ONNX with one vector per text"
        )
    file = folder / "model.safetensors"
    if not file.is_file():
        raise UnfitModel(f"{folder} has no model.safetensors: save the model with safetensors")
    from safetensors.numpy import load_file

    tensors = load_file(file)
    weight, bias = tensors["linear.weight"], tensors.get("linear.bias")
    return Dense(
        weight.T.astype(np.float32), None if bias is None else bias.astype(np.float32), activation == "Tanh"
    )


def _json(file: Path, kind: type) -> Any:
    try:
        found = msgspec.json.decode(file.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise UnfitModel(f"cannot read {file} ({error}): save or download the model again") from error
    if not isinstance(found, kind) or (
        isinstance(found, list) and not all(isinstance(x, dict) for x in found)
    ):
        raise UnfitModel(
            f"{file} holds {type(found).__name__}, expected a JSON {'array of objects' if kind is list else 'object'}: save "
            "or download the model again"
        )
    return found
