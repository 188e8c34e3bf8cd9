"""Requests that wait for the click that they demand: when they may be answered, what wakes them, when they expire."""

import asyncio
import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Final

from headwater.metrics import Metrics
from headwater.paths.accepting import PendingRequest
from headwater.profiles.columns import U64
from headwater.profiles.partition import Partition

# A heap of offsets up to this size is not worth compacting.
_SMALL_HEAP: Final = 64
# One user's requests that wait: many times what a person's devices ask for at once.
MAX_PARKED_PER_USER: Final = 100
# Of records. Decoded they take a few times as much.
MAX_PARKED_BYTES: Final = 64 * 2**20


def may_answer(pending: PendingRequest, partition: Partition) -> bool:
    """Whether the demanded click is applied and its changelog write is sent, or none is demanded."""
    after = pending.request.after
    if not pending.demands_a_click:
        return True
    if not partition.gate.is_open:
        return False
    if after is not None and after.partition == partition.number:
        return partition.applied >= after.offset
    row = partition.columns.rows.get(pending.user)
    if row is not None and partition.columns.offset[row] > partition.applied:
        return False  # the row holds clicks whose changelog write is not sent yet
    if after is None:
        return event_has_come(pending, partition)
    return partition.has_origin(pending.user, after.partition, after.offset)


def event_has_come(pending: PendingRequest, partition: Partition) -> bool:
    """Whether the event that it demands by id has been looked at."""
    event = pending.event
    return event is not None and partition.gate.is_open and partition.has_seen(pending.user, event)


class Parking:
    """The requests of all partitions that wait, with their timers.

    Args:
        leave: called with the requests of one partition that need not wait any longer: their click has come, or their
            time is over.
        clock: the time in seconds since 1970.
        most: how many may wait.
    """

    def __init__(
        self,
        leave: Callable[[list[PendingRequest], Partition], None],
        metrics: Metrics,
        clock: Callable[[], float],
        most: int,
    ) -> None:
        self._leave, self._clock, self._most = leave, clock, most
        self._lots: dict[int, ParkingLot] = {}
        self._users: Counter[bytes] = Counter()
        self._bytes = 0
        self._expired: dict[Partition, list[PendingRequest]] = {}  # in this pass of the loop
        self._gauge = metrics.parked_requests
        self._seconds = metrics.request_stage_seconds.labels("park")

    def __len__(self) -> int:
        return sum(len(lot) for lot in self._lots.values())

    def refusal(self, pending: PendingRequest) -> str | None:
        """Why there is no room for a request, as a sentence; None where it may wait. One that has waited may always."""
        if pending.has_waited:
            return None
        if len(self) >= self._most:
            return f"{len(self)} requests wait already, expected at most {self._most} (HEADWATER_MAX_PARKED)"
        if self._users[pending.user] >= MAX_PARKED_PER_USER:
            return f"{MAX_PARKED_PER_USER} requests of this user wait already, expected at most as many"
        if self._bytes + pending.size_bytes > MAX_PARKED_BYTES:
            return (
                f"requests of {self._bytes >> 20} MB wait already, expected at most {MAX_PARKED_BYTES >> 20}"
            )
        return None

    def add(self, pending: PendingRequest, partition: Partition) -> None:
        """Have a request wait until its click has come or its deadline is over."""
        lot = self._lots.get(partition.number)
        if lot is None:
            lot = self._lots[partition.number] = ParkingLot()
            if self._on_clicks not in partition.listeners:
                partition.listeners.append(self._on_clicks)
        lot.add(pending, partition.number, event_has_come(pending, partition))
        self._users[pending.user] += 1
        self._bytes += pending.size_bytes
        left_s = max(pending.left_ms(self._clock() * 1000.0), 0.0) / 1000.0
        pending.timer = asyncio.get_running_loop().call_later(left_s, self._expire, pending, partition)
        self._gauge.set(len(self))

    def clear(self) -> None:
        """Forget all of them: a rebalance began, and the next owners of the partitions read these requests again."""
        for lot in self._lots.values():
            lot.clear()
        self._lots.clear()
        self._users.clear()
        self._bytes = 0
        self._expired.clear()
        self._gauge.set(0)

    def _on_clicks(self, partition: Partition, events: U64 | None) -> None:
        lot = self._lots.get(partition.number)
        if lot and partition.gate.is_open:
            arrived = lot.take(
                partition.applied,
                lambda pending: may_answer(pending, partition),
                lambda pending: event_has_come(pending, partition),
                events,
            )
            if arrived:
                self._let_go(arrived, partition)

    def _expire(self, pending: PendingRequest, partition: Partition) -> None:
        lot = self._lots.get(partition.number)
        if lot is not None and lot.remove(pending):
            pending.has_expired = True
            if not self._expired:  # thousands may expire at once: they leave together
                asyncio.get_running_loop().call_soon(self._let_expired_go)
            self._expired.setdefault(partition, []).append(pending)

    def _let_expired_go(self) -> None:
        expired, self._expired = self._expired, {}
        for partition, leaving in expired.items():
            self._let_go(leaving, partition)

    def _let_go(self, leaving: list[PendingRequest], partition: Partition) -> None:
        now_ms = self._clock() * 1000.0
        for pending in leaving:
            if pending.timer is not None:
                pending.timer.cancel()
                pending.timer = None
            self._bytes -= pending.size_bytes
            self._users[pending.user] -= 1
            if not self._users[pending.user]:
                del self._users[pending.user]
            pending.timings["park"] = now_ms - pending.asked_ms
            self._seconds.observe(max(pending.timings["park"], 0.0) / 1000.0)
        self._gauge.set(len(self))
        self._leave(leaving, partition)


class ParkingLot:
    """Waiting requests of one partition, in three groups: for an offset of this partition, for an event id, and others (an
    offset of another partition, or an event that is applied but whose changelog write is not sent yet).

    Adding and removing one takes constant time, up to the heap of offsets. A request that has left is not referred to.
    """

    def __init__(self) -> None:
        self._order = itertools.count()
        # Every waiting request by its ticket. A ticket that is in a group but not in here has left.
        self._waiting: dict[int, PendingRequest] = {}
        self._by_offset: list[tuple[int, int]] = []  # heap of (offset, ticket)
        self._by_event: dict[int, dict[int, None]] = {}  # event key -> tickets
        self._others: dict[int, None] = {}  # tickets

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, pending: PendingRequest, partition: int, has_come: bool) -> None:
        """``has_come``: the event that it demands has been looked at."""
        pending.ticket = ticket = next(self._order)
        self._waiting[ticket] = pending
        after = pending.request.after
        if pending.event is not None and not has_come:
            self._by_event.setdefault(pending.event, {})[ticket] = None
        elif after is not None and after.partition == partition:
            heapq.heappush(self._by_offset, (after.offset, ticket))
        else:
            self._others[ticket] = None

    def take(
        self,
        applied: int,
        may_answer: Callable[[PendingRequest], bool],
        has_come: Callable[[PendingRequest], bool],
        events: U64 | None,
    ) -> list[PendingRequest]:
        """Remove and return the requests whose click has been applied.

        Args:
            applied: the clicks of this partition are applied up to this offset.
            events: (n,) keys of the events that were looked at since the last call; None: any may have been.
        """
        taken = []
        while self._by_offset and self._by_offset[0][0] <= applied:
            pending = self._waiting.pop(heapq.heappop(self._by_offset)[1], None)
            if pending is not None:
                taken.append(pending)
        if self._by_event:
            looked_at = (
                self._by_event.keys() if events is None else self._by_event.keys() & set(events.tolist())
            )
            for event in list(looked_at):
                arrived = [ticket for ticket in self._by_event[event] if has_come(self._waiting[ticket])]
                for ticket in arrived:
                    self._leave_event(event, ticket)
                self._others.update(dict.fromkeys(arrived))
        for ticket in [ticket for ticket in self._others if may_answer(self._waiting[ticket])]:
            del self._others[ticket]
            taken.append(self._waiting.pop(ticket))
        return taken

    def remove(self, pending: PendingRequest) -> bool:
        """Remove a request; False if it had left already."""
        ticket = pending.ticket
        if self._waiting.get(ticket) is not pending:
            return False
        del self._waiting[ticket]
        if ticket in self._others:
            del self._others[ticket]
        elif pending.event is not None:
            self._leave_event(pending.event, ticket)
        elif len(self._by_offset) > _SMALL_HEAP and len(self._by_offset) > 2 * len(self._waiting):
            self._by_offset = [entry for entry in self._by_offset if entry[1] in self._waiting]
            heapq.heapify(self._by_offset)
        return True

    def _leave_event(self, event: int, ticket: int) -> None:
        tickets = self._by_event[event]
        del tickets[ticket]
        if not tickets:
            del self._by_event[event]

    def clear(self) -> None:
        """Remove all requests and stop their timers."""
        for pending in self._waiting.values():
            if pending.timer is not None:
                pending.timer.cancel()
        self._waiting.clear()
        self._by_offset.clear()
        self._by_event.clear()
        self._others.clear()
