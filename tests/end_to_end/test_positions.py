"""Progress is counted by positions: transactions are read committed, and what was deleted unread is told, not claimed."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from headwater.settings import Settings
from tests.end_to_end.conftest import System
from tests.end_to_end.outside import Outside
from tests.end_to_end.worker_process import WorkerProcess, finished


@pytest.fixture
def broker(kafka: str) -> str:
    return kafka


@asynccontextmanager
async def publisher(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    """Somebody's transactional publisher."""
    producer = AIOKafkaProducer(
        **settings.kafka_options(), transactional_id=f"{settings.topic_prefix}shop", acks="all"
    )
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def send(producer: AIOKafkaProducer, outside: Outside, user: str, item: str) -> dict[str, int]:
    """A click within a transaction; its place."""
    message = json.dumps(outside.click_message(user, item)).encode()
    place = await producer.send_and_wait(outside.topics.clicks, message, key=user.encode())
    return {"partition": place.partition, "offset": place.offset}


async def delete_before(settings: Settings, topic: str, partition: int, offset: int) -> None:
    """As retention does it."""
    admin = AIOKafkaAdminClient(**settings.kafka_options())
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(topic, partition): RecordsToDelete(offset)})
    finally:
        await admin.close()


def lag(worker: WorkerProcess) -> float:
    """Infinite until the worker has looked how far it is."""
    found = [value for name, value in worker.metrics().items() if name.startswith("headwater_lag{")]
    return sum(found) if found else math.inf


async def test_committed_clicks_count_aborted_ones_do_not_and_markers_are_no_lag(
    new_system: Callable[..., System],
) -> None:
    system = new_system()
    worker = system.worker
    async with system.stocked() as outside, publisher(system.settings) as producer:
        user = outside.own("ann")
        async with producer.transaction():
            first = await send(producer, outside, user, "coffee-1")
        await producer.begin_transaction()
        aborted = await send(producer, outside, user, "tea-1")
        await producer.abort_transaction()
        marker = {"partition": first["partition"], "offset": aborted["offset"] + 1}
        for after in (first, aborted, marker):
            answer = await outside.ask(user, after=after, limit=3)
            assert answer["status"] == "ok", answer
            assert answer["reflects"]["events"] == 1
        assert answer["reflects"]["offset"] == marker["offset"]
        await asyncio.to_thread(worker.wait_until, "nothing is left to read", lambda: lag(worker) == 0)

        async def committed() -> bool:
            found = await outside.committed(system.settings.interests_group, outside.topics.clicks)
            return found.get(marker["partition"]) == marker["offset"] + 1

        await outside.until("the marker is committed", committed)


async def test_an_open_transaction_is_no_stall_and_what_it_wrote_counts_once_it_is_committed(
    new_system: Callable[..., System], tmp_path: Path
) -> None:
    system = new_system()
    worker = system.worker
    async with system.stocked() as outside, publisher(system.settings) as producer:
        user = outside.own("ben")
        await outside.click(user, "coffee-1")
        await producer.begin_transaction()
        place = await send(producer, outside, user, "tea-1")
        tp = f"{outside.topics.clicks}-{place['partition']}"
        await asyncio.to_thread(worker.wait_until, "it is told", lambda: tp in worker.health()["held_back_s"])
        assert worker.health()["ok"] is True
        assert lag(worker) == 0
        code, printed = await doctor(system.settings, tmp_path)
        assert code != 0
        assert f"an open transaction holds back {outside.topics.clicks} {place['partition']} " in printed
        expired = await outside.ask(user, after=place, deadline_ms=200)
        assert expired["status"] == "expired"
        await producer.commit_transaction()
        answer = await outside.ask(user, after=place)
        assert (answer["status"], answer["reflects"]["events"]) == ("ok", 2)
        await asyncio.to_thread(worker.wait_until, "it is over", lambda: not worker.health()["held_back_s"])


@pytest.mark.parametrize("kept", [0, 2], ids=["all are gone", "two are left"])
async def test_clicks_deleted_before_they_were_read_are_told_and_claimed_by_no_answer(
    new_system: Callable[..., System], tmp_path: Path, kept: int
) -> None:
    system = new_system()
    worker = system.worker
    async with system.stocked() as outside:
        user = outside.own("cat")
        read = await outside.click(user, "coffee-1")
        assert (await outside.ask(user, after=read))["status"] == "ok"
        assert await asyncio.to_thread(worker.stop) == 0
        places = [await outside.click(user, item) for item in ("tea-1", "tea-2", "coffee-2", "coffee-3")]
        number, end = read["partition"], places[-1]["offset"] + 1
        gap = {"first": read["offset"] + 1, "last": end - kept - 1}
        await delete_before(system.settings, outside.topics.clicks, number, end - kept)
        await asyncio.to_thread(worker.start)
        for place in places:
            answer = await outside.ask(user, after=place)
            lost = place["offset"] <= gap["last"]
            assert (answer["status"], answer["rung"]) == (("degraded", "gap") if lost else ("ok", None))
            assert answer["reflects"]["gap"] == gap
        assert answer["reflects"]["events"] == 1 + kept
        assert worker.metric("headwater_clicks_lost_total") == 4 - kept
        assert "records_lost" in worker.log.read_text()
        tp = f"{outside.topics.clicks}-{number}"
        assert worker.health()["lost"] == {tp: [gap["first"], gap["last"]]}
        assert worker.health()["ok"] is True
        await asyncio.to_thread(worker.wait_until, "nothing is left to read", lambda: lag(worker) == 0)

        async def committed() -> bool:
            found = await outside.committed(system.settings.interests_group, outside.topics.clicks)
            return found.get(number) == end

        await outside.until("what was lost is passed", committed)
        assert await asyncio.to_thread(worker.stop) == 0
        await asyncio.to_thread(worker.start)
        answer = await outside.ask(user, after=places[0])
        assert (answer["rung"], answer["reflects"]["gap"]) == ("gap", gap)
        assert worker.metric("headwater_clicks_lost_total") == 0  # it is told once


async def test_requests_deleted_before_they_were_read_are_passed_and_told(
    new_system: Callable[..., System],
) -> None:
    system = new_system()
    worker = system.worker
    async with system.stocked() as outside:
        user = outside.own("dan")
        await outside.ask(user)
        assert await asyncio.to_thread(worker.stop) == 0
        for _ in range(3):
            await outside.request(user)
        topic, number = outside.topics.requests, outside.home(user)
        done = (await outside.committed(system.settings.interests_group, topic))[number]
        await delete_before(system.settings, topic, number, done + 3)
        await asyncio.to_thread(worker.start)
        assert (await outside.ask(user))["status"] == "ok"
        assert worker.metric("headwater_requests_lost_total") == 3
        assert worker.health()["lost"] == {f"{topic}-{number}": [done, done + 2]}


async def doctor(settings: Settings, home: Path) -> tuple[int, str]:
    """Exit code and output of `headwater doctor`."""
    servers, prefix = settings.kafka_bootstrap_servers, settings.topic_prefix
    done = await asyncio.to_thread(
        finished, home, "doctor", kafka_bootstrap_servers=servers, topic_prefix=prefix
    )
    return done.returncode, done.stdout
