"""What wakes a waiting reader, and what makes aiokafka plan anew; tests/contract reads from real brokers."""

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import UnknownError

from headwater.kafka.fast_client import consumer as consumer_module
from tests.support.fetching import TPS, URGENT_NODES, Reading, batch


async def test_an_error_wakes_a_waiting_reader_and_records_for_the_callback_do_not() -> None:
    reading = Reading()
    reading.consumer._closed = False
    reading.consumer.on_records = lambda: 0
    waiting = asyncio.ensure_future(reading.consumer.wait_for_records(20.0))
    await asyncio.sleep(0)
    reading.fetched(TPS[0], batch(0, 1))
    await asyncio.sleep(0)
    assert not waiting.done()
    reading.fetcher._set_error(TPS[1], UnknownError())
    await waiting
    with pytest.raises(UnknownError):
        await reading.consumer.wait_for_records(20.0)
    reading.consumer._closed = True


@pytest.mark.parametrize(("dispatching", "is_woken"), [(0, False), (URGENT_NODES[0], True), (None, True)])
async def test_aiokafka_plans_anew_for_what_is_polled_unless_its_fetch_is_being_dispatched(
    dispatching: Any, is_woken: bool
) -> None:
    reading = Reading()
    reading.fetcher._client = SimpleNamespace(cluster=SimpleNamespace(leader_for_partition=lambda _: 0))
    waiting = reading.fetcher._wait_consume_future = asyncio.get_running_loop().create_future()
    reading.fetched(TPS[0], batch(0, 1))
    reading.consumer._dispatching = dispatching
    assert reading.polled() == {TPS[0]: [0]}
    assert waiting.done() is is_woken


async def test_a_consumer_stops_though_its_fetch_task_misses_a_cancellation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading = Reading()
    reading.consumer._closed = True

    async def fetch() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()  # as where it waits for the fetches of a former assignment
        await asyncio.Event().wait()

    async def stop(self: AIOKafkaConsumer) -> None:
        reading.fetcher._fetch_task.cancel()
        await asyncio.wait({reading.fetcher._fetch_task})

    reading.fetcher._fetch_task = asyncio.ensure_future(fetch())
    await asyncio.sleep(0)
    monkeypatch.setattr(consumer_module, "_STOP_AGAIN_S", 0.01)
    monkeypatch.setattr(AIOKafkaConsumer, "stop", stop)
    async with asyncio.timeout(60):
        await reading.consumer.stop()
    assert reading.fetcher._fetch_task.cancelled()
