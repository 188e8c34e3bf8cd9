"""What was found, as a response: its items and reasons, its proof, its rung; and how refusals read."""

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import pytest_asyncio

from headwater.encoder.features import ACTION_CODES
from headwater.kafka.dead_letters import DeadLetters
from headwater.kafka.topics import Topics
from headwater.messages import (
    Candidate,
    ErrorDetail,
    Gap,
    Position,
    Reason,
    Reflects,
    Request,
    Response,
    decode_response,
)
from headwater.metrics import Metrics
from headwater.paths import answering
from headwater.paths.accepting import PendingRequest, Rejection, ReplyAddress, Unanswered
from headwater.paths.answering import Found, Outbox, Reply
from headwater.paths.observer import Answered, Observer
from headwater.profiles.columns import Log
from headwater.profiles.interests import UserInterests, WhatIfEvents
from headwater.profiles.partition import Partition
from headwater.recall.explain import PastEvent, Share
from headwater.recall.fusion import Fused
from headwater.recall.pipeline import RecallResult
from tests.support.recording_producer import RecordingProducer

ADDRESS = ReplyAddress("responses", [("correlation_id", b"7")], 1)


@pytest_asyncio.fixture
async def partition() -> Partition:
    partition = Partition(2, 10, 8)
    partition.watermark = 6
    return partition


def pending(event: int | None = None, **fields: Any) -> PendingRequest:
    request = Request("r1", "ann", deadline_ms=500, **fields)
    unanswered = Unanswered(cast(Any, SimpleNamespace(finish=lambda: None)), 1)
    return PendingRequest(
        request, b"ann", None, WhatIfEvents([], [], []), 0, 1_000.0, ADDRESS, unanswered, event
    )


def user(*actions: str) -> UserInterests:
    n = len(actions)
    codes = np.array([[ACTION_CODES[action] for action in actions]], dtype=np.uint8)
    at_ms = np.arange(100, 100 + n, dtype=np.int64)[None]
    keys = np.zeros((1, n), dtype=np.uint64)
    nothing = np.zeros((0, 4), dtype=np.float32)
    return UserInterests(nothing, nothing[:, 0], 3, Log(np.array([n]), at_ms, keys, keys, codes), b"last")


def found(rung: str | None = None) -> Found:
    reason = Share(PastEvent("tea", 5, "click"), 0.123456)
    result = RecallResult([Fused(1, "chai", 0.12345678, "interests")], [[reason]], rung)
    return Found(pending(), user("click", "retract"), result, rung, 6, -1)


async def test_an_answer_holds_items_reasons_proof_and_times() -> None:
    one = found()
    one.pending.timings["read"] = 1.23456
    reply = answering.answered(one, Partition(2, 10, 8), 5, "bundle", {0: 8}, now_ms=1_012.0)
    assert reply.address == ADDRESS
    assert reply.response == Response(
        "r1",
        "ann",
        "ok",
        items=[Candidate("chai", 0.123457, "interests", [Reason("tea", 5, "click", 0.1235)])],
        reflects=Reflects(2, 5, 1, 3, "last", 100),
        model="bundle",
        catalog={0: 8},
        timings_ms={"read": 1.235, "total": 12.0},
    )


async def test_an_answer_with_a_rung_is_degraded() -> None:
    response = answering.answered(found("no-new"), Partition(2, 10, 8), 5, "bundle", {}, 1_000.0).response
    assert (response.status, response.rung) == ("degraded", "no-new")


async def test_the_proof_of_a_user_without_events_is_empty() -> None:
    nobody = user()._replace(last_event=b"", pending=0)
    place = Partition(2, 10, 8)
    assert answering.reflects(place, 5, nobody) == Reflects(2, 5, 0, 0, None, None)
    assert answering.reflects(place, 5, nobody._replace(log=None)) == Reflects(2, 5, 0, 0, None, None)


@pytest.mark.parametrize(
    ("after", "rung"),
    [
        (None, None),
        (Position(2, 3), None),
        (Position(2, 4), "gap"),
        (Position(2, 7), "gap"),
        (Position(2, 8), None),
        (Position(1, 5), None),
    ],
)
async def test_an_answer_claims_no_click_that_was_gone_before_it_was_read(
    partition: Partition, after: Position | None, rung: str | None
) -> None:
    partition.gap = Gap(4, 7)
    one = found()
    one.pending.request = msgspec.structs.replace(one.pending.request, after=after)
    response = answering.answered(one, partition, 9, "bundle", {}, 1_000.0).response
    assert (response.status, response.rung) == ("ok" if rung is None else "degraded", rung)
    assert response.reflects == Reflects(2, 9, 1, 3, "last", 100, Gap(4, 7))
    assert answering.expired(one.pending, partition, "bundle").response.reflects == Reflects(
        2, partition.watermark, gap=Gap(4, 7)
    )


async def test_a_request_needs_its_click_stored_and_one_without_a_demand_needs_nothing(
    partition: Partition,
) -> None:
    assert answering.needed_offset(pending(), partition, applied=9) == -1
    assert answering.needed_offset(pending(after=Position(2, 4)), partition, applied=9) == 4
    assert answering.needed_offset(pending(after=Position(1, 4)), partition, applied=9) == 9
    assert answering.needed_offset(pending(event=5), partition, applied=9) == 9


async def test_a_demanded_event_is_never_answered_from_nothing(partition: Partition) -> None:
    assert answering.needed_offset(pending(event=5), partition, applied=-1) == 0


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (pending(), "deadline_ms: 500 ms were over before the request was read"),
        (
            pending(after=Position(1, 4)),
            "after: offset 4 of partition 1 was not applied within 500 ms; partition 2 is at 6",
        ),
        (
            pending(5, after_event_id="mine"),
            "after_event_id: 'mine' was not seen within 500 ms; ids of events that enter no log, such as impressions, "
            "are remembered for a while, and not beyond a restart",
        ),
    ],
)
async def test_an_expired_request_is_told_what_did_not_come(
    one: PendingRequest, message: str, partition: Partition
) -> None:
    response = answering.expired(one, partition, "bundle").response
    assert response.status == "expired"
    assert response.error == ErrorDetail("deadline", message)
    assert response.reflects == Reflects(2, 6)


async def test_refusals_say_why(partition: Partition) -> None:
    error = ErrorDetail("bad_field", "limit: got 0")
    invalid = answering.rejected(Rejection(("r1", "ann"), error, ADDRESS), "bundle")
    assert invalid == Reply(ADDRESS, Response("r1", "ann", "rejected", error, model="bundle"))
    full = answering.overloaded(pending(), partition, "bundle", "7 wait already").response
    assert full.error == ErrorDetail("overloaded", "after: 7 wait already")
    broken = answering.failed(pending(), partition, "bundle", ArithmeticError("secret details")).response
    assert broken.error is not None
    assert (broken.error.code, "secret" in broken.error.message) == ("internal_error", False)


def outbox(observer: Observer) -> tuple[Outbox, RecordingProducer, Metrics]:
    producer, metrics, topics = RecordingProducer(), Metrics(), Topics.named("")
    letters = DeadLetters(cast(Any, producer), topics.dead_letters, metrics)
    box = Outbox(cast(Any, producer), letters, topics, metrics, observer, lambda: 1.25)
    return box, producer, metrics


async def test_answers_are_written_where_they_are_wanted_and_then_count() -> None:
    box, producer, metrics = outbox(Observer())
    one = pending()
    finished: list[bool] = []
    one.unanswered.batch.finish = lambda: finished.append(True)  # type: ignore[method-assign]
    await box.deliver(
        [(one, answering.answered(found("popular"), Partition(2, 10, 8), 5, "bundle", {}, 1_000.0))]
    )
    (record,) = producer.records("responses", 1)
    assert decode_response(record.value).rung == "popular"
    assert record.headers == (("correlation_id", b"7"),)
    assert (finished, box.in_flight) == ([True], 0)
    exposed = metrics.exposition().decode()
    assert 'headwater_index_fallbacks_total{rung="popular"} 1.0' in exposed
    assert 'headwater_requests_total{status="degraded"} 1.0' in exposed


async def test_those_who_watch_are_told_acknowledged_answers() -> None:
    observer = Observer(capacity=2)
    box, _, _ = outbox(observer)
    replies = [
        (pending(), answering.rejected(Rejection((f"r{n}", "ann"), ErrorDetail("c", "m"), ADDRESS), "bundle"))
        for n in range(3)
    ]
    with observer.listen() as listener:
        await box.deliver(replies)
        assert await listener.next() == [Answered(reply.response, 250.0) for _, reply in replies[1:]]
        assert listener.dropped == 1
