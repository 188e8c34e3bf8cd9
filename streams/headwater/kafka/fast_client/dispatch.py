"""What a fetch brought is handed over in the turn of the event loop in which it arrives.

From a broker's answer to a task that waits for records are four turns of the loop, each behind everything that is
ready by then: half a millisecond of every click and every request on an idle machine. aiokafka then plans the next
fetch in a task that waits for all others. Here a callback takes the records at once, and the next fetch of the same
broker is sent from the same place, after the handlers have had their turns.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection
from typing import Any, Final, Protocol

from headwater.kafka.fast_client.fetch_plan import UrgentNode, next_request

# A fetch that returns empty this fast was not held by the broker. Kafka holds any for longer.
_NOT_HELD_S: Final = 0.005
# Adds half of it to a record's way on such a broker; an idle client costs 2 % of a core.
_EMPTY_PAUSE_S: Final = 0.01
# The share of the loop's time that passes from one small fetch to the next. Rare records are never delayed by it.
_BUSY_SHARE: Final = 0.4
_MAX_PAUSE_S: Final = 0.03
# A fetch of more records is worth its fixed cost, and with a backlog there is nothing to wait for.
_SMALL_FETCH: Final = 500
# Most clicks and requests are handled within this many turns of the loop, and on an idle machine within this time.
_TURNS: Final = 10
_TURNS_S: Final = 0.008


def install_empty_fetch_pause(fetcher: Any) -> None:
    """Pause after an empty fetch that the broker did not hold.

    Kafka holds an empty fetch for as long as the client allows. The embedded broker (0.2.3) answers at once, so each
    idle client would ask 5,000 times a second and keep two cores busy.
    """
    fetch = fetcher._proc_fetch_request

    async def paced(*args: Any) -> bool:
        started = time.monotonic()
        has_records = bool(await fetch(*args))
        if not has_records and time.monotonic() - started < _NOT_HELD_S:
            await _sleep(_EMPTY_PAUSE_S)
        return has_records

    fetcher._proc_fetch_request = paced


class Dispatching(Protocol):
    """A consumer whose records are handed over by a callback."""

    on_records: Callable[[], int] | None
    handler_error: Exception | None
    urgent: Collection[str]

    def dispatch(self, node: Any) -> int:
        """Call ``on_records`` for what a fetch from ``node`` brought. Returns how many records were polled."""


def install_immediate_dispatch(consumer: Dispatching, fetcher: Any) -> None:
    """Call ``consumer.on_records`` where a fetch ends, and send that broker's next fetch from there."""
    fetch, max_wait_ms = fetcher._proc_fetch_request, fetcher._fetch_max_wait_ms
    pacer = FetchPacer()

    async def dispatching(assignment: Any, node: Any, request: Any) -> bool:
        while await fetch(assignment, node, request):
            if consumer.on_records is None:
                return True
            try:
                polled = consumer.dispatch(node)
            except Exception as error:  # noqa: BLE001 - it would end all fetching in silence; wait_for_records raises it
                consumer.handler_error = error
                return True
            is_urgent = isinstance(node, UrgentNode)
            if any((tp.topic in consumer.urgent) == is_urgent for tp in fetcher._records):
                return True  # not all could be polled: aiokafka plans the rest
            # Beside a backlog aiokafka's own way would take five turns of the loop, of 10 ms each, to send this fetch.
            if consumer.urgent and not is_urgent and (pause_s := pacer.pause_s(polled)):
                await _sleep(pause_s)
            await let_handlers_run()
            request = following(assignment, node)
            if request is None:
                return False
        return False

    def following(assignment: Any, node: Any) -> Any:
        task = asyncio.current_task()
        if (task is not None and task.cancelling()) or not assignment.active:
            return None
        return next_request(fetcher, assignment, consumer.urgent, max_wait_ms, node)

    fetcher._proc_fetch_request = dispatching


class FetchPacer:
    """How long the next fetch waits, so that small fetches take only a share of the loop's time.

    A stream of clicks is fetched as soon as the last few have been begun. A fast worker then fetches often, and pays
    the fixed cost of a fetch and a batch for a handful of records each. At 2,000 clicks a second its loop was busy for
    nine tenths of the time, and requests waited behind it.
    """

    def __init__(
        self,
        now_s: Callable[[], float] = time.monotonic,
        worked_s: Callable[[], float] = time.thread_time,
    ) -> None:
        self._now_s, self._worked_s = now_s, worked_s
        self._last_s, self._last_worked_s = now_s(), worked_s()

    def pause_s(self, records: int) -> float:
        """Seconds to wait after a fetch that brought this many records. Call it once after each fetch."""
        now_s, worked_s = self._now_s(), self._worked_s()
        took_s, busy_s = now_s - self._last_s, worked_s - self._last_worked_s
        self._last_s, self._last_worked_s = now_s, worked_s
        if records > _SMALL_FETCH:
            return 0.0
        return min(max(busy_s / _BUSY_SHARE - took_s, 0.0), _MAX_PAUSE_S)


async def let_handlers_run() -> None:
    """Give the handlers of what has just come their turns, unless the loop is so busy that this takes long.

    Planning takes half a millisecond, in which a click could be on its way to the changelog.
    """
    started = time.monotonic()
    for _ in range(_TURNS):
        await _sleep(0)
        if time.monotonic() - started > _TURNS_S:
            return


async def _sleep(pause_s: float) -> None:
    # The fetcher cancels its fetches when it closes, and expects them to end without an exception.
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(pause_s)
