"""How far a log goes in an epoch: each leader is asked once, and a broker that does not tell keeps nobody waiting."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import IncompatibleBrokerVersion, NodeNotReadyError

from headwater.kafka import leader_epochs
from headwater.kafka.leader_epochs import epoch_ends

PLACES = [TopicPartition("clicks", number) for number in range(3)]
NOT_LEADER, UNDEFINED = 6, -1


class Brokers:
    """aiokafka's client: each answer is taken from ``answers``, as (error, end) by partition, or raised."""

    def __init__(self, *answers: dict[int, tuple[int, int]] | Exception, leaders: dict[int, int]) -> None:
        self._answers, self._leaders = list(answers), leaders
        self.cluster = SimpleNamespace(leader_for_partition=self._leader)
        self.topics: set[str] = set()
        self.asked: list[tuple[int, dict[int, int]]] = []  # (broker, epoch by partition)
        self.metadata_updates = 0

    def _leader(self, place: TopicPartition) -> int | None:
        """Of a topic that the client follows."""
        return self._leaders.get(place.partition) if place.topic in self.topics else None

    async def add_topic(self, topic: str) -> bool:
        self.topics.add(topic)
        return True

    def force_metadata_update(self) -> None:
        self.metadata_updates += 1

    async def send(self, broker: int, request: Any, *, group: object) -> Any:
        ((topic, partitions),) = request.build(lambda replica, topics: topics)
        self.asked.append((broker, {partition: epoch for partition, _, epoch in partitions}))
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        told = [
            (*answer[partition][:1], partition, 0, answer[partition][1])
            for partition, *_ in partitions
            if partition in answer
        ]
        return SimpleNamespace(topics=[(topic, told)])


async def ends(brokers: Brokers, *epochs: int) -> list[int | None]:
    asked = dict(zip(PLACES, epochs, strict=False))
    found = await epoch_ends(cast(Any, brokers), asked)
    return [found.get(place) for place in asked]


async def test_each_leader_is_asked_once_for_all_that_it_leads() -> None:
    brokers = Brokers({0: (0, 90), 1: (0, 70), 2: (0, UNDEFINED)}, leaders={0: 1, 1: 2, 2: 1})
    assert await ends(brokers, 4, 5, 6) == [90, 70, 0]
    assert sorted(brokers.asked) == [(1, {0: 4, 2: 6}), (2, {1: 5})]


async def test_an_error_that_passes_is_asked_again_for_these_partitions_alone() -> None:
    brokers = Brokers(
        {0: (0, 90), 1: (NOT_LEADER, -1)}, NodeNotReadyError(), {1: (0, 70)}, leaders={0: 1, 1: 1}
    )
    assert await ends(brokers, 4, 5) == [90, 70]
    assert [partitions for _, partitions in brokers.asked] == [{0: 4, 1: 5}, {1: 5}, {1: 5}]
    assert brokers.metadata_updates == 2


async def test_what_is_not_told_in_time_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader_epochs, "_TIMEOUT_S", 0.05)
    assert await ends(Brokers({0: (0, 90), 1: (NOT_LEADER, -1)}, leaders={0: 1, 1: 1}), 4, 5) == [90, None]
    assert await ends(Brokers({}, leaders={}), 4) == [None]


@pytest.mark.parametrize("refusal", [IncompatibleBrokerVersion(), NotImplementedError()])
async def test_a_broker_that_does_not_know_the_request_is_asked_once(refusal: Exception) -> None:
    brokers = Brokers(refusal, leaders={0: 1})
    assert await ends(brokers, 4) == [None]
    assert len(brokers.asked) == 1


async def test_nothing_is_known_without_a_client() -> None:
    assert await epoch_ends(None, dict.fromkeys(PLACES, 4)) == {}
