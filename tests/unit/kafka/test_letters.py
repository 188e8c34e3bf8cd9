"""What the records of the dead-letter topic say of each letter: whole or not, waiting, redriven, or taken out."""

from dataclasses import dataclass, field

import pytest
from aiokafka import ConsumerRecord

from headwater.kafka.headers import Header, RedrivenTo, dead_letter_headers
from headwater.kafka.letters import (
    Letter,
    Letters,
    Place,
    Wanted,
    groups,
    letter_of,
    mark_of,
    original_headers,
)

DEAD = "headwater.dead-letters.v1"


@dataclass
class Topic:
    """Records of the dead-letter topic, and the letters as they leave them."""

    letters: Letters = field(default_factory=Letters)
    end: int = 0

    def write(
        self, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]], at_ms: int = 0
    ) -> None:
        record = ConsumerRecord(DEAD, 0, self.end, at_ms, 0, key, value, None, 0, 0, tuple(headers))
        self.letters.add(record)
        self.end += 1

    def put(
        self,
        offset: int,
        reason: str = "bad_json",
        topic: str = "clicks",
        key: bytes | None = b"ann",
        at_ms: int = 0,
        original: tuple[Header, ...] = (),
    ) -> None:
        headers = dead_letter_headers(reason, "why", topic, 3, offset, key, original=original)
        self.write(f"{topic}/3/{offset}".encode(), b"{", headers, at_ms)

    def mark(self, letter: Letter) -> None:
        marked = mark_of(letter, RedrivenTo(1, 70, 5_000))
        self.write(marked.key, marked.value, list(marked.headers))


def test_a_letter_waits_until_it_is_redriven_or_taken_out() -> None:
    topic = Topic()
    for offset in (40, 41, 42):
        topic.put(offset)
    topic.mark(topic.letters.open()[0])
    topic.write(b"clicks/3/41", None, [("reason", b"purged")])
    assert [letter.place.offset for letter in topic.letters.open()] == [42]
    [mark] = topic.letters.redriven()
    assert (mark.place, mark.redriven_to) == (Place("clicks", 3, 40), RedrivenTo(1, 70, 5_000))


def test_a_mark_keeps_nothing_of_the_original_or_its_user() -> None:
    topic = Topic()
    topic.put(40, original=(("trace", b"ann"),))
    marked = mark_of(topic.letters.open()[0], RedrivenTo(1, 70, 5_000))
    assert (marked.key, marked.value) == (b"clicks/3/40", None)
    assert b"ann" not in b"".join(value or b"" for _, value in marked.headers)


def test_a_letter_that_a_worker_writes_again_stays_marked() -> None:
    topic = Topic()
    topic.put(40)
    topic.mark(topic.letters.open()[0])
    topic.put(40)
    assert topic.letters.open() == []


def test_what_is_no_letter_is_passed_over() -> None:
    topic = Topic()
    topic.put(40)
    topic.write(b"closed", None, [("reason", b"erased")])
    topic.write(None, b"x", [])
    topic.write(b"k", b"x", [("topic", b"clicks"), ("partition", b"one"), ("offset", None)])
    topic.write(b"\xff/3/\xff", None, [])
    assert len(topic.letters.open()) == 1


def test_a_letter_is_found_by_its_original_and_by_itself() -> None:
    topic = Topic()
    topic.put(40)
    topic.put(41)
    found = topic.letters.at(Place("clicks", 3, 41), DEAD)
    assert found is not None
    assert found == topic.letters.at(Place(DEAD, 0, 1), DEAD)
    assert topic.letters.at(Place(DEAD, 1, 1), DEAD) is None
    assert topic.letters.at(Place("clicks", 3, 42), DEAD) is None


def letter(**fields: object) -> Letter:
    headers = dead_letter_headers("bad_json", "why", "clicks", 3, 40, **{"key": b"ann", **fields})  # type: ignore[arg-type]
    found = letter_of(ConsumerRecord(DEAD, 0, 7, 9, 0, b"clicks/3/40", b"{", None, 0, 0, tuple(headers)))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("fields", "lacks"),
    [
        ({}, ""),
        ({"key": None}, ""),
        ({"cut_from_bytes": 3_000_000}, "cut"),
        ({"key": b"k" * 2_000}, "cut"),
        ({"original": [("big", b"v" * 5_000)]}, "cut"),
        ({"original": [("fits", b"v" * 4_000)]}, ""),
        ({"last_offset": 49}, "unreadable"),
    ],
)
def test_a_letter_says_what_it_lacks_of_its_original(fields: dict[str, object], lacks: str) -> None:
    assert letter(**fields).lacks == lacks


def test_tries_are_counted_also_where_the_other_headers_were_left_out() -> None:
    redriven = ("headwater-redriven", b'["clicks",3,12,2]')
    assert letter(original=[redriven, ("big", b"v" * 5_000)]).tries == 2
    assert letter(original=[("headwater-redriven", b'["clicks",3,12,"x"]')]).tries == 0
    assert letter().tries == 0


def test_headers_of_the_original_come_back_as_they_were() -> None:
    original: list[tuple[str, bytes | None]] = [
        ("trace", b"1"),
        ("trace", b"2"),
        ("none", None),
        ("key", b"k"),
    ]
    headers = dead_letter_headers("bad_json", "why", "clicks", 3, 40, b"ann", original=original)
    assert original_headers(headers) == original
    assert dict(headers)["key"] == b"ann"


def test_filters_are_anded() -> None:
    found = letter()
    assert Wanted().takes(found)
    assert Wanted(reasons=("bad_json",), topics=("clicks",), since_ms=9, key=b"ann").takes(found)
    for other in (
        Wanted(reasons=("misrouted",)),
        Wanted(topics=("catalog",)),
        Wanted(since_ms=10),
        Wanted(key=b"bob"),
    ):
        assert not other.takes(found)


def test_letters_are_grouped_by_reason_and_topic_the_largest_group_first() -> None:
    topic = Topic()
    topic.put(1, "misrouted", at_ms=5)
    topic.put(2, at_ms=7)
    topic.put(3, at_ms=6, original=(("headwater-redriven", b'["clicks",3,1,1]'),))
    topic.put(4, topic="catalog", at_ms=8)
    bad, catalog, misrouted = groups(topic.letters.open())
    assert (bad.reason, bad.topic, bad.letters, bad.failed_again) == ("bad_json", "clicks", 2, 1)
    assert (bad.oldest_ms, bad.newest_ms, bad.newest.place.offset) == (6, 7, 2)
    assert (catalog.topic, catalog.letters) == ("catalog", 1)
    assert misrouted.reason == "misrouted"


@pytest.mark.parametrize("text", ["clicks", "clicks/1", "clicks/x/1", "clicks/1/-2", "/1/2", "clicks/1/", ""])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Place.parse(text)


def test_a_place_is_read_as_it_is_written() -> None:
    place = Place("headwater.clicks.v1", 3, 40)
    assert Place.parse(str(place)) == place
