"""Erased users: until when their events are dropped, and who wrote so."""

from headwater.kafka.headers import Erasure, erasure_of
from headwater.profiles.erasures import UNWRITTEN, Erasures


def test_a_user_who_was_never_erased_has_no_time_and_no_generation() -> None:
    erasures = Erasures()
    assert (erasures.erased_ms(b"ann"), erasures.generation(b"ann")) == (0, UNWRITTEN)
    assert b"ann" not in erasures


def test_an_erasure_has_no_generation_until_it_is_written() -> None:
    erasures = Erasures()
    erasures.put(b"ann", 5)
    assert (erasures.erased_ms(b"ann"), erasures.generation(b"ann")) == (5, UNWRITTEN)
    (tombstone,) = erasures.tombstones([b"ann"], generation=7)
    assert (tombstone.key, tombstone.value) == (b"ann", None)
    assert erasure_of(tombstone.headers) == Erasure(5, 7)
    assert erasures.generation(b"ann") == 7


def test_a_second_erasure_keeps_the_generation_of_the_first_until_it_is_written() -> None:
    """A record that an older generation writes late must not undo it meanwhile."""
    erasures = Erasures()
    erasures.put(b"ann", 5, generation=7)
    erasures.put(b"ann", 9)
    assert (erasures.erased_ms(b"ann"), erasures.generation(b"ann")) == (9, 7)
