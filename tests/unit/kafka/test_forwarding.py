"""Which partition a user belongs to, and how a stray finds its way there."""

import pytest
from aiokafka import ConsumerRecord
from hypothesis import given
from hypothesis import strategies as st

from headwater.kafka.dead_letters import DeadLetter
from headwater.kafka.fast_client.records import MAX_HEADERS
from headwater.kafka.forwarding import Stray, forward, forwarded, redirect
from headwater.kafka.headers import ORIGIN, Origin
from headwater.kafka.partitioner import partition_of, partitions_of, probe_user
from headwater.messages import PROBE_PREFIX
from tests.support.recording_producer import RecordingProducer

# From UtilsTest of Apache Kafka: what every Java producer computes.
JAVA_MURMUR2 = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


def record(
    partition: int = 3,
    offset: int = 40,
    value: bytes | None = b"{}",
    headers: tuple[tuple[str, bytes | None], ...] = (),
) -> ConsumerRecord:
    return ConsumerRecord("clicks", partition, offset, 1_234, 0, b"ann", value, None, 3, 2, headers)


def as_published(outgoing: object, partition: int = 1, offset: int = 9) -> ConsumerRecord:
    return record(partition, offset, outgoing.value, tuple(outgoing.headers))  # type: ignore[attr-defined]


@pytest.mark.parametrize(("key", "hashed"), JAVA_MURMUR2.items(), ids=lambda value: str(value)[:30])
@pytest.mark.parametrize("partitions", [1, 4, 7])
def test_users_belong_where_javas_partitioner_puts_them(key: bytes, hashed: int, partitions: int) -> None:
    expected = (hashed & 0x7FFFFFFF) % partitions
    assert partition_of(key, partitions) == expected
    assert partitions_of([b"another", key], partitions)[1] == expected


@given(st.lists(st.binary(max_size=40)), st.integers(1, 100))
def test_many_keys_belong_where_each_belongs(keys: list[bytes], partitions: int) -> None:
    assert partitions_of(keys, partitions) == [partition_of(key, partitions) for key in keys]


def test_a_forwarded_record_carries_where_it_came_from_and_is_otherwise_the_same() -> None:
    outgoing = forwarded(record(headers=(("trace", b"1"),)), b"ann")
    assert (outgoing.key, outgoing.value) == (b"ann", b"{}")
    assert ("trace", b"1") in outgoing.headers
    assert ORIGIN.of(as_published(outgoing).headers) == Origin(3, 40, 1_234)


def test_a_record_that_was_published_where_it_lies_has_no_origin() -> None:
    assert ORIGIN.of(record().headers) is None
    assert ORIGIN.of(record(headers=(("trace", b"1"),)).headers) is None


def test_an_origin_is_replaced_and_never_added_twice() -> None:
    once = as_published(forwarded(record(), b"ann"))
    twice = forwarded(once, b"ann")
    assert ORIGIN.of(as_published(twice, 2, 5).headers) == Origin(1, 9, 1_234)
    assert len(twice.headers) == 1


def test_a_stray_is_forwarded_once_and_then_a_dead_letter() -> None:
    once = redirect(record(), b"ann", 2)
    assert isinstance(once, Stray)
    again = redirect(as_published(once.outgoing), b"ann", 2)
    assert isinstance(again, DeadLetter)
    assert again.reason == "misrouted"


def test_a_stray_with_as_many_headers_as_are_read_is_forwarded_once() -> None:
    once = redirect(record(headers=((("trace", b""),) * MAX_HEADERS)), b"ann", 2)
    assert isinstance(once, Stray)
    read = as_published(once.outgoing)
    read = record(read.partition, read.offset, read.value, read.headers[:MAX_HEADERS])
    assert isinstance(redirect(read, b"ann", 2), DeadLetter)


@pytest.mark.parametrize("value", [None, b"", b"\xff", b"[1,2]", b"[1099511627776,5,0]", b"[" * 5000])
def test_a_header_that_only_looks_like_an_origin_is_replaced(value: bytes | None) -> None:
    sent = redirect(record(headers=(("headwater-origin", value),)), b"ann", 2)
    assert isinstance(sent, Stray)
    assert sent.outgoing.headers == [("headwater-origin", b"[3,40,1234]")]


async def test_a_stray_that_its_origin_makes_too_large_is_a_dead_letter() -> None:
    producer = RecordingProducer()
    producer.most_bytes = 1_000
    strays = [
        Stray(each, forwarded(each, b"ann")) for each in (record(), record(offset=41, value=bytes(990)))
    ]
    [letter] = await forward(producer, "clicks", strays)  # type: ignore[arg-type]
    assert (letter.record.offset, letter.reason) == (41, "too_large")
    assert [sent.value for sent in producer.records("clicks")] == [b"{}"]


@pytest.mark.parametrize("partitions", [1, 4, 97])
def test_each_partition_has_a_user_of_its_own_to_probe_it(partitions: int) -> None:
    users = [probe_user(number, partitions) for number in range(partitions)]
    assert partitions_of(users, partitions) == list(range(partitions))
    assert all(user.startswith(PROBE_PREFIX.encode()) for user in users)
