"""Questions about the end of a partition share a call, and never get the answer of one that was sent before them."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, NotLeaderForPartitionError, TopicAuthorizationFailedError

from headwater.kafka.end_offsets import EndOffsets

TOPIC = "clicks"
OFFSET_NOT_AVAILABLE = 78  # a leader that has just been elected


class Brokers:
    """aiokafka's client, of partitions led by ``leaders``: keeps each call until it is answered.

    A call asks for both ends, in two requests at once; both get ``answers``, unless a transaction that is open at
    ``open_at`` holds back what may be read.
    """

    def __init__(self, leaders: dict[int, int]) -> None:
        self.leaders = leaders
        self.cluster = SimpleNamespace(leader_for_partition=self._leader)
        self.calls: list[tuple[int, list[int]]] = []  # (broker, partitions)
        self.answers: list[asyncio.Future[dict[int, tuple[int, int]]]] = []  # (error, end) by partition
        self.open_at: int | None = None
        self.metadata_updates = 0
        self._of_all: dict[int, asyncio.Future[dict[int, tuple[int, int]]]] = {}

    def _leader(self, place: TopicPartition) -> int | None:
        return self.leaders.get(place.partition)

    def force_metadata_update(self) -> None:
        self.metadata_updates += 1

    async def send(self, broker: int, request: Any, *, group: object) -> Any:
        ((topic, partitions),) = request._topics
        assert topic == TOPIC
        if request._isolation_level == 0:
            self.calls.append((broker, [partition for partition, _ in partitions]))
            self._of_all[broker] = asyncio.get_running_loop().create_future()
            self.answers.append(self._of_all[broker])
            ends = await self._of_all[broker]
        else:  # only after the other one
            ends = await self._of_all[broker]
            if (held := self.open_at) is not None:
                ends = {partition: (code, min(end, held)) for partition, (code, end) in ends.items()}
        found = [(partition, code, -1, end, 0) for partition, (code, end) in ends.items()]
        return SimpleNamespace(API_VERSION=5, topics=[(TOPIC, found)])


def asking(leaders: dict[int, int]) -> tuple[EndOffsets, Brokers]:
    brokers = Brokers(leaders)
    return EndOffsets(cast(Any, brokers), TOPIC), brokers


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_true():
            await asyncio.sleep(0)


def all_of(*asked: Awaitable[int]) -> "asyncio.Future[list[int]]":
    return asyncio.ensure_future(asyncio.gather(*asked))


async def test_all_that_is_asked_at_once_is_one_call_to_each_broker() -> None:
    ends, brokers = asking({0: 1, 1: 1, 2: 2})
    asked = all_of(*(ends.of(n % 3) for n in range(30)))
    await until(lambda: len(brokers.answers) == 2)
    assert sorted(brokers.calls) == [(1, [0, 1]), (2, [2])]
    for (_, partitions), answer in zip(brokers.calls, brokers.answers, strict=True):
        answer.set_result({partition: (0, 100 + partition) for partition in partitions})
    assert await asked == [100, 101, 102] * 10


async def test_what_is_asked_during_a_call_waits_for_the_next_one() -> None:
    ends, brokers = asking({0: 1})
    early = all_of(ends.of(0))
    await until(lambda: len(brokers.answers) == 1)
    late = all_of(ends.of(0), ends.of(0))  # of what was stored after the broker may have looked
    await asyncio.sleep(0)
    brokers.answers[0].set_result({0: (0, 5)})
    assert await early == [5]
    await until(lambda: len(brokers.answers) == 2)
    brokers.answers[1].set_result({0: (0, 9)})
    assert await late == [9, 9]
    assert len(brokers.calls) == 2


async def answering(brokers: Brokers, end: int) -> None:
    """Answer every call, for as long as it runs."""
    while True:
        for answer in brokers.answers:
            if not answer.done():
                answer.set_result({0: (0, end)})
        await asyncio.sleep(0)


async def test_a_transaction_that_was_committed_a_moment_ago_is_waited_for() -> None:
    """The broker has acknowledged the commit, and not written the end of the transaction yet."""
    ends, brokers = asking({0: 1})
    brokers.open_at = 5
    asked, answers = asyncio.ensure_future(ends.of(0)), asyncio.ensure_future(answering(brokers, 9))
    await until(lambda: len(brokers.calls) == 2)
    brokers.open_at = None
    assert await asked == 9
    answers.cancel()


async def test_a_transaction_that_stays_open_is_waited_for_a_few_times_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("headwater.kafka.end_offsets._PAUSES_S", (0.0, 0.0))
    ends, brokers = asking({0: 1})
    brokers.open_at = 5
    answers = asyncio.ensure_future(answering(brokers, 9))
    assert await ends.of(0) == 5
    assert len(brokers.calls) == 3
    answers.cancel()


async def test_a_caller_that_gives_up_takes_nothing_from_the_others() -> None:
    ends, brokers = asking({0: 1})
    hasty, patient = asyncio.ensure_future(ends.of(0)), asyncio.ensure_future(ends.of(0))
    await until(lambda: len(brokers.answers) == 1)
    hasty.cancel()
    brokers.answers[0].set_result({0: (0, 5)})
    assert await patient == 5


@pytest.mark.parametrize("code", [NotLeaderForPartitionError.errno, OFFSET_NOT_AVAILABLE])
async def test_another_leader_is_looked_for_and_asked(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr("headwater.kafka.end_offsets._RETRY_S", 0.0)
    ends, brokers = asking({0: 1})
    asked = asyncio.ensure_future(ends.of(0))
    await until(lambda: len(brokers.answers) == 1)
    brokers.answers[0].set_result({0: (code, -1)})
    brokers.leaders[0] = 2
    await until(lambda: len(brokers.answers) == 2)
    brokers.answers[1].set_result({0: (0, 7)})
    assert await asked == 7
    assert [broker for broker, _ in brokers.calls] == [1, 2]
    assert brokers.metadata_updates == 1


async def test_a_refusal_is_told() -> None:
    ends, brokers = asking({0: 1})
    asked = asyncio.ensure_future(ends.of(0))
    await until(lambda: len(brokers.answers) == 1)
    brokers.answers[0].set_result({0: (TopicAuthorizationFailedError.errno, -1)})
    with pytest.raises(TopicAuthorizationFailedError):
        await asked


async def test_whoever_waits_at_the_end_is_told() -> None:
    ends, brokers = asking({0: 1})
    asked = asyncio.ensure_future(ends.of(0))
    await until(lambda: len(brokers.answers) == 1)
    late = asyncio.ensure_future(ends.of(0))
    await asyncio.sleep(0)
    await ends.close(KafkaError("closed"))
    for each in (asked, late):
        with pytest.raises(KafkaError, match="closed"):
            await each
