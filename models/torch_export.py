"""From trained torch modules to ONNX graphs, and the proof that both compute the same."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim

from models.mean import OPSET
from models.recurrent import Read, Recurrent, Step
from models.static_tower import ServedTower, StaticTower
from streams.encoder import Encoder
from streams.features import ACTION_CODES, MAX_GAP_S

# Single precision sums in another order differ by some 1e-6 of the largest value; ten times that is still no ranking.
TOLERANCE = 2e-5


def save_tower(tower: StaticTower, path: Path) -> None:
    """The item graph."""
    ids = torch.tensor([[5, 6, 7], [8, 9, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    names = ["input_ids", "attention_mask", "item_row"]
    items, tokens = Dim("items"), Dim("tokens")
    shapes = ({0: items, 1: tokens}, {0: items, 1: tokens}, {0: items})
    _save(ServedTower(tower), (ids, mask, torch.tensor([0, 1])), path, names, ["vectors"], shapes)


def save_recurrent(encoder: Recurrent, folder: Path) -> None:
    """The step and read graphs."""
    state, items, actions, gaps, mask, now = _random_events(encoder, users=3, events=4)
    users, events = Dim("users"), Dim("events")
    row = {0: users, 1: events}
    names = ["state", "items", "actions", "gaps_s", "mask"]
    given = (state, items, actions, gaps, mask)
    _save(Step(encoder), given, folder / "step.onnx", names, ["new_state"], ({0: users}, row, row, row, row))
    outputs = ["interests", "weights"]
    _save(
        Read(encoder),
        (state, now),
        folder / "read.onnx",
        ["state", "gap_to_now_s"],
        outputs,
        ({0: users}, {0: users}),
    )


def check_against_torch(
    exported: Encoder, tower: StaticTower, encoder: Recurrent, texts: Sequence[str]
) -> None:
    """Raise AssertionError unless bundle and modules agree within TOLERANCE of the largest value."""
    with torch.inference_mode():
        served = ServedTower(tower).eval()
        for text, ids in zip(texts, exported.tokens(texts), strict=True):
            given = torch.tensor([ids or [0]])
            mask = torch.full_like(given, 1 if ids else 0)
            _agree(
                exported.encode_items([text]),
                served(given, mask, torch.tensor([0])).numpy(),
                f"vector of {text!r}",
            )
        state, items, actions, gaps, mask, now = _random_events(encoder, users=32, events=exported.log_length)
        new = encoder.step(state, items, actions, gaps, mask)
        _agree(
            exported.step(state.numpy(), items.numpy(), actions.numpy(), gaps.numpy(), mask.numpy()),
            new.numpy(),
            "states",
        )
        _agree(exported.read(new.numpy(), now.numpy())[0], encoder.read(new, now)[0].numpy(), "interests")


def _random_events(
    encoder: Recurrent, users: int, events: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    config = encoder.config
    lengths = torch.randint(1, events + 1, (users, 1), generator=generator)
    return (
        torch.randn(users, config.state, generator=generator),
        torch.randn(users, events, config.dim, generator=generator),
        torch.randint(1, max(ACTION_CODES.values()) + 1, (users, events), generator=generator),
        torch.rand(users, events, generator=generator) ** 4 * MAX_GAP_S,
        (torch.arange(events) < lengths).float(),
        torch.rand(users, generator=generator) * MAX_GAP_S,
    )


def _agree(got: NDArray[np.float32], wanted: NDArray[np.float32], what: str) -> None:
    worst, largest = float(np.abs(got - wanted).max()), float(np.abs(wanted).max())
    if not worst <= TOLERANCE * max(largest, 1e-3):
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            given,
            path,
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
