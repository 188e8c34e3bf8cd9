"""What Faust's consumer does in our group where its own would not."""

import time
from collections.abc import Iterable
from typing import Any, cast

from aiokafka import TopicPartition
from aiokafka.structs import OffsetAndMetadata

from headwater.kafka.commit_notes import CommitNote, note_text
from headwater.kafka.faust_group import FaustGroup
from headwater.messages import Gap
from headwater.settings import Settings

REQUESTS, CLICKS = TopicPartition("requests", 0), TopicPartition("clicks", 0)


class Broker:
    """What a broker without topic ids says of logs that end at ``end``, and of the group's commits."""

    def __init__(self, end: int, committed: int, gap: Gap | None = None, gap_at_ms: int = 0) -> None:
        self.end, self.offset, self.note = end, committed, CommitNote(None, gap, gap_at_ms)
        self._coordinator, self.client = self, None

    async def end_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, self.end)

    async def fetch_committed_offsets(
        self, tps: Iterable[TopicPartition]
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        return dict.fromkeys(tps, OffsetAndMetadata(self.offset, note_text(self.note)))


def group_named(name: str) -> FaustGroup:
    return FaustGroup(name, Settings(kafka_bootstrap_servers="127.0.0.1:1"))


async def test_a_member_without_partitions_fetches_nothing_from_a_rebalance_until_faust_goes_on() -> None:
    group = FaustGroup("spare", Settings(kafka_bootstrap_servers="127.0.0.1:1"))
    consumer: Any = group._app.consumer
    consumer._active_partitions = {("clicks", 0)}
    told: list[tuple[set[object], bool]] = []

    async def revoked(partitions: set[object]) -> None:
        told.append((partitions, consumer.flow_active))

    consumer._on_partitions_revoked = revoked
    assert group._readable()
    await consumer.on_partitions_revoked(set())
    assert told == [(set(), False)]
    assert not group._readable()
    consumer.resume_flow()
    assert group._readable()


async def test_only_the_first_reason_to_fail_counts() -> None:
    group = FaustGroup("failing", Settings(kafka_bootstrap_servers="127.0.0.1:1"))
    group.fail("first")
    group.fail("second")
    assert group.failed.result() == "first"


async def test_a_log_of_requests_that_became_shorter_is_read_from_its_start() -> None:
    """Without this the group would fail at every start, until the log is as long as it was. Clicks have a stop of their own."""
    group = group_named("shorter")
    group.urgent.add(REQUESTS.topic)
    assert await group._take_notes(cast(Any, Broker(end=5, committed=9)), {REQUESTS, CLICKS}) == {REQUESTS}
    assert await group._take_notes(cast(Any, Broker(end=9, committed=9)), {REQUESTS, CLICKS}) == set()


async def test_a_gap_is_told_as_new_once_and_outlives_a_rebalance_that_comes_before_its_commit() -> None:
    group, gap, told = group_named("gaps"), Gap(3, 6), []
    group.on_lost(lambda tp, gap, is_new: told.append((tp, gap, is_new)))
    group.note_gap(CLICKS, gap)
    group.note_gap(CLICKS, gap)
    await group._take_notes(cast(Any, Broker(end=9, committed=9)), {CLICKS})
    assert told == [(CLICKS, gap, True), (CLICKS, gap, False), (CLICKS, gap, False)]
    assert group.gaps() == {CLICKS: gap}
    await group._take_notes(cast(Any, Broker(end=9, committed=9)), {REQUESTS})
    assert group.gaps() == {}


async def test_a_gap_is_forgotten_after_a_week() -> None:
    now_ms = int(time.time() * 1000.0)
    for age_ms, gap in ((0, Gap(3, 6)), (8 * 86_400_000, None)):
        group = group_named("weeks")
        broker = Broker(end=9, committed=9, gap=Gap(3, 6), gap_at_ms=now_ms - age_ms)
        await group._take_notes(cast(Any, broker), {CLICKS})
        assert group.gap(CLICKS) == gap
