"""Where the partitions of a topic end by now, asked once for everyone who waits.

    ends = EndOffsets(client, "headwater.clicks.v1")
    offset = await ends.of(3)  # every record acknowledged before this line has a lower one

The end is the **last stable offset**, the first one of an open transaction if there is any. The workers read committed, so
they come no further. Kafka gives nobody a record behind an open transaction, and a broker acknowledges the commit of a
transaction shortly before it has written its end. That one exception apart, the line above holds; a request may name such
a click by its position.

One ListOffsets call is in flight to each broker. It answers everyone who waited when it was sent; later callers wait for the
next one, since the answer in flight may be older than the record that they ask about. The calls have a connection
of their own: a broker answers the requests of one connection in order, and a fetch or a write may be held for long.
"""

import asyncio
from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.errors import KafkaError, LeaderNotAvailableError, NodeNotReadyError, for_code
from aiokafka.protocol.offset import OffsetRequest, OffsetResetStrategy

# The isolation of the workers' consumers. Under another one the end would be where they do not come while a transaction is
# open.
_READ_COMMITTED: Final = 1
# A new leader does not know yet how far its followers are (OFFSET_NOT_AVAILABLE, which aiokafka has no class for).
_NOT_AVAILABLE: Final = 78
# A new leader is known within a fraction of a second.
_RETRY_S: Final = 0.1


class EndOffsets:
    """The end offsets of one topic's partitions. ``client`` stays the caller's."""

    def __init__(self, client: AIOKafkaClient, topic: str) -> None:
        self._client, self._topic = client, topic
        self._waiting: dict[int, list[tuple[int, asyncio.Future[int]]]] = {}  # (partition, answer) by broker
        self._asking: dict[int, asyncio.Task[None]] = {}  # by broker

    async def of(self, partition: int) -> int:
        """The offset of the partition's next record, as its leader knows it after this call began.

        A partition without a leader is waited for, without a limit.

        Raises:
            KafkaError: the broker refused, or the client was closed.
        """
        place = TopicPartition(self._topic, partition)
        while True:
            try:
                leader = self._client.cluster.leader_for_partition(place)
                if leader is None or leader == -1:
                    raise LeaderNotAvailableError(place)
                return await self._next_answer(leader, partition)
            except KafkaError as error:
                if not error.retriable:
                    raise
            self._client.force_metadata_update()
            await asyncio.sleep(_RETRY_S)

    async def connect(self) -> None:
        """Connect to the leaders that are known, so that the first caller need not wait for it. Errors are left to later calls."""
        led = self._client.cluster.available_partitions_for_topic(self._topic) or ()
        leaders = {
            self._client.cluster.leader_for_partition(TopicPartition(self._topic, each)): each for each in led
        }
        await asyncio.gather(
            *(self._next_answer(leader, partition) for leader, partition in leaders.items()),
            return_exceptions=True,
        )

    async def close(self, error: Exception) -> None:
        """End the calls in flight. Everyone who waits gets ``error``."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for waiting in self._waiting.values():
            _settle(waiting, error)
        self._waiting.clear()

    def _next_answer(self, broker: int, partition: int) -> "asyncio.Future[int]":
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(broker, []).append((partition, answer))
        if broker not in self._asking:
            # It starts in the next iteration of the loop: calls made in this one share a request.
            self._asking[broker] = asyncio.create_task(self._ask_while_wanted(broker))
        return answer

    async def _ask_while_wanted(self, broker: int) -> None:
        asked: list[tuple[int, asyncio.Future[int]]] = []
        try:
            while asked := self._waiting.pop(broker, []):
                try:
                    ends = await self._ask(broker, {partition for partition, _ in asked})
                except (KafkaError, OSError) as error:
                    _settle(asked, error if isinstance(error, KafkaError) else NodeNotReadyError(str(error)))
                else:
                    for partition, answer in asked:
                        end = ends.get(partition, LeaderNotAvailableError(partition))
                        _settle([(partition, answer)], end)
        finally:
            del self._asking[broker]
            self._waiting.setdefault(broker, []).extend(asked)  # cancelled: `close` tells them

    async def _ask(self, broker: int, partitions: set[int]) -> dict[int, int | KafkaError]:
        wanted = [(partition, OffsetResetStrategy.LATEST) for partition in sorted(partitions)]
        response: Any = await self._client.send(
            broker,
            OffsetRequest(-1, _READ_COMMITTED, [(self._topic, wanted)]),
            group=ConnectionGroup.COORDINATION,
        )
        ends: dict[int, int | KafkaError] = {}
        for _, found in response.topics:
            for partition, code, *rest in found:
                # Version 0 gives a list of offsets, later ones a timestamp, the offset, and from 4 on the leader's epoch.
                offset = rest[0][0] if response.API_VERSION == 0 else rest[1]
                error = LeaderNotAvailableError if code == _NOT_AVAILABLE else for_code(code)
                ends[partition] = error(partition) if code else int(offset)
        return ends


def _settle(waiting: "list[tuple[int, asyncio.Future[int]]]", end: int | Exception) -> None:
    for _, answer in waiting:
        if answer.done():
            continue
        if isinstance(end, Exception):
            answer.set_exception(end)
        else:
            answer.set_result(end)
