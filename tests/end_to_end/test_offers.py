"""A price or stock change without a text: answers follow, nothing is wiped or encoded, and a restart keeps it."""

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from aiokafka.structs import RecordMetadata

from tests.end_to_end.conftest import System
from tests.end_to_end.outside import Outside

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="session")
def broker(kafka: str) -> str:
    """One broker is enough: units and contracts run on both."""
    return kafka


async def offer(outside: Outside, item: str, **fields: Any) -> RecordMetadata:
    value = json.dumps({"item_id": item, **fields}).encode() if fields else None
    return await outside.send(outside.topics.offers, value, key=item.encode())


async def recalled(outside: Outside, **where: Any) -> list[str]:
    return await outside.items(
        outside.own("nobody"), query="garden hose", limit=9, filter={"category": "hoses", **where}
    )


async def is_recalled(outside: Outside, expected: list[str], **where: Any) -> bool:
    return await recalled(outside, **where) == expected


async def test_an_offer_changes_what_it_states_and_outlives_a_restart(
    new_system: Callable[..., System],
) -> None:
    system = new_system()
    worker = system.worker
    await asyncio.to_thread(worker.start)
    async with system.outside() as outside:
        item, early, other = (outside.item_at(0, name) for name in ("hose", "early", "other"))
        fields = {"category": "hoses", "tags": ["green"], "attributes": {"metres": 20.0}}
        await offer(outside, early, available=False)
        for each in (item, early, other):
            await outside.put_and_wait(each, title="Garden hose", price=30.0, **fields)
        cheap = {"price": {"lt": 25}}
        assert await recalled(outside, **cheap) == []
        encoded = worker.metric("headwater_catalog_items_total")

        at_ms = outside.next_ms()
        await offer(outside, item, price=20.0, attributes={"stock": 4.0}, at_ms=at_ms)
        await outside.until("the price is the new one", partial(is_recalled, outside, [item], **cheap))
        kept = {"tags": "green", "attributes.metres": 20, "attributes.stock": 4}
        assert await recalled(outside, **kept, **cheap) == [item]
        assert await recalled(outside, item_id=early) == [], "sold out before it came"

        await offer(outside, item, price=1.0, at_ms=at_ms - 1)
        await offer(outside, other, available=False)
        await outside.until("the other is sold out", partial(is_recalled, outside, [item]))
        assert await recalled(outside, price={"lt": 15}) == [], "an older offer loses"
        assert worker.metric("headwater_catalog_items_total") == encoded
        assert worker.metric("headwater_offers_ignored_total") == 1

        assert await asyncio.to_thread(worker.stop) == 0
        await asyncio.to_thread(worker.start)
        assert await recalled(outside, **kept, **cheap) == [item]
        assert await recalled(outside) == [item]
        await offer(outside, item, price=1.0, at_ms=at_ms - 1)
        await offer(outside, other)
        await outside.until("nothing is offered of it", partial(is_recalled, outside, [other], price=30))
        assert await recalled(outside, price={"lt": 15}) == []
        assert worker.metric("headwater_catalog_items_total") == 0
