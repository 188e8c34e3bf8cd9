"""Nothing hangs in silence: seen with a clock in the test's hands."""

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka.errors import KafkaConnectionError

from headwater.metrics import Metrics
from headwater.worker import watchdog
from headwater.worker.watchdog import (
    EXIT_STALLED,
    STALL_S,
    TO_COMMIT,
    Progress,
    Watchdog,
    ask_every_broker,
    time_the_loop,
)
from tests.support.interests_worker import until


class Clock:
    """Time that passes only when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1_000.0
        monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        monkeypatch.setattr(watchdog, "_BEAT_S", 0.001)
        # To the watching thread a leap of this clock may look like a blocked loop, before the loop beats again.
        monkeypatch.setattr(watchdog, "os", SimpleNamespace(_exit=lambda code: None))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Watched:
    """A watchdog over one partition, with what it was told and what it said."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.looks, self.failures = clock, 0, list[str]()
        self.progress = [Progress("clicks", 2, 10, 5)]
        self.broker_is_away = False
        self.dog = Watchdog(self._look, self.failures.append, self._ask_brokers)

    async def _ask_brokers(self) -> None:
        if self.broker_is_away:
            raise KafkaConnectionError

    def _look(self) -> list[Progress]:
        self.looks += 1
        return self.progress

    async def after(self, seconds: float, done: int | None = None, lag: int = 5) -> None:
        """Let time pass, and the watchdog look at what is there then."""
        if done is not None:
            self.progress = [Progress("clicks", 2, done, lag)]
        self.clock.now_s += seconds
        seen = self.looks
        await until(lambda: self.looks > seen + 1)


async def watched(clock: Clock, test: Callable[[Watched], object]) -> None:
    one = Watched(clock)
    one.dog.start()
    try:
        await test(one)  # type: ignore[misc]
    finally:
        await one.dog.stop()


async def test_a_partition_with_lag_that_does_not_move_is_reported_with_place_and_remedy(
    clock: Clock,
) -> None:
    async def test(one: Watched) -> None:
        await one.after(0)
        await one.after(STALL_S - 1)
        assert one.dog.stalled() is None
        assert one.failures == []
        await one.after(2)
        assert "clicks-2: no progress past offset 10 for 31 s" in one.failures[0]
        assert "started again" in one.failures[0]

    await watched(clock, test)


async def test_a_commit_that_never_ends_is_reported_though_the_partition_is_read_on(clock: Clock) -> None:
    async def test(one: Watched) -> None:
        for done in range(10, 14):
            one.progress = [Progress("clicks", 2, done, 5), Progress("clicks", 2, 7, 3, TO_COMMIT)]
            await one.after(STALL_S / 3)
        await one.after(2)
        assert "clicks-2: no progress past offset 7 for" in one.failures[0]
        assert "although there are finished records to commit" in one.failures[0]

    await watched(clock, test)


async def test_progress_starts_the_count_again(clock: Clock) -> None:
    async def test(one: Watched) -> None:
        await one.after(0)
        for done in range(11, 16):
            await one.after(STALL_S - 1, done)
        assert one.failures == []

    await watched(clock, test)


async def test_a_partition_with_nothing_to_do_may_stand_still(clock: Clock) -> None:
    async def test(one: Watched) -> None:
        await one.after(0, 10, lag=0)
        await one.after(10 * STALL_S, 10, lag=0)
        assert one.failures == []
        assert one.dog.still_s("clicks", 2) == 0
        await one.after(STALL_S - 1, 10, lag=1)  # the first look that sees a lag: counted from the one before
        assert one.dog.still_s("clicks", 2) == STALL_S - 1
        assert one.failures == []

    await watched(clock, test)


async def test_a_partition_that_waits_for_something_else_is_given_its_time(clock: Clock) -> None:
    async def test(one: Watched) -> None:
        one.progress = [Progress("catalog", 2, 10, 5, waits=True)]
        await one.after(0)
        await one.after(10 * STALL_S)
        assert one.failures == []
        one.progress = [Progress("catalog", 2, 10, 5)]
        await one.after(STALL_S - 1)
        assert one.failures == []
        await one.after(2)
        assert "catalog-2: no progress" in one.failures[0]

    await watched(clock, test)


async def test_while_the_broker_is_silent_nothing_can_move_and_the_count_starts_again(clock: Clock) -> None:
    async def test(one: Watched) -> None:
        one.broker_is_away = True
        await one.after(0)
        for _ in range(5):
            await one.after(STALL_S + 1)
        assert one.failures == []
        one.broker_is_away = False
        await one.after(STALL_S - 1)
        assert one.failures == []
        assert one.dog.still_s("clicks", 2) > 5 * STALL_S
        await one.after(2)
        assert len(one.failures) > 0

    await watched(clock, test)


async def test_a_broker_that_is_silent_for_more_than_ten_minutes_is_no_excuse(clock: Clock) -> None:
    async def test(one: Watched) -> None:
        one.broker_is_away = True
        await one.after(0)
        for _ in range(19):
            await one.after(STALL_S + 1)
        assert one.failures == []
        for _ in range(3):
            await one.after(STALL_S + 1)
        assert "started again" in one.failures[0]

    await watched(clock, test)


async def test_a_partition_that_is_taken_away_is_not_missed(clock: Clock) -> None:
    async def test(one: Watched) -> None:
        await one.after(0)
        one.progress = []
        await one.after(10 * STALL_S)
        assert one.failures == []
        assert one.dog.still_s("clicks", 2) == 0

    await watched(clock, test)


async def test_a_blocked_loop_ends_the_process_from_a_thread(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    dog = Watchdog(list, lambda reason: None, lambda: asyncio.sleep(0))

    def leave(code: int) -> None:
        codes.append(code)
        dog._stopped.set()

    monkeypatch.setattr(watchdog, "os", SimpleNamespace(_exit=leave))
    clock.now_s += STALL_S + 1  # and nobody beats: the loop never comes round
    await asyncio.to_thread(dog._watch_loop)
    assert codes == [EXIT_STALLED]


async def test_after_stop_nothing_is_looked_at(clock: Clock) -> None:
    one = Watched(clock)
    one.dog.start()
    await one.after(0)
    await one.dog.stop()
    seen = one.looks
    await asyncio.sleep(0.01)
    assert one.looks == seen
    assert one.dog._stopped.is_set()


class Brokers:
    """A client as `ask_every_broker` uses it: broker 3 has left the cluster, which this client has not heard."""

    def __init__(self, silent: int | None = None) -> None:
        self.asked, self._silent = set[int](), silent
        self.cluster = SimpleNamespace(brokers=lambda: [SimpleNamespace(nodeId=node) for node in (1, 2, 3)])

    async def fetch_all_metadata(self) -> object:
        return SimpleNamespace(brokers=lambda: [SimpleNamespace(nodeId=node) for node in (1, 2)])

    async def send(self, node: int, request: object) -> None:
        self.asked.add(node)
        if node == self._silent:
            await asyncio.Event().wait()


async def test_every_broker_of_the_cluster_is_asked_and_has_to_answer() -> None:
    brokers = Brokers()
    await ask_every_broker(cast(Any, brokers))
    assert brokers.asked == {1, 2}
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await ask_every_broker(cast(Any, Brokers(silent=2)))


async def test_a_loop_that_stood_is_seen_in_the_metric() -> None:
    metrics = Metrics()
    timing = asyncio.ensure_future(time_the_loop(metrics.loop_delay_seconds))
    await asyncio.sleep(0.05)
    time.sleep(0.15)  # noqa: ASYNC251 - this is what is measured
    await asyncio.sleep(0.05)
    timing.cancel()
    (family,) = metrics.loop_delay_seconds.collect()
    total = {sample.name.rpartition("_")[2]: sample.value for sample in family.samples}
    assert total["sum"] >= 0.1
