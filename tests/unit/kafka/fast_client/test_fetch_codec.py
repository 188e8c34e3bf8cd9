"""Both forms of a fetch say the same: ours, and aiokafka's own, field by field."""

from io import BytesIO
from struct import error as StructError
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.protocol.fetch import FetchRequest, FetchRequest_v4, FetchRequest_v11, FetchResponse_v11
from hypothesis import given
from hypothesis import strategies as st

from headwater.kafka.fast_client.fetch_codec import FastFetch

KAFKA = {1: (4, 17)}
I32, I64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
NAMES = st.text(max_size=12)
ASKED = st.lists(st.tuples(NAMES, st.lists(st.tuples(I32, I64, I32), max_size=3)), max_size=3)
HEARD = st.lists(
    st.tuples(
        NAMES,
        st.lists(
            st.tuples(
                I32,
                st.integers(-1, 100),
                I64,
                I64,
                I64,
                st.lists(st.tuples(I64, I64), max_size=3),
                I32,
                st.binary(max_size=9),
            ),
            max_size=4,
        ),
    ),
    max_size=3,
)


def fetch(asked: Any) -> FetchRequest:
    return FetchRequest(500, 1, 52_428_800, 1, asked, rack_id="eu-1")


class Assignment:
    """Knows the same ends of every partition, of all records and of the committed ones, or none yet."""

    def __init__(self, end: int | None = None, stable: int | None = None) -> None:
        self._end, self._stable = end, stable

    def state_value(self, _: object) -> SimpleNamespace:
        return SimpleNamespace(highwater=self._end, lso=self._stable)


def read(data: bytes, assignment: Assignment | None = None) -> Any:
    return (
        FastFetch(fetch([]), assignment or Assignment(), {})
        .prepare(KAFKA)
        .RESPONSE_TYPE.decode(BytesIO(data))
    )


def heard(topics: Any) -> bytes:
    return bytes(FetchResponse_v11(7, 0, 3, topics).encode())


@given(ASKED)
def test_a_request_has_the_bytes_of_aiokafka(asked: Any) -> None:
    theirs = fetch(asked)
    ours = FastFetch(theirs, Assignment(), {})
    assert ours.topics == theirs.topics
    assert ours.prepare(KAFKA).encode() == theirs.build(FetchRequest_v11).encode()


@given(HEARD)
def test_an_answer_is_read_as_aiokafka_reads_it(topics: Any) -> None:
    data = heard(topics)
    assert vars(read(data)) == vars(FetchResponse_v11.decode(data))
    assert read(data).API_VERSION == 11


@given(HEARD, I64)
def test_what_is_left_out_has_no_news(topics: Any, end: int) -> None:
    theirs = FetchResponse_v11.decode(heard(topics)).topics
    ends = [partition[2:4] for _, partitions in theirs for partition in partitions]
    known = ends[0] if ends else (end, end)
    news = [
        (topic, [each for each in partitions if each[1] != 0 or each[2:4] != known or each[-1]])
        for topic, partitions in theirs
    ]
    assert read(heard(topics), Assignment(*known)).topics == news


@given(HEARD, st.data())
def test_an_answer_that_is_cut_short_is_an_error(topics: Any, data: Any) -> None:
    whole = heard(topics)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises((ValueError, StructError)):
        read(cut)


def test_no_records_and_no_transactions_may_be_told_as_null() -> None:
    (topic,) = read(heard([("clicks", [(0, 0, 5, 5, 0, None, -1, None)])])).topics
    assert topic == ("clicks", [(0, 0, 5, 5, 0, [], -1, b"")])


def test_an_older_broker_is_asked_in_its_own_version() -> None:
    asked = FastFetch(fetch([("clicks", [(0, 5, 100)])]), Assignment(), {}).prepare({1: (0, 4)})
    assert type(asked) is FetchRequest_v4


def test_the_end_of_a_transaction_is_news_although_the_log_has_not_grown() -> None:
    """Offsets 3 and 4 have become readable: without it, they would count as held back for ever."""
    answer = heard([("clicks", [(0, 0, 5, 5, 0, None, -1, None)])])
    assert read(answer, Assignment(5, 5)).topics == [("clicks", [])]
    assert read(answer, Assignment(5, 3)).topics == [("clicks", [(0, 0, 5, 5, 0, [], -1, b"")])]
