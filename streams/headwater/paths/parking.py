"""Requests in hand: those that wait for their click, and how many of a batch are still unanswered."""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from headwater.index import filters
from headwater.kafka.batch import Batch
from headwater.kafka.headers import Headers
from headwater.messages import Request
from headwater.profiles.columns import U64


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
    timings: dict[str, float] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None
    expired: bool = False  # its click did not come in time

    @property
    def left_ms(self) -> float:
        return 0.0 if self.expired else self.asked_ms + self.request.deadline_ms - time.time() * 1000.0


class ParkingLot:
    """Requests of one partition that wait: by offset of that partition, for an event, or by neither: for a stray's own
    coordinates, or for an event that has come and is not on its way to the changelog yet.
    """

    def __init__(self) -> None:
        self._by_offset: list[tuple[int, int, Held]] = []
        self._others: list[Held] = []
        self._waiting = 0  # for events
        self._by_event: dict[int, list[Held]] = {}
        self._gone: set[Held] = set()
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._by_offset) - len(self._gone) + len(self._others) + self._waiting

    def add(self, held: Held, partition: int, has_come: bool) -> None:
        """``has_come``: the event that it waits for."""
        after = held.request.after
        if held.event is not None and not has_come:
            self._by_event.setdefault(held.event, []).append(held)
            self._waiting += 1
        elif after is not None and after.partition == partition:
            heapq.heappush(self._by_offset, (after.offset, next(self._order), held))
        else:
            self._others.append(held)

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
            held = heapq.heappop(self._by_offset)[2]
            if held in self._gone:
                self._gone.discard(held)
            else:
                taken.append(held)
        if self._by_event:
            looked_at = (
                self._by_event.keys() if events is None else self._by_event.keys() & set(events.tolist())
            )
            for event in list(looked_at):
                arrived = [held for held in self._by_event[event] if has_come(held)]
                self._leave(event, arrived)
                self._others += arrived
        if self._others:
            arrived = [held for held in self._others if may_answer(held)]
            self._others = [held for held in self._others if held not in arrived]
            taken += arrived
        return taken

    def _leave(self, event: int, leaving: Sequence[Held]) -> None:
        self._waiting -= len(leaving)
        left = [held for held in self._by_event[event] if held not in leaving]
        if left:
            self._by_event[event] = left
        else:
            del self._by_event[event]

    def remove(self, held: Held) -> bool:
        """Whether it still waited. The heap lets go of it when its turn comes."""
        if held in self._others:
            self._others.remove(held)
            return True
        if held.event is not None:
            waited = held in self._by_event.get(held.event, ())
            if waited:
                self._leave(held.event, [held])
            return waited
        if held in self._gone or not any(entry[2] is held for entry in self._by_offset):
            return False
        self._gone.add(held)
        return True

    def clear(self) -> None:
        by_event = itertools.chain.from_iterable(self._by_event.values())
        for held in (*self._others, *by_event, *(entry[2] for entry in self._by_offset)):
            if held.timer is not None:
                held.timer.cancel()
        self._by_offset.clear()
        self._others.clear()
        self._by_event.clear()
        self._waiting = 0
        self._gone.clear()
