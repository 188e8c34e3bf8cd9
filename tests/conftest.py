"""Fixtures of all tests: real brokers, shared by the whole session; every test has its own topics on them."""

import asyncio
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from hypothesis import settings as hypothesis_settings

from headwater.kafka.embedded_broker import EmbeddedBroker
from headwater.settings import Settings
from tests.support.kafka_server import CannotRunError, external_servers, kafka_server

# The same examples on every run, and no clock in the verdict: a red build is red again on the next machine.
hypothesis_settings.register_profile("headwater", derandomize=True, deadline=None)
hypothesis_settings.load_profile("headwater")

_SESSION = f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="session", autouse=True)
def not_the_users_systems(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fixtures of a session or module announce what they start among themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def no_other_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test, and what it starts, finds the systems that it runs itself, not those of this user."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@contextmanager
def skipping_where_no_kafka_can_run() -> Iterator[None]:
    try:
        yield
    except CannotRunError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def kafka() -> Iterator[str]:
    """Bootstrap servers of a real Apache Kafka. Skips only where none can run; see tests/support/kafka_server.py."""
    server = kafka_server()
    with skipping_where_no_kafka_can_run():
        servers = server.__enter__()
    try:
        yield servers
        if external_servers():
            asyncio.run(_delete_our_topics(servers))
    finally:
        server.__exit__(None, None, None)


@pytest.fixture(scope="session")
def embedded_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap servers of the embedded broker."""
    with EmbeddedBroker(tmp_path_factory.mktemp("embedded")) as broker:
        yield broker.bootstrap_servers


@pytest.fixture(scope="session", params=["kafka", "embedded"])
def broker(request: pytest.FixtureRequest) -> str:
    """Bootstrap servers; the test runs on Apache Kafka and again on the embedded broker."""
    fixture = {"kafka": "kafka", "embedded": "embedded_broker"}[request.param]
    servers: str = request.getfixturevalue(fixture)
    return servers


@pytest.fixture
def topic_prefix() -> str:
    """Different for each test, so that one broker serves all."""
    return new_topic_prefix()


def new_topic_prefix() -> str:
    """One that this session has not used yet; on a cluster that is not ours, its topics are deleted at the end."""
    return f"{_SESSION}-{uuid.uuid4().hex[:8]}."


@pytest.fixture
def settings(broker: str, topic_prefix: str, tmp_path: Path) -> Settings:
    """Settings of a system of its own on `broker`; the topics are not created yet."""
    return Settings(kafka_bootstrap_servers=broker, topic_prefix=topic_prefix, data_dir=tmp_path / "data")


@pytest.fixture
def unused_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])


async def _delete_our_topics(servers: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        ours = [name for name in await admin.list_topics() if name.startswith(_SESSION)]
        if ours:
            await admin.delete_topics(ours)
    finally:
        await admin.close()
