"""Whether a bundle reads a history for each of its themes, or as a whole.

Users with two favourite themes see both by the former, which is worth a little of what users took next. On long histories over
few items it can cost much: the order of events says more there than what goes together.
"""

from typing import Final, NamedTuple

import numpy as np
import torch

from headwater_models.arrays import F32
from headwater_models.judging.evaluation import ranking
from headwater_models.judging.metrics import by_case
from headwater_models.judging.protocols import Split, some_of
from headwater_models.networks import UserEncoder
from headwater_models.networks.themes import Themes
from headwater_models.training.sequence_loop import scorer_of

SEVERAL: Final = 3
QUESTIONS: Final = 5_000
# Themes may cost this share of the NDCG with one interest.
COST: Final = 0.03
K: Final = 10


class Themed(NamedTuple):
    """The mean NDCG of the validation questions with one interest and with themes, and what the difference may be by chance."""

    one: float
    themes: float
    error: float  # the standard error of the mean difference
    questions: int

    @property
    def interests(self) -> int:
        """One where themes cost more than they may and more than a standard error, as `source_weights` asks; else several."""
        return 1 if self.one - self.themes > max(COST * self.one, self.error) else SEVERAL

    @property
    def note(self) -> str:
        """For a person."""
        chosen = (
            "one, of the whole history" if self.interests == 1 else f"up to {SEVERAL}, one for each theme"
        )
        return (
            f"interests of a user: {chosen}; NDCG@{K} of {self.questions:,} validation questions {self.one:.4f} with one, "
            f"{self.themes:.4f} with themes, standard error of the difference {self.error:.4f}"
        )


def themed(encoder: UserEncoder, vectors: F32, asked: Split, length: int) -> Themed:
    """Themes beside one interest on the same validation questions, by the best dot product with an interest.

    Args:
        encoder: of one interest, over `vectors` (items, dim).
        length: events that it reads.
    """
    cases, found = some_of(asked.validation, QUESTIONS), []
    for each in (encoder, Themes(encoder, vectors, SEVERAL)):
        scorer = scorer_of(each.eval(), torch.from_numpy(vectors), length)
        ranks, _ = ranking(scorer, asked.log, cases, len(vectors), K)
        found.append(by_case(ranks, cases.target_starts, K)["NDCG"])
    one, several = found
    error = float((several - one).std() / np.sqrt(len(cases)))
    return Themed(float(one.mean()), float(several.mean()), error, len(cases))
