"""DeepFM: a factorisation machine and a deep network over the same field vectors, summed.

Guo et al., IJCAI 2017 (arXiv:1703.04247): y = y_FM + y_DNN (equation 1), y_FM = <w, x> + sum over i < j of
<V_i, V_j> x_i x_j (equation 2), y_DNN over the concatenated field vectors (equations 3 and 4).
"""

from dataclasses import dataclass

from torch import Tensor, nn

from headwater_models.networks.candidate_scorer import CandidateScorer, Fields, layers


@dataclass(frozen=True)
class DeepFMConfig:
    """Sizes of DeepFM."""

    dim: int = 8  # of a field
    hidden: tuple[int, ...] = (64, 32)
    dropout: float = 0.1


class DeepFM(CandidateScorer):
    """Guo et al., IJCAI 2017, over candidate features and the two vectors."""

    def __init__(self, config: DeepFMConfig, features: int, vector: int) -> None:
        super().__init__(features)
        self.fields = Fields(features, vector, config.dim)
        self.linear = nn.Linear(features, 1)
        self.deep = layers(((features + 2) * config.dim, *config.hidden, 1), config.dropout)

    def logits(self, features: Tensor, users: Tensor, items: Tensor) -> Tensor:
        """Logits (rows,) from normalised features (rows, F), interests and items (rows, D)."""
        fields = self.fields(features, users, items)  # (rows, fields, dim)
        out: Tensor = self.linear(features) + self.deep(fields.flatten(1))
        return out[:, 0] + pairwise(fields).sum(1)


def pairwise(fields: Tensor) -> Tensor:
    """The sum of the elementwise products of all pairs of fields: (rows, fields, dim) -> (rows, dim).

    Computed as half of (square of the sum - sum of the squares).
    """
    out: Tensor = 0.5 * (fields.sum(1) ** 2 - (fields**2).sum(1))
    return out
