"""The freshness probe against a running worker: its click, its request and its answer go through Kafka."""

import pytest

from headwater.kafka.publish import producer_of
from headwater.kafka.topics import Topics
from headwater.metrics import Metrics
from headwater.worker.probe import AnswersTopic, Probe
from tests.end_to_end.conftest import System

pytestmark = pytest.mark.kafka


async def test_a_probe_reads_back_an_answer_that_reflects_its_click(shared_system: System) -> None:
    settings = shared_system.settings
    topics = Topics.named(settings.topic_prefix)
    producer, answers = producer_of(settings), AnswersTopic(settings, topics.responses)
    await producer.start()
    try:
        owned = range(settings.partitions)
        probe = Probe(producer, answers, topics, settings.partitions, 1.0, lambda: owned, Metrics())
        for number in (*owned, 0):
            await probe.probe(number)
    finally:
        await answers.stop()
        await producer.stop()
    assert [(each.partition, each.failure) for each in probe.snapshot()] == [
        (number, None) for number in (*owned, 0)
    ]
    clicked = probe._item_ids.values()
    assert clicked
    assert not any(each.startswith("~") for each in clicked)
