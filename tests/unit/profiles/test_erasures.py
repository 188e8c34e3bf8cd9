"""Erased users: until when their events are dropped, and what their tombstones rest on."""

import random

from headwater.kafka.headers import APPLIED, ERASURE, AppliedOffset, Erasure
from headwater.profiles.erasures import Erased, Erasures
from headwater.profiles.order import UNTOLD, Order

MANY = 1_000


def test_a_user_who_was_never_erased_has_no_time() -> None:
    erasures = Erasures()
    assert (erasures.erased_ms(b"ann"), erasures.offset(b"ann", 0), erasures.get(b"ann")) == (0, -1, None)
    assert b"ann" not in erasures


def test_a_tombstone_says_until_when_by_whom_and_which_clicks_it_rests_on() -> None:
    erasures = Erasures()
    erasures.put(b"ann", Erased(5, Order(2, 30, 6)))
    (tombstone,) = erasures.tombstones([b"ann"], incarnation=2, epoch=7, now_ms=9_000)
    assert (tombstone.key, tombstone.value) == (b"ann", None)
    assert ERASURE.of(tombstone.headers) == Erasure(5, 7)
    assert APPLIED.of(tombstone.headers) == AppliedOffset(2, 30)
    assert erasures.get(b"ann") == Erased(5, Order(2, 30, 7), 9)


def test_an_offset_of_a_former_clicks_log_is_of_no_click() -> None:
    erasures = Erasures()
    erasures.put(b"ann", Erased(5, Order(1, 30, 6)))
    assert (erasures.offset(b"ann", 1), erasures.offset(b"ann", 2)) == (30, -1)
    erasures.tombstones([b"ann"], incarnation=2, epoch=7, now_ms=9_000)
    assert erasures.get(b"ann") == Erased(5, Order(2, -1, 7), 9)


def test_a_tombstone_of_an_earlier_version_does_not_tell_its_offset() -> None:
    erasures = Erasures()
    erasures.put(b"ann", Erased(5, Order(0, UNTOLD, 6), 1_000))
    assert erasures.offset(b"ann", 0) == -1


def test_erasures_are_forgotten_once_their_tombstones_may_be_gone_and_those_without_one_are_not() -> None:
    erasures = Erasures()
    erasures.put(b"unwritten", Erased(5, Order(0, 1, 1)))
    for number in range(4):
        erasures.put(f"user {number}".encode(), Erased(5, Order(0, 1, 1), 1_000 + number))
    erasures.put(b"user 0", Erased(6, Order(0, 1, 1), 1_004))  # erased again
    assert erasures.sweep(1_002_000) == 1
    assert all(user in erasures for user in (b"unwritten", b"user 0", b"user 2", b"user 3"))
    assert len(erasures) == 4
    assert erasures.sweep(10_000_000) == 3
    assert len(erasures) == 1


def test_of_many_erasures_each_is_the_newest_of_its_user() -> None:
    erasures, expected, draw = Erasures(), dict[bytes, Erased](), random.Random(5)
    for number in range(5 * MANY):
        user = f"user {draw.randrange(2 * MANY)}".encode()
        written_s = draw.choice((None, number))
        erased = Erased(
            draw.randrange(2**48), Order(draw.randrange(2**16), draw.randrange(-2, 2**47), number), written_s
        )
        erasures.put(user, erased)
        expected[user] = erased
    assert {user: erasures.get(user) for user in expected} == expected
    assert len(erasures) == len(expected) > MANY
    assert erasures.get(b"ann") is None


def test_of_many_erasures_the_old_are_forgotten_and_those_that_are_not_written_stay() -> None:
    erasures = Erasures()
    for number in range(4 * MANY):
        erasures.put(f"user {number}".encode(), Erased(5, Order(0, 1, 1), number))
        erasures.put(f"unwritten {number}".encode(), Erased(6, Order(0, 1, 1)))
    assert erasures.sweep(3_000 * MANY) == 3 * MANY
    assert len(erasures) == 5 * MANY
    assert b"user 5" not in erasures
    assert erasures.get(b"unwritten 5") == Erased(6, Order(0, 1, 1))
    last = 4 * MANY - 1
    assert erasures.get(f"user {last}".encode()) == Erased(5, Order(0, 1, 1), last)


def test_a_few_old_erasures_of_many_wait_until_it_is_worth_while_to_take_them_out() -> None:
    erasures = Erasures()
    for number in range(MANY):
        erasures.put(f"user {number}".encode(), Erased(5, Order(0, 1, 1), number))
    assert erasures.sweep(50 * MANY) == 0
    assert erasures.sweep(500 * MANY) == MANY // 2


def test_an_erasure_takes_thirty_bytes_and_no_id() -> None:
    erasures = Erasures()
    for number in range(4 * MANY):
        erasures.put(f"user {number}".encode(), Erased(5, Order(0, 1, 1), number))
    assert erasures._rows.nbytes <= 30 * len(erasures)


def test_numbers_that_no_owner_writes_are_cut() -> None:
    erasures = Erasures()
    erasures.put(b"ann", Erased(-5, Order(0, 2**63 - 1, 1), 2**40))
    assert erasures.get(b"ann") == Erased(0, Order(0, 2**48 - 3, 1), 2**32 - 2)
