"""Item vectors from text vectors: a head over whitened texts, and a residual for items with enough events.

The head after WhitenRec (Zhang et al. 2024, arXiv:2402.17535). A residual is what the events say beyond the text. It is
left out at random in training, so that the text's vector alone stays useful: a new item has nothing else.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwater_models.arrays import F32, I64


@dataclass(frozen=True)
class TextHeadConfig:
    """Sizes of the head, and which items get a residual."""

    hidden: int = 128
    dropout: float = 0.1  # of the hidden layer
    residual_from: int = 3  # events from which on an item has one
    residual_dropout: float = 0.25


class TextHead(nn.Module):
    """Text vectors -> item vectors: x @ linear + MLP(x) + residual."""

    def __init__(self, config: TextHeadConfig, white: Tensor, counts: I64, dim: int) -> None:
        """White texts (items, k) and the number of training events of each item (items,)."""
        super().__init__()
        self.config, self.dim = config, dim
        self.white: Tensor
        self.rows: Tensor
        self.register_buffer("white", white, persistent=False)
        width = white.shape[1]
        self.linear = nn.Linear(width, dim, bias=False)
        self.hidden = nn.Linear(width, config.hidden)
        self.out = nn.Linear(config.hidden, dim)
        nn.init.normal_(self.linear.weight, std=0.5 * width**-0.5)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        # Row 0 stands for all items without a residual, and stays zero.
        own = np.flatnonzero(counts >= config.residual_from)
        rows = np.zeros(len(counts), dtype=np.int64)
        rows[own] = np.arange(1, len(own) + 1)
        self.register_buffer("rows", torch.from_numpy(rows))
        self.residual = nn.Embedding(len(own) + 1, dim, padding_idx=0)
        nn.init.zeros_(self.residual.weight)

    @property
    def own(self) -> I64:
        """The items (R,) that have a residual, in the order of the rows from 1 on."""
        return np.flatnonzero(self.rows.numpy())

    def forward(self, items: Tensor | None = None) -> Tensor:
        """Vectors (..., dim) of items (...); of all (items, dim) without any."""
        if items is None:
            return self._vectors(self.white, self.rows)
        distinct, places = torch.unique(items, return_inverse=True)
        return self._vectors(self.white[distinct], self.rows[distinct])[places]

    def from_text(self, white: Tensor) -> Tensor:
        """The part of the text: (n, k) -> (n, dim)."""
        hidden = F.dropout(F.gelu(self.hidden(white)), self.config.dropout, self.training)
        found: Tensor = self.linear(white) + self.out(hidden)
        return found

    def _vectors(self, white: Tensor, rows: Tensor) -> Tensor:
        own: Tensor = self.residual(rows)
        if self.training and self.config.residual_dropout:
            own = own * (torch.rand(len(rows), 1) >= self.config.residual_dropout)
        return self.from_text(white) + own

    def start_from(self, wanted: F32) -> None:
        """Set linear part and residuals so that item vectors are near those wanted (items, dim), zeros where unknown.

        The linear part by ridge regression over the items that have one; of what is left, the residuals take it all.
        """
        target, known = torch.from_numpy(wanted), torch.from_numpy(np.abs(wanted).sum(axis=1) > 0)
        white = self.white[known]
        gram = white.T @ white + 0.1 * len(white) * torch.eye(white.shape[1])
        with torch.no_grad():
            self.linear.weight.copy_(torch.linalg.solve(gram, white.T @ target[known]).T)
            left = target - self.white @ self.linear.weight.T
            has_row = (self.rows > 0) & known
            self.residual.weight[self.rows[has_row]] = left[has_row]


def of_layers(head: TextHead) -> tuple[tuple[tuple[F32, F32], ...], F32, F32]:
    """(layers, linear, residual rows) of a head as arrays: ((inputs, outputs), (outputs,)), (k, dim) and (R, dim)."""
    layers = tuple(
        (layer.weight.detach().numpy().T.copy(), layer.bias.detach().numpy().copy())
        for layer in (head.hidden, head.out)
    )
    linear = head.linear.weight.detach().numpy().T.copy()
    return layers, linear, head.residual.weight.detach().numpy()[1:].copy()
