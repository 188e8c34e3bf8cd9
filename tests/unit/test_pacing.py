"""Work in turns: what shares a pacer never keeps everything else from running for long."""

import asyncio

from headwater.pacing import Pacer


async def test_a_turn_is_given_at_once_while_there_is_time() -> None:
    pacer = Pacer(turn_s=60.0)
    other = asyncio.ensure_future(asyncio.sleep(0))
    for _ in range(1_000):
        await pacer.turn()
    assert not other.done()  # nothing else has run meanwhile


async def test_many_tasks_together_take_one_step_before_everything_else_runs() -> None:
    pacer, taken, passes = Pacer(turn_s=0.0), [], 0

    async def work(number: int) -> None:
        for _ in range(5):
            await pacer.turn()
            taken.append((passes, number))

    async def count() -> None:
        nonlocal passes
        while True:
            passes += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    await asyncio.gather(*(work(number) for number in range(3)))
    counting.cancel()
    assert len(taken) == 15
    assert len({at for at, _ in taken}) >= 14
    # After the first step, which nobody waited for, they take turns.
    assert all({number for _, number in taken[n : n + 3]} == {0, 1, 2} for n in range(1, 13, 3))


async def test_a_task_that_is_cancelled_while_it_waits_keeps_nobody_waiting() -> None:
    pacer = Pacer(turn_s=0.0)
    await pacer.turn()
    gone, next_one = (asyncio.ensure_future(pacer.turn()) for _ in range(2))
    gone.cancel()
    await asyncio.wait_for(next_one, 20)
    assert gone.cancelled()
