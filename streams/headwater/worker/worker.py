"""A worker: everything of its role, opened in order and closed in reverse."""

import asyncio
import contextlib
import gc
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any, Final, Literal

import numpy as np
import structlog
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from headwater import __version__
from headwater.encoder.features import ACTION_NAMES, item_key
from headwater.encoder.runtime import Encoder, load
from headwater.errors import HeadwaterError, StopWorker
from headwater.index import BadVector, Index, IndexUnavailable, KeyCollision, NoRoom
from headwater.index.edge import EdgeIndex, GraphPolicy
from headwater.index.item_vectors import ItemVectors
from headwater.index.server import ServerIndex
from headwater.index.timed import TimedIndex
from headwater.kafka import topics
from headwater.kafka.dead_letters import DeadLetters
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.group import EngineApp
from headwater.kafka.partitioner import partition_of
from headwater.kafka.publish import Outgoing, producer_of, write_all
from headwater.kafka.tail import Tail
from headwater.kafka.topics import Topics
from headwater.messages import BadMessage, Trend, decode_trend, encode
from headwater.metrics import Metrics
from headwater.paths.catalog import CatalogPath, point_of_vector
from headwater.paths.clicks import ClickPath
from headwater.paths.requests import RequestPath
from headwater.profiles.actions import RETRACT
from headwater.profiles.columns import Columns
from headwater.profiles.store import Profiles
from headwater.recall.pipeline import Recall
from headwater.recall.popularity import HALF_LIFE_S, Counts, Trends
from headwater.settings import Settings, SettingsError
from headwater.worker.logging_setup import configure_logging
from headwater.worker.watchdog import TO_COMMIT, Progress, Watchdog, ask_every_broker
from headwater.worker.web.routes import Web

__all__ = ["Role", "Worker", "WorkerError", "configure_logging", "serve"]

log = structlog.get_logger(__name__)

Role = Literal["all", "interests", "catalog"]

_TRENDS_S: Final = 2.0
_GAUGES_S: Final = 1.0
# Others wait for the partitions that we give up.
_LAST_TRENDS_S: Final = 5.0
# Reading the vectors of a million items takes a minute; a topic that cannot be read fails by itself before.
_TAILS_S: Final = 900.0
_MAX_NAMES: Final = 100_000
# Python looks for garbage cycles after every 700 new objects; a batch makes ten thousand and no cycle, and that
# search took a fifth of the time of a click.
_GARBAGE_THRESHOLDS: Final = (100_000, 50, 100)
# A worker that has to stop gets so long to close; then the process ends, since everything unfinished is uncommitted.
_STOP_S: Final = 12.0
_ABANDON_S: Final = 5.0
_LEFTOVERS_S: Final = 1.0
EXIT_FAILED: Final = 1


class WorkerError(HeadwaterError):
    """The worker cannot start: one sentence with the remedy."""


class Worker:
    """One worker of a role. ``start`` returns once it consumes; ``ready`` is set once its state is complete.

    It has the process to itself: starting it sets up Python's garbage collector for its kind of work.
    """

    def __init__(self, settings: Settings, role: Role) -> None:
        self._settings, self._role = settings, role
        self._topics = Topics.named(settings.topic_prefix)
        self.metrics = Metrics()
        self.ready = asyncio.Event()
        self.web_address: str | None = None
        self.bundle_id = ""
        self._stack = contextlib.AsyncExitStack()
        self._failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._writer = secrets.randbits(63)
        self._apps: list[EngineApp] = []
        self._catalog_offsets: dict[int, int] = {}
        self._trends = Trends()
        self._item_names: dict[int, str] = {}  # of popular items that are live
        self._tails: list[Tail] = []
        self._tasks: set[asyncio.Future[Any]] = set()
        self._profiles: Profiles | None = None
        self._clicks: ClickPath | None = None
        self._catalog: CatalogPath | None = None
        self._requests: RequestPath | None = None
        self._index: Index | None = None
        self._edge: EdgeIndex | None = None
        self._vectors: ItemVectors | None = None

    def fail(self, reason: str) -> None:
        """Make the worker stop; what is unfinished stays uncommitted."""
        if not self._failed.done():
            self._failed.set_result(reason)

    async def failed(self) -> str:
        """Wait until the worker has to stop; the reason."""
        return await asyncio.shield(self._failed)

    async def start(self) -> None:
        """Open everything.

        Raises:
            WorkerError, StopWorker: with a sentence that says what to do.
            BundleError: the bundle is not what it should be.
            TopicsError: the broker cannot be reached.
        """
        started = time.monotonic()
        gc.set_threshold(*_GARBAGE_THRESHOLDS)
        try:
            await self._open()
        except BaseException:
            # What was opened closes now, or with the process: the reason does not wait for it for long.
            await asyncio.wait({asyncio.ensure_future(self.stop())}, timeout=_ABANDON_S)
            raise
        gc.freeze()  # what was made so far stays: never look through it again
        log.info("worker_started", role=self._role, seconds=round(time.monotonic() - started, 2))
        self._spawn(self._announce_ready(started))

    async def stop(self) -> None:
        """Take no more, finish what is in hand, commit, leave the group, close in reverse order."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    async def _open(self) -> None:
        settings = self._settings
        encoder = await asyncio.to_thread(
            load, settings.bundle_path, threads=settings.encoder_threads, device=settings.device
        )
        self.bundle_id = encoder.id
        log.info("bundle_loaded", bundle=encoder.id, providers=encoder.providers)
        fatal = [problem for problem in await topics.check(settings) if problem.fatal]
        if fatal:
            raise WorkerError("; ".join(str(problem) for problem in fatal))
        # First, so that /healthz tells how far the start has come.
        web = Web(self.metrics, self._health, self._describe_user, self._describe_items)
        await web.start(settings.web_host, settings.web_port)
        self._stack.push_async_callback(web.stop)
        self.web_address = web.address
        producer = await self._stack.enter_async_context(_started(producer_of(settings)))
        dead_letters = DeadLetters(producer, self._topics.dead_letters, self.metrics)
        if self._role != "catalog" or settings.qdrant_url is not None:
            self._index = await self._open_index(encoder)
        if self._role in ("all", "interests"):
            self._apps.append(await self._open_interests(encoder, producer, dead_letters))
        if self._role in ("all", "catalog"):
            self._apps.append(await self._open_catalog(encoder, producer, dead_letters))
        for app in self._apps:
            app.failed.add_done_callback(lambda failed: self.fail(failed.result()))
            self._stack.push_async_callback(app.stop)
            await app.join()
        watchdog = Watchdog(
            lambda: chain(self._progress(), self._commits()),
            self.fail,
            partial(ask_every_broker, producer.client),
        )
        watchdog.start()
        self._stack.push_async_callback(watchdog.stop)
        self.metrics.worker.info(
            {
                "version": __version__,
                "role": self._role,
                "bundle": encoder.id,
                "providers": ",".join(encoder.providers),
                "index": "server" if settings.qdrant_url else "edge",
            }
        )
        self._spawn(self._gauges(watchdog))
        if self._index is not None:
            self._spawn(self._count_items(self._index))

    async def _open_index(self, encoder: Encoder) -> Index:
        settings = self._settings
        index: Index
        if settings.qdrant_url is None:
            folder, radius = settings.data_dir / "index", encoder.manifest.radius
            try:
                graph = GraphPolicy(min_items=settings.graph_min_items)
                index = self._edge = await EdgeIndex.open(folder, encoder.dim, radius=radius, graph=graph)
            except (NoRoom, OSError) as error:
                raise WorkerError(f"HEADWATER_DATA_DIR is {settings.data_dir}: {error}") from error
        else:
            key = settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None
            try:
                index = await ServerIndex.connect(
                    settings.qdrant_url,
                    key,
                    f"items-{encoder.id}",
                    encoder.dim,
                    radius=encoder.manifest.radius,
                    grpc_port=settings.qdrant_grpc_port,
                )
            except (IndexUnavailable, ValueError) as error:
                raise WorkerError(f"HEADWATER_QDRANT_URL is {settings.qdrant_url}: {error}") from error
        self._stack.push_async_callback(index.close)
        return TimedIndex(index, self.metrics)

    async def _open_interests(
        self, encoder: Encoder, producer: Producer, dead_letters: DeadLetters
    ) -> EngineApp:
        settings, index = self._settings, self._index
        assert index is not None
        on_server = settings.qdrant_url is not None
        vectors = self._vectors = ItemVectors(encoder.dim, fetch=index.vectors if on_server else None)
        profiles = self._profiles = Profiles(
            settings,
            self._topics,
            producer,
            self.metrics,
            writer=self._writer,
            bundle_id=encoder.id,
            log_length=encoder.log_length,
            state_size=encoder.state_size,
            fail=self.fail,
        )
        # Separate threads: a request must not wait behind the encoder's work for two thousand clicks.
        click_threads = self._threads("clicks")
        request_threads = self._threads("requests")
        # And producers: each has one request on its way to a broker at a time, and an answer must not wait until states
        # are acknowledged that it does not rest on.
        answers = await self._stack.enter_async_context(_started(producer_of(settings)))
        clicks = self._clicks = ClickPath(
            profiles,
            vectors,
            encoder,
            click_threads,
            producer,
            dead_letters,
            self.metrics,
            topic=self._topics.clicks,
            partitions=settings.partitions,
        )
        items_tail = Tail(settings, self._topics.vectors, self._on_vectors, self.fail, from_end=on_server)
        trends_tail = Tail(settings, self._topics.trends, self._on_trends, self.fail)
        requests = self._requests = RequestPath(
            profiles,
            vectors,
            encoder,
            request_threads,
            Recall(index, (encoder, request_threads) if encoder.pool else None),
            answers,
            dead_letters,
            self.metrics,
            settings=settings,
            topics=self._topics,
            popular=self._trends.popular,
            catalog=lambda: self._catalog_offsets,
            is_index_ready=items_tail.caught_up.is_set,
            guard=self.guard,
        )
        self._tails = [items_tail, trends_tail]
        for tail in self._tails:
            await tail.start()
            self._stack.push_async_callback(tail.stop)
        # Clicks that come before the vectors would all be pending, and folded again later: first the vectors.
        async with asyncio.timeout(_TAILS_S):
            for tail in self._tails:
                await tail.caught_up.wait()
        await profiles.start()
        self._stack.push_async_callback(profiles.stop)
        app = EngineApp(settings.interests_group, settings)
        app.handle(self._topics.clicks, clicks.handle)
        app.handle(self._topics.requests, requests.handle, urgent=True)

        async def assigned(partitions: set[TopicPartition]) -> None:
            numbers = {tp.partition for tp in partitions if tp.topic == self._topics.clicks}
            for number in set(clicks.counts) - numbers:
                del clicks.counts[number]
            for number in numbers - set(clicks.counts):
                counts = clicks.counts[number] = Counts()
                trend = self._trends.of(number)
                if trend is not None:
                    counts.restore(trend)
            profiles.assign(numbers, app.consumer_generation_id)

        async def revoked(partitions: set[TopicPartition]) -> None:
            profiles.freeze()
            requests.drop_parked()
            await self._publish_last_trends(producer, index)

        app.on_assigned(assigned)
        app.on_interrupt(profiles.interrupt)
        app.on_revoked(revoked)
        self._spawn(self._keep_publishing_trends(producer, index))
        self._stack.push_async_callback(self._publish_last_trends, producer, index)
        return app

    async def _open_catalog(
        self, encoder: Encoder, producer: Producer, dead_letters: DeadLetters
    ) -> EngineApp:
        settings = self._settings
        catalog = self._catalog = CatalogPath(
            settings,
            self._topics,
            encoder,
            self._threads("catalog"),
            producer,
            self._index if settings.qdrant_url is not None else None,
            dead_letters,
            self.metrics,
            self.fail,
        )
        self._stack.push_async_callback(catalog.stop)
        app = EngineApp(settings.catalog_group, settings)
        app.handle(self._topics.catalog, catalog.handle)

        async def assigned(partitions: set[TopicPartition]) -> None:
            numbers = {tp.partition for tp in partitions if tp.topic == self._topics.catalog}
            catalog.assign(numbers, app.consumer_generation_id)

        async def revoked(partitions: set[TopicPartition]) -> None:
            catalog.freeze()

        app.on_assigned(assigned)
        app.on_interrupt(catalog.interrupt)
        app.on_revoked(revoked)
        return app

    def _threads(self, name: str) -> ThreadPoolExecutor:
        pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        return pool

    # What comes from the topics every worker follows

    async def _on_vectors(self, records: Sequence[ConsumerRecord]) -> None:
        index, vectors = self._index, self._vectors
        assert index is not None
        assert vectors is not None
        points = []
        for record in records:
            try:
                found = point_of_vector(record)
            except BadMessage as error:
                log.error(
                    "bad_vector_record", partition=record.partition, offset=record.offset, error=str(error)
                )
                continue
            # Vectors of another bundle mean nothing here.
            if found is not None and found[1] in ("", self.bundle_id):
                points.append(found[0])
        if self._settings.qdrant_url is None:
            try:
                await index.put(points)
            except (BadVector, KeyCollision) as error:
                log.error("vector_refused", error=str(error))
            except NoRoom as error:
                raise StopWorker(f"HEADWATER_DATA_DIR is {self._settings.data_dir}: {error}") from error
        if self._tails[0].caught_up.is_set():
            # The records carry the time of the catalog change they came from.
            ages_ms = time.time() * 1000.0 - np.array([record.timestamp for record in records])
            self.metrics.catalog_to_indexed_seconds.observe_all(np.maximum(ages_ms, 0.0) / 1000.0)
        for point in points:
            if point.vector is None:
                vectors.remove(point.key)
                self._item_names.pop(point.key, None)
            else:
                vectors.changed(point.key, point.vector)
            offset = self._catalog_offsets.get(point.partition, -1)
            self._catalog_offsets[point.partition] = max(offset, point.offset)

    async def _on_trends(self, records: Sequence[ConsumerRecord]) -> None:
        for record in records:
            try:
                self._trends.put(decode_trend(record.value))
            except BadMessage as error:
                log.error("bad_trend_record", offset=record.offset, error=str(error))

    async def _keep_publishing_trends(self, producer: Producer, index: Index) -> None:
        """What is popular in each of our partitions, every few seconds, where it changed."""
        while True:
            await asyncio.sleep(_TRENDS_S)
            await self._publish_trends(producer, index)

    async def _publish_trends(self, producer: Producer, index: Index) -> None:
        assert self._clicks is not None
        names = self._item_names
        if len(names) > _MAX_NAMES:
            names.clear()
        outgoing = []
        for number, counts in list(self._clicks.counts.items()):
            if not counts.changed:
                continue
            await asyncio.sleep(0)  # some milliseconds each, and requests in between
            top = counts.top()
            counts.changed = False  # what is counted from here on is for the next time
            try:
                payloads = await index.items([key for key, _ in top if key not in names])
            except IndexUnavailable:
                counts.changed = True
                break
            names.update((key, payload["item_id"]) for key, payload in payloads.items())
            named = [(names[key], weight) for key, weight in top if key in names]
            trend = Trend(number, counts.at_ms, HALF_LIFE_S, named)
            outgoing.append(Outgoing(str(number).encode(), encode(trend)))
        if outgoing:
            await write_all(producer, self._topics.trends, 0, outgoing)

    async def _publish_last_trends(self, producer: Producer, index: Index) -> None:
        """The clicks of the last seconds are committed and will not be counted again."""
        try:
            async with asyncio.timeout(_LAST_TRENDS_S):
                await self._publish_trends(producer, index)
        except (StopWorker, TimeoutError) as error:
            log.warning("last_trends_lost", error=str(error) or f"not written in {_LAST_TRENDS_S:g} s")

    # What is said of the worker

    def _progress(self) -> Iterator[Progress]:
        for app in self._apps:
            consumer: Any = app.consumer
            for tp in consumer.assignment():
                done = consumer.next_offset(tp)
                end = consumer.highwater(tp)
                parked = tp.topic == self._topics.requests
                if done is not None and end is not None and not parked:
                    waits = self._waits(tp.topic, tp.partition)
                    yield Progress(tp.topic, tp.partition, done, end - done, waits=waits)

    def _waits(self, topic: str, number: int) -> bool:
        """Whether the partition waits for what has a limit of its own: its state being read, or the index."""
        if topic == self._topics.catalog:
            return self._catalog is not None and self._catalog.waits(number)
        partition = self._profiles.partition(number) if self._profiles is not None else None
        return partition is not None and not partition.gate.is_open

    def _commits(self) -> Iterator[Progress]:
        for app in self._apps:
            consumer: Any = app.consumer
            for tp in consumer.assignment():
                committed, more = consumer.committing(tp)
                yield Progress(tp.topic, tp.partition, committed, more, TO_COMMIT)

    def _health(self) -> dict[str, Any]:
        partitions = self._profiles.partitions.values() if self._profiles else ()
        opening = [each.number for each in partitions if each.owned and not each.gate.is_open]
        return {
            "ok": not self._failed.done(),
            "ready": self.ready.is_set(),
            "role": self._role,
            "bundle": self.bundle_id,
            "reason": self._failed.result() if self._failed.done() else None,
            "partitions": {each.number: each.watermark for each in partitions},
            "opening": opening,
            "users": sum(len(each.columns) for each in partitions),
            "items": len(self._vectors) if self._vectors is not None else None,
            "graph": self._edge.graph_covers if self._edge is not None else None,
            "index_away_s": round(self._catalog.index_away_s) if self._catalog is not None else None,
        }

    async def _describe_user(self, user_id: str) -> dict[str, Any] | None:
        if self._profiles is None or self._index is None or self._vectors is None:
            return None
        user = user_id.encode()
        number = partition_of(user, self._settings.partitions)
        partition = self._profiles.partition(number)
        row = partition.columns.rows.get(user) if partition is not None else None
        if partition is None or row is None:
            return None
        events = [event for event in _log_of(partition.columns, row) if event.action != RETRACT]
        try:
            payloads: Mapping[int, dict[str, Any]] = await self._index.items([event.item for event in events])
        except IndexUnavailable:
            payloads = {}
        shown = [
            {
                "item_id": payloads.get(event.item, {}).get("item_id"),
                "title": payloads.get(event.item, {}).get("title"),
                "at_ms": event.at_ms,
                "action": ACTION_NAMES[event.action],
                "pending": event.item not in payloads,
            }
            for event in events
        ]
        return {
            "user_id": user_id,
            "partition": number,
            "watermark": partition.watermark,
            "events": shown,
            "pending": sum(1 for event in shown if event["pending"]),
            "last_event_id": partition.columns.last_event[row].decode() or None,
            "counters": int(np.count_nonzero(partition.columns.counter_levels[row])),
        }

    async def _describe_items(self, item_ids: list[str]) -> dict[str, dict[str, Any]]:
        """The catalog fields of those items that are in the index, by item id."""
        if self._index is None:
            return {}
        try:
            payloads = await self._index.items([item_key(item_id) for item_id in item_ids])
        except IndexUnavailable:
            return {}
        return {str(payload["item_id"]): payload for payload in payloads.values()}

    async def _announce_ready(self, started: float) -> None:
        while not self._is_complete():  # noqa: ASYNC110 - it is a sum of many states, not one event
            await asyncio.sleep(0.02)
        self.ready.set()
        log.info("worker_ready", role=self._role, seconds=round(time.monotonic() - started, 2))

    def _is_complete(self) -> bool:
        for app in self._apps:
            if not app.consumer.assignment() and not app.unassigned:
                return False
        partitions = self._profiles.partitions.values() if self._profiles else ()
        opened = all(each.gate.is_open for each in partitions if each.owned)
        return opened and all(tail.caught_up.is_set() for tail in self._tails)

    async def _gauges(self, watchdog: Watchdog) -> None:
        while True:
            for each in self._progress():
                self.metrics.lag.labels(each.topic, str(each.partition)).set(max(each.lag, 0))
                if each.topic == self._topics.clicks:
                    age_s = watchdog.still_s(each.topic, each.partition)
                    self.metrics.watermark_age_seconds.labels(str(each.partition)).set(age_s)
            if self._profiles is not None:
                partitions = list(self._profiles.partitions.values())
                self.metrics.store_users.set(sum(len(each.columns) for each in partitions))
                self.metrics.pending_clicks.set(sum(int(each.columns.pending.sum()) for each in partitions))
            if self._catalog is not None:
                self.metrics.index_away_seconds.set(self._catalog.index_away_s)
            await asyncio.sleep(_GAUGES_S)

    async def _count_items(self, index: Index) -> None:
        """On its own: the other gauges must not wait for an index that is away."""
        while True:
            with contextlib.suppress(IndexUnavailable):
                self.metrics.index_points.set(await index.count())
            await asyncio.sleep(_GAUGES_S)

    def _spawn(self, work: Any) -> None:
        self.guard(asyncio.ensure_future(work))

    def guard(self, task: asyncio.Future[None]) -> None:
        """Keep a background task; whatever it raises stops the worker."""
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Future[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        error = task.exception()
        if isinstance(error, StopWorker | SettingsError):
            self.fail(str(error))
        else:
            log.error("background_task_failed", exc_info=error)
            self.fail(f"unexpected {type(error).__name__} in the background: {error}")


def _log_of(columns: Columns, row: int) -> Sequence[Any]:
    return columns.log(np.array([row])).events(0)


@contextlib.asynccontextmanager
async def _started(producer: Producer) -> AsyncIterator[Producer]:
    try:
        await producer.start()
    except KafkaError as error:
        raise WorkerError(f"the broker cannot be reached ({type(error).__name__}: {error})") from error
    try:
        yield producer
    finally:
        await producer.stop()


async def serve(
    settings: Settings, role: Role, beside: Callable[[Worker], Coroutine[Any, Any, None]] | None = None
) -> int:
    """Run a worker until SIGTERM or SIGINT (exit code 0) or until it has to stop (1). Raises what ``start`` does.

    ``beside`` is run once it is started, until it stops; what that raises stops it.
    """
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    worker = Worker(settings, role)
    # A broker may keep a worker waiting at its start too, for as long as it likes.
    starting = asyncio.ensure_future(worker.start())
    stop = asyncio.ensure_future(stopping.wait())
    failed = asyncio.ensure_future(worker.failed())
    await asyncio.wait({starting, stop, failed}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        if (error := starting.exception()) is not None:
            await _end_what_is_left(EXIT_FAILED, str(error))  # which may be the last that is heard
            raise error
        if beside is not None:
            worker.guard(asyncio.ensure_future(beside(worker)))
        await asyncio.wait({stop, failed}, return_when=asyncio.FIRST_COMPLETED)
    code = 0
    if failed.done():
        log.critical("worker_failed", reason=failed.result())
        code = EXIT_FAILED
    failed.cancel()
    stop.cancel()
    if starting.done():
        closing, timeout_s = asyncio.ensure_future(worker.stop()), _STOP_S
    else:
        # It closes what it has opened. Nothing has been promised to anybody yet, so nothing is worth a long wait.
        closing, timeout_s = starting, _ABANDON_S
        starting.cancel()
    # Not `asyncio.timeout` nor `gather`: both wait for what they cancel, and Faust's services may swallow that.
    await asyncio.wait({closing}, timeout=timeout_s)
    if not closing.done():
        log.error("stop_timed_out", seconds=timeout_s)
        # Everything unfinished is uncommitted and will be read again.
        os._exit(code if closing is starting else code or EXIT_FAILED)
    if closing is not starting:
        closing.result()
    await _end_what_is_left(code, "stopped")
    return code


async def _end_what_is_left(code: int, reason: str) -> None:
    """The loop would wait without a limit for tasks that somebody forgot and that will not be cancelled."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        _, left = await asyncio.wait(left, timeout=_LEFTOVERS_S)
    if left:
        log.critical("tasks_left", reason=reason, tasks=sorted(repr(task.get_coro()) for task in left))
        os._exit(code)
