"""Calls to a server that may be away: writes are retried for long, reads fail soon.

**Circuit breaker.** Clicks and answers wait for reads, so a read has little time. After the first read that runs out of it,
all reads are refused at once, until the server answers a probe that is repeated in the background. Time in which our own
event loop stands does not count: the answer may have come, and nobody could look.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

import stamina
import structlog
from grpc import StatusCode  # type: ignore[import-untyped]
from grpc.aio import AioRpcError  # type: ignore[import-untyped]
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse

from headwater.index import IndexUnavailable
from headwater.tasks import ended

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

# A click waits for a look-up, and must not be late by a second. A request waits for both; it has two seconds by default,
# and others wait behind it. Each limit is about twenty times what a healthy server takes.
LOOK_UP_S: Final = 0.5
SEARCH_S: Final = 1.0
# Between probes. With one probe unanswered and one to reconnect, a server is found again within three seconds.
LOOK_S: Final = 0.5
# Each turn of the event loop counts as no more than this part of a read's time.
_STEPS: Final = 8

# Answers that say something about the server and not about our call. Qdrant answers INTERNAL when its disk is full.
_PASSING: Final = {
    StatusCode.UNAVAILABLE,
    StatusCode.DEADLINE_EXCEEDED,
    StatusCode.RESOURCE_EXHAUSTED,
    StatusCode.ABORTED,
    StatusCode.CANCELLED,
    StatusCode.INTERNAL,
    StatusCode.UNKNOWN,
}


class Calls:
    """Calls to one server, which messages name as ``server``. Close it.

    Args:
        look: the probe, a call that costs the server next to nothing.
        timeout_s, tries: of a patient call.
    """

    def __init__(
        self, server: str, look: Callable[[], Awaitable[object]], *, timeout_s: float, tries: int
    ) -> None:
        self.server, self._look = server, look
        self._timeout_s, self._tries = timeout_s, tries
        self._reads: set[asyncio.Future[Any]] = set()
        self._looking: asyncio.Task[None] | None = None  # while the server is away
        self._is_closed = False

    async def close(self) -> None:
        """Cancel the reads in progress and the probe."""
        self._is_closed = True
        await ended([*self._reads, *([self._looking] if self._looking is not None else [])])

    def refusal(self, problem: AioRpcError) -> str:
        """The message where trying again is of no use: what the server answered, and the remedy."""
        remedy = "check HEADWATER_QDRANT_URL and HEADWATER_QDRANT_API_KEY"
        if problem.code() is StatusCode.NOT_FOUND:
            remedy = "start the catalog worker again, which makes the collection anew and fills it from the vectors topic"
        return f"{self.server} answered {_said(problem)}; {remedy}"

    async def patient(self, call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a call, and repeat it after passing faults. All that we send can be repeated.

        Raises:
            IndexUnavailable: no answer in all tries.
            AioRpcError: the server refused.
        """
        try:
            async for attempt in stamina.retry_context(
                on=_is_passing,
                attempts=self._tries,
                timeout=self._timeout_s * self._tries,
                wait_initial=0.05,
                wait_max=0.5,
                wait_jitter=0.05,
            ):
                with attempt:
                    if self._is_closed:
                        raise IndexUnavailable(f"{self.server} is no longer connected: the worker stops")
                    async with asyncio.timeout(self._timeout_s):
                        return await call(*args, **kwargs)
        except (AioRpcError, ResourceExhaustedResponse, TimeoutError) as problem:
            if not _is_passing(problem):
                raise
            raise IndexUnavailable(
                f"{self.server} did not answer in {self._tries} tries of {self._timeout_s} s: {_said(problem)}"
            ) from problem
        raise AssertionError("stamina ends with a result or an exception")

    async def prompt(
        self, within_s: float, call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Make a call within ``within_s``, all tries together. It is refused at once while the server is away.

        Raises:
            IndexUnavailable: no answer in time, or the server is away or refused.
            AioRpcError: the call itself was invalid.
        """
        if self._looking is not None:
            raise IndexUnavailable(f"{self.server} is away, and looked for")
        reading = asyncio.ensure_future(self._read(within_s, partial(call, *args, **kwargs)))
        self._reads.add(reading)
        reading.add_done_callback(self._end_read)
        # The caller may have less time than it takes to find the server away, so the call goes on without it.
        return await asyncio.shield(reading)

    def _end_read(self, reading: asyncio.Future[Any]) -> None:
        self._reads.discard(reading)
        if reading.cancelled():
            return
        # The caller may have gone; asyncio would print a traceback of an exception that nobody takes.
        problem = reading.exception()
        if problem is not None and not isinstance(problem, IndexUnavailable):
            log.error("index_refused_a_read", server=self.server, error=repr(problem))

    async def _read(self, within_s: float, call: Callable[[], Awaitable[T]]) -> T:
        try:
            async with _timeout_in_turns(within_s):
                return await self.patient(call)
        except (IndexUnavailable, TimeoutError, AioRpcError) as problem:
            if _is_our_fault(problem):
                raise
            if isinstance(problem, TimeoutError):
                said = f"{self.server} did not answer within {within_s} s"
            else:
                said = self.refusal(problem) if isinstance(problem, AioRpcError) else str(problem)
            if self._looking is None:
                log.warning("index_away", server=self.server, error=said, reads="refused until it answers")
                self._looking = asyncio.create_task(self._look_for_it(), name="index-look")
            raise IndexUnavailable(said) from problem

    async def _look_for_it(self) -> None:
        """Probe until the server answers. The first probe is at once: the read may just have been too much for its time."""
        since_s = time.monotonic()
        try:
            while not await self._answers():  # noqa: ASYNC110 - no event says so
                await asyncio.sleep(LOOK_S)
        finally:
            self._looking = None
        log.warning("index_answers_again", server=self.server, seconds=round(time.monotonic() - since_s, 1))

    async def _answers(self) -> bool:
        try:
            async with _timeout_in_turns(LOOK_UP_S):
                await self._look()
        except (AioRpcError, ResourceExhaustedResponse, TimeoutError) as problem:
            if _is_our_fault(problem):
                log.error("index_refused_a_look", server=self.server, error=repr(problem))
            return False
        return True


@asynccontextmanager
async def _timeout_in_turns(seconds: float) -> AsyncIterator[None]:
    """As `asyncio.timeout`, but a loop that stood for long counts as one step.

    Else the timer, which comes with the answer, would come before it.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def wait(steps: int) -> None:
        nonlocal timer
        if steps:
            timer = loop.call_later(seconds / _STEPS, wait, steps - 1)
        else:
            limit.reschedule(loop.time())

    async with asyncio.timeout(None) as limit:
        timer = loop.call_later(seconds / _STEPS, wait, _STEPS - 1)
        try:
            yield
        finally:
            timer.cancel()


def _said(problem: Exception) -> str:
    return (
        f"{problem.code().name}: {problem.details()}" if isinstance(problem, AioRpcError) else repr(problem)
    )


def _is_our_fault(problem: Exception) -> bool:
    """Whether a read failed by our own call. All other failures are about the server, its keys or what it holds."""
    return isinstance(problem, AioRpcError) and problem.code() is StatusCode.INVALID_ARGUMENT


def _is_passing(problem: Exception) -> bool:
    if isinstance(problem, AioRpcError):
        return problem.code() in _PASSING
    return isinstance(problem, ResourceExhaustedResponse | TimeoutError)
