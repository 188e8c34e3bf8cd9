"""Dislikes and hides outlive the log: the newest of a user are kept when the log pushes them out. Pure.

What a user hides stays out of every answer, however many events come after it, until they like, add to the cart or buy
the item. A click or view of it does not count: it may be an accident. A kept event has all that a log entry has, so a
retraction finds it by its key, a later event of the item lifts it by its time, and a forget takes what is not newer.
An event that lifts a kept one takes its place, so that a late copy of the hide does not bring it back.

Few users hide anything, so these events lie beside the columns, as bytes, for those who have some.
"""

from bisect import insort
from collections.abc import Iterable, Sequence
from itertools import chain
from struct import Struct
from typing import Final

from headwater.profiles.actions import HIDES, REPELS, UNHIDES
from headwater.profiles.event_log import Event

# With 20 bytes each, 2,560 for a user who has hidden this many.
DEFAULT_HIDES: Final = 128
# As an entry of the log in a user's record: item key, event key, and time with the action above it.
_ENTRY: Final = Struct("<QIHIH")
HIDE_BYTES: Final = _ENTRY.size
_TIME_BITS: Final = 44
# As lists: an event at a time, indexing an array takes several times as long.
_HIDES: Final[list[bool]] = HIDES.tolist()
_UNHIDES: Final[list[bool]] = UNHIDES.tolist()
_REPELS: Final[list[bool]] = REPELS.tolist()


def packed(kept: Iterable[Event]) -> bytes:
    """Kept events as bytes, 20 each, in their order."""
    return b"".join(
        _ENTRY.pack(item, event & 0xFFFFFFFF, event >> 32, stamp & 0xFFFFFFFF, stamp >> 32)
        for at_ms, event, item, action in kept
        for stamp in (at_ms | action << _TIME_BITS,)
    )


def unpacked(raw: bytes) -> list[Event]:
    """The events that :func:`packed` has packed."""
    return [
        Event(stamp & ((1 << _TIME_BITS) - 1), event_low | event_high << 32, item, stamp >> _TIME_BITS)
        for item, event_low, event_high, stamp_low, stamp_high in _ENTRY.iter_unpack(raw)
        for stamp in (stamp_low | stamp_high << 32,)
    ]


def keep(kept: list[Event], left: Event, capacity: int) -> None:
    """What an event that leaves the log, or comes too late for it, does to ``kept``, in place.

    ``kept`` is sorted and has one event per item, the newest; at most ``capacity``, the newest of all items.

    >>> hide, like, kept = 7, 3, []
    >>> for event in (Event(5, 1, 70, hide), Event(6, 2, 80, hide), Event(7, 3, 70, like), Event(4, 4, 80, hide)):
    ...     keep(kept, event, capacity=9)
    >>> kept == [Event(6, 2, 80, hide), Event(7, 3, 70, like)]
    True
    """
    hides = _HIDES[left.action]
    if not hides and not _UNHIDES[left.action]:
        return
    known = next((event for event in kept if event.item == left.item), None)
    if known is not None and known < left:
        kept.remove(known)
    elif known is not None or not hides:
        return
    insort(kept, left)
    del kept[: max(len(kept) - capacity, 0)]


def in_force(
    log: Sequence[tuple[int, int, int]],
    kept: Sequence[Event] = (),
    what_if: Sequence[tuple[int, int, int]] = (),
) -> dict[int, tuple[int, int]]:
    """The items that are hidden from answers: item key -> time in ms and action of the event that hides it.

    Args:
        log, what_if: (item key, time, action) of each event, oldest first.
        what_if: they come after all others, whatever their times.
    """
    if kept:
        former = ((item, at_ms, action) for at_ms, _, item, action in kept)
        log = sorted([*former, *log], key=lambda event: event[1])
    hidden: dict[int, tuple[int, int]] = {}
    for item, at_ms, action in chain(log, what_if):
        if _HIDES[action]:
            hidden[item] = (at_ms, action)
        elif hidden and _UNHIDES[action]:
            hidden.pop(item, None)
    return hidden


def repelling(hidden: dict[int, tuple[int, int]]) -> list[tuple[int, int]]:
    """(item key, time in ms) of the hidden items that the user dislikes."""
    return [(item, at_ms) for item, (at_ms, action) in hidden.items() if _REPELS[action]]
