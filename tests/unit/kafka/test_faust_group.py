"""What Faust's consumer does in our group where its own would not."""

import asyncio
import time
from collections.abc import Iterable
from typing import Any, cast

import pytest
from aiokafka import TopicPartition
from aiokafka.structs import OffsetAndMetadata

from headwater.kafka import group_logs, leader_epochs
from headwater.kafka.batch import Batch
from headwater.kafka.commit_notes import CommitNote, note_text
from headwater.kafka.faust_group import FaustGroup
from headwater.messages import Gap
from headwater.settings import Settings

REQUESTS, CLICKS = TopicPartition("requests", 0), TopicPartition("clicks", 0)


class Broker:
    """What a broker without topic ids says of logs that end at ``end``, and of the group's commits."""

    def __init__(
        self, end: int, committed: int, gap: Gap | None = None, gap_at_ms: int = 0, epoch: int | None = None
    ) -> None:
        self.end, self.offset, self.note = end, committed, CommitNote(None, gap, gap_at_ms, epoch)
        self._coordinator, self.client = self, None

    async def end_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, self.end)

    async def fetch_committed_offsets(
        self, tps: Iterable[TopicPartition]
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        return dict.fromkeys(tps, OffsetAndMetadata(self.offset, note_text(self.note)))


async def handled(_: Batch) -> None:
    pass


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
    group.handle(CLICKS.topic, handled, remedy="Do this.")
    assert await group._logs.assigned(cast(Any, Broker(end=5, committed=9)), {REQUESTS, CLICKS}) == {
        REQUESTS: 0
    }
    assert await group._logs.assigned(cast(Any, Broker(end=9, committed=9)), {REQUESTS, CLICKS}) == {}


def leader_tells(monkeypatch: pytest.MonkeyPatch, ends: dict[int, int]) -> list[dict[TopicPartition, int]]:
    """Where the leader says that logs end in each epoch; returns what it is asked."""
    asked = []

    async def told(_: object, epochs: dict[TopicPartition, int]) -> dict[TopicPartition, int]:
        if epochs:
            asked.append(epochs)
        return {tp: ends[epoch] for tp, epoch in epochs.items()}

    monkeypatch.setattr(leader_epochs, "epoch_ends", told)
    monkeypatch.setattr(group_logs, "epoch_ends", told)
    return asked


async def test_requests_of_a_log_that_lost_its_end_and_has_grown_again_are_read_from_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = group_named("grown")
    group.handle(CLICKS.topic, handled, remedy="Do this.")
    asked = leader_tells(monkeypatch, {4: 6, 5: 9})
    both = {REQUESTS, CLICKS}
    assert await group._logs.assigned(cast(Any, Broker(end=90, committed=9, epoch=4)), both) == {REQUESTS: 6}
    assert await group._logs.assigned(cast(Any, Broker(end=90, committed=9, epoch=5)), both) == {}
    assert await group._logs.assigned(cast(Any, Broker(end=90, committed=9)), both) == {}
    assert asked == [{REQUESTS: 4}, {REQUESTS: 5}], "the owner of clicks asks for itself"


async def test_a_member_asks_once_for_each_leader_whether_the_log_still_has_what_it_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group, offsets = group_named("running"), []

    async def handle(batch: Batch) -> None:
        offsets.append(batch.last_offset)
        batch.finish()

    group.handle(CLICKS.topic, handle, remedy="Do this.")
    asked = leader_tells(monkeypatch, {4: 12, 5: 13})
    group._reader = cast(Any, Broker(end=90, committed=9))
    await group._logs.assigned(cast(Any, Broker(end=90, committed=9, epoch=4)), {CLICKS})
    group._ledger.start_at(CLICKS, 9)

    async def begun(stop: int, epoch: int | None) -> int | None:
        """The epoch that is committed from now on."""
        group._begin_batch(Batch(group._ledger, CLICKS, (), group.generation, stop=stop, leader_epoch=epoch))
        await asyncio.gather(*group._in_hand)
        return group._logs.leader_epoch(CLICKS)

    assert await begun(11, 4) == 4
    assert asked == []
    assert await begun(12, 5) == 5  # the log has epoch 4 up to 12, more than the 11 that were read
    assert await begun(13, None) is None, "what other clients read tells none"
    assert await begun(14, 5) == 5
    assert asked == [{CLICKS: 4}]
    assert not group.failed.done()
    assert await begun(20, 7) == 5  # but epoch 5 up to 13 only
    assert offsets == [10, 11, 12, 13]
    assert "read up to offset 14, and from 13 on" in group.failed.result()
    assert group.failed.result().endswith("Do this.")
    assert group._ledger.next_offset(CLICKS) == 14


async def test_a_gap_is_told_as_new_once_and_outlives_a_rebalance_that_comes_before_its_commit() -> None:
    group, gap, told = group_named("gaps"), Gap(3, 6), []
    group.on_lost(lambda tp, gap, is_new: told.append((tp, gap, is_new)))
    group.note_gap(CLICKS, gap)
    group.note_gap(CLICKS, gap)
    await group._logs.assigned(cast(Any, Broker(end=9, committed=9)), {CLICKS})
    assert told == [(CLICKS, gap, True), (CLICKS, gap, False), (CLICKS, gap, False)]
    assert group.gaps() == {CLICKS: gap}
    await group._logs.assigned(cast(Any, Broker(end=9, committed=9)), {REQUESTS})
    assert group.gaps() == {}


async def test_a_gap_is_forgotten_after_a_week() -> None:
    now_ms = int(time.time() * 1000.0)
    for age_ms, gap in ((0, Gap(3, 6)), (8 * 86_400_000, None)):
        group = group_named("weeks")
        broker = Broker(end=9, committed=9, gap=Gap(3, 6), gap_at_ms=now_ms - age_ms)
        await group._logs.assigned(cast(Any, broker), {CLICKS})
        assert group.gap(CLICKS) == gap
