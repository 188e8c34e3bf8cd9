"""The partitions of a worker: kept, frozen, written with their generation, and rid of users past their time."""

from collections.abc import AsyncIterator

import numpy as np
import pytest

from headwater.errors import PartitionLost
from headwater.kafka.epochs import CLAIM_KEY
from headwater.kafka.headers import APPLIED, CLAIM, ERASURE, AppliedOffset, Claim, Erasure
from headwater.profiles.state_records import orders_of
from headwater.profiles.store import _expired
from tests.support.interests_worker import GENERATION, InterestsWorker, now_ms


@pytest.fixture
async def worker() -> AsyncIterator[InterestsWorker]:
    worker = InterestsWorker({"tea": "Green tea"})
    yield worker
    await worker.close()


async def test_users_and_tombstones_are_sent_with_the_epoch_and_the_offset_they_rest_on(
    worker: InterestsWorker,
) -> None:
    partition = worker.partition()
    row = partition.row_of(b"ann")
    partition.columns.offset[partition.row_of(b"bob")] = 8
    partition.erase(b"bob", 5)
    sent = await worker.profiles.send(partition, np.array([row]), [b"bob"], GENERATION)
    await worker.profiles.settle(partition, sent, GENERATION)
    ann, bob = worker.producer.records(worker.topics.profiles)
    assert (ann.key, orders_of([ann.value])) == (b"ann", [(0, -1, GENERATION)])
    assert (bob.key, bob.value, ERASURE.of(bob.headers)) == (b"bob", None, Erasure(5, GENERATION))
    assert APPLIED.of(bob.headers) == AppliedOffset(0, 8)
    assert partition.columns.epoch[row] == GENERATION
    assert partition.changelog_next == 2


async def test_nothing_is_sent_for_a_partition_that_is_gone(worker: InterestsWorker) -> None:
    partition = worker.partition()
    rows = np.array([partition.row_of(b"ann")])
    worker.profiles.freeze()
    with pytest.raises(PartitionLost):
        await worker.profiles.send(partition, rows, [], GENERATION)
    assert worker.profiles.partition(0) is None
    assert worker.producer.records(worker.topics.profiles) == []


async def test_a_segment_is_closed_by_the_claim_again_with_what_is_applied_now(
    worker: InterestsWorker,
) -> None:
    partition = worker.partition()
    partition.claim = Claim(GENERATION, topic_id="aa")
    partition.erase(partition.columns.users[partition.row_of(b"bob")], 5)
    partition.watermark = 8
    await worker.profiles.close_segment(0)
    (record,) = worker.producer.records(worker.topics.profiles)
    assert record.key == CLAIM_KEY
    assert CLAIM.of(record.headers) == partition.claim == Claim(GENERATION, applied=8, topic_id="aa")
    worker.profiles.freeze()
    await worker.profiles.close_segment(0)
    assert len(worker.producer.records(worker.topics.profiles)) == 1


async def test_only_users_whose_newest_event_is_too_old_expire(worker: InterestsWorker) -> None:
    start_ms = now_ms() - 10_000_000
    await worker.apply(
        worker.click("old", "tea", at_ms=start_ms),
        worker.click("back", "tea", at_ms=start_ms),
        worker.click("back", "tea", at_ms=start_ms + 5_000),
        worker.click("marked", "tea", at_ms=start_ms),
        worker.click("marked", action="dislike", item_id="soap", at_ms=start_ms + 5_000),
    )
    assert _expired(worker.partition(), start_ms + 1_000) == {b"old": start_ms}
    assert _expired(worker.partition(), start_ms) == {}
