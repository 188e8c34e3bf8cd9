"""The current session: the positive events of a user since the last long pause. Pure."""

from collections.abc import Sequence

from headwater.recall.sources import PositiveEvent


def current_session(events: Sequence[PositiveEvent], now_ms: int, pause_ms: int) -> list[PositiveEvent]:
    """The events since the last pause longer than `pause_ms`, an item once, by its last event; oldest first.

    Empty where the pause lasts until now: a user who comes back days later has something else in mind.

    Args:
        events: oldest first.

    >>> events = [(1, 0, 5), (2, 90, 5), (3, 95, 5), (2, 99, 5)]
    >>> current_session(events, now_ms=120, pause_ms=50), current_session(events, now_ms=150, pause_ms=50)
    ([(3, 95, 5), (2, 99, 5)], [])
    """
    session: dict[int, PositiveEvent] = {}
    later_ms = now_ms
    for event in reversed(events):
        if later_ms - event[1] > pause_ms:
            break
        session.setdefault(event[0], event)
        later_ms = event[1]
    return [*reversed(session.values())]
