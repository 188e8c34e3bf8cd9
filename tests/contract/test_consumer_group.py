"""The contract of a consumer group on Apache Kafka, with the fast client and with the plain one."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import OffsetAndMetadata

from headwater.errors import PartitionLost, StopWorker
from headwater.kafka.batch import Batch
from headwater.kafka.consumer_group import ConsumerGroup
from headwater.kafka.faust_group import FaustGroup
from headwater.kafka.publish import Outgoing, producer_of, write_all
from headwater.messages import Gap
from headwater.settings import Settings
from tests.support.plain_topics import create_topics

LONG_S = 60.0
PARTITIONS = 2

GroupOf = Callable[[str, Settings], ConsumerGroup]


class Member:
    """A member of the group that finishes what it is given, and writes down what happened."""

    def __init__(self, group: ConsumerGroup, topic: str) -> None:
        self.group, self.topic = group, topic
        self.seen: list[tuple[int, int]] = []  # partition, offset
        self.events: list[str] = []
        self.batches: list[Batch] = []
        self.lost: list[tuple[int, int, int]] = []  # partition, first, last
        self.finishes = True
        group.handle(topic, self._handle)
        self.told: list[tuple[int, int, int]] = []  # what a former member has lost
        group.on_lost(self._lost)
        group.on_assigned(self._assigned)
        group.on_revoked(self._revoked)
        group.on_interrupt(lambda: self.events.append("interrupt"))

    async def _handle(self, batch: Batch) -> None:
        self.seen += [(batch.partition, record.offset) for record in batch.records]
        self.batches.append(batch)
        assert batch.generation == self.group.generation
        if self.finishes:
            batch.finish()

    def _lost(self, tp: TopicPartition, gap: Gap, is_new: bool) -> None:
        (self.lost if is_new else self.told).append((tp.partition, gap.first, gap.last))

    async def _assigned(self, tps: set[TopicPartition]) -> None:
        self.events.append(f"assigned {len(tps)}")

    async def _revoked(self, tps: set[TopicPartition]) -> None:
        if tps:
            self.events.append(f"revoked {len(tps)}")


@pytest.fixture(
    params=[FaustGroup, partial(FaustGroup, fast=False)],
    ids=["fast client", "plain client"],
)
def group_of(request: pytest.FixtureRequest) -> GroupOf:
    made: GroupOf = request.param
    return made


@pytest.fixture
def quick(kafka: str, topic_prefix: str) -> Settings:
    return Settings(
        kafka_bootstrap_servers=kafka,
        topic_prefix=topic_prefix,
        commit_interval_s=0.1,
        session_timeout_s=6.0,
    )


@pytest.fixture
async def topic(quick: Settings) -> str:
    name = f"{quick.topic_prefix}work"
    await create_topics(quick, name, partitions=PARTITIONS)
    return name


@asynccontextmanager
async def joined(settings: Settings, topic: str, group_of: GroupOf) -> AsyncIterator[Member]:
    group = group_of(f"{settings.topic_prefix}group", settings)
    member = Member(group, topic)
    await group.join()
    try:
        await until(lambda: group.is_assigned and len(group.assignment()) > 0)
        yield member
    finally:
        await group.stop()


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(LONG_S):
        while not holds():
            await asyncio.sleep(0.01)


async def publish(settings: Settings, topic: str, count: int) -> None:
    async with producer_of(settings) as producer:
        for partition in range(PARTITIONS):
            await write_all(producer, topic, partition, [Outgoing(b"k", b"v")] * count)


@asynccontextmanager
async def transactions(settings: Settings, topic: str) -> AsyncIterator[AIOKafkaProducer]:
    """A transactional publisher."""
    producer = AIOKafkaProducer(**settings.kafka_options(), transactional_id=f"{topic}-publisher")
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def delete_before(settings: Settings, topic: str, offset: int) -> None:
    """As retention does it."""
    admin = AIOKafkaAdminClient(**settings.kafka_options())
    await admin.start()
    try:
        tps = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        await admin.delete_records(dict.fromkeys(tps, RecordsToDelete(offset)))
    finally:
        await admin.close()


async def delete_topic(settings: Settings, topic: str) -> None:
    """And wait until it is gone."""
    admin = AIOKafkaAdminClient(**settings.kafka_options())
    await admin.start()
    try:
        await admin.delete_topics([topic])
        async with asyncio.timeout(LONG_S):
            while topic in await admin.list_topics():
                await asyncio.sleep(0.05)
    finally:
        await admin.close()


async def commits(settings: Settings) -> dict[TopicPartition, OffsetAndMetadata]:
    """Of the group, with what is beside the offsets."""
    admin = AIOKafkaAdminClient(**settings.kafka_options())
    await admin.start()
    try:
        found: dict[TopicPartition, OffsetAndMetadata] = await admin.list_consumer_group_offsets(
            f"{settings.topic_prefix}group"
        )
        return found
    finally:
        await admin.close()


async def commit(settings: Settings, offsets: dict[TopicPartition, OffsetAndMetadata]) -> None:
    """For the group, which has no member."""
    consumer = AIOKafkaConsumer(
        **settings.kafka_options(), group_id=f"{settings.topic_prefix}group", enable_auto_commit=False
    )
    await consumer.start()
    try:
        consumer.assign(list(offsets))
        await consumer.commit(offsets)
    finally:
        await consumer.stop()


async def committed(settings: Settings, topic: str) -> list[int]:
    consumer = AIOKafkaConsumer(
        **settings.kafka_options(), group_id=f"{settings.topic_prefix}group", enable_auto_commit=False
    )
    await consumer.start()
    try:
        return [await consumer.committed(TopicPartition(topic, n)) or 0 for n in range(PARTITIONS)]
    finally:
        await consumer.stop()


async def test_every_record_is_handled_once_in_order_and_committed_when_finished(
    quick: Settings, topic: str, group_of: GroupOf
) -> None:
    async with joined(quick, topic, group_of) as member:
        for count in (50, 1):
            await publish(quick, topic, count)
        await until(lambda: len(member.seen) == 51 * PARTITIONS)
        tps = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        await until(lambda: all(member.group.position(tp).committed == 51 for tp in tps))
        at = member.group.position(tps[0])
        assert (at.next_offset, at.end) == (51, 51)
        for number in range(PARTITIONS):
            assert [offset for partition, offset in member.seen if partition == number] == list(range(51))
    assert await committed(quick, topic) == [51] * PARTITIONS
    assert member.events[0] == f"assigned {PARTITIONS}"
    assert member.events[-1] == "interrupt"


async def test_what_is_not_finished_is_not_committed_and_the_next_member_reads_it(
    quick: Settings, topic: str, group_of: GroupOf
) -> None:
    await publish(quick, topic, 3)
    async with joined(quick, topic, group_of) as member:
        await until(lambda: len(member.seen) == 3 * PARTITIONS)
        member.finishes = False
        await publish(quick, topic, 2)
        await until(lambda: len(member.seen) == 5 * PARTITIONS)
    assert await committed(quick, topic) == [3] * PARTITIONS
    async with joined(quick, topic, group_of) as successor:
        await until(lambda: len(successor.seen) == 2 * PARTITIONS)
        assert sorted(successor.seen) == [(n, offset) for n in range(PARTITIONS) for offset in (3, 4)]


async def test_one_batch_of_a_partition_is_in_hand_until_it_is_released(
    quick: Settings, topic: str, group_of: GroupOf
) -> None:
    held: list[Batch] = []

    async def hold(batch: Batch) -> None:
        held.append(batch)

    group = group_of(f"{quick.topic_prefix}group", quick)
    group.handle(topic, hold)
    await group.join()
    try:
        await until(lambda: group.is_assigned)
        await publish(quick, topic, 1)
        await until(lambda: len(held) == PARTITIONS)
        await publish(quick, topic, 1)
        await asyncio.sleep(0.3)
        assert len(held) == PARTITIONS
        first = held[0]
        first.release()
        await until(lambda: len(held) == PARTITIONS + 1)
        assert (held[-1].partition, held[-1].last_offset) == (first.partition, 1)
        held[-1].finish()  # before the older one of its partition
        assert group.position(first.tp).next_offset in (None, 0)
        first.finish()
        assert group.position(first.tp).next_offset == 2
    finally:
        await group.stop()


async def test_a_second_member_takes_over_what_the_first_one_gives_up(
    quick: Settings, topic: str, group_of: GroupOf
) -> None:
    async with joined(quick, topic, group_of) as first:
        await publish(quick, topic, 5)
        await until(lambda: len(first.seen) == 5 * PARTITIONS)
        async with joined(quick, topic, group_of) as second:
            await until(lambda: len(first.group.assignment()) == len(second.group.assignment()) == 1)
            await publish(quick, topic, 5)
            await until(lambda: len(first.seen) + len(second.seen) >= 10 * PARTITIONS)
            assert await first.group.is_member()
            assert await second.group.is_member()
            assert first.events[:3] == [f"assigned {PARTITIONS}", "interrupt", f"revoked {PARTITIONS}"]
            mine = {tp.partition for tp in second.group.assignment()}
            assert {partition for partition, offset in second.seen if offset >= 5} == mine
    seen = first.seen + second.seen
    assert set(seen) == {(n, offset) for n in range(PARTITIONS) for offset in range(10)}
    assert await committed(quick, topic) == [10] * PARTITIONS


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (StopWorker("the broker is full"), "the broker is full"),
        (ValueError("no"), "unexpected ValueError in"),
    ],
)
async def test_what_a_handler_raises_fails_the_group_and_commits_nothing(
    quick: Settings, topic: str, group_of: GroupOf, error: Exception, reason: str
) -> None:
    async def fail(batch: Batch) -> None:
        raise error

    group = group_of(f"{quick.topic_prefix}group", quick)
    group.handle(topic, fail)
    await group.join()
    try:
        await publish(quick, topic, 1)
        async with asyncio.timeout(LONG_S):
            assert reason in await group.failed
    finally:
        await group.stop()
    assert await committed(quick, topic) == [0] * PARTITIONS


async def test_a_batch_whose_partition_is_lost_is_dropped_without_failing(
    quick: Settings, topic: str, group_of: GroupOf
) -> None:
    lost: list[Batch] = []

    async def lose(batch: Batch) -> None:
        lost.append(batch)
        raise PartitionLost

    group = group_of(f"{quick.topic_prefix}group", quick)
    group.handle(topic, lose)
    await group.join()
    try:
        await publish(quick, topic, 1)
        await until(lambda: len(lost) == PARTITIONS)
        assert not group.failed.done()
    finally:
        await group.stop()
    assert await committed(quick, topic) == [0] * PARTITIONS


async def test_aborted_records_are_not_handled_and_a_group_passes_the_markers_of_transactions(
    quick: Settings, topic: str, group_of: GroupOf
) -> None:
    tp = TopicPartition(topic, 0)
    async with joined(quick, topic, group_of) as member, transactions(quick, topic) as producer:
        async with producer.transaction():
            await producer.send_and_wait(topic, b"0", partition=0)  # and the marker at offset 1
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"2", partition=0)
        await producer.abort_transaction()  # the marker at 3
        await until(lambda: member.group.position(tp).committed == 4)
        assert member.group.position(tp)[:2] == (4, 4)
        assert member.seen == [(0, 0)]
    assert await committed(quick, topic) == [4, 0]


async def test_an_open_transaction_holds_back_what_is_behind_it_and_is_no_lag(
    quick: Settings, topic: str, group_of: GroupOf
) -> None:
    tp = TopicPartition(topic, 0)
    async with joined(quick, topic, group_of) as member, transactions(quick, topic) as producer:
        await publish(quick, topic, 2)
        await until(lambda: len(member.seen) == 2 * PARTITIONS)
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"2", partition=0)
        await publish(quick, topic, 1)
        await until(lambda: (1, 2) in member.seen and member.group.position(tp).held_back == 2)
        assert member.group.position(tp)[:2] == (2, 2)
        assert (0, 2) not in member.seen
        await producer.commit_transaction()
        await until(lambda: member.group.position(tp)[:2] == (5, 5))
        assert (0, 2) in member.seen
        assert (0, 3) in member.seen
        assert member.group.position(tp).held_back == 0


@pytest.mark.parametrize("start", [7, 9], ids=["some are left", "all are gone"])
async def test_what_was_deleted_before_it_was_read_is_told_and_passed(
    quick: Settings, topic: str, group_of: GroupOf, start: int
) -> None:
    await publish(quick, topic, 3)
    async with joined(quick, topic, group_of) as member:
        await until(lambda: len(member.seen) == 3 * PARTITIONS)
    await publish(quick, topic, 6)
    await delete_before(quick, topic, start)
    async with joined(quick, topic, group_of) as member:
        tps = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        await until(lambda: all(member.group.position(tp).committed == 9 for tp in tps))
        assert all(member.group.position(tp)[:2] == (9, 9) for tp in tps)
        assert sorted(member.lost) == [(number, 3, start - 1) for number in range(PARTITIONS)]
        assert sorted(member.seen) == [(n, offset) for n in range(PARTITIONS) for offset in range(start, 9)]
        assert not member.group.failed.done()
        assert member.group.gaps() == dict.fromkeys(tps, Gap(3, start - 1))
    assert await committed(quick, topic) == [9] * PARTITIONS
    async with joined(quick, topic, group_of) as successor:
        await until(lambda: sorted(successor.told) == sorted(member.lost))
        assert successor.group.gaps() == dict.fromkeys(tps, Gap(3, start - 1))
        assert successor.lost == []


async def test_a_kept_gap_is_told_to_the_next_member_though_nothing_was_finished(
    quick: Settings, topic: str, group_of: GroupOf
) -> None:
    """The group's offsets had expired, and clicks before the log's start are known to be missing."""
    tp, gap = TopicPartition(topic, 0), Gap(2, 4)
    await publish(quick, topic, 5)
    await delete_before(quick, topic, 5)
    async with joined(quick, topic, group_of) as member:
        assert await member.group.keep_gap(tp, gap)
        assert member.lost == [(0, 2, 4)]
        assert not await member.group.keep_gap(TopicPartition(topic, PARTITIONS), gap), "it is not ours"
    assert await committed(quick, topic) == [5, 0]
    async with joined(quick, topic, group_of) as successor:
        await until(lambda: successor.told == [(0, 2, 4)])
        assert successor.group.gaps() == {tp: gap}


async def test_what_is_deleted_while_a_partition_waits_is_told_when_it_goes_on(
    quick: Settings, topic: str, group_of: GroupOf
) -> None:
    async with joined(quick, topic, group_of) as member:
        member.finishes = False
        await publish(quick, topic, 1)
        await until(lambda: len(member.seen) == PARTITIONS)
        waiting = list(member.batches)
        consumer = member.group._reader
        assert consumer is not None
        for tp in [batch.tp for batch in waiting]:
            consumer.pause(tp)  # so that nothing is fetched ahead
        await asyncio.sleep(2.0)  # the broker holds the fetches under way for half a second
        await publish(quick, topic, 8)
        await delete_before(quick, topic, 5)
        member.finishes = True
        for batch in waiting:
            consumer.resume(batch.tp)
            batch.finish()
        await until(lambda: len(member.seen) == 5 * PARTITIONS)
        assert sorted(member.lost) == [(number, 1, 4) for number in range(PARTITIONS)]
    assert await committed(quick, topic) == [9] * PARTITIONS


async def test_a_topic_made_again_under_a_running_member_is_read_from_its_start(
    quick: Settings, topic: str
) -> None:
    """Also where it has grown past all that was read of the former one. A member that has not been told by a rebalance ends."""
    await publish(quick, topic, 3)
    async with joined(quick, topic, FaustGroup) as member:
        await until(lambda: len(member.seen) == 3 * PARTITIONS)
        tps = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        await until(lambda: all(member.group.position(tp).committed == 3 for tp in tps))
        await delete_topic(quick, topic)
        await create_topics(quick, topic, partitions=PARTITIONS)
        await publish(quick, topic, 7)
        await until(lambda: member.group.failed.done() or len(member.seen) >= 10 * PARTITIONS)
        seen = member.seen[3 * PARTITIONS :]
        if member.group.failed.done():
            assert topic in member.group.failed.result()
    async with joined(quick, topic, FaustGroup) as successor:
        await until(lambda: len(seen + successor.seen) >= 7 * PARTITIONS)
        assert {*seen, *successor.seen} == {(n, offset) for n in range(PARTITIONS) for offset in range(7)}
        assert not successor.group.failed.done()


async def test_a_committed_offset_of_a_topic_that_was_made_again_counts_for_nothing(
    quick: Settings, topic: str
) -> None:
    """A member that had not noticed yet may have committed to the new topic."""
    await publish(quick, topic, 3)
    async with joined(quick, topic, FaustGroup) as member:
        await until(lambda: len(member.seen) == 3 * PARTITIONS)
    notes = await commits(quick)
    await delete_topic(quick, topic)
    await create_topics(quick, topic, partitions=PARTITIONS)
    await publish(quick, topic, 7)
    await commit(quick, notes)
    assert await committed(quick, topic) == [3] * PARTITIONS
    async with joined(quick, topic, FaustGroup) as successor:
        await until(lambda: len(successor.seen) == 7 * PARTITIONS)
        tps = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        await until(lambda: all(successor.group.position(tp).committed == 7 for tp in tps))
    assert await committed(quick, topic) == [7] * PARTITIONS
