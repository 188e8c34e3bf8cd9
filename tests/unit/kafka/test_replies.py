"""Whose answers a client reads: its own, as soon as workers honour the partition that its requests name."""

import asyncio

import pytest

from headwater.client import Client, ClientError, RecallTimeout
from headwater.kafka.partitioner import partition_of
from headwater.settings import Settings
from tests.support.fake_worker import LONG_MS, answering


async def test_only_the_partition_that_a_worker_has_answered_on_is_read_from_then_on(
    system: Settings,
) -> None:
    async with answering(system) as worker, Client(system) as client:
        worker.honours_partitions = True
        assert len(read_by(client)) == system.partitions
        await client.recall("ann", deadline_ms=LONG_MS, reads="any")
        (alone,) = read_by(client)
        for user in ("ben", "cat", "dan", "eve"):
            await client.recall(user, deadline_ms=LONG_MS, reads="any")
    assert worker.answered_on == [alone] * 5


async def test_a_worker_of_an_earlier_version_is_heard_on_any_partition(system: Settings) -> None:
    async with answering(system) as worker, Client(system) as client:
        for user in ("ann", "ben", "cat", "dan", "eve"):
            await client.recall(user, deadline_ms=LONG_MS, reads="any")
        assert len(read_by(client)) == system.partitions
    assert len(set(worker.answered_on)) > 1


async def test_where_workers_of_both_versions_answer_a_silent_request_is_sent_again_and_all_is_read_for_good(
    system: Settings,
) -> None:
    async with answering(system) as worker, Client(system) as client:
        worker.honours_partitions = True
        await client.recall("ann", deadline_ms=LONG_MS, reads="any")
        (alone,) = read_by(client)
        worker.honours_partitions = False
        names = (f"user-{n}" for n in range(100))
        elsewhere = next(each for each in names if partition_of(each.encode(), system.partitions) != alone)
        answer = await client.recall(elsewhere, deadline_ms=500, timeout_s=LONG_MS / 1000, reads="any")
        assert answer.user_id == elsewhere
        worker.honours_partitions = True
        await client.recall("ann", deadline_ms=LONG_MS, reads="any")
        assert len(read_by(client)) == system.partitions


async def test_a_client_whose_partitions_are_gone_says_so_instead_of_waiting_for_ever(
    system: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a broker in memory that was started again, and made the topic when the client asked for it."""
    async with Client(system) as client:
        assert client._connection is not None
        monkeypatch.setattr(client._connection._consumer, "partitions_for_topic", lambda _: {0})
        with pytest.raises(RecallTimeout):
            await client.recall("ann", deadline_ms=1, timeout_s=0.1, reads="any")
        async with asyncio.timeout(LONG_MS / 1000):
            why = str(await client.broken())
        assert "responses.v1 has no partition 1 any more" in why
        for call in (client.recall("ann", reads="any"), client.check_broker()):
            with pytest.raises(ClientError, match="has no partition 1 any more"):
                await call


def read_by(client: Client) -> list[int]:
    """The partitions of the responses topic that a client fetches."""
    assert client._connection is not None
    consumer = client._connection._consumer
    assert consumer is not None
    return sorted(tp.partition for tp in consumer.assignment() - consumer.paused())
