"""New items of the catalog that are like those of the user's current session.

New items have no co-occurrence and no popularity, and interests rank them below items seen in training; only their text
separates them. They are compared with the items of the current session, one by one, by cosine, because the norm of an
untrained vector carries no information. Figures: `models/RESULTS.md`, "New items".
"""

from collections.abc import Sequence
from typing import Final, Self

from headwater.index import Index
from headwater.index.filters import And, Filter, Range
from headwater.recall.session import current_session
from headwater.recall.similarity import Wanted, nearest_items
from headwater.recall.sources import Ask, Named, Resources, SearchSource, Why

# The usual end of a visit.
PAUSE_MS: Final = 1_800_000
# The index is asked for each anchor.
MAX_ANCHORS: Final = 8
# Outside a session the newest items stand in for it.
LAST_ANCHORS: Final = 3
_DAY_MS: Final = 86_400_000


class NewItems(SearchSource):
    """New items, those first that are most like any of the anchors.

    Args:
        new_days: an item is new for so long after it came into the catalog.
    """

    name = "new"
    # It votes in requests that name it: a new item takes the place of one that is taken more often.
    default_weight = 0.0
    rung = "no-new"

    def __init__(self, index: Index, new_days: float) -> None:
        self._index, self._new_ms = index, int(new_days * _DAY_MS)

    @classmethod
    def made_of(cls, given: Resources) -> Self:
        return cls(given.index, given.new_days)

    def applies(self, ask: Ask) -> bool:
        return bool(ask.liked)

    def why(self, ask: Ask) -> Why | None:
        """There is nothing to compare new items with, or no new item to compare."""
        return "no_new" if ask.liked else "no_events"

    async def rankings(self, asks: Sequence[Ask]) -> Sequence[Sequence[Named]]:
        wanted = [Wanted(anchor_items(ask), ask.wanted, self._where(ask), ask.exclude) for ask in asks]
        return await nearest_items(self._index, wanted)

    def _where(self, ask: Ask) -> Filter:
        """The ask's filter, for new items. One that comes in later is not new yet."""
        new = Range("since_ms", gte=float(ask.now_ms - self._new_ms), lte=float(ask.now_ms))
        return And((ask.where, new)) if ask.where else new


def anchor_items(ask: Ask) -> list[int]:
    """Keys of the items, each once, that new ones are compared with: the newest of the session, or else the last ones.

    >>> minute = 60_000
    >>> log = [(7, 0, 1), (5, minute, 1), (6, 40 * minute, 1), (5, 41 * minute, 1)]
    >>> anchor_items(Ask(log=log, now_ms=42 * minute)), anchor_items(Ask(log=log, now_ms=90 * minute))
    ([6, 5], [7, 6, 5])
    """
    events = ask.liked
    session = current_session(events, ask.now_ms, PAUSE_MS)
    if session:
        return [key for key, _, _ in session[-MAX_ANCHORS:]]
    last = dict.fromkeys(key for key, _, _ in reversed(events))
    return [*reversed([*last][:LAST_ANCHORS])]
