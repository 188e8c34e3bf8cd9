"""One partition: who owns it, how far it is, what of the changelog it has seen, and who waits."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from headwater.errors import PartitionLost, StopWorker
from headwater.profiles import partition as partitions
from headwater.profiles.partition import Partition
from headwater.profiles.row_file import DiskFull


@pytest.fixture
async def partition() -> Partition:
    partition = Partition(3, log_length=4, state_size=2)
    partition.owned, partition.generation = True, 7
    return partition


async def test_records_that_follow_each_other_leave_no_gap(partition: Partition) -> None:
    assert partition.mark_seen(0, 3) is None
    assert partition.mark_seen(3, 5) is None
    assert (partition.changelog_next, partition.gaps) == (5, set())


async def test_a_gap_begins_at_the_first_unseen_offset(partition: Partition) -> None:
    partition.mark_seen(0, 3)
    assert partition.mark_seen(6, 8) == 3
    assert (partition.changelog_next, partition.gaps) == (8, {3})


async def test_what_was_seen_already_moves_nothing_back(partition: Partition) -> None:
    partition.mark_seen(0, 9)
    assert partition.mark_seen(2, 4) is None
    assert partition.changelog_next == 9


async def test_reading_again_begins_at_the_first_gap(partition: Partition) -> None:
    partition.mark_seen(0, 3)
    partition.mark_seen(6, 8)
    partition.mark_seen(9, 10)
    partition.rewind_to_first_gap()
    assert (partition.changelog_next, partition.gaps) == (3, set())


async def test_only_the_owner_of_the_generation_may_go_on(partition: Partition) -> None:
    partition.require(7)
    with pytest.raises(PartitionLost):
        partition.require(6)
    partition.owned = False
    with pytest.raises(PartitionLost):
        partition.require(7)


async def test_it_serves_once_it_is_owned_and_open(partition: Partition) -> None:
    assert not partition.is_serving()
    partition.gate.open()
    assert partition.is_serving()
    partition.owned = False
    assert not partition.is_serving()


async def test_an_erased_user_who_comes_back_has_an_empty_row_that_knows_the_time(
    partition: Partition,
) -> None:
    row = partition.row_of(b"ann")
    assert partition.row_of(b"ann") == row
    partition.columns.offset[row] = 70
    partition.erase(b"ann", 1_000)
    assert b"ann" not in partition.columns.rows
    back = partition.row_of(b"ann")
    assert (partition.columns.forgotten_ms[back], partition.columns.offset[back]) == (1_000, 70)
    assert partition.columns.n[back] == 0


async def test_a_disk_without_room_for_a_user_stops_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk = Partition(0, log_length=4, state_size=2, folder=tmp_path)

    def full(*_: object) -> int:
        raise DiskFull("no room: make room")

    monkeypatch.setattr(on_disk.columns, "add", full)
    with pytest.raises(StopWorker, match="no room: make room"):
        on_disk.row_of(b"ann")


async def test_events_that_came_into_no_log_count_as_seen_the_newest_of_them(
    partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "_MAX_UNLOGGED", 2)
    row = partition.row_of(b"ann")
    partition.remember_unlogged(np.array([row] * 3), np.array([11, 12, 13], dtype=np.uint64))
    assert [partition.has_seen(b"ann", event) for event in (11, 12, 13)] == [False, True, True]
    assert not partition.has_seen(b"bob", 13)


async def test_listeners_hear_what_was_applied(partition: Partition) -> None:
    heard = []
    partition.listeners.append(lambda of, events: heard.append((of.applied, events)))
    partition.mark_applied(5)
    partition.mark_applied(3)  # a batch that came again
    assert heard == [(5, None), (5, None)]


async def test_a_waiter_goes_on_when_the_watermark_is_there(partition: Partition) -> None:
    waiting = asyncio.ensure_future(partition.reached(5, timeout_s=60))
    await asyncio.sleep(0)
    partition.move_watermark(4)
    await asyncio.sleep(0)
    assert not waiting.done()
    partition.move_watermark(5)
    assert await waiting
    assert await partition.reached(2, timeout_s=60)


async def test_a_waiter_learns_that_it_takes_too_long_or_that_the_partition_goes(
    partition: Partition,
) -> None:
    assert not await partition.reached(5, timeout_s=0)
    waiting = asyncio.ensure_future(partition.reached(5, timeout_s=60))
    await asyncio.sleep(0)
    partition.owned = False
    partition.wake()
    with pytest.raises(PartitionLost):
        await waiting
