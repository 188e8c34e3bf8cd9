"""Trained torch modules as ONNX graphs, and the check that both compute the same."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from headwater.encoder.bundle import Graphs
from headwater.encoder.features import ACTION_CODES, CANDIDATE_FEATURES, MAX_GAP_S
from headwater.encoder.runtime import Encoder
from headwater_models.arrays import F32
from headwater_models.bundles.export import OPSET
from headwater_models.networks import CandidateScorer, WindowedEncoder
from headwater_models.networks.static_tower import ServedTower, StaticTower

# Single precision sums in another order differ by some 1e-6 of the largest value; ten times that is still no ranking.
TOLERANCE = 2e-5
EVENTS = ["items", "actions", "gaps_s", "mask"]


def save_tower(tower: StaticTower, path: Path) -> None:
    """Write the item graph of a text tower."""
    ids = torch.tensor([[5, 6, 7], [8, 9, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    names = ["input_ids", "attention_mask", "item_row"]
    items, tokens = Dim("items"), Dim("tokens")
    shapes = ({0: items, 1: tokens}, {0: items, 1: tokens}, {0: items})
    _save(ServedTower(tower), (ids, mask, torch.tensor([0, 1])), path, names, ["vectors"], shapes)


class StatefulEncoder(Protocol):
    """A user encoder with a state: that of the bundle of groceries, or one of `headwater_models.networks`."""

    dim: int
    state_size: int

    def step(self, state: Tensor, items: Tensor, actions: Tensor, gaps_s: Tensor, mask: Tensor) -> Tensor:
        """States (users, S), items (users, T, dim), the rest (users, T) -> new states (users, S)."""

    def read(self, state: Tensor, gap_to_now_s: Tensor) -> tuple[Tensor, Tensor]:
        """States (users, S), gaps (users,) in seconds -> interests (users, K, dim), weights (users, K)."""


def save_table(vectors: Tensor, path: Path) -> None:
    """Write the item graph of a catalog without text: row -> vector, from vectors (rows, dim)."""
    table = nn.Embedding.from_pretrained(vectors)
    _save(table, (torch.tensor([0, 1]),), path, ["item_row"], ["vectors"], ({0: Dim("items")},))


def save_recurrent(encoder: StatefulEncoder, folder: Path) -> Graphs:
    """Write the step and read graphs."""
    state, *events, now = _random_events(encoder.dim, encoder.state_size, users=3, events=4)
    users = {0: Dim("users")}
    row = {**users, 1: Dim("events")}
    names = ["state", *EVENTS]
    _save(
        _Step(encoder),
        (state, *events),
        folder / "step.onnx",
        names,
        ["new_state"],
        (users, row, row, row, row),
    )
    names, outputs = ["state", "gap_to_now_s"], ["interests", "weights"]
    _save(_Read(encoder), (state, now), folder / "read.onnx", names, outputs, (users, users))
    return Graphs("item.onnx", step="step.onnx", read="read.onnx")


def save_windowed(encoder: WindowedEncoder, folder: Path, length: int) -> Graphs:
    """Write the window graph, over at most `length` events."""
    _, *events, now = _random_events(encoder.dim, 0, users=3, events=4)
    users = {0: Dim("users")}
    row = {**users, 1: Dim("events", max=length)}
    names, outputs = [*EVENTS, "gap_to_now_s"], ["interests", "weights"]
    _save(
        _Window(encoder), (*events, now), folder / "window.onnx", names, outputs, (row, row, row, row, users)
    )
    return Graphs("item.onnx", window="window.onnx")


def save_scorer(scorer: CandidateScorer, dim: int, path: Path) -> None:
    """Write the score graph, for vectors of `dim` numbers."""
    given = _random_candidates(dim, 3)
    rows = {0: Dim("candidates")}
    names = ["features", "nearest", "candidates"]
    _save(_Score(scorer), given, path, names, ["scores"], (rows, rows, rows))


def check_tower(exported: Encoder, tower: StaticTower, texts: Sequence[str]) -> None:
    """Raises AssertionError unless bundle and tower agree within TOLERANCE of the largest value."""
    with torch.inference_mode():
        served = ServedTower(tower).eval()
        for text, ids in zip(texts, exported.tokens(texts), strict=True):
            given = torch.tensor([ids or [0]])
            mask = torch.full_like(given, 1 if ids else 0)
            wanted = served(given, mask, torch.tensor([0])).numpy()
            _agree(exported.encode_items([text]), wanted, f"vector of {text!r}")


def check_recurrent(exported: Encoder, encoder: StatefulEncoder) -> None:
    """`check_tower` for a recurrent user encoder, on random logs, whole and event by event. Raises AssertionError."""
    with torch.inference_mode():
        state, *events, now = _random_events(encoder.dim, encoder.state_size, 32, exported.log_length)
        new = encoder.step(state, *events)
        stepped = state.numpy()
        _agree(exported.step(stepped, *(part.numpy() for part in events)), new.numpy(), "states")
        for place in range(exported.log_length):
            stepped = exported.step(stepped, *(part[:, place : place + 1].numpy() for part in events))
        _agree(stepped, new.numpy(), "states, step by step")
        _agree(exported.read(new.numpy(), now.numpy())[0], encoder.read(new, now)[0].numpy(), "interests")


def check_windowed(exported: Encoder, encoder: WindowedEncoder) -> None:
    """`check_tower` for a windowed user encoder. Raises AssertionError."""
    with torch.inference_mode():
        _, *events, now = _random_events(encoder.dim, 0, 32, exported.log_length)
        items, actions, gaps_s, mask = (part.numpy() for part in events)
        got = exported.window(items, actions, gaps_s, mask, now.numpy())
        for one, other, what in zip(
            got,
            encoder.window(events[0], events[1], events[2], events[3], now),
            ("interests", "weights"),
            strict=True,
        ):
            _agree(one, other.numpy(), what)


def check_scorer(exported: Encoder, scorer: CandidateScorer) -> None:
    """`check_tower` for a score graph, on random candidates with typical features. Raises AssertionError.

    Scores below a tenth count as a tenth.
    """
    with torch.inference_mode():
        features, *vectors = _random_candidates(exported.dim, 500)
        given = (scorer.mean + features / scorer.scale, *vectors)
        wanted = _Score(scorer).eval()(*given).numpy()
        _agree(exported.score(*(part.numpy() for part in given)), wanted, "scores", least=0.1)


def _random_candidates(dim: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    widths = (len(CANDIDATE_FEATURES), dim, dim)
    features, nearest, candidates = (torch.randn(count, width, generator=generator) for width in widths)
    return features, nearest, candidates


def _random_events(dim: int, state_size: int, users: int, events: int) -> tuple[Tensor, ...]:
    """State, items, actions, gaps, mask and the gap to now."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, events + 1, (users, 1), generator=generator)
    return (
        torch.randn(users, state_size, generator=generator),
        torch.randn(users, events, dim, generator=generator),
        torch.randint(1, max(ACTION_CODES.values()) + 1, (users, events), generator=generator),
        torch.rand(users, events, generator=generator) ** 4 * MAX_GAP_S,
        (torch.arange(events) < lengths).float(),
        torch.rand(users, generator=generator) * MAX_GAP_S,
    )


class _Step(nn.Module):
    def __init__(self, encoder: StatefulEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, state: Tensor, items: Tensor, actions: Tensor, gaps_s: Tensor, mask: Tensor) -> Tensor:
        return self.encoder.step(state, items, actions, gaps_s, mask)


class _Read(nn.Module):
    def __init__(self, encoder: StatefulEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, state: Tensor, gap_to_now_s: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder.read(state, gap_to_now_s)


class _Window(nn.Module):
    def __init__(self, encoder: WindowedEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, items: Tensor, actions: Tensor, gaps_s: Tensor, mask: Tensor, gap_to_now_s: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.encoder.window(items, actions, gaps_s, mask, gap_to_now_s)


class _Score(nn.Module):
    def __init__(self, scorer: CandidateScorer) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, features: Tensor, nearest: Tensor, candidates: Tensor) -> Tensor:
        return torch.sigmoid(self.scorer(features, nearest, candidates))


def _agree(got: F32, wanted: F32, what: str, least: float = 1e-3) -> None:
    worst, largest = float(np.abs(got - wanted).max()), float(np.abs(wanted).max())
    if not worst <= TOLERANCE * max(largest, least):
        raise AssertionError(
            f"ONNX Runtime and torch differ by {worst:.3g} in the {what} (largest value {largest:.3g}), "
            f"allowed is {TOLERANCE:g} of the largest: do not ship this export"
        )


def _save(
    module: nn.Module,
    given: tuple[Tensor, ...],
    path: Path,
    inputs: list[str],
    outputs: list[str],
    shapes: tuple[dict[int, Dim], ...],
) -> None:
    # The exporter warns of its own deprecated calls and of torchvision, which nothing here uses.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    # The exporter puts a loop in place of this operator. Torch keeps which code it found for it after an earlier export, and so
    # would unroll the events of the example: a graph for that many events alone.
    torch.ops.aten.gru.input._dispatch_cache.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            given,
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    # The exporter notes the code behind each node by file and line: half of a small graph, other bytes wherever the code lies, and
    # a path of the machine in every bundle.
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    program.save(path, external_data=False)
