"""BERT4Rec: bidirectional self-attention, trained to fill in hidden items.

Sun et al., CIKM 2019 (arXiv:1904.06690). The answer is the vector of a hidden event after the last one.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwater_models.networks.sasrec import SASRecConfig, Trunk
from headwater_models.networks.user_encoder import Events, Inputs, WindowedEncoder


@dataclass(frozen=True)
class BERT4RecConfig(SASRecConfig):
    """Sizes of BERT4Rec, and the share of events that training hides."""

    hidden: float = 0.3  # share of a window's events that are hidden in training


class BERT4Rec(WindowedEncoder):
    """Sun et al., CIKM 2019. Windowed; one interest."""

    def __init__(self, config: BERT4RecConfig) -> None:
        super().__init__(config.dim)
        self.config = config
        self.unknown = nn.Parameter(0.02 * torch.randn(config.dim))  # stands where an item is hidden
        self.inputs = Inputs(config.dim, config.dropout)
        self.trunk = Trunk(config.dim, config.length + 1, config.blocks, config.heads, config.dropout)

    def forward(self, events: Events, hidden: Tensor) -> Tensor:
        """Vectors (users, T, dim) at each event. Of events that `hidden` (users, T) marks, only the time is seen."""
        items = torch.where(hidden[..., None], self.unknown, events.items)
        seen = events._replace(items=items, actions=events.actions.masked_fill(hidden, 0))
        worth = self.inputs.worth(events.actions).masked_fill(hidden, 0.0)[:, None, None]
        vectors: Tensor = self.trunk(self.inputs(seen), events.mask[:, None, None] > 0, worth)
        return vectors

    def predictions(self, events: Events) -> tuple[Tensor, Tensor]:
        """Vectors (N, 1, dim) of the hidden events, and their mask (users, T).

        The last event is always hidden, since serving asks for it; half of the windows hide random others too.
        """
        places = events.mask > 0
        last = F.pad(places[:, 1:], (0, 1)) != places
        share = self.config.hidden * (torch.rand(len(places), 1) < 0.5)
        hidden = last | (places & (torch.rand(places.shape) < share))
        return self(events, hidden)[hidden][:, None], hidden

    def window(
        self, items: Tensor, actions: Tensor, gaps_s: Tensor, mask: Tensor, gap_to_now_s: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Interests (users, 1, dim) and weights (users, 1): one hidden event is appended after each user's last."""
        events = Events(F.pad(items, (0, 0, 0, 1)), *(F.pad(x, (0, 1)) for x in (actions, gaps_s, mask)))
        hidden = torch.arange(events.mask.shape[1]) == mask.sum(1, keepdim=True)  # (users, T + 1)
        gaps_s = torch.where(hidden, gap_to_now_s[:, None], events.gaps_s)
        events = events._replace(gaps_s=gaps_s, mask=torch.where(hidden, 1.0, events.mask))
        vectors = self(events, hidden)
        interests = (vectors * hidden[..., None]).sum(1, keepdim=True)
        return self.scored(interests), mask.amax(1, keepdim=True)
