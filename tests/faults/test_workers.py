"""Workers are killed, stopped, frozen and shuffled under load: every click counts once, every request is answered."""

import asyncio
import random
import shutil
import signal
from collections.abc import Callable

import pytest

from tests.end_to_end.conftest import System
from tests.end_to_end.oracle import applied, check_answers, publish
from tests.end_to_end.outside import Outside
from tests.end_to_end.worker_process import SESSION_TIMEOUT_S, WorkerProcess
from tests.faults.asking import asking, begin
from tests.faults.ledger import check_every_user
from tests.faults.scale import SCALE, TIMEOUT_S

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S)]

# Small, so that a fault meets batches in every stage.
_BATCH = 50


@pytest.mark.parametrize("local_state", ["kept", "wiped"])
async def test_killed_again_and_again(new_system: Callable[..., System], local_state: str) -> None:
    system = new_system(max_poll_records=_BATCH)
    worker = system.worker
    chosen = random.Random(4)
    async with system.stocked() as outside:
        story = begin(outside, repeated=0.02)
        part = SCALE.clicks // (SCALE.kills + 1)
        async with asking(outside, story) as ids:
            for _ in range(SCALE.kills):
                publishing = asyncio.create_task(publish(outside, story.tell(part)))
                least = await asyncio.to_thread(worker.clicks_applied) + int(part * chosen.uniform(0.05, 0.9))
                await asyncio.to_thread(worker.wait_until_applied, least)
                await asyncio.to_thread(worker.kill)
                if local_state == "wiped":
                    shutil.rmtree(worker.home / "data", ignore_errors=True)
                await publishing
                await asyncio.to_thread(worker.start)
            await publish(outside, story.tell(part))
            await applied(outside)
        assert len(ids) > SCALE.kills
        await check_answers(outside, story)
        await check_every_user(outside, story)


async def test_asked_to_stop_again_and_again(new_system: Callable[..., System]) -> None:
    system = new_system(max_poll_records=_BATCH)
    worker = system.worker
    async with system.stocked() as outside:
        story = begin(outside, repeated=0.0)  # so that only a replay is a duplicate
        part = SCALE.clicks // (SCALE.stops + 1) // 2
        async with asking(outside, story):
            for _ in range(SCALE.stops):
                publishing = asyncio.create_task(publish(outside, story.tell(part)))
                least = await asyncio.to_thread(worker.clicks_applied) + part // 2
                await asyncio.to_thread(worker.wait_until_applied, least)
                replayed = await asyncio.to_thread(worker.metric, "headwater_duplicates_total")
                assert await asyncio.to_thread(worker.stop) == 0
                assert replayed == 0
                await publishing
                await asyncio.to_thread(worker.start)
            await applied(outside)
        assert await asyncio.to_thread(worker.metric, "headwater_duplicates_total") == 0
        await check_every_user(outside, story)


async def test_workers_that_come_and_go_all_the_time(
    new_system: Callable[..., System],
    new_worker: Callable[..., WorkerProcess],
    record_property: Callable[[str, object], None],
) -> None:
    system = new_system(max_poll_records=_BATCH)
    worker = system.worker
    others = [new_worker("interests", max_poll_records=_BATCH) for _ in range(2)]
    running: list[WorkerProcess] = []
    async with system.stocked() as outside:
        story = begin(outside, repeated=0.02)
        part = SCALE.clicks // (SCALE.rebalances + 1) // 2
        async with asking(outside, story):
            for number in range(SCALE.rebalances):
                publishing = asyncio.create_task(publish(outside, story.tell(part)))
                if len(running) < len(others) and (not running or number % 2 == 0):
                    joining = next(worker for worker in others if worker not in running)
                    await asyncio.to_thread(joining.launch)
                    running.append(joining)
                else:
                    leaving = running.pop(0)
                    await asyncio.to_thread(leaving.wait_ready)
                    if number % 3 == 0:
                        await asyncio.to_thread(leaving.kill)
                    else:
                        assert await asyncio.to_thread(leaving.stop) == 0
                await publishing
                await asyncio.sleep(5.0)
            await applied(outside)
        await check_answers(outside, story)
        await check_every_user(outside, story)
    pauses = await asyncio.to_thread(worker.metric, "headwater_rebalance_pause_seconds_count")
    paused_s = await asyncio.to_thread(worker.metric, "headwater_rebalance_pause_seconds_sum")
    assert pauses >= SCALE.rebalances // 2  # those that follow each other closely are one
    record_property("mean pause of the worker that stayed, per rebalance, s", round(paused_s / pauses, 3))


async def test_frozen_until_others_have_its_partitions(
    new_system: Callable[..., System], new_worker: Callable[..., WorkerProcess]
) -> None:
    """What the frozen one had in its producer's buffer must not survive what its successor writes."""
    system = new_system(max_poll_records=_BATCH)
    zombie, heir = system.worker, new_worker("interests", max_poll_records=_BATCH)
    await asyncio.to_thread(zombie.start)
    # The frozen one is not looked after: where it finds that others have written, it has to leave.
    async with Outside(system.settings, heir.check_alive) as outside:
        await outside.stock()
        story = begin(outside, repeated=0.02)
        await asyncio.to_thread(heir.start)
        part = SCALE.clicks // 4
        publishing = asyncio.create_task(publish(outside, story.tell(part)))
        await asyncio.sleep(0.5)
        zombie.signal(signal.SIGSTOP)
        await asyncio.sleep(SESSION_TIMEOUT_S + 2.0)
        await publishing
        await publish(outside, story.tell(part))
        await asyncio.to_thread(
            heir.wait_until, "the heir has all", lambda: len(heir.watermarks()) == 4, SESSION_TIMEOUT_S + 30
        )
        zombie.signal(signal.SIGCONT)
        await publish(outside, story.tell(part))
        await applied(outside)
        # A foreign write at the quiet end of a changelog is looked for every five seconds.
        await asyncio.sleep(8.0)
        await check_answers(outside, story)
        await check_every_user(outside, story)
