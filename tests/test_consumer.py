"""Pauses between fetches that bring nothing; the same consumer reads from both brokers in tests/kafka."""

import asyncio
from types import SimpleNamespace

import pytest
from aiokafka import AIOKafkaConsumer

from streams import consumer


class Fetcher:
    """Answers fetches as told: (seconds that the broker takes, whether there are records)."""

    def __init__(self, clock: SimpleNamespace, took_s: float, has_news: bool) -> None:
        self._clock, self._took_s, self._has_news = clock, took_s, has_news
        self._records: dict[str, object] = {}
        self._fetch_waiters: set[asyncio.Future[None]] = set()
        self._fetch_max_wait_ms = 500

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
    result: bool = await fetcher._proc_fetch_request(None, 0, None)
    paced._closed = True  # it never was open: nothing to close
    return result


async def test_a_fetch_that_brings_nothing_at_once_is_followed_by_a_pause(
    monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace
) -> None:
    assert not await fetched(monkeypatch, Fetcher(clock, took_s=0.0002, has_news=False))
    assert clock.pauses == [0.01]


async def test_a_fetch_without_the_partitions_that_wait_to_be_taken_is_not_held_back(
    monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace
) -> None:
    fetcher = Fetcher(clock, took_s=0.5, has_news=True)
    await fetched(monkeypatch, fetcher)
    assert fetcher._get_actions_per_node(None) == 500
    fetcher._records["clicks 0"] = object()
    assert fetcher._get_actions_per_node(None) == 10
    fetcher._records.clear()
    assert fetcher._get_actions_per_node(None) == 500


async def test_who_waits_for_records_is_woken_as_they_arrive(
    monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace
) -> None:
    fetcher = Fetcher(clock, took_s=0.5, has_news=True)
    await fetched(monkeypatch, fetcher)
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    fetcher._fetch_waiters.add(waiter)
    fetcher._records["clicks 0"] = object()
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
