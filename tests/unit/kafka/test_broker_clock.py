"""The broker's time, measured through the acknowledgements of both brokers and of one that is made up."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest
from aiokafka.errors import KafkaTimeoutError
from aiokafka.structs import RecordMetadata

from headwater.kafka import topics
from headwater.kafka.broker_clock import PROBE_KEY, BrokerClock
from headwater.kafka.publish import producer_of
from headwater.kafka.topics import Topics
from headwater.messages import decode_trend
from headwater.recall.popularity import Trends
from headwater.settings import Settings

AHEAD_S = 2.5


class Broker:
    """Acknowledges each record after a round trip, and appends it after a part of that. Its clock shows ``at_s``."""

    def __init__(self, at_s: float = 1_800_000_000.0) -> None:
        self.at_s, self.passed_s = at_s, 100.0  # its clock, and the worker's monotonic one
        self.round_trips: Iterator[tuple[float, float]] = iter(
            []
        )  # (until it is appended, until the answer is back)
        self.timestamp_type, self.is_away = 1, False
        self.values: list[bytes] = []

    async def send(self, topic: str, value: bytes, key: bytes, partition: int) -> "asyncio.Future[Any]":
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.is_away:
            done.set_exception(KafkaTimeoutError())
            return done
        there_s, back_s = next(self.round_trips, (0.001, 0.001))
        self.wait(there_s)
        appended_ms = int(self.at_s * 1000)
        self.wait(back_s)
        self.values.append(value)
        done.set_result(RecordMetadata(topic, partition, None, 0, appended_ms, self.timestamp_type, 0))
        return done

    def wait(self, s: float) -> None:
        self.at_s += s
        self.passed_s += s

    def clock(self, ahead_s: float = AHEAD_S) -> BrokerClock:
        """Of a worker whose own clock is ahead."""
        return BrokerClock(cast(Any, self), "trends", lambda: self.at_s + ahead_s, lambda: self.passed_s)


@pytest.mark.parametrize("ahead_s", [AHEAD_S, -AHEAD_S, 0.0])
async def test_the_worker_s_own_clock_does_not_count(ahead_s: float) -> None:
    broker = Broker()
    clock = broker.clock(ahead_s)
    assert clock.skew_s is None
    assert clock.now_s() == broker.at_s + ahead_s
    await clock.measure()
    assert clock.skew_s == pytest.approx(ahead_s, abs=0.002)
    broker.wait(9.0)
    assert clock.now_s() == pytest.approx(broker.at_s, abs=0.002)


async def test_the_quickest_probe_counts() -> None:
    """One that waits on its way there is wrong by half of the wait."""
    broker = Broker()
    broker.round_trips = iter([(4.0, 0.001), (0.002, 0.002), (0.001, 3.0)])
    clock = broker.clock()
    for _ in range(3):
        await clock.measure()
    assert clock.skew_s == pytest.approx(AHEAD_S, abs=0.004)


@pytest.mark.parametrize("jump_s", [60.0, -60.0, 0.1])
async def test_a_clock_that_is_set_or_a_suspend_is_followed_by_the_next_probe(jump_s: float) -> None:
    """During a suspend the monotonic clock stands still, and the broker's goes on."""
    broker = Broker()
    clock = broker.clock()
    await clock.measure()
    broker.at_s += jump_s
    broker.round_trips = iter([(0.002, 0.002)])
    await clock.measure()
    assert clock.now_s() == pytest.approx(broker.at_s, abs=0.004)


async def test_without_a_broker_the_estimate_stays_as_it_is() -> None:
    broker = Broker()
    clock = broker.clock()
    await clock.measure()
    broker.is_away = True
    await clock.measure()
    assert clock.skew_s == pytest.approx(AHEAD_S, abs=0.002)


async def test_a_topic_with_the_senders_time_measures_nothing() -> None:
    broker = Broker()
    broker.timestamp_type = 0
    clock = broker.clock()
    await clock.measure()
    assert clock.skew_s is None
    assert clock.now_s() == broker.at_s + AHEAD_S


async def test_a_worker_that_knows_no_probes_reads_a_trend_without_items() -> None:
    broker, trends = Broker(), Trends()
    await broker.clock().measure()
    trends.put(decode_trend(broker.values[0]))
    assert trends.popular() == []


async def test_both_brokers_tell_their_time(broker: str, topic_prefix: str) -> None:
    settings = Settings(kafka_bootstrap_servers=broker, topic_prefix=topic_prefix)
    await topics.create(settings)
    async with producer_of(settings) as producer:
        clock = BrokerClock(
            producer, Topics.named(topic_prefix).trends, lambda: time.time() + AHEAD_S, time.monotonic
        )
        started_s = time.monotonic()
        await clock.measure()
        within_s = time.monotonic() - started_s
    assert PROBE_KEY == b"clock"  # in topics that exist: another key would never be compacted away
    assert clock.skew_s is not None
    assert abs(clock.skew_s - AHEAD_S) <= within_s / 2 + 0.002
