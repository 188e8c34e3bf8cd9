"""Events of a worker for live displays: a struct for each click applied, answer sent and item indexed.

Listening never holds a path up. Each listener has a bounded queue that keeps the newest events; older unread ones are
dropped and counted. A path asks :attr:`Observer.is_watched` first, once per batch, and makes no event without a listener.
With one, it makes as many as :meth:`Observer.allowance` says, so a full load costs no more than a display can show.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeAlias

from msgspec import Struct

from headwater.messages import Response

# What a page can show of a second of full load; a batch tells no more than this of its newest records.
DEFAULT_CAPACITY: Final = 256
# Events of one kind a second. A click's takes 8 us to make, so this is less than 0.2 % of a core.
DEFAULT_PER_S: Final = 200.0


class ClickApplied(Struct, frozen=True, gc=False, tag=True):
    """A click that is in its user's log and in the changelog.

    ``lag_ms`` is the time from the click's record, as its producer stamped it, to this event, which is at ``applied_ms``.
    """

    user_id: str
    item_id: str
    action: str
    event_id: str
    at_ms: int
    partition: int
    offset: int
    lag_ms: float
    applied_ms: float = 0.0


class Answered(Struct, frozen=True, tag=True):
    """An answer that the broker has acknowledged. ``took_ms`` runs from the request's record to this event, at ``answered_ms``."""

    response: Response
    took_ms: float
    answered_ms: float = 0.0


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
        return self.take()

    def take(self) -> list[Observed]:
        """All events since the last call, oldest first."""
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
    """Where the paths of one worker tell what happens. All of it runs in the worker's event loop.

    Args:
        capacity: events in each queue, and at most told of one batch.
        per_s: events of one kind a second, in the long run.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        capacity: int = DEFAULT_CAPACITY,
        per_s: float = DEFAULT_PER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._capacity, self._per_s, self._clock = capacity, per_s, clock
        self._listeners: list[Listener] = []
        self._left: dict[type[Observed], tuple[float, float]] = {}  # by kind: how many may be told, and when

    @property
    def is_watched(self) -> bool:
        """Whether there is a listener. Without one, a path makes no events."""
        return bool(self._listeners)

    def allowance(self, kind: type[Observed], count: int) -> int:
        """Of ``count`` events of a kind, how many a path may make now; they are taken off what is left for this second."""
        now_s = self._clock()
        left, at_s = self._left.get(kind, (float(self._capacity), now_s))
        left = min(left + (now_s - at_s) * self._per_s, float(self._capacity))
        allowed = min(count, int(left))
        self._left[kind] = (left - allowed, now_s)
        return allowed

    @contextmanager
    def listen(self) -> Iterator[Listener]:
        """A queue that fills from now on, until the block ends."""
        listener = Listener(self._capacity)
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
