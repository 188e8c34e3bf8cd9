"""One record of the requests topic: a pending request, a rejection, a dead letter, or a stray."""

import dataclasses
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka import ConsumerRecord

from headwater.encoder.features import ACTION_CODES, event_key, item_key
from headwater.kafka.dead_letters import DeadLetter
from headwater.kafka.forwarding import Stray
from headwater.kafka.headers import ORIGIN, Origin
from headwater.kafka.partitioner import partition_of
from headwater.messages import MAX_DEADLINE_MS
from headwater.paths.accepting import (
    Acceptance,
    PendingRequest,
    Rejection,
    ReplyAddress,
    Unanswered,
)
from headwater.profiles.partition import Partition

PARTITIONS = 4
AT_MS = 1_700_000_000_000
HOME = partition_of(b"ann", PARTITIONS)
NOW_MS = AT_MS + 1_000
ACCEPTANCE = Acceptance(PARTITIONS, "responses", ("shop.replies",), lambda: NOW_MS / 1000.0)


class Finished:
    """A batch of so many records, and whether it is finished."""

    def __init__(self, records: list[ConsumerRecord]) -> None:
        self.records, self.generation, self.is_finished = records, 4, False

    def take_records(self) -> list[ConsumerRecord]:
        return self.records

    def finish(self) -> None:
        self.is_finished = True


def record(
    value: bytes | None = None,
    headers: list[tuple[str, bytes]] | None = None,
    partition: int = HOME,
    **fields: Any,
) -> ConsumerRecord:
    message = {"request_id": "r1", "user_id": "ann", **fields}
    raw = json.dumps(message).encode() if value is None else value
    return ConsumerRecord("requests", partition, 7, AT_MS, 0, b"ann", raw, None, 0, 0, tuple(headers or ()))


def accepted(one: ConsumerRecord, partition: int = HOME) -> Any:
    unanswered = Unanswered(cast(Any, SimpleNamespace()), 1)
    return ACCEPTANCE.accept_one(one, Partition(partition, 10, 8), unanswered)


def pending(one: ConsumerRecord) -> PendingRequest:
    found = accepted(one)
    assert isinstance(found, PendingRequest)
    return found


async def test_a_valid_request_is_pending_with_its_session_keyed_and_coded() -> None:
    session = [{"item_id": "tea", "action": "purchase", "at_ms": AT_MS - 5}, {"item_id": "soap"}]
    found = pending(record(session=session))
    assert (found.user, found.at_ms, found.asked_ms) == (b"ann", AT_MS, AT_MS)
    assert found.session.items == [item_key("tea"), item_key("soap")]
    assert found.session.actions == [ACTION_CODES["purchase"], ACTION_CODES["click"]]
    assert found.session.at_ms == [AT_MS - 5, AT_MS]
    assert found.address == ReplyAddress("responses", [])


async def test_a_moment_that_is_asked_about_is_also_that_of_events_without_a_time() -> None:
    found = pending(record(at_ms=AT_MS - 1_000, session=[{"item_id": "tea"}]))
    assert (found.at_ms, found.session.at_ms, found.asked_ms) == (AT_MS - 1_000, [AT_MS - 1_000], AT_MS)


async def test_a_request_demands_a_click_by_its_position_or_by_its_event() -> None:
    assert not pending(record()).demands_a_click
    assert pending(record(after={"partition": 1, "offset": 3})).demands_a_click
    by_event = pending(record(after_event_id="mine"))
    assert (by_event.demands_a_click, by_event.event) == (True, event_key("mine"))


async def test_the_deadline_counts_from_the_record_and_of_a_stray_from_its_first_one() -> None:
    assert pending(record(deadline_ms=500)).left_ms(AT_MS + 200) == 300
    origin = ORIGIN.header(Origin(1, 12, AT_MS - 400))
    assert pending(record(headers=[origin], deadline_ms=500)).left_ms(AT_MS) == 100


async def test_a_request_whose_click_did_not_come_has_no_time_left() -> None:
    found = pending(record())
    found.has_expired = True
    assert found.left_ms(AT_MS) == 0


async def test_answers_go_where_the_headers_say() -> None:
    headers = [("correlation_id", b"7"), ("reply_to", b"shop.replies"), ("reply_partition", b"3")]
    assert pending(record(headers=headers)).address == ReplyAddress(
        "shop.replies", [("correlation_id", b"7"), ("reply_partition", b"3")], 3
    )


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"limit": 0}, "bad_field"),
        ({"filter": {"colour": "red"}}, "bad_filter"),
        ({"after": {"partition": PARTITIONS, "offset": 0}}, "unknown_partition"),
        ({"headers": [("reply_to", b"secrets")]}, "reply_topic_not_allowed"),
        ({"headers": [("reply_partition", b"-1")]}, "bad_reply_partition"),
        ({"headers": [("correlation_id", bytes(1_000_000))]}, "bad_correlation_id"),
    ],
)
async def test_an_invalid_request_is_rejected_to_its_sender(fields: dict[str, Any], code: str) -> None:
    found = accepted(record(**fields))
    assert isinstance(found, Rejection)
    assert (found.sender, found.error.code) == (("r1", "ann"), code)
    assert found.address.topic == "responses"


async def test_a_record_without_a_readable_id_is_a_dead_letter() -> None:
    found = accepted(record(b"{"))
    assert isinstance(found, DeadLetter)
    assert found.reason == "bad_json"


async def test_a_request_on_another_partition_is_a_stray_once_and_then_a_dead_letter() -> None:
    away = (HOME + 1) % PARTITIONS
    stray = accepted(record(partition=away), away)
    assert isinstance(stray, Stray)
    again = record(partition=away, headers=[*stray.outgoing.headers])  # type: ignore[list-item]
    twice = accepted(again, away)
    assert isinstance(twice, DeadLetter)
    assert twice.reason == "misrouted"


async def test_a_user_that_the_partition_holds_already_is_no_stray() -> None:
    away = (HOME + 1) % PARTITIONS
    partition = Partition(away, 10, 8)
    partition.row_of(b"ann")
    unanswered = Unanswered(cast(Any, SimpleNamespace()), 1)
    assert isinstance(ACCEPTANCE.accept_one(record(partition=away), partition, unanswered), PendingRequest)


async def test_a_batch_is_sorted_and_finished_with_its_last_answer() -> None:
    batch = Finished([record(request_id="good"), record(limit=0), record(b"{")])
    found = await ACCEPTANCE.accept(cast(Any, batch), Partition(HOME, 10, 8))
    assert [each.request.request_id for each in found.pending] == ["good"]
    assert [each.error.code for each in found.rejections] == ["bad_field"]
    assert [letter.reason for letter in found.letters] == ["bad_json"]
    assert found.strays == []
    found.unanswered.answered(2)
    assert not batch.is_finished
    found.pending[0].unanswered.answered()
    assert batch.is_finished


@pytest.mark.parametrize(
    ("origin_ms", "record_ms", "asked_ms"),
    [
        (None, AT_MS, AT_MS),
        (None, -1, NOW_MS),
        (None, NOW_MS + 10**9, NOW_MS),
        (AT_MS - 500, AT_MS, AT_MS - 500),
        (AT_MS + 10**12, AT_MS, AT_MS),
        (-(2**63), AT_MS, NOW_MS - MAX_DEADLINE_MS),
        (2**63 - 1, NOW_MS + 10**12, NOW_MS),
    ],
)
async def test_no_timestamp_keeps_a_request_longer_than_its_deadline(
    origin_ms: int | None, record_ms: int, asked_ms: int
) -> None:
    headers = [] if origin_ms is None else [ORIGIN.header(Origin(0, 5, origin_ms))]
    one = dataclasses.replace(record(headers=headers, deadline_ms=60_000), timestamp=record_ms)
    found = pending(one)
    assert (found.asked_ms, found.at_ms) == (asked_ms, asked_ms)
    assert 0.0 <= found.left_ms(NOW_MS) <= 60_000.0


@pytest.mark.parametrize(
    "fields",
    [
        {"filter": {"or": [{"tags": {"any": [f"t{n}" for n in range(256)]}}] * 64}},
        {
            "limit": 1_000,
            "explain": True,
            "diversity": 1,
            "session": [{"item_id": "c"}] * 100,
            "sources": {"new": 1, "interests": 1},
        },
    ],
)
async def test_a_request_that_costs_too_much_is_rejected_before_any_work(fields: dict[str, Any]) -> None:
    found = accepted(record(**fields))
    assert isinstance(found, Rejection)
    assert (found.error.code, "expected at most" in found.error.message) == ("too_costly", True)
