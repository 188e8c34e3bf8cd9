"""The user encoder of the bundle of groceries: a diagonal linear recurrence in time, read by a small MLP at request time.

After LRURec (Yue et al., WSDM 2024, arXiv:2310.02367), with real decays: each channel forgets at its own rate per
event and per second. No channel keeps more than `keep_max` per event, so after L events older ones leave no trace
(0.85^50 = 0.0003) and the engine never has to fold again.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwater.encoder.features import ACTION_CODES
from headwater_models.data.events import POSITIVE_ACTIONS


@dataclass(frozen=True)
class GroceriesEncoderConfig:
    """Sizes of the user encoder of the bundle of groceries."""

    dim: int = 64
    state: int = 128
    hidden: int = 256
    interests: int = 1
    keep_max: float = 0.85
    dropout: float = 0.2


class GroceriesEncoder(nn.Module):
    """Recurrent; state (S,); the last dimension of a user vector weighs popularity."""

    def __init__(self, config: GroceriesEncoderConfig) -> None:
        super().__init__()
        self.dim, self.state_size = config.dim, config.state
        self.config = config
        # Starts: half the channels remember a few baskets, half a few items; and from hours to months of time.
        keep = torch.cat(
            [torch.linspace(0.80, 0.845, config.state // 2), torch.linspace(0.2, 0.8, config.state // 2)]
        )
        self.keep = nn.Parameter(torch.logit(keep / config.keep_max))
        days = torch.logspace(math.log10(2), math.log10(60), config.state)[torch.randperm(config.state)]
        self.cooling = nn.Parameter(torch.log(1 / (days * 86_400)))
        self.into = nn.Linear(config.dim, config.state, bias=False)
        self.gate = nn.Linear(config.dim, config.state)
        # All positive actions start equal: data with purchases only must not make a click worth nothing.
        gain = torch.zeros(max(ACTION_CODES.values()) + 1)
        gain[[ACTION_CODES[action] for action in POSITIVE_ACTIONS]] = 1.0
        self.gain = nn.Parameter(gain)
        self.linear = nn.Linear(config.state, config.interests * config.dim)
        self.hidden = nn.Linear(config.state + 4, config.hidden)
        self.out = nn.Linear(config.hidden, config.interests * config.dim)
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():
            # Start as a mean of the items' taste (all but the last dimension), with popularity counted once.
            taste = torch.eye(config.dim)
            taste[-1] = 0
            self.into.weight.copy_(0.3 * taste.repeat(config.state // config.dim, 1))
            self.linear.weight.copy_(0.3 * taste.repeat(config.interests, config.state // config.dim))
            self.linear.weight.add_(0.02 * torch.randn_like(self.linear.weight))
            self.linear.bias.zero_()
            self.linear.bias.view(config.interests, config.dim)[:, -1] = 1.0
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, items: Tensor, actions: Tensor, gaps_s: Tensor, mask: Tensor, gap_to_now_s: Tensor
    ) -> Tensor:
        """Interests (users, K, dim) of whole logs, for training: items (users, T, dim), the rest (users, T),
        gap (users,).
        """
        state = items.new_zeros(len(items), self.config.state)
        return self.read(self.step(state, items, actions, gaps_s, mask), gap_to_now_s)[0]

    def step(self, state: Tensor, items: Tensor, actions: Tensor, gaps_s: Tensor, mask: Tensor) -> Tensor:
        """States (users, S), items (users, T, dim), the rest (users, T) -> new states (users, S).

        h_t = k_t h_{t-1} + u_t, for all t at once: u_t is decayed by the product of the later k, the exponential of a sum of
        logarithms. All of them are negative, so nothing overflows.
        """
        log_event = F.logsigmoid(self.keep) + math.log(self.config.keep_max)  # (S,)
        # At e^-30 nothing is left in single precision; the bound keeps the sums below exact.
        log_keep = (log_event - gaps_s[..., None] * self.cooling.exp()).clamp(min=-30.0) * mask[..., None]
        # From the last event backwards, so that recent events, which count, are sums of few terms: (users, T, S)
        log_left = log_keep.flip(1).cumsum(1).flip(1) - log_keep
        left = torch.exp(log_left)
        total = log_keep.sum(1)
        values = self.into(items) * torch.sigmoid(self.gate(items))
        values = values * (self.gain[actions] * mask)[..., None]
        new_state: Tensor = state * torch.exp(total) + (values * left).sum(1)
        return new_state

    def read(self, state: Tensor, gap_to_now_s: Tensor) -> tuple[Tensor, Tensor]:
        """States (users, S), gaps (users,) in seconds -> interests (users, K, dim), weights (users, K)."""
        size = state.square().mean(-1, keepdim=True).add(1e-6).sqrt()
        direction = self.dropout(state / (size + 0.1))
        hours = gap_to_now_s[:, None] / 3600
        times = torch.cat([torch.log1p(hours), torch.exp(-hours), torch.exp(-hours / 72), size.log()], dim=-1)
        hidden = self.dropout(F.gelu(self.hidden(torch.cat([direction, times], dim=-1))))
        flat = self.linear(direction) + self.out(hidden)
        interests = flat.view(-1, self.config.interests, self.config.dim)
        return interests, torch.ones_like(interests[..., 0])
