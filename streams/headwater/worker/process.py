"""A worker as a process: signals, exit codes, garbage collection, and an end that nothing can hold up."""

import asyncio
import gc
import os
import signal
import types
from collections.abc import Callable, Coroutine
from typing import Any, Final, cast

import structlog

from headwater.errors import StopWorker
from headwater.settings import Settings, SettingsError
from headwater.worker.live_page import Examine
from headwater.worker.roles import Role
from headwater.worker.worker import ABANDON_S, Worker

log = structlog.get_logger(__name__)

EXIT_FAILED: Final = 1
# Python looks for garbage cycles after every 700 new objects. A batch makes ten thousand objects and no cycle, and the
# search took a fifth of a click's time.
_GARBAGE_THRESHOLDS: Final = (100_000, 50, 100)
# How long closing may take. Then the process ends: everything unfinished is uncommitted and will be read again.
_STOP_S: Final = 12.0
_LEFTOVERS_S: Final = 1.0

Alongside = Callable[[Worker], Coroutine[Any, Any, None]]


async def serve(
    settings: Settings, role: Role, alongside: Alongside | None = None, examine: Examine | None = None
) -> int:
    """Run a worker until SIGTERM or SIGINT, or until it has to stop. Returns the exit code: 0 or 1.

    ``alongside`` runs from the start of the worker to its stop. What it raises stops the worker. ``examine``: see `Worker`.

    Raises:
        Whatever :meth:`Worker.start` raises.
    """
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    gc.set_threshold(*_GARBAGE_THRESHOLDS)
    worker = Worker(settings, role, examine)
    # A broker may keep a worker waiting at its start for as long as it likes, so a signal or a failure ends that too.
    starting = asyncio.ensure_future(worker.start())
    stop = asyncio.ensure_future(stopping.wait())
    failed = asyncio.ensure_future(worker.failed())
    await asyncio.wait({starting, stop, failed}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        if (error := starting.exception()) is not None:
            await _end_leftover_tasks(EXIT_FAILED, str(error))
            raise error
        gc.freeze()  # what was made so far stays: never search it again
        if alongside is not None:
            worker.background.start(_supervised(alongside, worker))
        await asyncio.wait({stop, failed}, return_when=asyncio.FIRST_COMPLETED)
    code = 0
    if failed.done():
        log.critical("worker_failed", reason=failed.result())
        code = EXIT_FAILED
    failed.cancel()
    stop.cancel()
    if starting.done():
        closing = asyncio.ensure_future(worker.stop())
        await _end_within(_STOP_S, closing, code or EXIT_FAILED)
        closing.result()
    else:
        # Cancelled, it closes what it has opened. Nothing has been promised yet, so nothing is worth a long wait.
        starting.cancel()
        await _end_within(ABANDON_S, starting, code)
    await _end_leftover_tasks(code, "stopped")
    return code


async def _supervised(alongside: Alongside, worker: Worker) -> None:
    try:
        await alongside(worker)
    except SettingsError as error:
        raise StopWorker(str(error)) from error


async def _end_within(timeout_s: float, closing: "asyncio.Future[None]", code: int) -> None:
    """Wait for ``closing``; after ``timeout_s`` end the process with ``code``.

    Not `asyncio.timeout` nor `gather`: both wait for what they cancel, and Faust's services may swallow that.
    """
    await asyncio.wait({closing}, timeout=timeout_s)
    if not closing.done():
        log.error("stop_timed_out", seconds=timeout_s, tasks=sorted(map(_place_of, asyncio.all_tasks())))
        os._exit(code)


async def _end_leftover_tasks(code: int, reason: str) -> None:
    """Cancel forgotten tasks; where some do not end, end the process. The loop would wait for them without a limit."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        _, left = await asyncio.wait(left, timeout=_LEFTOVERS_S)
    if left:
        log.critical("tasks_left", reason=reason, tasks=sorted(map(_place_of, left)))
        os._exit(code)


def _place_of(task: "asyncio.Task[Any]") -> str:
    """Where a task waits, from the outermost coroutine to the innermost one, as name:line."""
    places, awaited = list[str](), cast(object, task.get_coro())
    while isinstance(awaited, types.CoroutineType):
        if awaited.cr_frame is not None:
            places.append(f"{awaited.__qualname__}:{awaited.cr_frame.f_lineno}")
        awaited = awaited.cr_await
    return " > ".join(places)
