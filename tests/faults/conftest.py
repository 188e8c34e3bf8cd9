"""Fixtures of the fault suite: Apache Kafka alone, since the embedded broker is made for one worker."""

import pytest

from tests.kafka.conftest import new_system, new_worker, own_topics

__all__ = ["broker", "new_system", "new_worker", "own_topics"]


@pytest.fixture
def broker(kafka: str) -> str:
    return kafka
