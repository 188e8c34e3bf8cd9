"""Foreign writes on the changelog are read, and what they overwrote is written again."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Any, cast

import numpy as np
import pytest
from aiokafka import ConsumerRecord

from headwater.errors import PartitionLost, StopWorker
from headwater.kafka import epochs
from headwater.kafka.epochs import claim_record
from headwater.kafka.headers import CLAIM, Claim
from headwater.profiles.columns import Columns
from headwater.profiles.erasures import Erased
from headwater.profiles.order import Order
from headwater.profiles.partition import Partition
from headwater.profiles.repair import Repair
from headwater.profiles.restore import load
from headwater.profiles.sealed import Sealed
from headwater.profiles.state_records import WriterStamp, empty_record, orders_of, pack
from tests.support.interests_worker import GENERATION, InterestsWorker
from tests.support.recorded_reader import RecordedReader


@pytest.fixture
async def worker() -> AsyncIterator[InterestsWorker]:
    worker = InterestsWorker({"tea": "Green tea"})
    yield worker
    await worker.close()


def newer(known: ConsumerRecord) -> ConsumerRecord:
    """The record in a format that this version does not know."""
    return dataclasses.replace(known, value=b"\x09" + known.value[1:])


def foreign(
    worker: InterestsWorker, offset: int, user: bytes, epoch: int, applied: int = -1
) -> ConsumerRecord:
    """A record that another worker wrote in that epoch."""
    columns = Columns(worker.encoder.log_length, worker.encoder.state_size)
    row = columns.add(user)
    columns.offset[row] = applied
    (value,) = pack(columns, np.array([row]), WriterStamp(1, epoch, worker.profiles.bundle))
    return ConsumerRecord(worker.topics.profiles, 0, offset, 0, 0, user, value, None, 0, 0, ())


def repairing(worker: InterestsWorker, *records: ConsumerRecord) -> tuple[Repair, Partition]:
    """Of a changelog that holds these records."""
    reader = cast(Any, RecordedReader(records))
    profiles = worker.profiles
    repair = Repair(
        worker.topics.profiles,
        reader,
        asyncio.Lock(),
        profiles._write,
        profiles._write_sealed,
        profiles._claim_again,
        worker.metrics,
        worker._is_member,
        profiles.bundle,
    )
    return repair, worker.partition()


async def test_users_that_others_overwrote_are_written_again_and_the_gap_is_filled(
    worker: InterestsWorker,
) -> None:
    await worker.apply(worker.click("ann", "tea"), worker.click("bob", "tea"))
    ours = worker.producer.records(worker.topics.profiles)
    late = [foreign(worker, 2, b"ann", GENERATION - 1), foreign(worker, 3, b"ann", GENERATION - 2)]
    repair, partition = repairing(worker, *ours, *late, foreign(worker, 4, b"bob", GENERATION - 1))
    partition.gaps.add(2)
    await repair.fill(partition, 2, 4, GENERATION)
    again = worker.producer.records(worker.topics.profiles)[len(ours) :]
    assert [record.key for record in again] == [b"ann"]  # bob's lies behind the gap
    assert orders_of([again[0].value])[0].epoch == GENERATION
    assert partition.gaps == set()
    assert worker.measured("fenced_records_total") == 1


async def test_an_erased_user_whom_others_wrote_is_erased_again(worker: InterestsWorker) -> None:
    worker.partition().erasures.put(b"ann", Erased(5, Order(0, 3, GENERATION), 1_000))
    repair, partition = repairing(worker, foreign(worker, 0, b"ann", GENERATION - 1))
    await repair.fill(partition, 0, 1, GENERATION)
    (again,) = worker.producer.records(worker.topics.profiles)
    assert (again.key, again.value) == (b"ann", None)


async def test_a_sealed_user_whom_others_overwrote_gets_the_same_record_again(
    worker: InterestsWorker,
) -> None:
    """Though an erasure of before is remembered, no tombstone may take what this version cannot read."""
    sealed = newer(foreign(worker, 0, b"ann", GENERATION - 1, applied=3))
    late, junk = foreign(worker, 1, b"ann", GENERATION - 2), foreign(worker, 2, b"ann", GENERATION - 2)
    repair, partition = repairing(worker, sealed, late, dataclasses.replace(junk, value=b"junk"))
    load(partition, [sealed], worker.profiles.bundle, worker.topics.profiles)
    partition.erasures.put(b"ann", Erased(5, Order(0, 1, GENERATION - 2), 1_000))
    partition.gaps.add(1)
    await repair.fill(partition, 1, 3, GENERATION)
    (again,) = worker.producer.records(worker.topics.profiles)
    assert (again.key, again.value) == (b"ann", sealed.value)
    assert partition.sealed == {b"ann": Sealed(Order(0, 3, GENERATION - 1), again.offset)}
    assert partition.gaps == set()


async def test_of_a_sealed_user_a_record_of_a_higher_order_is_believed(worker: InterestsWorker) -> None:
    """Nothing is known of the user here that would be more."""
    sealed = newer(foreign(worker, 0, b"ann", GENERATION - 1, applied=3))
    higher = newer(foreign(worker, 1, b"ann", GENERATION - 1, applied=4))
    repair, partition = repairing(worker, sealed, higher)
    load(partition, [sealed], worker.profiles.bundle, worker.topics.profiles)
    await repair.fill(partition, 1, 2, GENERATION)
    assert worker.producer.records(worker.topics.profiles) == []
    assert partition.sealed == {b"ann": Sealed(Order(0, 4, GENERATION - 1), 1)}


async def test_a_foreign_record_of_a_newer_format_is_overwritten_with_what_is_known(
    worker: InterestsWorker,
) -> None:
    await worker.apply(worker.click("ann", "tea"))
    ours = worker.producer.records(worker.topics.profiles)
    repair, partition = repairing(worker, *ours, newer(foreign(worker, 1, b"ann", GENERATION - 1)))
    await repair.fill(partition, 1, 2, GENERATION)
    assert [each.value for each in worker.producer.records(worker.topics.profiles)] == [ours[0].value] * 2


async def test_a_gap_with_users_nobody_knows_stays_a_gap(worker: InterestsWorker) -> None:
    """It is read again when the partition is opened: its users may be those of an owner in between."""
    repair, partition = repairing(worker, foreign(worker, 0, b"ann", GENERATION))
    partition.gaps.add(0)
    await repair.fill(partition, 0, 1, GENERATION)
    assert partition.gaps == {0}
    assert worker.producer.records(worker.topics.profiles) == []


@pytest.mark.parametrize(
    ("claimed", "is_stale"),
    [
        (Claim(GENERATION - 1, topic_id="aa"), True),
        (Claim(GENERATION, topic_id="bb"), True),
        (Claim(GENERATION, incarnation=7, topic_id="aa"), True),
        (Claim(GENERATION, topic_id="aa"), False),
    ],
)
async def test_a_stale_claim_is_overwritten_and_the_gap_is_filled(
    worker: InterestsWorker, claimed: Claim, is_stale: bool
) -> None:
    seen = claim_record(claimed, empty_record(claimed.epoch, worker.profiles.bundle))
    late = ConsumerRecord(
        worker.topics.profiles, 0, 0, 0, 0, seen.key, seen.value, None, 0, 0, tuple(seen.headers)
    )
    repair, partition = repairing(worker, late)
    partition.claim = Claim(GENERATION, topic_id="aa")
    partition.gaps.add(0)
    await repair.fill(partition, 0, 1, GENERATION)
    assert partition.gaps == set()
    again = worker.producer.records(worker.topics.profiles)
    assert [CLAIM.of(record.headers) for record in again] == ([partition.claim] if is_stale else [])
    assert partition.claim == Claim(GENERATION, applied=partition.claim.applied, topic_id="aa")


async def test_a_record_of_a_later_epoch_stops_the_worker(
    worker: InterestsWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epochs, "_REBALANCE_S", 0.0)
    repair, partition = repairing(worker, foreign(worker, 0, b"ann", GENERATION + 1))
    with pytest.raises(StopWorker, match=r"offset 0 was written in epoch 5, expected at most ours, 4"):
        await repair.fill(partition, 0, 1, GENERATION)


async def test_what_nobody_who_owns_the_partition_wrote_in_a_higher_epoch_is_passed_over_and_out_claimed(
    worker: InterestsWorker,
) -> None:
    worker.is_member = True
    await worker.apply(worker.click("ann", "tea"))
    ours = worker.producer.records(worker.topics.profiles)
    seen = claim_record(Claim(GENERATION + 5, 7, 2**62, "bb"), empty_record(0, worker.profiles.bundle))
    forged = ConsumerRecord(
        worker.topics.profiles, 0, 1, 0, 0, seen.key, seen.value, None, 0, 0, tuple(seen.headers)
    )
    repair, partition = repairing(worker, *ours, forged, foreign(worker, 2, b"ann", GENERATION + 3))
    partition.claim = Claim(GENERATION, topic_id="aa")
    partition.gaps.add(1)
    await repair.fill(partition, 1, 3, GENERATION)
    again = worker.producer.records(worker.topics.profiles)[len(ours) :]
    claim, state = CLAIM.of(again[0].headers), orders_of([again[1].value])[0]
    assert isinstance(claim, Claim)
    assert (claim.epoch, claim.incarnation, claim.topic_id) == (GENERATION + 6, 0, "aa")
    assert (again[1].key, state.epoch) == (b"ann", GENERATION + 6)
    assert (partition.epoch, partition.gaps) == (GENERATION + 6, set())
    assert worker.measured("skipped_records_total", topic=worker.topics.profiles, reason="foreign_epoch") == 2


async def test_a_later_epoch_is_none_of_its_business_once_the_partition_is_gone(
    worker: InterestsWorker,
) -> None:
    repair, partition = repairing(worker, foreign(worker, 0, b"ann", GENERATION + 1))
    partition.owned = False
    with pytest.raises(PartitionLost):
        await repair.fill(partition, 0, 1, GENERATION)


async def test_a_damaged_record_is_overwritten_with_what_is_known_of_its_user(
    worker: InterestsWorker,
) -> None:
    await worker.apply(worker.click("ann", "tea"))
    junk = ConsumerRecord(worker.topics.profiles, 0, 1, 0, 0, b"ann", b"junk", None, 0, 0, ())
    headless = ConsumerRecord(
        worker.topics.profiles,
        0,
        2,
        0,
        0,
        b"ann",
        None,
        None,
        0,
        0,
        [("headwater-forgot-ms", b"[1,2147483647]")],
    )
    repair, partition = repairing(worker, *worker.producer.records(worker.topics.profiles), junk, headless)
    await repair.fill(partition, 1, 3, GENERATION)
    assert [record.value is None for record in worker.producer.records(worker.topics.profiles)] == [
        False,
        False,
    ]


async def test_overwritten_users_are_noted_no_more_once_they_are_written(worker: InterestsWorker) -> None:
    await worker.apply(worker.click("ann", "tea"))
    repair, partition = repairing(worker)
    partition.overwritten = {b"ann", b"bob"}
    assert await repair.write_again(partition, {b"ann"}, GENERATION)
    assert partition.overwritten == {b"bob"}
    assert not await repair.write_again(partition, {b"bob"}, GENERATION)
    assert partition.overwritten == set()


async def test_a_quiet_partition_is_audited_up_to_its_end_and_a_busy_one_is_not(
    worker: InterestsWorker,
) -> None:
    repair, partition = repairing(worker, foreign(worker, 0, b"ann", GENERATION))
    assert await repair._end_if_quiet(partition) == 1
    partition.changelog_done = asyncio.get_running_loop().create_future()
    assert await repair._end_if_quiet(partition) is None
