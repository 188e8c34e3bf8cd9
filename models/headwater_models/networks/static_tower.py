"""The item tower of the bundle of groceries: token vectors averaged, whitened, then a small MLP. No language model at run time.

Token vectors are distilled from a sentence encoder (`distillation.py`). Whitening and head after WhitenRec (Zhang et al.
2024, arXiv:2402.17535). The last dimension of an item's vector is its popularity. The user encoder's interest has a
positive number there, so one dot product holds taste and popularity.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwater_models.arrays import F32


@dataclass(frozen=True)
class StaticTowerConfig:
    """Sizes of the tower, and its residual per known item."""

    token_dim: int = 128
    hidden: int = 128
    dim: int = 64
    rows: int = 0  # items with a residual of their own
    residual_dim: int = 24
    residual_dropout: float = 0.25  # keeps the vector of the text alone useful


@dataclass(frozen=True)
class Whitening:
    """x -> (x - mean) @ matrix has unit covariance on the fitted texts (ZCA: the x closest to the original)."""

    mean: F32
    matrix: F32

    @staticmethod
    def of(vectors: F32, shrink: float = 0.02) -> "Whitening":
        """Fit to vectors (texts, dim).

        `shrink` of the mean variance is added to each direction, which keeps noise directions small.
        """
        mean = vectors.mean(0)
        variance, axes = np.linalg.eigh(np.cov(vectors - mean, rowvar=False))
        scale = 1 / np.sqrt(variance + shrink * variance.mean())
        return Whitening(mean.astype(np.float32), ((axes * scale) @ axes.T).astype(np.float32))


class StaticTower(nn.Module):
    """Text part and residual part are separate methods, since the texts' token sums never change in training."""

    def __init__(self, config: StaticTowerConfig, table: F32, whitening: Whitening) -> None:
        super().__init__()
        self.config = config
        # One byte a value and one scale a token: 4 MB for BERT's vocabulary; cosine to the float table above .9999.
        scales = (np.abs(table).max(axis=1, keepdims=True) / 127 + 1e-12).astype(np.float16)
        quantised = np.clip(np.round(table / np.maximum(scales.astype(np.float32), 1e-7)), -127, 127)
        self.table: Tensor
        self.scales: Tensor
        self.mean: Tensor
        self.whiten: Tensor
        self.register_buffer("table", torch.from_numpy(quantised.astype(np.int8)))
        self.register_buffer("scales", torch.from_numpy(scales))
        self.register_buffer("mean", torch.from_numpy(whitening.mean))
        self.register_buffer("whiten", torch.from_numpy(whitening.matrix))
        self.linear = nn.Linear(config.token_dim, config.dim)
        self.hidden = nn.Linear(config.token_dim, config.hidden)
        self.out = nn.Linear(config.hidden, config.dim)
        nn.init.zeros_(self.out.weight)
        self.residual = nn.Embedding(config.rows + 1, config.residual_dim)
        self.bias = nn.Embedding(config.rows + 1, 1)
        self.spread = nn.Linear(config.residual_dim, config.dim - 1, bias=False)
        nn.init.normal_(self.residual.weight, std=0.02)
        nn.init.zeros_(self.bias.weight)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, item_row: Tensor) -> Tensor:
        """ids and mask (items, tokens), rows (items,) -> vectors (items, dim); row 0: an item without a residual."""
        return self.with_residual(self.from_text(self.text(input_ids, attention_mask)), item_row)

    def text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Whitened text vectors of length sqrt(token_dim): ids and mask (items, tokens) -> (items, token_dim)."""
        mask = attention_mask.float()
        share = self.scales[input_ids].float()[..., 0] * mask / mask.sum(1, keepdim=True).clamp(min=1)
        summed = (share[:, None] @ self.table[input_ids].float())[:, 0]  # (items, token_dim)
        white = (summed - self.mean) @ self.whiten
        return F.normalize(white, dim=-1) * math.sqrt(self.config.token_dim)

    def from_text(self, white: Tensor) -> Tensor:
        """The head: (items, token_dim) -> (items, dim)."""
        vectors: Tensor = self.linear(white) + self.out(F.gelu(self.hidden(white)))
        return vectors

    def with_residual(self, vectors: Tensor, item_row: Tensor) -> Tensor:
        """Vectors (items, dim) plus the residuals of rows (items,): a few directions, and popularity beyond
        that of the text.
        """
        known = (item_row > 0).float()[:, None]  # (items, 1)
        if self.training:
            known = F.dropout(known, self.config.residual_dropout) * (1 - self.config.residual_dropout)
        own = torch.cat([self.spread(self.residual(item_row)), self.bias(item_row)], dim=-1)
        return vectors + known * own

    def residual_penalty(self) -> Tensor:
        """Mean square of the residuals (rows, residual_dim): a penalty that leaves to the text what it can say."""
        return self.residual.weight.square().mean() + 0.1 * self.bias.weight.square().mean()


class ServedTower(nn.Module):
    """The tower as it is exported: residuals in half precision, without the parts that only training needs."""

    def __init__(self, tower: StaticTower) -> None:
        super().__init__()
        self.tower = tower
        own = torch.cat([tower.residual.weight, tower.bias.weight], dim=1).detach()
        self.own: Tensor
        self.register_buffer("own", own.half())  # (rows + 1, residual_dim + 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, item_row: Tensor) -> Tensor:
        """ids and mask (items, tokens), rows (items,) -> vectors (items, dim)."""
        vectors = self.tower.from_text(self.tower.text(input_ids, attention_mask))
        own = self.own[item_row].float()
        known = (item_row > 0).float()[:, None]
        return vectors + known * torch.cat([self.tower.spread(own[:, :-1]), own[:, -1:]], dim=-1)
