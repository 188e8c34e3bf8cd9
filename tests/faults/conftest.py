"""Fixtures of the fault suite: Apache Kafka alone, since the embedded broker is made for one worker."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import skipping_where_no_kafka_can_run
from tests.end_to_end.conftest import new_system, new_worker, own_topics
from tests.support.kafka_server import KafkaNode, own_node

__all__ = ["broker", "new_system", "new_worker", "own_topics"]


@pytest.fixture
def node() -> Iterator[KafkaNode]:
    """A broker of the test's own, for a test that has `broker` be this one."""
    with skipping_where_no_kafka_can_run(), own_node() as node:
        yield node


@pytest.fixture
def broker(kafka: str) -> str:
    return kafka


@pytest.fixture(autouse=True)
def no_user_in_the_logs(tmp_path: Path) -> Iterator[None]:
    """Whatever happened to a worker, it said nothing of whom it happened to."""
    yield
    for log in tmp_path.glob("*/worker.log"):
        told = re.findall(r"\b(?:u|last)\d+-[0-9a-f]{8}\b", log.read_text(errors="replace"))
        assert not told, f"{log.parent.name} names users in its log: {sorted(set(told))[:5]}"
