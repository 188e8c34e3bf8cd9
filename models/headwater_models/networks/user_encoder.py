"""The base of all user encoders: events in, user vectors out.

Training reads a vector at every position at once; serving reads one per request. Item vectors and user vectors
share one space: the score of an item is its dot product with a user vector. Padding (mask 0) always follows the
events. In shapes, T is the number of events and K the number of interests.
"""

import math
from abc import abstractmethod
from types import MappingProxyType
from typing import ClassVar, Final, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwater.encoder.features import ACTION_CODES, MAX_GAP_S


class Events(NamedTuple):
    """A batch of users' events, oldest first."""

    items: Tensor  # (users, T, dim) vectors
    actions: Tensor  # (users, T) action codes
    gaps_s: Tensor  # (users, T) seconds since the previous event
    mask: Tensor  # (users, T) 1 for events, 0 for padding


class UserEncoder(nn.Module):
    """What all kinds share. Training calls `predictions`; the graphs of a bundle are made from the other methods."""

    kind: ClassVar[Literal["recurrent", "windowed"]]

    def __init__(self, dim: int, interests: int = 1) -> None:
        super().__init__()
        self.dim = dim
        self.interests = interests
        self.temperature = 0.0  # above 0, scores are cosines divided by it; 0: dot products

    def scored(self, vectors: Tensor) -> Tensor:
        """User vectors scaled so that their dot products with items are scores: (..., dim) -> (..., dim).

        With a temperature, vectors get the length 1 / temperature; without one they stay as they are.
        """
        return F.normalize(vectors, dim=-1) / self.temperature if self.temperature else vectors

    def predictions(self, events: Events) -> tuple[Tensor, Tensor]:
        """Training pairs: vectors (N, K, dim) and the mask (users, T) of the events that they should predict.

        Here each vector is made from the events before its target, so a user's first event is never a target.
        Encoders that read in both directions override this.
        """
        items, actions, gaps_s, mask = events
        vectors = self(Events(items[:, :-1], actions[:, :-1], gaps_s[:, :-1], mask[:, 1:]), gaps_s[:, 1:])
        places = mask > 0
        return vectors[places[:, 1:]], F.pad(places[:, 1:], (1, 0))

    @abstractmethod
    def forward(self, events: Events, gaps_to_next_s: Tensor) -> Tensor:
        """User vectors after each event, (users, T, K, dim), read `gaps_to_next_s` (users, T) seconds after it."""

    @abstractmethod
    def answer(self, events: Events, gap_to_now_s: Tensor) -> Tensor:
        """Interests (users, K, dim) from whole histories, `gap_to_now_s` (users,) seconds after the last event.

        Equal to what the exported graphs compute.
        """


class RecurrentEncoder(UserEncoder):
    """Keeps a state of fixed size (S,) per user, so a click costs one step."""

    kind = "recurrent"

    def __init__(self, dim: int, state_size: int) -> None:
        super().__init__(dim)
        self.state_size = state_size

    @abstractmethod
    def run(self, state: Tensor, events: Events) -> tuple[Tensor, Tensor]:
        """Fold events into states (users, S): outputs after each event (users, T, H), and the new states
        (users, S).
        """

    @abstractmethod
    def vectors(self, outputs: Tensor, gaps_s: Tensor) -> Tensor:
        """User vectors (..., dim) from outputs (..., H), read `gaps_s` (...) seconds later."""

    @abstractmethod
    def outputs(self, state: Tensor) -> Tensor:
        """The output that a state holds: (users, S) -> (users, H)."""

    def forward(self, events: Events, gaps_to_next_s: Tensor) -> Tensor:
        """User vectors after each event, (users, T, 1, dim), from empty states."""
        state = events.items.new_zeros(len(events.items), self.state_size)
        return self.vectors(self.run(state, events)[0], gaps_to_next_s)[:, :, None]

    def step(self, state: Tensor, items: Tensor, actions: Tensor, gaps_s: Tensor, mask: Tensor) -> Tensor:
        """The step graph: states (users, S) and items (users, T, dim), the rest (users, T) -> new states
        (users, S).
        """
        return self.run(state, Events(items, actions, gaps_s, mask))[1]

    def read(self, state: Tensor, gap_to_now_s: Tensor) -> tuple[Tensor, Tensor]:
        """The read graph: states (users, S), gaps (users,) in seconds -> interests (users, 1, dim), weights
        (users, 1).
        """
        interests = self.scored(self.vectors(self.outputs(state), gap_to_now_s))[:, None]
        return interests, torch.ones_like(interests[..., 0])

    def answer(self, events: Events, gap_to_now_s: Tensor) -> Tensor:
        """Interests (users, 1, dim) of whole histories, folded from empty states."""
        state = events.items.new_zeros(len(events.items), self.state_size)
        return self.read(self.step(state, *events), gap_to_now_s)[0]


class WindowedEncoder(UserEncoder):
    """Has no state: reads the newest L events again for every request."""

    kind = "windowed"

    def window(
        self, items: Tensor, actions: Tensor, gaps_s: Tensor, mask: Tensor, gap_to_now_s: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The window graph: interests (users, K, dim) and weights (users, K), zero for a user without events.

        Items are (users, T, dim), actions, gaps and mask (users, T), `gap_to_now_s` (users,) in seconds.
        """
        gaps_to_next_s = torch.where(
            torch.arange(mask.shape[1], device=mask.device) == mask.sum(1, keepdim=True) - 1,
            gap_to_now_s[:, None],
            torch.cat([gaps_s[:, 1:], gap_to_now_s[:, None]], dim=1),
        )
        vectors = at_last(self(Events(items, actions, gaps_s, mask), gaps_to_next_s), mask)
        return self.scored(vectors), mask.amax(1, keepdim=True).expand(-1, self.interests)

    def answer(self, events: Events, gap_to_now_s: Tensor) -> Tensor:
        """Interests (users, K, dim) of whole histories, by the window graph."""
        return self.window(*events, gap_to_now_s)[0]


# What an action is worth where the data does not tell; a click is the measure.
WORTH: Final = MappingProxyType({"view": 0.5, "click": 1.0, "like": 1.5, "add_to_cart": 2.0, "purchase": 3.0})


class Inputs(nn.Module):
    """Encodes an event: its item's vector, plus learned offsets for its action and its gap, and what its action is worth.

    The worth is learned for actions that the data has, relative to its most frequent one; others keep `WORTH`.
    """

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.action = nn.Embedding(max(ACTION_CODES.values()) + 1, dim)
        self.time = Elapsed(dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.action.weight)
        self.log_worth = nn.Parameter(torch.zeros(len(self.action.weight)))
        with torch.no_grad():
            for name, value in WORTH.items():
                self.log_worth[ACTION_CODES[name]] = math.log(value)
        self.usual: Tensor
        self.register_buffer("usual", torch.tensor(ACTION_CODES["click"]))

    def worth(self, actions: Tensor) -> Tensor:
        """The log of what each event counts, 0 for the usual action: action codes (users, T) -> (users, T)."""
        return self.log_worth[actions] - self.log_worth[self.usual]

    def forward(self, events: Events) -> Tensor:
        """Events -> input vectors (users, T, dim)."""
        x = events.items + self.action(events.actions) + self.time(events.gaps_s)
        out: Tensor = self.dropout(self.norm(x))
        return out


class Elapsed(nn.Module):
    """Encodes elapsed seconds. Starts at zero, so data without times loses nothing."""

    SCALES_S = (10.0, 600.0, 6 * 3600.0, 7 * 86_400.0)

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(len(self.SCALES_S) + 1, dim, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, gaps_s: Tensor) -> Tensor:
        """Seconds (...) -> vectors (..., dim)."""
        log = torch.log1p(gaps_s) / torch.log1p(gaps_s.new_tensor(MAX_GAP_S))
        fresh = [torch.exp(-gaps_s / scale) for scale in self.SCALES_S]
        out: Tensor = self.linear(torch.stack([log, *fresh], dim=-1))
        return out


class FeedForward(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.into = nn.Linear(dim, hidden)
        self.out = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)"""
        out: Tensor = self.out(self.dropout(F.gelu(self.into(x))))
        return out


def at_last(values: Tensor, mask: Tensor) -> Tensor:
    """Each user's value at the last event: (users, T, ...) -> (users, ...). Users without events get position 0."""
    last = (mask.sum(1).long() - 1).clamp(min=0)
    index = last.view(-1, *[1] * (values.dim() - 1)).expand(-1, 1, *values.shape[2:])
    return values.gather(1, index)[:, 0]
