"""Pauses between fetches that bring nothing; the same consumer reads from both brokers in tests/kafka."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import Fetcher as TheirFetcher

from streams import consumer


class Fetcher:
    """Answers fetches as told: (seconds that the broker takes, whether there are records)."""

    def __init__(self, clock: SimpleNamespace, took_s: float, has_news: bool) -> None:
        self._clock, self._took_s, self._has_news = clock, took_s, has_news
        self._records: dict[TopicPartition, object] = {}
        self._fetch_waiters: set[asyncio.Future[None]] = set()
        self._fetch_max_wait_ms = 500
        self._client = None

    def _notify(self, waiter: "asyncio.Future[None]") -> None:
        waiter.set_result(None)

    def _get_actions_per_node(self, _: object) -> int:
        return self._fetch_max_wait_ms

    async def _proc_fetch_request(self, *_: object) -> bool:
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
    assert said(consumer._plan(fetcher, assignment, (), 500)) == theirs
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
    waits = {node: each._max_wait_ms for node, each in consumer._plan(fetcher, assignment, URGENT, 500)[0]}
    assert waits == {0: 10, 1: 10} | dict.fromkeys(APART, 500)


URGENT = {"requests"}
APART = (consumer._Apart(0), consumer._Apart(1))


def told(**ways: object) -> Any:
    return said(consumer._plan(*planning(**ways), URGENT, 500))[0]


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
    assert consumer._plan(fetcher, assignment, URGENT, 500) is None
    consumer._plan_quickly(fetcher, URGENT)
    fetcher._in_flight = {consumer._Apart(1)}
    fetches = said(fetcher._get_actions_per_node(assignment))[0]
    assert 1 not in fetches
    assert fetcher._in_flight == {consumer._Apart(1)}


def test_what_is_urgent_is_taken_before_what_came_earlier() -> None:
    fetcher: Any = SimpleNamespace(_records={}, _fetch_waiters=())
    records = consumer._Fetched(fetcher, URGENT)
    for tp in TPS:
        records[tp] = object()
    assert list(records) == [*TPS[3:], *TPS[:3]]
