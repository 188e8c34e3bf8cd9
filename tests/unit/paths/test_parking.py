"""Requests that wait for a click: what they cost while they wait, and what is left of them when they leave."""

import asyncio
import dataclasses
import gc
import weakref
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from headwater.messages import Position, Request
from headwater.metrics import Metrics
from headwater.paths.accepting import PendingRequest, ReplyAddress, Unanswered
from headwater.paths.parking import MAX_PARKED_BYTES, MAX_PARKED_PER_USER, Parking, ParkingLot
from headwater.profiles.interests import WhatIfEvents
from headwater.profiles.partition import Partition

NOW_S = 1_700_000_000.0


def waiting(
    offset: int | None = None,
    event: int | None = None,
    partition: int = 0,
    deadline_ms: int = 1,
    asked_ms: float = 0.0,
) -> PendingRequest:
    after = None if offset is None else Position(partition, offset)
    request = Request("r", "ann", after=after, deadline_ms=deadline_ms)
    unanswered = Unanswered(cast(Any, SimpleNamespace()), 1)
    session, address = WhatIfEvents([], [], []), ReplyAddress("responses", [])
    return PendingRequest(request, b"ann", None, session, 0, asked_ms, address, unanswered, event)


def parked(lot: ParkingLot, *requests: PendingRequest) -> None:
    for request in requests:
        lot.add(request, 0, has_come=False)


def taken(lot: ParkingLot, watermark: int, events: list[int] | None = None) -> list[PendingRequest]:
    keys = None if events is None else np.array(events, dtype=np.uint64)
    return lot.take(watermark, lambda pending: True, lambda pending: True, keys)


def test_requests_leave_when_their_offset_is_applied() -> None:
    lot = ParkingLot()
    first, second, third = waiting(3), waiting(1), waiting(7)
    parked(lot, first, second, third)
    assert taken(lot, 0) == []
    assert taken(lot, 3) == [second, first]
    assert len(lot) == 1


def test_requests_leave_when_their_event_has_come() -> None:
    lot = ParkingLot()
    mine, other = waiting(event=5), waiting(event=6)
    parked(lot, mine, other)
    assert taken(lot, 9, events=[4]) == []
    assert taken(lot, 9, events=[4, 5]) == [mine]
    assert taken(lot, 9) == [other]  # any event may have come
    assert len(lot) == 0


def test_a_request_for_an_offset_of_another_partition_leaves_when_it_may_be_answered() -> None:
    lot, request = ParkingLot(), waiting(3, partition=2)
    parked(lot, request)
    assert lot.take(9, lambda pending: False, lambda pending: False, None) == []
    assert taken(lot, 0) == [request]


def test_a_removed_request_is_not_taken_and_is_removed_once() -> None:
    lot = ParkingLot()
    requests = [waiting(1), waiting(event=5), waiting(1, partition=2)]
    parked(lot, *requests)
    assert [lot.remove(each) for each in requests] == [True] * 3
    assert [lot.remove(each) for each in requests] == [False] * 3
    assert (len(lot), taken(lot, 9)) == (0, [])


def test_a_request_that_waits_in_another_lot_is_not_removed() -> None:
    lot, other, request = ParkingLot(), ParkingLot(), waiting(1)
    parked(other, waiting(1))
    parked(lot, request)
    assert not other.remove(request)
    assert len(other) == 1


@pytest.mark.parametrize("last_leaves", [True, False])
def test_requests_that_have_left_free_their_memory(last_leaves: bool) -> None:
    """A thousand expire in front of one that still waits: the heap must not keep them until its turn comes."""
    lot, patient = ParkingLot(), waiting(10_000)
    parked(lot, patient)
    hasty = [waiting(offset) for offset in range(20_000, 21_000)]
    parked(lot, *hasty)
    left = [weakref.ref(each) for each in hasty]
    for each in hasty:
        lot.remove(each)
    del each, hasty
    if last_leaves:
        lot.remove(patient)
    gc.collect()
    assert not any(each() for each in left)
    assert taken(lot, 30_000) == ([] if last_leaves else [patient])


def test_expiries_do_not_search_for_their_request() -> None:
    """The heap is rebuilt when half of it has left, so the work for n expiries grows with n."""
    lot = ParkingLot()
    rebuilt: list[int] = []

    class Watched(dict[int, PendingRequest]):
        def __contains__(self, ticket: object) -> bool:
            rebuilt.append(1)
            return super().__contains__(ticket)

    lot._waiting = Watched()
    requests = [waiting(offset) for offset in range(4_096)]
    parked(lot, *requests)
    for each in requests:
        lot.remove(each)
    assert len(rebuilt) <= 2 * len(requests)


class Left(list[tuple[list[PendingRequest], Partition]]):
    """What leaves the parking, with its partition."""

    def __call__(self, leaving: list[PendingRequest], partition: Partition) -> None:
        self.append((leaving, partition))


def parking_of(left: Left) -> tuple[Parking, Partition]:
    partition = Partition(0, 10, 8)
    partition.gate.open()
    return Parking(left, Metrics(), lambda: NOW_S, 1_000), partition


async def test_a_request_leaves_when_the_partition_has_applied_its_click() -> None:
    left = Left()
    parking, partition = parking_of(left)
    request = waiting(3)
    parking.add(request, partition)
    partition.mark_applied(2)
    assert (left, len(parking)) == ([], 1)
    partition.mark_applied(3)
    assert (left, len(parking)) == ([([request], partition)], 0)
    assert not request.has_expired
    assert request.timer is None
    assert request.timings["park"] == NOW_S * 1000


async def test_a_request_whose_time_is_over_leaves_as_expired() -> None:
    left = Left()
    parking, partition = parking_of(left)
    request = waiting(3)  # its deadline is long over
    parking.add(request, partition)
    await asyncio.sleep(0.01)
    assert left == [([request], partition)]
    assert request.has_expired
    assert request.left_ms(0) == 0


async def test_a_click_of_a_partition_that_is_being_read_wakes_nobody() -> None:
    left = Left()
    parking, partition = parking_of(left)
    partition.gate.close()
    parking.add(waiting(3, deadline_ms=60_000, asked_ms=NOW_S * 1000), partition)
    partition.mark_applied(3)
    assert (left, len(parking)) == ([], 1)
    parking.clear()


async def test_requests_that_are_forgotten_do_not_expire() -> None:
    left = Left()
    parking, partition = parking_of(left)
    parking.add(waiting(3, deadline_ms=1, asked_ms=NOW_S * 1000), partition)
    parking.clear()
    await asyncio.sleep(0.01)
    assert (left, len(parking)) == ([], 0)


async def test_a_click_of_another_user_with_the_same_event_id_wakes_nobody() -> None:
    left = Left()
    parking, partition = parking_of(left)
    parking.add(waiting(event=5, deadline_ms=60_000, asked_ms=NOW_S * 1000), partition)
    partition.remember_unlogged(np.array([partition.row_of(b"bob")]), np.array([5], dtype=np.uint64))
    partition.mark_applied(0, np.array([5], dtype=np.uint64))
    assert left == []
    partition.remember_unlogged(np.array([partition.row_of(b"ann")]), np.array([5], dtype=np.uint64))
    partition.mark_applied(1, np.array([5], dtype=np.uint64))
    assert len(left) == 1


async def test_one_user_cannot_fill_the_parking_lot() -> None:
    left = Left()
    parking, partition = parking_of(left)
    mine = [waiting(5, deadline_ms=60_000, asked_ms=NOW_S * 1000) for _ in range(MAX_PARKED_PER_USER)]
    for each in mine:
        assert parking.refusal(each) is None
        parking.add(each, partition)
    assert parking.refusal(waiting(5)) == "100 requests of this user wait already, expected at most as many"
    assert parking.refusal(dataclasses.replace(waiting(5), user=b"bob")) is None
    partition.mark_applied(5)
    assert [len(leaving) for leaving, _ in left] == [MAX_PARKED_PER_USER]
    assert parking.refusal(waiting(6)) is None
    parking.clear()


async def test_the_records_of_requests_that_wait_take_a_bounded_number_of_bytes() -> None:
    parking, partition = parking_of(Left())
    large = dataclasses.replace(
        waiting(5, deadline_ms=60_000, asked_ms=NOW_S * 1000), size_bytes=MAX_PARKED_BYTES
    )
    parking.add(large, partition)
    small = dataclasses.replace(waiting(5), user=b"bob", size_bytes=1)
    assert parking.refusal(small) == "requests of 64 MB wait already, expected at most 64"
    parking.clear()
    assert parking.refusal(small) is None


async def test_requests_that_expire_at_the_same_time_leave_together() -> None:
    left = Left()
    parking, partition = parking_of(left)
    for number in range(500):
        parking.add(dataclasses.replace(waiting(5), user=str(number).encode()), partition)
    async with asyncio.timeout(20):
        while sum(len(leaving) for leaving, _ in left) < 500:
            await asyncio.sleep(0)
    assert len(left) < 50
    assert (len(parking), parking.refusal(waiting(5))) == (0, None)
