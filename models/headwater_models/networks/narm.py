"""NARM: a gated recurrent unit, and attention of its last state over all states.

Li et al., CIKM 2017 (arXiv:1711.04725).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headwater_models.networks.user_encoder import Elapsed, Events, Inputs, WindowedEncoder, at_last


@dataclass(frozen=True)
class NARMConfig:
    """Sizes of NARM."""

    dim: int = 64
    hidden: int = 128
    dropout: float = 0.5


class NARM(WindowedEncoder):
    """Li et al., CIKM 2017. Windowed; one interest."""

    def __init__(self, config: NARMConfig) -> None:
        super().__init__(config.dim)
        self.inputs = Inputs(config.dim, config.dropout)
        self.gru = nn.GRU(config.dim, config.hidden, batch_first=True)
        self.asked = nn.Linear(config.hidden, config.hidden, bias=False)
        self.seen = nn.Linear(config.hidden, config.hidden, bias=False)
        self.weight = nn.Linear(config.hidden, 1, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.out = nn.Linear(2 * config.hidden, config.dim)
        self.norm = nn.LayerNorm(config.dim)
        self.elapsed = Elapsed(config.dim)

    def forward(self, events: Events, gaps_to_next_s: Tensor) -> Tensor:
        """User vectors after each event, (users, T, 1, dim), read `gaps_to_next_s` (users, T) later."""
        worth = self.inputs.worth(events.actions).exp()
        states, _ = self.gru(self.inputs(events) * worth[..., None])  # (users, T, hidden)
        fits = torch.sigmoid(self.asked(states)[:, :, None] + self.seen(states)[:, None])
        weights = self.weight(fits)[..., 0].tril()  # (users, T, T): of the states up to each
        purpose = weights @ states
        out = self.norm(self.out(self.dropout(torch.cat([states, purpose], dim=-1))))
        vectors: Tensor = out + self.elapsed(gaps_to_next_s)
        return vectors.unsqueeze(2)

    def window(
        self, items: Tensor, actions: Tensor, gaps_s: Tensor, mask: Tensor, gap_to_now_s: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Interests (users, 1, dim) and weights (users, 1). Only the last state attends: `forward`, where each state does, needs
        T times the memory.
        """
        worth = self.inputs.worth(actions).exp()
        states, _ = self.gru(self.inputs(Events(items, actions, gaps_s, mask)) * worth[..., None])
        last = at_last(states, mask)  # (users, hidden)
        fits = torch.sigmoid(self.asked(last)[:, None] + self.seen(states))
        weights = self.weight(fits)[..., 0] * mask  # (users, T)
        purpose = (weights[:, None] @ states)[:, 0]
        out = self.norm(self.out(self.dropout(torch.cat([last, purpose], dim=-1))))
        vectors = (out + self.elapsed(gap_to_now_s)).unsqueeze(1)
        return self.scored(vectors), mask.amax(1, keepdim=True)
