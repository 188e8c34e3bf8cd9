"""A catalog worker that lost its partitions and does not know it: what it writes must not come back into the catalog."""

import asyncio
import json
import signal
from collections.abc import Callable

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from headwater.encoder.features import item_key
from headwater.index import Point
from headwater.kafka import topics
from headwater.kafka.topics import Topics
from headwater.settings import Settings
from tests.end_to_end.outside import Outside
from tests.end_to_end.worker_process import SESSION_TIMEOUT_S, WorkerProcess
from tests.faults.scale import TIMEOUT_S
from tests.support.vector_records import points_of

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S)]

_ITEMS = 800
_DELETED = 100


async def create_topics(settings: Settings) -> None:
    """All of them; the vectors topic is compacted as soon as may be, with its marks of deletions."""
    quickly = {
        "cleanup.policy": "compact",
        "segment.ms": "1000",
        "min.cleanable.dirty.ratio": "0.001",
        "delete.retention.ms": "0",
    }
    admin = AIOKafkaAdminClient(**settings.kafka_options())
    await admin.start()
    try:
        name = Topics.named(settings.topic_prefix).vectors
        await admin.create_topics([NewTopic(name, settings.catalog_partitions, 1, topic_configs=quickly)])
    finally:
        await admin.close()
    await topics.create(settings)


async def newest(outside: Outside) -> dict[int, Point]:
    """Of each item, as compaction will leave the vectors topic."""
    return {point.key: point for point in points_of(await outside.records_of(outside.topics.vectors))}


async def test_a_catalog_worker_frozen_in_a_batch_and_woken_after_compaction(
    settings: Settings, new_worker: Callable[..., WorkerProcess]
) -> None:
    await create_topics(settings)
    zombie, heir, answering = new_worker("catalog"), new_worker("catalog"), new_worker("interests")
    for worker in (zombie, answering):
        await asyncio.to_thread(worker.start)
    async with Outside(settings, answering.check_alive) as outside:
        items = [outside.own(f"item-{number}") for number in range(_ITEMS)]
        gone, kept = items[:_DELETED], items[_DELETED:]

        async def publish(names: list[str], price: float) -> None:
            messages = [(name, {"item_id": name, "title": "garden hose", "price": price}) for name in names]
            await outside.send_all(outside.topics.catalog, messages)

        await publish(items, 1.0)
        await asyncio.to_thread(
            zombie.wait_until,
            "the first versions are there",
            lambda: zombie.metric("headwater_catalog_items_total") >= _ITEMS,
            120,
        )
        written = await outside.records_of(outside.topics.vectors)
        publishing = asyncio.create_task(publish(items, 2.0))
        await asyncio.to_thread(
            zombie.wait_until,
            "it is in a batch",
            lambda: zombie.metric("headwater_catalog_items_total") > _ITEMS,
            60,
        )
        zombie.signal(signal.SIGSTOP)
        await publishing
        await asyncio.to_thread(heir.start)
        for name in gone:
            await outside.delete(name)
        await publish(kept, 3.0)
        await outside.put_and_wait(outside.own("last"), title="garden rake")
        marks = {item_key(name) for name in gone}

        async def is_compacted() -> bool:
            for partition in range(settings.catalog_partitions):  # so that the segment before is closed
                await outside.put(
                    outside.item_at(partition, "filler"), title=f"garden gnome {outside.next_ms()}"
                )
            await asyncio.sleep(2.0)
            return not marks & (await newest(outside)).keys()

        await outside.until(
            "the marks of deletions are compacted away", is_compacted, SESSION_TIMEOUT_S + 180
        )
        assert await asyncio.to_thread(heir.stop) == 0  # so that nobody remembers what was deleted
        await asyncio.to_thread(heir.start)
        zombie.signal(signal.SIGCONT)
        # Whether it writes before it learns that it is none depends on the machine. These records are its own, and late.
        for record in written:
            await outside.send(
                record.topic, record.value, key=record.key, partition=record.partition, headers=record.headers
            )

        async def is_repaired() -> bool:
            found = await newest(outside)
            live = {key for key, point in found.items() if point.vector is not None}
            return not live & marks and all(
                found[item_key(name)].payload.get("price") == 3.0 for name in kept
            )

        await outside.until("what it overwrote is written again", is_repaired, 120)
        assert await asyncio.to_thread(heir.metric, "headwater_vectors_repaired_total") > 0
        assert await asyncio.to_thread(answering.stop) == 0
        await asyncio.to_thread(answering.start)  # which reads all of it anew
        nobody = outside.own("nobody")
        for where in ({"item_id": {"any": gone}}, {"price": {"lt": 3.0}}):
            answer = await outside.ask(nobody, query="garden hose", filter=where, limit=1_000)
            assert json.dumps(answer["items"]) == "[]", where
        answer = await outside.ask(nobody, query="garden hose", filter={"price": {"gte": 3.0}}, limit=1_000)
        assert len(answer["items"]) == len(kept)
