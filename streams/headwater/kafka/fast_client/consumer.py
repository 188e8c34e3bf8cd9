"""aiokafka's consumer without the waits that it leaves in. README.md says what each patch is for and what it buys."""

import asyncio
from collections.abc import Callable, Collection, Container, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer.fetcher import FetchError, FetchResult
from aiokafka.errors import ConsumerStoppedError

from headwater.kafka.fast_client.dispatch import install_empty_fetch_pause, install_immediate_dispatch
from headwater.kafka.fast_client.fetch_codec import install_fast_codec
from headwater.kafka.fast_client.fetch_plan import Node, UrgentConnections, install_fast_planner, node_of
from headwater.kafka.fast_client.records import (
    BufferedFetches,
    LightRecords,
    Record,
    Unreadable,
    next_records,
)

# Closing takes milliseconds where the broker answers.
_STOP_AGAIN_S: Final = 2.0


class Consumer(AIOKafkaConsumer):  # type: ignore[misc]
    """Everything that aiokafka's consumer is, and reading without waiting beside it.

    Topics named ``urgent`` are fetched apart from the others. ``on_records``, if set, is called as soon as a fetch has
    brought something. It polls by :meth:`poll_buffered` and returns how many records it took. It must not block. What
    it raises, :meth:`wait_for_records` raises. Use either these two methods or ``getmany``, not both at a time.
    """

    def __init__(self, *topics: str, urgent: Collection[str] = (), **options: Any) -> None:
        super().__init__(*topics, **options)
        self.urgent = frozenset(urgent)
        self.on_records: Callable[[], int] | None = None
        self.handler_error: Exception | None = None  # of `on_records`
        self.unreadable: list[Unreadable] = []  # of the last poll
        self._dispatching: Node | None = None  # the node whose fetch `on_records` is called for
        self._polled_from: dict[TopicPartition, int] = {}  # the position before the last poll that moved it
        self._leader_epochs: dict[TopicPartition, int] = {}  # of the newest batch that was polled

    async def start(self) -> None:
        """Join, and patch the fetcher.

        The order matters where several wrap `_proc_fetch_request`: the codec innermost, then the pause, so that the
        dispatch, outermost, sees only fetches that are over. The buffer is replaced before the dispatch looks at it.
        """
        await super().start()
        fetcher: Any = self._fetcher
        fetcher._client = UrgentConnections(fetcher._client)
        raw: dict[TopicPartition, bytes] = {}
        install_fast_codec(fetcher, raw)
        install_empty_fetch_pause(fetcher)
        install_fast_planner(fetcher, self.urgent)
        fetcher._records = BufferedFetches(fetcher, self.urgent, lambda: self.on_records is not None, raw)
        install_immediate_dispatch(self, fetcher)

    async def stop(self) -> None:
        """Close, and leave the group.

        aiokafka's task that fetches misses its cancellation while it waits for the fetches of a former assignment to
        end, as right after ``assign``. Its ``stop`` then waits for ever. Here the task is cancelled again.
        """
        stopping = asyncio.ensure_future(super().stop())
        try:
            while not (await asyncio.wait({stopping}, timeout=_STOP_AGAIN_S))[0]:
                self._fetcher.error_future.cancel()
        finally:
            stopping.cancel()
        await stopping

    @property
    def client(self) -> AIOKafkaClient:
        """The connections to the brokers, for requests that aiokafka's consumer does not make."""
        return self._client

    def poll_buffered(
        self, tps: Container[TopicPartition], max_records: int
    ) -> dict[TopicPartition, list[Record]]:
        """What has been fetched of ``tps``, urgent topics first, at most ``max_records`` in all. Never waits.

        Positions move past the records, and past a transaction's control records, which are not returned: a partition
        of which nothing else came has an empty list. Returns nothing while the group is rebalancing. What cannot be
        read is passed, and told in :attr:`unreadable` until the next call.
        """
        fetcher: Any = self._fetcher
        self.unreadable = []
        found: dict[TopicPartition, list[Record]] = {}
        if self._subscription.reassignment_in_progress:
            return found
        with self._subscription.fetch_context():  # tells aiokafka that the application still polls
            for tp, fetched in list(fetcher._records.items()):
                if max_records <= 0:
                    break
                if tp not in tps or not isinstance(fetched, FetchResult):
                    continue
                state = fetched._assignment.state_value(tp)
                position, theirs = state.position, fetched._partition_records
                try:
                    records = next_records(fetched, max_records)
                except Exception as error:  # noqa: BLE001 - of aiokafka's own records: wait_for_records raises it
                    del fetcher._records[tp]
                    fetcher._set_error(tp, error)
                    continue
                if isinstance(theirs, LightRecords):
                    self._leader_epochs[tp] = theirs.leader_epoch
                    if theirs.unreadable:
                        self.unreadable += theirs.unreadable
                        theirs.unreadable = []
                if not fetched.has_more():
                    del fetcher._records[tp]
                    if self._dispatching is None or self._dispatching != node_of(fetcher, tp, self.urgent):
                        fetcher._notify(fetcher._wait_consume_future)
                if records or state.position != position:
                    found[tp], self._polled_from[tp] = records, position
                    max_records -= len(records)
        return found

    def start_of(self, tp: TopicPartition) -> int:
        """The offset that the last poll of ``tp`` began at. Past that poll's predecessor where the log has lost records."""
        return self._polled_from[tp]

    def leader_epoch_of(self, tp: TopicPartition) -> int | None:
        """The leader epoch of the newest batch that the last poll of ``tp`` read of; None: it told none."""
        epoch = self._leader_epochs.get(tp, -1)
        return epoch if epoch >= 0 else None

    def position_now(self, tp: TopicPartition) -> int | None:
        """The offset after all that was polled of ``tp``; None while the client looks for it, or ``tp`` is not assigned.

        It moves without a poll only where the offset asked for is not in the log: then to the log's start.
        """
        subscription = self._subscription.subscription
        if subscription is None or subscription.assignment is None or tp not in subscription.assignment.tps:
            return None
        state = subscription.assignment.state_value(tp)
        return int(state.position) if state.has_valid_position else None

    def end_of(self, tp: TopicPartition, records: Sequence[Record] = ()) -> int:
        """The offset after ``records``, the last that were polled of ``tp``, and after control records behind them."""
        position: int = self._subscription.subscription.assignment.state_value(tp).position
        return position

    async def wait_for_records(self, timeout_s: float) -> None:
        """Wait until a fetch has brought what ``on_records`` did not poll at once, at most ``timeout_s``.

        Raises:
            KafkaError: a fetch failed for good, or brought a damaged batch.
            ConsumerStoppedError: the consumer has been stopped.
            Exception: whatever ``on_records`` raised.
        """
        fetcher: Any = self._fetcher
        if self._closed or fetcher._closed:
            raise ConsumerStoppedError
        if self.handler_error is not None:
            raise self.handler_error
        for tp, fetched in list(fetcher._records.items()):
            if isinstance(fetched, FetchError):
                del fetcher._records[tp]
                fetcher._notify(fetcher._wait_consume_future)
                fetched.check_raise()
        waiter = fetcher._create_fetch_waiter()
        await asyncio.wait([waiter], timeout=timeout_s)
        if waiter.done():
            waiter.result()
        else:
            waiter.cancel()

    def dispatch(self, node: Node) -> int:
        """Call ``on_records`` for a fetch of ``node``; how many records it polled. Raises what it raises."""
        assert self.on_records is not None
        self._dispatching = node
        try:
            return self.on_records()
        finally:
            self._dispatching = None
