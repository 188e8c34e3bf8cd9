"""What a user's state is, seen from outside: the order in which it recommends all items of the shop."""

from collections.abc import Sequence

from tests.end_to_end.outside import Outside
from tests.end_to_end.shop import THEMES

_ALL = {
    "limit": 60,
    "exclude_seen": False,
    "filter": {"category": {"any": list(THEMES)}},
    # Alone: what may come again depends on what the log has lost too.
    "sources": {"interests": 1.0},
}
# A state kept as 16-bit floats may swap two neighbours that are as good as equal, while one event more or less moves
# items by whole places.
SAME_PLACES = 0.5


async def taste(outside: Outside, user: str, at_ms: int) -> list[str]:
    """All items of the shop, best first, as of `at_ms`."""
    return await outside.items(user, at_ms=at_ms, **_ALL)


def places_moved(one: Sequence[str], other: Sequence[str], hidden: int = 0) -> float:
    """How many places an item moved between two rankings of the same items, on average; so many are hidden in both."""
    assert sorted(one) == sorted(other)
    assert len(one) == 60 - hidden
    return sum(abs(place - other.index(item)) for place, item in enumerate(one)) / len(one)
