"""What a user may want again: the items that they wished for, by how often and how lately. Pure."""

from collections.abc import Iterable
from typing import Final

from headwater.profiles.counters import ONE, weight

# What was wished for within the last hour is in the basket in hand: who has just bought bread buys no other. On groceries
# that finds a sixth more of the next purchases (`models/README.md`).
REST_MS: Final = 3_600_000


def buy_again(
    wishes: Iterable[tuple[int, int]], now_ms: int, counters: Iterable[tuple[int, int]] = ()
) -> dict[int, float]:
    """Item keys with their weights in wishes, the heaviest first; none that was wished for in the last hour, as far as the log says.

    A wish fades in the log as in the counters: to half while 200 others come after it.

    Args:
        wishes: (item key, time) of each event of the log that is a wish, oldest first.
        counters: (item key, level) of what was wished for before it (`streams/headwater/profiles/counters.py`).

    >>> hour = REST_MS
    >>> [*buy_again([(1, 0), (2, 1), (3, 2), (1, 3), (4, 2 * hour)], now_ms=2 * hour + 5)]
    [1, 3, 2]
    >>> [*buy_again([(1, 0), (2, 1)], now_ms=hour + 1, counters=[(3, ONE - 500), (2, ONE), (4, ONE + 500)])]
    [4, 2, 1, 3]
    """
    log = list(wishes)
    weights = {key: weight(level - len(log)) for key, level in counters}
    last_ms: dict[int, int] = {}
    for age, (key, at_ms) in zip(range(len(log) - 1, -1, -1), log, strict=True):
        weights[key] = weights.get(key, 0.0) + weight(ONE - age)
        last_ms[key] = at_ms
    rested = [key for key in weights if key not in last_ms or now_ms - last_ms[key] >= REST_MS]
    return {key: weights[key] for key in sorted(rested, key=weights.__getitem__, reverse=True)}
