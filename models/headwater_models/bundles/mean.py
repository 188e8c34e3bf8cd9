"""The training-free user encoder: a decayed, action-weighted mean of item vectors, over any item tower.

The cosine of user and item, kept up incrementally. The state is the weighted sum; the interest is its direction.
"""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx.helper

from headwater.encoder.bundle import Graphs
from headwater.encoder.runtime import Encoder, load
from headwater_models.bundles import export
from headwater_models.bundles.mean_config import MeanConfig
from headwater_models.bundles.text_encoder import parsed


def step_graph(dim: int, config: MeanConfig) -> onnx.ModelProto:
    """state' = decay * state + the sum of the decayed, weighted items. Sums run backwards from the last event."""
    return parsed(
        f"""
        step (float[users, {dim}] state, float[users, events, {dim}] items, int64[users, events] actions,
              float[users, events] gaps_s, float[users, events] mask) => (float[users, {dim}] new_state)
        {{
            cooling = Mul(gaps_s, cooling_per_s)
            log_keep = Add(cooling, log_keep_per_event)
            masked_log_keep = Mul(log_keep, mask)
            log_left = CumSum <exclusive = 1, reverse = 1> (masked_log_keep, events_axis)
            left = Exp(log_left)
            weight = Gather(weights, actions)
            masked_weight = Mul(weight, mask)
            share = Mul(masked_weight, left)
            share_row = Unsqueeze(share, events_axis)
            summed = MatMul(share_row, items)
            added = Squeeze(summed, events_axis)
            log_all = ReduceSum <keepdims = 1> (masked_log_keep, events_axis)
            all_left = Exp(log_all)
            kept = Mul(state, all_left)
            new_state = Add(kept, added)
        }}
        """,
        cooling_per_s=np.float32(-np.log(2) / config.half_life_s),
        log_keep_per_event=np.float32(np.log(config.keep)),
        weights=np.array(config.weights(), np.float32),
        events_axis=np.array([1]),
    )


def read_graph(dim: int) -> onnx.ModelProto:
    """The direction of the state. A user without events has interest zero with weight zero."""
    return parsed(
        f"""
        read (float[users, {dim}] state, float[users] gap_to_now_s)
            => (float[users, 1, {dim}] interests, float[users, 1] weights)
        {{
            length = ReduceL2 <keepdims = 1> (state, last_axis)
            divisor = Max(length, tiny)
            direction = Div(state, divisor)
            interests = Unsqueeze(direction, first_axis)
            any = Greater(length, tiny)
            one_if_any = Cast <to = 1> (any)
            now_times_zero = Mul(gap_to_now_s, zero)
            column = Unsqueeze(now_times_zero, first_axis)
            weights = Add(one_if_any, column)
        }}
        """,
        last_axis=np.array([1]),
        first_axis=np.array([1]),
        tiny=np.float32(1e-6),
        zero=np.float32(0),
    )


def normalised(item_graph: onnx.ModelProto) -> onnx.ModelProto:
    """The item tower with vectors of length one."""
    graph = item_graph.graph
    for node in graph.node:
        for place, name in enumerate(node.output):
            if name == "vectors":
                node.output[place] = "raw_vectors"
        for place, name in enumerate(node.input):
            if name == "vectors":
                node.input[place] = "raw_vectors"
    graph.node.append(onnx.helper.make_node("LpNormalization", ["raw_vectors"], ["vectors"], axis=-1, p=2))
    return item_graph


def write_user_graphs(folder: Path, dim: int, config: MeanConfig) -> None:
    """Write step.onnx and read.onnx."""
    onnx.save(step_graph(dim, config), folder / "step.onnx")
    onnx.save(read_graph(dim), folder / "read.onnx")


def make_mean(bundle: Path, out: Path, command: str, config: MeanConfig | None = None) -> Encoder:
    """A bundle with the item tower of `bundle` and the decayed mean as user encoder.

    Raises BundleError: `bundle` does not load.
    """
    source = load(bundle, device="cpu").manifest
    out.mkdir(parents=True, exist_ok=True)
    kept = [source.graphs.item]
    kept += [source.text.tokenizer] if source.text else []
    kept += [source.rows.keys] if source.rows else []
    for name in kept:
        shutil.copyfile(bundle / name, out / name)
    if not source.normalised:
        onnx.save(normalised(onnx.load(bundle / source.graphs.item)), out / source.graphs.item)
    write_user_graphs(out, source.dim, config or MeanConfig())
    origin = msgspec.structs.replace(
        source.origin,
        command=command,
        figures={},
        notes=[f"item tower of {source.name}; the user encoder is training-free", *source.origin.notes],
    )
    return export.write_manifest(
        out,
        export.Parts(
            name=f"{source.name}-mean",
            summary=f"item tower of {source.name} (vectors of length one), decayed action-weighted mean as user encoder",
            dim=source.dim,
            state_size=source.dim,
            log_length=source.log_length,
            item_inputs=source.item_inputs,
            normalised=True,
            text=source.text,
            rows=source.rows,
            marks=source.marks,
            graphs=Graphs(item=source.graphs.item, step="step.onnx", read="read.onnx"),
            tolerance=source.probe.tolerance,
            origin=origin,
        ),
    )
