"""Many writes at once wait their turn, and what no broker takes is refused as such."""

import asyncio
import re

import pytest

from headwater.client import Client, ClientError
from headwater.kafka import topics
from headwater.messages import BadMessage
from headwater.settings import Settings


async def test_a_message_that_is_too_large_for_kafka_is_refused_as_such(system: Settings) -> None:
    async with Client(system) as client:
        with pytest.raises(BadMessage, match=r"got 11\d{5} bytes, expected fewer"):
            await client.click("ann", "coffee-1", context={"page": "x" * 1_100_000})


async def test_ten_thousand_clicks_at_once_wait_their_turn(system: Settings) -> None:
    async with Client(system) as client:
        places = await asyncio.gather(
            *(client.click(f"user-{n % 500}", f"item-{n}", timeout_s=120) for n in range(10_000))
        )
    assert len(set(places)) == 10_000


async def test_topics_that_do_not_exist_are_named_with_the_remedy_and_not_created(
    broker: str, topic_prefix: str
) -> None:
    settings = Settings(kafka_bootstrap_servers=broker, topic_prefix=topic_prefix)
    with pytest.raises(
        ClientError, match=rf"no topic {re.escape(topic_prefix)}clicks.*headwater topics create"
    ):
        await Client(settings).__aenter__()
    found = [problem.found for problem in await topics.check(settings)]
    assert found == ["missing"] * len(topics.specs(settings))


async def test_a_broker_that_is_down_is_said_so_with_the_remedy() -> None:
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1")
    with pytest.raises(ClientError, match=r"127\.0\.0\.1:1 .*HEADWATER_KAFKA_BOOTSTRAP_SERVERS"):
        await Client(settings).__aenter__()
