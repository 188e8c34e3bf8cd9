"""Requests in hand, in parts of bounded work."""

from types import SimpleNamespace
from typing import Any, cast

from headwater.messages import Request
from headwater.paths.accepting import PendingRequest, ReplyAddress, Unanswered
from headwater.paths.request_parts import MOST_AT_ONCE, PART_US, parts_of
from headwater.profiles.interests import WhatIfEvents


def pending(name: str, cost_us: float = 1_000.0, deadline_ms: int = 1_000) -> PendingRequest:
    request = Request(name, "ann", deadline_ms=deadline_ms)
    unanswered = Unanswered(cast(Any, SimpleNamespace()), 1)
    session, address = WhatIfEvents([], [], []), ReplyAddress("responses", [])
    return PendingRequest(request, b"ann", None, session, 0, 0.0, address, unanswered, cost_us=cost_us)


def named(parts: Any) -> list[list[str]]:
    return [[each.request.request_id for each in part] for part in parts]


def test_requests_that_cost_little_stay_together_in_their_order() -> None:
    assert named(parts_of([pending("a"), pending("b"), pending("c")], lambda: 0.0)) == [["a", "b", "c"]]


def test_costly_requests_stand_alone_and_after_cheap_ones() -> None:
    given = [pending("costly", PART_US), pending("a"), pending("costliest", 2 * PART_US), pending("b")]
    assert named(parts_of(given, lambda: 0.0)) == [["a", "b"], ["costly"], ["costliest"]]


def test_no_part_holds_more_answers_than_are_made_in_a_few_milliseconds() -> None:
    given = [pending(str(number), 1.0) for number in range(MOST_AT_ONCE + 1)]
    assert [len(part) for part in parts_of(given, lambda: 0.0)] == [MOST_AT_ONCE, 1]


def test_those_whose_time_is_over_come_before_the_next_part() -> None:
    now_ms = 0.0
    given = [
        pending("first", PART_US),
        pending("late", 3 * PART_US, deadline_ms=5),
        pending("also late", 4 * PART_US, deadline_ms=6),
        pending("patient", 2 * PART_US),
    ]
    parts = parts_of(given, lambda: now_ms)
    assert named([next(parts)]) == [["first"]]
    now_ms = 6.0
    assert {*named([next(parts)])[0]} == {"late", "also late"}
    assert named(parts) == [["patient"]]


def test_all_that_are_late_from_the_start_leave_in_a_few_large_parts() -> None:
    given = [pending(str(number), PART_US) for number in range(2 * MOST_AT_ONCE)]
    assert [len(part) for part in parts_of(given, lambda: 1_000.0)] == [MOST_AT_ONCE] * 2


def test_every_request_is_in_one_part() -> None:
    given = [
        pending(str(number), float(number % 7) * 20_000, deadline_ms=1 + number) for number in range(500)
    ]
    clock = iter(range(10_000))
    found = [name for part in named(parts_of(given, lambda: float(next(clock)))) for name in part]
    assert sorted(found) == sorted(each.request.request_id for each in given)
