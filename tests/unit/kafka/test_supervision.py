"""Background work and retried reads: what ends the worker, what ends quietly, what is tried again."""

import asyncio
import contextlib

import pytest
from aiokafka.errors import KafkaConnectionError

from headwater import tasks
from headwater.errors import PartitionLost, StopWorker
from headwater.kafka import supervision
from headwater.kafka.supervision import Background, once_broker_answers


async def reasons_of(error: Exception) -> list[str]:
    reasons: list[str] = []
    background = Background("the store", reasons.append)

    async def work() -> None:
        raise error

    background.start(work())
    await asyncio.sleep(0.01)
    await background.stop()
    return reasons


async def test_a_bug_in_the_background_ends_the_worker_and_says_where() -> None:
    assert await reasons_of(ValueError("no")) == ["unexpected ValueError in the store: no"]


async def test_a_reason_to_stop_ends_the_worker_with_its_own_sentence() -> None:
    assert await reasons_of(StopWorker("the disk is full")) == ["the disk is full"]


async def test_a_lost_partition_ends_its_work_quietly() -> None:
    assert await reasons_of(PartitionLost()) == []


async def test_stopping_cancels_and_waits() -> None:
    ended: list[str] = []
    background = Background("the store", pytest.fail)

    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("cleaned up")

    background.start(work())
    await asyncio.sleep(0)
    await background.stop()
    assert ended == ["cleaned up"]


async def test_a_task_that_misses_its_cancellation_is_cancelled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "_AGAIN_S", 0.01)
    background = Background("the store", pytest.fail)

    async def work() -> None:
        with contextlib.suppress(asyncio.CancelledError):  # as aiokafka does here and there
            await asyncio.sleep(3600)
        await asyncio.sleep(3600)

    background.start(work())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await background.stop()


async def test_a_read_is_repeated_until_the_broker_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "_RETRY_S", 0.0)
    attempts: list[int] = []

    async def read() -> int:
        attempts.append(1)
        if len(attempts) < 3:
            raise KafkaConnectionError("away")
        return 7

    assert await once_broker_answers("profiles", read) == 7
    assert len(attempts) == 3


async def test_a_broker_that_stays_away_stops_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "_RETRY_S", 0.0)
    monkeypatch.setattr(supervision, "READ_TIMEOUT_S", -1.0)

    async def read() -> None:
        raise KafkaConnectionError("away")

    with pytest.raises(StopWorker, match=r"profiles: cannot be read for .* look at the broker"):
        await once_broker_answers("profiles", read)


async def test_an_error_that_is_not_the_brokers_is_not_repeated() -> None:
    async def read() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await once_broker_answers("profiles", read)
