"""Several interests from any encoder of one: the themes of a history, each read as a history of its own.

A user with two favourite themes has one vector between them, near neither. As PinnerSage (Pal et al., KDD 2020,
arXiv:2007.03634) does, the events are grouped by what they are about. The first theme is that of the last event. Each
further one is around the event that most of what is left over is like. The encoder then reads the events of each theme
alone, with their own pauses. A history of one theme is read as a whole and has one interest.
"""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from headwater.encoder.features import MAX_GAP_S
from headwater_models.arrays import F32
from headwater_models.networks.user_encoder import Events, UserEncoder, WindowedEncoder

# Cosines of items around their mean: two of one theme lie above, nearly all pairs at random below.
LIKE: Final = 0.3
# A further theme has two events at least, and this share of the events' weight.
LEAST_EVENTS: Final = 2
LEAST_SHARE: Final = 0.2
# An event's weight halves with this many later ones.
HALF_LIFE_EVENTS: Final = 20.0


class Themes(WindowedEncoder):
    """A trained encoder of one interest, read once for each theme: K interests.

    A recurrent one folds the events of each theme anew for each request. Its state would hold all themes at once.
    """

    def __init__(self, encoder: UserEncoder, vectors: F32, interests: int = 3) -> None:
        """`vectors` (items, dim): the catalog, whose mean is what all items share."""
        if encoder.interests != 1:
            raise ValueError(f"the encoder has {encoder.interests} interests, expected one")
        super().__init__(encoder.dim, interests)
        self.encoder, self.temperature = encoder, encoder.temperature
        self.mean: Tensor
        self.register_buffer("mean", torch.from_numpy(vectors.mean(axis=0)))

    def forward(self, *_: Tensor) -> Tensor:  # type: ignore[override]
        """Themes are for serving, by `window`: training reads whole histories (users, T). Raises NotImplementedError."""
        raise NotImplementedError

    def window(
        self, items: Tensor, actions: Tensor, gaps_s: Tensor, mask: Tensor, gap_to_now_s: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Interests (users, K, dim) and weights (users, K): one for each theme, zero where there are fewer."""
        belongs, is_theme = self.split(items, mask)  # (users, K, T), (users, K)
        users, length = mask.shape
        # A history of one theme is read as it is, stray events included.
        alone = is_theme.sum(1, keepdim=True) < 2
        belongs = torch.where(alone[:, :, None], mask[:, None], belongs)
        # Events to the front: place p of a theme takes the event that p others of the theme come before. The pause before it
        # is all that passed since the theme's event before: sums of few pauses, since whole ages lose seconds in single
        # precision.
        places = torch.arange(length, device=mask.device)
        before = belongs.cumsum(2) - belongs  # (users, K, T)
        until = (before[:, :, None] == places[:, None]).to(items.dtype) * mask[:, None, None]
        chosen = until * belongs[:, :, None]  # (users, K, T, T): 1 where an event goes to a place
        own_mask = chosen.sum(3)
        own_gaps = (until @ gaps_s[:, None, :, None])[..., 0] * own_mask * (places > 0)
        own_gaps = own_gaps.clamp(max=MAX_GAP_S).flatten(0, 1)
        since = ((before == own_mask.sum(2, keepdim=True)) * (mask * gaps_s)[:, None]).sum(2)
        now = (gap_to_now_s[:, None] + since).clamp(max=MAX_GAP_S).flatten()
        own_mask = own_mask.flatten(0, 1)
        own_items = (chosen @ items[:, None]).flatten(0, 1)
        own_actions = (chosen @ actions.to(items.dtype)[:, None, :, None])[..., 0].flatten(0, 1)
        own_actions = own_actions.round().to(actions.dtype)
        found = self.encoder.answer(Events(own_items, own_actions, own_gaps, own_mask), now)
        found = found.view(users, self.interests, self.dim)
        # What an encoder makes of no events is no interest: the first one stands in its place, without a weight.
        found = torch.where(is_theme[:, :, None], found, found[:, :1])
        return found, is_theme.to(items.dtype) * mask.amax(1, keepdim=True)

    def split(self, items: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Which events belong to each theme (users, K, T), and which themes there are (users, K); the first always is."""
        length = mask.shape[1]
        about = F.normalize(items - self.mean, dim=-1) * mask[..., None]
        alike = about @ about.transpose(1, 2)  # (users, T, T)
        places = torch.arange(length, device=mask.device)
        last = mask.sum(1, keepdim=True) - 1
        weight = torch.exp2((places - last) / HALF_LIFE_EVENTS) * mask
        share = weight / weight.sum(1, keepdim=True).clamp(min=1e-6)
        is_near = (alike > LIKE).to(items.dtype) * mask[:, None]
        seed = (places == last).to(items.dtype)  # (users, T), 1 at the event that a theme is around
        left, near, is_large = mask, [], []
        for _ in range(self.interests):
            own = (seed[:, None] @ alike)[:, 0] * mask - (1 - mask)  # likeness of each event to the seed
            taken = (seed[:, None] @ is_near)[:, 0] * left
            near.append(own)
            is_large.append(((taken * share).sum(1) >= LEAST_SHARE) & (taken.sum(1) >= LEAST_EVENTS))
            left = left * (1 - taken)
            support = (is_near @ (left * share)[:, :, None])[..., 0] * left - (1 - left)
            seed = (places == support.argmax(1, keepdim=True)).to(items.dtype)
        # Each event goes to the theme that it is most like, of those that there are.
        is_theme = torch.stack(is_large, dim=1)
        is_theme = torch.cat([torch.ones_like(is_theme[:, :1]), is_theme[:, 1:]], dim=1)
        closeness = torch.stack(near, dim=1).masked_fill(~is_theme[:, :, None], -2.0)
        nearest = closeness.argmax(1)  # (users, T)
        which = torch.arange(self.interests, device=mask.device)[:, None]
        belongs = (nearest[:, None] == which).to(items.dtype) * mask[:, None]
        return belongs, is_theme
