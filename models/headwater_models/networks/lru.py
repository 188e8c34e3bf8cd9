"""LRURec: a diagonal linear recurrence, parallel over positions in training, one step per click when serving.

Yue et al., WSDM 2024 (arXiv:2310.02367). Decays are real, not complex, so that they can depend on elapsed time:
each channel forgets at its own rate per event and per second.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwater.encoder.bundle import MAX_LOG_LENGTH
from headwater_models.networks.user_encoder import (
    Elapsed,
    Events,
    FeedForward,
    Inputs,
    RecurrentEncoder,
    at_last,
)


@dataclass(frozen=True)
class LRUConfig:
    """Sizes of LRURec, and how much a channel may keep."""

    dim: int = 64
    width: int = 128  # channels of a block
    blocks: int = 1
    # Upper bound of what a channel keeps per event. 0.85^50 = 0.0003, so after L events older ones leave no trace and
    # the engine never has to fold again (`forgets` in the manifest).
    keep_max: float = 0.85
    dropout: float = 0.5


class LRURec(RecurrentEncoder):
    """Yue et al., WSDM 2024. Recurrent; the state is every block's channels and the last output:
    S = blocks * width + dim.
    """

    def __init__(self, config: LRUConfig) -> None:
        super().__init__(config.dim, config.blocks * config.width + config.dim)
        self.config = config
        self.inputs = Inputs(config.dim, config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.elapsed = Elapsed(config.dim)

    def run(self, state: Tensor, events: Events) -> tuple[Tensor, Tensor]:
        """Outputs (users, T, dim) after each event, and the states (users, S) after all."""
        *channels, output = state.split([self.config.width] * self.config.blocks + [self.config.dim], dim=1)
        x = self._read(events)
        states = []
        for block, before in zip(self.blocks, channels, strict=True):
            x, after = block(x, before, events.gaps_s, events.mask)
            states.append(after)
        output = torch.where(events.mask.amax(1, keepdim=True) > 0, at_last(x, events.mask), output)
        return x, torch.cat([*states, output], dim=1)

    def step(self, state: Tensor, items: Tensor, actions: Tensor, gaps_s: Tensor, mask: Tensor) -> Tensor:
        """The new states (users, S) of `run`. The last block computes its output for the last event only, so one event
        costs one step.
        """
        *channels, output = state.split([self.config.width] * self.config.blocks + [self.config.dim], dim=1)
        x = self._read(Events(items, actions, gaps_s, mask))
        states = []
        *before_last, last = self.blocks
        for block, before in zip(before_last, channels[:-1], strict=True):
            x, after = block(x, before, gaps_s, mask)
            states.append(after)
        assert isinstance(last, Block)
        x_last, after = last.fold(x, channels[-1], gaps_s, mask)
        output = torch.where(mask.amax(1, keepdim=True) > 0, x_last, output)
        return torch.cat([*states, after, output], dim=1)

    def _read(self, events: Events) -> Tensor:
        """Events -> (users, T, dim), each as long as its action is worth."""
        out: Tensor = self.inputs(events) * self.inputs.worth(events.actions).exp()[..., None]
        return out

    def outputs(self, state: Tensor) -> Tensor:
        """The last output that the state holds: (users, S) -> (users, dim)."""
        return state[:, -self.config.dim :]

    def vectors(self, outputs: Tensor, gaps_s: Tensor) -> Tensor:
        """User vectors (..., dim) from outputs (..., dim), read `gaps_s` (...) seconds later."""
        vectors: Tensor = outputs + self.elapsed(gaps_s)
        return vectors


class Block(nn.Module):
    """Recurrence and feed-forward, each with residual and LayerNorm; it collapses without either (ablation in
    the paper).
    """

    def __init__(self, config: LRUConfig) -> None:
        super().__init__()
        self.keep_max = config.keep_max
        # The logit of what a channel keeps per event, and the log of its decay rate: e^-18 a second is once in two years.
        self.keep = nn.Parameter(torch.logit(torch.linspace(0.3, 0.95, config.width)))
        self.cooling = nn.Parameter(torch.full((config.width,), -18.0))
        self.into = nn.Linear(config.dim, config.width)
        self.out = nn.Linear(config.width, config.dim)
        self.feed_forward = FeedForward(config.dim, 4 * config.dim, config.dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(config.dim) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, state: Tensor, gaps_s: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(users, T, dim), state (users, width), gaps and mask (users, T) -> outputs (users, T, dim), state
        (users, width).
        """
        values, log_keep = self._steps(x, gaps_s, mask)
        channels = recurrence(values, log_keep.exp(), state)
        return self._read(x, channels), channels[:, -1]

    def fold(self, x: Tensor, state: Tensor, gaps_s: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` at each user's last event only: output (users, dim), state (users, width)."""
        channels = last_channels(*self._steps(x, gaps_s, mask), state)
        return self._read(at_last(x, mask), channels), channels

    def _steps(self, x: Tensor, gaps_s: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Input of each event, and the log of what it keeps of the state: twice (users, T, width)."""
        log_keep = math.log(self.keep_max) + F.logsigmoid(self.keep)
        share = torch.sqrt(1 - (2 * log_keep).exp())  # the paper's gamma: channels of equal variance
        real = mask[..., None]
        return self.into(x) * share * real, (log_keep - gaps_s[..., None] * self.cooling.exp()) * real

    def _read(self, x: Tensor, channels: Tensor) -> Tensor:
        x = self.norms[0](x + self.dropout(self.out(channels)))
        out: Tensor = self.norms[1](x + self.dropout(self.feed_forward(x)))
        return out


def last_channels(values: Tensor, log_keep: Tensor, state: Tensor) -> Tensor:
    """The last h of `recurrence` in one sum: values and log_keep (users, T, width), state (users, width) -> (users, width).

    What came in at t is decayed by the events that follow it.
    """
    kept = log_keep.flip(1).cumsum(1).flip(1)  # over an event and all that follow it
    following = F.pad(kept[:, 1:], (0, 0, 0, 1))
    return kept[:, 0].exp() * state + (following.exp() * values).sum(1)


def recurrence(values: Tensor, keep: Tensor, state: Tensor) -> Tensor:
    """h_t = keep_t h_{t-1} + values_t for all t at once.

    values and keep (users, T, width), state (users, width) -> h (users, T, width). It doubles its reach: after the pass
    with `reach`, h_t holds the newest 2 `reach` events.
    """
    h = torch.cat([values[:, :1] + keep[:, :1] * state[:, None], values[:, 1:]], dim=1)
    places = torch.arange(values.shape[1], device=values.device)
    # A graph serves every T that a log can have; in training T is known.
    longest = MAX_LOG_LENGTH if torch.compiler.is_exporting() else values.shape[1]
    reach = 1
    while reach < longest:
        earlier = (places - reach).clamp(min=0)
        # A keep of zero cuts off positions before the first event.
        keep = keep * (places >= reach)[:, None]
        h = h + keep * h.index_select(1, earlier)
        keep = keep * keep.index_select(1, earlier)
        reach *= 2
    return h
