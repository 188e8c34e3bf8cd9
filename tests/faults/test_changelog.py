"""What a worker must not read as if nothing had happened: it ends, says where it stands and what to do, writes nothing."""

import asyncio
from collections.abc import Callable

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from headwater.kafka import topics
from headwater.kafka.epochs import CLAIM_KEY
from headwater.profiles.state_records import NEWEST_FORMAT
from tests.end_to_end.conftest import System
from tests.end_to_end.oracle import applied, publish
from tests.end_to_end.outside import PATIENCE_S, Outside
from tests.end_to_end.story import Story
from tests.faults.asking import begin
from tests.faults.scale import TIMEOUT_S

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S)]


async def stopped_after_clicks(system: System, outside: Outside) -> Story:
    """The worker has applied some clicks, committed them, and ended."""
    story = begin(outside, repeated=0.0)
    await publish(outside, story.tell(1_000))
    await applied(outside)
    assert await asyncio.to_thread(system.worker.stop) == 0
    return story


async def test_a_state_of_a_newer_format_ends_the_worker_and_stays_as_it_is(
    new_system: Callable[..., System],
) -> None:
    system = new_system()
    worker = system.worker
    async with system.stocked() as outside:
        story = await stopped_after_clicks(system, outside)
        profiles = outside.topics.profiles
        held = {
            record.key: record for record in await outside.records_of(profiles) if record.key != CLAIM_KEY
        }
        key, old = next(iter(held.items()))
        newer = bytes([NEWEST_FORMAT + 1]) + old.value[1:]
        place = await outside.send(profiles, newer, key=key, partition=old.partition)
        await publish(outside, story.tell(100))
        worker.launch()
        assert await asyncio.to_thread(worker.exit_code, PATIENCE_S) == 1
        said = worker.last_words()
        assert f"{profiles}-{place.partition}, offsets" in said
        assert f"got format {NEWEST_FORMAT + 1}" in said
        assert "run the version that wrote it, or a newer one" in said
        after = {
            record.key: record.value
            for record in await outside.records_of(profiles)
            if record.key != CLAIM_KEY
        }
        assert after == {name: record.value for name, record in held.items()} | {key: newer}


@pytest.mark.parametrize("name", ["clicks", "catalog"])
async def test_a_topic_that_was_made_again_is_refused(new_system: Callable[..., System], name: str) -> None:
    """Its offsets begin anew, and whatever comes would look older than what is known."""
    system = new_system()
    worker = system.worker
    async with system.stocked() as outside:
        await stopped_after_clicks(system, outside)
        topic = getattr(outside.topics, name)
        admin = AIOKafkaAdminClient(**system.settings.kafka_options())
        await admin.start()
        try:
            await admin.delete_topics([topic])

            async def is_gone() -> bool:
                return topic not in await admin.list_topics()

            await outside.until("the topic is gone", is_gone)
        finally:
            await admin.close()
        await topics.create(system.settings)
        worker.launch()
        assert await asyncio.to_thread(worker.exit_code, PATIENCE_S) == 1
        assert "the topic was re-created" in worker.last_words()
        remedy = {
            "clicks": "run `headwater topics accept`",
            "catalog": "Start with a new HEADWATER_TOPIC_PREFIX",
        }
        assert remedy[name] in worker.last_words()
