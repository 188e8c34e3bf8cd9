"""What a worker must not read as if nothing had happened: it says where it stands and what to do, and overwrites nothing."""

import asyncio
import json
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


async def test_a_state_of_a_newer_format_ends_no_worker_and_stays_as_it_is(
    new_system: Callable[..., System],
) -> None:
    """After a rollback, or of anybody who may publish: its user alone is not served, and everybody says so."""
    system = new_system()
    async with system.stocked() as outside:
        await stopped_after_clicks(system, outside)
        profiles, clicks = outside.topics.profiles, outside.topics.clicks
        held = {
            record.key: record for record in await outside.records_of(profiles) if record.key != CLAIM_KEY
        }
        key, old = next(iter(held.items()))
        user, newer = key.decode(), bytes([NEWEST_FORMAT + 1]) + old.value[1:]
        await outside.send(profiles, newer, key=key, partition=old.partition)
        await asyncio.to_thread(system.worker.start)
        message = json.dumps(outside.click_message(user, "coffee-1")).encode()
        place = await outside.send(clicks, message, key=key, partition=old.partition)
        told, letter = await outside.dead_letter(clicks, place)
        assert (told["reason"], letter.value is not None) == ("newer_format", True)
        after = {"partition": place.partition, "offset": place.offset}
        answer = await outside.ask(user, after=after)
        assert (answer["status"], answer["rung"]) == ("degraded", "newer-format")
        await applied(outside)
        assert system.worker.metric("headwater_newer_format_users") == 1
        latest = {record.key: record.value for record in await outside.records_of(profiles)}
        assert latest[key] == newer
        assert await asyncio.to_thread(system.worker.stop) == 0


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
