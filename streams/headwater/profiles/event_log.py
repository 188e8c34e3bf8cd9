"""The rules of one user's event log, one event at a time. `apply_clicks.py` does the same to whole batches.

A log holds the newest ``capacity`` entries ordered by (time, event key), so any order, duplication or batching of the
same events gives the same log. A retraction leaves a mark, so a later copy of the retracted event is not applied.

**Limit.** A retraction may be dated before its event and arrive before it. It is then lost if ``capacity`` newer events,
or a forget, push its mark out before the event arrives. So a retraction should carry the time at which it was made.
"""

from bisect import insort
from enum import IntEnum
from typing import NamedTuple

from headwater.profiles.actions import RETRACT


class Event(NamedTuple):
    """One log entry. Entries sort by their fields in this order. A mark has the key of the event that it retracts."""

    at_ms: int
    event: int
    item: int
    action: int


class Outcome(IntEnum):
    """What became of an event."""

    APPLIED = 0
    DUPLICATE = 1  # the log has it
    TOO_LATE = 2  # the log is full of newer ones
    RETRACTED = 3  # the log has its mark
    FORGOTTEN = 4  # it is not newer than a forget
    REPLAYED = 5  # its offset was applied before
    UNLOGGED = 6  # an impression


class Inserted(NamedTuple):
    """What became of an event, and the entry that it pushed out of a full log."""

    outcome: Outcome
    evicted: Event | None = None


def insert(log: list[Event], new: Event, capacity: int) -> Inserted:
    """Insert ``new`` into the sorted ``log`` in place.

    >>> log = [Event(5, 1, 7, 1)]
    >>> insert(log, Event(9, 1, 0, RETRACT), capacity=50).outcome.name, log[0].action == RETRACT
    ('APPLIED', True)
    >>> insert(log, Event(11, 2, 8, 1), capacity=1).evicted == Event(9, 1, 0, RETRACT)
    True
    """
    held = next((entry for entry in log if entry.event == new.event), None)
    if held is not None:
        is_mark = RETRACT in (held.action, new.action)
        if not is_mark:
            return Inserted(Outcome.DUPLICATE)
        # A mark stands at the later of the two times, in whatever order the two came.
        log.remove(held)
        insort(log, Event(max(held.at_ms, new.at_ms), new.event, 0, RETRACT))
        if held.action != RETRACT:
            return Inserted(Outcome.APPLIED)
        return Inserted(Outcome.DUPLICATE if new.action == RETRACT else Outcome.RETRACTED)
    if len(log) >= capacity and new < log[0]:
        return Inserted(Outcome.TOO_LATE)
    insort(log, new if new.action != RETRACT else new._replace(item=0))
    return Inserted(Outcome.APPLIED, log.pop(0) if len(log) > capacity else None)
