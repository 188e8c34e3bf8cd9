"""Users read from the changelog: the newest record wins, in whatever order they come, and whoever wrote them."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
from aiokafka import ConsumerRecord

from headwater.kafka.epochs import CLAIM_KEY, MAX_EPOCH, claim_record
from headwater.kafka.headers import APPLIED, ERASURE, AppliedOffset, Claim, Erasure
from headwater.profiles.clicks_log import ACCEPT_KEY
from headwater.profiles.columns import Columns
from headwater.profiles.order import MAX_INCARNATION, Order
from headwater.profiles.partition import Partition
from headwater.profiles.restore import load
from headwater.profiles.sealed import Sealed
from headwater.profiles.state_records import WriterStamp, empty_record, pack

BUNDLE, TOPIC = 99, "profiles.v1"


def record(
    offset: int, user: bytes | None, value: bytes | None, *headers: tuple[str, bytes | None]
) -> ConsumerRecord:
    return ConsumerRecord(TOPIC, 0, offset, 7_000, 0, user, value, None, 0, 0, headers)


def state(
    offset: int, user: bytes, epoch: int, clicks_offset: int, *, incarnation: int = 0, n: int = 1
) -> ConsumerRecord:
    columns = Columns(4, 2)
    row = columns.add(user)
    columns.offset[row], columns.n[row], columns.at_ms[row, :n] = clicks_offset, n, 1
    (value,) = pack(columns, np.array([row]), WriterStamp(1, epoch, BUNDLE, incarnation))
    return record(offset, user, value)


def tombstone(
    offset: int, user: bytes, erased_ms: int, epoch: int, clicks_offset: int | None, *, incarnation: int = 0
) -> ConsumerRecord:
    """One without a clicks offset is of a version without epochs."""
    headers = [ERASURE.header(Erasure(erased_ms, epoch))]
    if clicks_offset is not None:
        headers.append(APPLIED.header(AppliedOffset(incarnation, clicks_offset)))
    return record(offset, user, None, *headers)


def claim(offset: int, epoch: int, **fields: Any) -> ConsumerRecord:
    outgoing = claim_record(Claim(epoch, **fields), empty_record(epoch, BUNDLE))
    return record(offset, outgoing.key, outgoing.value, *outgoing.headers)


@pytest.fixture
async def partition() -> Partition:
    return Partition(0, log_length=4, state_size=2)


def loaded(partition: Partition, *records: ConsumerRecord) -> int:
    return load(partition, records, BUNDLE, TOPIC)


def offset_of(partition: Partition, user: bytes) -> int:
    return int(partition.columns.offset[partition.columns.rows[user]])


@pytest.mark.parametrize("at_once", [True, False])
async def test_the_record_that_rests_on_most_clicks_wins_whatever_generation_wrote_it(
    partition: Partition, at_once: bool
) -> None:
    """A group whose offsets expired begins at generation 1 again."""
    records = [
        state(0, b"ann", 12, 3),
        state(1, b"ann", 1, 8),
        state(2, b"ann", 1, 9),
        state(3, b"ann", 12, 4),
    ]
    for batch in [records] if at_once else [[each] for each in records]:
        loaded(partition, *batch)
    assert offset_of(partition, b"ann") == 9
    assert partition.overwritten == {b"ann"}
    assert partition.highest_epoch == 12


async def test_of_records_that_rest_on_the_same_clicks_the_one_of_the_highest_epoch_wins(
    partition: Partition,
) -> None:
    loaded(partition, state(0, b"ann", 5, 3, n=2), state(1, b"ann", 4, 3))
    assert partition.columns.n[partition.columns.rows[b"ann"]] == 2
    assert partition.overwritten == {b"ann"}


async def test_a_user_who_is_written_again_is_overwritten_no_more(partition: Partition) -> None:
    loaded(partition, state(0, b"ann", 2, 8), state(1, b"ann", 1, 4))
    loaded(partition, state(2, b"ann", 3, 9))
    assert (offset_of(partition, b"ann"), partition.overwritten) == (9, set())


def holds(partition: Partition, user: bytes) -> bool:
    return user in partition.columns.rows


@pytest.mark.parametrize("late", [state(2, b"ann", 12, 3), state(2, b"ann", 2, 4), state(2, b"ann", 1, 5)])
async def test_a_tombstone_erases_and_no_late_record_brings_the_user_back(
    partition: Partition, late: ConsumerRecord
) -> None:
    """Of an owner before the group began anew, a copy of the state that was erased, or of a former owner."""
    loaded(partition, state(0, b"ann", 1, 3))
    loaded(partition, tombstone(1, b"ann", 77, 2, 5))
    loaded(partition, late)
    assert not holds(partition, b"ann")
    assert partition.erasures.erased_ms(b"ann") == 77
    assert partition.overwritten == {b"ann"}
    loaded(partition, state(3, b"ann", 1, 9))
    assert offset_of(partition, b"ann") == 9


async def test_a_copy_of_the_very_state_that_was_erased_does_not_undo_it(partition: Partition) -> None:
    loaded(partition, state(0, b"ann", 2, 5), tombstone(1, b"ann", 77, 2, 5), state(2, b"ann", 2, 5))
    assert not holds(partition, b"ann")
    assert partition.overwritten == {b"ann"}


async def test_tombstones_of_earlier_versions_are_ordered_by_their_generation(partition: Partition) -> None:
    loaded(partition, state(0, b"ann", 1, 3), tombstone(1, b"ann", 77, 2, None), state(2, b"ann", 1, 4))
    assert not holds(partition, b"ann")
    loaded(partition, state(3, b"ann", 2, 9))
    assert holds(partition, b"ann")


async def test_the_newest_record_is_the_same_in_whatever_order_they_come() -> None:
    records = [
        state(0, b"ann", 4, 3),
        state(0, b"ann", 1, 8),
        tombstone(0, b"ann", 77, 2, 8),
        state(0, b"ann", 2, 6),
    ]
    for order in itertools.permutations(records):
        partition = Partition(0, log_length=4, state_size=2)
        for each in order:
            loaded(partition, each)
        assert not holds(partition, b"ann"), order


async def test_a_tombstone_of_somebody_else_erases_without_a_time(partition: Partition) -> None:
    loaded(partition, state(0, b"ann", -1, 3), record(1, b"ann", None))
    assert not holds(partition, b"ann")
    assert b"ann" not in partition.erasures


async def test_users_of_whom_nothing_is_known_are_not_kept_and_written_off(partition: Partition) -> None:
    """Earlier versions kept those who had impressions only."""
    loaded(partition, state(0, b"ann", 2, 3, n=0), state(1, b"bob", 2, 4))
    assert list(partition.columns.rows) == [b"bob"]
    assert partition.overwritten == {b"ann"}
    assert partition.erasures.offset(b"ann", 0) == 3


DAMAGED: Sequence[tuple[str, bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...]]] = [
    ("no state", b"ann", b"junk", ()),
    ("a state cut short", b"ann", cast(bytes, state(0, b"ann", 1, 3).value)[:-1], ()),
    ("an epoch that none of ours can be", b"ann", state(0, b"ann", MAX_EPOCH + 1, 3).value, ()),
    (
        "an incarnation that none of ours can be",
        b"ann",
        state(0, b"ann", 1, 3, incarnation=MAX_INCARNATION + 1).value,
        (),
    ),
    ("no erasure", b"ann", None, (("headwater-forgot-ms", b"nonsense"),)),
    ("a null erasure", b"ann", None, (("headwater-forgot-ms", None),)),
    ("an erasure of another epoch", b"ann", None, (("headwater-forgot-ms", b"[9,2147483647]"),)),
    ("no offset", b"ann", None, (("headwater-forgot-ms", b"[9,9]"), ("headwater-applied", b"[0]"))),
    ("no claim", CLAIM_KEY, empty_record(1, BUNDLE), (("headwater-claim", b"[]"),)),
    ("a claim without its header", CLAIM_KEY, empty_record(1, BUNDLE), ()),
    ("no user", b"\xff\xfe", state(0, b"ann", 1, 3).value, ()),
    ("an empty user", b"", state(0, b"ann", 1, 3).value, ()),
    ("a null user", None, state(0, b"ann", 1, 3).value, ()),
    ("a null user's erasure", None, None, ()),
    ("a user whose name is too long", b"a" * 513, state(0, b"ann", 1, 3).value, ()),
]


@pytest.mark.parametrize(
    ("key", "value", "headers"), [each[1:] for each in DAMAGED], ids=[d[0] for d in DAMAGED]
)
async def test_a_damaged_record_is_passed_over_and_its_user_keeps_what_is_known(
    partition: Partition, key: bytes | None, value: bytes | None, headers: Any
) -> None:
    damaged = record(1, key, value, *headers)
    assert loaded(partition, state(0, b"ann", 2, 8), damaged, state(2, b"bob", 2, 9)) == 1
    assert list(partition.columns.rows) == [b"ann", b"bob"]
    assert offset_of(partition, b"ann") == 8
    assert partition.overwritten == ({b"ann"} if key == b"ann" else set())
    assert partition.highest_epoch == 2


async def test_a_damaged_record_alone_leaves_its_user_unknown(partition: Partition) -> None:
    assert loaded(partition, record(0, b"ann", b"junk"), state(1, b"bob", 2, 9)) == 1
    assert list(partition.columns.rows) == [b"bob"]


def of_newer_format(known: ConsumerRecord) -> ConsumerRecord:
    return dataclasses.replace(known, value=b"\x09" + known.value[1:])


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_user_whose_newest_record_is_of_a_newer_format_is_sealed_and_nobody_else(
    partition: Partition, at_once: bool
) -> None:
    """A rollback, or anybody who may publish: no worker ends, and nothing older is taken for what is known."""
    records = [
        tombstone(0, b"ann", 77, 1, 1),
        state(1, b"ann", 1, 3),
        of_newer_format(state(2, b"ann", 2, 8)),
        state(3, b"bob", 2, 4),
        state(4, b"ann", 1, 5),
    ]
    for batch in [records] if at_once else [[each] for each in records]:
        assert loaded(partition, *batch) == 0
    assert list(partition.columns.rows) == [b"bob"]
    assert partition.sealed == {b"ann": Sealed(Order(0, 8, 2), 2)}
    assert (partition.overwritten, partition.highest_epoch) == ({b"ann"}, 2)


async def test_a_seal_ends_with_a_newer_record_that_can_be_read_or_erases(partition: Partition) -> None:
    loaded(partition, of_newer_format(state(0, b"ann", 1, 3)), of_newer_format(state(1, b"bob", 1, 4)))
    loaded(partition, state(2, b"ann", 2, 8), tombstone(3, b"bob", 77, 2, 9))
    assert (offset_of(partition, b"ann"), partition.erasures.erased_ms(b"bob")) == (8, 77)
    assert partition.sealed == {}


async def test_an_older_record_of_a_newer_format_changes_nothing(partition: Partition) -> None:
    loaded(partition, state(0, b"ann", 2, 8), of_newer_format(state(1, b"ann", 1, 3)))
    assert (offset_of(partition, b"ann"), partition.sealed, partition.overwritten) == (8, {}, {b"ann"})


async def test_an_erasure_that_is_dated_years_ahead_holds_up_to_its_record(partition: Partition) -> None:
    now_ms = 1_800_000_000_000
    erased = tombstone(0, b"ann", now_ms + 3_650 * 86_400_000, 1, 5)
    loaded(partition, dataclasses.replace(erased, timestamp=now_ms))
    assert partition.erasures.erased_ms(b"ann") == now_ms


async def test_the_claim_of_the_highest_epoch_is_the_newest_wherever_it_stands(partition: Partition) -> None:
    loaded(partition, claim(0, 3, topic_id="aa"), claim(1, 2, topic_id="bb"))
    assert partition.claim == Claim(3, topic_id="aa")
    loaded(partition, record(2, ACCEPT_KEY, None), claim(3, 2, topic_id="bb"))
    assert (partition.claim, partition.log_is_accepted) == (Claim(3, topic_id="aa"), True)
    loaded(partition, claim(4, 3, applied=5))
    assert (partition.claim, partition.log_is_accepted) == (Claim(3, applied=5), False)
