"""DLRM: a bottom network for the numbers, dot products between vectors, a top network.

Naumov et al. 2019 (arXiv:1906.00091), section 2.1: the top network reads the dot products of all pairs of vectors,
and the vector of the numbers. The embeddings are vectors that the bundle already has: interest and candidate.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headwater_models.networks.candidate_scorer import CandidateScorer, layers


@dataclass(frozen=True)
class DLRMConfig:
    """Sizes of DLRM."""

    dim: int = 16  # in which numbers, interest and candidate meet
    bottom: tuple[int, ...] = (64,)
    top: tuple[int, ...] = (64, 32)
    dropout: float = 0.1


class DLRM(CandidateScorer):
    """Naumov et al. 2019, over candidate features and the two vectors."""

    def __init__(self, config: DLRMConfig, features: int, vector: int) -> None:
        super().__init__(features)
        self.bottom = layers((features, *config.bottom, config.dim), config.dropout)
        self.user = nn.Linear(vector, config.dim)
        self.item = nn.Linear(vector, config.dim)
        self.top = layers((config.dim + 3, *config.top, 1), config.dropout)

    def logits(self, features: Tensor, users: Tensor, items: Tensor) -> Tensor:
        """Logits (rows,) from normalised features (rows, F), interests and items (rows, D)."""
        numbers = torch.relu(self.bottom(features))  # (rows, dim)
        user, item = self.user(users), self.item(items)
        products = [(a * b).sum(1, keepdim=True) for a, b in ((numbers, user), (numbers, item), (user, item))]
        out: Tensor = self.top(torch.cat([numbers, *products], dim=1))
        return out[:, 0]
