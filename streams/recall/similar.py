"""What others took in one session with what the user has taken in the newest one: item-to-item neighbours. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from streams.features import ACTION_NAMES
from streams.neighbours import Neighbours
from streams.recall.reasons import MAX_REASONS

Wish = tuple[int, int, int]  # item key, time, code of the action


class Similar:
    """The neighbours of a session's items, by the sum of how alike they are to each of them.

    Item-to-item recommendation from the session at hand, as by Linden, Smith and York (IEEE Internet Computing, 2003).
    """

    def __init__(self, table: Neighbours) -> None:
        self.table = table
        self.rows = dict(zip(table.keys.tolist(), range(len(table.keys)), strict=True))

    def to_newest(self, wishes: Sequence[Wish]) -> "Session":
        """Of the wishes, which come oldest first, those of the newest session."""
        return Session(self, newest_session(wishes, self.table.pause_ms))


class Session(NamedTuple):
    """What a user has taken lately, and what goes with it."""

    source: Similar
    wishes: Sequence[Wish]  # an item once

    def ranked(self) -> list[int]:
        """Item keys, best first, none of the session itself; empty where the table knows no item of it."""
        table = self.source.table
        rows = [row for key, _, _ in self.wishes if (row := self.source.rows.get(key)) is not None]
        if not rows:
            return []
        parts = [slice(*table.starts[row : row + 2]) for row in rows]
        items = np.concatenate([table.items[part] for part in parts])
        likeness = np.concatenate([table.likeness[part] for part in parts])
        total = np.bincount(items, likeness, minlength=max(rows) + 1)
        total[rows] = 0.0
        found = np.flatnonzero(total)
        keys: list[int] = table.keys[found[np.argsort(-total[found], kind="stable")]].tolist()
        return keys

    def behind(self, key: int) -> list[tuple[tuple[int, int, str], float]]:
        """The wishes that brought an item up, at most three, as (item key, time, action), and their shares, largest first."""
        alike = [self._likeness(taken, self.source.rows[key]) for taken, _, _ in self.wishes]
        places = sorted((n for n, likeness in enumerate(alike) if likeness > 0), key=lambda n: -alike[n])
        total = sum(alike[n] for n in places[:MAX_REASONS])
        return [
            ((taken, at_ms, ACTION_NAMES[action]), alike[n] / total)
            for n in places[:MAX_REASONS]
            for taken, at_ms, action in [self.wishes[n]]
        ]

    def _likeness(self, key: int, neighbour: int) -> float:
        table, row = self.source.table, self.source.rows.get(key)
        if row is None:
            return 0.0
        start, end = table.starts[row : row + 2]
        place = start + int(np.searchsorted(table.items[start:end], neighbour))
        return float(table.likeness[place]) if place < end and table.items[place] == neighbour else 0.0


def newest_session(wishes: Sequence[Wish], pause_ms: int) -> list[Wish]:
    """The last of the wishes, which come oldest first, up to a pause longer than `pause_ms`: an item once, by its last wish.

    >>> newest_session([(1, 0, 5), (2, 90, 5), (3, 95, 5), (2, 99, 5)], pause_ms=50)
    [(3, 95, 5), (2, 99, 5)]
    """
    session: dict[int, Wish] = {}
    later_ms = wishes[-1][1] if wishes else 0
    for wish in reversed(wishes):
        if later_ms - wish[1] > pause_ms:
            break
        session.setdefault(wish[0], wish)
        later_ms = wish[1]
    return [*reversed(session.values())]
