"""The broker takes writes late, or for a while not at all, or no commits, and workers die of it: what they committed is
written."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from http import HTTPStatus

import pytest
import pytest_asyncio

from headwater.worker.watchdog import STALL_S
from tests.conftest import skipping_where_no_kafka_can_run
from tests.end_to_end.conftest import System
from tests.end_to_end.oracle import all_the_time, applied, check_answers, publish
from tests.end_to_end.outside import PATIENCE_S, Outside
from tests.faults.asking import asking, begin
from tests.faults.ledger import check_every_user, check_no_commit_is_ahead
from tests.faults.proxy import ProduceProxy, Weather
from tests.faults.scale import IS_FULL, SCALE, TIMEOUT_S
from tests.support.kafka_server import KafkaNode, Listener, own_node

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S)]

_REFUSED_S = 10.0
# Batches so small that writes are on their way all the time, and commits so often that one too early is seen.
_BATCH, _COMMIT_S = 50, 0.1


@pytest_asyncio.fixture
async def proxy() -> AsyncIterator[ProduceProxy]:
    async with ProduceProxy() as proxy:
        yield proxy


@pytest.fixture
def node(proxy: ProduceProxy) -> Iterator[KafkaNode]:
    listeners = [Listener("PROXIED", told_port=proxy.port)]
    with skipping_where_no_kafka_can_run(), own_node(listeners) as node:
        proxy.broker_port = node.port("PROXIED")
        yield node


@pytest.fixture
def broker(node: KafkaNode) -> str:
    return node.servers


@pytest.fixture
def behind_proxy(proxy: ProduceProxy, new_system: Callable[..., System]) -> System:
    servers = f"127.0.0.1:{proxy.port}"
    return new_system(kafka_bootstrap_servers=servers, max_poll_records=_BATCH, commit_interval_s=_COMMIT_S)


async def commits_more(outside: Outside, before: int) -> bool:
    committed = await outside.committed(outside.settings.interests_group, outside.topics.clicks)
    return sum(committed.values()) > before


async def test_killed_while_writes_are_slow_or_refused_and_alive_after_ten_seconds_of_it(
    proxy: ProduceProxy, behind_proxy: System
) -> None:
    worker = behind_proxy.worker
    async with behind_proxy.stocked() as outside:
        story = begin(outside, repeated=0.02)
        part = SCALE.clicks // (SCALE.kills + 1) // 4
        committed = 0
        async with asking(outside, story):
            for number in range(SCALE.kills):
                publishing = asyncio.create_task(publish(outside, story.tell(part)))
                proxy.weather = Weather.REFUSING if number % 2 else Weather.SLOW
                if proxy.weather is Weather.SLOW:
                    await outside.until("commits go on", partial(commits_more, outside, committed))
                await proxy.has_met(2)
                await asyncio.to_thread(worker.kill)
                await proxy.cut()
                committed = await check_no_commit_is_ahead(outside)
                proxy.weather = Weather.FAIR
                await publishing
                await asyncio.to_thread(worker.start)
            proxy.weather = Weather.REFUSING
            await publish(outside, story.tell(part))
            await asyncio.sleep(_REFUSED_S)
            await check_no_commit_is_ahead(outside)
            proxy.weather = Weather.FAIR
            await publish(outside, story.tell(part))
            await applied(outside)
        assert await check_no_commit_is_ahead(outside) > committed
        await check_answers(outside, story)
        await check_every_user(outside, story)


@pytest.mark.skipif(not IS_FULL, reason="a commit may fail for half a minute: with `make faults`")
async def test_commits_that_fail_again_and_again_end_the_worker(
    proxy: ProduceProxy, behind_proxy: System
) -> None:
    """The client would try for ever while clicks are applied: after a crash all of them would be read again."""
    worker = behind_proxy.worker

    def is_red() -> bool:
        return worker.health_status() == HTTPStatus.SERVICE_UNAVAILABLE

    async with behind_proxy.stocked() as outside:
        story = begin(outside, repeated=0.0)
        proxy.commits_fail = True
        async with all_the_time(lambda: publish(outside, story.tell(5)), pause_s=0.5):
            await asyncio.to_thread(worker.wait_until, "it is red", is_red, STALL_S + PATIENCE_S)
        assert await asyncio.to_thread(worker.exit_code, PATIENCE_S) == 1
        assert "although there are finished records to commit" in worker.log.read_text()
        await check_no_commit_is_ahead(outside)
        proxy.commits_fail = False
        await asyncio.to_thread(worker.start)
        await applied(outside)
        await check_answers(outside, story)
        await check_every_user(outside, story)
