"""A worker: everything that its role needs, opened in order and closed in reverse."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Final

import structlog
from aiokafka.errors import KafkaError

from headwater import __version__
from headwater.encoder.runtime import load
from headwater.errors import HeadwaterError
from headwater.index.key_holders import KeyHolders
from headwater.index.open import engine_of, open_index
from headwater.index.timed import TimedIndex
from headwater.kafka import topics
from headwater.kafka.broker_clock import BrokerClock
from headwater.kafka.consumer_group import ConsumerGroup
from headwater.kafka.dead_letters import DeadLetters
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.publish import producer_of
from headwater.kafka.supervision import Background
from headwater.kafka.topics import Topics
from headwater.metrics import Metrics
from headwater.paths.observer import Observer
from headwater.settings import Settings
from headwater.web_server import is_local
from headwater.worker import membership
from headwater.worker.live_page import Examine, live_page
from headwater.worker.roles import CatalogRole, Common, InterestsRole, Role
from headwater.worker.status import Status, keep_counting_items
from headwater.worker.watchdog import Watchdog, ask_every_broker, time_the_loop
from headwater.worker.web import routes
from headwater.worker.web.guard import Guard
from headwater.worker.web.live import add_live

log = structlog.get_logger(__name__)

# How long a start that failed waits for what it had opened to close, before it says why it failed.
ABANDON_S: Final = 5.0
_READY_POLL_S: Final = 0.02


class WorkerError(HeadwaterError):
    """The worker cannot start: one sentence with the remedy."""


class Worker:
    """One worker of a role. ``start`` returns once it consumes; ``status.ready`` is set once its state is complete.

    ``background`` takes work that runs beside it; what such work raises stops the worker.

    Args:
        examine: looks at the whole system for the live page, which else does without.
    """

    def __init__(self, settings: Settings, role: Role, examine: Examine | None = None) -> None:
        self._settings, self._role, self._examine = settings, role, examine
        self._stack = contextlib.AsyncExitStack()
        self._failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.background = Background("the background", self.fail)
        self.status = Status(settings, role, self._failed)
        self.metrics = Metrics()
        self.observer = Observer()  # what the paths tell those who watch
        self.web_address: str | None = None  # host:port of the probes, once it listens
        self.admin_address: str | None = None  # and of users' data, where there is a token

    def fail(self, reason: str) -> None:
        """Make the worker stop. What is unfinished stays uncommitted."""
        if not self._failed.done():
            self._failed.set_result(reason)

    async def failed(self) -> str:
        """Wait until the worker has to stop. Returns the reason."""
        return await asyncio.shield(self._failed)

    async def start(self) -> None:
        """Open everything.

        Raises:
            WorkerError, StopWorker, IndexNotOpened: with a sentence that says what to do.
            BundleError: the bundle is not what it should be.
            TopicsError: the broker cannot be reached.
        """
        started_s = time.monotonic()
        try:
            await self._open()
        except BaseException:
            # What was opened closes now, or with the process: the reason is not held back for long.
            await asyncio.wait({asyncio.ensure_future(self.stop())}, timeout=ABANDON_S)
            raise
        log.info("worker_started", role=self._role, seconds=round(time.monotonic() - started_s, 2))
        self.background.start(self._announce_ready(started_s))

    async def stop(self) -> None:
        """Take no more, finish what is in hand, commit, leave the group, and close in reverse order."""
        await self.background.stop()
        await self._stack.aclose()

    async def _open(self) -> None:
        settings, status = self._settings, self.status
        encoder = await asyncio.to_thread(
            load, settings.bundle_path, threads=settings.encoder_threads, device=settings.device
        )
        status.bundle_id = encoder.id
        log.info("bundle_loaded", bundle=encoder.id, providers=encoder.providers)
        problems = await topics.check(settings)
        if fatal := [str(problem) for problem in problems if problem.fatal]:
            raise WorkerError("; ".join(fatal))
        for problem in problems:
            log.warning("topic_deviates", **problem._asdict())
        status.deviations = [str(problem) for problem in problems]
        # First, so that /healthz tells how far the start has come.
        examine = self._examined if self._examine is not None else None
        page = live_page(settings, status, self.metrics, self.observer, encoder, examine)
        self._stack.push_async_callback(page.close)
        token = settings.admin_token.get_secret_value() if settings.admin_token is not None else None
        guard = Guard(token, settings.live_open and is_local(settings.web_host))
        add_page = partial(add_live, door_guard=guard, parts=page.parts)
        probes = routes.probes(self.metrics, status.health, status.readiness, settings, add_page)
        await probes.start(settings.web_host, settings.web_port)
        self._stack.push_async_callback(probes.stop)
        self.web_address = probes.address
        if token is not None:
            data = routes.data(token, status.describe_user, status.describe_items)
            await data.start(settings.admin_host, settings.admin_port)
            self._stack.push_async_callback(data.stop)
            self.admin_address = data.address
        names = Topics.named(settings.topic_prefix)
        producer = await self._stack.enter_async_context(started(producer_of(settings)))
        clock = status.clock = BrokerClock(producer, names.trends)
        await clock.measure()  # before the first request
        self.background.start(clock.run())
        self.background.start(time_the_loop(self.metrics.loop_delay_seconds))
        dead_letters = DeadLetters(producer, names.dead_letters, self.metrics)
        engine = engine_of(settings)
        encodes, fills_own = self._role != "interests", engine.filled_by == "each worker"
        common = Common(
            settings,
            names,
            encoder,
            producer,
            dead_letters,
            self.metrics,
            self.background,
            self.observer,
            clock,
            self.fail,
            KeyHolders() if encodes and fills_own else None,
        )
        index = None
        if self._role != "catalog" or not fills_own:
            index = await open_index(settings, encoder.id, encoder.dim, encoder.manifest.radius)
            self._stack.push_async_callback(index.close)
            index = status.index = TimedIndex(index, self.metrics)
        groups: list[ConsumerGroup] = []
        if index is not None and self._role in ("all", "interests"):
            answers = await self._stack.enter_async_context(started(producer_of(settings)))
            idempotent = producer_of(settings, enable_idempotence=True)
            states = await self._stack.enter_async_context(started(idempotent))
            status.interests = InterestsRole(common, index, answers, states)
            groups.append(await status.interests.open(self._stack))
        if self._role in ("all", "catalog"):
            status.catalog = CatalogRole(common, index)
            groups.append(await status.catalog.open(self._stack))
        for group in groups:
            group.failed.add_done_callback(lambda failed: self.fail(failed.result()))
            self._stack.push_async_callback(group.stop)
            await group.join()
        watchdog = status.watchdog = Watchdog(
            status.progress, self.fail, partial(ask_every_broker, producer.client)
        )
        watchdog.start()
        self._stack.push_async_callback(watchdog.stop)
        self.metrics.worker.info(
            {
                "version": __version__,
                "role": self._role,
                "bundle": encoder.id,
                "providers": ",".join(encoder.providers),
                "index": engine.name,
            }
        )
        self.background.start(status.keep_gauges(self.metrics, watchdog))
        self.background.start(membership.watch(settings, status.watched_groups(), status.tell_of_groups))
        if index is not None:
            self.background.start(keep_counting_items(self.metrics, index))

    async def _examined(self) -> Sequence[tuple[str, bool, str]]:
        assert self._examine is not None
        return await self._examine(self.web_address)

    async def _announce_ready(self, started_s: float) -> None:
        while not self.status.is_complete:  # noqa: ASYNC110 - it is a sum of many states, not one event
            await asyncio.sleep(_READY_POLL_S)
        self.status.ready.set()
        log.info("worker_ready", role=self._role, seconds=round(time.monotonic() - started_s, 2))


@contextlib.asynccontextmanager
async def started(producer: Producer) -> AsyncIterator[Producer]:
    """A producer for as long as the block runs. Raises WorkerError when the broker cannot be reached."""
    try:
        await producer.start()
    except KafkaError as error:
        raise WorkerError(f"the broker cannot be reached ({type(error).__name__}: {error})") from error
    try:
        yield producer
    finally:
        await producer.stop()
