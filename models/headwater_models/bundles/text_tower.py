"""Item towers over text: a text encoder, a trained head and residuals of known items, as one ONNX graph.

`open_text_encoder` finds an encoder by name, `Head` is what training adds to it, `export_item_tower` writes both as the
item graph of a bundle. The head after WhitenRec (Zhang et al. 2024, arXiv:2402.17535).
"""

import importlib.metadata
import math
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from headwater.encoder.bundle import Graphs, ItemRows, Origin, TextInput
from headwater.encoder.features import item_text_key
from headwater.encoder.runtime import Encoder
from headwater_models.arrays import F32, F64, I64, U64
from headwater_models.bundles import mean
from headwater_models.bundles.export import Parts, move_bundle, versions, write_manifest
from headwater_models.bundles.language_model import AS_CONFIGURED, Configured, open_language_model
from headwater_models.bundles.mean_config import MeanConfig
from headwater_models.bundles.static_text import STATIC, distilled, of_starter
from headwater_models.bundles.text_encoder import (
    POOLED,
    UNIT_CONSTANTS,
    TextEncoder,
    UnfitModel,
    append,
    unit_length,
)
from headwater_models.progress import Report, silent

# A direction whose variance is below this share of the mean one is noise of single precision.
_NOISE = 1e-9
# Numbers at the end of a vector with a text beside: whether the item is new, and whether it is known.
MARKS = 2


@dataclass(frozen=True)
class Head:
    """What training adds to a text encoder: d numbers of a text -> D of an item.

    x = (text - mean) @ whitening, scaled to length sqrt(k) if `unit_white`; then the layers, GELU between them, plus
    x @ linear if there is one; plus the row of an item with a residual; then scaled to length one if `normalised`.

    With `text_weight` or `lift`, which need `unit_white` and `normalised`, the direction of x and two marks follow: whether
    the item is without a row, and whether it has one. All of it is scaled to length one again (`networks/text_beside.py`).
    """

    mean: F32  # (d,)
    whitening: F32  # (d, k)
    layers: tuple[tuple[F32, F32], ...] = ()  # (inputs, outputs) and (outputs,): x @ W + b
    linear: F32 | None = None  # (k, D), beside the layers
    unit_white: bool = False
    keys: U64 = field(
        default_factory=lambda: np.empty(0, dtype=np.uint64)
    )  # (R,) `item_text_key`, in any order
    rows: F32 | None = None  # (R, D), served in half precision
    normalised: bool = False
    text_weight: float = 0.0
    lift: float = 0.0

    @property
    def learned_dim(self) -> int:
        """The numbers of what layers, linear part and rows give."""
        if self.layers:
            return int(self.layers[-1][1].shape[0])
        return int((self.whitening if self.linear is None else self.linear).shape[1])

    @property
    def has_beside(self) -> bool:
        """Whether the text's direction and the marks follow."""
        return self.text_weight > 0 or self.lift > 0

    @property
    def dim(self) -> int:
        """D, the numbers of an item's vector."""
        return self.learned_dim + (self.whitening.shape[1] + 2 if self.has_beside else 0)

    def __post_init__(self) -> None:
        """Raises ValueError: shapes that do not fit, keys that occur twice, or numbers that are not finite."""
        width = self.whitening.shape[1]
        shapes = [("mean", self.mean.shape, self.whitening.shape[:1])]
        for place, (weight, bias) in enumerate(self.layers):
            shapes += [(f"layer {place}", weight.shape, (width, len(bias)))]
            width = len(bias)
        if self.linear is not None:
            shapes += [("linear", self.linear.shape, (self.whitening.shape[1], self.learned_dim))]
        if self.rows is not None or len(self.keys):
            rows = self.rows if self.rows is not None else np.empty((0, self.learned_dim))
            shapes += [("rows", rows.shape, (len(self.keys), self.learned_dim))]
        for name, got, wanted in shapes:
            if got != wanted:
                raise ValueError(f"{name} of the head has shape {got}, expected {wanted}")
        if self.has_beside and not (self.unit_white and self.normalised and len(self.keys)):
            raise ValueError(
                "texts stand beside what was learned only in a head with unit_white, normalised and residuals"
            )
        if len(np.unique(self.keys)) != len(self.keys):
            raise ValueError("two residuals of the head have one key, expected one per id and text")
        parts = [self.mean, self.whitening, *(part for layer in self.layers for part in layer)]
        parts += [part for part in (self.linear, self.rows) if part is not None]
        if not all(np.isfinite(part).all() for part in parts):
            raise ValueError(
                "the head has NaN or infinite numbers, expected finite ones: the training diverged"
            )

    def vectors(self, texts: F32, rows: I64 | None = None) -> F32:
        """Vectors (N, D) of texts (N, d); rows (N,) the place of each item's residual in `rows`, -1 for none."""
        white: F32 = np.asarray((texts - self.mean) @ self.whitening, dtype=np.float32)
        if self.unit_white:
            white = _unit(white) * np.float32(math.sqrt(white.shape[1]))
        found = white
        for place, (weight, bias) in enumerate(self.layers):
            found = np.asarray((_gelu(found) if place else found) @ weight + bias, dtype=np.float32)
        if self.linear is not None:
            beside = np.asarray(white @ self.linear, dtype=np.float32)
            found = found + beside if self.layers else beside
        if rows is not None and self.rows is not None:
            known = rows >= 0
            own = self.rows[np.where(known, rows, 0)]
            found = found + own * known[:, None].astype(np.float32)
        found = _unit(found) if self.normalised else found
        if self.has_beside:
            new = (np.full(len(texts), -1) if rows is None else rows)[:, None] < 0
            marks = math.sqrt(self.lift) * np.concatenate([new, ~new], axis=1)
            found = _unit(np.concatenate([found, math.sqrt(self.text_weight) * _unit(white), marks], axis=1))
        return np.asarray(found, dtype=np.float32)


@dataclass(frozen=True)
class ItemTower:
    """The item tower's part of a manifest: see `export.Parts`."""

    dim: int
    text: TextInput
    rows: ItemRows | None
    normalised: bool
    tolerance: float
    graph: str = "item.onnx"


def plain_head(encoder: TextEncoder) -> Head:
    """The encoder's own vectors, of length one."""
    return Head(np.zeros(encoder.dim, np.float32), np.eye(encoder.dim, dtype=np.float32), normalised=True)


def residual_keys(item_ids: list[str], texts: list[str]) -> U64:
    """(N,) the keys of items' residuals, bound to id and text (`headwater.encoder.features.item_text`)."""
    pairs = zip(item_ids, texts, strict=True)
    return np.fromiter((item_text_key(*pair) for pair in pairs), dtype=np.uint64, count=len(item_ids))


@dataclass(frozen=True)
class Whitened:
    """(x - mean) @ matrix has nearly unit covariance on the fitted texts."""

    mean: F32  # (d,)
    matrix: F32  # (d, k)
    note: str  # what was done, for a person


def whitened(vectors: F32, dim: int | None = None, shrink: float = 0.02) -> Whitened:
    """ZCA (the x closest to the original) of vectors (N, d), regularised; `dim` keeps the directions that vary most.

    The covariance is shrunk towards its mean variance: by `shrink` at least, and by more where texts are few (OAS, Chen et
    al. 2010, arXiv:0907.4698; and as if each dimension had been one more text), so that the directions that no text takes are
    not blown up: OAS takes variants of one product for texts of their own. Fewer than two different texts have no covariance:
    they are left as they are.

    Raises UnfitModel: NaN or infinite numbers.
    """
    count, width = vectors.shape
    kept = min(dim or width, width)
    plain = Whitened(np.zeros(width, np.float32), np.eye(width, kept, dtype=np.float32), "")
    if count == 0 or not np.isfinite(vectors).all():
        if count:
            raise UnfitModel(
                "the text vectors hold NaN or infinite numbers: the encoder's weights are damaged"
            )
        return Whitened(plain.mean, plain.matrix, "no texts: not whitened")
    mean = vectors.mean(axis=0, dtype=np.float64)
    centred = vectors - mean
    covariance = centred.T @ centred / count
    spread = float(np.trace(covariance)) / width
    if spread <= _NOISE * max(float(np.square(vectors).mean()), 1e-12):
        return Whitened(plain.mean, plain.matrix, f"{count:,} texts that all read the same: not whitened")
    weight = max(shrink / (1 + shrink), _oas(covariance, count), width / (count + width))
    variance, axes = np.linalg.eigh(covariance)
    shrunk = (1 - weight) * np.maximum(variance, 0) + weight * spread
    scale = 1 / np.sqrt(shrunk)
    matrix = (axes * scale) @ axes.T if kept == width else axes[:, ::-1][:, :kept] * scale[::-1][:kept]
    rank = int((variance > _NOISE * variance[-1]).sum())
    note = f"whitened over {count:,} texts of {rank} directions of {width}, shrunk by {weight:.3f}"
    return Whitened(mean.astype(np.float32), matrix.astype(np.float32), note)


def _oas(covariance: F64, count: int) -> float:
    """The share of the mean variance in the best estimate of a covariance (d, d) from `count` samples."""
    width = len(covariance)
    squares, trace = float(np.square(covariance).sum()), float(np.trace(covariance))
    below = (count + 1 - 2 / width) * (squares - trace**2 / width)
    above = (1 - 2 / width) * squares + trace**2
    return 1.0 if below <= 0 else min(1.0, above / below)


def open_text_encoder(
    name: str = STATIC, configured: Configured = AS_CONFIGURED, report: Report = silent
) -> TextEncoder:
    """The text encoder of a name: `static`, a model, or `static:MODEL`.

    `static` are the token vectors of the shipped starter, `static:MODEL` those of a model: in its languages, and a hundred
    times as fast. A model is a folder, an installed package, a name on the Hugging Face hub, an ONNX file with its tokenizer
    beside it, or a jar or zip that holds both: see `language_model.py`.

    Raises ModelMissing: no such model. UnfitModel: one that cannot be served as it is.
    """
    if name == STATIC:
        return of_starter(configured)
    if name.startswith(f"{STATIC}:"):
        teacher = open_language_model(name.removeprefix(f"{STATIC}:"), configured)
        return distilled(teacher, replace(configured, pooling=None, tokenizer=None, int8=False), report)
    return open_language_model(name, configured)


def export_item_tower(encoder: TextEncoder, head: Head, folder: Path) -> ItemTower:
    """Write item.onnx, tokenizer.json and, with residuals, items.u64 into a folder; the rest is the manifest's.

    Raises ValueError: the head is for texts of another width.
    """
    if len(head.mean) != encoder.dim:
        raise ValueError(
            f"the head reads {len(head.mean)} numbers of a text, {encoder.name} gives {encoder.dim}"
        )
    model = onnx.ModelProto()
    model.CopyFrom(encoder.graph)
    lines, constants = _head_graph(head)
    append(model, lines, **constants)
    graph = model.graph
    del graph.output[:]
    graph.output.append(
        onnx.helper.make_tensor_value_info("vectors", onnx.TensorProto.FLOAT, ["items", head.dim])
    )
    rows = None
    if len(head.keys):
        graph.input.append(onnx.helper.make_tensor_value_info("item_row", onnx.TensorProto.INT64, ["items"]))
        np.sort(head.keys).astype("<u8").tofile(folder / "items.u64")
        rows = ItemRows("items.u64", len(head.keys), by="item_and_text")
    onnx.save(model, folder / "item.onnx")
    encoder.tokenizer.no_padding()
    encoder.tokenizer.no_truncation()
    encoder.tokenizer.save(str(folder / encoder.text.tokenizer), pretty=False)
    # int8 kernels round differently on CPUs without VNNI; single precision hardly differs anywhere.
    return ItemTower(head.dim, encoder.text, rows, head.normalised, tolerance=0.2 if encoder.int8 else 2e-3)


def write_bundle(encoder: TextEncoder, source: str, out: Path, command: str, seconds: float) -> Encoder:
    """A bundle of the encoder's own vectors and the decayed mean of `mean.py`; `source` is what the user named.

    Raises BundleError or ExportError.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tower = export_item_tower(encoder, plain_head(encoder), folder)
        mean.write_user_graphs(folder, tower.dim, MeanConfig())
        origin = Origin(
            data=f"pretrained {source}; nothing was trained",
            data_sha256=None,
            command=command,
            seed=None,
            seconds=round(seconds, 1),
            versions=_versions(),
            figures={},
            notes=list(encoder.notes),
        )
        write_manifest(
            folder,
            Parts(
                name=f"lm-{encoder.name}",
                summary=f"{source} as item tower ({'int8' if encoder.int8 else 'fp32'}), decayed mean as user encoder",
                dim=tower.dim,
                state_size=tower.dim,
                normalised=tower.normalised,
                text=tower.text,
                graphs=Graphs(item=tower.graph, step="step.onnx", read="read.onnx"),
                tolerance=tower.tolerance,
                origin=origin,
            ),
        )
        return move_bundle(folder, out)


def _versions() -> dict[str, str]:
    """Of what takes part in an export, as far as it is installed."""
    names = ("onnx", "tokenizers", "torch", "transformers", "optimum")
    found = {found.name for found in importlib.metadata.distributions()}
    return {**versions(*(name for name in names if name in found)), "onnxruntime": ort.__version__}


def _head_graph(head: Head) -> tuple[str, dict[str, object]]:
    """The lines from `pooled` (items, d) and `item_row` (items,) to `vectors` (items, D), and their constants."""
    constants: dict[str, object] = {
        "head_mean": head.mean.astype(np.float32),
        "head_whitening": head.whitening.astype(np.float32),
        "head_root_of_half": np.float32(math.sqrt(0.5)),
        "head_half": np.float32(0.5),
        "head_one": np.float32(1),
        "head_root": np.float32(math.sqrt(head.whitening.shape[1])),
        **UNIT_CONSTANTS,
    }
    lines = [f"head_centred = Sub({POOLED}, head_mean)", "head_white = MatMul(head_centred, head_whitening)"]
    white = "head_white"
    if head.unit_white:
        lines += [unit_length(white, "head_unit"), "head_scaled = Mul(head_unit, head_root)"]
        white = "head_scaled"
    last = white
    for place, (weight, bias) in enumerate(head.layers):
        own = f"head_layer{place}"
        constants |= {f"{own}_weight": weight.astype(np.float32), f"{own}_bias": bias.astype(np.float32)}
        if place:
            lines += [
                f"{own}_scaled = Mul({last}, head_root_of_half)",
                f"{own}_erf = Erf({own}_scaled)",
                f"{own}_above = Add({own}_erf, head_one)",
                f"{own}_gate = Mul({own}_above, head_half)",
                f"{own}_given = Mul({last}, {own}_gate)",
            ]
            last = f"{own}_given"
        lines += [f"{own}_product = MatMul({last}, {own}_weight)", f"{own} = Add({own}_product, {own}_bias)"]
        last = own
    if head.linear is not None:
        constants["head_linear"] = head.linear.astype(np.float32)
        lines += [f"head_beside = MatMul({white}, head_linear)"]
        lines += [f"head_both = Add({last}, head_beside)"] if head.layers else []
        last = "head_both" if head.layers else "head_beside"
    if len(head.keys) and head.rows is not None:
        # Row 0 is an item without a residual, the others are in the order of their keys, as a worker finds them.
        sorted_rows = head.rows[np.argsort(head.keys)].astype(np.float16)
        constants["head_residuals"] = np.concatenate([np.zeros_like(sorted_rows[:1]), sorted_rows])
        lines += [
            "head_stored = Gather(head_residuals, item_row)",
            "head_own = Cast <to = 1> (head_stored)",
            f"head_with_own = Add({last}, head_own)",
        ]
        last = "head_with_own"
    if head.has_beside:
        root = np.float32(math.sqrt(head.lift))
        constants |= {
            "head_text_root": np.float32(math.sqrt(head.text_weight)),
            "head_marks": np.array([[root, 0], [0, root]], dtype=np.float32),
            "head_last_row": np.int64(1),
        }
        lines += [
            unit_length(last, "head_learned"),
            "head_beside_text = Mul(head_unit, head_text_root)",
            "head_known = Min(item_row, head_last_row)",
            "head_mark = Gather(head_marks, head_known)",
            "head_all = Concat <axis = 1> (head_learned, head_beside_text, head_mark)",
        ]
        last = "head_all"
    lines += [unit_length(last, "vectors") if head.normalised else f"vectors = Identity({last})"]
    return "\n".join(lines), constants


def _gelu(x: F32) -> F32:
    erf = np.vectorize(math.erf, otypes=[np.float32])
    return np.asarray(0.5 * x * (1 + erf(x * math.sqrt(0.5))), dtype=np.float32)


def _unit(x: F32) -> F32:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12))
