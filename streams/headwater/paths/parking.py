"""Requests in hand: those that wait for their click, and how many of a batch are still unanswered."""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from headwater.index import filters
from headwater.kafka.batch import Batch
from headwater.kafka.headers import Headers
from headwater.messages import Request
from headwater.profiles.columns import U64

# A heap of offsets up to this size is not worth compacting.
_SMALL_HEAP: Final = 64


class Unanswered:
    """How many requests of a batch are still unanswered; the batch is finished with the last."""

    def __init__(self, batch: Batch, count: int) -> None:
        self.batch, self._count = batch, count

    def answered(self, count: int = 1) -> None:
        self._count -= count
        if self._count == 0:
            self.batch.finish()


@dataclass(eq=False)
class Held:
    """One valid request in hand."""

    request: Request
    user: bytes
    where: filters.Filter | None
    reply_topic: str
    reply_headers: Headers
    asked_ms: float  # the record's timestamp (the original's, if it was forwarded)
    unanswered: Unanswered
    event: int | None = None  # key of the event that it waits for by its id
    reply_partition: int | None = None  # of the reply topic; None: that of the user's key
    timings: dict[str, float] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None
    expired: bool = False  # its click did not come in time
    ticket: int = -1  # its number in the parking lot

    @property
    def left_ms(self) -> float:
        return 0.0 if self.expired else self.asked_ms + self.request.deadline_ms - time.time() * 1000.0


class ParkingLot:
    """Waiting requests of one partition, in three groups: for an offset of this partition, for an event id, and others (an
    offset of another partition, or an event that is applied but not yet on its way to the changelog).

    Adding and removing one takes constant time, up to the heap of offsets. A request that has left is not referred to.
    """

    def __init__(self) -> None:
        self._order = itertools.count()
        # Every waiting request by its ticket. A ticket that is in a group but not in here has left.
        self._waiting: dict[int, Held] = {}
        self._by_offset: list[tuple[int, int]] = []  # heap of (offset, ticket)
        self._by_event: dict[int, dict[int, None]] = {}  # event key -> tickets
        self._others: dict[int, None] = {}  # tickets

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, held: Held, partition: int, has_come: bool) -> None:
        """``has_come``: the event that it waits for."""
        held.ticket = ticket = next(self._order)
        self._waiting[ticket] = held
        after = held.request.after
        if held.event is not None and not has_come:
            self._by_event.setdefault(held.event, {})[ticket] = None
        elif after is not None and after.partition == partition:
            heapq.heappush(self._by_offset, (after.offset, ticket))
        else:
            self._others[ticket] = None

    def take(
        self,
        watermark: int,
        may_answer: Callable[[Held], bool],
        has_come: Callable[[Held], bool],
        events: U64 | None,
    ) -> list[Held]:
        """Remove and return those whose click has been applied.

        Args:
            events: keys of the events that were looked at since the last time; None: any may have been.
        """
        taken = []
        while self._by_offset and self._by_offset[0][0] <= watermark:
            held = self._waiting.pop(heapq.heappop(self._by_offset)[1], None)
            if held is not None:
                taken.append(held)
        if self._by_event:
            looked_at = (
                self._by_event.keys() if events is None else self._by_event.keys() & set(events.tolist())
            )
            for event in list(looked_at):
                tickets = self._by_event[event]
                arrived = [ticket for ticket in tickets if has_come(self._waiting[ticket])]
                for ticket in arrived:
                    self._leave_event(event, ticket)
                self._others.update(dict.fromkeys(arrived))
        for ticket in [ticket for ticket in self._others if may_answer(self._waiting[ticket])]:
            del self._others[ticket]
            taken.append(self._waiting.pop(ticket))
        return taken

    def _leave_event(self, event: int, ticket: int) -> None:
        tickets = self._by_event[event]
        del tickets[ticket]
        if not tickets:
            del self._by_event[event]

    def remove(self, held: Held) -> bool:
        """Whether it still waited."""
        ticket = held.ticket
        if self._waiting.get(ticket) is not held:
            return False
        del self._waiting[ticket]
        if ticket in self._others:
            del self._others[ticket]
        elif held.event is not None:
            self._leave_event(held.event, ticket)
        elif len(self._by_offset) > _SMALL_HEAP and len(self._by_offset) > 2 * len(self._waiting):
            self._by_offset = [entry for entry in self._by_offset if entry[1] in self._waiting]
            heapq.heapify(self._by_offset)
        return True

    def clear(self) -> None:
        for held in self._waiting.values():
            if held.timer is not None:
                held.timer.cancel()
        self._waiting.clear()
        self._by_offset.clear()
        self._by_event.clear()
        self._others.clear()
