"""Viewers of the live page: what they get, and that none holds anything up."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from headwater.web_server import WebServer
from headwater.worker.web.viewers import Second, Viewers

SOON_S = 20.0


class Stage:
    """A server of streams whose seconds are short. ``size`` is how much each tells."""

    def __init__(self, most: int = 50) -> None:
        self.opened = self.closed = self.seconds = 0
        self.size = 1
        self.viewers = Viewers(self.watch, most, interval_s=0.01)
        app = web.Application()
        app.router.add_get("/events", self.serve)
        app.on_shutdown.append(self.close)
        self.server = WebServer("WEB", app)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        return await self.viewers.serve(request, "in" in request.query)

    async def close(self, _: web.Application) -> None:
        await self.viewers.close()

    @contextlib.contextmanager
    def watch(self) -> Iterator[Callable[[], Second]]:
        self.opened += 1

        def second() -> Second:
            self.seconds += 1
            return Second({"n": self.seconds}, {"clicks": ["x" * self.size], "items": []})

        try:
            yield second
        finally:
            self.closed += 1


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage(most=2)
    await stage.server.start("127.0.0.1", 0)
    yield stage
    await stage.server.stop()


@contextlib.asynccontextmanager
async def watching(stage: Stage, query: str = "?in") -> AsyncIterator[aiohttp.StreamReader]:
    async with (
        aiohttp.ClientSession(read_bufsize=1024) as session,
        session.get(f"http://{stage.server.address}/events{query}") as response,
    ):
        assert response.headers["Content-Type"].startswith("text/event-stream")
        yield response.content


async def read(stream: aiohttp.StreamReader) -> tuple[str, Any]:
    async with asyncio.timeout(SOON_S):
        name = (await stream.readline()).decode().removeprefix("event: ").strip()
        data = (await stream.readline()).decode().removeprefix("data: ")
        await stream.readline()
    return name, msgspec.json.decode(data)


async def until(stream: aiohttp.StreamReader, wanted: str) -> Any:
    while True:
        name, data = await read(stream)
        if name == wanted:
            return data


async def settled(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_viewer_that_is_let_in_gets_figures_and_events(stage: Stage) -> None:
    async with watching(stage) as stream:
        assert await read(stream) == ("hello", {"interval_ms": 10, "viewers": 1, "let_in": True})
        assert await read(stream) == ("figures", {"n": 1, "viewers": 1})
        assert await read(stream) == ("clicks", ["x"])
        assert (await read(stream))[0] == "figures"  # and no event of items, since there are none


async def test_a_viewer_that_is_not_let_in_gets_figures_alone(stage: Stage) -> None:
    async with watching(stage, "") as stream:
        assert (await read(stream))[1]["let_in"] is False
        assert [(await read(stream))[0] for _ in range(3)] == ["figures"] * 3


async def test_nothing_is_done_while_nobody_looks(stage: Stage) -> None:
    assert stage.opened == 0
    for times in (1, 2):
        async with watching(stage) as stream:
            await until(stream, "figures")
        await settled(lambda: stage.closed == stage.opened)
        assert stage.opened == times
        assert len(stage.viewers) == 0
    seconds = stage.seconds
    await asyncio.sleep(0.05)
    assert stage.seconds == seconds


async def test_the_oldest_makes_room_for_a_viewer_too_many(stage: Stage) -> None:
    async with watching(stage) as first, watching(stage) as second, watching(stage) as third:
        assert await until(first, "bye") == {"reason": "full", "retry_ms": 10_000}
        assert (await until(third, "figures"))["viewers"] == 2
        await until(second, "figures")


async def test_strangers_take_nobodys_place_who_is_let_in(stage: Stage) -> None:
    async with watching(stage) as first, watching(stage, "") as stranger, watching(stage) as third:
        assert (await until(stranger, "bye"))["reason"] == "full"
        async with watching(stage, "") as another:
            assert (await until(another, "bye"))["reason"] == "full"
        await until(first, "clicks")
        await until(third, "clicks")


async def test_a_viewer_that_does_not_read_is_dropped_and_the_others_go_on(stage: Stage) -> None:
    stage.size = 400_000
    async with watching(stage), watching(stage, "") as other:
        await settled(lambda: len(stage.viewers) == 1)
        assert (await until(other, "figures"))["viewers"] in (1, 2)
        await until(other, "figures")


async def test_viewers_are_told_that_the_worker_stops(stage: Stage) -> None:
    async with watching(stage) as stream:
        await until(stream, "figures")
        stopping = asyncio.ensure_future(stage.server.stop())
        assert await until(stream, "bye") == {"reason": "stopping", "retry_ms": 3_000}
        await stopping
