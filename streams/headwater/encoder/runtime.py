"""Bundles: exported encoders, checked on load and run through ONNX Runtime.

A bundle is a folder: `bundle.json` (see `bundle.py`) and the files that it names. All encoders are served this way: static
or language model, trained or training-free. Torch is never needed.

Shapes: B users, T events, D dimensions of an item vector, S numbers of a state, K interests of a user.
"""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

from headwater.encoder.bundle import (
    BundleError,
    Manifest,
    check_files,
    manifest_bytes,
    manifest_of,
    readable_actions,
    row_keys,
)
from headwater.encoder.features import ACTION_CODES, CANDIDATE_FEATURES, item_key, item_text_key
from headwater.encoder.neighbours import Neighbours, read
from headwater.encoder.readable import MOST_UNKNOWN, spelled
from headwater.encoder.sessions import Device, check_shapes, opened
from headwater.encoder.text_graph import TextGraph, no_rows

Floats = NDArray[np.float32]
log = logging.getLogger(__name__)


class ReadItems(NamedTuple):
    """Items as a bundle reads them: their vectors, and how much of their texts it does not know."""

    vectors: Floats  # (N, D)
    unknown: Floats  # (N,) the share of unknown tokens; 0 for bundles of item ids, and for items known by id

    @property
    def unreadable(self) -> NDArray[np.int64]:
        """(M,) places of the items whose vectors come from the spelling of their texts, since most tokens are unknown."""
        return np.flatnonzero(self.unknown > MOST_UNKNOWN)


class Encoder:
    """A loaded bundle. All methods block for the length of the computation and may be called from any thread.

    Raises:
        BundleError: a file is missing, damaged or of another version. :func:`load` also runs the probe.
    """

    def __init__(self, path: Path, threads: int, device: Device) -> None:
        self.path = path
        raw = manifest_bytes(path)
        self.manifest = manifest_of(path, raw)
        self.id = f"{self.manifest.name}-{hashlib.sha256(raw).hexdigest()[:12]}"
        self.name = self.manifest.name
        self.dim = self.manifest.dim
        self.state_size = self.manifest.state_size
        self.log_length = self.manifest.log_length
        self.interests = self.manifest.interests
        self.kind = self.manifest.kind
        self.item_inputs = self.manifest.item_inputs
        self.forgets = self.manifest.forgets
        # The number of a request's candidates that the score graph orders; 0: there is no such graph.
        self.pool = self.manifest.scoring.pool if self.manifest.scoring else 0
        self._told = places_of(self.manifest)
        check_files(path, self.manifest)
        self._readable_actions = readable_actions(self.manifest.actions)

        graphs = self.manifest.graphs
        self._item = opened(path, graphs.item, threads, device, self.manifest)
        # The recurrence is a few microseconds of arithmetic per user. A trip to an accelerator costs more than it saves.
        self._step = opened(path, graphs.step, threads, "cpu", self.manifest) if graphs.step else None
        self._read = opened(path, graphs.read, threads, "cpu", self.manifest) if graphs.read else None
        self._window = opened(path, graphs.window, threads, device, self.manifest) if graphs.window else None
        self._score = opened(path, graphs.score, threads, "cpu", self.manifest) if graphs.score else None
        self._text = _text_graph(path, self.manifest, self._item, threads)
        self._keys = row_keys(path, self.manifest)
        self.neighbours: Neighbours | None = read(path, self.manifest)
        self.providers: list[str] = (self._window or self._item).get_providers()
        check_shapes(self.manifest, self._item, self._step, self._read, self._window, self._score)

    def encode_items(self, texts: Sequence[str], item_ids: Sequence[str] | None = None) -> Floats:
        """Vectors (N, D) of N items.

        Args:
            texts: (N,) of :func:`headwater.encoder.features.item_text`; an `item_id` bundle does not read them.
            item_ids: (N,). Without them a text bundle encodes each item as one that it was not trained on.

        Raises:
            ValueError: an `item_id` bundle got no ids.
        """
        return self.read_items(texts, item_ids).vectors

    def read_items(self, texts: Sequence[str], item_ids: Sequence[str] | None = None) -> ReadItems:
        """As :meth:`encode_items`, with the share of unknown tokens in each text.

        Raises:
            ValueError: an `item_id` bundle got no ids.
        """
        if self.item_inputs == "item_id" and item_ids is None:
            raise ValueError(f"bundle {self.id} encodes item ids, got texts only: pass item_ids")
        count = len(texts) if item_ids is None else len(item_ids)
        rows = self._rows(item_ids, texts, count)
        if self._text is not None:
            prefix = self._text.text.prefix
            tokens = self._text.tokens(texts, prefix)
            unknown = np.where(rows == 0, self._text.unknown_shares(tokens, prefix), np.float32(0))
            return self._spelled(texts, ReadItems(self._text.vectors(tokens, rows, self.dim), unknown))
        vectors = np.empty((count, self.dim), dtype=np.float32)
        for chunk in _chunks(np.arange(count), 4096):
            (vectors[chunk],) = self._item.run(["vectors"], {"item_row": rows[chunk]})
        return ReadItems(vectors, np.zeros(count, dtype=np.float32))

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """Vectors (N, D) of N free texts that a user searches with, to compare with items'.

        Raises:
            ValueError: the bundle encodes item ids.
        """
        prefix = self.manifest.text.query_prefix if self.manifest.text else ""
        tokens = self.tokens(texts, prefix)
        assert self._text is not None
        vectors = self._text.vectors(tokens, no_rows(len(texts)), self.dim)
        if marks := self.manifest.marks:  # a query is no new item, and wants none before better matches
            vectors[:, -marks:] = 0.0
        return self._spelled(texts, ReadItems(vectors, self._text.unknown_shares(tokens, prefix))).vectors

    def _spelled(self, texts: Sequence[str], read: ReadItems) -> ReadItems:
        """With vectors of their spelling, as long as the graph's own, for texts that the graph cannot tell apart."""
        for place in read.unreadable.tolist():
            length = 1.0 if self.manifest.normalised else float(np.linalg.norm(read.vectors[place]))
            read.vectors[place] = length * spelled(texts[place], self.dim)
        return read

    def tokens(self, texts: Sequence[str], prefix: str = "") -> list[list[int]]:
        """Token ids of each text behind the prefix, cut to the bundle's length, unpadded.

        Raises:
            ValueError: the bundle encodes item ids and has no tokenizer.
        """
        if self._text is None:
            raise ValueError(f"bundle {self.id} encodes item ids and has no tokenizer")
        return self._text.tokens(texts, prefix)

    def step(
        self, state: Floats, items: Floats, actions: NDArray[np.int64], gaps_s: Floats, mask: Floats
    ) -> Floats:
        """States (B, S) after the events of each row. A row of padding alone keeps its state bit for bit.

        Args:
            state: (B, S) before.
            items: (B, T, D) vectors of the events' items, oldest event first, padding last.
            actions: (B, T) action codes; a code that the bundle does not know is read as a click.
            gaps_s: (B, T) seconds since the event before, clamped.
            mask: (B, T) 1 for an event, 0 for padding.

        Raises:
            BundleError: the bundle is windowed.
        """
        if self._step is None:
            raise BundleError(
                f"bundle {self.id} is {self.kind}, not recurrent: use window() over the newest events"
            )
        actions = self._readable(actions)
        feed = {"state": state, "items": items, "actions": actions, "gaps_s": gaps_s, "mask": mask}
        (new_state,) = self._step.run(["new_state"], feed)
        return np.asarray(new_state)

    def read(self, state: Floats, gap_to_now_s: Floats) -> tuple[Floats, Floats]:
        """Interests (B, K, D) and their weights (B, K).

        Args:
            state: (B, S).
            gap_to_now_s: (B,) seconds since each user's last event.

        Raises:
            BundleError: the bundle is windowed.
        """
        if self._read is None:
            raise BundleError(
                f"bundle {self.id} is {self.kind}, not recurrent: use window() over the newest events"
            )
        interests, weights = self._read.run(
            ["interests", "weights"], {"state": state, "gap_to_now_s": gap_to_now_s}
        )
        return interests, weights

    def window(
        self, items: Floats, actions: NDArray[np.int64], gaps_s: Floats, mask: Floats, gap_to_now_s: Floats
    ) -> tuple[Floats, Floats]:
        """Interests (B, K, D) and weights (B, K) from the newest events, shaped as for :meth:`step` and :meth:`read`.

        Raises:
            BundleError: the bundle is recurrent.
        """
        if self._window is None:
            raise BundleError(f"bundle {self.id} is {self.kind}, not windowed: use step() and read()")
        feed = {
            "items": items,
            "actions": self._readable(actions),
            "gaps_s": gaps_s,
            "mask": mask,
            "gap_to_now_s": gap_to_now_s,
        }
        interests, weights = self._window.run(["interests", "weights"], feed)
        return interests, weights

    def answer(
        self, items: Floats, actions: NDArray[np.int64], gaps_s: Floats, mask: Floats, gap_to_now_s: Floats
    ) -> tuple[Floats, Floats]:
        """Interests (B, K, D) and weights (B, K) from whole histories, for a bundle of either kind."""
        if self.kind == "windowed":
            return self.window(items, actions, gaps_s, mask, gap_to_now_s)
        state = self.step(self.initial_state(len(items)), items, actions, gaps_s, mask)
        return self.read(state, gap_to_now_s)

    def score(self, features: Floats, interests: Floats, items: Floats) -> Floats:
        """Scores (C,) of C candidates between 0 and 1: how likely the user takes each next.

        Args:
            features: (C, features) of :func:`headwater.encoder.features.candidate_features`.
            interests: (C, D) the interest that each candidate is nearest to.
            items: (C, D) the candidates' own vectors.

        Raises:
            BundleError: the bundle has no score graph.
        """
        if self._score is None:
            raise BundleError(
                f"bundle {self.id} has no score graph: train one over it, `headwater train deepfm`"
            )
        feed = {"features": features[:, self._told], "nearest": interests, "candidates": items}
        (scores,) = self._score.run(["scores"], feed)
        return np.asarray(scores)

    def initial_state(self, users: int) -> Floats:
        """The states (users, S) of users without events."""
        return np.zeros((users, self.state_size), dtype=np.float32)

    def _readable(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Action codes, of any shape, as the bundle reads them: those that it was not trained with as a click."""
        return actions if self._readable_actions is None else self._readable_actions[actions]

    def _rows(self, item_ids: Sequence[str] | None, texts: Sequence[str], count: int) -> NDArray[np.int64]:
        if item_ids is None or self.manifest.rows is None or self._keys.size == 0:
            return no_rows(count)
        if self.manifest.rows.by == "item_and_text":
            named = (item_text_key(*item) for item in zip(item_ids, texts, strict=True))
        else:
            named = (item_key(item_id) for item_id in item_ids)
        keys = np.fromiter(named, dtype=np.uint64, count=count)
        places = np.searchsorted(self._keys, keys).clip(max=self._keys.size - 1)
        return np.where(self._keys[places] == keys, places + 1, 0).astype(np.int64)


def load(path: Path, *, threads: int = 1, device: Device = "auto") -> Encoder:
    """The bundle in a folder, checked: format, files, opset, dimensions, and one run of its probe.

    Args:
        threads: of ONNX Runtime, for each graph.
        device: `auto` uses CUDA if this ONNX Runtime has it; `cuda` insists.

    Raises:
        BundleError: with the file, the value seen, the value expected and the remedy.
    """
    encoder = Encoder(path, threads, device)
    _check_probe(encoder)
    log.info("bundle %s runs on %s with %d thread(s)", encoder.id, ", ".join(encoder.providers), threads)
    return encoder


def _text_graph(path: Path, manifest: Manifest, item: ort.InferenceSession, threads: int) -> TextGraph | None:
    if manifest.text is None:
        return None
    # Read once by the tokenizers library at its first batch; without it, one-thread encoders would use every core.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if threads > 1 else "false")
    try:
        tokenizer = Tokenizer.from_file(str(path / manifest.text.tokenizer))
    except Exception as error:  # the tokenizers library raises plain Exception
        raise BundleError(f"cannot read the tokenizer {path / manifest.text.tokenizer}: {error}") from error
    return TextGraph(item, tokenizer, manifest.text)


def places_of(manifest: Manifest) -> slice | list[int]:
    """Where the features that the score graph reads stand among those that there are."""
    names = manifest.scoring.features if manifest.scoring else CANDIDATE_FEATURES
    if tuple(names) == CANDIDATE_FEATURES[: len(names)]:  # all, or those of an earlier version
        return slice(len(names))
    return [CANDIDATE_FEATURES.index(name) for name in names]


def _check_probe(encoder: Encoder) -> None:
    probe = encoder.manifest.probe
    try:
        vectors = encoder.encode_items(probe.texts, probe.item_ids)
        _agree(encoder, "item vectors", vectors, probe.vectors, probe.tolerance)
        interests, weights = fold(
            encoder,
            vectors[None],
            [probe.actions],
            np.array([probe.gaps_s], np.float32),
            np.array([probe.gap_to_now_s], np.float32),
        )
        _agree(encoder, "interests", interests[0], probe.interests, probe.tolerance)
        if scoring := encoder.manifest.scoring:
            scores = probe_scores(encoder, vectors, interests[0], scoring.probe)
            _agree(encoder, "scores", scores[:, None], [[score] for score in scoring.scores], probe.tolerance)
    except BundleError:
        raise
    except Exception as error:  # a graph with wrong inputs fails inside ONNX Runtime, in no particular class
        raise BundleError(f"bundle {encoder.id} cannot run its own probe: {error}") from error
    if not np.isfinite(weights).all():
        raise BundleError(
            f"bundle {encoder.id} gives weights {weights.tolist()} for its probe: export it again"
        )


def probe_scores(
    encoder: Encoder, vectors: Floats, interests: Floats, features: Sequence[Sequence[float]]
) -> Floats:
    """Scores (events,) of the probe's items as candidates for its first interest.

    Args:
        vectors: (events, D) of the items.
        interests: (K, D).
        features: (events, features).
    """
    nearest = np.repeat(interests[:1], len(vectors), axis=0)
    return encoder.score(np.array(features, dtype=np.float32), nearest, vectors)


def fold(
    encoder: Encoder, items: Floats, actions: Sequence[Sequence[str]], gaps_s: Floats, gap_to_now_s: Floats
) -> tuple[Floats, Floats]:
    """Interests (B, K, D) and weights (B, K) from whole logs of equal length.

    Args:
        items: (B, T, D) vectors, oldest event first.
        actions: (B, T) names.
        gaps_s: (B, T) seconds since the event before.
        gap_to_now_s: (B,) seconds since the last event.
    """
    known = {**encoder.manifest.actions, **ACTION_CODES}
    codes = np.array([[known[action] for action in row] for row in actions], dtype=np.int64)
    mask = np.ones(codes.shape, dtype=np.float32)
    return encoder.answer(items, codes, gaps_s, mask, gap_to_now_s)


def _agree(encoder: Encoder, what: str, got: Floats, expected: list[list[float]], tolerance: float) -> None:
    wanted = np.array(expected, dtype=np.float32)
    if got.shape != wanted.shape:
        raise BundleError(
            f"bundle {encoder.id} gives {what} of shape {got.shape}, its probe says {wanted.shape}: export it again"
        )
    if not np.isfinite(got).all():
        raise BundleError(f"bundle {encoder.id} gives NaN or infinite {what} for its probe: export it again")
    worst, allowed = float(np.abs(got - wanted).max()), tolerance * float(np.abs(wanted).max())
    if worst > allowed:
        raise BundleError(
            f"bundle {encoder.id} gives {what} that differ by {worst:.3g} from its probe, allowed {allowed:.3g}, on "
            f"{', '.join(encoder.providers)}: this ONNX Runtime ({ort.__version__}) computes something else; "
            "try another version or device cpu, or export it again"
        )


def _chunks(order: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]
