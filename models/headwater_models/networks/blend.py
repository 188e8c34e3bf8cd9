"""A few rules that every shop shares, weighed by what its own users took: the candidates' order as a weighted sum.

A conditional logit (McFadden 1974) over what a worker knows of each candidate. It has a dozen weights, so a thousand
questions tell them, where `nfm` and its like want tens of thousands. Places count within an interest, not among all
candidates: a user's second theme keeps its place beside the first, as in the fusion by ranks.

An item without events is never a repeat, and a neighbour only by the words of its text (`bundles/neighbour_table.py`), so the sum
alone ranks it below what has events. Where texts stand beside the model and mark such items (`networks/text_beside.py`), they have
terms of their own, for a neighbour and for the others, and a lift. An item that came in after the table was made has the lift alone.
"""

from typing import Final

import torch
from torch import Tensor

from headwater.encoder.features import CANDIDATE_FEATURES
from headwater_models.networks.candidate_scorer import CandidateScorer
from headwater_models.networks.text_beside import is_new

TERMS: Final = (
    "below_own_best",
    "own_rank",
    "own_place",  # 1 / rank
    "had",  # among the newest L events
    "last",  # the newest event's item
    "repeats",  # how the item is taken again, of those that the user had
    "last_repeats",  # the same, of the newest event's item
    "similar",
    "similar_rank",
    "similar_place",  # 1 / rank, 0 for no neighbour
    "new_near",  # without events, a neighbour by its words; then the three above are those of no neighbour
    "new_far",  # without events and no neighbour, though the table knows its words
)
# Only where events have times: what they say is about hours and days.
TIMED_TERMS: Final = ("popularity", "since_had", "due", "again", "again_place")
# `own_rank` and its like are log(1 + rank) / 7.
_LOG_PLACE: Final = 7.0


def terms_of(features: Tensor, new: Tensor, *, timed: bool) -> Tensor:
    """(rows, terms) TERMS, and TIMED_TERMS if `timed`, from CANDIDATE_FEATURES (rows, F) and which rows are of new items (rows,)."""
    told = dict(zip(CANDIDATE_FEATURES, features.unbind(1), strict=True))
    had = (told["times_had"] > 0).to(features.dtype)
    last = had * (told["place"] <= 0).to(features.dtype)
    near = (told["similar"] > 0).to(features.dtype)
    new = new.to(features.dtype)
    known = 1 - new
    found = {
        **told,
        "own_place": _place(told["own_rank"]),
        "had": had,
        "last": last,
        "last_repeats": last * told["repeats"],
        "similar": told["similar"] * known,
        "similar_rank": told["similar_rank"] * known + new,
        "similar_place": _place(told["similar_rank"]) * near * known,
        "new_near": new * near,
        "new_far": new * (1 - near) * told["in_table"],
        "again_place": _place(told["again_rank"]) * (told["again"] > 0),
    }
    return torch.stack([found[name] for name in TERMS + (TIMED_TERMS if timed else ())], dim=1)


class Blend(CandidateScorer):
    """The weighted sum of the terms, and the lift of new items; all are set from outside (`training/blending.py`).

    Args:
        marked: the vectors of items tell which are new; else none is.
    """

    def __init__(self, *, timed: bool, marked: bool = False) -> None:
        super().__init__(len(CANDIDATE_FEATURES))
        self.timed, self.marked = timed, marked
        self.weight: Tensor
        self.lift: Tensor
        self.bias: Tensor
        self.register_buffer("weight", torch.zeros(len(TERMS) + timed * len(TIMED_TERMS)))
        self.register_buffer("lift", torch.zeros(()))
        self.register_buffer("bias", torch.zeros(()))

    def forward(self, features: Tensor, users: Tensor, items: Tensor) -> Tensor:
        """Logits (rows,) from features (rows, F) as they are served; of the vectors (rows, D) only the items' marks count."""
        # Times zero: an exported graph has the inputs that it reads.
        return self.logits(features, users, items) + 0.0 * (users[:, 0] + items[:, 0])

    def logits(self, features: Tensor, users: Tensor, items: Tensor) -> Tensor:
        """Logits (rows,) from features (rows, F) and the marks of items (rows, D); users (rows, D) are not looked at."""
        new = is_new(items) if self.marked else torch.zeros_like(features[:, 0], dtype=torch.bool)
        lift = self.lift * new.to(features.dtype)
        return terms_of(features, new, timed=self.timed) @ self.weight + lift + self.bias


def _place(log_rank: Tensor) -> Tensor:
    return torch.exp(-_LOG_PLACE * log_rank.clamp(min=0))
