"""Neural factorisation machine: the pairs of field vectors, summed into one, then a deep network.

After He and Chua, SIGIR 2017 (arXiv:1708.05027): y = w_0 + <w, x> + f(x) (equation 2), f of the bi-interaction pooling
0.5 ((sum x_i v_i)^2 - sum (x_i v_i)^2) (equation 4) through layers with ReLU (equation 5), batch normalisation before them.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from headwater_models.networks.candidate_scorer import CandidateScorer, Fields, layers
from headwater_models.networks.deepfm import pairwise


@dataclass(frozen=True)
class NFMConfig:
    dim: int = 32  # of a field: all that the deep part sees
    hidden: tuple[int, ...] = (64, 32)
    dropout: float = 0.1


class NFM(CandidateScorer):
    def __init__(self, config: NFMConfig, features: int, vector: int) -> None:
        super().__init__(features)
        self.fields = Fields(features, vector, config.dim)
        self.linear = nn.Linear(features, 1)
        self.norm = nn.BatchNorm1d(config.dim)
        self.deep = layers((config.dim, *config.hidden, 1), config.dropout)

    def logits(self, features: Tensor, users: Tensor, items: Tensor) -> Tensor:
        pairs = self.norm(pairwise(self.fields(features, users, items)))  # (rows, dim)
        out: Tensor = self.linear(features) + self.deep(pairs)
        return out[:, 0]
