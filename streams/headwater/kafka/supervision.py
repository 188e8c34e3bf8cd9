"""Background work that ends the worker when it fails, and reads that are retried while the broker is away."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from headwater.errors import PartitionLost, StopWorker
from headwater.tasks import ended

log = structlog.get_logger(__name__)

T = TypeVar("T")

# How long a topic may give no records while it is read to its end.
READ_TIMEOUT_S: Final = 120.0
_RETRY_S: Final = 1.0


def topic_recreated_error(tp: TopicPartition, found: str, end: int, remedy: str) -> StopWorker:
    """The error for a partition that is shorter than what is known of it: its topic was deleted and made again.

    ``found`` is what is known; ``remedy`` is a sentence without its full stop.
    """
    return StopWorker(
        f"{tp.topic}-{tp.partition}: {found}, expected at most the end of the topic, {end}: the topic was re-created. "
        f"{remedy}"
    )


def start_anew(derived: str) -> str:
    """The remedy for a topic that was made again where what ``derived`` holds of it cannot be kept."""
    return f"Start with a new HEADWATER_TOPIC_PREFIX, or delete {derived} and the group's offsets with it"


async def once_broker_answers(topic: str, read: Callable[[], Awaitable[T]]) -> T:
    """Await ``read`` and return its result; retry every second while it raises KafkaError.

    A broker may go away in the middle of the rebalance that it leads. ``read`` must do no harm when it is repeated.

    Raises:
        StopWorker: the broker has been away for two minutes.
    """
    away_s: float | None = None  # when it went away
    while True:
        began_s = time.monotonic()
        try:
            return await read()
        except KafkaError as error:
            now_s = time.monotonic()
            if away_s is None or now_s - began_s > READ_TIMEOUT_S:  # this attempt was answered for a while
                away_s = now_s
            if now_s - away_s > READ_TIMEOUT_S:
                raise StopWorker(
                    f"{topic}: cannot be read for {READ_TIMEOUT_S:.0f} s ({type(error).__name__}: {error}); "
                    "look at the broker"
                ) from error
            log.warning("topic_not_read_yet", topic=topic, error=type(error).__name__)
        await asyncio.sleep(_RETRY_S)


class Background:
    """Tasks alongside the batches. What one of them raises ends the worker, by ``fail``; ``where`` says in which part.

    PartitionLost ends a task quietly. The maker of a Background stops it.
    """

    def __init__(self, where: str, fail: Callable[[str], None]) -> None:
        self._where, self._fail = where, fail
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, object]) -> None:
        """Start a task. Never blocks."""
        task = asyncio.ensure_future(self._supervised(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        await ended(self._tasks)

    async def _supervised(self, work: Coroutine[Any, Any, object]) -> None:
        try:
            await work
        except PartitionLost:
            pass
        except StopWorker as error:
            self._fail(str(error))
        except Exception as error:
            log.exception("background_failed", where=self._where)
            self._fail(f"unexpected {type(error).__name__} in {self._where}: {error}")
