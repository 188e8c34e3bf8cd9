"""A consumer between a broker's answers, which the tests of fast_client make up: no broker, no task, aiokafka's fetcher."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, FetchResult, PartitionRecords
from aiokafka.consumer.fetcher import Fetcher as TheirFetcher
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c

from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.fast_client.fetch_plan import UrgentNode
from headwater.kafka.fast_client.records import BufferedFetches

URGENT = {"requests"}
URGENT_NODES = (UrgentNode(0), UrgentNode(1))
TPS = [TopicPartition(topic, number) for topic in ("clicks", "requests") for number in range(3)]


def planning(**ways: object) -> tuple[Any, Any]:
    """A fetcher of aiokafka's between two fetches, and its assignment: what is special about the first partition."""
    states = {
        tp: SimpleNamespace(has_valid_position=True, paused=False, position=7, resume_fut=0) for tp in TPS
    }
    vars(states[TPS[0]]).update(ways.pop("state", {}))  # type: ignore[call-overload]
    leaders = {tp: tp.partition % 2 for tp in TPS} | {TPS[0]: ways.pop("leader", 0)}
    fetcher: Any = object.__new__(TheirFetcher)
    fetcher._client = SimpleNamespace(cluster=SimpleNamespace(leader_for_partition=leaders.__getitem__))
    fetcher._records, fetcher._in_flight, fetcher._preferred_read_replica = {}, set(), {}
    fetcher._fetch_max_wait_ms, fetcher._fetch_min_bytes, fetcher._fetch_max_bytes = 500, 1, 1000
    fetcher._isolation_level, fetcher._max_partition_fetch_bytes, fetcher._client_rack = 0, 100, None
    fetcher._fetcher_timeout = 0.2
    vars(fetcher).update(ways)
    return fetcher, SimpleNamespace(tps=frozenset(TPS), state_value=states.__getitem__)


def said(plan: Any) -> Any:
    """A plan without the order, which is of chance."""
    fetches, *rest = plan
    told = {
        node: {topic: sorted(partitions) for topic, partitions in request.topics} for node, request in fetches
    }
    return told, [vars(request) | {"_topics": None} for _, request in fetches], rest


class Buffered:
    """Records that wait to be taken, for so many more seconds before the others are asked for without theirs."""

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s

    def calculate_backoff(self) -> float:
        return self.wait_s


class Fetcher:
    """Answers fetches as told: (seconds that the broker takes, whether there are records)."""

    def __init__(self, clock: SimpleNamespace, took_s: float, has_news: bool) -> None:
        self._clock, self._took_s, self._has_news = clock, took_s, has_news
        self.fetches: list[tuple[object, object]] = []
        self._records: dict[TopicPartition, object] = {}
        self._fetch_waiters: set[asyncio.Future[None]] = set()
        self._fetch_max_wait_ms = 500
        self._client = None

    def _notify(self, waiter: "asyncio.Future[None]") -> None:
        waiter.set_result(None)

    def _get_actions_per_node(self, _: object) -> int:
        return self._fetch_max_wait_ms

    async def _proc_fetch_request(self, _: object, node: object, request: object) -> bool:
        self.fetches.append((node, request))
        self._clock.now_s += self._took_s
        return self._has_news


class Reading:
    """A consumer between a broker's answers, which tests make up: its fetcher is aiokafka's, but for its task."""

    def __init__(self, *, checks: bool = True) -> None:
        self.consumer = Consumer(bootstrap_servers="127.0.0.1:9", urgent=URGENT)
        self.consumer._closed = True  # it never was open: nothing to close
        subscriptions = self.consumer._subscription = SubscriptionState()
        subscriptions.assign_from_user(TPS)
        self.assignment = subscriptions.subscription.assignment
        for tp in TPS:
            self.assignment.state_value(tp).reset_to(0)
        fetcher: Any = object.__new__(TheirFetcher)
        fetcher._loop, fetcher._closed, fetcher._subscriptions = (
            asyncio.get_running_loop(),
            False,
            subscriptions,
        )
        fetcher._fetch_waiters, fetcher._wait_consume_future, fetcher._prefetch_backoff = set(), None, 0.1
        fetcher._records, self.checks, self._raw = {}, checks, {}
        fetcher._records = BufferedFetches(
            fetcher, URGENT, lambda: self.consumer.on_records is not None, self._raw
        )
        self.consumer._fetcher = self.fetcher = fetcher

    def fetched(
        self,
        tp: TopicPartition,
        *batches: bytes,
        offset: int = 0,
        aborted: Sequence[tuple[int, int]] = (),
        end: int = 1_000,
    ) -> PartitionRecords:
        """A fetch brought these; ``aborted`` are transactions, as (producer, first offset). Returns aiokafka's records."""
        raw = self._raw[tp] = b"".join(batches)
        records = PartitionRecords(
            tp, MemoryRecords(raw), aborted, offset, None, None, self.checks, READ_COMMITTED
        )
        self.assignment.state_value(tp).highwater = end
        self.fetcher._records[tp] = FetchResult(
            tp, assignment=self.assignment, partition_records=records, backoff=0.1
        )
        return records

    def position(self, tp: TopicPartition) -> int:
        return int(self.assignment.state_value(tp).position)

    def polled(self, *tps: TopicPartition, max_records: int = 100) -> dict[TopicPartition, list[int]]:
        found = self.consumer.poll_buffered(tps or TPS, max_records)
        return {tp: [record.offset for record in records] for tp, records in found.items()}


def batch(
    first: int, count: int, *, control: bool = False, codec: int = 0, producer: int = -1, epoch: int = 0
) -> bytes:
    """Records of these offsets, as a broker stores them; those of a ``producer`` belong to a transaction."""
    builder = DefaultRecordBatchBuilder(2, codec, producer >= 0, producer, -1, -1, 10_000)
    for number in range(count):
        builder.append(number, 7, b"key", b"%d" % (first + number), [("name", b"header")])
    raw = bytearray(builder.build())
    raw[:8], raw[12:16] = (
        first.to_bytes(8, "big"),
        epoch.to_bytes(4, "big", signed=True),
    )  # beside the checksum
    if control:
        raw[22] |= 0x20
    return signed(raw)


def signed(raw: bytes | bytearray) -> bytes:
    """A batch with the checksum that it should have."""
    return bytes(raw[:17]) + calc_crc32c(bytes(raw[21:])).to_bytes(4, "big") + bytes(raw[21:])
