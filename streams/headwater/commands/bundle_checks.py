"""The check of the doctor that compares the roles: vectors and interests of different bundles do not compare."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Final

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from headwater.commands.findings import TIMEOUT_S, Finding, System
from headwater.commands.group_checks import places_of
from headwater.index.vectors_topic import OfferRecord, read_record
from headwater.messages import BadMessage, decode_trend

# Among so many newest records of the trends topic is one of an owner, unless nobody has clicked for a while.
_NEWEST_TRENDS: Final = 200
_NEWEST_VECTORS: Final = (8, 1_000, 10_000)


async def roles(system: System) -> AsyncIterator[Finding]:
    """Whether the catalog and the interests workers have one bundle, as far as their newest records say."""
    topics = system.topics
    async with system.consumer() as consumer:
        present = await asyncio.wait_for(consumer.topics(), TIMEOUT_S)
        if not {topics.vectors, topics.trends} <= present:
            return
        catalog: set[str] = set()
        for place in await places_of(consumer, topics.vectors):
            # The newest records may be deletes and offers, which have no bundle.
            for count in _NEWEST_VECTORS:
                if newest := _of_vectors(await _newest(consumer, place, count)):
                    catalog.add(newest)
                    break
        interests = _of_trends(await _newest(consumer, TopicPartition(topics.trends, 0), _NEWEST_TRENDS))
    said = ", ".join(sorted(catalog)) or "none so far"
    seen = (
        f"the catalog is encoded by {said}, and the interests workers have {interests or 'said none lately'}"
    )
    ok = len(catalog) <= 1 and (not interests or not catalog or catalog == {interests})
    yield Finding("bundles", ok, seen if ok else f"{seen}: give both roles the same HEADWATER_BUNDLE")


async def _newest(consumer: AIOKafkaConsumer, tp: TopicPartition, count: int) -> list[ConsumerRecord]:
    """At most ``count`` of the newest records of a partition, in order."""
    end = (await consumer.end_offsets([tp]))[tp]
    start = max((await consumer.beginning_offsets([tp]))[tp], end - count)
    consumer.assign([tp])
    consumer.seek(tp, start)
    records: list[ConsumerRecord] = []
    while await consumer.position(tp) < end:
        records += (await consumer.getmany(tp, timeout_ms=1_000)).get(tp, [])
    return records


def _of_vectors(records: Iterable[ConsumerRecord]) -> str | None:
    newest = None
    for record in records:
        try:
            found = read_record(record)
        except BadMessage:
            continue  # workers count these
        if not isinstance(found, OfferRecord):
            newest = found.bundle or newest
    return newest


def _of_trends(records: Iterable[ConsumerRecord]) -> str | None:
    newest = None
    for record in records:
        try:
            newest = decode_trend(record.value).bundle or newest
        except BadMessage:
            continue
    return newest
