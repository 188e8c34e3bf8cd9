"""The freshness probe: a made-up user of each clicks partition clicks and asks, every few seconds, as any program does.

The click goes through the clicks topic, the request demands it, and the answer is read back from the responses topic. So
what is measured is what a shop sees. The owner of a partition probes it, and no one else does.

| what a probe leaves | bound |
|---|---|
| a user, `~headwater-probe/PARTITION/N` | one for each clicks partition |
| events of that user | its log, as of any user: 50 |
| records of clicks, requests and answers | the retention of their topics |

Its clicks and requests count in no figure of users, clicks and answers, and not in popularity.
"""

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection
from typing import Final, NamedTuple, Protocol

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.headers import CORRELATION_HEADERS, Header, header, reply_partition_header
from headwater.kafka.partitioner import probe_user
from headwater.kafka.topics import Topics
from headwater.messages import (
    PROBE_PREFIX,
    BadMessage,
    Click,
    Position,
    Request,
    Response,
    decode_response,
    encode,
)
from headwater.metrics import Metrics
from headwater.settings import Settings

log = structlog.get_logger(__name__)

_DEADLINE_MS: Final = 5_000
# The deadline, and the way there and back on a busy machine.
_TIMEOUT_S: Final = 8.0
# From one probe of this worker to the next, however many partitions it owns.
_APART_S: Final = 0.1
# A fetch that is held at the broker for a former probe keeps the next one waiting. A tenth of a second is over by then.
_FETCH_WAIT_MS: Final = 50
_METADATA_S: Final = 0.02
_POLL_MS: Final = 1_000
_KEPT: Final = 1_000
# Finds some item where the user has none yet and nothing is popular.
_ANY_TEXT: Final = "something new"
_NO_ITEM: Final = f"{PROBE_PREFIX}no-item"


class ProbeResult(NamedTuple):
    """What one probe has found: either the seconds from its click to its answer, or the code of what failed."""

    partition: int
    at_ms: int  # when it began
    seconds: float | None
    failure: str | None


class Answers(Protocol):
    """Where a probe reads its answer."""

    async def listen(self, partition: int) -> Header:
        """Listen from now on to the partition of answers that belongs to a clicks partition; the header that asks for it.

        Raises:
            KafkaError: the broker is away, or refuses.
        """

    async def answer(self, request_id: str) -> Response:
        """Wait for the answer to a request. Raises KafkaError, BadMessage."""

    def pause(self) -> None:
        """Read nothing until the next :meth:`listen`."""


class AnswersTopic:
    """Reads the responses topic only while a probe waits for its answer."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._settings, self._topic = settings, topic
        self._consumer: Consumer | None = None  # once the broker has let it in
        self._tps: list[TopicPartition] = []

    async def listen(self, partition: int) -> Header:
        """See :class:`Answers`."""
        consumer = self._consumer or await self._open()
        tp = self._tps[partition % len(self._tps)]
        consumer.seek(tp, (await consumer.end_offsets([tp]))[tp])
        consumer.resume(tp)
        return reply_partition_header(tp.partition)

    async def answer(self, request_id: str) -> Response:
        """See :class:`Answers`."""
        assert self._consumer is not None
        mine = request_id.encode()
        while True:
            for records in (await self._consumer.getmany(timeout_ms=_POLL_MS)).values():
                for record in records:
                    correlation = header(record.headers, CORRELATION_HEADERS[0])
                    if correlation is not None and correlation[1] == mine:
                        return decode_response(record.value)

    def pause(self) -> None:
        """See :class:`Answers`."""
        if self._consumer is not None:
            self._consumer.pause(*self._tps)

    async def stop(self) -> None:
        """Close the client."""
        if self._consumer is not None:
            await self._consumer.stop()

    async def _open(self) -> Consumer:
        """A client that knows all partitions and reads none. One that the broker does not let in is closed again."""
        consumer = Consumer(
            **self._settings.kafka_options(),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="latest",
            fetch_max_wait_ms=_FETCH_WAIT_MS,
        )
        try:
            await consumer.start()
            # Naming one partition makes the client learn of all.
            consumer.assign([TopicPartition(self._topic, 0)])
            while not (numbers := consumer.partitions_for_topic(self._topic)):  # noqa: ASYNC110 - no event says so
                await asyncio.sleep(_METADATA_S)
        except BaseException:
            await consumer.stop()
            raise
        self._tps = [TopicPartition(self._topic, number) for number in sorted(numbers)]
        consumer.assign(self._tps)
        consumer.pause(*self._tps)
        self._consumer = consumer
        return consumer


class Probe:
    """Probes the partitions that ``owned`` names, each every ``every_s`` seconds, one after the other.

    Args:
        partitions: of the clicks topic.
        clock: the time in seconds since 1970.
    """

    def __init__(
        self,
        producer: Producer,
        answers: Answers,
        topics: Topics,
        partitions: int,
        every_s: float,
        owned: Callable[[], Collection[int]],
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._producer, self._answers, self._topics = producer, answers, topics
        self._partitions, self._every_s, self._owned = partitions, every_s, owned
        self._metrics, self._clock = metrics, clock
        self._results: deque[ProbeResult] = deque(maxlen=_KEPT)
        self._item_ids: dict[int, str] = {}  # by partition: what its user clicks next
        self._failing: set[int] = set()

    def snapshot(self) -> list[ProbeResult]:
        """What the last thousand probes have found, oldest first."""
        return list(self._results)

    async def run(self) -> None:
        """Probe forever."""
        while True:
            owned = sorted(self._owned())
            for number in owned:
                began_s = time.monotonic()
                if number in self._owned():  # it may have left meanwhile
                    await self.probe(number)
                took_s = time.monotonic() - began_s
                await asyncio.sleep(max(self._every_s / len(owned) - took_s, _APART_S))
            if not owned:
                await asyncio.sleep(self._every_s)

    async def probe(self, number: int) -> None:
        """Probe a partition, and keep what was found. A partition that has left meanwhile has no result."""
        at_ms = int(self._clock() * 1000.0)
        try:
            result = await self._probed(number, at_ms)
        finally:
            self._answers.pause()
        if result.failure is not None and number not in self._owned():
            return
        self._results.append(result)
        if result.seconds is not None:
            self._metrics.probe_click_to_answer_seconds.observe(result.seconds)
            self._failing.discard(number)
            return
        self._metrics.probe_failures_total.labels(result.failure).inc()
        if number not in self._failing:
            self._failing.add(number)
            log.warning("probe_failed", partition=number, reason=result.failure, timeout_s=_TIMEOUT_S)

    async def _probed(self, number: int, at_ms: int) -> ProbeResult:
        user = probe_user(number, self._partitions)
        failure = "unreadable"  # until the next step has begun
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                home = await self._answers.listen(number)
                failure = "not_stored"
                began_s = time.perf_counter()
                item_id = self._item_ids.get(number, _NO_ITEM)
                click = Click(uuid.uuid4().hex, user.decode(), at_ms, item_id)
                stored = await self._publish(self._topics.clicks, number, user, encode(click))
                failure = "not_asked"
                request = Request(
                    uuid.uuid4().hex,
                    user.decode(),
                    limit=1,
                    query="" if number in self._item_ids else _ANY_TEXT,
                    exclude_seen=False,  # a small catalog would soon have nothing left
                    after=Position(number, stored),
                    deadline_ms=_DEADLINE_MS,
                )
                correlation = (CORRELATION_HEADERS[0], request.request_id.encode())
                await self._publish(self._topics.requests, number, user, encode(request), [correlation, home])
                failure = "no_answer"
                answer = await self._answers.answer(request.request_id)
                took_s = time.perf_counter() - began_s
        except TimeoutError:
            return ProbeResult(number, at_ms, None, failure)
        except (KafkaError, BadMessage, OSError):
            return ProbeResult(number, at_ms, None, "unreadable" if failure == "no_answer" else failure)
        if answer.items:
            self._item_ids[number] = answer.items[0].item_id
        else:  # the item that it knew is gone
            self._item_ids.pop(number, None)
        wrong = _what_is_wrong(answer, Position(number, stored))
        return ProbeResult(number, at_ms, took_s if wrong is None else None, wrong)

    async def _publish(
        self, topic: str, partition: int, user: bytes, value: bytes, headers: list[Header] | None = None
    ) -> int:
        """The offset of the record. Raises KafkaError."""
        sent = await self._producer.send(topic, value, key=user, partition=partition, headers=headers or [])
        return int((await sent).offset)


def _what_is_wrong(answer: Response, click: Position) -> str | None:
    """The code of why an answer does not prove that the click is part of it; None: it does."""
    if answer.status in ("expired", "rejected"):
        return answer.status
    if answer.rung == "gap":
        return "lost"
    reflects = answer.reflects
    if reflects is None or reflects.partition != click.partition or reflects.offset < click.offset:
        return "stale"
    return None
