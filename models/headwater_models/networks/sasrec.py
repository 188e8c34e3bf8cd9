"""SASRec: causal self-attention over the newest events.

Kang and McAuley, ICDM 2018 (arXiv:1808.09781), with pre-LayerNorm blocks and GELU.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headwater_models.networks.user_encoder import Elapsed, Events, FeedForward, Inputs, WindowedEncoder


@dataclass(frozen=True)
class SASRecConfig:
    """Sizes of SASRec."""

    dim: int = 64
    length: int = 50  # events of a window, at most
    blocks: int = 2
    heads: int = 2
    dropout: float = 0.5


class SASRec(WindowedEncoder):
    """Kang and McAuley, ICDM 2018. Windowed; one interest."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__(config.dim)
        self.config = config
        self.inputs = Inputs(config.dim, config.dropout)
        self.trunk = Trunk(config.dim, config.length, config.blocks, config.heads, config.dropout)
        self.elapsed = Elapsed(config.dim)

    def forward(self, events: Events, gaps_to_next_s: Tensor) -> Tensor:
        """User vectors after each event, (users, T, 1, dim), read `gaps_to_next_s` (users, T) later."""
        places = torch.arange(events.mask.shape[1], device=events.mask.device)
        worth = self.inputs.worth(events.actions)[:, None, None]
        x = self.trunk(self.inputs(events), places[:, None] >= places, worth)
        vectors: Tensor = x + self.elapsed(gaps_to_next_s)
        return vectors[:, :, None]


class Trunk(nn.Module):
    """Position embeddings and blocks of self-attention; shared with BERT4Rec."""

    def __init__(self, dim: int, length: int, blocks: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.positions = nn.Parameter(0.02 * torch.randn(length, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, visible: Tensor, worth: Tensor) -> Tensor:
        """(users, T, dim) -> (users, T, dim).

        `visible` (..., T, T): which positions each position attends to; `worth` (users, 1, 1, T) is added to the scores of
        attention: an event of twice the worth gets twice the weight of its equal.
        """
        x = x + self.positions[: x.shape[1]]
        # -1e4 and not -inf: a row that sees nothing must not become NaN.
        hidden = torch.where(visible, 0.0, -1e4) + worth
        for block in self.blocks:
            x = block(x, hidden)
        out: Tensor = self.norm(x)
        return out


class Block(nn.Module):
    """Self-attention and feed-forward, each behind a LayerNorm and with a residual."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.queries_keys_values = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.feed_forward = FeedForward(dim, 4 * dim, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """(users, T, dim) -> (users, T, dim); `hidden` (..., T, T) is added to the attention scores."""
        x = x + self.dropout(self.out(self._attention(self.norms[0](x), hidden)))
        out: Tensor = x + self.dropout(self.feed_forward(self.norms[1](x)))
        return out

    def _attention(self, x: Tensor, hidden: Tensor) -> Tensor:
        users, places, dim = x.shape
        split = self.queries_keys_values(x).view(users, places, 3, self.heads, dim // self.heads)
        queries, keys, values = split.permute(2, 0, 3, 1, 4)  # each (users, heads, T, dim of a head)
        scores = queries @ keys.transpose(-1, -2) * (dim // self.heads) ** -0.5 + hidden
        weights = self.dropout(scores.softmax(-1))
        out: Tensor = (weights @ values).transpose(1, 2).reshape(users, places, dim)
        return out
