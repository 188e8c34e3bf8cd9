"""Items that others took in one session with those of the user's current session: item-to-item neighbours. Pure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

from headwater.encoder.neighbours import Neighbours
from headwater.recall.explain import MAX_REASONS
from headwater.recall.session import current_session
from headwater.recall.sources import Ask, KeySource, PositiveEvent, Resources, Why


class CurrentSession(NamedTuple):
    """The items of a session, each once, and the neighbours of each of them."""

    events: Sequence[PositiveEvent]
    near: Sequence[Mapping[int, float]]  # of each event's item: item key -> likeness


class Similar(KeySource):
    """The neighbours of the current session's items, by the sum of how alike they are to each of them.

    Item-to-item recommendation from the current session, as by Linden, Smith and York (IEEE Internet Computing, 2003).
    It is there where the bundle has a table of neighbours.
    """

    name = "similar"
    # Of 0.5 to 4, 1 found most of the first purchases of an item (`models/RESULTS.md`).
    default_weight = 1.0
    rung = "no-similar"
    # Some of it may be sold out, or gone. Without a filter most is there.
    looked_up = 4

    def __init__(self, table: Neighbours | None) -> None:
        self._table = table
        self.is_there = table is not None
        keys = [] if table is None else table.keys.tolist()
        self._rows = dict(zip(keys, range(len(keys)), strict=True))

    @classmethod
    def made_of(cls, given: Resources) -> Self:
        return cls(given.neighbours)

    def keys(self, ask: Ask) -> Mapping[int, float]:
        """None of the session itself; empty where the table knows no item of it."""
        session = self._session(ask)
        total: dict[int, float] = {}
        for near in session.near:
            for key, likeness in near.items():
                total[key] = total.get(key, 0.0) + likeness
        for key, _, _ in session.events:
            total.pop(key, None)
        return {key: total[key] for key in sorted(total, key=total.__getitem__, reverse=True)}

    def why(self, ask: Ask) -> Why | None:
        """There is no current session, or the table knows none of its items."""
        if not ask.liked:
            return "no_events"
        return "unknown_items" if self._session(ask).events else "no_session"

    def because(self, ask: Ask, keys: Sequence[int]) -> Mapping[int, Sequence[tuple[PositiveEvent, float]]]:
        """The session's events that brought each item up, at most three, by how alike their items are to it."""
        session = self._session(ask)
        return {key: _shares(session, key) for key in keys}

    def _session(self, ask: Ask) -> CurrentSession:
        if self._table is None:
            return CurrentSession((), ())
        events = current_session(ask.liked, ask.now_ms, self._table.pause_ms)
        return CurrentSession(events, [self._near(self._table, key) for key, _, _ in events])

    def _near(self, table: Neighbours, key: int) -> dict[int, float]:
        """The neighbours of an item: item key -> likeness."""
        row = self._rows.get(key)
        if row is None:
            return {}
        near = slice(*table.starts[row : row + 2])
        return dict(zip(table.keys[table.items[near]].tolist(), table.likeness[near].tolist(), strict=True))


def _shares(session: CurrentSession, key: int) -> list[tuple[PositiveEvent, float]]:
    alike = [
        (near[key], event) for near, event in zip(session.near, session.events, strict=True) if key in near
    ]
    alike = sorted(alike, key=lambda pair: -pair[0])[:MAX_REASONS]
    total = sum(likeness for likeness, _ in alike)
    return [(event, likeness / total) for likeness, event in alike]
