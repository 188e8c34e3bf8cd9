"""Record headers: what is written is read again, and foreign bytes are told from both absent and valid ones."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.kafka.headers import (
    APPLIED,
    CLAIM,
    CORRELATION_HEADERS,
    DELETE,
    ERASURE,
    ORIGIN,
    REPLY_TO_HEADERS,
    AppliedOffset,
    BadHeader,
    Claim,
    DeleteOrder,
    Erasure,
    Headers,
    Origin,
    ReplyTo,
    correlation_of,
    dead_letter_headers,
    header,
    reply_partition_header,
    reply_partition_of,
    reply_to_of,
)

Parser = Callable[[Headers], object]
PARSERS: dict[str, Parser] = {
    "headwater-origin": ORIGIN.of,
    "headwater-delete": DELETE.of,
    "headwater-forgot-ms": ERASURE.of,
    "headwater-applied": APPLIED.of,
    "headwater-claim": CLAIM.of,
    "reply_to": reply_to_of,
    "reply_partition": reply_partition_of,
    "kafka_replyPartition": reply_partition_of,
    "correlation_id": correlation_of,
}
NO_JSON = [None, b"", b"\xff", b"null", b"{}", b"[]", b'"x"', b"[" * 100_000, b'["a",2,3]', b"[1.5,2,3]"]

int32 = st.integers(0, 2**31 - 1)
int64 = st.integers(0, 2**63 - 1)
timestamp = st.integers(-(2**63), 2**63 - 1)


@given(int32, int64, timestamp)
def test_an_origin_comes_back(partition: int, offset: int, timestamp_ms: int) -> None:
    origin = Origin(partition, offset, timestamp_ms)
    assert ORIGIN.of([("trace", b"1"), ORIGIN.header(origin)]) == origin


@given(int32)
def test_a_reply_partition_comes_back(partition: int) -> None:
    ours = reply_partition_header(partition)
    springs = ("kafka_replyPartition", partition.to_bytes(4, "big"))
    assert [reply_partition_of([each]) for each in (ours, springs)] == [
        (partition, ours),
        (partition, springs),
    ]


@given(int32, int64, st.none() | st.integers(0, 2**53))
def test_the_order_of_a_delete_comes_back(partition: int, offset: int, version: int | None) -> None:
    order = DeleteOrder(partition=partition, offset=offset, version=version)
    assert DELETE.of([DELETE.header(order)]) == order


@given(timestamp, st.integers(-1, 2**31 - 1))
def test_an_erasure_comes_back(erased_ms: int, generation: int) -> None:
    assert ERASURE.of([ERASURE.header(Erasure(erased_ms, generation))]) == (erased_ms, generation)


def test_the_bytes_on_the_wire_stay_what_they_are() -> None:
    assert ORIGIN.header(Origin(3, 40, 1_234)) == ("headwater-origin", b"[3,40,1234]")
    assert ERASURE.header(Erasure(1_234, 7)) == ("headwater-forgot-ms", b"[1234,7]")
    assert DELETE.header(DeleteOrder(partition=2, offset=40)) == (
        "headwater-delete",
        b'{"version":null,"partition":2,"offset":40}',
    )


@pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS)
def test_an_absent_header_is_none(parser: Parser) -> None:
    assert parser([]) is None
    assert parser([("trace", b"1")]) is None


@pytest.mark.parametrize("value", NO_JSON, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("name", sorted(name for name in PARSERS if name.startswith("headwater-")))
def test_a_value_that_is_not_ours_is_invalid_with_a_reason(name: str, value: bytes | None) -> None:
    found = PARSERS[name]([(name, value)])
    assert isinstance(found, BadHeader)
    assert found.name == name
    assert f"header {name}: got " in found.reason
    assert "expected" in found.reason
    assert len(found.reason) < 250


def test_more_than_we_would_ever_write_is_not_parsed() -> None:
    padded = b"[3," + b" " * 1_021 + b"5,1700000000000]"
    assert isinstance(ORIGIN.of([("headwater-origin", padded)]), BadHeader)


@pytest.mark.parametrize(
    "value",
    [
        b"[1099511627776,5,0]",
        b"[-1,5,0]",
        b"[1,-1,0]",
        b"[1,9223372036854775808,0]",
        b"[1,5,9223372036854775808]",
    ],
)
def test_numbers_beyond_kafkas_fields_are_no_origin(value: bytes) -> None:
    assert isinstance(ORIGIN.of([("headwater-origin", value)]), BadHeader)


@pytest.mark.parametrize("value", [b"[0,2147483648]", b"[9223372036854775808,1]", b"[1,2,3]", b"[1]"])
def test_numbers_beyond_kafkas_fields_are_no_erasure(value: bytes) -> None:
    assert isinstance(ERASURE.of([("headwater-forgot-ms", value)]), BadHeader)


@pytest.mark.parametrize("place", ["-1", "2147483648", "1.0", "true", "null"])
def test_numbers_beyond_kafkas_fields_are_no_order_of_a_delete(place: str) -> None:
    value = f'{{"partition":{place},"offset":1}}'.encode()
    assert isinstance(DELETE.of([("headwater-delete", value)]), BadHeader)


@given(st.sampled_from(sorted(PARSERS)), st.none() | st.binary(max_size=40))
def test_no_bytes_make_a_parser_raise(name: str, value: bytes | None) -> None:
    PARSERS[name]([(name, value)])


def test_the_first_of_two_headers_of_a_name_counts() -> None:
    twice = [ORIGIN.header(Origin(1, 2, 3)), ORIGIN.header(Origin(4, 5, 6))]
    assert ORIGIN.of(twice) == Origin(1, 2, 3)


@pytest.mark.parametrize("name", CORRELATION_HEADERS)
@pytest.mark.parametrize("value", [b"7", b"", b"\xff", None])
def test_correlation_is_read_under_each_of_its_names_and_echoed_as_it_came(
    name: str, value: bytes | None
) -> None:
    assert correlation_of([("x", b"0"), (name, value)]) == (name, value)


def test_header_names_are_compared_exactly() -> None:
    assert header([("Correlation_ID", b"7")], *CORRELATION_HEADERS) is None


@pytest.mark.parametrize("name", REPLY_TO_HEADERS)
def test_the_reply_topic_is_read_under_each_of_its_names(name: str) -> None:
    assert reply_to_of([(name, "mine-ü".encode())]) == ReplyTo(name, "mine-ü")


@pytest.mark.parametrize(("value", "seen"), [(None, "null"), (b"\xffa", r"b'\xffa'")])
def test_a_reply_topic_that_is_no_text_is_invalid(value: bytes | None, seen: str) -> None:
    found = reply_to_of([("reply_to", value)])
    assert isinstance(found, BadHeader)
    assert seen in found.reason


def test_a_dead_letter_says_why_and_where_its_original_lies() -> None:
    headers = dict(dead_letter_headers("bad_json", "\ud800" + "x" * 2_000, "clicks", 3, 40, None))
    assert headers == {
        "reason": b"bad_json",
        "message": b"\\ud800" + b"x" * 999,
        "topic": b"clicks",
        "partition": b"3",
        "offset": b"40",
    }
    assert (
        dict(dead_letter_headers("r", "m", "clicks", 3, 40, None, cut_from_bytes=5))["cut_from_bytes"] == b"5"
    )
    assert dict(dead_letter_headers("r", "m", "clicks", 3, 40, b"\xff" * 5_000))["key"] == b"\xff" * 1_024


@given(st.builds(Claim, int32, st.integers(0, 2**16 - 1), int64, st.none() | st.text(max_size=30)))
def test_a_claim_comes_back(claim: Claim) -> None:
    assert CLAIM.of([CLAIM.header(claim)]) == claim


def test_the_applied_offset_of_a_tombstone_comes_back() -> None:
    assert APPLIED.header(AppliedOffset(2, -1)) == ("headwater-applied", b"[2,-1]")
    assert APPLIED.of([("headwater-applied", b"[2,-1]")]) == (2, -1)
    assert isinstance(APPLIED.of([("headwater-applied", b"[2,-2]")]), BadHeader)
