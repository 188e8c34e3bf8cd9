"""A group that does not move is told, by /healthz and by `headwater doctor`; a rebalance is not.

On Apache Kafka: the embedded broker takes one worker, and refuses the next one.
"""

import asyncio
import json
import signal
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.coordinator.assignors.range import RangePartitionAssignor

from headwater.client import Client
from headwater.kafka.topics import Topics
from headwater.settings import Settings
from tests.end_to_end.conftest import System
from tests.end_to_end.worker_process import WorkerProcess, finished


@pytest.fixture
def broker(kafka: str) -> str:
    return kafka


def health(worker: WorkerProcess) -> tuple[int, dict[str, Any]]:
    """Status and body of /healthz."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{worker._port}/healthz", timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def foreign_consumer(settings: Settings) -> AIOKafkaConsumer:
    """Somebody's consumer with our group id. It commits by itself and does nothing else."""
    names = Topics.named(settings.topic_prefix)
    return AIOKafkaConsumer(
        names.clicks,
        names.requests,
        **settings.kafka_options(),
        group_id=settings.interests_group,
        client_id="somebodys-dashboard",
        partition_assignment_strategy=[RangePartitionAssignor],
    )


async def doctor(settings: Settings, home: Path) -> tuple[int, str]:
    """Exit code and output of `headwater doctor`."""
    servers, prefix = settings.kafka_bootstrap_servers, settings.topic_prefix
    done = await asyncio.to_thread(
        finished, home, "doctor", kafka_bootstrap_servers=servers, topic_prefix=prefix
    )
    return done.returncode, done.stdout


async def test_a_foreign_consumer_in_our_group_is_told_until_it_leaves(
    new_system: Callable[..., System], tmp_path: Path
) -> None:
    system = new_system()
    worker, settings = system.worker, system.settings
    await asyncio.to_thread(worker.start)
    assert health(worker)[0] == 200
    async with foreign_consumer(settings):
        await asyncio.to_thread(worker.wait_until, "it is told", lambda: health(worker)[0] == 503)
        _, body = health(worker)
        assert body["ok"] is False
        assert "'somebodys-dashboard'" in body["reason"]
        assert f"{settings.topic_prefix}requests.v1 " in body["reason"]
        code, printed = await doctor(settings, tmp_path)
        assert code != 0
        told = f"WRONG  group {settings.interests_group}: the consumer 'somebodys-dashboard' at 127.0.0.1 is no Headwater"
        assert told in printed
        assert f"ok     group {settings.catalog_group}: 1 worker" in printed
    await asyncio.to_thread(worker.wait_until, "it is well again", lambda: health(worker)[0] == 200)


async def test_a_worker_that_stands_still_is_told_by_the_doctor(
    new_system: Callable[..., System], tmp_path: Path
) -> None:
    system = new_system(session_timeout_s=120)
    worker, settings = system.worker, system.settings
    await asyncio.to_thread(worker.start)
    worker.signal(signal.SIGSTOP)
    try:
        async with Client(settings) as client:
            position = await client.click("ann", "c1")
        code, printed = await doctor(settings, tmp_path)
    finally:
        worker.signal(signal.SIGCONT)
    assert code != 0
    place = f"{settings.topic_prefix}clicks.v1 {position.partition} (at offset 0)"
    assert f"WRONG  group {settings.interests_group}: 1 worker, but nothing moves on {place}" in printed
    await asyncio.to_thread(worker.wait_until_applied, 1)
    code, printed = await doctor(settings, tmp_path)
    assert f"ok     group {settings.interests_group}: 1 worker, 0 behind" in printed


async def test_workers_that_come_and_go_are_well_all_the_time(
    new_system: Callable[..., System], new_worker: Callable[..., WorkerProcess]
) -> None:
    system = new_system()
    first, second = system.worker, new_worker("interests")
    await asyncio.to_thread(first.start)
    seen: set[int] = set()

    async def look() -> None:
        while True:
            seen.add((await asyncio.to_thread(health, first))[0])
            await asyncio.sleep(0.1)

    looking = asyncio.ensure_future(look())
    try:
        await asyncio.to_thread(second.start)
        await asyncio.sleep(6)  # the groups are looked at every five seconds
        assert await asyncio.to_thread(second.stop) == 0
        await asyncio.sleep(6)
    finally:
        looking.cancel()
    assert seen == {200}
