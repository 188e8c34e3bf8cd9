"""What the client promises, with a real worker: clicks of other programs are in the answers that are asked for after them."""

import asyncio
import time
import uuid
import zlib

from aiokafka import AIOKafkaProducer

from headwater.client import Client
from headwater.messages import Click, Position, Response, encode
from tests.end_to_end.conftest import System

CLICKS = 200
LONG_MS = 30_000


def reflects(answer: Response, event_id: str, place: Position) -> bool:
    assert answer.status == "ok", answer
    assert answer.reflects is not None
    return answer.reflects.last_event_id == event_id and answer.reflects.offset >= place.offset


async def test_a_click_that_one_client_published_is_in_the_answer_that_another_asks_for_at_once(
    shared_system: System,
) -> None:
    run, stale = uuid.uuid4().hex, []
    async with Client(shared_system.settings) as clicks, Client(shared_system.settings) as asks:
        for number in range(CLICKS):
            user, event_id = f"ann-{run}-{number % 7}", f"{run}-{number}"
            place = await clicks.click(user, f"coffee-{number % 10}", event_id=event_id)
            answer = await asks.recall(user, limit=3, deadline_ms=LONG_MS)
            if not reflects(answer, event_id, place):
                stale.append(number)
    assert stale == []


async def test_the_same_holds_for_many_at_once(shared_system: System) -> None:
    run = uuid.uuid4().hex

    async def one(clicks: Client, asks: Client, number: int) -> bool:
        user, event_id = f"ben-{run}-{number}", f"{run}-{number}"
        place = await clicks.click(user, f"tea-{number % 10}", event_id=event_id)
        return reflects(await asks.recall(user, limit=3, deadline_ms=LONG_MS), event_id, place)

    async with Client(shared_system.settings) as clicks, Client(shared_system.settings) as asks:
        fresh = await asyncio.gather(*(one(clicks, asks, number) for number in range(CLICKS)))
    assert fresh == [True] * CLICKS


async def test_a_token_of_another_program_is_enough_where_a_foreign_partitioner_put_the_click(
    shared_system: System,
) -> None:
    settings, run = shared_system.settings, uuid.uuid4().hex
    topic = f"{settings.topic_prefix}clicks.v1"
    async with AIOKafkaProducer(**settings.kafka_options(), acks="all") as foreign, Client(settings) as asks:
        for number in range(10):
            user, event_id = f"cat-{run}-{number}", f"{run}-{number}"
            click = Click(event_id, user, time.time_ns() // 1_000_000, f"dog-{number % 10}")
            crc = zlib.crc32(user.encode()) % settings.partitions
            stored = await foreign.send_and_wait(topic, encode(click), key=user.encode(), partition=crc)
            token = f"{stored.partition}-{stored.offset}"
            answer = await asks.recall(user, limit=3, after=token, deadline_ms=LONG_MS)
            assert answer.reflects is not None
            assert answer.reflects.last_event_id == event_id


async def test_the_end_of_a_transaction_is_no_click_to_wait_for(shared_system: System) -> None:
    settings, run = shared_system.settings, uuid.uuid4().hex
    topic = f"{settings.topic_prefix}clicks.v1"
    options = {**settings.kafka_options(), "acks": "all", "transactional_id": f"shop-{run}"}
    async with AIOKafkaProducer(**options) as shop, Client(settings) as asks:
        for number in range(5):
            user, event_id = f"dan-{run}-{number}", f"{run}-{number}"
            click = Click(event_id, user, time.time_ns() // 1_000_000, f"dog-{number}")
            async with shop.transaction():
                stored = await shop.send_and_wait(topic, encode(click), key=user.encode())
            # The broker acknowledges a commit before it has written the transaction's end.
            answer = await asks.recall(user, limit=3, deadline_ms=LONG_MS)
            assert reflects(answer, event_id, Position(stored.partition, stored.offset))
