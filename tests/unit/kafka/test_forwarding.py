"""Which partition a user belongs to, and how a stray finds its way there."""

import msgspec
import pytest
from aiokafka import ConsumerRecord
from hypothesis import given
from hypothesis import strategies as st

from headwater.kafka.forwarding import Origin, forwarded, origin_of
from headwater.kafka.partitioner import partition_of, partitions_of

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
    headers: tuple[tuple[str, bytes], ...] = (),
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
    assert origin_of(as_published(outgoing)) == Origin(3, 40, 1_234)


def test_a_record_that_was_published_where_it_lies_has_no_origin() -> None:
    assert origin_of(record()) is None
    assert origin_of(record(headers=(("trace", b"1"),))) is None


def test_an_origin_is_replaced_and_never_added_twice() -> None:
    once = as_published(forwarded(record(), b"ann"))
    twice = forwarded(once, b"ann")
    assert origin_of(as_published(twice, 2, 5)) == Origin(1, 9, 1_234)
    assert len(twice.headers) == 1


@pytest.mark.parametrize("value", [b"", b"\xff", b"[1,2]", b'["a",2,3]', b"{}", b"[" * 5000])
def test_a_header_that_only_looks_like_an_origin_is_none(value: bytes) -> None:
    assert origin_of(record(headers=(("headwater-origin", value),))) is None


def test_origins_are_numbers_in_the_order_of_their_fields() -> None:
    name, value = forwarded(record(), b"ann").headers[0]
    assert (name, msgspec.json.decode(value)) == ("headwater-origin", [3, 40, 1_234])
