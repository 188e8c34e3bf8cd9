"""Where the partitions of a topic end, asked once for everyone who waits.

    ends = EndOffsets(client, "headwater.clicks.v1")
    offset = await ends.of(3)  # every record acknowledged before this line has a lower one

The end is the **last stable offset**, the first one of an open transaction if there is any. The workers read committed, so
they come no further. Kafka gives nobody a record behind an open transaction, and a broker acknowledges the commit of a
transaction shortly before it has written its end. So the broker is asked for the last record of all too. Where that lies
behind an open transaction, the end is waited for, a tenth of a second at most. Transactions that are open for longer are
the one exception to the line above; a request may name a click behind them by its position.

Two ListOffsets requests at once are in flight to each broker. They answer everyone who waited when they were sent; later
callers wait for the next ones, since the answer in flight may be older than the record that they ask about. The calls have a
connection of their own: a broker answers the requests of one connection in order, and a fetch or a write may be held for long.
"""

import asyncio
from typing import Any, Final, NamedTuple

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.errors import KafkaError, LeaderNotAvailableError, NodeNotReadyError, for_code
from aiokafka.protocol.offset import OffsetRequest, OffsetResetStrategy

from headwater.tasks import ended

# Under the isolation of the workers' consumers the end is the first offset of an open transaction; else it is that of the log.
_READ_COMMITTED: Final = 1
_READ_UNCOMMITTED: Final = 0
# Between the looks at a transaction that is open: a tenth of a second. The end of one that was committed is there in a few ms.
_PAUSES_S: Final = (0.002, 0.004, 0.008, 0.016, 0.03, 0.04)
# A new leader does not know yet how far its followers are (OFFSET_NOT_AVAILABLE, which aiokafka has no class for).
_NOT_AVAILABLE: Final = 78
# A new leader is known within a fraction of a second.
_RETRY_S: Final = 0.1


class _Ends(NamedTuple):
    """Of a partition. ``written`` was asked for first, so ``stable`` is below it only where a transaction is open."""

    written: int  # the offset after the last record
    stable: int  # the first offset of an open transaction, the same if there is none


class EndOffsets:
    """The end offsets of one topic's partitions. ``client`` stays the caller's."""

    def __init__(self, client: AIOKafkaClient, topic: str) -> None:
        self._client, self._topic = client, topic
        self._waiting: dict[
            int, list[tuple[int, asyncio.Future[_Ends]]]
        ] = {}  # (partition, answer) by broker
        self._asking: dict[int, asyncio.Task[None]] = {}  # by broker

    async def of(self, partition: int) -> int:
        """The offset of the partition's next record, as its leader knows it after this call began.

        Where a transaction is open it is waited for, a tenth of a second at most; then the end is the transaction's first
        offset. A partition without a leader is waited for, without a limit.

        Raises:
            KafkaError: the broker refused, or the client was closed.
        """
        place = TopicPartition(self._topic, partition)
        pauses, written = iter(_PAUSES_S), -1
        while True:
            try:
                leader = self._client.cluster.leader_for_partition(place)
                if leader is None or leader == -1:
                    raise LeaderNotAvailableError(place)
                ends = await self._next_answer(leader, partition)
            except KafkaError as error:
                if not error.retriable:
                    raise
                self._client.force_metadata_update()
                await asyncio.sleep(_RETRY_S)
                continue
            if written < 0:
                written = ends.written
            pause_s = next(pauses, None) if ends.stable < written else None
            if pause_s is None:
                return ends.stable
            await asyncio.sleep(pause_s)

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
        await ended(self._asking.values())
        for waiting in self._waiting.values():
            _settle(waiting, error)
        self._waiting.clear()

    def _next_answer(self, broker: int, partition: int) -> "asyncio.Future[_Ends]":
        answer: asyncio.Future[_Ends] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(broker, []).append((partition, answer))
        if broker not in self._asking:
            # It starts in the next iteration of the loop: calls made in this one share a request.
            self._asking[broker] = asyncio.create_task(self._ask_while_wanted(broker))
        return answer

    async def _ask_while_wanted(self, broker: int) -> None:
        asked: list[tuple[int, asyncio.Future[_Ends]]] = []
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

    async def _ask(self, broker: int, partitions: set[int]) -> dict[int, _Ends | KafkaError]:
        written, stable = await asyncio.gather(
            self._ends(broker, partitions, _READ_UNCOMMITTED), self._ends(broker, partitions, _READ_COMMITTED)
        )
        ends: dict[int, _Ends | KafkaError] = {}
        for partition in written.keys() & stable.keys():
            both = written[partition], stable[partition]
            error = next((each for each in both if isinstance(each, KafkaError)), None)
            ends[partition] = _Ends(*both) if error is None else error
        return ends

    async def _ends(self, broker: int, partitions: set[int], isolation: int) -> dict[int, int | KafkaError]:
        wanted = [(partition, OffsetResetStrategy.LATEST) for partition in sorted(partitions)]
        response: Any = await self._client.send(
            broker,
            OffsetRequest(-1, isolation, [(self._topic, wanted)]),
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


def _settle(waiting: "list[tuple[int, asyncio.Future[_Ends]]]", ends: _Ends | Exception) -> None:
    for _, answer in waiting:
        if answer.done():
            continue
        if isinstance(ends, Exception):
            answer.set_exception(ends)
        else:
            answer.set_result(ends)
