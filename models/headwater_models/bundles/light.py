"""Lighter bundles: tables and matrices in 8 bits, half precision, fewer dimensions, fewer hidden units.

Works on the ONNX graphs, so it needs no torch and fits any bundle. `headwater bundle compare` shows the cost in recall.
"""

import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.shape_inference
import onnx.utils
from numpy.typing import NDArray
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from headwater.encoder.bundle import Manifest
from headwater.encoder.runtime import Encoder, load
from headwater_models.arrays import F32
from headwater_models.bundles import export, mean

_SMALL = 1024  # elements below which a matrix is not worth scales
_HIDDEN = ".feed_forward.into.bias"


def lighten(
    bundle: Path,
    out: Path,
    *,
    int8: bool = False,
    fp16: bool = False,
    dim: int | None = None,
    prune: float = 0.0,
    command: str,
) -> Encoder:
    """Prune, then truncate, then quantise or halve, each only if asked.

    Raises ExportError: nothing is asked, options contradict each other, or the bundle has nothing of the kind.
    """
    encoder = load(bundle, device="cpu")
    source = encoder.manifest
    _check(source, int8=int8, fp16=fp16, dim=dim, prune=prune)
    graphs = {name: onnx.load(bundle / name) for name in set(msgspec.structs.astuple(source.graphs)) - {None}}
    done = []
    if prune:
        pruned = sum([prune_hidden(graph, prune) for graph in graphs.values()])
        if not pruned:
            raise export.ExportError(
                f"{encoder.id} has no feed-forward part: --prune works on lru, sasrec and bert4rec"
            )
        done.append(f"{pruned:,} hidden units pruned")
    if dim:
        for name, graph in graphs.items():
            truncate(graph, source.dim, dim)
            if name == source.graphs.item and source.normalised:
                mean.normalised(graph)
        done.append(f"the first {dim} of {source.dim} dimensions")
    if int8:
        for graph in graphs.values():
            quantise(graph)
        done.append("int8 per row")
    if fp16:
        for graph in graphs.values():
            halve(graph)
        done.append("half precision")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in source.files:
            if name in graphs:
                onnx.save(graphs[name], folder / name)
            else:
                shutil.copyfile(bundle / name, folder / name)
        origin = msgspec.structs.replace(
            source.origin,
            command=command,
            figures={},
            notes=[f"made of {encoder.id}: {', '.join(done)}", *source.origin.notes],
        )
        suffix = (
            (f"-dim{dim}" if dim else "")
            + (f"-pruned{prune:g}" if prune else "")
            + ("-int8" if int8 else "-fp16" if fp16 else "")
        )
        export.write_manifest(
            folder,
            export.Parts(
                name=source.name + suffix,
                summary=f"{source.summary}; {', '.join(done)}",
                dim=dim or source.dim,
                state_size=source.state_size,
                interests=source.interests,
                log_length=source.log_length,
                kind=source.kind,
                actions=source.actions,
                item_inputs=source.item_inputs,
                normalised=source.normalised,
                text=source.text,
                rows=source.rows,
                neighbours=source.neighbours,
                graphs=source.graphs,
                probe_item_ids=source.probe.item_ids,
                tolerance=source.probe.tolerance,
                radius=source.radius,
                marks=max(0, source.marks - (source.dim - (dim or source.dim))),
                origin=origin,
            ),
        )
        return export.move_bundle(folder, out)


def _check(source: Manifest, *, int8: bool, fp16: bool, dim: int | None, prune: float) -> None:
    if not (int8 or fp16 or dim or prune):
        raise export.ExportError("nothing to do: expected --int8, --fp16, --dim or --prune")
    if int8 and fp16:
        raise export.ExportError("--int8 and --fp16: expected one of them")
    if dim is not None and not 1 <= dim < source.dim:
        raise export.ExportError(
            f"--dim is {dim}: expected 1 to {source.dim - 1}, the bundle has {source.dim} dimensions"
        )
    if source.scoring is not None:
        raise export.ExportError(
            f"bundle {source.name} has a score graph made for its vectors: lighten the bundle that it was trained over, then "
            "train the scorer over that"
        )
    if not 0 <= prune < 1:
        raise export.ExportError(f"--prune is {prune:g}: expected a share from 0 to less than 1")


def quantise(model: onnx.ModelProto) -> None:
    """Quantise every larger matrix of weights to int8, in place: one scale per row of a table, per column of a product.

    Only weights; products stay in single precision. With dynamic int8 activations all rows of a batch would share one
    scale, and a user's state would depend on the other users in the batch.
    """
    graph = model.graph
    weights = {weight.name: onnx.numpy_helper.to_array(weight) for weight in graph.initializer}
    weights = {
        name: values
        for name, values in weights.items()
        if values.ndim == 2 and values.size >= _SMALL and values.dtype == np.float32
    }
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, NDArray[np.generic]] = {}
    for node in graph.node:
        table = node.input[0] if node.op_type == "Gather" and not _attribute(node, "axis", 0) else ""
        if table in weights:
            constants |= _in_int8(table, weights[table], axis=0)
            nodes += _read_rows(node)
            continue
        for name in {*node.input} & weights.keys():
            if f"{name}_int8" not in constants:
                turned = node.op_type == "Gemm" and _attribute(node, "transB", 0)
                constants |= _in_int8(name, weights[name], axis=0 if turned else 1)
                # Arithmetic on constants, which ONNX Runtime does once, when it loads.
                nodes += _scaled(f"{name}_int8", f"{name}_scale", name)
        nodes.append(node)
    kept = [weight for weight in graph.initializer if weight.name not in weights]
    kept += [onnx.numpy_helper.from_array(values, name) for name, values in constants.items()]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def _in_int8(name: str, values: F32, axis: int) -> dict[str, NDArray[np.generic]]:
    """Values as whole numbers up to 127, and a scale per position of the axis."""
    largest = np.abs(values).max(axis=1 - axis, keepdims=True)
    scale = np.maximum(largest, 1e-12) / np.float32(127)
    return {
        f"{name}_int8": np.round(values / scale).astype(np.int8),
        f"{name}_scale": scale.astype(np.float32),
    }


def _read_rows(gather: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Rows of an int8 table, each times its scale."""
    table, rows = gather.input
    (out,) = gather.output
    for part in ("int8", "scale"):
        yield onnx.helper.make_node("Gather", [f"{table}_{part}", rows], [f"{out}_{part}"])
    yield from _scaled(f"{out}_int8", f"{out}_scale", out)


def _scaled(whole: str, scale: str, out: str) -> Iterator[onnx.NodeProto]:
    yield onnx.helper.make_node("Cast", [whole], [f"{out}_whole"], to=onnx.TensorProto.FLOAT)
    yield onnx.helper.make_node("Mul", [f"{out}_whole", scale], [out])


def halve(model: onnx.ModelProto) -> None:
    """Weights and arithmetic in half precision, in place; inputs and outputs stay single.

    Layer norms and all that is computed from times alone stay single too: 30 days are 2.6 million seconds, and half
    precision ends at 65,504.
    """
    gaps, rest = (
        [port.name for port in model.graph.input if _is_gap(port) == wanted] for wanted in (True, False)
    )
    of_time = _of_time_alone(model.graph, gaps)
    if not of_time:
        model.CopyFrom(_halved(model))
        return
    parts = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(model))
    times = parts.extract_model(gaps, of_time).graph
    others = parts.extract_model([*rest, *of_time], [port.name for port in model.graph.output])
    for weight in times.initializer:  # some belong to both parts
        _rename(times, weight.name, f"times_{weight.name}")
        weight.name = f"times_{weight.name}"
    graph = _halved(others).graph
    del graph.value_info[:]
    graph.node.extend(times.node)  # ONNX Runtime puts them in order
    graph.initializer.extend(times.initializer)
    ports = [*model.graph.input]
    del graph.input[:]
    graph.input.extend(ports)
    model.graph.CopyFrom(graph)


def _halved(model: onnx.ModelProto) -> onnx.ModelProto:
    # On norms in half precision ONNX Runtime 1.31 crashes where it optimises NARM.
    converted: onnx.ModelProto = convert_float_to_float16(
        model, keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, "LayerNormalization"]
    )
    # A value that several norms share is cast once per norm, by nodes of the same name.
    nodes = {node.name or id(node): node for node in converted.graph.node}
    del converted.graph.node[:]
    converted.graph.node.extend(nodes.values())
    return converted


def _is_gap(port: onnx.ValueInfoProto) -> bool:
    return str(port.name).startswith("gap")


def _of_time_alone(graph: onnx.GraphProto, gaps: Collection[str]) -> list[str]:
    """Values computed from gaps and constants alone that other nodes use."""
    constant, of_time = {weight.name for weight in graph.initializer}, set(gaps)
    used: dict[str, None] = {}
    for node in graph.node:
        given = {name for name in node.input if name}
        if given <= constant:
            constant.update(node.output)
        elif given <= constant | of_time:
            of_time.update(node.output)
        else:
            used |= dict.fromkeys(name for name in node.input if name in of_time)
    return list(used)


def truncate(model: onnx.ModelProto, wide: int, narrow: int) -> None:
    """Keep the first `narrow` of `wide` numbers of vectors that go in and out, in place; inside, the others are zero.

    Sensible only after a training that put most into the first numbers (`FitConfig.nested`).
    """
    graph = model.graph
    axis = {"items": 2, "vectors": 1, "interests": 2}
    for port in [*graph.input, *graph.output]:
        if port.name in axis:
            port.type.tensor_type.shape.dim[axis[port.name]].dim_value = narrow
    tables = {weight.name: weight for weight in graph.initializer}
    before, after = [], []
    if any(port.name == "items" for port in graph.input):
        _rename(graph, "items", "wide_items")
        pads = np.array([0, 0, 0, 0, 0, wide - narrow])
        graph.initializer.append(onnx.numpy_helper.from_array(pads, "pads"))
        before.append(onnx.helper.make_node("Pad", ["items", "pads"], ["wide_items"]))
    for name in {port.name for port in graph.output} & {"vectors", "interests"}:
        maker = next(node for node in graph.node if name in node.output)
        if maker.op_type == "Gather" and maker.input[0] in tables:
            table = tables[maker.input[0]]
            table.CopyFrom(
                onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(table)[:, :narrow], table.name)
            )
            continue
        _rename(graph, name, f"wide_{name}")
        bounds = {"first": 0, "last": narrow, "axis": axis[name]}
        for bound, value in bounds.items():
            graph.initializer.append(onnx.numpy_helper.from_array(np.array([value]), f"{name}_{bound}"))
        cut = [f"wide_{name}", *(f"{name}_{bound}" for bound in bounds)]
        after.append(onnx.helper.make_node("Slice", cut, [name]))
    nodes = [*before, *graph.node, *after]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new


def prune_hidden(model: onnx.ModelProto, share: float) -> int:
    """Remove this share of each feed-forward's hidden units, in place, smallest weights first. Returns how many.

    A unit's size is the length of its incoming weights times that of its outgoing ones, which scaling one up and the other
    down does not change.
    """
    graph = model.graph
    weights = {weight.name: weight for weight in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    users = {name: node for node in graph.node for name in node.input}
    pruned = 0
    for name in [name for name in weights if name.endswith(_HIDDEN)]:
        bias_out = users[name.replace(".into.", ".out.")]
        into = weights[_matrix(makers[_other(users[name], name)])]
        out = weights[_matrix(makers[_other(bias_out, name.replace(".into.", ".out."))])]
        arrays = [onnx.numpy_helper.to_array(weights[part]) for part in (into.name, name, out.name)]
        size = np.linalg.norm(arrays[0], axis=0) * np.linalg.norm(arrays[2], axis=1)
        keep = np.sort(np.argsort(-size, kind="stable")[: max(1, round(len(size) * (1 - share)))])
        kept = (arrays[0][:, keep], arrays[1][keep], arrays[2][keep])
        for weight, values in zip((into, weights[name], out), kept, strict=True):
            weight.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), weight.name))
        pruned += len(size) - len(keep)
    del graph.value_info[:]
    return pruned


def _other(add: onnx.NodeProto, name: str) -> str:
    return next(str(given) for given in add.input if given != name)


def _matrix(product: onnx.NodeProto) -> str:
    assert product.op_type == "MatMul", f"expected the exporter's MatMul, got {product.op_type}"
    return str(product.input[1])


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(given.i) for given in node.attribute if given.name == name), default)
