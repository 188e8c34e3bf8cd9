"""What every user encoder is: events in, the vectors of a user out, at every position for training and at one for serving.

Item vectors come in and user vectors go out in the same space: the score of an item is its dot product with a user vector.
Padding (mask 0) always comes after the events.
"""

from abc import abstractmethod
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwater.encoder.features import ACTION_CODES, MAX_GAP_S

Task = Literal[
    "next", "cloze"
]  # what is predicted in training: the item after each event, or items hidden from it


class Events(NamedTuple):
    """Some users' events, oldest first."""

    items: Tensor  # (users, T, dim) vectors
    actions: Tensor  # (users, T) codes of the shared feature file
    gaps_s: Tensor  # (users, T) since the event before
    mask: Tensor  # (users, T) 1 for events, 0 for padding


class UserEncoder(nn.Module):
    """The part that all kinds share: training calls `predictions`, the graphs of a bundle come from the other methods."""

    kind: ClassVar[Literal["recurrent", "windowed"]]

    def __init__(self, dim: int, interests: int = 1) -> None:
        super().__init__()
        self.dim = dim
        self.interests = interests
        self.temperature = 0.0  # of scores that are cosines; 0: scores are dot products

    def scored(self, vectors: Tensor) -> Tensor:
        """User vectors (..., dim) as their dot products with items are scores: at a temperature, of length 1 / temperature."""
        return F.normalize(vectors, dim=-1) / self.temperature if self.temperature else vectors

    def predictions(self, events: Events) -> tuple[Tensor, Tensor]:
        """Which places (users, T) are predicted, and from what: the N vectors (N, interests, dim) that should find them.

        Here every event but the first, from those before it; encoders that read both ways do it otherwise.
        """
        items, actions, gaps_s, mask = events
        vectors = self(Events(items[:, :-1], actions[:, :-1], gaps_s[:, :-1], mask[:, 1:]), gaps_s[:, 1:])
        places = mask > 0
        return vectors[places[:, 1:]], F.pad(places[:, 1:], (1, 0))

    @abstractmethod
    def forward(self, events: Events, gaps_to_next_s: Tensor) -> Tensor:
        """User vectors after each event: (users, T, interests, dim), read `gaps_to_next_s` (users, T) after it."""

    @abstractmethod
    def answer(self, events: Events, gap_to_now_s: Tensor) -> Tensor:
        """Interests (users, interests, dim) from whole histories, as the graphs of a bundle compute them."""


class RecurrentEncoder(UserEncoder):
    """O(1) a click: what is known of a user is a state of fixed size."""

    kind = "recurrent"

    def __init__(self, dim: int, state_size: int) -> None:
        super().__init__(dim)
        self.state_size = state_size

    @abstractmethod
    def run(self, state: Tensor, events: Events) -> tuple[Tensor, Tensor]:
        """From states (users, S): what `vectors` reads after each event (users, T, H), and the states after all of them."""

    @abstractmethod
    def vectors(self, outputs: Tensor, gaps_s: Tensor) -> Tensor:
        """User vectors (..., dim) at `gaps_s` (...) after outputs (..., H)."""

    @abstractmethod
    def outputs(self, state: Tensor) -> Tensor:
        """What `vectors` reads, from states (users, S)."""

    def forward(self, events: Events, gaps_to_next_s: Tensor) -> Tensor:
        state = events.items.new_zeros(len(events.items), self.state_size)
        return self.vectors(self.run(state, events)[0], gaps_to_next_s)[:, :, None]

    def step(self, state: Tensor, items: Tensor, actions: Tensor, gaps_s: Tensor, mask: Tensor) -> Tensor:
        return self.run(state, Events(items, actions, gaps_s, mask))[1]

    def read(self, state: Tensor, gap_to_now_s: Tensor) -> tuple[Tensor, Tensor]:
        interests = self.scored(self.vectors(self.outputs(state), gap_to_now_s))[:, None]
        return interests, torch.ones_like(interests[..., 0])

    def answer(self, events: Events, gap_to_now_s: Tensor) -> Tensor:
        state = events.items.new_zeros(len(events.items), self.state_size)
        return self.read(self.step(state, *events), gap_to_now_s)[0]


class WindowedEncoder(UserEncoder):
    """Reads the newest L events anew for every answer."""

    kind = "windowed"

    def window(
        self, items: Tensor, actions: Tensor, gaps_s: Tensor, mask: Tensor, gap_to_now_s: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Interests (users, K, dim) and weights (users, K): zero for a user without events."""
        gaps_to_next_s = torch.where(
            torch.arange(mask.shape[1], device=mask.device) == mask.sum(1, keepdim=True) - 1,
            gap_to_now_s[:, None],
            torch.cat([gaps_s[:, 1:], gap_to_now_s[:, None]], dim=1),
        )
        vectors = at_last(self(Events(items, actions, gaps_s, mask), gaps_to_next_s), mask)
        return self.scored(vectors), mask.amax(1, keepdim=True).expand(-1, self.interests)

    def answer(self, events: Events, gap_to_now_s: Tensor) -> Tensor:
        return self.window(*events, gap_to_now_s)[0]


class Inputs(nn.Module):
    """What an encoder is told of an event: its item, and what sets its action and its gap apart from the usual."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.action = nn.Embedding(max(ACTION_CODES.values()) + 1, dim)
        self.time = Elapsed(dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.action.weight)

    def forward(self, events: Events) -> Tensor:
        x = events.items + self.action(events.actions) + self.time(events.gaps_s)
        out: Tensor = self.dropout(self.norm(x))
        return out


class Elapsed(nn.Module):
    """A vector for how long ago something was: zero at the start of training, so that data without times loses nothing."""

    SCALES_S = (10.0, 600.0, 6 * 3600.0, 7 * 86_400.0)

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(len(self.SCALES_S) + 1, dim, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, gaps_s: Tensor) -> Tensor:
        """(...) -> (..., dim)"""
        log = torch.log1p(gaps_s) / torch.log1p(gaps_s.new_tensor(MAX_GAP_S))
        fresh = [torch.exp(-gaps_s / scale) for scale in self.SCALES_S]
        out: Tensor = self.linear(torch.stack([log, *fresh], dim=-1))
        return out


class FeedForward(nn.Module):
    """Two layers with GELU."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.into = nn.Linear(dim, hidden)
        self.out = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.dropout(F.gelu(self.into(x))))
        return out


def at_last(values: Tensor, mask: Tensor) -> Tensor:
    """Of values (users, T, ...), those at each user's last event; at the first place for a user without any."""
    last = (mask.sum(1).long() - 1).clamp(min=0)
    index = last.view(-1, *[1] * (values.dim() - 1)).expand(-1, 1, *values.shape[2:])
    return values.gather(1, index)[:, 0]
