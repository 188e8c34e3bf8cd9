"""Answers out of a connection's bytes, however these come; real brokers send them in tests/end_to_end."""

import asyncio
import gc
from collections import deque
from typing import Any

import pytest
from aiokafka.conn import CloseReason
from hypothesis import given
from hypothesis import strategies as st

from headwater.kafka.fast_client.eager_frames import parse_eagerly


class Connection:
    """Keeps the answers that it is given."""

    host, port = "broker", 9092

    def __init__(self, reader: Any = None) -> None:
        self._reader = reader or asyncio.StreamReader()
        self._requests: deque[Any] = deque()
        self.answers: list[bytes] = []
        self.closed: tuple[Any, Any] | None = None

    def _handle_frame(self, answer: bytes) -> None:
        if answer == b"bad":
            raise ValueError("no sense")
        self.answers.append(answer)

    def close(self, reason: Any, exc: Any) -> None:
        self._reader, self.closed = None, (reason, exc)


def framed(*answers: bytes) -> bytes:
    return b"".join(len(answer).to_bytes(4, "big") + answer for answer in answers)


@given(st.lists(st.binary(max_size=9), max_size=5), st.lists(st.integers(1, 12), max_size=20))
def test_however_the_bytes_come_the_answers_are_the_same(answers: list[bytes], sizes: list[int]) -> None:
    async def run() -> None:
        connection = Connection()
        parse_eagerly(connection)
        reader, coming = connection._reader, framed(*answers)
        for size in [*sizes, len(coming)]:
            reader.feed_data(coming[:size])
            coming = coming[size:]
        assert connection.answers == answers

    asyncio.run(run())


async def test_each_is_handled_before_whoever_brought_it_goes_on() -> None:
    connection = Connection()
    parse_eagerly(connection)
    connection._reader.feed_data(framed(b"one") + b"\0\0")
    assert connection.answers == [b"one"]
    connection._reader.feed_data(b"\0\3two")
    assert connection.answers == [b"one", b"two"]


async def test_while_an_answer_may_have_been_read_in_part_the_stream_goes_on() -> None:
    connection = Connection()
    connection._requests.append("asked")
    parse_eagerly(connection)
    connection._reader.feed_data(framed(b"one"))
    assert await connection._reader.readexactly(7) == framed(b"one")
    connection._requests.clear()
    parse_eagerly(connection)
    connection._reader.feed_data(framed(b"two"))
    assert connection.answers == [b"two"]


async def test_who_asks_again_loses_nothing_that_has_come() -> None:
    connection = Connection()
    parse_eagerly(connection)
    connection._reader.feed_data(framed(b"answer")[:6])
    parse_eagerly(connection)
    connection._reader.feed_data(framed(b"answer")[6:])
    assert connection.answers == [b"answer"]


async def test_an_answer_that_makes_no_sense_ends_the_connection_and_what_follows_it_is_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    connection = Connection()
    parse_eagerly(connection)
    connection._reader.feed_data(framed(b"good", b"bad", b"late"))
    assert connection.answers == [b"good"]
    assert connection.closed is not None
    assert connection.closed[0] is CloseReason.CONNECTION_BROKEN
    assert isinstance(connection.closed[1], ValueError)
    assert caplog.messages == ["response_failed"]


async def test_the_end_of_a_connection_is_still_told_by_its_reader() -> None:
    connection = Connection()
    reading = asyncio.ensure_future(connection._reader.readexactly(4))  # as aiokafka's task does
    await asyncio.sleep(0)
    parse_eagerly(connection)
    connection._reader.feed_data(framed(b"one"))
    connection._reader.feed_eof()
    with pytest.raises(asyncio.IncompleteReadError):
        await reading
    assert connection.answers == [b"one"]


async def test_a_connection_that_nobody_holds_goes() -> None:
    connection = Connection()
    parse_eagerly(connection)
    reader, answers = connection._reader, connection.answers
    del connection
    gc.collect()
    reader.feed_data(framed(b"one"))
    assert answers == []


def test_one_that_is_not_open_is_left_alone() -> None:
    parse_eagerly(None)
    connection = Connection(reader=object())
    connection._reader = None
    parse_eagerly(connection)
