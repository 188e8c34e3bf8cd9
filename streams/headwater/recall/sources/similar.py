"""What others took in one session with what the user takes in the one at hand: item-to-item neighbours. Pure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from headwater.encoder.features import ACTION_NAMES
from headwater.encoder.neighbours import Neighbours
from headwater.recall.explain import MAX_REASONS
from headwater.recall.session import Wish, session_in_hand


class Similar:
    """The neighbours of a session's items, by the sum of how alike they are to each of them.

    Item-to-item recommendation from the session at hand, as by Linden, Smith and York (IEEE Internet Computing, 2003).
    """

    def __init__(self, table: Neighbours) -> None:
        self._table = table
        self._rows = dict(zip(table.keys.tolist(), range(len(table.keys)), strict=True))

    def session(self, wishes: Sequence[Wish], now_ms: int) -> "Session":
        """What goes with the session at hand; the wishes come oldest first."""
        taken = session_in_hand(wishes, now_ms, self._table.pause_ms)
        return Session(taken, [self._near(key) for key, _, _ in taken])

    def _near(self, key: int) -> dict[int, float]:
        """How alike the neighbours of an item are to it, by their keys."""
        row = self._rows.get(key)
        if row is None:
            return {}
        near = slice(*self._table.starts[row : row + 2])
        keys = self._table.keys[self._table.items[near]]
        return dict(zip(keys.tolist(), self._table.likeness[near].tolist(), strict=True))


class Session(NamedTuple):
    """What a user is taking, and what is near to each of it."""

    wishes: Sequence[Wish]  # an item once
    near: Sequence[Mapping[int, float]]  # of each wish: item key -> likeness

    def ranked(self) -> dict[int, float]:
        """Item keys with their likeness, best first, none of the session itself; empty where the table knows no item of it."""
        total: dict[int, float] = {}
        for near in self.near:
            for key, likeness in near.items():
                total[key] = total.get(key, 0.0) + likeness
        for key, _, _ in self.wishes:
            total.pop(key, None)
        return {key: total[key] for key in sorted(total, key=total.__getitem__, reverse=True)}

    def behind(self, key: int) -> list[tuple[tuple[int, int, str], float]]:
        """The wishes that brought an item up, at most three, as (item key, time, action), and their shares, largest first."""
        alike = [(near[key], wish) for near, wish in zip(self.near, self.wishes, strict=True) if key in near]
        alike = sorted(alike, key=lambda pair: -pair[0])[:MAX_REASONS]
        total = sum(likeness for likeness, _ in alike)
        return [
            ((taken, at_ms, ACTION_NAMES[action]), likeness / total)
            for likeness, (taken, at_ms, action) in alike
        ]
