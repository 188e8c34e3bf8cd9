"""The client's connection to its broker: writes that wait their turn, requests with their answers, the ends of partitions."""

import asyncio
from collections.abc import Collection
from contextlib import suppress
from typing import Final, Self

from aiokafka.errors import KafkaError, MessageSizeTooLargeError, UnknownTopicOrPartitionError
from aiokafka.structs import RecordMetadata

from headwater.client_errors import ClientError, NoBroker, NotPublished, RecallTimeout, not_connected
from headwater.kafka.end_offsets import EndOffsets
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.headers import Header
from headwater.kafka.partitioner import partition_of
from headwater.kafka.replies import Replies
from headwater.kafka.topics import Topics
from headwater.kafka.unreachable import why_unreachable
from headwater.messages import BadMessage, Position, Request, Response
from headwater.settings import Settings

# A broker that is there answers in milliseconds; one that is not must not hold a program for minutes.
CONNECT_TIMEOUT_S: Final = 10.0
# Longer than a leader election takes, which the producer rides out by itself.
PUBLISH_TIMEOUT_S: Final = 30.0
# A worker answers by the deadline. A little later the answer is looked for on all partitions.
_SILENCE_S: Final = 0.5
_STOP_TIMEOUT_S: Final = 5.0
# Records of one partition that are handed to the producer at a time. The others wait in line: each record that finds
# the producer's batch full is woken by every batch that leaves, so 10,000 at once would cost 10,000 x 140 wake-ups.
_SENDING: Final = 256
# A thousand clicks in one request.
_BATCH_BYTES: Final = 192 * 1024


class Connection:
    """Open between :meth:`open` and :meth:`close`, once. All methods may run many times at once."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self.topics = settings, Topics.named(settings.topic_prefix)
        self._turns: dict[tuple[str, int], asyncio.Semaphore] = {}  # by topic and partition
        self._producer: Producer | None = None
        self._consumer: Consumer | None = None
        self._replies: Replies | None = None
        self._ends: EndOffsets | None = None

    async def open(self) -> Self:
        """Connect.

        Raises:
            NoBroker: none let us in.
            ClientError: the broker lacks our topics.
        """
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._open()
        except (KafkaError, OSError, TimeoutError) as error:
            await self.close()
            failure = str(error) or f"waited {CONNECT_TIMEOUT_S:g} s"
            raise NoBroker(await why_unreachable(self._settings, failure)) from error
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """Send what is still buffered, and stop. Calls that wait for an answer raise ClientError."""
        closed = ClientError("the client was closed while this request waited for its answer")
        replies, self._replies = self._replies, None
        if replies is not None:
            await replies.close()
            replies.give_up(closed)
        ends, self._ends = self._ends, None
        if ends is not None:
            await ends.close(closed)
        producer, self._producer = self._producer, None
        consumer, self._consumer = self._consumer, None
        for part in (producer, consumer):
            if part is not None:
                with suppress(KafkaError, TimeoutError):
                    async with asyncio.timeout(_STOP_TIMEOUT_S):
                        await part.stop()

    async def partition_of(self, topic: str, key: str) -> int:
        """The partition that Kafka's default partitioner gives a key. Raises KafkaError where the topic is unknown."""
        if self._producer is None:
            raise not_connected()
        return partition_of(key.encode(), len(await self._producer.partitions_for(topic)))

    async def end_of_clicks(self, partition: int) -> int:
        """The offset that the partition's next click gets. Raises KafkaError; see `EndOffsets.of`."""
        if self._ends is None:
            raise not_connected()
        return await self._ends.of(partition)

    async def publish(
        self, topic: str, key: str, value: bytes | None, limit_s: float, event_id: str | None = None
    ) -> Position:
        """Write one record and wait for its acknowledgement. ``event_id`` is for the error.

        Raises:
            BadMessage: it is too large for Kafka.
            NotPublished: no acknowledgement within ``limit_s``.
        """
        what = f"a message for {key!r}" if event_id is None else f"event {event_id!r} of {key!r}"
        refused = f"{topic}: the broker at {self._settings.bootstrap_servers} did not acknowledge {what}"
        remedy = (
            f"look at the broker, then publish it again{'' if event_id is None else ' with this event_id'}"
        )
        try:
            async with asyncio.timeout(limit_s):
                written = await (await self.send(topic, key, value))
        except TimeoutError as error:
            raise NotPublished(f"{refused} within {limit_s:g} s (timeout_s); {remedy}", event_id) from error
        except MessageSizeTooLargeError as error:
            raise _too_large(topic, value) from error
        except UnknownTopicOrPartitionError as error:
            raise NotPublished(
                f"the broker at {self._settings.bootstrap_servers} has no topic {topic}: run `headwater topics create`, "
                f"then publish {what} again",
                event_id,
            ) from error
        except KafkaError as error:
            raise NotPublished(f"{refused} ({type(error).__name__}: {error}); {remedy}", event_id) from error
        return Position(written.partition, written.offset)

    async def ask(self, request: Request, value: bytes, left_s: float, limit_s: float) -> Response:
        """Write a request, whose JSON is ``value``, and await its answer for ``left_s`` of its time limit.

        Raises:
            BadMessage: it is too large for Kafka.
            RecallTimeout: no answer in time.
            NotPublished: the request could not be sent.
            ClientError: its id waits for an answer already, or answers cannot be read any more.
        """
        replies, topic = self.check_reading(), self.topics.requests
        if replies.expects(request.request_id):
            raise ClientError(f"request {request.request_id} waits already: expected a new request_id")
        answer, headers = replies.expect(request.request_id)
        again: asyncio.Task[None] | None = None

        async def send() -> None:
            sent = await self.send(topic, request.user_id, value, headers)
            sent.add_done_callback(lambda done: _pass_failure(done, answer))

        async def look_everywhere() -> None:
            try:
                await replies.read_all()
                await send()
            except (KafkaError, ClientError) as error:
                if not answer.done():
                    answer.set_exception(error)

        def silent() -> None:
            nonlocal again
            if not replies.reads_all:
                again = asyncio.create_task(look_everywhere())

        timer = asyncio.get_running_loop().call_later(request.deadline_ms / 1000.0 + _SILENCE_S, silent)
        try:
            async with asyncio.timeout(left_s):
                await send()
                return await answer
        except TimeoutError as error:
            replies.look_for_cause()
            raise RecallTimeout(
                f"request {request.request_id} was not answered on {self.topics.responses} within "
                f"{round(limit_s, 3):g} s (timeout_s; its deadline_ms is {request.deadline_ms}): expected a worker of "
                "the role interests (or all) that runs and keeps up; see `headwater doctor`"
            ) from error
        except MessageSizeTooLargeError as error:
            raise _too_large(topic, value) from error
        except KafkaError as error:
            raise NotPublished(
                f"request {request.request_id} could not be sent to {topic} ({type(error).__name__}: {error}): look at "
                "the broker, then ask again"
            ) from error
        finally:
            timer.cancel()
            if again is not None:
                again.cancel()
            replies.forget(request.request_id)

    def check_reading(self) -> Replies:
        """The reader of answers. Raises ClientError where it has failed; this connection then reads none any more."""
        if self._replies is None:
            raise not_connected()
        if self._replies.failure.done():
            raise ClientError(str(self._replies.failure.result()))
        return self._replies

    async def broken(self) -> ClientError:
        """Wait until answers cannot be read any more, and say why."""
        return await asyncio.shield(self.check_reading().failure)

    async def send(
        self, topic: str, key: str, value: bytes | None, headers: Collection[Header] = ()
    ) -> "asyncio.Future[RecordMetadata]":
        """Hand one record to the producer when its turn has come. Raises KafkaError."""
        partition = await self.partition_of(topic, key)
        turns = self._turns.get((topic, partition))
        if turns is None:
            turns = self._turns[topic, partition] = asyncio.Semaphore(_SENDING)
        async with turns:
            if self._producer is None:
                raise not_connected()
            sent: asyncio.Future[RecordMetadata] = await self._producer.send(
                topic, value, key=key.encode(), partition=partition, headers=list(headers)
            )
            return sent

    async def _open(self) -> None:
        options = self._settings.kafka_options()
        self._consumer = Consumer(
            **options,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="latest",
            request_timeout_ms=int(CONNECT_TIMEOUT_S * 1000),
        )
        await self._consumer.start()
        # All topics, not ours by name: a broker that creates topics by itself creates those it is asked about.
        existing = await self._consumer.topics()
        wanted = (self.topics.clicks, self.topics.catalog, self.topics.requests, self.topics.responses)
        if missing := [name for name in wanted if name not in existing]:
            raise ClientError(
                f"the broker at {self._settings.bootstrap_servers} has no topic {', '.join(missing)}: run "
                "`headwater topics create`, or set HEADWATER_TOPIC_PREFIX to the prefix in use"
            )
        replies = Replies(self._consumer, self.topics.responses, self._reading_failed)
        await replies.start()
        self._replies = replies
        # No lingering: a lone click goes out at once, and what comes while one is on its way shares the next batch.
        self._producer = Producer(
            **options,
            acks="all",
            linger_ms=0,
            max_batch_size=_BATCH_BYTES,
            request_timeout_ms=int(PUBLISH_TIMEOUT_S * 1000),
        )
        await self._producer.start()
        # Else the first message of each waits for it, and closing the client meanwhile could not end that wait.
        await asyncio.gather(*map(self._producer.partitions_for, (self.topics.clicks, self.topics.requests)))
        self._ends = EndOffsets(self._producer.client, self.topics.clicks)
        await self._ends.connect()

    def _reading_failed(self, error: Exception) -> ClientError:
        if isinstance(error, KafkaError):
            return ClientError(
                f"reading {self.topics.responses} failed ({type(error).__name__}: {error}): look at the broker and at "
                "this user's rights, then connect again"
            )
        return ClientError(f"reading {self.topics.responses} failed: {error!r}; connect again")


def _pass_failure(done: "asyncio.Future[RecordMetadata]", waiting: "asyncio.Future[Response]") -> None:
    if not done.cancelled() and (error := done.exception()) is not None and not waiting.done():
        waiting.set_exception(error)


def _too_large(topic: str, value: bytes | None) -> BadMessage:
    return BadMessage(
        "too_large",
        f"message for {topic}: got {len(value or b'')} bytes, expected fewer (Kafka takes 1 MB by default)",
    )
