"""Neural factorisation machine: all pairs of field vectors pooled into one vector, then a deep network.

He and Chua, SIGIR 2017 (arXiv:1708.05027): y = w_0 + <w, x> + f(x) (equation 2), f of the bi-interaction pooling
0.5 ((sum x_i v_i)^2 - sum (x_i v_i)^2) (equation 4) through ReLU layers (equation 5), batch-normalised first.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from headwater_models.networks.candidate_scorer import CandidateScorer, Fields, layers
from headwater_models.networks.deepfm import pairwise


@dataclass(frozen=True)
class NFMConfig:
    """Sizes of NFM."""

    dim: int = 32  # of a field: all that the deep part sees
    hidden: tuple[int, ...] = (64, 32)
    dropout: float = 0.1


class NFM(CandidateScorer):
    """He and Chua, SIGIR 2017, over candidate features and the two vectors."""

    def __init__(self, config: NFMConfig, features: int, vector: int) -> None:
        super().__init__(features)
        self.fields = Fields(features, vector, config.dim)
        self.linear = nn.Linear(features, 1)
        self.norm = nn.BatchNorm1d(config.dim)
        self.deep = layers((config.dim, *config.hidden, 1), config.dropout)

    def logits(self, features: Tensor, users: Tensor, items: Tensor) -> Tensor:
        """Logits (rows,) from normalised features (rows, F), interests and items (rows, D)."""
        pairs = self.norm(pairwise(self.fields(features, users, items)))  # (rows, dim)
        out: Tensor = self.linear(features) + self.deep(pairs)
        return out[:, 0]
