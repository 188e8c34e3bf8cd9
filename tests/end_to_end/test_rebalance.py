"""Workers come and go; users and answers stay.

On Apache Kafka alone: the embedded broker (0.2.3) refuses the commits of a member as soon as another one asks to join,
and then waits for ever for the membership that the client has thrown away. It is made for one worker.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.end_to_end.conftest import System
from tests.end_to_end.oracle import all_the_time, applied, check_answers, check_logs, check_states, publish
from tests.end_to_end.outside import Answer, Outside
from tests.end_to_end.story import Story
from tests.end_to_end.worker_process import WorkerProcess


@pytest.fixture
def broker(kafka: str) -> str:
    return kafka


def shared_out(*workers: WorkerProcess) -> bool:
    """Whether the workers have four partitions between them, none twice, and all of them some."""
    owned = [set(worker.watermarks()) for worker in workers]
    complete = all(worker.health()["ready"] and not worker.health()["opening"] for worker in workers)
    return complete and all(owned) and sorted(n for numbers in owned for n in numbers) == [0, 1, 2, 3]


@asynccontextmanager
async def asking_all_the_time(outside: Outside, story: Story) -> AsyncIterator[list[Answer]]:
    """Ask for random users while the block runs; at its end every answer has come."""
    answers: list[Answer] = []
    chosen = random.Random(2)

    async def ask() -> None:
        answers.append(await outside.ask(chosen.choice(story.users), limit=3))

    async with all_the_time(ask, pause_s=0.02):
        yield answers


@pytest.mark.parametrize("on_disk", [False, True], ids=["in memory", "on disk"])
async def test_partitions_are_shared_handed_over_and_taken_back_with_all_they_know(
    new_system: Callable[..., System], new_worker: Callable[..., WorkerProcess], on_disk: bool
) -> None:
    system = new_system(state_on_disk=on_disk)
    first, second = system.worker, new_worker("interests", state_on_disk=on_disk)
    await asyncio.to_thread(first.start)
    async with system.outside() as outside:
        await outside.stock()
        story = Story([outside.own(f"u{number}") for number in range(100)], outside.next_ms())
        await publish(outside, story.tell(3_000))
        async with asking_all_the_time(outside, story) as answers:
            await asyncio.to_thread(second.start)
            await asyncio.to_thread(
                first.wait_until, "both have partitions", lambda: shared_out(first, second)
            )
            await publish(outside, story.tell(2_000))
            await applied(outside)
            await check_logs([first, second], story)
            assert await asyncio.to_thread(first.stop) == 0
            await asyncio.to_thread(second.wait_until, "one has all", lambda: shared_out(second))
            await publish(outside, story.tell(1_000))
            await applied(outside)
        assert len(answers) > 50
        assert {answer["status"] for answer in answers} <= {"ok", "degraded"}
        assert {answer["rung"] for answer in answers} <= {None, "restoring"}
        await check_answers(outside, story)
        await check_logs([second], story)
        await check_states(outside, story)


async def test_the_partitions_of_a_killed_worker_go_to_another_and_its_parked_requests_too(
    new_system: Callable[..., System], new_worker: Callable[..., WorkerProcess]
) -> None:
    system = new_system()
    second, first = system.worker, new_worker()
    await asyncio.gather(asyncio.to_thread(first.start), asyncio.to_thread(second.start))
    await asyncio.to_thread(second.wait_until, "both share", lambda: shared_out(first, second))
    async with system.outside() as outside:
        await outside.stock()
        story = Story([outside.own(f"u{number}") for number in range(100)], outside.next_ms())
        await publish(outside, story.tell(3_000))
        await applied(outside)
        lost = min(first.watermarks())
        user = outside.user_at(lost, "waiting")
        last = await outside.click(user, "coffee-1")
        parked = await outside.request(user, after={**last, "offset": last["offset"] + 1}, deadline_ms=60_000)
        await asyncio.to_thread(first.kill)
        await outside.click(user, "coffee-2")
        await publish(outside, story.tell(1_000))
        answer = await outside.answer(parked)
        assert answer["status"] in ("ok", "degraded"), answer
        assert answer["reflects"]["events"] == 2
        await asyncio.to_thread(second.wait_until, "one has all", lambda: shared_out(second))
        await applied(outside)
        await check_answers(outside, story)
        await check_logs([second], story)
