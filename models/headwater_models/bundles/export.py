"""Bundles that `headwater.encoder.runtime` loads: manifest, probe, the proof of forgetting, and the final move."""

import hashlib
import importlib.metadata
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from headwater.encoder.bundle import (
    FORMAT,
    FileCheck,
    Graphs,
    ItemRows,
    Manifest,
    NeighbourTable,
    Origin,
    Probe,
    Scoring,
    TextInput,
    manifest_bytes,
    manifest_of,
    opset_of,
)
from headwater.encoder.features import ACTION_CODES, CANDIDATE_FEATURES
from headwater.encoder.runtime import Encoder, fold, load, probe_scores
from headwater.errors import HeadwaterError
from headwater_models.arrays import F32, F64
from headwater_models.whole_file import written_whole

# Of every ONNX graph that we write. A worker reads `headwater.encoder.bundle.OPSETS`.
OPSET = 18
MANIFEST = "bundle.json"
# The probe: six events of a coffee drinker, spread over two days.
PROBE_TEXTS = [
    "Ground coffee, 12 oz. grocery. coffee. brand national",
    "Coffee filters, 100 ct. grocery. coffee filters. brand private",
    "Espresso beans, dark roast",
    "Refrigerated coffee creamers, 16 oz. grocery. milk by-products. brand national",
    "Fluid milk, gal. grocery. fluid milk products. brand private",
    "",
]
PROBE_ACTIONS = ["click", "purchase", "view", "add_to_cart", "purchase", "like"]
PROBE_GAPS_S = [0.0, 1.5, 86_400.0, 60.0, 0.001, 3_600.0]
PROBE_GAP_TO_NOW_S = 7_200.0
# Begins the note of an origin with (training loss, validation NDCG@10) of each epoch, as JSON.
CURVE = "learning curve: "
# Begins the note of a bundle that has learned from all events of its files, so that no question about them tests it.
FROM_ALL = "learned from all events"


class ExportError(HeadwaterError):
    """A bundle cannot be written: what is in the way, and the remedy."""


@dataclass(frozen=True)
class Parts:
    """A bundle's contents before it has checksums and a probe. The files are in the folder already."""

    name: str
    summary: str
    dim: int
    state_size: int
    origin: Origin
    interests: int = 1
    log_length: int = 50
    kind: Literal["recurrent", "windowed"] = "recurrent"
    item_inputs: Literal["text", "item_id"] = "text"
    actions: Mapping[str, int] = field(default_factory=lambda: ACTION_CODES)
    normalised: bool = False
    forgets: bool = False
    text: TextInput | None = None
    rows: ItemRows | None = None
    neighbours: NeighbourTable | None = None
    graphs: Graphs = field(
        default_factory=lambda: Graphs(item="item.onnx", step="step.onnx", read="read.onnx")
    )
    probe_item_ids: Sequence[str] = ()
    probe_texts: Sequence[str] = ()  # of these items, where residuals are bound to id and text
    tolerance: float = 1e-3
    radius: float = 0.0
    marks: int = 0


def write_manifest(folder: Path, parts: Parts) -> Encoder:
    """Checksum every file of the folder, run the probe, write bundle.json, and load the result as a worker would.

    Raises BundleError: the result does not load.
    """
    item_ids = [*parts.probe_item_ids, *(f"unknown-{n}" for n in range(len(PROBE_TEXTS)))][: len(PROBE_TEXTS)]
    texts = [*parts.probe_texts, *PROBE_TEXTS[len(parts.probe_texts) :]][: len(PROBE_TEXTS)]
    probe = Probe(texts, item_ids, PROBE_ACTIONS, PROBE_GAPS_S, PROBE_GAP_TO_NOW_S, [], [], parts.tolerance)
    manifest = Manifest(
        format=FORMAT,
        name=parts.name,
        summary=parts.summary,
        kind=parts.kind,
        item_inputs=parts.item_inputs,
        dim=parts.dim,
        state_size=parts.state_size,
        log_length=parts.log_length,
        interests=parts.interests,
        normalised=parts.normalised,
        forgets=parts.forgets,
        opset=opset_of(folder / parts.graphs.item),
        actions=dict(parts.actions),
        text=parts.text,
        rows=parts.rows,
        graphs=parts.graphs,
        files=_checks(folder),
        probe=probe,
        origin=parts.origin,
        radius=parts.radius,
        marks=parts.marks,
        neighbours=parts.neighbours,
    )
    _write(folder, manifest)
    unchecked = Encoder(folder, threads=1, device="cpu")
    vectors = unchecked.encode_items(probe.texts, probe.item_ids)
    now = np.array([probe.gap_to_now_s], dtype=np.float32)
    gaps = np.array([probe.gaps_s], dtype=np.float32)
    interests, _ = fold(unchecked, vectors[None], [probe.actions], gaps, now)
    probe = msgspec.structs.replace(probe, vectors=_rounded(vectors), interests=_rounded(interests[0]))
    manifest = msgspec.structs.replace(manifest, probe=probe)
    if manifest.kind == "recurrent":
        manifest = msgspec.structs.replace(manifest, forgets=forgets(unchecked))
    _write(folder, manifest)
    return load(folder, device="cpu")


def forgets(encoder: Encoder, users: int = 64, seed: int = 0) -> bool:
    """Whether stepping on past evicted events may replace the fold over the newest L.

    Tested on logs of 4 L events without pauses in which one theme follows another, the hardest case: the fold over all of
    them and the fold over the newest L must have a cosine of at least 1 - 1e-6, in state and in interests.
    """
    length = encoder.log_length
    rng = np.random.default_rng(seed)
    ids = (
        encoder.manifest.probe.item_ids
        if encoder.item_inputs == "item_id"
        else [f"unknown-{n}" for n in range(5)]
    )
    themes = encoder.encode_items(PROBE_TEXTS[:5], ids[:5])
    # Three quarters of the log repeat one item; the rest are random draws of all five.
    old = np.repeat(themes[rng.integers(0, 5, users)][:, None], 3 * length, axis=1)
    new = themes[rng.integers(0, 5, (users, length))]
    items = np.concatenate([old, new], axis=1).astype(np.float32)
    actions = np.full(items.shape[:2], ACTION_CODES["click"], dtype=np.int64)
    actions[:, ::3] = ACTION_CODES["purchase"]
    gaps = np.full(items.shape[:2], 1e-3, dtype=np.float32)
    now = np.zeros(users, dtype=np.float32)
    worst = 1.0
    states = []
    for start in (0, 3 * length):
        part = slice(start, None)
        mask = np.ones_like(gaps[:, part])
        given = (items[:, part], actions[:, part], gaps[:, part], mask)
        states.append(encoder.step(encoder.initial_state(users), *given))
    reads = [encoder.read(state, now)[0].reshape(users, -1) for state in states]
    for one, other in (states, reads):
        worst = min(worst, float(cosines(one, other).min()))
    return worst >= 1 - 1e-6


def cosines(one: F32, other: F32) -> F64:
    """Cosine of each row pair: (n, D) and (n, D) -> (n,), in double precision.

    The bound of 1e-6 is finer than sums in single precision.
    """
    a, b = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.asarray((a * b).sum(axis=-1) / np.maximum(lengths, 1e-12))


def versions(*packages: str) -> dict[str, str]:
    """The versions of Python and of the given packages."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def with_figures(folder: Path, figures: dict[str, dict[str, dict[str, float]]]) -> Encoder:
    """Write an evaluation's figures into the manifest. This changes the bundle's id."""
    manifest = load(folder, device="cpu").manifest
    origin = msgspec.structs.replace(manifest.origin, figures=figures)
    _write(folder, msgspec.structs.replace(manifest, origin=origin))
    return load(folder, device="cpu")


def with_sources(folder: Path, weights: Mapping[str, float]) -> Encoder:
    """Set what sources count in answers, where it is not the usual. This changes the bundle's id."""
    manifest = load(folder, device="cpu").manifest
    _write(folder, msgspec.structs.replace(manifest, sources=dict(weights)))
    return load(folder, device="cpu")


def with_radius(folder: Path, texts: Sequence[str], item_ids: Sequence[str]) -> Encoder:
    """Set `radius` to the length of the longest of these item vectors, so that the index lifts all to it. Changes the id.

    For bundles whose items a graph search finds better that way: see `headwater.index.lifted`.
    """
    encoder = load(folder, device="cpu")
    longest = float(np.linalg.norm(encoder.encode_items(texts, item_ids), axis=1).max())
    _write(folder, msgspec.structs.replace(encoder.manifest, radius=round(longest, 2)))
    return load(folder, device="cpu")


def with_scorer(folder: Path, file: str, features: F32, pool: int, name: str, origin: Origin) -> Encoder:
    """Add a score graph, whose file is in the folder already, to a bundle's manifest. This changes the bundle's id.

    `features` (candidates, F): at least as many candidates as the probe has events.
    """
    manifest = manifest_of(folder, manifest_bytes(folder))
    probe = features[: len(manifest.probe.item_ids)].tolist()
    scoring = Scoring(list(CANDIDATE_FEATURES), pool, probe, [])
    manifest = msgspec.structs.replace(
        manifest,
        name=name,
        origin=origin,
        graphs=msgspec.structs.replace(manifest.graphs, score=file),
        files=_checks(folder),
        scoring=scoring,
    )
    _write(folder, manifest)
    unchecked = Encoder(folder, threads=1, device="cpu")
    vectors, interests = (
        np.array(part, dtype=np.float32) for part in (manifest.probe.vectors, manifest.probe.interests)
    )
    scores = probe_scores(unchecked, vectors, interests, probe)
    scoring = msgspec.structs.replace(scoring, scores=_rounded(scores[None])[0])
    _write(folder, msgspec.structs.replace(manifest, scoring=scoring))
    return load(folder, device="cpu")


def with_neighbours(folder: Path, table: NeighbourTable, origin: Origin) -> Encoder:
    """Add a table of neighbours, whose file is in the folder already, to a manifest. This changes the bundle's id."""
    manifest = manifest_of(folder, manifest_bytes(folder))
    _write(
        folder,
        msgspec.structs.replace(manifest, neighbours=table, files=_checks(folder), origin=origin),
    )
    return load(folder, device="cpu")


def make_place(out: Path) -> None:
    """Check that a bundle can be put here, new or over an older bundle, and make the folders above it. Called before the work
    begins; the folder itself is made when the bundle is whole.

    Raises ExportError: the place holds something else, or nothing may be written there.
    """
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file: name a new folder, or the bundle to replace")
    if out.exists() and any(out.iterdir()) and not (out / MANIFEST).exists():
        raise ExportError(
            f"{out} is not empty and holds no bundle: name a new folder, or the bundle to replace"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent):
            pass
    except OSError as error:
        raise ExportError(
            f"nothing can be written beside {out} ({error.strerror}): name a folder elsewhere"
        ) from error


def copy_bundle(bundle: Encoder, folder: Path) -> None:
    """Copy the files that a bundle's manifest names, and the manifest, into a folder that is there."""
    for name in (MANIFEST, *bundle.manifest.files):
        shutil.copyfile(bundle.path / name, folder / name)


def move_bundle(made: Path, out: Path) -> Encoder:
    """Put a finished bundle in its place at once: there is the old one, none or the new one, never a part of one.

    Raises ExportError as `make_place` does.
    """
    make_place(out)
    out = out.resolve()  # of a link, the folder that it names is replaced
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        new.mkdir()  # with the rights of any new folder, which a temporary one lacks
        for file in made.iterdir():
            shutil.copyfile(file, new / file.name)
        if out.exists():
            try:
                out.rename(old)
            except OSError:  # a mount point cannot be moved: its manifest goes first and comes last
                _replace_files(new, out)
                return load(out, device="cpu")
        new.rename(out)
    return load(out, device="cpu")


def _replace_files(new: Path, out: Path) -> None:
    for file in sorted(out.iterdir(), key=lambda file: file.name != MANIFEST):
        file.unlink()
    for file in sorted(new.iterdir(), key=lambda file: file.name == MANIFEST):
        shutil.copyfile(file, out / file.name)


def _checks(folder: Path) -> dict[str, FileCheck]:
    return {
        file.name: FileCheck(bytes=file.stat().st_size, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
        for file in sorted(folder.iterdir())
        if not file.name.startswith(MANIFEST)
    }


def _rounded(values: F32) -> list[list[float]]:
    return [[float(f"{value:.6g}") for value in row] for row in values.tolist()]


def _write(folder: Path, manifest: Manifest) -> None:
    with written_whole(folder / MANIFEST) as partial:
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
