"""Events of a worker for live displays: a struct for each click applied, answer sent and item indexed.

Listening never holds a path up. Each listener has a bounded queue that keeps the newest events; older unread ones are
dropped and counted. A path asks :attr:`Observer.is_watched` first, once per batch, and makes no event without a listener.
"""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeAlias

from msgspec import Struct

from headwater.messages import Response

# What a page can show of a second of full load; a batch tells no more than this of its newest records.
DEFAULT_CAPACITY: Final = 256


class ClickApplied(Struct, frozen=True, gc=False, tag=True):
    """A click that is in its user's log and in the changelog.

    ``lag_ms`` is the time from the click's record, as its producer stamped it, to this event.
    """

    user_id: str
    item_id: str
    action: str
    event_id: str
    at_ms: int
    partition: int
    offset: int
    lag_ms: float


class Answered(Struct, frozen=True, tag=True):
    """An answer that the broker has acknowledged. ``took_ms`` runs from the request's record to this event."""

    response: Response
    took_ms: float


class ItemIndexed(Struct, frozen=True, gc=False, tag=True):
    """An item that can be found from now on, or was removed. ``lag_ms`` runs from its catalog record to this event."""

    item_id: str
    title: str
    is_removed: bool
    partition: int
    offset: int
    lag_ms: float


Observed: TypeAlias = ClickApplied | Answered | ItemIndexed


class Listener:
    """One listener's queue, made by :meth:`Observer.listen`."""

    def __init__(self, capacity: int) -> None:
        self._events: deque[Observed] = deque(maxlen=capacity)
        self._has_news = asyncio.Event()
        self.dropped = 0  # events that it never gets, because it read too slowly or a batch held too many

    async def next(self) -> list[Observed]:
        """All events since the last call, oldest first; waits until there is one."""
        await self._has_news.wait()
        self._has_news.clear()
        events = [*self._events]
        self._events.clear()
        return events

    def _put(self, events: Sequence[Observed], omitted: int) -> None:
        kept = self._events.maxlen or 0
        self.dropped += omitted + max(len(self._events) + len(events) - kept, 0)
        self._events.extend(events)
        if events:
            self._has_news.set()


class Observer:
    """Where the paths of one worker tell what happens. All of it runs in the worker's event loop."""

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        self.capacity = capacity  # events in each queue, and at most told of one batch
        self._listeners: list[Listener] = []

    @property
    def is_watched(self) -> bool:
        """Whether there is a listener. Without one, a path makes no events."""
        return bool(self._listeners)

    @contextmanager
    def listen(self) -> Iterator[Listener]:
        """A queue that fills from now on, until the block ends."""
        listener = Listener(self.capacity)
        self._listeners.append(listener)
        try:
            yield listener
        finally:
            self._listeners.remove(listener)

    def tell(self, events: Sequence[Observed], omitted: int = 0) -> None:
        """Hand events to every listener; never waits.

        Args:
            events: oldest first.
            omitted: how many more there were that the caller did not make, since no queue would hold them.
        """
        for listener in self._listeners:
            listener._put(events, omitted)
