"""Items that a user may want again: those of their positive events, by how often, how recently, and what the items are. Pure."""

from collections.abc import Mapping
from typing import Final, Self

import numpy as np

from headwater.encoder.neighbours import Neighbours
from headwater.profiles.counters import HALF_LIFE, MAX_LEVEL, ONE, weight
from headwater.recall.sources import Ask, KeySource, Resources, Why

# An item of the last hour is in the current basket: a customer who has just bought bread buys no other. On groceries the
# rest finds a sixth more of the next purchases (`models/RESULTS.md`).
REST_MS: Final = 3_600_000
# Powers of what the bundle's table says of an item, by the baskets before the last ones (`models/RESULTS.md`, "Next baskets").
LOYALTY: Final = 0.35
SEASON: Final = 0.4
# A season is over some weeks later, and was not there some weeks before.
SEASON_HALF_LIFE_MS: Final = 28 * 86_400_000
# The weight of each level, and of an event by how many others came after it: a power for each costs more than all else.
_OF_LEVEL: Final = [weight(level) for level in range(MAX_LEVEL + 1)]
_OF_AGE: Final = [weight(ONE - age) for age in range(512)]


class BuyAgain(KeySource):
    """Items of the user's log, session and counters, for requests that allow seen items.

    An event fades in the log as in the counters: to half while 200 others come after it. Items of the last hour are left
    out, as far as the log says. Where the bundle's table says how items are taken again, those count for more that users
    come back to, and those whose season it is.

    >>> hour, source = REST_MS, BuyAgain()
    >>> log = [(1, 0, 1), (2, 1, 1), (3, 2, 1), (1, 3, 1), (4, 2 * hour, 1)]
    >>> [*source.keys(Ask(log=log, now_ms=2 * hour + 5))]
    [1, 3, 2]
    >>> counters = [(3, ONE - 500), (2, ONE), (4, ONE + 500)]
    >>> [*source.keys(Ask(log=[(1, 0, 1), (2, 1, 1)], counters=counters, now_ms=hour + 1))]
    [4, 2, 1, 3]
    """

    name = "buy-again"
    # Repeats go first, and the other sources move them by a place or two: of 1 to 80, 40 and 80 found most of the baskets
    # before the last ones (`models/RESULTS.md`, "Next baskets").
    default_weight = 40.0
    rung = "no-repeats"

    def __init__(self, table: Neighbours | None = None) -> None:
        self._table: Neighbours | None = None
        if table is not None and table.repeats is not None and len(table.keys):
            self._table = table
            self._loyalty = LOYALTY * np.log(table.repeats.again)
            self._season = SEASON * np.log(table.repeats.lately)
            self._season_ms = table.repeats.at_ms

    @classmethod
    def made_of(cls, given: Resources) -> Self:
        """With the table of the bundle, if it has one."""
        return cls(given.neighbours)

    def keys(self, ask: Ask) -> Mapping[int, float]:
        """Items of the log and the counters, none while seen items are excluded."""
        if ask.exclude_seen:
            return {}
        events = ask.events
        count = len(events)
        faded = 2.0 ** (-count / HALF_LIFE)
        weights = {key: _OF_LEVEL[level] * faded for key, level in ask.counters}
        last_ms: dict[int, int] = {}
        for age, (key, at_ms, _) in zip(range(count - 1, -1, -1), events, strict=True):
            own = _OF_AGE[age] if age < len(_OF_AGE) else weight(ONE - age)
            weights[key] = weights.get(key, 0.0) + own
            last_ms[key] = at_ms
        rested = [key for key in weights if key not in last_ms or ask.now_ms - last_ms[key] >= REST_MS]
        if self._table is not None and rested:
            self._weigh(self._table, weights, rested, ask.now_ms)
        return {key: weights[key] for key in sorted(rested, key=weights.__getitem__, reverse=True)}

    def _weigh(self, table: Neighbours, weights: dict[int, float], keys: list[int], now_ms: int) -> None:
        """Multiply the weights of these keys by what the table says of their items, in place."""
        asked = np.array(keys, dtype=np.uint64)
        rows = table.keys.searchsorted(asked)
        rows[rows == len(table.keys)] = 0
        fade = 0.5 ** (abs(now_ms - self._season_ms) / SEASON_HALF_LIFE_MS)
        factors = np.exp(self._loyalty[rows] + fade * self._season[rows])
        factors[table.keys[rows] != asked] = 1.0
        for key, factor in zip(keys, factors.tolist(), strict=True):
            weights[key] *= factor

    def why(self, ask: Ask) -> Why | None:
        """Seen items are excluded, there are none, or all of them are of the last hour."""
        if ask.exclude_seen:
            return "seen_excluded"
        return "too_recent" if ask.events or ask.counters else "no_events"
