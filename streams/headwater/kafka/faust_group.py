"""A consumer group by Faust, in the one file that knows Faust and mode.

Faust holds the group, the assignment, the choreography of a rebalance and the commit timer. Its agents, streams and
tables are not used: they cost 200 us a message (a task, a weak reference, bookkeeping of gaps), and an exception in an
agent acknowledges what it failed on. Here a batch is committed when it has been finished, and by nothing else.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable, Mapping, Set
from typing import Any, Final, cast

import faust
import structlog
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import CommitFailedError, ConsumerStoppedError, IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode import Service
from mode.utils.futures import maybe_async

from headwater.kafka.commit_notes import note_text
from headwater.kafka.consumer_group import ConsumerGroup, GroupPosition
from headwater.kafka.embedded_broker import client_id, make_room
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.fast_client.membership import is_member, membership_error
from headwater.kafka.plain_client import PlainConsumer
from headwater.messages import Gap
from headwater.settings import Settings

log = structlog.get_logger(__name__)

# Records are begun by a callback. The reading task wakes this often to see whether the service is to stop.
_STOP_CHECK_S: Final = 1.0
# A batch in hand at a rebalance or stop may take so long to finish. Then it is dropped uncommitted, and replayed.
_DRAIN_S: Final = 5.0
_CHECK_S: Final = 1.0
# A topic is deleted and made again by hand. Each look is one small request.
_LOGS_EVERY: Final = 5
# Faust gives up a rebalance whose seeks take longer, and consumes nothing from then on without telling. So this is
# longer than any outage that a worker survives.
_SEEK_TIMEOUT_S: Final = 3600.0
# aiokafka leaves the group where nothing has been polled for so long, as while all partitions wait for an index that is
# away. Partitions that should move and do not are the watchdog's task.
_POLL_INTERVAL_MS: Final = 7 * 86_400_000


class FaustGroup(ConsumerGroup):
    """A member of a consumer group that consumes by Faust. ``fast=False`` reads with the plain client."""

    def __init__(self, name: str, settings: Settings, *, fast: bool = True) -> None:
        super().__init__(name, settings, fast=fast)
        self._app = _App(self)

    def handle(
        self, topic: str, handler: Callable[[Any], Awaitable[None]], *, urgent: bool = False, remedy: str = ""
    ) -> None:
        super().handle(topic, handler, urgent=urgent, remedy=remedy)
        cast(Any, self._app.topics).add(self._app.topic(topic))  # which is what Faust subscribes to

    async def join(self) -> None:
        await make_room(self.settings, self.name)
        self._app.add_future(self._watch())
        await self._app.start()

    async def stop(self) -> None:
        await self._app.stop()

    async def keep_gap(self, tp: TopicPartition, gap: Gap) -> bool:
        """See `ConsumerGroup.keep_gap`."""
        self.note_gap(tp, gap)
        thread = cast(_ConsumerInLoop, cast(Any, self._app.consumer)._thread)
        return await thread._commit({TP(*tp): gap.last + 1})

    @property
    def is_assigned(self) -> bool:
        return bool(self._app.unassigned or self.assignment())

    def assignment(self) -> Set[TopicPartition]:
        return cast(Set[TopicPartition], self._app.consumer.assignment())

    def position(self, tp: TopicPartition) -> GroupPosition:
        return cast(_BatchConsumer, self._app.consumer).position_of(tp)

    async def is_member(self) -> bool:
        """See `ConsumerGroup.is_member`."""
        consumer = getattr(getattr(self._app.consumer, "_thread", None), "_consumer", None)
        return consumer is not None and not self._is_draining and await is_member(consumer)

    def new_consumer(self) -> Consumer | PlainConsumer:
        """The client that Faust consumes with."""
        settings = self.settings
        return self._consumer_class(
            **settings.kafka_options(),
            urgent=self.urgent,
            client_id=client_id(self.name),
            group_id=self.name,
            partition_assignment_strategy=[RangePartitionAssignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            # What a transaction wrote is not there before it is committed, and never if it is aborted.
            isolation_level="read_committed",
            max_poll_records=settings.max_poll_records,
            max_poll_interval_ms=_POLL_INTERVAL_MS,
            max_partition_fetch_bytes=1_048_576,
            fetch_max_wait_ms=500,
            session_timeout_ms=int(settings.session_timeout_s * 1000),
            rebalance_timeout_ms=int(settings.session_timeout_s * 1000),
            heartbeat_interval_ms=int(min(3.0, settings.session_timeout_s / 5) * 1000),
            metadata_max_age_ms=30_000,
        )

    def _readable(self) -> Set[TopicPartition]:
        return cast(_BatchConsumer, self._app.consumer).readable()

    async def _watch(self) -> None:
        """Pass what is lost where nothing else comes, and fail when aiokafka has given up on the group.

        Faust is not told of the latter, and would wait for partitions for ever.
        """
        for look in itertools.count():
            if self.failed.done():
                return
            await asyncio.sleep(_CHECK_S)
            self._pass_lost()
            if look % _LOGS_EVERY == 0:
                await self._check_logs()
            consumer = getattr(getattr(self._app.consumer, "_thread", None), "_consumer", None)
            error = membership_error(consumer) if consumer is not None else None
            if error is not None:
                self.fail(
                    f"group {self.name}: the client has given up joining it ({error}); expected a broker that "
                    f"admits this user with a session timeout of {self.settings.session_timeout_s:g} s "
                    "(HEADWATER_SESSION_TIMEOUT_S)"
                )


class _App(faust.App):
    """The Faust app of one group."""

    def __init__(self, group: FaustGroup) -> None:
        self.group = group
        settings = group.settings
        super().__init__(
            group.name,
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
        transport.Consumer = _BatchConsumer
        transport.Producer = _Producer

        async def assigned(sender: Any, /, partitions: Iterable[TP], **kwargs: Any) -> None:
            await group._assigned(cast(Iterable[TopicPartition], partitions), self.consumer_generation_id)

        async def revoked(sender: Any, /, partitions: Iterable[TP], **kwargs: Any) -> None:
            await group._revoked(cast(Iterable[TopicPartition], partitions))

        cast(Any, self.on_partitions_assigned).connect(assigned, weak=False)
        cast(Any, self.on_partitions_revoked).connect(revoked, weak=False)

    def _create_directories(self) -> None:
        """None: there are no tables."""

    def _crash(self, reason: BaseException) -> None:
        """Faust's services end in silence when one of them fails. The process has to end with them."""
        super()._crash(reason)
        self.group.fail(f"Faust's consumer ended: {type(reason).__name__}: {reason}")


class _BatchConsumer(driver.Consumer):
    """Faust's consumer, which begins batches and commits by the ledger of the group."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._group = cast(_App, self.app).group

    def _new_consumer_thread(self) -> driver.AIOKafkaConsumerThread:
        return _ConsumerInLoop(self, loop=self.loop, thread_loop=self.loop, beacon=self.beacon)

    async def _drain_messages(self, fetcher: Any) -> None:
        """Begin what is fetched, as it comes, until Faust stops the fetcher.

        Faust leads each message through a callback, a channel, a stream and an agent, five tasks in all. On an idle
        machine that is half a millisecond of every click and every request.
        """
        group = self._group
        reader = group._reader = self._thread._ensure_consumer()
        reader.on_records = group._begin
        try:
            while not (self.should_stop or fetcher.should_stop):
                if self.flow_active:
                    group._begin()
                    await reader.wait_for_records(_STOP_CHECK_S)
                else:
                    await self.wait(self.can_resume_flow.wait())
        except (ConsumerStoppedError, asyncio.CancelledError):
            if not self.app.should_stop:
                raise
        except KafkaError as error:
            group.fail(
                f"group {group.name}: the broker refuses what is read for it ({type(error).__name__}: {error}); "
                "look at the rights of this user and at the broker's log"
            )
        finally:
            reader.on_records = None
            group._reader = None

    def readable(self) -> Set[TopicPartition]:
        if not self.flow_active or self.should_stop:
            return set()
        return cast(Set[TopicPartition], self._active_partitions)

    def resume_flow(self) -> None:
        super().resume_flow()
        self._group._begin_soon()

    def position_of(self, tp: TopicPartition) -> GroupPosition:
        committed = self._committed_offset.get(cast(TP, tp))
        finished = self._group._ledger.next_offset(tp)
        # aiokafka retries a commit for ever, so it matters how much waits for one.
        is_committing = self._commit_fut is not None and finished is not None
        consumer = self._thread._ensure_consumer()
        written, end = consumer.highwater(tp), consumer.last_stable_offset(tp)
        return GroupPosition(
            next_offset=committed if finished is None else finished,
            end=end,
            committed=committed or 0,
            committing=finished - (committed or 0) if is_committing and finished is not None else 0,
            held_back=0 if end is None or written is None else max(written - end, 0),
        )

    # What Faust may commit: the end of the finished batches, and nothing else.

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Any:
        tps = list(self._group._ledger.committable())
        return (TP(*tp) for tp in tps if topics is None or tp in topics or tp.topic in topics)

    def _new_offset(self, tp: TP) -> int | None:
        return self._group._ledger.next_offset(cast(TopicPartition, tp))

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Nothing: batches know their own bounds."""

    async def wait_empty(self) -> None:
        """At a rebalance or stop: let the batches in hand finish, commit, forget the rest."""
        await self._group._drain(_DRAIN_S)
        # A commit under way makes Faust wait for it and do nothing more. What was finished since would be replayed.
        if not await self.commit():
            await self.commit()
        self._group._ledger.forget()

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        # Faust does not stop the flow where nothing is revoked. A worker without partitions would fetch from its first
        # ones while Faust still seeks, and begin the same batch again after that.
        self.stop_flow()
        await super().on_partitions_revoked(revoked)
        self._group._ledger.forget()

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Nothing: this detector looks at Faust's own account, which is empty. `worker/watchdog.py` takes its place."""


class _ConsumerInLoop(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread, without the thread.

    Faust has it so that heartbeats go on while an agent blocks the loop. Here the loop is never blocked for more than
    a fraction of a second, far less than a session lasts. A thread competes with the work for the interpreter, which
    changes hands every 5 ms: it took a tenth of the processor time.
    """

    start, maybe_start, stop = Service.start, Service.maybe_start, Service.stop
    _stopped_set, _stop_children = Service._stopped_set, Service._stop_children
    _stop_futures, _stop_exit_stacks = Service._stop_futures, Service._stop_exit_stacks
    wait_for_shutdown = False

    async def on_stop(self) -> None:
        if self._consumer is not None:
            await self._consumer.stop()

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """As Faust's, but from elsewhere in a log that is not the one of the commit. Batches are expected from there."""
        group, consumer = cast(_App, self.app).group, self._ensure_consumer()
        found: dict[TP, Any] = dict(await super().seek_to_committed())
        elsewhere = await group._logs.assigned(consumer, {TopicPartition(*tp) for tp in found})
        for tp, start in (await consumer.beginning_offsets(list(elsewhere))).items() if elsewhere else ():
            consumer.seek(tp, max(start, elsewhere[tp]))
            found[TP(*tp)] = None  # as far as this log is concerned
        for tp, offset in found.items():
            if offset is not None:
                group._ledger.start_at(TopicPartition(*tp), offset)
        return found

    async def call_thread(self, fun: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        return await maybe_async(fun(*args, **kwargs))

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        await self.consumer.on_partitions_revoked(revoked)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        await self.consumer.on_partitions_assigned(assigned, generation_id)

    def _create_worker_consumer(self, transport: Any) -> Consumer | PlainConsumer:
        # Range gives partition n of co-partitioned topics to the same worker. Faust's default without tables is
        # round-robin, which does not as soon as the workers do not divide the partitions.
        self._assignor = RangePartitionAssignor
        return cast(_App, self.app).group.new_consumer()

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit what is still ours.

        Faust takes a refusal for a crash and ends its consumer for good without telling the process. A group that has
        begun its next generation refuses every late commit. That harms nothing: what is not committed is read again,
        and skipped by the applied offsets of its users.
        """
        group = cast(_App, self.app).group
        assigned = self.assignment()
        mine = {
            (place := TopicPartition(*tp)): OffsetAndMetadata(offset, note_text(group._logs.note(place)))
            for tp, offset in offsets.items()
            if tp in assigned
        }
        if not mine:  # aiokafka refuses to commit nothing
            return False
        try:
            await self._ensure_consumer().commit(mine)
        except (CommitFailedError, IllegalStateError) as error:
            log.info("commit_refused", group=group.name, error=type(error).__name__)
            return False
        except KafkaError as error:
            group.fail(
                f"group {group.name}: the broker refused a commit for good ({type(error).__name__}: {error}); "
                "look at the rights of this user and at the broker's log"
            )
            return False
        return True


class _Producer(driver.Producer):
    """Faust flushes its own producer before each commit. Nothing is sent by it."""

    def _new_producer(self, transactional_id: str | None = None) -> AIOKafkaProducer:
        return AIOKafkaProducer(**cast(_App, self.app).group.settings.kafka_options(), acks="all")
