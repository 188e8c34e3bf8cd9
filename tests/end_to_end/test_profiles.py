"""The store of users on a real changelog, where a second worker writes too."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import pytest_asyncio
from aiokafka import TopicPartition

from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.publish import producer_of
from headwater.kafka.topics import Topics
from headwater.metrics import Metrics
from headwater.profiles.columns import Columns
from headwater.profiles.partition import Partition
from headwater.profiles.state_records import bundle_key, unpack
from headwater.profiles.store import ProfileLayout, Profiles
from headwater.settings import Settings
from headwater.worker.worker import started

_WITHIN_S = 30.0


class Store(NamedTuple):
    """A worker's, of partition 0."""

    profiles: Profiles
    failures: list[str]

    @property
    def partition(self) -> Partition:
        return self.profiles.partitions[0]

    async def own(self, generation: int) -> None:
        self.profiles.assign({0}, generation)
        async with asyncio.timeout(_WITHIN_S):
            await self.partition.gate.wait_open(_WITHIN_S)

    async def write(self, user: bytes, offset: int) -> None:
        """As a batch of clicks up to that offset does."""
        row, columns = self.partition.row_of(user), self.partition.columns
        columns.offset[row], columns.n[row], columns.at_ms[row, 0] = offset, 1, 1
        generation = self.partition.generation
        rows = np.array([row], dtype=np.int64)
        sent = await self.profiles.send(self.partition, rows, [], generation)
        await self.profiles.settle(self.partition, sent, generation)

    async def erase(self, user: bytes) -> None:
        """As `forget` does it, with all that is known of the user up to now."""
        partition = self.partition
        partition.erase(user, 1)
        nobody = np.zeros(0, dtype=np.int64)
        sent = await self.profiles.send(partition, nobody, [user], partition.generation)
        await self.profiles.settle(partition, sent, partition.generation)

    def offset_of(self, user: bytes) -> int:
        columns = self.partition.columns
        return int(columns.offset[columns.rows[user]])


async def on_lost(*_: object) -> None:
    """Nobody asks."""


async def is_member() -> bool:
    """Whoever asks finds that another worker has the partition."""
    return False


@asynccontextmanager
async def storing(settings: Settings, writer: int) -> AsyncIterator[Store]:
    failures: list[str] = []
    async with started(producer_of(settings, enable_idempotence=True)) as producer:
        topics = Topics.named(settings.topic_prefix)
        profiles = Profiles(
            settings,
            topics,
            producer,
            Metrics(),
            ProfileLayout("a-bundle", log_length=4, state_size=8),
            writer=writer,
            fail=failures.append,
            on_lost=on_lost,
            is_member=is_member,
        )
        await profiles.start()
        try:
            yield Store(profiles, failures)
        finally:
            await profiles.stop()


@pytest_asyncio.fixture
async def stores(own_topics: Settings) -> AsyncIterator[tuple[Store, Store]]:
    """Two that write one changelog; there are clicks at their topic's first ten offsets."""
    await publish_clicks(own_topics, 10)
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(storing(own_topics, n)) for n in (1, 2)]
        yield first, second


async def publish_clicks(settings: Settings, count: int) -> None:
    async with started(producer_of(settings)) as producer:
        topic = Topics.named(settings.topic_prefix).clicks
        for _ in range(count):
            await producer.send_and_wait(topic, b"{}", key=b"x", partition=0)


async def test_what_another_wrote_is_known_to_a_worker_that_woke_up_late_and_gets_its_partition_back(
    stores: tuple[Store, Store],
) -> None:
    """Its own write, acknowledged after the other's, must not take it past them: the rebalance comes before it reads them."""
    frozen, heir = stores
    await frozen.own(1)
    await frozen.write(b"ann", 3)
    await frozen.write(b"bob", 4)
    await heir.own(2)
    await heir.write(b"ann", 8)
    await frozen.write(b"bob", 4)
    frozen.profiles.freeze()
    await frozen.own(3)
    assert frozen.offset_of(b"ann") == 8
    assert (frozen.failures, heir.failures) == ([], [])


async def test_a_write_that_came_late_is_overwritten_by_the_owner(
    own_topics: Settings, stores: tuple[Store, Store]
) -> None:
    frozen, heir = stores
    await frozen.own(1)
    await heir.own(2)
    await heir.write(b"ann", 8)
    await frozen.write(b"ann", 3)
    await heir.write(b"bob", 9)
    repaired = partial(heir.profiles._metrics.fenced_records_total._value.get)
    async with asyncio.timeout(_WITHIN_S):
        while repaired() == 0:
            await asyncio.sleep(0.05)
    await heir.profiles.stop()
    heir.profiles.freeze()
    async with storing(own_topics, 3) as third:
        await third.own(3)
        assert (third.offset_of(b"ann"), third.offset_of(b"bob")) == (8, 9)


async def test_a_late_write_at_the_end_is_overwritten_by_whoever_opens_the_partition_next(
    own_topics: Settings, stores: tuple[Store, Store]
) -> None:
    """Compaction keeps the last record of a user, whichever owner wrote it."""
    frozen, heir = stores
    await frozen.own(1)
    await frozen.write(b"bob", 4)
    await heir.own(2)
    await heir.write(b"bob", 9)
    await frozen.write(b"bob", 4)
    for store in (frozen, heir):
        store.profiles.freeze()
    async with storing(own_topics, 3) as third:
        await third.own(3)
        async with asyncio.timeout(_WITHIN_S):
            while await last_offset_of(own_topics, b"bob") != 9:
                await asyncio.sleep(0.1)


async def test_a_late_write_does_not_bring_an_erased_user_back(
    own_topics: Settings, stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where it was erased nor for whoever reads the changelog, record by record. It is a copy of the very state."""
    monkeypatch.setattr("headwater.profiles.restore._MAX_RECORDS", 1)
    frozen, heir = stores
    await frozen.own(1)
    await frozen.write(b"ann", 3)
    await heir.own(2)
    await heir.erase(b"ann")
    await frozen.write(b"ann", 3)
    for store in (frozen, heir):
        store.profiles.freeze()
    heir.partition.gaps.add(0)
    await heir.own(3)
    assert b"ann" not in heir.partition.columns.rows
    async with storing(own_topics, 3) as third:
        await third.own(4)
        assert b"ann" not in third.partition.columns.rows
        assert (third.partition.erasures.erased_ms(b"ann"), len(third.partition.erasures)) == (1, 1)


async def last_offset_of(settings: Settings, user: bytes) -> int:
    """As the last record of the user in the changelog has it."""
    columns = Columns(4, 8)
    row = columns.add(user)
    async with Consumer(
        **settings.kafka_options(), auto_offset_reset="earliest", fetch_max_wait_ms=100
    ) as consumer:
        tp = TopicPartition(Topics.named(settings.topic_prefix).profiles, 0)
        consumer.assign([tp])
        end = (await consumer.end_offsets([tp]))[tp]
        while await consumer.position(tp) < end:
            for record in (await consumer.getmany(tp, timeout_ms=500)).get(tp, []):
                if record.key == user:
                    unpack(columns, np.array([row]), [record.value], bundle_key("a-bundle"))
    return int(columns.offset[row])
