"""The system under test: one worker process for each broker, shared by all tests that leave it running."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from headwater.kafka import topics
from headwater.settings import Settings
from tests.conftest import new_topic_prefix
from tests.end_to_end.outside import Outside
from tests.end_to_end.worker_process import WorkerProcess


@dataclass
class System:
    """Topics on a broker, and the worker that serves them."""

    settings: Settings
    worker: WorkerProcess

    def outside(self) -> Outside:
        return Outside(self.settings, self.worker.check_alive)

    @asynccontextmanager
    async def stocked(self) -> AsyncIterator[Outside]:
        """The worker started, and the whole shop in its catalog."""
        await asyncio.to_thread(self.worker.start)
        async with self.outside() as outside:
            await outside.stock()
            yield outside


@pytest.fixture(scope="session")
def shared_system(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A running worker with the shop in its catalog. Leave it running; use users and items of your own."""
    prefix = new_topic_prefix()
    replies = f"{prefix}elsewhere"
    settings = Settings(kafka_bootstrap_servers=broker, topic_prefix=prefix, reply_topics=(replies,))
    worker = WorkerProcess(
        tmp_path_factory.mktemp("worker"),
        kafka_bootstrap_servers=broker,
        topic_prefix=prefix,
        reply_topics=replies,
    )
    system = System(settings, worker)

    async def prepare() -> None:
        await topics.create(settings)
        await _create(settings, replies)

    async def fill() -> None:
        async with system.outside() as outside:
            await outside.stock()

    asyncio.run(prepare())
    with worker:
        asyncio.run(fill())
        yield system


async def _create(settings: Settings, topic: str) -> None:
    admin = AIOKafkaAdminClient(**settings.kafka_options())
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 1, 1)])
    finally:
        await admin.close()


@pytest_asyncio.fixture
async def outside(shared_system: System) -> AsyncIterator[Outside]:
    async with shared_system.outside() as outside:
        yield outside


@pytest.fixture
def new_worker(settings: Settings, tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Makes workers, not started yet, for topics of this test's own (`settings`); all are killed at its end."""
    with ExitStack() as stack:
        count = 0

        def make(role: str = "all", **given: object) -> WorkerProcess:
            nonlocal count
            count += 1
            system = {
                "kafka_bootstrap_servers": settings.kafka_bootstrap_servers,
                "topic_prefix": settings.topic_prefix,
            }
            worker = WorkerProcess(tmp_path / f"worker-{count}", role, **{**system, **given})
            stack.callback(worker.kill)
            return worker

        yield make


@pytest_asyncio.fixture
async def own_topics(settings: Settings) -> Settings:
    """The test's own topics, without a worker."""
    await topics.create(settings)
    return settings


@pytest_asyncio.fixture
async def new_system(own_topics: Settings, new_worker: Callable[..., WorkerProcess]) -> Callable[..., System]:
    """Makes a worker for the test's own topics that is not started yet."""

    def make(role: str = "all", **given: object) -> System:
        return System(own_topics, new_worker(role, **given))

    return make
