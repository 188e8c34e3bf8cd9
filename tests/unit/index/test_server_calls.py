"""A server that may be away: reads give up soon and are then refused, until a look at it is answered."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc.aio import AioRpcError, Metadata

from headwater.index import IndexUnavailable, server_calls
from headwater.index.server_calls import Calls

NEVER = 1_000.0


class Server:
    """Answers with its own number of calls, or fails, or takes its time."""

    def __init__(self) -> None:
        self.asked = self.looks = 0
        self.delay_s = 0.0
        self.code: grpc.StatusCode | None = None

    async def read(self) -> int:
        self.asked += 1
        return await self._answer(self.asked)

    async def look(self) -> int:
        self.looks += 1
        return await self._answer(self.looks)

    async def _answer(self, value: int) -> int:
        await asyncio.sleep(self.delay_s)
        if self.code is not None:
            raise AioRpcError(self.code, Metadata(), Metadata(), details="told to fail")
        return value


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(server_calls, "LOOK_S", 0.01)
    monkeypatch.setattr(server_calls, "LOOK_UP_S", 0.05)
    return Server()


@pytest_asyncio.fixture
async def client(server: Server) -> AsyncIterator[Calls]:
    client = Calls("the server", server.look, timeout_s=1.0, tries=2)
    yield client
    await client.close()


async def back(client: Calls, server: Server) -> int:
    """Read until there is an answer."""
    deadline = time.monotonic() + 10.0
    while True:
        try:
            return await client.prompt(0.05, server.read)
        except IndexUnavailable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)


async def test_a_server_that_answers_is_never_looked_for(client: Calls, server: Server) -> None:
    assert [await client.prompt(1.0, server.read) for _ in range(3)] == [1, 2, 3]
    assert server.looks == 0


async def test_an_answer_that_lies_there_while_our_own_loop_stands_is_in_time(
    client: Calls, server: Server
) -> None:
    server.delay_s = 0.01
    reading = asyncio.create_task(client.prompt(0.05, server.read))
    while not server.asked:
        await asyncio.sleep(0)
    time.sleep(0.2)  # noqa: ASYNC251 - the loop stands
    assert await reading == 1
    assert await client.prompt(0.05, server.read) == 2
    assert server.looks == 0


async def test_a_read_that_is_not_answered_in_time_has_all_others_refused_at_once(
    client: Calls, server: Server
) -> None:
    server.delay_s = NEVER
    with pytest.raises(IndexUnavailable, match=r"the server did not answer within 0.05 s"):
        await client.prompt(0.05, server.read)
    for _ in range(100):
        with pytest.raises(IndexUnavailable, match="is away, and looked for"):
            await client.prompt(NEVER, server.read)
    assert server.asked == 1


@pytest.mark.parametrize("code", ["UNAVAILABLE", "INTERNAL", "UNKNOWN", "CANCELLED", "DEADLINE_EXCEEDED"])
async def test_what_a_server_says_of_itself_is_tried_again_and_then_it_is_away(
    client: Calls, server: Server, code: str
) -> None:
    server.code = grpc.StatusCode[code]
    with pytest.raises(IndexUnavailable, match=rf"in 2 tries of 1.0 s: {code}: told to fail"):
        await client.prompt(1.0, server.read)
    assert server.asked == 2
    with pytest.raises(IndexUnavailable, match="is away"):
        await client.prompt(1.0, server.read)


async def test_a_server_that_answers_a_look_is_read_from_again(client: Calls, server: Server) -> None:
    server.code = grpc.StatusCode.UNAVAILABLE
    with pytest.raises(IndexUnavailable):
        await client.prompt(1.0, server.read)
    while server.looks < 3:
        await asyncio.sleep(0.01)
    assert server.asked == 2
    server.code = None
    assert await back(client, server) == 3


async def test_a_read_that_was_too_much_costs_the_others_no_more_than_a_look(
    client: Calls, server: Server
) -> None:
    async def too_much() -> int:
        await asyncio.sleep(NEVER)
        return 0

    with pytest.raises(IndexUnavailable):
        await client.prompt(0.01, too_much)
    assert await back(client, server) == 1
    assert server.looks == 1


async def test_a_silent_server_is_noticed_even_if_nobody_has_the_time_to_wait_so_long(
    client: Calls, server: Server
) -> None:
    server.delay_s = NEVER
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.prompt(0.05, server.read), 0.001)
    while server.looks == 0:
        await asyncio.sleep(0.005)
    with pytest.raises(IndexUnavailable, match="is away"):
        await client.prompt(NEVER, server.read)


async def test_a_read_that_fails_when_nobody_waits_for_it_any_more_is_no_traceback(
    client: Calls, server: Server
) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    server.delay_s, server.code = 0.01, grpc.StatusCode.NOT_FOUND
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.prompt(1.0, server.read), 0.001)
    while server.looks == 0:
        await asyncio.sleep(0.005)
    gc.collect()
    await asyncio.sleep(0)
    assert told == []


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("UNAUTHENTICATED", "HEADWATER_QDRANT_API_KEY"),
        ("PERMISSION_DENIED", "HEADWATER_QDRANT_API_KEY"),
        ("NOT_FOUND", "start the catalog worker again"),
    ],
)
async def test_a_server_that_does_not_let_us_read_is_away_too(
    client: Calls, server: Server, code: str, remedy: str
) -> None:
    """A key that was changed, a collection that was dropped: no click and no request is to blame."""
    server.code = grpc.StatusCode[code]
    with pytest.raises(IndexUnavailable, match=f"the server answered {code}: .*{remedy}"):
        await client.prompt(1.0, server.read)
    assert server.asked == 1
    while server.looks < 3:
        await asyncio.sleep(0.01)
    with pytest.raises(IndexUnavailable, match="is away"):
        await client.prompt(1.0, server.read)
    server.code = None
    assert await back(client, server) == 2


async def test_a_call_that_is_wrong_says_so_and_costs_nobody_else(client: Calls, server: Server) -> None:
    server.code = grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(AioRpcError, match="told to fail"):
        await client.prompt(1.0, server.read)
    assert server.looks == 0
    server.code = None
    assert await client.prompt(1.0, server.read) == 2


async def test_patient_calls_are_made_whether_the_server_is_away_or_not(
    client: Calls, server: Server
) -> None:
    server.code = grpc.StatusCode.UNAVAILABLE
    with pytest.raises(IndexUnavailable):
        await client.prompt(1.0, server.read)
    with pytest.raises(IndexUnavailable, match="told to fail"):
        await client.patient(server.read)
    server.code = None
    assert await client.patient(server.read) == 5


async def test_closing_ends_what_is_under_way(server: Server) -> None:
    client = Calls("the server", server.look, timeout_s=NEVER, tries=1)
    server.delay_s = NEVER
    reading: Any = asyncio.ensure_future(client.prompt(NEVER, server.read))
    with pytest.raises(IndexUnavailable):
        await client.prompt(0.01, server.read)
    before = len(asyncio.all_tasks())
    await client.close()
    with pytest.raises(asyncio.CancelledError):
        await reading
    with pytest.raises(IndexUnavailable, match="no longer connected"):
        await client.patient(server.read)
    assert len(asyncio.all_tasks()) == before - 3  # both reads, of which one had ended, and the look
