"""What was found, as a response: its items and reasons, its proof, its rung; and how refusals read."""

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from headwater.encoder.features import ACTION_CODES
from headwater.kafka.dead_letters import DeadLetters
from headwater.kafka.topics import Topics
from headwater.messages import (
    PROBE_PREFIX,
    Candidate,
    ErrorDetail,
    FunnelItem,
    FunnelStage,
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
    return Found(pending(), user("click", "retract"), result, rung, 6, -1, {0: 8})


async def test_an_answer_holds_items_reasons_proof_and_times() -> None:
    one = found()
    one.pending.timings["read"] = 1.23456
    reply = answering.answered(one, Partition(2, 10, 8), 5, "bundle", now_ms=1_012.0)
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
    response = answering.answered(found("no-new"), Partition(2, 10, 8), 5, "bundle", 1_000.0).response
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
    partition.gap_now = lambda: Gap(4, 7)
    one = found()
    one.pending.request = msgspec.structs.replace(one.pending.request, after=after)
    response = answering.answered(one, partition, 9, "bundle", 1_000.0).response
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


async def test_a_demanded_event_of_a_former_log_needs_nothing_of_the_present_one(
    partition: Partition,
) -> None:
    assert answering.needed_offset(pending(event=5), partition, applied=-1) == -1


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
        [(one, answering.answered(found("popular"), Partition(2, 10, 8), 5, "bundle", 1_000.0))]
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
        assert await listener.next() == [Answered(reply.response, 250.0, 1_250.0) for _, reply in replies[1:]]
        assert listener.dropped == 1


def large(count: int, reasons: int = 5) -> Response:
    because = [Reason("x" * 200, 5, "click", 0.2)] * reasons
    items = [Candidate(f"{n}-" + "y" * 100, 0.5, "popular", because) for n in range(count)]
    return Response("r1", "ann", "ok", items=items, model="bundle")


def test_an_answer_that_fits_is_sent_as_it_is() -> None:
    fitted = answering.fitted(large(3), 10_000)
    assert decode_response(fitted.raw) == fitted.response == large(3)
    assert answering.fitted(large(3), len(fitted.raw)) == fitted


def test_an_answer_that_is_too_large_loses_its_reasons_first() -> None:
    response = decode_response(answering.fitted(large(40), 10_000).raw)
    assert (response.truncated, response.status) == (True, "ok")
    assert [item.item_id for item in response.items] == [item.item_id for item in large(40).items]
    assert not any(item.because for item in response.items)


def test_an_answer_that_is_too_large_loses_its_funnel_before_its_reasons() -> None:
    stages = [FunnelStage("fused", 24, items=[FunnelItem("z" * 500, 1)] * 12)]
    whole = msgspec.structs.replace(large(3), funnel=stages)
    fitted = answering.fitted(whole, 9_000)
    assert fitted.response == msgspec.structs.replace(large(3), truncated=True)
    assert decode_response(fitted.raw) == fitted.response
    assert answering.fitted(whole, 500_000).response == whole


@given(st.integers(0, 60), st.integers(0, 3), st.integers(200, 12_000))
def test_an_answer_takes_no_more_than_is_allowed_and_its_first_items_stay(
    count: int, reasons: int, most_bytes: int
) -> None:
    whole = large(count, reasons)
    response, raw = answering.fitted(whole, most_bytes)
    assert decode_response(raw) == response
    kept = len(response.items)
    if response.error is None:
        assert len(raw) <= most_bytes
        assert [item.item_id for item in response.items] == [item.item_id for item in whole.items[:kept]]
        assert response.truncated or response == whole
    else:
        assert (response.status, response.error.code) == ("rejected", "too_large")


def test_an_answer_that_does_not_fit_without_items_is_rejected() -> None:
    catalog = dict.fromkeys(range(1000), 10**15)
    whole = msgspec.structs.replace(large(5), catalog=catalog)
    response = decode_response(answering.fitted(whole, 4_000).raw)
    assert (response.request_id, response.status, response.items) == ("r1", "rejected", [])
    assert response.error is not None
    assert response.error.code == "too_large"


@pytest.mark.parametrize("most_bytes", [100_000, 20_000, 1_000])
async def test_an_answer_is_cut_until_its_topic_takes_it_and_others_are_whole(most_bytes: int) -> None:
    box, producer, _ = outbox(Observer())
    producer.most_bytes = most_bytes
    await box.send([Reply(ADDRESS, large(1_000)), Reply(ADDRESS, large(1, 1))])
    got = {len(decode_response(each.value).items) for each in producer.records("responses")}
    assert len(producer.records("responses")) == 2
    assert 1 in got


async def test_an_answer_that_its_topic_never_takes_counts_as_rejected_and_says_why() -> None:
    box, producer, metrics = outbox(Observer())
    producer.most_bytes = 700
    whole = msgspec.structs.replace(large(5), catalog=dict.fromkeys(range(100), 10**15))
    await box.send([Reply(ADDRESS, whole), Reply(ADDRESS, large(1, 0))])
    told = [decode_response(each.value) for each in producer.records("responses")]
    [refusal] = [each for each in told if each.error is not None]
    assert refusal.error is not None
    assert "expected what its topic takes" in refusal.error.message
    counted = {status: metrics.requests_total.labels(status)._value.get() for status in ("ok", "rejected")}
    assert counted == {"ok": 1, "rejected": 1}


async def test_an_answer_whose_topic_is_not_there_goes_to_the_usual_one_and_says_so() -> None:
    box, producer, _ = outbox(Observer())
    producer.missing = {"elsewhere"}
    elsewhere = ReplyAddress("elsewhere", [("correlation_id", b"7")], 3)
    await box.send([Reply(elsewhere, large(1)), Reply(ADDRESS._replace(topic="responses.v1"), large(2))])
    headers = [dict(record.headers) for record in producer.records("responses.v1")]
    assert sorted(each.get("reply_to_failed", b"")[:10] for each in headers) == [b"", b"elsewhere:"]
    assert all(each["correlation_id"] == b"7" for each in headers)
    producer.missing = set()
    await box.send([Reply(elsewhere, large(1))])  # nobody asks again so soon
    assert producer.records("elsewhere") == []


async def test_answers_to_a_freshness_probe_are_delivered_and_count_in_no_figure() -> None:
    observer = Observer()
    box, producer, metrics = outbox(observer)
    one = answering.answered(found("popular"), Partition(2, 10, 8), 5, "bundle", 1_000.0)
    probe = msgspec.structs.replace(one.response, request_id="p1", user_id=f"{PROBE_PREFIX}2/0")
    with observer.listen() as listener:
        await box.deliver([(pending(), one), (pending(), Reply(ADDRESS, probe))])
        told = await listener.next()
    assert [each.response.request_id for each in told if isinstance(each, Answered)] == ["r1"]
    written = [decode_response(record.value).request_id for record in producer.records("responses")]
    assert written == ["r1", "p1"]
    counted = {
        sample.name: sample.value for family in metrics.registry.collect() for sample in family.samples
    }
    assert counted["headwater_requests_total"] == 1
    assert counted["headwater_index_fallbacks_total"] == 1
    assert counted["headwater_request_seconds_count"] == 1


async def test_an_answer_whose_topic_fails_goes_to_the_usual_one() -> None:
    class Failing(RecordingProducer):
        def _append(self, topic: str, partition: int, records: Any) -> Any:
            self.down = topic == "elsewhere"
            return super()._append(topic, partition, records)

    producer, metrics, topics = Failing(), Metrics(), Topics.named("")
    letters = DeadLetters(cast(Any, producer), topics.dead_letters, metrics)
    box = Outbox(cast(Any, producer), letters, topics, metrics, Observer())
    await box.send([Reply(ReplyAddress("elsewhere", []), large(1))])
    [record] = producer.records("responses.v1")
    assert b"did not acknowledge" in dict(record.headers)["reply_to_failed"]
