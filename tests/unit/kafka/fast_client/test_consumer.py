"""Pauses between fetches that bring nothing, and what is told and taken of one; the same consumer reads from both brokers in
tests/kafka."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import Fetcher as TheirFetcher
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import CorruptRecordException, UnknownError
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given
from hypothesis import strategies as st

from headwater.kafka.fast_client import consumer


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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now_s=0.0, pauses=[])

    async def sleep(seconds: float) -> None:
        clock.pauses.append(seconds)

    fake_asyncio = SimpleNamespace(sleep=sleep, CancelledError=asyncio.CancelledError)
    monkeypatch.setattr(consumer, "asyncio", fake_asyncio)
    monkeypatch.setattr(consumer, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    return clock


async def fetched(monkeypatch: pytest.MonkeyPatch, fetcher: Fetcher) -> bool:
    async def start(self: AIOKafkaConsumer) -> None:
        self._fetcher = fetcher

    monkeypatch.setattr(AIOKafkaConsumer, "start", start)
    paced = consumer.Consumer(bootstrap_servers="127.0.0.1:9")
    await paced.start()
    result: bool = await fetcher._proc_fetch_request(None, 0, SimpleNamespace(topics=[]))
    paced._closed = True  # it never was open: nothing to close
    return result


async def test_a_fetch_that_brings_nothing_at_once_is_followed_by_a_pause(
    monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace
) -> None:
    assert not await fetched(monkeypatch, Fetcher(clock, took_s=0.0002, has_news=False))
    assert clock.pauses == [0.01]


async def test_who_waits_for_records_is_woken_as_they_arrive(
    monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace
) -> None:
    fetcher = Fetcher(clock, took_s=0.5, has_news=True)
    await fetched(monkeypatch, fetcher)
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    fetcher._fetch_waiters.add(waiter)
    fetcher._records[TPS[0]] = object()
    assert waiter.done()


@pytest.mark.parametrize(("took_s", "has_news"), [(0.0002, True), (0.5, False), (0.5, True)])
async def test_records_and_fetches_that_the_broker_held_back_are_not_delayed(
    monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace, took_s: float, has_news: bool
) -> None:
    assert await fetched(monkeypatch, Fetcher(clock, took_s, has_news)) is has_news
    assert clock.pauses == []


async def test_a_pause_that_is_cancelled_by_the_closing_fetcher_ends_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(now_s=0.0)
    monkeypatch.setattr(consumer, "_PAUSE_S", 60.0)
    pausing = asyncio.create_task(fetched(monkeypatch, Fetcher(clock, took_s=0.0, has_news=False)))
    await asyncio.sleep(0.01)
    pausing.cancel()
    assert await pausing is False


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


class Untaken:
    """Records that wait to be taken, for so many more seconds before the others are asked for without theirs."""

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s

    def calculate_backoff(self) -> float:
        return self.wait_s


@pytest.mark.parametrize(
    "way",
    [
        {},
        {"_in_flight": {0}},
        {"_in_flight": {0, 1}},
        {"_records": {TPS[0]: Untaken(0.0)}, "_fetch_max_wait_ms": 10},
        {"_records": {TPS[0]: Untaken(0.001), TPS[4]: Untaken(0.002)}, "_fetch_max_wait_ms": 10},
        {"_records": {TPS[0]: Untaken(0.001)}, "_in_flight": {1}, "_fetch_max_wait_ms": 10},
    ],
)
def test_a_fetch_is_planned_as_aiokafka_plans_it(way: dict[str, object]) -> None:
    fetcher, assignment = planning(**way)
    theirs = said(fetcher._get_actions_per_node(assignment))
    assert said(consumer._plan(fetcher, assignment, (), 500, fetcher._in_flight)) == theirs
    if not way:
        assert theirs[0][1] == {"clicks": [(1, 7, 100)], "requests": [(1, 7, 100)]}


def test_urgent_topics_are_asked_for_apart_whatever_becomes_of_the_others() -> None:
    requests = {
        apart: {"requests": [(n, 7, 100) for n in (0, 1, 2) if n % 2 == apart.node]} for apart in APART
    }
    clicks = {node: {"clicks": [(n, 7, 100) for n in (0, 1, 2) if n % 2 == node]} for node in (0, 1)}
    assert told() == clicks | requests
    assert told(_in_flight={0, 1}) == requests
    assert told(_in_flight=set(APART)) == clicks
    assert told(_records={TPS[0]: Untaken(0.001), TPS[1]: Untaken(0.001)}) == requests

    fetcher, assignment = planning(_records={TPS[0]: Untaken(0.0)})
    waits = {
        node: each._max_wait_ms for node, each in consumer._plan(fetcher, assignment, URGENT, 500, ())[0]
    }
    assert waits == {0: 10, 1: 10} | dict.fromkeys(APART, 500)


URGENT = {"requests"}
APART = (consumer._Apart(0), consumer._Apart(1))


def told(**ways: object) -> Any:
    fetcher, assignment = planning(**ways)
    return said(consumer._plan(fetcher, assignment, URGENT, 500, fetcher._in_flight))[0]


@pytest.mark.parametrize(
    "way",
    [
        {"_preferred_read_replica": {TPS[0]: (1, 0.0)}},
        {"leader": None},
        {"leader": -1},
        {"state": {"has_valid_position": False}},
        {"state": {"paused": True}},
    ],
)
def test_with_anything_in_the_way_aiokafka_plans_itself_and_one_fetch_a_broker(
    way: dict[str, object],
) -> None:
    fetcher, assignment = planning(**way)
    assert consumer._plan(fetcher, assignment, URGENT, 500, ()) is None
    consumer._plan_quickly(fetcher, URGENT)
    fetcher._in_flight = {consumer._Apart(1)}
    fetches = said(fetcher._get_actions_per_node(assignment))[0]
    assert 1 not in fetches
    assert fetcher._in_flight == {consumer._Apart(1)}


def test_what_is_urgent_is_taken_before_what_came_earlier() -> None:
    fetcher: Any = SimpleNamespace(_records={}, _fetch_waiters=())
    records = consumer._Fetched(cast(Any, SimpleNamespace(on_news=None)), fetcher, URGENT)
    for tp in TPS:
        records[tp] = object()
    assert list(records) == [*TPS[3:], *TPS[:3]]


class Reading:
    """A consumer between a broker's answers, which tests make up: its fetcher is aiokafka's, but for its task."""

    def __init__(self, *, checks: bool = True) -> None:
        self.consumer = consumer.Consumer(bootstrap_servers="127.0.0.1:9", urgent=URGENT)
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
        fetcher._records, self.checks = {}, checks
        fetcher._records = consumer._Fetched(self.consumer, fetcher, URGENT)
        self.consumer._fetcher = self.fetcher = fetcher

    def fetched(self, tp: TopicPartition, *batches: bytes, offset: int = 0) -> None:
        records = PartitionRecords(
            tp, MemoryRecords(b"".join(batches)), [], offset, None, None, self.checks, 0
        )
        self.fetcher._records[tp] = FetchResult(
            tp, assignment=self.assignment, partition_records=records, backoff=0.1
        )

    def position(self, tp: TopicPartition) -> int:
        return int(self.assignment.state_value(tp).position)

    def taken(self, *tps: TopicPartition, most: int = 100) -> dict[TopicPartition, list[int]]:
        found = self.consumer.taken(tps or TPS, most)
        return {tp: [record.offset for record in records] for tp, records in found.items()}


def batch(first: int, count: int, *, control: bool = False) -> bytes:
    """Records of these offsets, as a broker stores them."""
    builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 10_000)
    for number in range(count):
        builder.append(number, 7, b"key", b"%d" % (first + number), [("name", b"header")])
    raw = bytearray(builder.build())
    raw[:8] = first.to_bytes(8, "big")  # beside the checksum
    return bytes(raw)


async def test_records_are_taken_a_batch_at_a_time_and_the_rest_later() -> None:
    reading = Reading()
    reading.fetched(TPS[0], batch(0, 3), batch(3, 4))
    reading.fetched(TPS[3], batch(0, 2))
    assert reading.taken(most=4) == {TPS[3]: [0, 1], TPS[0]: [0, 1]}
    assert reading.position(TPS[0]) == 2
    assert reading.taken(TPS[1]) == {}
    assert reading.taken(most=3) == {TPS[0]: [2, 3, 4]}
    assert reading.taken() == {TPS[0]: [5, 6]}
    assert reading.position(TPS[0]) == 7
    assert not reading.fetcher._records
    assert reading.taken() == {}


async def test_a_record_has_what_the_broker_has_of_it() -> None:
    reading = Reading()
    reading.fetched(TPS[0], batch(5, 1), offset=5)
    reading.assignment.state_value(TPS[0]).seek(5)
    [record] = reading.consumer.taken(TPS, 10)[TPS[0]]
    assert record == consumer.Record("clicks", 0, 5, 7, b"key", b"5", (("name", b"header"),))


async def test_what_lies_before_the_position_in_its_batch_is_left_out() -> None:
    reading = Reading()
    reading.assignment.state_value(TPS[0]).seek(2)
    reading.fetched(TPS[0], batch(0, 4), offset=2)
    assert reading.taken() == {TPS[0]: [2, 3]}


async def test_what_was_fetched_for_another_position_is_dropped() -> None:
    reading = Reading()
    reading.fetched(TPS[0], batch(0, 4))
    reading.assignment.state_value(TPS[0]).seek(3)
    assert reading.taken() == {}
    assert not reading.fetcher._records


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4), st.lists(st.integers(1, 7), min_size=1, max_size=9)
)
def test_however_they_are_taken_records_come_once_and_in_order(counts: list[int], takes: list[int]) -> None:
    async def run() -> None:
        reading, starts = Reading(), [sum(counts[:n]) for n in range(len(counts))]
        reading.fetched(TPS[0], *map(batch, starts, counts))
        seen: list[int] = []
        for most in [*takes, 100]:
            seen += reading.taken(most=most).get(TPS[0], [])
            assert reading.position(TPS[0]) == len(seen)
        assert seen == list(range(sum(counts)))

    asyncio.run(run())


async def test_aiokafka_itself_takes_the_same_records() -> None:
    reading = Reading()
    reading.fetched(TPS[0], batch(0, 3), batch(3, 2))
    found = await reading.fetcher.fetched_records(TPS, max_records=4)
    assert [record.offset for record in found[TPS[0]]] == [0, 1, 2, 3]
    assert reading.taken() == {TPS[0]: [4]}


async def test_a_damaged_batch_is_told_as_the_news_that_it_is() -> None:
    reading = Reading()
    damaged = bytearray(batch(0, 2))
    damaged[-1] ^= 1
    reading.fetched(TPS[0], bytes(damaged))
    assert reading.taken() == {}
    reading.consumer._closed = False
    with pytest.raises(CorruptRecordException):
        await reading.consumer.news(1.0)
    await reading.consumer.news(0.0)
    reading.consumer._closed = True


async def test_what_follows_a_damaged_batch_is_not_read_in_its_place() -> None:
    reading = Reading()
    damaged = bytearray(batch(0, 2))
    damaged[-1] ^= 1
    reading.fetched(TPS[0], bytes(damaged), batch(2, 2))
    with pytest.raises(CorruptRecordException):
        await reading.fetcher.fetched_records(TPS)
    assert await reading.fetcher.fetched_records(TPS) == {}
    assert reading.position(TPS[0]) == 0  # from where it is fetched again


async def test_what_fails_in_who_takes_records_at_once_is_told_as_news(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def start(self: AIOKafkaConsumer) -> None:
        self._fetcher = fetcher

    def fail() -> None:
        raise ValueError("a bug")

    fetcher = Fetcher(SimpleNamespace(now_s=0.0), took_s=0.5, has_news=True)
    monkeypatch.setattr(AIOKafkaConsumer, "start", start)
    reading = consumer.Consumer(bootstrap_servers="127.0.0.1:9")
    await reading.start()
    reading.on_news = fail
    assert await fetcher._proc_fetch_request(None, 0, SimpleNamespace(topics=[]))
    theirs: Any = fetcher
    theirs._closed = False
    with pytest.raises(ValueError, match="a bug"):
        await reading.news(1.0)
    reading._closed = True


async def test_an_error_wakes_who_waits_for_news_and_records_that_are_taken_at_once_do_not() -> None:
    reading = Reading()
    reading.consumer._closed = False
    reading.consumer.on_news = lambda: 0
    waiting = asyncio.ensure_future(reading.consumer.news(20.0))
    await asyncio.sleep(0)
    reading.fetched(TPS[0], batch(0, 1))
    await asyncio.sleep(0)
    assert not waiting.done()
    reading.fetcher._set_error(TPS[1], UnknownError())
    await waiting
    with pytest.raises(UnknownError):
        await reading.consumer.news(20.0)
    reading.consumer._closed = True


async def test_who_wants_to_is_called_in_the_turn_in_which_a_fetch_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[int] = []

    async def start(self: AIOKafkaConsumer) -> None:
        self._fetcher = fetcher

    fetcher = Fetcher(SimpleNamespace(now_s=0.0), took_s=0.5, has_news=True)
    monkeypatch.setattr(AIOKafkaConsumer, "start", start)
    reading = consumer.Consumer(bootstrap_servers="127.0.0.1:9")
    await reading.start()
    reading.on_news = lambda: called.append(1) or 1
    ended: Any = SimpleNamespace(active=False)
    assert not await fetcher._proc_fetch_request(ended, 0, SimpleNamespace(topics=[]))  # all was taken
    assert called == [1]
    fetcher._records[TPS[0]] = object()
    assert await fetcher._proc_fetch_request(ended, 0, SimpleNamespace(topics=[]))
    reading._closed = True


@pytest.mark.parametrize(
    ("took_ms", "busy_ms", "records", "pause_ms"),
    [
        (10.0, 9.0, 20, 12.5),  # busy nine tenths of the time: with this pause it is two fifths
        (10.0, 4.0, 20, 0.0),
        (500.0, 3.0, 1, 0.0),  # a lone click
        (80.0, 80.0, 20, 30.0),  # others keep the loop busy: clicks are fetched all the same
        (40.0, 40.0, 2_000, 0.0),  # a backlog
    ],
)
def test_small_fetches_leave_the_loop_time_for_what_is_urgent(
    took_ms: float, busy_ms: float, records: int, pause_ms: float
) -> None:
    at_s, worked_s = iter([1.0, 1.0 + took_ms / 1000]), iter([7.0, 7.0 + busy_ms / 1000])
    pace = consumer._Pace(lambda: next(at_s), lambda: next(worked_s))
    assert pace.pause_s(records) == pytest.approx(pause_ms / 1000)


@pytest.mark.parametrize(
    ("node", "untaken", "topic", "asked"),
    [
        (APART[0], TPS[3], "requests", [(0, 7, 100), (2, 7, 100)]),
        (0, TPS[0], "clicks", [(0, 7, 100), (2, 7, 100)]),
    ],
)
async def test_a_fetch_is_followed_by_the_next_of_its_half_until_something_is_left_or_it_is_cancelled(
    monkeypatch: pytest.MonkeyPatch, node: Any, untaken: TopicPartition, topic: str, asked: list[Any]
) -> None:
    async def start(self: AIOKafkaConsumer) -> None:
        self._fetcher = fetcher

    fetcher, called = Fetcher(SimpleNamespace(now_s=0.0), took_s=0.5, has_news=True), []
    planner, assignment = planning()
    theirs: Any = vars(fetcher)
    theirs.update({**vars(planner), "_in_flight": {node}, "_records": {}})
    assignment.active = True
    monkeypatch.setattr(AIOKafkaConsumer, "start", start)
    monkeypatch.setattr(consumer, "_MOST_APART_S", 0.0)
    reading = consumer.Consumer(bootstrap_servers="127.0.0.1:9", urgent=URGENT)
    await reading.start()
    reading._closed = True
    ask: Any = fetcher._proc_fetch_request

    def take() -> int:
        called.append(len(fetcher.fetches))
        if len(called) == 3:
            fetcher._records[untaken] = object()  # what cannot be taken yet
        return 1

    reading.on_news = take
    assert await ask(assignment, node, SimpleNamespace(topics=[]))
    assert called == [1, 2, 3]
    assert {each for each, _ in fetcher.fetches} == {node}
    following: Any = fetcher.fetches[1][1]
    assert {name: sorted(partitions) for name, partitions in following.topics} == {topic: asked}

    del fetcher._records[untaken]
    reading.on_news = lambda: called.append(0) or 1
    going_on = asyncio.ensure_future(ask(assignment, node, SimpleNamespace(topics=[])))
    while len(called) < 20:
        await asyncio.sleep(0)
    going_on.cancel()
    assert await going_on is False


async def test_who_handles_what_a_fetch_brought_has_its_turns_before_the_next_is_planned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def turns_before(each_takes_s: float) -> int:
        now_s, taken = 0.0, 0
        monkeypatch.setattr(consumer, "time", SimpleNamespace(monotonic=lambda: now_s))
        others = asyncio.ensure_future(consumer._after_others())
        while not others.done():
            await asyncio.sleep(0)
            now_s, taken = now_s + each_takes_s, taken + 1
        return taken

    assert await turns_before(0.0001) >= consumer._TURNS
    assert await turns_before(0.02) <= 3  # a backlog: nobody would see a request meanwhile


@pytest.mark.parametrize(("brought_by", "is_woken"), [(0, False), (APART[0], True), (None, True)])
async def test_aiokafka_plans_anew_for_what_is_taken_unless_that_is_done_where_it_came(
    brought_by: Any, is_woken: bool
) -> None:
    reading = Reading()
    reading.fetcher._client = SimpleNamespace(cluster=SimpleNamespace(leader_for_partition=lambda _: 0))
    waiting = reading.fetcher._wait_consume_future = asyncio.get_running_loop().create_future()
    reading.fetched(TPS[0], batch(0, 1))
    reading.consumer._brought_by = brought_by
    assert reading.taken() == {TPS[0]: [0]}
    assert waiting.done() is is_woken
