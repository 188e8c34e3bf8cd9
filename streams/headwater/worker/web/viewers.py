"""Viewers of the live page: one stream of server-sent events each, at most fifty, none of which can delay the worker.

What all get is made once a second while there is somebody, and nothing is made while there is nobody. Each viewer has a short
queue. One that does not read is dropped when its queue is full, and the oldest makes room for the fifty-first; those who are
not let in go first.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
import structlog
from aiohttp import web

from headwater.worker.web import guard

log = structlog.get_logger(__name__)

MOST: Final = 50
INTERVAL_S: Final = 1.0
# Seconds that a viewer may lie behind. What it has not read by then it will not miss.
_BEHIND: Final = 5
# A bit more than the queue's time: a write that waits for so long is of a viewer that has gone.
_WRITE_S: Final = 10.0
_RETRY_MS: Final = {"full": 10_000, "slow": 2_000, "stopping": 3_000}


class Second(NamedTuple):
    """What is told of a second: figures to everybody, events to those who are let in."""

    figures: Mapping[str, Any]
    events: Mapping[str, list[Any]]


# A source of seconds for as long as somebody looks: it is opened with the first viewer, and closed with the last.
Watch = Callable[[], contextlib.AbstractContextManager[Callable[[], Second]]]


class _Viewer:
    def __init__(self, is_let_in: bool) -> None:
        self.is_let_in = is_let_in
        self.queue: asyncio.Queue[bytes] = asyncio.Queue(_BEHIND)
        self.gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def leave(self, reason: str) -> None:
        if not self.gone.done():
            self.gone.set_result(reason)


class Viewers:
    """All streams of one server."""

    def __init__(self, watch: Watch, most: int = MOST, interval_s: float = INTERVAL_S) -> None:
        self._watch, self._most, self._interval_s = watch, most, interval_s
        self._viewers: list[_Viewer] = []  # the oldest first
        self._telling: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._viewers)

    async def serve(self, request: web.Request, is_let_in: bool) -> web.StreamResponse:
        """Stream to one viewer until it goes, is dropped, or has to make room."""
        headers = {
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
            **guard.HEADERS,
        }
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        async with self._joined(is_let_in) as viewer:
            hello = {
                "interval_ms": round(self._interval_s * 1000),
                "viewers": len(self),
                "let_in": is_let_in,
            }
            try:
                await _write(response, event("hello", hello))
                reason = await self._pass_on(viewer, response)
                await _write(response, event("bye", {"reason": reason, "retry_ms": _RETRY_MS[reason]}))
            except (ConnectionError, TimeoutError):
                pass  # it has gone, or does not read
            # What is still buffered for one that does not read must not keep the server from closing.
            if viewer.gone.done() and viewer.gone.result() == "slow" and request.transport is not None:
                request.transport.abort()
        return response

    async def close(self) -> None:
        """Tell all viewers that the worker stops."""
        for viewer in self._viewers:
            viewer.leave("stopping")
        await asyncio.sleep(0)

    @contextlib.asynccontextmanager
    async def _joined(self, is_let_in: bool) -> AsyncIterator[_Viewer]:
        viewer = _Viewer(is_let_in)
        self._viewers.append(viewer)
        if len(self._viewers) > self._most:
            # Strangers, who see figures alone, take nobody's place who is let in.
            leaving = next((each for each in self._viewers if not each.is_let_in), self._viewers[0])
            self._viewers.remove(leaving)
            leaving.leave("full")
        if self._telling is None:
            self._telling = asyncio.create_task(self._tell())
            self._telling.add_done_callback(_complain)
        try:
            yield viewer
        finally:
            viewer.leave("slow")
            if viewer in self._viewers:
                self._viewers.remove(viewer)
            if not self._viewers and self._telling is not None:
                self._telling.cancel()
                self._telling = None

    async def _pass_on(self, viewer: _Viewer, response: web.StreamResponse) -> str:
        """Send what comes. Returns why there is no more."""
        while not viewer.gone.done():
            getting = asyncio.ensure_future(viewer.queue.get())
            try:
                waits_for: set[asyncio.Future[Any]] = {getting, viewer.gone}
                await asyncio.wait(waits_for, return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    await _write(response, getting.result())
            finally:
                getting.cancel()
        return viewer.gone.result()

    async def _tell(self) -> None:
        with self._watch() as second:
            while True:
                await asyncio.sleep(self._interval_s)
                figures, events = second()
                for_all = event("figures", {**figures, "viewers": len(self)})
                for_some = for_all + b"".join(event(name, each) for name, each in events.items() if each)
                for viewer in list(self._viewers):
                    try:
                        viewer.queue.put_nowait(for_some if viewer.is_let_in else for_all)
                    except asyncio.QueueFull:
                        self._viewers.remove(viewer)
                        viewer.leave("slow")


def _complain(telling: "asyncio.Task[None]") -> None:
    """A failure of ours is told in the log; the viewers hear nothing more, and come again."""
    if not telling.cancelled() and (error := telling.exception()) is not None:
        log.error("live_page_failed", exc_info=error)


def event(name: str, data: object) -> bytes:
    """A server-sent event. JSON has no line breaks, so its data is one line."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(data))


async def _write(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(_WRITE_S):
        await response.write(data)
