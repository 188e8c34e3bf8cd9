"""Erased users: until when their events are dropped, and what their tombstones rest on."""

from headwater.kafka.headers import AppliedOffset, Erasure, applied_of, erasure_of
from headwater.profiles.erasures import Erased, Erasures
from headwater.profiles.order import UNTOLD, Order


def test_a_user_who_was_never_erased_has_no_time() -> None:
    erasures = Erasures()
    assert (erasures.erased_ms(b"ann"), erasures.offset(b"ann", 0), erasures.get(b"ann")) == (0, -1, None)
    assert b"ann" not in erasures


def test_a_tombstone_says_until_when_by_whom_and_which_clicks_it_rests_on() -> None:
    erasures = Erasures()
    erasures.put(b"ann", Erased(5, Order(2, 30, 6)))
    (tombstone,) = erasures.tombstones([b"ann"], incarnation=2, epoch=7, now_ms=1_000)
    assert (tombstone.key, tombstone.value) == (b"ann", None)
    assert erasure_of(tombstone.headers) == Erasure(5, 7)
    assert applied_of(tombstone.headers) == AppliedOffset(2, 30)
    assert erasures.get(b"ann") == Erased(5, Order(2, 30, 7), 1_000)


def test_an_offset_of_a_former_clicks_log_is_of_no_click() -> None:
    erasures = Erasures()
    erasures.put(b"ann", Erased(5, Order(1, 30, 6)))
    assert (erasures.offset(b"ann", 1), erasures.offset(b"ann", 2)) == (30, -1)
    erasures.tombstones([b"ann"], incarnation=2, epoch=7, now_ms=1_000)
    assert erasures.get(b"ann") == Erased(5, Order(2, -1, 7), 1_000)


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
    assert erasures.sweep(1_002) == 1
    assert set(erasures) == {b"unwritten", b"user 0", b"user 2", b"user 3"}
    assert erasures.sweep(10_000) == 3
    assert len(erasures) == 1
