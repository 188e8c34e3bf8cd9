"""Static text encoders: a vector per token and their mean, from the shipped starter or distilled from a sentence encoder.

A gather and a sum read ten thousand texts a second on one thread, where a small transformer reads a hundred. Distilled
after Model2Vec (github.com/MinishLab/model2vec): each token alone, reduced by PCA, weighed by how rare it is.
"""

from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
from tokenizers import Tokenizer

from headwater.encoder.bundle import TextInput, manifest_bytes, manifest_of
from headwater.encoder.text_graph import TextGraph, no_rows
from headwater_models.arrays import F32
from headwater_models.bundles.sentence_config import Configured
from headwater_models.bundles.text_encoder import (
    TextEncoder,
    UnfitModel,
    checked,
    opened,
    static_encoder,
)
from headwater_models.progress import Report

STATIC = "static"
_STARTER = Path(__file__).parents[1] / "starter"
# Longer texts cost next to nothing here; the vector of a very long one says little.
_MOST_TOKENS = 512
# Directions of a distilled vector, as in Model2Vec.
_DIM = 256


def of_starter(configured: Configured) -> TextEncoder:
    """The token vectors of the shipped starter.

    Raises UnfitModel: the starter has no such table, or an option that a static encoder does not have.
    """
    _refuse_options(configured)
    manifest = manifest_of(_STARTER, manifest_bytes(_STARTER))
    if manifest.text is None:
        raise UnfitModel(f"{_STARTER} reads no text: install headwater again")
    tokenizer = Tokenizer.from_file(str(_STARTER / manifest.text.tokenizer))
    tokens = tokenizer.get_vocab_size(with_added_tokens=True)
    graph = onnx.load(_STARTER / manifest.graphs.item).graph
    of_tokens = [part for part in graph.initializer if len(part.dims) == 2 and part.dims[0] == tokens]
    found = {part.dims[1]: onnx.numpy_helper.to_array(part) for part in of_tokens}
    if len(found) != 2 or 1 not in found:
        raise UnfitModel(
            f"{_STARTER} has no table of token vectors with a scale each: install headwater again"
        )
    scales = found.pop(1)
    (table,) = found.values()
    text = _reading(manifest.text, configured, manifest.text.max_tokens)
    note = f"token vectors of {manifest.name}, texts cut at {text.max_tokens} tokens"
    (fading,) = (part for part in graph.initializer if part.name == "token_fading")
    fade_tokens = -1 / float(onnx.numpy_helper.to_array(fading))
    return checked(static_encoder(STATIC, table, scales, tokenizer, text, (note,), fade_tokens=fade_tokens))


def distilled(teacher: TextEncoder, configured: Configured, report: Report) -> TextEncoder:
    """The token vectors of a sentence encoder, in its own languages.

    Raises UnfitModel: an option that a static encoder does not have.
    """
    _refuse_options(configured)
    tokenizer = teacher.tokenizer
    before, after = _around(tokenizer)
    count = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    reader = TextGraph(opened(teacher.graph), tokenizer, teacher.text)
    what = f"{teacher.name} reads its {count:,} tokens"
    report(what, 0, count)
    texts = [[*before, token, *after] for token in range(count)]
    vectors = reader.vectors(texts, no_rows(count), teacher.dim, lambda done: report(what, done, count))
    special = sorted({*before, *after, *tokenizer.get_added_tokens_decoder()})
    plain = np.setdiff1d(np.arange(count), special)
    centred = vectors - vectors[plain].mean(axis=0)
    _, axes = np.linalg.eigh(np.cov(centred[plain], rowvar=False))
    reduced = centred @ axes[:, ::-1][:, : min(_DIM, teacher.dim)]
    # Vocabularies are roughly in order of frequency, and frequent tokens say little (Zipf).
    reduced *= (np.log1p(np.arange(count) / 100.0) / np.log1p(count / 100.0))[:, None]
    reduced[special] = 0.0
    table, scales = quantised(reduced.astype(np.float32))
    text = _reading(teacher.text, configured, _MOST_TOKENS)
    note = f"{count:,} token vectors of {teacher.name}, texts cut at {text.max_tokens} tokens"
    return checked(static_encoder(f"{STATIC}-{teacher.name}", table, scales, tokenizer, text, (note,)))


def quantised(table: F32) -> tuple[np.ndarray, np.ndarray]:
    """One byte a value and one scale a token: i8 (vocabulary, dim) and f16 (vocabulary, 1). Cosine above .9999."""
    scales = (np.abs(table).max(axis=1, keepdims=True) / 127 + 1e-12).astype(np.float16)
    stored = np.clip(np.round(table / np.maximum(scales.astype(np.float32), 1e-7)), -127, 127)
    return stored.astype(np.int8), scales


def _reading(text: TextInput, configured: Configured, longest: int) -> TextInput:
    return TextInput(
        "tokenizer.json",
        configured.max_tokens or longest,
        special_tokens=False,
        pad_id=text.pad_id,
        prefix=configured.prefix or "",
        query_prefix=configured.query_prefix or "",
    )


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    bare, whole = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    for at in range(len(whole) - len(bare) + 1):
        if whole[at : at + len(bare)] == bare:
            return whole[:at], whole[at + len(bare) :]
    return [], []


def _refuse_options(configured: Configured) -> None:
    for option, given in (("--pooling", configured.pooling), ("--tokenizer", configured.tokenizer)):
        if given is not None:
            raise UnfitModel(
                f"{option} {given} goes with a sentence encoder: the static one is the mean of its own tokens"
            )
    if configured.int8:
        raise UnfitModel("--int8 goes with a sentence encoder: the static one is in 8 bits already")
