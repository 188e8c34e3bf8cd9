"""ComiRec-SA: several interests, each with its own attention over the events.

Cen et al., KDD 2020 (arXiv:2005.09347). In place of position embeddings each interest has a slope: how much less an
event counts for every event after it. One computation thus serves all prefixes at once in training.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwater_models.networks.user_encoder import Elapsed, Events, Inputs, WindowedEncoder


@dataclass(frozen=True)
class MultiInterestConfig:
    """Sizes of ComiRec-SA."""

    dim: int = 64
    interests: int = 4
    hidden: int = 256
    dropout: float = 0.5


class MultiInterest(WindowedEncoder):
    """Cen et al., KDD 2020. Windowed; K interests."""

    def __init__(self, config: MultiInterestConfig) -> None:
        super().__init__(config.dim, config.interests)
        self.inputs = Inputs(config.dim, config.dropout)
        self.into = nn.Linear(config.dim, config.hidden)
        self.heads = nn.Linear(config.hidden, config.interests)
        self.slope = nn.Parameter(torch.linspace(-2.0, 1.0, config.interests))
        self.out = nn.Linear(config.dim, config.dim)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.elapsed = Elapsed(config.dim)

    def forward(self, events: Events, gaps_to_next_s: Tensor) -> Tensor:
        """User vectors after each event, (users, T, K, dim), read `gaps_to_next_s` (users, T) later."""
        x = self.inputs(events)
        places = torch.arange(x.shape[1], device=x.device)
        back = (places[:, None] - places).clamp(min=0)[..., None] * F.softplus(
            self.slope
        )  # (T, T, interests)
        own = self.heads(torch.tanh(self.into(x))) + self.inputs.worth(events.actions)[..., None]
        scores = own[:, None] - back  # (users, T, T, interests)
        scores = scores.masked_fill((places[:, None] < places)[..., None], -1e4)
        mixed = torch.einsum("utsk,usd->utkd", scores.softmax(2), x)
        out = self.norm(mixed + self.out(self.dropout(F.gelu(mixed))))
        vectors: Tensor = out + self.elapsed(gaps_to_next_s)[:, :, None]
        return vectors
