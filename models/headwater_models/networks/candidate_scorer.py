"""The base of all candidate scorers: features, the nearest interest and the candidate's vector in, a logit out.

Each feature and each of the two vectors is a field: a vector of `dim` numbers that the network combines with the others.
"""

from abc import abstractmethod
from itertools import pairwise

import torch
from torch import Tensor, nn


class CandidateScorer(nn.Module):
    """Normalises features inside the network, so that serving passes them as it computes them."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def settle(self, features: Tensor) -> None:
        """Set the normalisation to the mean and spread of features (rows, F)."""
        self.mean.copy_(features.mean(0))
        self.scale.copy_(1 / features.std(0).clamp(min=1e-3))

    def forward(self, features: Tensor, users: Tensor, items: Tensor) -> Tensor:
        """Logits (rows,) from features (rows, F), interests (rows, D) and candidates (rows, D)."""
        return self.logits((features - self.mean) * self.scale, users, items)

    @abstractmethod
    def logits(self, features: Tensor, users: Tensor, items: Tensor) -> Tensor:
        """Logits (rows,) from normalised features (rows, F), interests (rows, D) and candidates (rows, D)."""


class Fields(nn.Module):
    """Field vectors: feature i of value x becomes x v_i + b_i; the two vectors are projected into the same space."""

    def __init__(self, features: int, vector: int, dim: int) -> None:
        super().__init__()
        # Small: all pairs of fields add up, and should say little before they have learned anything.
        self.values = nn.Parameter(0.1 * torch.randn(features, dim))
        self.offsets = nn.Parameter(torch.zeros(features, dim))
        self.user = nn.Linear(vector, dim)
        self.item = nn.Linear(vector, dim)
        for layer in (self.user, self.item):
            nn.init.normal_(layer.weight, std=0.1 * vector**-0.5)

    def forward(self, features: Tensor, users: Tensor, items: Tensor) -> Tensor:
        """features (rows, F), users and items (rows, D) -> fields (rows, F + 2, dim)"""
        numbers = features[:, :, None] * self.values + self.offsets
        return torch.cat([numbers, self.user(users)[:, None], self.item(items)[:, None]], dim=1)


def layers(sizes: tuple[int, ...], dropout: float) -> nn.Sequential:
    """Linear layers of the given sizes, with ReLU and dropout after each but the last."""
    parts: list[nn.Module] = []
    for size, following in pairwise(sizes):
        parts += [nn.Linear(size, following), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*parts[:-2])
