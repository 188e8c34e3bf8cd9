"""Kafka itself is killed and frozen under load: workers wait for it, lose nothing, and go on by themselves."""

import asyncio
import signal
from collections.abc import Callable

import pytest

from tests.end_to_end.conftest import System
from tests.end_to_end.oracle import applied, check_answers, publish
from tests.faults.asking import asking, begin
from tests.faults.ledger import check_every_user
from tests.faults.scale import SCALE, TIMEOUT_S
from tests.support.kafka_server import KafkaNode

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S)]

# What waits for the broker is bounded by what is fetched at once; the rest of the clicks wait on the broker.
_MORE_MEMORY_MIB = 150.0


@pytest.fixture
def broker(node: KafkaNode) -> str:
    return node.servers


async def test_a_broker_killed_again_and_again(node: KafkaNode, new_system: Callable[..., System]) -> None:
    system = new_system()
    async with system.stocked() as outside:
        story = begin(outside, repeated=0.02)
        part = SCALE.clicks // (SCALE.broker_kills + 1)
        before_mib = system.worker.memory_mib()
        async with asking(outside, story):
            for _ in range(SCALE.broker_kills):
                publishing = asyncio.create_task(publish(outside, story.tell(part)))
                await asyncio.sleep(0.5)
                await asyncio.to_thread(node.kill)
                await asyncio.sleep(1.0)
                await asyncio.to_thread(node.start)
                await publishing
            await publish(outside, story.tell(part))
            await applied(outside)
        assert system.worker.memory_mib() < before_mib + _MORE_MEMORY_MIB
        await check_answers(outside, story)
        await check_every_user(outside, story)


async def test_a_broker_that_is_silent_for_longer_than_a_partition_may_stall(
    node: KafkaNode, new_system: Callable[..., System]
) -> None:
    system = new_system()
    async with system.stocked() as outside:
        story = begin(outside, repeated=0.0)
        await publish(outside, story.tell(SCALE.clicks // 2))
        publishing = asyncio.create_task(publish(outside, story.tell(SCALE.clicks // 2)))
        await asyncio.sleep(0.2)
        node.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(SCALE.silence_s)
        finally:
            node.signal(signal.SIGCONT)
        await publishing
        await applied(outside)
        await check_answers(outside, story)
        await check_every_user(outside, story)
