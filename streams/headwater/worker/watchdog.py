"""Nothing hangs silently: a thread watches the event loop, and every partition with lag has to move.

Faust's own stall check compares monotonic with epoch time and cannot fire. An unreachable broker is no stall of ours: a
worker that is restarted would find it unreachable too.
"""

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, NamedTuple

import structlog
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError
from aiokafka.protocol.metadata import MetadataRequest
from prometheus_client import Histogram

from headwater.tasks import ended

log = structlog.get_logger(__name__)

STALL_S: Final = 30.0
_BEAT_S: Final = 1.0
_LOOK_S: Final = 0.02
_ANSWER_S: Final = 5.0
_PATIENCE_S: Final = 600.0
EXIT_STALLED: Final = 70  # EX_SOFTWARE


TO_READ: Final = "records to read"
TO_COMMIT: Final = "finished records to commit"


async def time_the_loop(delay: Histogram) -> None:
    """Observe by how many seconds the event loop is late, every 20 ms, forever."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + _LOOK_S
        await asyncio.sleep(_LOOK_S)
        delay.observe(max(loop.time() - due_s, 0.0))


class Progress(NamedTuple):
    """How far one partition has come, and how much is left to do; ``left`` names what."""

    topic: str
    partition: int
    done: int
    lag: int
    left: str = TO_READ
    waits: bool = False  # for something that has a time limit of its own


async def ask_every_broker(client: AIOKafkaClient) -> None:
    """Ask each broker of the cluster for its metadata. A partition may wait for any of them: to read, write or commit.

    The cluster does not name a broker that is down, so brokers that the client knows are asked too.

    Raises:
        KafkaError: one of them cannot be reached.
    """
    there = {broker.nodeId for broker in (await client.fetch_all_metadata()).brokers()}
    known = {broker.nodeId for broker in client.cluster.brokers()}
    await asyncio.gather(*(client.send(node, MetadataRequest([])) for node in there & known))


class Watchdog:
    """Calls ``fail`` once a partition with lag has not moved for 30 s, and ends the process when the loop is blocked.

    Args:
        progress: asked every second.
        fail: takes the reason.
        ask_brokers: probes the brokers while a partition stands still. While it raises, or takes longer than 5 s, the stall
            timer starts again, for ten minutes at most.
    """

    def __init__(
        self,
        progress: Callable[[], Iterable[Progress]],
        fail: Callable[[str], None],
        ask_brokers: Callable[[], Awaitable[object]],
    ) -> None:
        self._progress, self._fail, self._ask_brokers = progress, fail, ask_brokers
        self._moved: dict[tuple[str, int, str], tuple[int, float]] = {}
        self._beat_s = time.monotonic()
        self._excused_s = 0.0  # no stall is counted from before
        self._silent_since_s: float | None = None
        self._stopped = threading.Event()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._watch_loop, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch, in this event loop and in a thread."""
        self._task = asyncio.ensure_future(self._look())
        self._thread.start()

    async def stop(self) -> None:
        """Watch no more."""
        self._stopped.set()
        if self._task is not None:
            await ended([self._task])
            self._thread.join()  # waits for that flag alone

    def stalled(self) -> str | None:
        """The partition that has not moved for too long, as a sentence; None while all is well."""
        now = time.monotonic()
        for (topic, partition, left), (done, since_s) in self._moved.items():
            if now - max(since_s, self._excused_s) > STALL_S:
                return (
                    f"{topic}-{partition}: no progress past offset {done} for {now - since_s:.0f} s although there are "
                    f"{left}, expected some within 30 s; the worker has to be started again"
                )
        return None

    def still_s(self, topic: str, partition: int) -> float:
        """For how long a partition with lag has not moved, in seconds; 0 where there is nothing to do."""
        seen = self._moved.get((topic, partition, TO_READ))
        return max(self._beat_s - seen[1], 0.0) if seen is not None else 0.0

    async def _look(self) -> None:
        while True:
            self._beat_s = time.monotonic()
            seen = {}
            for each in self._progress():
                place = (each.topic, each.partition, each.left)
                before = self._moved.get(place)
                moved = before is None or before[0] != each.done or each.lag <= 0 or each.waits
                seen[place] = (each.done, self._beat_s if moved or before is None else before[1])
            self._moved = seen
            await self._excuse()
            reason = self.stalled()
            if reason is not None:
                self._fail(reason)
            await asyncio.sleep(_BEAT_S)

    async def _excuse(self) -> None:
        """Restart the stall timer while the broker is unreachable.

        It is probed after a third of the limit, because a broker that recovers just before the limit has still caused the
        stall.
        """
        now, early_s = time.monotonic(), STALL_S / 3
        since_s = min((since_s for _, since_s in self._moved.values()), default=now)
        if now - since_s <= early_s:
            self._silent_since_s = None
        elif now - max(since_s, self._excused_s) > early_s:
            if await self._brokers_answer():
                self._silent_since_s = None
                return
            self._silent_since_s = self._silent_since_s or now
            if now - self._silent_since_s < _PATIENCE_S:
                log.warning("broker_silent", stalled_s=round(now - since_s))
                self._excused_s = time.monotonic()

    async def _brokers_answer(self) -> bool:
        try:
            # Not `wait_for`: in Python 3.11 it may swallow a cancellation.
            async with asyncio.timeout(_ANSWER_S):
                await self._ask_brokers()
        except (KafkaError, OSError, TimeoutError):
            return False
        return True

    def _watch_loop(self) -> None:
        while not self._stopped.wait(_BEAT_S):
            blocked_s = time.monotonic() - self._beat_s
            if blocked_s > STALL_S:
                log.critical("loop_blocked", seconds=round(blocked_s), remedy="start the worker again")
                # Nothing can be awaited on a blocked loop. Everything unfinished is uncommitted.
                os._exit(EXIT_STALLED)
