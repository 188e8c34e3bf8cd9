"""What may be committed: finished batches, in order, of partitions that are still ours."""

from collections.abc import Sequence

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from headwater.kafka.batch import Batch
from headwater.kafka.commit_ledger import CommitLedger

TP, OTHER = TopicPartition("clicks", 0), TopicPartition("clicks", 1)


@pytest.fixture
def released() -> list[bool]:
    return []


@pytest.fixture
def ledger(released: list[bool]) -> CommitLedger:
    return CommitLedger(lambda: released.append(True))


def begun(ledger: CommitLedger, *offsets: int, tp: TopicPartition = TP) -> Batch:
    records = [ConsumerRecord(*tp, offset, 0, 0, b"k", b"v", None, 1, 1, ()) for offset in offsets]
    batch = Batch(ledger, tp, records, generation=1)
    ledger.begin(batch)
    return batch


def test_nothing_may_be_committed_before_a_batch_is_finished(ledger: CommitLedger) -> None:
    begun(ledger, 0, 1)
    assert ledger.next_offset(TP) is None
    assert ledger.committable() == {}


def test_a_finished_batch_may_be_committed_up_to_its_last_record(ledger: CommitLedger) -> None:
    begun(ledger, 5, 6, 7).finish()
    assert ledger.committable() == {TP: 8}


def test_a_batch_may_end_behind_its_records_or_have_none(ledger: CommitLedger) -> None:
    record = ConsumerRecord(*TP, 5, 0, 0, b"k", b"v", None, 1, 1, ())
    for batch, end in ((Batch(ledger, TP, [record], 1, stop=7), 7), (Batch(ledger, TP, [], 1, stop=9), 9)):
        ledger.begin(batch)
        batch.finish()
        assert ledger.committable() == {TP: end}


def test_a_batch_that_finishes_early_waits_for_the_older_ones(ledger: CommitLedger) -> None:
    first, second, third = (begun(ledger, offset) for offset in (0, 1, 2))
    third.finish()
    assert ledger.next_offset(TP) is None
    first.finish()
    assert ledger.next_offset(TP) == 1
    second.finish()
    assert ledger.next_offset(TP) == 3


def test_offsets_that_hold_no_record_are_no_obstacle(ledger: CommitLedger) -> None:
    """Markers of transactions, and what compaction removed."""
    begun(ledger, 0, 4).finish()
    begun(ledger, 9, 20).finish()
    assert ledger.next_offset(TP) == 21


def test_partitions_do_not_wait_for_each_other(ledger: CommitLedger) -> None:
    begun(ledger, 0)
    begun(ledger, 7, tp=OTHER).finish()
    assert ledger.committable() == {OTHER: 8}


def test_a_partition_is_busy_until_its_newest_batch_is_released(
    ledger: CommitLedger, released: list[bool]
) -> None:
    first = begun(ledger, 0)
    assert ledger.busy == {TP}
    first.release()
    assert ledger.busy == set()
    assert released == [True]
    begun(ledger, 1)
    first.finish()
    assert ledger.busy == {TP}
    assert released == [True]


def test_finishing_releases(ledger: CommitLedger, released: list[bool]) -> None:
    begun(ledger, 0).finish()
    assert ledger.busy == set()
    assert released == [True]


def test_a_batch_of_a_revoked_partition_can_neither_be_committed_nor_released(
    ledger: CommitLedger, released: list[bool]
) -> None:
    before = begun(ledger, 0)
    ledger.forget()
    before.finish()
    assert ledger.committable() == {}
    again = begun(ledger, 0)
    before.release()
    before.finish()
    assert ledger.busy == {TP}
    assert ledger.next_offset(TP) is None
    assert released == []
    again.finish()
    assert ledger.next_offset(TP) == 1


def test_a_batch_that_is_finished_twice_counts_once(ledger: CommitLedger) -> None:
    first = begun(ledger, 0)
    second = begun(ledger, 1)
    first.finish()
    first.finish()
    assert ledger.next_offset(TP) == 1
    second.finish()
    second.finish()
    assert ledger.next_offset(TP) == 2


@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), st.randoms())
def test_in_whatever_order_batches_finish_exactly_the_finished_beginning_may_be_committed(
    sizes: Sequence[int], random: "st.random.Random"
) -> None:
    ledger, start, batches = CommitLedger(), 0, []
    for size in sizes:
        batches.append(begun(ledger, *range(start, start + size)))
        start += size + 1  # a gap
    order = list(batches)
    random.shuffle(order)
    finished: set[int] = set()
    for batch in order:
        batch.finish()
        finished.add(batches.index(batch))
        whole = next((n for n in range(len(batches)) if n not in finished), len(batches))
        expected = batches[whole - 1].last_offset + 1 if whole else None
        assert ledger.next_offset(TP) == expected
