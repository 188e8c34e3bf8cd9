"""Background work that ends the worker when it fails, and reads that are tried again while the broker is away."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from headwater.errors import PartitionLost, StopWorker

log = structlog.get_logger(__name__)

T = TypeVar("T")

# How long a topic that is read at an assignment may give nothing.
READ_TIMEOUT_S: Final = 120.0
_AGAIN_S: Final = 1.0


def topic_recreated_error(tp: TopicPartition, found: str, end: int, derived: str) -> StopWorker:
    """The reason to stop where more is known of a partition than it can hold; ``derived`` is the topic that knows it."""
    return StopWorker(
        f"{tp.topic}-{tp.partition}: {found}, expected at most the end of the topic, {end}: the topic was re-created. "
        f"Start with a new HEADWATER_TOPIC_PREFIX, or delete {derived} and the group's offsets with it"
    )


async def once_broker_answers(topic: str, read: Callable[[], Awaitable[T]]) -> T:
    """What ``read`` returns, tried again while the broker is away: it may go in the middle of the rebalance that it leads.

    Raises:
        StopWorker: it has been away for two minutes.
    """
    away_s: float | None = None  # since then
    while True:
        began_s = time.monotonic()
        try:
            return await read()
        except KafkaError as error:
            now_s = time.monotonic()
            if away_s is None or now_s - began_s > READ_TIMEOUT_S:  # it has answered for a while
                away_s = now_s
            if now_s - away_s > READ_TIMEOUT_S:
                raise StopWorker(
                    f"{topic}: cannot be read for {READ_TIMEOUT_S:.0f} s ({type(error).__name__}: {error}); "
                    "look at the broker"
                ) from error
            log.warning("topic_not_read_yet", topic=topic, error=type(error).__name__)
        await asyncio.sleep(_AGAIN_S)


class Background:
    """Work alongside the batches. A failure in it ends the worker; ``where`` completes "unexpected ... in"."""

    def __init__(self, where: str, fail: Callable[[str], None]) -> None:
        self._where, self._fail = where, fail
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, object]) -> None:
        """Begin it; a partition that goes ends it quietly."""
        task = asyncio.ensure_future(self._supervised(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

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
