"""Fixtures of the fault suite: Apache Kafka alone, since the embedded broker is made for one worker."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.conftest import new_system, new_worker, own_topics

__all__ = ["broker", "new_system", "new_worker", "own_topics"]


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
