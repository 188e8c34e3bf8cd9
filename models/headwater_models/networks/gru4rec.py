"""GRU4Rec: a gated recurrent unit over the items.

Hidasi et al., ICLR 2016 (arXiv:1511.06939), trained here with a softmax over the catalog, which makes it much
stronger than the published losses do.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headwater_models.networks.user_encoder import Elapsed, Events, Inputs, RecurrentEncoder, at_last


@dataclass(frozen=True)
class GRU4RecConfig:
    """Sizes of GRU4Rec."""

    dim: int = 64
    hidden: int = 128
    dropout: float = 0.5


class GRU4Rec(RecurrentEncoder):
    """Hidasi et al., ICLR 2016. Recurrent; the state is the hidden vector (hidden,)."""

    def __init__(self, config: GRU4RecConfig) -> None:
        super().__init__(config.dim, config.hidden)
        self.inputs = Inputs(config.dim, config.dropout)
        self.gru = nn.GRU(config.dim, config.hidden, batch_first=True)
        self.dropout = nn.Dropout(config.dropout)
        self.out = nn.Linear(config.hidden, config.dim)
        self.norm = nn.LayerNorm(config.dim)
        self.elapsed = Elapsed(config.dim)

    def run(self, state: Tensor, events: Events) -> tuple[Tensor, Tensor]:
        """Outputs (users, T, hidden) after each event, and the states (users, hidden) after all."""
        x = self.inputs(events) * self.inputs.worth(events.actions).exp()[..., None]
        x, _ = self.gru(x, state[None])
        return x, torch.where(events.mask.amax(1, keepdim=True) > 0, at_last(x, events.mask), state)

    def outputs(self, state: Tensor) -> Tensor:
        """The state itself: (users, hidden)."""
        return state

    def vectors(self, outputs: Tensor, gaps_s: Tensor) -> Tensor:
        """User vectors (..., dim) from outputs (..., hidden), read `gaps_s` (...) seconds later."""
        vectors: Tensor = self.norm(self.out(self.dropout(outputs))) + self.elapsed(gaps_s)
        return vectors
