"""Answers, each handed to the request that waits for it.

A client names a partition of the responses topic in the header ``reply_partition`` of its requests, and reads that one alone.
A worker that honours the header echoes it. Others, of earlier versions, answer on the partition of the user's
key, so a client reads all partitions until the echo has shown that it need not:

| what is seen | what is read from then on |
|---|---|
| the echo of our header | our partition |
| an answer of ours without the echo | all partitions, for good |
| no answer in time | all partitions, until the next echo |
"""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from typing import Final

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from headwater.client_errors import ClientError
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.headers import (
    CORRELATION_HEADERS,
    Header,
    Headers,
    header,
    reply_partition_header,
)
from headwater.messages import BadMessage, Response, decode_response
from headwater.tasks import ended

_POLL_S: Final = 0.5
# A topic made a moment ago is known after one or two rounds.
_METADATA_S: Final = 0.02
# Answers handled before other tasks have their turn.
_MOST_TAKEN: Final = 500


class Replies:
    """Reads ``topic`` by a started ``consumer``, which stays the caller's.

    ``fail`` makes a sentence of what ends the reading, and ``failure`` has that sentence from then on.
    """

    def __init__(self, consumer: Consumer, topic: str, fail: Callable[[Exception], ClientError]) -> None:
        self._consumer, self._topic, self._fail = consumer, topic, fail
        self._waiting: dict[str, asyncio.Future[Response]] = {}
        self._home = TopicPartition(topic, 0)
        self._others: list[TopicPartition] = []
        self._reads_all = True
        self._may_narrow = True
        self._header = reply_partition_header(0)
        self._reader: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self.failure: asyncio.Future[ClientError] = asyncio.get_running_loop().create_future()
        self._widening: asyncio.Task[None] | None = None

    @property
    def reads_all(self) -> bool:
        """Whether the partitions that this client did not name are read too."""
        return self._reads_all

    async def start(self) -> None:
        """Read from the end on. Raises KafkaError."""
        # Naming one partition makes the consumer learn of all.
        self._consumer.assign([self._home])
        while not (numbers := self._consumer.partitions_for_topic(self._topic)):  # noqa: ASYNC110 - no event says so
            await asyncio.sleep(_METADATA_S)
        partitions = [TopicPartition(self._topic, number) for number in sorted(numbers)]
        self._consumer.assign(partitions)
        # A position that is only "the end, whenever first fetched" would miss an answer that is faster.
        for partition, end in (await self._consumer.end_offsets(partitions)).items():
            self._consumer.seek(partition, end)
        self._home = random.choice(partitions)
        self._others = [partition for partition in partitions if partition != self._home]
        self._header = reply_partition_header(self._home.partition)
        self._may_narrow = bool(self._others)
        self._reader = asyncio.create_task(self._read(), name="headwater-answers")

    async def close(self) -> None:
        """Stop reading. Calls that wait go on waiting: see :meth:`give_up`."""
        await ended(task for task in (self._reader, self._widening, self._looking) if task is not None)

    def expect(self, request_id: str) -> tuple["asyncio.Future[Response]", list[Header]]:
        """The coming answer to a request, and the headers to send it with. Let go of it by :meth:`forget`."""
        answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = answer
        # The worker echoes the id: answers to others are then told apart without being decoded.
        return answer, [(CORRELATION_HEADERS[0], request_id.encode()), self._header]

    def forget(self, request_id: str) -> None:
        """Nobody waits for this answer any more."""
        del self._waiting[request_id]

    def expects(self, request_id: str) -> bool:
        """Whether an answer with this id is waited for."""
        return request_id in self._waiting

    def give_up(self, error: Exception) -> None:
        """Everyone who waits gets ``error``."""
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(error)

    async def read_all(self) -> None:
        """Read all partitions, from their ends on, until an echo shows again that ours is enough."""
        if widening := self.start_reading_all():
            await asyncio.shield(widening)

    def start_reading_all(self) -> "asyncio.Task[None] | None":
        """The same, soon. Returns what it has to wait for, if anything."""
        if self._reads_all:
            return None
        if self._widening is None or self._widening.done():
            self._widening = asyncio.create_task(self._widen())
        return self._widening

    def look_for_cause(self) -> None:
        """A request got no answer: read all partitions, and look whether they are still there."""
        self.start_reading_all()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_at_partitions())

    async def _look_at_partitions(self) -> None:
        """A broker that has lost its topics gets them anew, perhaps fewer: workers cannot answer on those that are gone."""
        with suppress(KafkaError):
            await self._consumer.client.force_metadata_update()
            there = self._consumer.partitions_for_topic(self._topic)
            known = {tp.partition for tp in (self._home, *self._others)}
            if there and (gone := sorted(known - there)):
                self._end(
                    ClientError(
                        f"{self._topic} has no partition {gone[0]} any more, since the topic was made again: connect again"
                    )
                )

    async def _widen(self) -> None:
        # Not from where they were left, perhaps hours ago. Where their ends are not told, from there all the same.
        with suppress(KafkaError):
            for partition, end in (await self._consumer.end_offsets(self._others)).items():
                self._consumer.seek(partition, end)
        self._consumer.resume(*self._others)
        self._reads_all = True

    def _narrow(self) -> None:
        # Paused, not taken from the assignment: the fetch that is held at the broker goes on and brings our answers.
        self._consumer.pause(*self._others)
        self._reads_all = False

    async def _read(self) -> None:
        consumer = self._consumer

        def take() -> int:
            taken = [
                *chain.from_iterable(consumer.poll_buffered(consumer.assignment(), _MOST_TAKEN).values())
            ]
            for record in taken:
                self._take(record.value, record.headers)
            return len(taken)

        consumer.on_records = take  # answers are handed over as they arrive
        while True:
            try:
                while take() == _MOST_TAKEN:  # noqa: ASYNC110 - there is more; others have their turn
                    await asyncio.sleep(0)
                await consumer.wait_for_records(_POLL_S)
            except KafkaError as error:
                if not error.retriable:
                    self._end(self._fail(error))
                    raise
                await asyncio.sleep(_POLL_S)
            except Exception as error:
                self._end(self._fail(error))
                raise

    def _end(self, failure: ClientError) -> None:
        if not self.failure.done():
            self.failure.set_result(failure)
        self.give_up(failure)

    def _take(self, value: bytes | None, headers: Headers) -> None:
        """Answers to others, and repeated ones, are left alone."""
        correlation = header(headers, CORRELATION_HEADERS[0])
        if correlation and (correlation[1] or b"").decode("utf-8", "replace") not in self._waiting:
            return
        try:
            response = decode_response(value)
        except BadMessage:
            return  # not written by a worker; the request gets its timeout
        answer = self._waiting.get(response.request_id)
        if answer is None or answer.done():
            return
        answer.set_result(response)
        if self._may_narrow and self._header in headers:
            if self._reads_all:
                self._narrow()
        elif self._others:
            self._may_narrow = False
            self.start_reading_all()
