"""What a user may want again: the items of their own log, by how often they were wished for. Pure."""

from collections.abc import Iterable
from typing import Final

# What was wished for within the last hour is in the basket in hand: who has just bought bread buys no other. On groceries
# that finds a seventh more of the next purchases (`models/README.md`).
REST_MS: Final = 3_600_000


def buy_again(wishes: Iterable[tuple[int, int]], now_ms: int) -> list[int]:
    """Item keys, the most frequent first, among equals the one wished for last; none that was wished for in the last hour.

    Args:
        wishes: (item key, time) of each event that is a wish, oldest first.

    >>> hour = REST_MS
    >>> buy_again([(1, 0), (2, 1), (3, 2), (1, 3), (4, 2 * hour)], now_ms=2 * hour + 5)
    [1, 3, 2]
    """
    counts: dict[int, int] = {}
    last_ms: dict[int, int] = {}
    for key, at_ms in wishes:
        counts[key] = counts.pop(key, 0) + 1  # put in anew, so that the order is that of the last wishes
        last_ms[key] = at_ms
    rested = [key for key in reversed(counts) if now_ms - last_ms[key] >= REST_MS]
    return sorted(rested, key=counts.__getitem__, reverse=True)
