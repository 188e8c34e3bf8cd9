"""Items that a user may want again: those of their positive events, by how often and how recently. Pure."""

from collections.abc import Mapping
from typing import Final

from headwater.profiles.counters import ONE, weight
from headwater.recall.sources import Ask, KeySource, Why

# An item of the last hour is in the current basket: a customer who has just bought bread buys no other. On groceries the
# rest finds a sixth more of the next purchases (`models/RESULTS.md`).
REST_MS: Final = 3_600_000


class BuyAgain(KeySource):
    """Items of the user's log, session and counters, for requests that allow seen items.

    An event fades in the log as in the counters: to half while 200 others come after it. Items of the last hour are left
    out, as far as the log says.

    >>> hour, source = REST_MS, BuyAgain()
    >>> log = [(1, 0, 1), (2, 1, 1), (3, 2, 1), (1, 3, 1), (4, 2 * hour, 1)]
    >>> [*source.keys(Ask(log=log, now_ms=2 * hour + 5))]
    [1, 3, 2]
    >>> counters = [(3, ONE - 500), (2, ONE), (4, ONE + 500)]
    >>> [*source.keys(Ask(log=[(1, 0, 1), (2, 1, 1)], counters=counters, now_ms=hour + 1))]
    [4, 2, 1, 3]
    """

    name = "buy-again"
    # Of 1 to 20, 20 found most of the purchases in the month before the split of the tests (`models/RESULTS.md`): repeats
    # go first, and the other sources move them by a few places.
    default_weight = 20.0
    rung = "no-repeats"

    def keys(self, ask: Ask) -> Mapping[int, float]:
        """Items of the log and the counters, none while seen items are excluded."""
        if ask.exclude_seen:
            return {}
        events = ask.events
        weights = {key: weight(level - len(events)) for key, level in ask.counters}
        last_ms: dict[int, int] = {}
        for age, (key, at_ms, _) in zip(range(len(events) - 1, -1, -1), events, strict=True):
            weights[key] = weights.get(key, 0.0) + weight(ONE - age)
            last_ms[key] = at_ms
        rested = [key for key in weights if key not in last_ms or ask.now_ms - last_ms[key] >= REST_MS]
        return {key: weights[key] for key in sorted(rested, key=weights.__getitem__, reverse=True)}

    def why(self, ask: Ask) -> Why | None:
        """Seen items are excluded, there are none, or all of them are of the last hour."""
        if ask.exclude_seen:
            return "seen_excluded"
        return "too_recent" if ask.events or ask.counters else "no_events"
