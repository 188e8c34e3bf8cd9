"""When a fetch is followed by what: a pause, the callback, the next fetch; real brokers do it in tests/contract."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from headwater.kafka.fast_client import dispatch
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.fast_client.dispatch import FetchPacer
from tests.support.fetching import TPS, URGENT, URGENT_NODES, Fetcher, planning


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now_s=0.0, pauses=[])

    async def sleep(seconds: float) -> None:
        clock.pauses.append(seconds)

    fake_asyncio = SimpleNamespace(sleep=sleep, CancelledError=asyncio.CancelledError)
    monkeypatch.setattr(dispatch, "asyncio", fake_asyncio)
    monkeypatch.setattr(dispatch, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    return clock


async def fetched(monkeypatch: pytest.MonkeyPatch, fetcher: Fetcher) -> bool:
    async def start(self: AIOKafkaConsumer) -> None:
        self._fetcher = fetcher

    monkeypatch.setattr(AIOKafkaConsumer, "start", start)
    paced = Consumer(bootstrap_servers="127.0.0.1:9")
    await paced.start()
    result: bool = await fetcher._proc_fetch_request(None, 0, SimpleNamespace(topics=[]))
    paced._closed = True  # it never was open: nothing to close
    return result


async def test_an_empty_fetch_that_was_not_held_is_followed_by_a_pause(
    monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace
) -> None:
    assert not await fetched(monkeypatch, Fetcher(clock, took_s=0.0002, has_news=False))
    assert clock.pauses == [0.01]


async def test_a_waiting_reader_is_woken_as_records_arrive(
    monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace
) -> None:
    fetcher = Fetcher(clock, took_s=0.5, has_news=True)
    await fetched(monkeypatch, fetcher)
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    fetcher._fetch_waiters.add(waiter)
    fetcher._records[TPS[0]] = object()
    assert waiter.done()


@pytest.mark.parametrize(("took_s", "has_news"), [(0.0002, True), (0.5, False), (0.5, True)])
async def test_records_and_held_fetches_are_followed_by_no_pause(
    monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace, took_s: float, has_news: bool
) -> None:
    assert await fetched(monkeypatch, Fetcher(clock, took_s, has_news)) is has_news
    assert clock.pauses == []


async def test_a_pause_that_is_cancelled_by_the_closing_fetcher_ends_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(now_s=0.0)
    monkeypatch.setattr(dispatch, "_EMPTY_PAUSE_S", 60.0)
    pausing = asyncio.create_task(fetched(monkeypatch, Fetcher(clock, took_s=0.0, has_news=False)))
    await asyncio.sleep(0.01)
    pausing.cancel()
    assert await pausing is False


async def test_the_callback_is_called_in_the_turn_in_which_a_fetch_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[int] = []

    async def start(self: AIOKafkaConsumer) -> None:
        self._fetcher = fetcher

    fetcher = Fetcher(SimpleNamespace(now_s=0.0), took_s=0.5, has_news=True)
    monkeypatch.setattr(AIOKafkaConsumer, "start", start)
    reading = Consumer(bootstrap_servers="127.0.0.1:9")
    await reading.start()
    reading.on_records = lambda: called.append(1) or 1
    ended: Any = SimpleNamespace(active=False)
    assert not await fetcher._proc_fetch_request(ended, 0, SimpleNamespace(topics=[]))  # all was taken
    assert called == [1]
    fetcher._records[TPS[0]] = object()
    assert await fetcher._proc_fetch_request(ended, 0, SimpleNamespace(topics=[]))
    reading._closed = True


async def test_what_the_callback_raises_is_raised_by_the_next_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def start(self: AIOKafkaConsumer) -> None:
        self._fetcher = fetcher

    def fail() -> None:
        raise ValueError("a bug")

    fetcher = Fetcher(SimpleNamespace(now_s=0.0), took_s=0.5, has_news=True)
    monkeypatch.setattr(AIOKafkaConsumer, "start", start)
    reading = Consumer(bootstrap_servers="127.0.0.1:9")
    await reading.start()
    reading.on_records = fail
    assert await fetcher._proc_fetch_request(None, 0, SimpleNamespace(topics=[]))
    theirs: Any = fetcher
    theirs._closed = False
    with pytest.raises(ValueError, match="a bug"):
        await reading.wait_for_records(1.0)
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
    pace = FetchPacer(lambda: next(at_s), lambda: next(worked_s))
    assert pace.pause_s(records) == pytest.approx(pause_ms / 1000)


@pytest.mark.parametrize(
    ("node", "untaken", "topic", "asked"),
    [
        (URGENT_NODES[0], TPS[3], "requests", [(0, 7, 100), (2, 7, 100)]),
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
    monkeypatch.setattr(dispatch, "_MAX_PAUSE_S", 0.0)
    reading = Consumer(bootstrap_servers="127.0.0.1:9", urgent=URGENT)
    await reading.start()
    reading._closed = True
    ask: Any = fetcher._proc_fetch_request

    def take() -> int:
        called.append(len(fetcher.fetches))
        if len(called) == 3:
            fetcher._records[untaken] = object()  # what cannot be taken yet
        return 1

    reading.on_records = take
    assert await ask(assignment, node, SimpleNamespace(topics=[]))
    assert called == [1, 2, 3]
    assert {each for each, _ in fetcher.fetches} == {node}
    following: Any = fetcher.fetches[1][1]
    assert {name: sorted(partitions) for name, partitions in following.topics} == {topic: asked}

    del fetcher._records[untaken]
    reading.on_records = lambda: called.append(0) or 1
    going_on = asyncio.ensure_future(ask(assignment, node, SimpleNamespace(topics=[])))
    while len(called) < 20:
        await asyncio.sleep(0)
    going_on.cancel()
    assert await going_on is False


async def test_handlers_have_their_turns_before_the_next_fetch_is_planned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def turns_before(each_takes_s: float) -> int:
        now_s, taken = 0.0, 0
        monkeypatch.setattr(dispatch, "time", SimpleNamespace(monotonic=lambda: now_s))
        others = asyncio.ensure_future(dispatch.let_handlers_run())
        while not others.done():
            await asyncio.sleep(0)
            now_s, taken = now_s + each_takes_s, taken + 1
        return taken

    assert await turns_before(0.0001) >= dispatch._TURNS
    assert await turns_before(0.02) <= 3  # a backlog: nobody would see a request meanwhile
