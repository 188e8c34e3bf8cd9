"""What is popular at a moment of a split, as a worker would have counted it by then."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from headwater.recall.popularity import HALF_LIFE_S, TOP, PopularItem
from headwater_models.arrays import F32, I64, U64
from headwater_models.judging.baselines import DAY_MS
from headwater_models.judging.evaluation import best
from headwater_models.judging.protocols import Split

_HALF_LIFE_DAYS = HALF_LIFE_S * 1000 / DAY_MS


@dataclass(frozen=True)
class Trending:
    """Popularity as `headwater.recall.popularity` counts it, up to the begin of the day.

    As for the baselines, events after the split count under `prequential` only.
    """

    days: I64  # (events,) ascending
    wanted: I64  # (events,) their items
    items: int
    last_ms: int  # later moments are asked about as this one
    first_ms: int = 0  # earlier ones as this one
    _tops: dict[int, tuple[I64, F32]] = field(default_factory=dict)

    @classmethod
    def of(cls, asked: Split, items: int, *, has_times: bool = True) -> Self:
        """What is popular at the questions of a split; without times, of all that may be learned."""
        if not has_times:
            return cls(np.zeros_like(asked.train.items), asked.train.items, items, DAY_MS)
        goes_on = asked.protocol == "prequential"
        known = asked.log if goes_on else asked.train
        newest_ms = int(known.at_ms.max(initial=0)) + DAY_MS
        order = np.argsort(known.at_ms, kind="stable")
        return cls(
            known.at_ms[order] // DAY_MS,
            known.items[order],
            items,
            asked.at_ms if asked.at_ms and not goes_on else newest_ms,
        )

    def top(self, now_ms: int) -> tuple[I64, F32]:
        """The heaviest items, ascending, and their weights relative to the heaviest: both (items,)."""
        day = self.day(now_ms)
        if day not in self._tops:
            rows = slice(*np.searchsorted(self.days, [day - 10 * _HALF_LIFE_DAYS, day]))
            ages = np.exp2((self.days[rows] - day) / _HALF_LIFE_DAYS)
            weights = np.bincount(self.wanted[rows], ages, minlength=self.items)
            heaviest = np.sort(best(weights[None].astype(np.float32), TOP)[0])
            shares = weights[heaviest] / max(weights.max(), 1e-12)
            self._tops[day] = heaviest, shares.astype(np.float32)
        return self._tops[day]

    def day(self, now_ms: int) -> int:
        """The day whose begin stands for a moment."""
        return max(min(now_ms, self.last_ms), self.first_ms) // DAY_MS

    def still(self) -> Self:
        """With the popularity of its last moment at all moments."""
        return replace(self, first_ms=self.last_ms)

    def weights(self, now_ms: int, of: I64) -> F32:
        """(n,) the weights of items (n,), 0 for those that are not popular."""
        heaviest, found = self.top(now_ms)
        places = np.searchsorted(heaviest, of).clip(max=len(heaviest) - 1)
        return np.where(heaviest[places] == of, found[places], np.float32(0))

    def popular(self, now_ms: int, keys: U64) -> Sequence[PopularItem]:
        """What a worker would hold as popular, heaviest first; `keys` (items,) are those of all items."""
        heaviest, weights = self.top(now_ms)
        order = np.argsort(-weights, kind="stable")
        order = order[weights[order] > 0]
        named = zip(keys[heaviest[order]].tolist(), weights[order].tolist(), strict=True)
        return [PopularItem(key, "", weight) for key, weight in named]
