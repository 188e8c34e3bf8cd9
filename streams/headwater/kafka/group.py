"""Partition batches in Faust: the unit of work is everything one fetch brought of one partition.

Faust does the consuming, the group, the assignment and the commits. What it would do per message (a task, a weak
reference, gap bookkeeping: some 200 us) is done once per batch here, and its ways to lose data are closed: a batch
is committed when it has been finished, in order, and by nothing else.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, cast

import faust
import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import CommitFailedError, ConsumerStoppedError, IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode import Service
from mode.utils.futures import maybe_async

from headwater.errors import PartitionLost, StopWorker
from headwater.kafka.batch import Batch
from headwater.kafka.embedded_broker import client_id, expel_dead_members
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.fast_client.membership import membership_error
from headwater.settings import Settings

log = structlog.get_logger(__name__)

# What is fetched is begun at once; so often is looked whether somebody has stopped the service.
_NEWS_S: Final = 1.0
# A batch in hand at a rebalance or stop gets so long to finish; then it is dropped uncommitted and replayed.
_DRAIN_S: Final = 5.0
_MEMBERSHIP_S: Final = 1.0
# Where the seeks of a rebalance take longer, Faust gives it up and consumes nothing from then on, without a word: longer
# than any outage that a worker lives through.
_SEEK_TIMEOUT_S: Final = 3600.0
# aiokafka leaves the group where nothing has been fetched for so long, as while all partitions wait for an index that is
# away. What should move and does not is the watchdog's to see.
_POLL_INTERVAL_MS: Final = 7 * 86_400_000


class _ConsumerInLoop(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread, without the thread.

    Faust gives it one so that heartbeats go on while an agent blocks the loop. Here the longest that anything holds the
    loop is a fraction of a second, far less than a session lasts, and a thread competes with the work for the
    interpreter, which changes hands every 5 ms: it took a tenth of the processor time.
    """

    start, maybe_start, stop = Service.start, Service.maybe_start, Service.stop
    _stopped_set, _stop_children = Service._stopped_set, Service._stop_children
    _stop_futures, _stop_exit_stacks = Service._stop_futures, Service._stop_exit_stacks
    wait_for_shutdown = False

    async def on_stop(self) -> None:
        if self._consumer is not None:
            await self._consumer.stop()

    async def call_thread(self, fun: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        return await maybe_async(fun(*args, **kwargs))

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        await self.consumer.on_partitions_revoked(revoked)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        await self.consumer.on_partitions_assigned(assigned, generation_id)

    def _create_worker_consumer(self, transport: Any) -> AIOKafkaConsumer:
        app = cast(EngineApp, self.app)
        settings = app.engine_settings
        # Range gives partition n of co-partitioned topics to the same worker; Faust's default without tables is
        # round-robin, which does not as soon as the workers do not divide the partitions.
        self._assignor = RangePartitionAssignor
        return Consumer(
            **settings.kafka_options(),
            urgent=app.urgent,
            client_id=client_id(app.conf.id),
            group_id=app.conf.id,
            partition_assignment_strategy=[RangePartitionAssignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=settings.max_poll_records,
            max_poll_interval_ms=_POLL_INTERVAL_MS,
            max_partition_fetch_bytes=1_048_576,
            fetch_max_wait_ms=500,
            session_timeout_ms=int(settings.session_timeout_s * 1000),
            rebalance_timeout_ms=int(settings.session_timeout_s * 1000),
            heartbeat_interval_ms=int(min(3.0, settings.session_timeout_s / 5) * 1000),
            metadata_max_age_ms=30_000,
        )

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit what is still ours.

        Faust takes a refusal for a crash and ends its consumer for good, without a word to the process. A group that
        has begun its next generation refuses every late commit, and that harms nothing: what is not committed is
        read again, and skipped by the applied offsets of its users.
        """
        app = cast(EngineApp, self.app)
        assigned = self.assignment()
        mine = {
            TopicPartition(tp.topic, tp.partition): OffsetAndMetadata(offset, "")
            for tp, offset in offsets.items()
            if tp in assigned
        }
        try:
            await self._ensure_consumer().commit(mine)
        except (CommitFailedError, IllegalStateError) as error:
            log.info("commit_refused", group=app.conf.id, error=type(error).__name__)
            return False
        except KafkaError as error:
            app.fail(
                f"group {app.conf.id}: the broker refused a commit for good ({type(error).__name__}: {error}); "
                "look at the rights of this user and at the broker's log"
            )
            return False
        return True


class BatchConsumer(driver.Consumer):
    """Faust's consumer with partition batches, and our own account of what may be committed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._outstanding: dict[TP, deque[Batch]] = {}
        self._held: set[TP] = set()
        self._next: dict[TP, int] = {}
        self._fetched: Consumer | None = None  # while it is read
        self._begins_soon = False

    def _new_consumer_thread(self) -> driver.AIOKafkaConsumerThread:
        return _ConsumerInLoop(self, loop=self.loop, thread_loop=self.loop, beacon=self.beacon)

    async def _drain_messages(self, fetcher: Any) -> None:
        """Begin to handle what is fetched, as it comes, until Faust stops the fetcher.

        Faust leads each message through a callback, a channel, a stream and an agent, five tasks in all: on an idle
        machine that is half a millisecond of every click and every request.
        """
        self._fetched = self._thread._ensure_consumer()
        self._fetched.on_records = self._begin
        try:
            while not (self.should_stop or fetcher.should_stop):
                if self.flow_active:
                    self._begin()
                    await self._fetched.wait_for_records(_NEWS_S)
                else:
                    await self.wait(self.can_resume_flow.wait())
        except (ConsumerStoppedError, asyncio.CancelledError):
            if not self.app.should_stop:
                raise
        except KafkaError as error:
            app = cast(EngineApp, self.app)
            app.fail(
                f"group {app.conf.id}: the broker refuses what is read for it ({type(error).__name__}: {error}); "
                "look at the rights of this user and at the broker's log"
            )
        finally:
            self._fetched.on_records = None
            self._fetched = None

    def _begin(self) -> int:
        """Begin what has been fetched of partitions that may take more work; requests go first. How many records that is.

        Nothing is waited for between the look at the group's generation and the begin, so a rebalance finds each record
        either in hand or not taken yet.
        """
        self._begins_soon = False
        wanted = self._active_partitions - self._held
        if self._fetched is None or not wanted or not self._may_begin():
            return 0
        app = cast(EngineApp, self.app)
        left = most = app.engine_settings.max_poll_records
        fetched = self._fetched.poll_buffered(wanted, most)
        topics = [tp.topic for tp in fetched]
        for tp, records in fetched.items():
            key = TP(tp.topic, tp.partition)
            has_siblings = topics.count(tp.topic) > 1
            batch = Batch(self, key, records, app.consumer_generation_id, has_siblings)
            self._outstanding.setdefault(key, deque()).append(batch)
            self._held.add(key)
            app.begin(batch)
            left -= len(records)
        if left <= 0:
            self._begin_soon()
        return most - left

    def resume_flow(self) -> None:
        super().resume_flow()
        self._begin_soon()

    def _may_begin(self) -> bool:
        return self.flow_active and not self.should_stop and not cast(EngineApp, self.app).draining

    def _begin_soon(self) -> None:
        """At the next turn of the loop, for all partitions that are free by then."""
        if not self._begins_soon:
            self._begins_soon = True
            self.loop.call_soon(self._begin)

    def release(self, batch: Batch) -> None:
        queue = self._outstanding.get(TP(batch.topic, batch.partition))
        if queue and queue[-1] is batch:
            self._held.discard(TP(batch.topic, batch.partition))
            self._begin_soon()

    def finish(self, batch: Batch) -> None:
        tp = TP(batch.topic, batch.partition)
        queue = self._outstanding.get(tp)
        if queue is None or batch not in queue:
            return  # revoked meanwhile
        batch.finished = True
        self.release(batch)
        while queue and queue[0].finished:
            self._next[tp] = queue.popleft().last_offset + 1

    def next_offset(self, tp: TopicPartition) -> int | None:
        """The offset after the last one that may be committed; None before anything is known."""
        done = self._next.get(tp)
        return self._committed_offset.get(tp) if done is None else done

    def committing(self, tp: TopicPartition) -> tuple[int, int]:
        """The committed offset, and how much a commit that is under way adds to it: aiokafka tries one again for ever."""
        committed = self._committed_offset.get(tp) or 0
        under_way = self._commit_fut is not None
        return committed, self._next.get(tp, committed) - committed if under_way else 0

    # What Faust may commit: the end of the finished batches, and nothing else.

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Any:
        return (tp for tp in list(self._next) if topics is None or tp in topics or tp.topic in topics)

    def _new_offset(self, tp: TP) -> int | None:
        return self._next.get(tp)

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Batches know their own bounds; Faust's account of gaps between messages has no part in it."""

    async def wait_empty(self) -> None:
        """At a rebalance or stop: let the batches in hand finish, commit, forget the rest."""
        app = cast(EngineApp, self.app)
        app.interrupt()
        await app.drain(_DRAIN_S)
        # Where one is under way, Faust waits for that and does nothing more; what was finished since would be replayed.
        if not await self.commit():
            await self.commit()
        self._forget()

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        # Faust does not where nothing is revoked. A worker that had no partitions would fetch from its first ones while
        # Faust still seeks, and begin the same batch again after that.
        self.stop_flow()
        await super().on_partitions_revoked(revoked)
        self._forget()

    def _forget(self) -> None:
        self._outstanding.clear()
        self._held.clear()
        self._next.clear()

    # Faust's livelock detector looks at its own bookkeeping, which is empty here; `watchdog.py` takes its place.
    def verify_event_path(self, now: float, tp: TP) -> None:
        return


Handler = Callable[[Batch], Awaitable[None]]


class EngineApp(faust.App):
    """A consumer group of ours as a Faust app: topics in, one handler call per partition batch."""

    def __init__(self, group: str, settings: Settings) -> None:
        self.engine_settings = settings
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.urgent: set[str] = set()
        self._on_interrupt: list[Callable[[], None]] = []
        self._in_hand: set[asyncio.Task[None]] = set()
        self._handlers: dict[str, Handler] = {}
        self.draining = False  # from the begin of a rebalance or stop to the next assignment
        super().__init__(
            group,
            broker=[f"kafka://{server}" for server in settings.bootstrap_servers.split(",")],
            key_serializer="raw",
            value_serializer="raw",
            store="memory://",
            autodiscover=False,
            web_enabled=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            stream_wait_empty=True,
            broker_commit_interval=settings.commit_interval_s,
            broker_session_timeout=settings.session_timeout_s,
            broker_request_timeout=_SEEK_TIMEOUT_S,
            producer_request_timeout=60.0,
        )
        transport: Any = self.transport
        transport.Consumer = BatchConsumer
        transport.Producer = _Producer

    async def join(self) -> None:
        """Start consuming. The embedded broker never expires members that were killed, so they are expelled first."""
        await expel_dead_members(self.engine_settings, self.conf.id)
        self.add_future(self._watch_membership())
        await self.start()

    async def _watch_membership(self) -> None:
        """Fail when aiokafka has given up on the group, which Faust is not told: it would wait for partitions for ever."""
        while not self.failed.done():
            await asyncio.sleep(_MEMBERSHIP_S)
            consumer = getattr(getattr(self.consumer, "_thread", None), "_consumer", None)
            error = membership_error(consumer) if consumer is not None else None
            if error is None:
                continue
            self.fail(
                f"group {self.conf.id}: the client has given up joining it ({error}); expected a broker that "
                f"admits this user with a session timeout of {self.engine_settings.session_timeout_s:g} s "
                "(HEADWATER_SESSION_TIMEOUT_S)"
            )

    def _create_directories(self) -> None:
        """Faust keeps no tables here, so it needs no folders."""

    def handle(self, topic: str, handler: Handler, *, urgent: bool = False) -> None:
        """Call ``handler`` with every batch of ``topic``; batches of urgent topics go first.

        The handler finishes its batch itself. A raised :class:`PartitionLost` drops the batch, a :class:`StopWorker` stops
        the worker, and so does any other exception: none of them acknowledges anything.
        """
        if urgent:
            self.urgent.add(topic)
        self._handlers[topic] = handler
        cast(Any, self.topics).add(self.topic(topic))  # which is what Faust subscribes to

    def begin(self, batch: Batch) -> None:
        task = asyncio.ensure_future(self._guarded(batch))
        self._in_hand.add(task)
        task.add_done_callback(self._in_hand.discard)

    async def _guarded(self, batch: Batch) -> None:
        try:
            await self._handlers[batch.topic](batch)
        except PartitionLost:
            log.info("batch_dropped", topic=batch.topic, partition=batch.partition, reason="revoked")
        except StopWorker as error:
            self.fail(str(error))
        except Exception as error:
            log.exception("handler_failed", topic=batch.topic, partition=batch.partition)
            self.fail(f"unexpected {type(error).__name__} in the handler of {batch.topic}: {error}")

    def fail(self, reason: str) -> None:
        """Make the worker stop, unacknowledged, for ``reason``."""
        if not self.failed.done():
            self.failed.set_result(reason)

    def _crash(self, reason: BaseException) -> None:
        """Faust's services end themselves in silence when one of them fails; the process has to end with them."""
        super()._crash(reason)
        self.fail(f"Faust's consumer ended: {type(reason).__name__}: {reason}")

    def interrupt(self) -> None:
        """A rebalance or stop begins: batches that only wait for their partition's state give up."""
        for callback in self._on_interrupt:
            callback()

    def on_interrupt(self, callback: Callable[[], None]) -> None:
        self._on_interrupt.append(callback)

    async def drain(self, timeout_s: float) -> None:
        """Begin no batch until the next assignment, and wait for those in hand, at most ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        self.draining = True
        while tasks := {task for task in self._in_hand if not task.done()}:
            left_s = deadline - time.monotonic()
            if left_s <= 0.0:
                return
            await asyncio.wait(tasks, timeout=left_s)

    def on_assigned(self, callback: Callable[[set[TopicPartition]], Awaitable[None]]) -> None:
        """Call ``callback`` with the whole new assignment at every rebalance, before fetching goes on."""

        async def assigned(sender: Any, /, partitions: Iterable[TP], **kwargs: Any) -> None:
            self.draining = False
            await callback({TopicPartition(tp.topic, tp.partition) for tp in partitions})

        cast(Any, self.on_partitions_assigned).connect(assigned, weak=False)

    def on_revoked(self, callback: Callable[[set[TopicPartition]], Awaitable[None]]) -> None:
        """Call ``callback`` once the batches in hand are finished and committed, before others take over."""

        async def revoked(sender: Any, /, partitions: Iterable[TP], **kwargs: Any) -> None:
            await callback({TopicPartition(tp.topic, tp.partition) for tp in partitions})

        cast(Any, self.on_partitions_revoked).connect(revoked, weak=False)


class _Producer(driver.Producer):
    """Faust flushes its producer before commits; ours is the one that writes (see `app.py`)."""

    def _new_producer(self, transactional_id: str | None = None) -> AIOKafkaProducer:
        return AIOKafkaProducer(**cast(EngineApp, self.app).engine_settings.kafka_options())
