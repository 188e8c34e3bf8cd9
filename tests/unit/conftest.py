"""What several unit tests with a broker need."""

import pytest_asyncio

from headwater.kafka import topics
from headwater.settings import Settings


@pytest_asyncio.fixture
async def system(settings: Settings) -> Settings:
    """Settings of a system whose topics exist; nothing runs on it."""
    await topics.create(settings)
    return settings
