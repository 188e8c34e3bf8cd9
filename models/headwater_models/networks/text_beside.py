"""A user encoder with the items' texts beside what was learned, so that an item without events is found by its text.

What is learned of items is learned from those that have events. An item that has none is placed by guess, and ranks below.
So an item's vector gets two more parts: the direction of its text, and a mark of whether training knew the item. A user's
vector gets the texts of the newest events, and a lift for what is new. The score is then

    cosine(learned) + weight * cosine(texts) + lift * (the item is new)

Weight and lift are chosen after training (`training/weighing.py`), so that the learned part is as good as without.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwater_models.networks.user_encoder import Events, Inputs, UserEncoder, WindowedEncoder

# Each event before counts half, so the newest three say nearly all.
DECAY: Final = 0.5


@dataclass(frozen=True)
class Beside:
    """How texts stand beside what was learned. Vectors of items are longer by the text's numbers and two marks."""

    weight: float  # of the texts' cosine, where the learned one counts 1
    lift: float = 0.0  # of an item that training did not know

    @property
    def length(self) -> float:
        """Of an item's vector before it is scaled to one: the same for all items."""
        return math.sqrt(1 + self.weight + self.lift)

    def vectors(self, learned: Tensor, texts: Tensor, new: Tensor) -> Tensor:
        """Unit vectors learned (items, d), of texts (items, k), new (items,) -> unit vectors (items, d + k + 2)."""
        mark = new.to(learned.dtype)[:, None] * math.sqrt(self.lift)
        other = math.sqrt(self.lift) - mark
        return torch.cat([learned, math.sqrt(self.weight) * texts, mark, other], dim=-1) / self.length


def is_new(vectors: Tensor) -> Tensor:
    """Which of the vectors (..., d + k + 2) of `Beside.vectors` are of new items: bool (...). Without a lift none are told."""
    return vectors[..., -2] > vectors[..., -1]


class TextBeside(WindowedEncoder):
    """A trained encoder over vectors of `Beside.vectors`: the learned part is the encoder's, the rest is text.

    A recurrent one folds the events anew for each request.
    """

    def __init__(self, encoder: UserEncoder, width: int, beside: Beside) -> None:
        """`width`: k, the numbers of a text. Raises ValueError: an encoder that does not score by cosines."""
        if not encoder.temperature:
            raise ValueError(
                "the encoder scores by dot products, expected cosines, which texts can stand beside"
            )
        super().__init__(encoder.dim + width + 2, encoder.interests)
        self.encoder, self.beside = encoder, beside
        self.temperature = encoder.temperature

    def forward(self, *_: Tensor) -> Tensor:  # type: ignore[override]
        """It is for serving, by `window`: training reads the encoder (users, T, K, d). Raises NotImplementedError."""
        raise NotImplementedError

    def window(
        self, items: Tensor, actions: Tensor, gaps_s: Tensor, mask: Tensor, gap_to_now_s: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Interests (users, K, d + k + 2) and weights (users, K)."""
        own = self.encoder.dim
        learned = items[..., :own] * self.beside.length
        found = self.encoder.answer(Events(learned, actions, gaps_s, mask), gap_to_now_s)
        counts = recent(actions, mask, self.encoder)
        texts = F.normalize((counts[:, None] @ items[..., own:-2])[:, 0], dim=-1)  # (users, k)
        scale = self.beside.length / self.temperature
        texts = texts * (math.sqrt(self.beside.weight) * scale)
        lift = torch.ones_like(texts[:, :1]) * (math.sqrt(self.beside.lift) * scale)
        beside = torch.cat([texts, lift, torch.zeros_like(lift)], dim=-1)
        beside = beside[:, None].expand(-1, self.interests, -1)
        both = torch.cat([found * self.beside.length, beside], dim=-1)
        return both, mask.amax(1, keepdim=True).expand(-1, self.interests)


def recent(actions: Tensor, mask: Tensor, encoder: nn.Module) -> Tensor:
    """What each event counts for the text, by its age and what the encoder says that its action is worth: (users, T)."""
    places = torch.arange(mask.shape[1], device=mask.device)
    age = (mask.sum(1, keepdim=True) - 1 - places).clamp(min=0)
    inputs = next((part for part in encoder.modules() if isinstance(part, Inputs)), None)
    worth = inputs.worth(actions).exp() if inputs else torch.ones_like(mask)
    return worth * torch.exp(age * math.log(DECAY)) * mask
