"""No silent hang: a worker that cannot go on says so within half a minute, ends, and its successor has lost nothing."""

import asyncio
import signal
from collections.abc import Callable

import pytest

from headwater.worker.watchdog import EXIT_STALLED, STALL_S
from tests.end_to_end.conftest import System
from tests.end_to_end.oracle import applied, check_answers, publish
from tests.end_to_end.outside import PATIENCE_S
from tests.faults.asking import begin
from tests.faults.ledger import check_every_user
from tests.faults.scale import IS_FULL, TIMEOUT_S

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.slow,
    pytest.mark.timeout(TIMEOUT_S),
    pytest.mark.skipif(not IS_FULL, reason="a stall is one after half a minute: with `make faults`"),
]


@pytest.mark.parametrize(
    ("cause", "code", "said"),
    [
        (signal.SIGUSR1, EXIT_STALLED, "loop_blocked"),
        (signal.SIGUSR2, 1, "although there are records to read"),
    ],
    ids=["a blocked loop", "a dead consumer"],
)
async def test_a_worker_that_cannot_go_on_ends_with_the_reason(
    new_system: Callable[..., System], cause: signal.Signals, code: int, said: str
) -> None:
    system = new_system()
    worker = system.worker
    worker.module = "tests.faults.hanging_worker"
    async with system.stocked() as outside:
        story = begin(outside, repeated=0.0)
        await publish(outside, story.tell(200))
        await applied(outside)
        worker.signal(cause)
        await publish(outside, story.tell(200))
        assert await asyncio.to_thread(worker.exit_code, STALL_S + PATIENCE_S) == code
        assert said in worker.log.read_text()
        await asyncio.to_thread(worker.start)
        await applied(outside)
        await check_answers(outside, story)
        await check_every_user(outside, story)
