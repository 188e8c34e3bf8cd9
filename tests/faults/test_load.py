"""Input that is bad, badly placed or too much at once: what is good in it counts, the rest is put aside by its place."""

import asyncio
import json
import random
from collections.abc import Callable

import pytest

from tests.end_to_end import test_bad_input
from tests.end_to_end.conftest import System
from tests.end_to_end.oracle import applied, check_answers, publish
from tests.end_to_end.worker_process import WorkerProcess
from tests.faults.asking import asking, begin
from tests.faults.ledger import check_every_user
from tests.faults.scale import SCALE, TIMEOUT_S

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S)]

_BACKLOG_MORE_MEMORY_MIB = 400.0


async def test_one_bad_message_in_a_hundred_is_put_aside_once_while_the_worker_is_killed(
    new_system: Callable[..., System],
) -> None:
    system = new_system(max_poll_records=200)
    worker = system.worker
    chosen = random.Random(5)
    kinds = [
        *((lambda _, raw=raw: raw, reason) for raw, reason, _ in test_bad_input.UNREADABLE.values()),
        *((change, reason) for change, reason, _ in test_bad_input.CLICKS.values()),
    ]
    expected: dict[tuple[str, str, str], str] = {}
    async with system.stocked() as outside:
        clicks = outside.topics.clicks
        story = begin(outside, repeated=0.02)

        async def spoil(count: int) -> None:
            for _ in range(count):
                user = chosen.choice(story.users)
                change, reason = chosen.choice(kinds)
                value = change(outside.click_message(user, "coffee-1"))
                place = await outside.send(clicks, value, key=user.encode())
                expected[clicks, str(place.partition), str(place.offset)] = reason

        part = SCALE.clicks // 3
        for _ in range(2):
            publishing = asyncio.gather(publish(outside, story.tell(part)), spoil(part // 100))
            least = await asyncio.to_thread(worker.clicks_applied) + part // 2
            await asyncio.to_thread(worker.wait_until_applied, least)
            await asyncio.to_thread(worker.kill)
            await publishing
            await asyncio.to_thread(worker.start)
        await asyncio.gather(publish(outside, story.tell(part)), spoil(part // 100))
        await applied(outside)
        found: dict[tuple[str, str, str], str] = {}
        for record in await outside.records_of(outside.topics.dead_letters):
            headers = {name: value.decode() for name, value in record.headers}
            found[headers["topic"], headers["partition"], headers["offset"]] = headers["reason"]
        assert found == expected
        assert len(found) >= 3 * (part // 100)
        await check_answers(outside, story)
        await check_every_user(outside, story)


async def test_a_publisher_with_another_partitioner(
    new_system: Callable[..., System], new_worker: Callable[..., WorkerProcess]
) -> None:
    """Clicks and requests where CRC32 puts them, as librdkafka does; `after` names those places."""
    system = new_system()
    other = new_worker("interests")
    async with system.stocked() as outside:
        await asyncio.to_thread(other.start)
        story = begin(outside, repeated=0.02)
        places: dict[str, dict[str, int]] = {}
        for user, message in story.tell(SCALE.clicks // 10):
            value = json.dumps(message).encode()
            sent = await outside.send(
                outside.topics.clicks, value, key=user.encode(), partition=outside.wrong_home(user)
            )
            places[user] = {"partition": sent.partition, "offset": sent.offset}
        asked = {
            user: await outside.request(user, partition=outside.wrong_home(user), after=place, limit=1)
            for user, place in places.items()
        }
        for user, request_id in asked.items():
            answer = await outside.answer(request_id)
            assert (answer["status"], answer["reflects"]["events"]) == ("ok", len(story.events(user))), answer
        await check_every_user(outside, story)


async def test_a_worker_that_starts_with_a_backlog_answers_beside_it(
    new_system: Callable[..., System],
) -> None:
    system = new_system()
    worker = system.worker
    async with system.stocked() as outside:
        story = begin(outside, repeated=0.0)
        await publish(outside, story.tell(1_000))
        await applied(outside)
        before_mib = worker.memory_mib()
        assert await asyncio.to_thread(worker.stop) == 0
        for _ in range(10):
            await publish(outside, story.tell(SCALE.backlog // 10))
        async with asking(outside, story) as ids:
            await asyncio.to_thread(worker.start)
            await applied(outside)
        assert len(ids) > 10
        assert worker.memory_mib() < before_mib + _BACKLOG_MORE_MEMORY_MIB
        await check_answers(outside, story)
        await check_every_user(outside, story)
