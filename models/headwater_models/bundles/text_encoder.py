"""A text encoder as one ONNX graph from tokens to a vector, beside its tokenizer: what item towers are built on."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.parser
import onnx.version_converter
import onnxruntime as ort
from tokenizers import Tokenizer

from headwater.encoder.bundle import OPSETS, TextInput
from headwater.encoder.readable import MOST_UNKNOWN, Reading
from headwater.encoder.text_graph import TextGraph, no_rows
from headwater.errors import HeadwaterError
from headwater_models.arrays import F32
from headwater_models.bundles.export import OPSET
from headwater_models.progress import Report

# How the vectors of a text's tokens become one, by the names of sentence-transformers.
Pooling = Literal["mean", "cls", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
# The output of a TextEncoder's graph.
POOLED = "pooled"
# Longest text of the check that a graph runs: attention over more tokens takes gigabytes.
_LONGEST_CHECKED = 1024
# protobuf's limit is 2 GiB; the rest is for the nodes and the head.
_MOST_BYTES = 1_900_000_000
# Texts by which it is told whether a catalog can be read.
_SAMPLE = 2_000


class UnfitModel(HeadwaterError):
    """A model that cannot be an item tower as it is: the message gives the reason and the remedy."""


@dataclass(frozen=True)
class TextEncoder:
    """Texts -> vectors. Two encoders of one name and one configuration give the same vectors."""

    name: str
    dim: int
    # input_ids, attention_mask and, where the model has them, token_type_ids, i64[items, tokens] -> pooled f32[items, dim]
    graph: onnx.ModelProto = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    text: TextInput  # prefixes and the longest text
    normalised: bool = False  # vectors have length one
    int8: bool = False  # activations are rounded, so that CPUs differ in the second digit
    notes: tuple[str, ...] = ()  # where pooling, prefixes and the longest text were found

    def vectors(self, texts: Sequence[str], report: Report) -> F32:
        """f32[N, dim] of N items' texts, each read behind the item prefix. Equal texts are encoded once."""
        return self._read(texts, self.text.prefix, report)

    def queries(self, texts: Sequence[str], report: Report) -> F32:
        """f32[N, dim] of N free texts, each read behind the query prefix."""
        return self._read(texts, self.text.query_prefix, report)

    def unreadable(self, texts: Sequence[str]) -> float:
        """The share of texts of whose tokens more are unknown than the encoder can do without; of a sample of many."""
        sample = texts[:: max(1, len(texts) // _SAMPLE)]
        reading = Reading(self.tokenizer)
        tokens = [each.ids for each in self.tokenizer.encode_batch(list(sample), add_special_tokens=False)]
        return float((reading.unknown_shares(tokens) > MOST_UNKNOWN).mean()) if sample else 0.0

    def _read(self, texts: Sequence[str], prefix: str, report: Report, threads: int = 1) -> F32:
        distinct = list(dict.fromkeys(texts))
        place = {text: n for n, text in enumerate(distinct)}
        reader = TextGraph(opened(self.graph, threads), self.tokenizer, self.text)
        what = f"{self.name} reads texts"
        report(what, 0, len(distinct))
        found = reader.vectors(
            reader.tokens(distinct, prefix),
            no_rows(len(distinct)),
            self.dim,
            lambda done: report(what, done, len(distinct)),
        )
        return found[np.fromiter((place[text] for text in texts), dtype=np.int64, count=len(texts))]


def static_encoder(
    name: str,
    table: F32,
    scales: F32,
    tokenizer: Tokenizer,
    text: TextInput,
    notes: tuple[str, ...] = (),
    *,
    fade_tokens: float = math.inf,
) -> TextEncoder:
    """The mean of token vectors: a gather and a sum.

    Args:
        table: int8 or float (vocabulary, dim).
        scales: (vocabulary, 1) by which each token's row is multiplied.
        fade_tokens: a token counts e times less than the one this many places before it.

    Raises UnfitModel: the tokenizer knows more tokens than the table has rows.
    """
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if highest >= len(table):
        raise _too_many_tokens(name, highest + 1, f"{len(table)} token vectors")
    model = parsed(
        f"""
        static (int64[items, tokens] input_ids, int64[items, tokens] attention_mask)
            => (float[items, {table.shape[1]}] {POOLED})
        {{
            real = Cast <to = 1> (attention_mask)
            total = ReduceSum <keepdims = 1> (real, token_axis)
            divisor = Max(total, one)
            scale_stored = Gather(token_scales, input_ids)
            scale_columns = Cast <to = 1> (scale_stored)
            scale = Squeeze(scale_columns, last_axis)
            places = CumSum(real, token_axis)
            log_fading = Mul(places, token_fading)
            fading = Exp(log_fading)
            faded = Mul(real, fading)
            weighed = Mul(faded, scale)
            share = Div(weighed, divisor)
            share_row = Unsqueeze(share, token_axis)
            token_stored = Gather(token_table, input_ids)
            token_vectors = Cast <to = 1> (token_stored)
            mean_row = MatMul(share_row, token_vectors)
            {POOLED} = Squeeze(mean_row, token_axis)
        }}
        """,
        token_table=table,
        token_scales=scales,
        token_fading=np.float32(-1 / fade_tokens),
        token_axis=np.array([1]),
        last_axis=np.array([-1]),
        one=np.float32(1),
    )
    return TextEncoder(name, table.shape[1], model, tokenizer, text, notes=notes)


def gives_one_per_text(model: onnx.ModelProto) -> bool:
    """Whether a graph's outputs are vectors of texts only, so that nothing is left to pool."""
    ranks = {len(port.type.tensor_type.shape.dim) for port in model.graph.output}
    return 2 in ranks and 3 not in ranks


def pooled(model: onnx.ModelProto, pooling: Pooling | None, normalise: bool, source: str) -> onnx.ModelProto:
    """A sentence encoder's graph with one output, `pooled` f32[items, dim], and inputs of our names and types.

    Args:
        model: input_ids, attention_mask (and token_type_ids, position_ids) -> a vector per token, or per text.
        pooling: None if the graph gives a vector per text already.
        normalise: whether vectors get length one.
        source: for messages.

    Raises UnfitModel: an operator set or an input that we cannot serve, no output of the right shape, or too many weights.
    """
    if (held := sum(len(part.raw_data) for part in model.graph.initializer)) > _MOST_BYTES:
        raise UnfitModel(
            f"{source} has {held / 1e9:.1f} GB of weights, expected less than {_MOST_BYTES / 1e9:.1f}, what one ONNX file "
            "holds: take a smaller model, or an ONNX file with its weights in 8 bits"
        )
    model = _served_opset(model, source)
    graph = model.graph
    ports = {port.name: len(port.type.tensor_type.shape.dim) for port in graph.output}
    per_text = [name for name, rank in ports.items() if rank == 2]
    per_token = [name for name, rank in ports.items() if rank == 3]
    if pooling is None and not per_text:
        raise UnfitModel(
            f"{source} gives a vector per token and nothing says how they become one per text: name it, --pooling "
            f"{'|'.join(POOLINGS)} (the model's card says which)"
        )
    if pooling is not None and not per_token:
        raise UnfitModel(
            f"{source} has outputs {', '.join(ports) or 'none'}, expected one with a vector per token, "
            "(items, tokens, dim): leave out --pooling if it gives one per text, or export it for feature extraction"
        )
    _plain_inputs(model, source)
    if pooling is None:
        chosen = "sentence_embedding" if "sentence_embedding" in per_text else per_text[0]
    else:
        chosen = "last_hidden_state" if "last_hidden_state" in per_token else per_token[0]
    given = next(port for port in graph.output if port.name == chosen).type.tensor_type
    dim = given.shape.dim[-1].dim_value
    if not dim:
        raise UnfitModel(
            f"{source}: the output {chosen} does not say how many numbers a vector has: export the model with a fixed width"
        )
    vectors = chosen
    if given.elem_type != onnx.TensorProto.FLOAT:
        vectors = "single_precision"
        append(model, f"{vectors} = Cast <to = 1> ({chosen})")
    if pooling is not None:
        append(model, _POOLS[pooling].format(hidden=vectors), **_POOL_CONSTANTS)
        vectors = "pool_vectors"
    last = unit_length(vectors, POOLED) if normalise else f"{POOLED} = Identity({vectors})"
    append(model, last, **UNIT_CONSTANTS)
    del graph.output[:]
    graph.output.append(onnx.helper.make_tensor_value_info(POOLED, onnx.TensorProto.FLOAT, ["items", dim]))
    return model


def checked(encoder: TextEncoder) -> TextEncoder:
    """The encoder, if it can read its tokenizer's tokens and its longest text.

    Raises UnfitModel: the tokenizer knows more tokens than the model, or the model takes no text of that length.
    """
    try:
        session = opened(encoder.graph)
    except Exception as error:  # ONNX Runtime's exceptions have no common class below Exception
        raise UnfitModel(f"ONNX Runtime cannot load {encoder.name}: {_first_line(error)}") from error
    names = {given.name for given in session.get_inputs()}
    highest = max(encoder.tokenizer.get_vocab(with_added_tokens=True).values(), default=0)

    def run(token: int, count: int) -> F32:
        ids = np.full((1, count), token, dtype=np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        (found,) = session.run([POOLED], {name: given for name, given in feed.items() if name in names})
        return np.asarray(found)

    try:
        found = run(0, 2)
    except Exception as error:
        raise UnfitModel(f"{encoder.name} cannot read a text of two tokens: {_first_line(error)}") from error
    if not np.isfinite(found).all():
        raise UnfitModel(
            f"{encoder.name} gives NaN or infinite vectors: the weights are damaged, or not fp32"
        )
    try:
        run(highest, 2)
    except Exception as error:
        # ONNX Runtime: "idx=31 must be within the inclusive range [-12,11]"
        rows = re.search(r"inclusive range \[-(\d+),", str(error))
        has = f"{int(rows[1]):,}" if rows else "fewer"
        raise _too_many_tokens(encoder.name, highest + 1, f"{has} rows in its embedding") from error
    longest = min(encoder.text.max_tokens, _LONGEST_CHECKED)
    try:
        run(0, longest)
    except Exception as error:
        raise UnfitModel(
            f"{encoder.name} cannot read a text of {longest} tokens: {_first_line(error)}; lower it with --max-tokens"
        ) from error
    return encoder


def parsed(text: str, **constants: object) -> onnx.ModelProto:
    """A checked model from ONNX's text form and its constants by name."""
    graph = onnx.parser.parse_graph(text)
    graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    )
    # IR version 9 goes with opset 18 to 20: older ONNX Runtimes refuse newer ones.
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def append(model: onnx.ModelProto, body: str, **constants: object) -> None:
    """Append nodes in ONNX's text form to a model's graph, and those constants by name that they read."""
    piece = onnx.parser.parse_graph(f"piece (float[n] unread) => (float[n] unmade) {{ {body} }}")
    model.graph.node.extend(piece.node)
    read = {name for node in piece.node for name in node.input}
    known = {constant.name for constant in model.graph.initializer}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value), name)
        for name, value in constants.items()
        if name in read and name not in known
    )


UNIT_CONSTANTS = {"unit_axis": np.array([-1]), "unit_least": np.float32(1e-12)}


def unit_length(given: str, made: str) -> str:
    """The lines that scale the vectors `given` (items, dim) to length one; a vector of zeros stays one."""
    return f"""
        {made}_length = ReduceL2 <keepdims = 1> ({given}, unit_axis)
        {made}_divisor = Max({made}_length, unit_least)
        {made} = Div({given}, {made}_divisor)
    """


_WEIGHTED_SUM = """
    pool_row = Unsqueeze(pool_weight, pool_tokens)
    pool_sum_row = MatMul(pool_row, {hidden})
    pool_sum = Squeeze(pool_sum_row, pool_tokens)
    pool_total = ReduceSum <keepdims = 1> (pool_weight, pool_tokens)
    pool_count = Max(pool_total, pool_one)
"""
_REAL = "pool_weight = Cast <to = 1> (attention_mask)"
# {hidden} (items, tokens, dim) and attention_mask (items, tokens), padded on the right -> pool_vectors (items, dim)
_POOLS: dict[Pooling, str] = {
    "mean": f"""
        {_REAL} {_WEIGHTED_SUM}
        pool_vectors = Div(pool_sum, pool_count)
    """,
    "mean_sqrt_len_tokens": f"""
        {_REAL} {_WEIGHTED_SUM}
        pool_root = Sqrt(pool_count)
        pool_vectors = Div(pool_sum, pool_root)
    """,
    # The n-th token weighs n, as in SGPT.
    "weightedmean": f"""
        pool_real = Cast <to = 1> (attention_mask)
        pool_place = CumSum(pool_real, pool_axis)
        pool_weight = Mul(pool_place, pool_real)
        {_WEIGHTED_SUM}
        pool_vectors = Div(pool_sum, pool_count)
    """,
    "cls": "pool_vectors = Gather <axis = 1> ({hidden}, pool_first)",
    "lasttoken": f"""
        {_REAL}
        pool_total = ReduceSum <keepdims = 1> (pool_weight, pool_tokens)
        pool_count = Max(pool_total, pool_one)
        pool_before = Sub(pool_count, pool_one)
        pool_last = Cast <to = 7> (pool_before)
        pool_vectors = GatherND <batch_dims = 1> ({{hidden}}, pool_last)
    """,
    "max": f"""
        {_REAL}
        pool_padding = Sub(pool_one, pool_weight)
        pool_sunk = Mul(pool_padding, pool_far)
        pool_column = Unsqueeze(pool_sunk, pool_last_axis)
        pool_seen = Add({{hidden}}, pool_column)
        pool_vectors = ReduceMax <keepdims = 0> (pool_seen, pool_tokens)
    """,
}
_POOL_CONSTANTS = {
    "pool_tokens": np.array([1]),
    "pool_axis": np.array(1),
    "pool_last_axis": np.array([-1]),
    "pool_first": np.array(0),
    "pool_one": np.float32(1),
    "pool_far": np.float32(-1e9),
}


def _served_opset(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    """The model in an operator set that workers run."""
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if opset >= OPSETS.stop:
        raise UnfitModel(
            f"{source} has opset {opset}, workers run {OPSETS.start} to {OPSETS.stop - 1}: export it with opset {OPSET}"
        )
    if opset < OPSET:
        try:
            model = onnx.version_converter.convert_version(model, OPSET)
        except Exception as error:  # the converter raises RuntimeError and others, by operator
            raise UnfitModel(
                f"{source} has opset {opset} and cannot be lifted to {OPSET} ({_first_line(error)}): export it with "
                f"opset {OPSET}"
            ) from error
    model.ir_version = 9 if max(opset, OPSET) < 21 else 10
    return model


def _plain_inputs(model: onnx.ModelProto, source: str) -> None:
    """Give the graph the inputs that a worker feeds: ids, mask and types, i64[items, tokens]."""
    graph = model.graph
    given = {port.name: port.type.tensor_type for port in graph.input}
    given = {
        name: port for name, port in given.items() if name not in {one.name for one in graph.initializer}
    }
    fed = ("input_ids", "attention_mask", "token_type_ids")
    strange = sorted(given.keys() - {*fed, "position_ids"})
    if strange or "input_ids" not in given:
        raise UnfitModel(
            f"{source} takes {', '.join(given) or 'nothing'}, expected input_ids, attention_mask and at most token_type_ids "
            "and position_ids: export it as a text encoder (feature extraction)"
        )
    for name, port in given.items():
        fixed = [size.dim_value for size in port.shape.dim if size.HasField("dim_value")]
        if len(port.shape.dim) != 2 or fixed:
            raise UnfitModel(
                f"{source} takes {name} in a fixed shape ({fixed}), expected any number of items and tokens: export it "
                "with dynamic axes"
            )
        if port.elem_type != onnx.TensorProto.INT64 and name != "position_ids":
            _rename_input(graph, name, f"{name}_cast")
            cast = onnx.helper.make_node("Cast", [name], [f"{name}_cast"], to=port.elem_type)
            graph.node.insert(0, cast)
    if "position_ids" in given:
        # Places count from the first token, and padding comes last.
        append(
            model,
            f"""
            place_count = CumSum(attention_mask, place_axis)
            place_of_token = Sub(place_count, place_one)
            position_ids = Cast <to = {given["position_ids"].elem_type}> (place_of_token)
            """,
            place_axis=np.array(1),
            place_one=np.array(1),
        )
        made = [graph.node.pop() for _ in range(3)]
        for node in made:
            graph.node.insert(0, node)
    del graph.input[:]
    names = [name for name in fed if name in given or name == "attention_mask"]
    graph.input.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["items", "tokens"])
        for name in names
    )


def _rename_input(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == old:
                node.input[place] = new


def opened(model: onnx.ModelProto, threads: int = 1) -> ort.InferenceSession:
    """A session of ONNX Runtime on the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _too_many_tokens(name: str, tokens: int, rows: str) -> UnfitModel:
    return UnfitModel(
        f"{name}: the tokenizer knows {tokens:,} tokens and the model has {rows}: they do not belong together; use the "
        "tokenizer.json that came with the model (--tokenizer)"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
