"""The doctor's checks of bundles: that all roles have the same one, and that it can read the catalog's texts."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Final

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from headwater.commands.findings import TIMEOUT_S, Finding, System
from headwater.commands.group_checks import places_of
from headwater.encoder.features import required_text
from headwater.encoder.runtime import Encoder, load
from headwater.index.vectors_topic import OfferRecord, read_record
from headwater.messages import BadMessage, decode_item, decode_trend

# An owner's record is among this many newest records of the trends topic, unless nobody has clicked for a while.
_NEWEST_TRENDS: Final = 200
_NEWEST_VECTORS: Final = (8, 1_000, 10_000)
# Texts that the bundle is tried on, of each catalog partition: enough for a share, read in a moment.
_NEWEST_ITEMS: Final = 100
# A catalog with some foreign titles is fine.
_UNREADABLE_SHARE: Final = 0.02


async def roles(system: System) -> AsyncIterator[Finding]:
    """Whether the catalog and the interests workers have one bundle, as far as their newest records say."""
    topics = system.topics
    async with system.consumer() as consumer:
        async with asyncio.timeout(TIMEOUT_S):
            present = await consumer.topics()
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


async def texts(system: System) -> AsyncIterator[Finding]:
    """Whether the bundle can read the texts of the catalog, as far as its newest items tell."""
    async with system.consumer() as consumer:
        async with asyncio.timeout(TIMEOUT_S):
            present = await consumer.topics()
        if system.topics.catalog not in present:
            return
        records = [
            record
            for place in await places_of(consumer, system.topics.catalog)
            for record in await _newest(consumer, place, _NEWEST_ITEMS)
        ]
    settings = system.settings
    encoder = await asyncio.to_thread(load, settings.bundle_path, device=settings.device)
    found = await asyncio.to_thread(_read, encoder, records)
    if found is not None:
        yield found


def _read(encoder: Encoder, records: Iterable[ConsumerRecord]) -> Finding | None:
    """What the bundle makes of the texts of catalog records; None if there are none, or it reads no texts."""
    if encoder.item_inputs != "text":
        return None
    texts: dict[str, str] = {}
    for record in records:
        if record.value is None:
            continue
        try:
            item = decode_item(record.key, record.value)
            texts[item.item_id] = required_text(item, encoder.id)
        except BadMessage:
            continue  # a dead letter, of which another check tells
    if not texts:
        return None
    read = encoder.read_items(list(texts.values()), list(texts))
    seen = (
        f"of the texts of the newest {len(texts)} items, bundle {encoder.id} does not know {read.unknown.mean():.1%} of the "
        "tokens"
    )
    unreadable = read.unreadable
    if len(unreadable) <= _UNREADABLE_SHARE * len(texts):
        return Finding("texts", True, seen)
    first = list(texts)[int(unreadable[0])]
    return Finding(
        "texts",
        False,
        f"{seen}, and cannot read {len(unreadable)} items, such as {first!r}: these are found by the spelling of their texts "
        "alone; make a bundle with an encoder of their language, `headwater export --model MODEL --out my-bundle` (such as "
        "intfloat/multilingual-e5-small, or BAAI/bge-small-zh-v1.5 for Chinese), and set HEADWATER_BUNDLE to it",
    )


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
