"""The newest events of a partition, whether their log still has them or not: a log of fifty is soon full of newer ones."""

from typing import Final

import numpy as np

from headwater.profiles.columns import I64, U64

# A minute of 250 events a second, in 256 KB. Events of many users of one partition share them.
_ROOM: Final = 16_384


class RecentEvents:
    """The newest events, by the row of their user. A row that is handed out again may be taken for its former user's."""

    def __init__(self) -> None:
        # Zeroed pages cost nothing before they are written; no event has the key 0.
        self._rows = np.zeros(_ROOM, dtype=np.int64)
        self._events = np.zeros(_ROOM, dtype=np.uint64)
        self._next = 0

    def add(self, rows: I64, events: U64) -> None:
        """Note events (E,) of the users in ``rows`` (E,), in the order in which they came. The oldest make way."""
        rows, events = rows[-_ROOM:], events[-_ROOM:]
        places = np.arange(self._next, self._next + len(rows)) % _ROOM
        self._rows[places], self._events[places] = rows, events
        self._next = (self._next + len(rows)) % _ROOM

    def has(self, row: int, event: int) -> bool:
        """Whether this event of the user in ``row`` came lately. Takes 10 us."""
        return bool((self._rows[self._events == event] == row).any())
