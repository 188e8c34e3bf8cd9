"""What is popular at a moment of a split, as a worker would have counted it by then."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Self

import numpy as np

from headwater.recall.popularity import HALF_LIFE_S, RISING, TOP, PopularItem
from headwater_models.arrays import F32, I64, U64, Bools
from headwater_models.judging.baselines import DAY_MS
from headwater_models.judging.evaluation import best
from headwater_models.judging.protocols import Split

HOUR_MS: Final = 3_600_000
_HALF_LIFE_DAYS = HALF_LIFE_S * 1000 / DAY_MS


@dataclass(frozen=True)
class Trending:
    """Popularity as `headwater.recall.popularity` counts it, up to the begin of the day; that of new items, of the hour.

    As for the baselines, events after the split count under `prequential` only.
    """

    at_ms: I64  # (events,) ascending
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
            known.at_ms[order],
            known.items[order],
            items,
            asked.at_ms if asked.at_ms and not goes_on else newest_ms,
        )

    def top(self, now_ms: int) -> tuple[I64, F32]:
        """The heaviest items, ascending, and their weights relative to the heaviest: both (items,)."""
        day = self.day(now_ms)
        if day not in self._tops:
            begin, end = ((day - 10 * _HALF_LIFE_DAYS) * DAY_MS, day * DAY_MS)
            rows = slice(*np.searchsorted(self.at_ms, [begin, end]))
            ages = np.exp2((self.at_ms[rows] // DAY_MS - day) / _HALF_LIFE_DAYS)
            weights = np.bincount(self.wanted[rows], ages, minlength=self.items)
            heaviest = np.sort(best(weights[None].astype(np.float32), TOP)[0])
            shares = weights[heaviest] / max(weights.max(), 1e-12)
            self._tops[day] = heaviest, shares.astype(np.float32)
        return self._tops[day]

    def day(self, now_ms: int) -> int:
        """The day whose begin stands for a moment."""
        return self._asked_as(now_ms) // DAY_MS

    def still(self) -> Self:
        """With the popularity of its last moment at all moments."""
        return replace(self, first_ms=self.last_ms)

    def weights(self, now_ms: int, of: I64) -> F32:
        """(n,) the weights of items (n,), 0 for those that are not popular."""
        heaviest, found = self.top(now_ms)
        places = np.searchsorted(heaviest, of).clip(max=len(heaviest) - 1)
        return np.where(heaviest[places] == of, found[places], np.float32(0))

    def hour(self, now_ms: int) -> int:
        """The hour whose begin stands for a moment, where new items are asked about."""
        return self._asked_as(now_ms) // HOUR_MS

    def _asked_as(self, now_ms: int) -> int:
        return max(min(now_ms, self.last_ms), self.first_ms)

    def rising(self, now_ms: int, keys: U64, new: Bools) -> Sequence[PopularItem]:
        """What a worker would hold as rising, heaviest first; `new` (items,) are the new items."""
        until_ms = self.hour(now_ms) * HOUR_MS
        rows = slice(*np.searchsorted(self.at_ms, [until_ms - 10 * int(HALF_LIFE_S * 1000), until_ms]))
        of_new = new[self.wanted[rows]]
        items, places = np.unique(self.wanted[rows][of_new], return_inverse=True)
        ages = (self.at_ms[rows][of_new] - until_ms) / (HALF_LIFE_S * 1000)
        weights = np.bincount(places, np.exp2(ages), minlength=len(items))
        order = np.argsort(-weights, kind="stable")[:RISING]
        named = zip(keys[items[order]].tolist(), weights[order].tolist(), strict=True)
        return [PopularItem(key, "", weight) for key, weight in named]

    def popular(self, now_ms: int, keys: U64) -> Sequence[PopularItem]:
        """What a worker would hold as popular, heaviest first; `keys` (items,) are those of all items."""
        heaviest, weights = self.top(now_ms)
        order = np.argsort(-weights, kind="stable")
        order = order[weights[order] > 0]
        named = zip(keys[heaviest[order]].tolist(), weights[order].tolist(), strict=True)
        return [PopularItem(key, "", weight) for key, weight in named]
