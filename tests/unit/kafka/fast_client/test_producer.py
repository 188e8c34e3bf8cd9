"""What leaves when, what waits for what, and what is tried again; real brokers take it in tests/end_to_end and tests/faults."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from aiokafka import TopicPartition
from aiokafka.client import ConnectionGroup
from aiokafka.errors import (
    KafkaConnectionError,
    MessageSizeTooLargeError,
    NotLeaderForPartitionError,
    RequestTimedOutError,
)

from headwater.kafka.fast_client.producer import Producer, set_delivery_timeout

TIMEOUT_S = 0.05


class Connection:
    """Takes requests; the test answers them."""

    _request_timeout = TIMEOUT_S
    _reader = None

    def __init__(self) -> None:
        self._requests: list[tuple[None, Any, asyncio.Future[Any]]] = []
        self.is_open = True

    def connected(self) -> bool:
        return self.is_open

    def send(self, request: Any) -> Any:
        if not self.is_open:
            raise KafkaConnectionError("closed")
        answer = asyncio.get_running_loop().create_future()
        self._requests.append((None, request, answer))
        return asyncio.wait_for(answer, TIMEOUT_S)

    def close(self, reason: Any) -> None:
        self.is_open = False

    @property
    def written(self) -> list[list[tuple[str, int]]]:
        """The partitions of each request."""
        return [
            [(topic, number) for topic, partitions in request._topics for number, _ in partitions]
            for _, request, _ in self._requests
        ]

    def answer(self, offset: int, error: Any = None) -> None:
        """To the newest request, for all its partitions."""
        code = 0 if error is None else error.errno
        topics = [
            (topic, [(number, code, offset, -1, 0) for number, _ in partitions])
            for topic, partitions in self._requests[-1][1]._topics
        ]
        self._requests[-1][2].set_result(SimpleNamespace(API_VERSION=7, topics=topics))


class Broker:
    """One node, as a producer's client sees it: it gives a new connection where the last one is closed."""

    def __init__(self, producer: Producer) -> None:
        self.connection = Connection()
        self.asked_for_metadata = 0
        self._leader: int | None = 1
        client = producer.client
        client.cluster.leader_for_partition = lambda _: self._leader
        client.send, client.force_metadata_update = self._send, self._update
        client._maybe_wait_metadata = self._known
        client._conns = {(1, ConnectionGroup.DEFAULT): self.connection}
        self._client = client

    def lose_leader(self) -> None:
        self._leader = None

    async def _known(self) -> None: ...

    def _update(self) -> "asyncio.Future[bool]":
        self.asked_for_metadata += 1
        self._leader = 1
        done = asyncio.get_running_loop().create_future()
        done.set_result(True)
        return done

    async def _send(self, node: int, request: Any, **_: Any) -> Any:
        if not self.connection.is_open:
            self.connection = Connection()
            self._client._conns = dict.fromkeys(self._client._conns, self.connection)
        return await self.connection.send(request)


@pytest_asyncio.fixture
async def producer() -> AsyncIterator[Producer]:
    made = Producer(bootstrap_servers="127.0.0.1:9", retry_backoff_ms=1)
    made._closed = True  # it never was open: nothing to close
    await made._sender.start()
    yield made
    await made._sender.close()


@pytest.fixture
def broker(producer: Producer) -> Broker:
    return Broker(producer)


async def send(producer: Producer, partition: int = 0, topic: str = "t") -> "asyncio.Future[Any]":
    tp = TopicPartition(topic, partition)
    sent: asyncio.Future[Any] = await producer._message_accumulator.add_message(tp, b"k", b"v", 1.0)
    return sent


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(made: Any) -> None:
    async with asyncio.timeout(5.0):
        while not made():
            await asyncio.sleep(0.001)


async def test_what_is_sent_in_one_turn_leaves_together_in_the_next(
    producer: Producer, broker: Broker
) -> None:
    await turns(1)  # the sender begins to wait
    for partition in (0, 1):
        await send(producer, partition)
    assert broker.connection.written == []
    await turns(1)
    assert [sorted(each) for each in broker.connection.written] == [[("t", 0), ("t", 1)]]


async def test_what_cannot_wait_leaves_in_the_same_turn_and_what_comes_later_waits_for_its_answer(
    producer: Producer, broker: Broker
) -> None:
    await turns(1)
    first = await send(producer)
    producer.write_now()
    assert broker.connection.written == [[("t", 0)]]
    await send(producer, 1)
    producer.write_now()
    await turns(3)
    assert len(broker.connection.written) == 1
    broker.connection.answer(offset=2)
    assert first.done()  # in the turn in which it came
    assert broker.connection.written[1:] == [[("t", 1)]]
    broker.connection.answer(offset=3)


async def test_an_acknowledgement_reaches_its_sender_in_one_turn_and_lets_the_next_one_go(
    producer: Producer, broker: Broker
) -> None:
    first = await send(producer)
    await turns(2)
    second, other = await send(producer), await send(producer, 1)
    await turns(5)
    assert len(broker.connection.written) == 1  # one at a time
    broker.connection.answer(offset=7)
    await turns(1)
    assert first.done()
    assert first.result().offset == 7
    assert [sorted(each) for each in broker.connection.written[1:]] == [[("t", 0), ("t", 1)]]
    broker.connection.answer(offset=8)
    assert ((await second).offset, (await other).offset) == (8, 8)


async def test_what_a_broker_refuses_for_now_is_sent_again_before_what_came_later(
    producer: Producer, broker: Broker
) -> None:
    first = await send(producer)
    await turns(2)
    second = await send(producer)
    broker.connection.answer(offset=-1, error=NotLeaderForPartitionError)
    await until(lambda: len(broker.connection.written) == 2)
    broker.connection.answer(offset=3)
    await until(lambda: len(broker.connection.written) == 3)
    assert not second.done()
    broker.connection.answer(offset=4)
    assert ((await first).offset, (await second).offset) == (3, 4)
    assert broker.asked_for_metadata


async def test_what_a_broker_refuses_for_good_fails(producer: Producer, broker: Broker) -> None:
    sent = await send(producer)
    await turns(2)
    broker.connection.answer(offset=-1, error=MessageSizeTooLargeError)
    with pytest.raises(MessageSizeTooLargeError):
        await sent
    again = await send(producer)
    await turns(2)
    broker.connection.answer(offset=1)
    assert (await again).offset == 1


@pytest.mark.parametrize("fault", ["silent", "broken", "closed before"])
async def test_what_a_connection_swallows_is_sent_again_on_a_new_one(
    producer: Producer, broker: Broker, fault: str
) -> None:
    lost = broker.connection
    if fault == "closed before":
        lost.is_open = False
    sent = await send(producer)
    await turns(2)
    if fault == "broken":
        lost.is_open = False
        lost._requests[-1][2].set_exception(KafkaConnectionError("reset by peer"))
    await until(lambda: broker.connection is not lost and broker.connection.written)
    broker.connection.answer(offset=5)
    assert (await sent).offset == 5
    assert not lost.is_open
    if fault == "silent":
        assert isinstance(lost._requests[0][2].exception(), RequestTimedOutError)


async def test_an_answer_that_makes_no_sense_fails_what_waits_for_it(
    producer: Producer, broker: Broker
) -> None:
    sent = await send(producer)
    await turns(2)
    broker.connection._requests[-1][2].set_result(SimpleNamespace(API_VERSION=7, topics=[("t", [(0, 0)])]))
    with pytest.raises(ValueError, match="unpack"):
        await sent


async def test_what_needs_more_than_this_sender_is_refused() -> None:
    with pytest.raises(ValueError, match="transactional_id"):
        Producer(bootstrap_servers="127.0.0.1:9", transactional_id="t")


async def test_an_idempotent_write_is_numbered_and_given_up_when_its_time_is_over() -> None:
    """aiokafka would retry it for as long as the broker is away."""
    made = Producer(bootstrap_servers="127.0.0.1:9", retry_backoff_ms=1, enable_idempotence=True)
    made._closed = True
    made._txn_manager.set_pid_and_epoch(7, 0)
    broker = Broker(made)
    set_delivery_timeout(made, 0.0)
    await made._sender.start()
    try:
        sent = await send(made)
        await until(lambda: broker.connection.written)
        broker.connection.answer(0, NotLeaderForPartitionError)
        with pytest.raises(NotLeaderForPartitionError):
            await sent
        assert made._txn_manager.sequence_number(TopicPartition("t", 0)) == 1
    finally:
        await made._sender.close()


async def test_records_without_a_leader_wait_for_one(producer: Producer, broker: Broker) -> None:
    broker.lose_leader()
    sent = await send(producer)
    await until(lambda: broker.connection.written)
    assert broker.asked_for_metadata == 1
    broker.connection.answer(offset=0)
    assert (await sent).offset == 0
