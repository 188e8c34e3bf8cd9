"""The manifest of a bundle (an exported encoder), and the checks that need no ONNX Runtime.

A bundle is a folder: `bundle.json` (class `Manifest`) and the files that it names, each with its SHA-256.
"""

import hashlib
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from headwater.encoder.features import ACTION_CODES, CANDIDATE_FEATURES
from headwater.errors import HeadwaterError
from headwater.messages import MAX_ACTION_CODE

FORMAT = 1
# A user record has one byte for the number of its log's entries.
MAX_LOG_LENGTH = 255
# How a bundle reads an action that it was not trained with.
DEFAULT_ACTION: Final = "click"
ActionCode = Annotated[int, msgspec.Meta(ge=1, le=MAX_ACTION_CODE)]
OPSETS = range(17, 22)  # up to what the oldest supported ONNX Runtime (1.17) runs, from what we test


class BundleError(HeadwaterError):
    """A bundle that must not be served. The message gives the file, the value seen, the value expected and the remedy."""


class TextInput(msgspec.Struct, frozen=True):
    """The tokenizer of a text tower."""

    tokenizer: str  # a tokenizers file
    max_tokens: int  # longer texts are cut, special tokens included
    special_tokens: bool  # [CLS] and [SEP] around the text
    pad_id: int
    prefix: str = ""  # read before each item's text, as in "passage: "
    query_prefix: str = ""  # read before a free-text query, as in "query: "
    # Each text in a call of its own: int8 activations share one scale in a call, so a text's vector would depend on the others.
    alone: bool = False


class ItemRows(msgspec.Struct, frozen=True):
    """Items that the item graph knows. Row i + 1 of its table is key i of the file; row 0 is any other item."""

    keys: str  # little-endian unsigned 64-bit keys, ascending
    count: int
    # What the keys are of: the id alone (`item_key`), or id and text (`item_text_key`), so that another shop's item of the
    # same id, or the same item under another text, is not taken for this one.
    by: Literal["item_id", "item_and_text"] = "item_id"


class Graphs(msgspec.Struct, frozen=True):
    """The ONNX file of each graph. Recurrent bundles have step and read, windowed ones window."""

    item: str
    step: str | None = None
    read: str | None = None
    window: str | None = None
    score: str | None = None


class Scoring(msgspec.Struct, frozen=True):
    """The inputs of the score graph, and what it computed where it was exported."""

    features: list[str]  # of a candidate, in order
    pool: Annotated[int, msgspec.Meta(ge=1, le=1000)]  # candidates of a request that it was trained to order
    probe: list[list[float]]  # (events of the bundle's probe, features): each of its items as a candidate
    scores: list[float]


class NeighbourTable(msgspec.Struct, frozen=True):
    """Items that are taken together in one session; `neighbours.py` reads the file."""

    file: str
    pause_s: Annotated[float, msgspec.Meta(gt=0)]  # a longer one between two events of a user ends a session
    items: int
    pairs: int


class FileCheck(msgspec.Struct, frozen=True):
    """A file's size and checksum."""

    bytes: int
    sha256: str


class Probe(msgspec.Struct, frozen=True):
    """One user's events, and what the encoder computed for them where it was exported."""

    texts: list[str]
    item_ids: list[str]
    actions: list[str]
    gaps_s: list[float]
    gap_to_now_s: float
    vectors: list[list[float]]  # (events, dim)
    interests: list[list[float]]  # (interests, dim)
    tolerance: float  # of the largest absolute value expected


class Origin(msgspec.Struct, frozen=True):
    """The origin of a bundle: enough to make it again and to judge it."""

    data: str  # what it was trained on, in words
    data_sha256: str | None
    command: str
    seed: int | None
    seconds: float
    versions: dict[str, str]
    # method -> set of targets -> measure -> value, of this very bundle with full ranking; `targets` is their number
    figures: dict[str, dict[str, dict[str, float]]]
    notes: list[str] = []


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """bundle.json"""

    format: int
    name: str
    summary: str
    kind: Literal["recurrent", "windowed"]
    item_inputs: Literal["text", "item_id"]
    dim: int
    state_size: int
    log_length: Annotated[int, msgspec.Meta(ge=1, le=MAX_LOG_LENGTH)]
    interests: int
    normalised: bool  # item vectors have length one, so that a dot product is a cosine
    forgets: bool  # the export showed that the fold over 4 L events and over the newest L agree
    opset: int  # of the item graph
    actions: dict[str, ActionCode]  # those that it was trained with
    text: TextInput | None
    rows: ItemRows | None
    graphs: Graphs
    files: dict[str, FileCheck]
    probe: Probe
    origin: Origin
    # A length that item vectors hardly exceed: the index lifts them to it. 0: as they come.
    radius: Annotated[float, msgspec.Meta(ge=0.0, le=1e6)] = 0.0
    # How many numbers at the end of an item's vector tell what kind of item it is. A query has none of them; versions that do not
    # know them read queries as items.
    marks: Annotated[int, msgspec.Meta(ge=0)] = 0
    # Only with a score graph. Versions that know neither serve the bundle without them.
    scoring: Scoring | None = None
    # Only with a table of neighbours; ignored likewise.
    neighbours: NeighbourTable | None = None
    # What sources count in the answers to requests that name none, where it is not the usual; ignored likewise.
    sources: dict[str, Annotated[float, msgspec.Meta(ge=0.0, le=1000.0)]] = {}


def manifest_bytes(folder: Path) -> bytes:
    """The content of `bundle.json`.

    Raises:
        BundleError: the folder has none that can be read.
    """
    path = folder / "bundle.json"
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"cannot read {path} ({error.strerror}): a bundle is a folder with a bundle.json; "
            "make one with `headwater train` or `headwater export`"
        ) from error


def manifest_of(path: Path, raw: bytes) -> Manifest:
    """The manifest that ``raw`` holds, checked; ``path`` is the bundle's folder, for messages.

    Raises:
        BundleError: it is none, of another format, contradicts itself, or was trained with other action codes.
    """
    try:
        form = msgspec.json.decode(raw, type=dict[str, msgspec.Raw]).get("format")
        if form is not None and bytes(form) != str(FORMAT).encode():
            raise BundleError(
                f"{path} has bundle format {bytes(form).decode()}, this version reads {FORMAT}: export it again"
            )
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{path / 'bundle.json'} is not a manifest of format {FORMAT}: {error}; export the bundle again"
        ) from error
    _check_actions(path, manifest.actions)
    graphs = manifest.graphs
    wanted = ("step", "read") if manifest.kind == "recurrent" else ("window",)
    for name in wanted:
        if getattr(graphs, name) is None:
            raise BundleError(f"{path} is {manifest.kind} but names no {name} graph: export it again")
    if (graphs.score is None) != (manifest.scoring is None):
        raise BundleError(
            f"{path} has only one of a score graph and its settings (scoring): train its scorer again"
        )
    if manifest.scoring and not set(manifest.scoring.features) <= set(CANDIDATE_FEATURES):
        raise BundleError(
            f"{path} scores candidates by {', '.join(manifest.scoring.features)}, this version knows "
            f"{', '.join(CANDIDATE_FEATURES)}: train its scorer again"
        )
    if manifest.item_inputs == "text" and manifest.text is None:
        raise BundleError(f"{path} takes text but names no tokenizer: export it again")
    if manifest.item_inputs == "item_id" and manifest.rows is None:
        raise BundleError(f"{path} takes item ids but names no file of item keys: export it again")
    if manifest.item_inputs == "item_id" and manifest.rows and manifest.rows.by != "item_id":
        raise BundleError(
            f"{path} takes item ids, but its keys are of {manifest.rows.by}, expected item_id: export it again"
        )
    named = [graphs.item, graphs.step, graphs.read, graphs.window, graphs.score]
    named += [
        manifest.text.tokenizer if manifest.text else None,
        manifest.rows.keys if manifest.rows else None,
        manifest.neighbours.file if manifest.neighbours else None,
    ]
    for file in named:
        if file is not None and file not in manifest.files:
            raise BundleError(f"{path} uses {file} but lists no checksum for it: export it again")
    return manifest


def _check_actions(path: Path, actions: Mapping[str, int]) -> None:
    """A bundle may know other actions than this version, but must not read one as another."""
    ours = {**ACTION_CODES, **{name: code for name, code in actions.items() if name not in ACTION_CODES}}
    if any(ours[name] != code for name, code in actions.items()) or len(set(ours.values())) < len(ours):
        raise BundleError(
            f"{path} was trained with action codes {actions}, this version has {dict(ACTION_CODES)}, expected the same "
            "code for each name: export it again"
        )
    if DEFAULT_ACTION not in actions:
        raise BundleError(
            f"{path} was trained with actions {', '.join(actions) or 'none'}, expected {DEFAULT_ACTION} among them, which "
            "stands in for those that it does not know: export it again"
        )


def readable_actions(actions: Mapping[str, int]) -> NDArray[np.int64] | None:
    """(16,) the code by which a bundle reads each code of ours: unknown actions are read as a click.

    None if it knows all of ours, and there is nothing to translate.
    """
    if ACTION_CODES.keys() <= actions.keys():
        return None
    codes = np.full(MAX_ACTION_CODE + 1, actions[DEFAULT_ACTION], dtype=np.int64)
    known = [0, *actions.values()]  # 0 is padding
    codes[known] = known
    return codes


def check_files(path: Path, manifest: Manifest) -> None:
    """Compare each file of a bundle with its checksum.

    Raises:
        BundleError: a file is missing, changed, or outside the folder.
    """
    for name, check in manifest.files.items():
        if Path(name).name != name or not name.isprintable():
            raise BundleError(
                f"{path} lists the file {name!r}: a bundle's files lie in its own folder, without a path"
            )
        file = path / name
        try:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
                size = stream.tell()
        except OSError as error:
            raise BundleError(
                f"cannot read {file} ({error.strerror}), which bundle.json lists: copy the bundle again"
            ) from error
        if digest != check.sha256:
            raise BundleError(
                f"{file} ({size} bytes) has SHA-256 {digest}, bundle.json says {check.sha256} ({check.bytes} bytes): "
                "the file is damaged or was changed; copy or export the bundle again"
            )


# The fields of an ONNX file (onnx.proto) that lead to tensors: by message, field number -> message.
_TO_TENSORS: Final[Mapping[str, Mapping[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a tensor
_DEEPEST = 100  # protobuf's own limit of messages within messages


def refuse_external_data(path: Path) -> None:
    """Refuse an ONNX file that keeps tensors in other files: no checksum covers them, and they may lie anywhere.

    Raises:
        BundleError: it does, or is no ONNX model.
    """
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            within = [("model", 0, len(data), 0)]
            while within:
                message, start, end, depth = within.pop()
                if depth > _DEEPEST or end > len(data):
                    raise ValueError("messages that do not end")
                for field, begin, stop in _fields(data, start, end):
                    if message == "tensor" and (
                        field == _EXTERNAL_DATA or (field == _DATA_LOCATION and data[begin] != 0)
                    ):
                        raise BundleError(
                            f"{path} keeps tensors in another file, expected all of them in this one, which the checksum "
                            "covers: export the bundle again, without external data"
                        )
                    if (inner := _TO_TENSORS[message].get(field)) is not None:
                        within.append((inner, begin, stop, depth + 1))
    except (IndexError, ValueError) as error:
        raise BundleError(
            f"{path} is not an ONNX model ({type(error).__name__} while reading it): export the bundle again"
        ) from error


def opset_of(path: Path) -> int:
    """The version of the default operator set that an ONNX file imports.

    It is read from the protobuf (ModelProto.opset_import, field 8), because ONNX Runtime does not tell it and the `onnx`
    package is not part of serving.

    Raises:
        BundleError: the file is no ONNX model, or imports no operator set.
    """
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for field, start, end in _fields(data, 0, len(data)):
                if field == 8:
                    found = {number: (a, b) for number, a, b in _fields(data, start, end)}
                    if 1 not in found or found[1][0] == found[1][1]:  # domain "" is the default one
                        return _varint(data, found[2][0])[0]
    except (IndexError, KeyError, ValueError) as error:
        raise BundleError(
            f"{path} is not an ONNX model ({type(error).__name__} while reading it): export the bundle again"
        ) from error
    raise BundleError(f"{path} imports no operator set: export the bundle again")


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of each field of the protobuf message between two places."""
    while at < end:
        tag, at = _varint(data, at)
        start, kind = at, tag & 7
        if kind == 0:
            _, at = _varint(data, at)
        elif kind == 2:
            length, start = _varint(data, at)
            at = start + length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        yield tag >> 3, start, at


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """The number at a place, and the place after it."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def row_keys(path: Path, manifest: Manifest) -> NDArray[np.uint64]:
    """The keys (count,) of the items that the item graph knows, ascending; empty for other bundles.

    Raises:
        BundleError: the file holds another number of keys, or others than ascending ones.
    """
    if manifest.rows is None:
        return np.empty(0, dtype=np.uint64)
    keys = np.fromfile(path / manifest.rows.keys, dtype="<u8").astype(np.uint64)
    if keys.size != manifest.rows.count or (keys[1:] <= keys[:-1]).any():
        raise BundleError(
            f"{path / manifest.rows.keys} holds {keys.size} keys, expected {manifest.rows.count} in ascending order: "
            "export the bundle again"
        )
    return keys
