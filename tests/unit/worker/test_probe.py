"""The freshness probe over a broker in memory, and answers that the test gives."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, cast

import pytest
from aiokafka.errors import KafkaConnectionError, KafkaError

from headwater.kafka.headers import Header
from headwater.kafka.partitioner import partition_of, probe_user
from headwater.kafka.topics import Topics
from headwater.messages import (
    BadMessage,
    Candidate,
    Gap,
    Reflects,
    Request,
    Response,
    decode_click,
    decode_request,
)
from headwater.metrics import Metrics
from headwater.settings import Settings
from headwater.worker import probe as probe_module
from headwater.worker.probe import AnswersTopic, Probe
from tests.support.recording_producer import RecordingProducer

TOPICS = Topics.named("test.")
PARTITIONS = 4
NOW_MS = 1_700_000_000_000


class Answers:
    """Answers the newest request as ``said`` tells, once it is published."""

    def __init__(self, producer: RecordingProducer, said: Callable[[Request], Response]) -> None:
        self._producer, self.said = producer, said
        self.listens: list[int] = []
        self.paused = 0
        self.failure: Exception | None = None

    async def listen(self, partition: int) -> Header:
        self.listens.append(partition)
        return "reply_partition", str(partition).encode()

    async def answer(self, request_id: str) -> Response:
        if self.failure is not None:
            raise self.failure
        ((record, request),) = (
            (record, request)
            for record in self._producer.records(TOPICS.requests)
            if (request := decode_request(record.key, record.value, NOW_MS)).request_id == request_id
        )
        assert ("correlation_id", request_id.encode()) in record.headers
        assert ("reply_partition", str(record.partition).encode()) in record.headers
        return self.said(request)

    def pause(self) -> None:
        self.paused += 1


def answered(request: Request, **fields: Any) -> Response:
    assert request.after is not None
    given = {
        "status": "ok",
        "items": [Candidate("tea", 0.1, "interests")],
        "reflects": Reflects(request.after.partition, request.after.offset, 1),
        **fields,
    }
    return Response(request.request_id, request.user_id, **given)


class Probed:
    def __init__(self) -> None:
        self.producer = RecordingProducer(PARTITIONS)
        self.answers = Answers(self.producer, answered)
        self.owned = {1, 3}
        self.metrics = Metrics()
        self.probe = Probe(
            cast(Any, self.producer),
            self.answers,
            TOPICS,
            PARTITIONS,
            0.5,
            lambda: self.owned,
            self.metrics,
            lambda: NOW_MS / 1000.0,
        )

    @property
    def failures(self) -> list[str | None]:
        return [each.failure for each in self.probe.snapshot()]

    def counted(self) -> tuple[int, dict[str, float]]:
        """Answers in the histogram, and failures by reason."""
        samples = [sample for family in self.metrics.registry.collect() for sample in family.samples]
        (answers,) = (
            each.value for each in samples if each.name == "headwater_probe_click_to_answer_seconds_count"
        )
        failed = {
            each.labels["reason"]: each.value
            for each in samples
            if each.name == "headwater_probe_failures_total"
        }
        return int(answers), failed


async def test_a_probe_clicks_on_its_partition_and_measures_the_answer_that_reflects_it() -> None:
    probed = Probed()
    await probed.probe.probe(3)
    (click_record,) = probed.producer.records(TOPICS.clicks)
    click = decode_click(click_record.key, click_record.value, NOW_MS)
    assert click.user_id.encode() == click_record.key == probe_user(3, PARTITIONS)
    assert click_record.partition == partition_of(click_record.key, PARTITIONS) == 3
    (result,) = probed.probe.snapshot()
    assert (result.partition, result.at_ms, result.failure) == (3, NOW_MS, None)
    assert result.seconds is not None
    assert probed.counted() == (1, {})
    assert (probed.answers.listens, probed.answers.paused) == ([3], 1)


async def test_the_next_click_is_on_an_item_of_the_last_answer_so_that_the_encoder_steps() -> None:
    probed = Probed()
    for _ in range(2):
        await probed.probe.probe(3)
    clicked = [
        decode_click(each.key, each.value, NOW_MS).item_id for each in probed.producer.records(TOPICS.clicks)
    ]
    assert clicked == ["~headwater-probe/no-item", "tea"]


WRONG: dict[str, dict[str, Any]] = {
    "expired": {"status": "expired", "items": []},
    "rejected": {"status": "rejected", "items": []},
    "lost": {"status": "degraded", "rung": "gap", "reflects": Reflects(3, 9, gap=Gap(0, 1))},
    "stale": {"reflects": Reflects(3, -1)},
}


@pytest.mark.parametrize("reason", WRONG)
async def test_an_answer_that_does_not_prove_the_click_is_a_failure(reason: str) -> None:
    probed = Probed()
    probed.answers.said = lambda request: answered(request, **WRONG[reason])
    await probed.probe.probe(3)
    assert probed.failures == [reason]
    assert probed.counted() == (0, {reason: 1.0})


async def test_a_degraded_answer_that_reflects_the_click_is_fresh() -> None:
    probed = Probed()
    probed.answers.said = lambda request: answered(request, status="degraded", rung="popular")
    await probed.probe.probe(3)
    assert probed.failures == [None]


async def test_a_broker_that_is_away_and_answers_that_do_not_come_are_failures_that_end_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probed = Probed()
    probed.producer.down = True
    await probed.probe.probe(3)
    probed.producer.down = False
    for failure in (KafkaConnectionError(), BadMessage("bad_json", "no answer at all")):
        probed.answers.failure = failure
        await probed.probe.probe(3)
    probed.answers.failure = None
    probed.producer.slow = {TOPICS.clicks}  # never acknowledged
    monkeypatch.setattr(probe_module, "_TIMEOUT_S", 0.01)
    await probed.probe.probe(3)
    assert probed.failures == ["not_stored", "unreadable", "unreadable", "not_stored"]


async def test_a_partition_that_has_left_meanwhile_is_no_failure_of_this_worker() -> None:
    probed = Probed()

    def left(request: Request) -> Response:
        probed.owned.discard(3)
        return answered(request, **WRONG["expired"])

    probed.answers.said = left
    await probed.probe.probe(3)
    assert probed.failures == []
    assert probed.counted() == (0, {})


async def test_answers_are_asked_for_again_once_the_broker_is_there() -> None:
    answers = AnswersTopic(Settings(kafka_bootstrap_servers="127.0.0.1:1"), TOPICS.responses)
    for _ in range(2):
        with pytest.raises(KafkaError):
            await answers.listen(0)
    answers.pause()
    await answers.stop()


async def test_a_worker_probes_the_partitions_that_it_owns_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probed = Probed()
    monkeypatch.setattr(probe_module, "_APART_S", 0.0)
    probed.probe._every_s = 0.0
    running = asyncio.create_task(probed.probe.run())
    async with asyncio.timeout(10):
        while len(probed.probe.snapshot()) < 4:
            await asyncio.sleep(0)
        probed.owned = {0}
        while 0 not in probed.answers.listens:
            await asyncio.sleep(0)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert probed.answers.listens[:4] == [1, 3, 1, 3]
    assert set(probed.answers.listens) == {0, 1, 3}
    assert 0 in probed.answers.listens[4:7]
