"""Tiny sentence encoders: a vocabulary of a few words and a network of two operators."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.parser
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "coffee",
    "tea",
    "beans",
    "garden",
    "hose",
    "shoes",
    "query:",
    "passage:",
]


def word_tokenizer(words: Sequence[str] = WORDS) -> Tokenizer:
    """A token per word, lower case, between [CLS] and [SEP]."""
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


def embedding(vocabulary: int = len(WORDS), dim: int = 6) -> np.ndarray:
    """The vector of each token (vocabulary, dim)."""
    return np.random.default_rng(0).normal(size=(vocabulary, dim)).astype(np.float32)


def network(vocabulary: int = len(WORDS), dim: int = 6, opset: int = 18) -> onnx.ModelProto:
    """A vector per token: its own, and for the n-th token n tenths more."""
    graph = onnx.parser.parse_graph(
        f"""
        tiny (int64[items, tokens] input_ids, int64[items, tokens] attention_mask)
            => (float[items, tokens, {dim}] last_hidden_state)
        {{
            own = Gather(embedding, input_ids)
            real = Cast <to = 1> (attention_mask)
            place = CumSum(real, axis)
            tenths = Mul(place, tenth)
            column = Unsqueeze(tenths, last)
            last_hidden_state = Add(own, column)
        }}
        """
    )
    constants = {
        "embedding": embedding(vocabulary, dim),
        "axis": np.array(1),
        "tenth": np.float32(0.1),
        "last": np.array([-1]),
    }
    graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)


def save(folder: Path, **sizes: int) -> Path:
    """model.onnx with its tokenizer.json beside it; returns the ONNX file."""
    folder.mkdir(parents=True, exist_ok=True)
    word_tokenizer().save(str(folder / "tokenizer.json"))
    onnx.save(network(**sizes), folder / "model.onnx")
    return folder / "model.onnx"
