"""What was found becomes a response, with its proof of freshness and its rung; responses are sent. Pure, but for the sending."""

import asyncio
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, chain
from typing import Final, Literal, NamedTuple

import msgspec
import structlog
from aiokafka.errors import KafkaError

from headwater.errors import StopWorker
from headwater.kafka.dead_letters import DeadLetter, DeadLetters
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.forwarding import Stray, forward
from headwater.kafka.headers import reply_failed_header
from headwater.kafka.publish import Outgoing, write_scattered
from headwater.kafka.topics import Topics
from headwater.messages import (
    PROBE_PREFIX,
    Candidate,
    ErrorDetail,
    Reason,
    Reflects,
    Response,
    encode,
    quoted,
)
from headwater.metrics import Metrics
from headwater.paths.accepting import PendingRequest, Rejection, ReplyAddress
from headwater.paths.observer import Answered, Observer
from headwater.profiles.actions import RETRACT
from headwater.profiles.interests import UserInterests
from headwater.profiles.partition import Partition
from headwater.recall.pipeline import RecallResult

log = structlog.get_logger(__name__)

# Kafka's default bound of a message is 1,048,588 bytes. This leaves room for the key and what is echoed.
MAX_ANSWER_BYTES: Final = 1_000_000
_LEAST_ANSWER_BYTES: Final = 4_000
# A topic that a request names may not be there, or may take nothing.
_REPLY_TOPIC_LOOKUP_S: Final = 1.0
_REPLY_TOPIC_ACK_S: Final = 5.0
_REFUSED_FOR_S: Final = 30.0


class Reply(NamedTuple):
    """A response and where it goes."""

    address: ReplyAddress
    response: Response


class Found(NamedTuple):
    """Candidates for one request, to be delivered as soon as the clicks that they rest on are stored.

    They rest on the partition's clicks up to offset ``applied``; the request demands that those up to ``needed`` are in
    the changelog. ``catalog``: the offset of each catalog partition that the index was at before it was searched.
    """

    pending: PendingRequest
    user: UserInterests
    result: RecallResult
    rung: str | None
    applied: int
    needed: int
    catalog: Mapping[int, int]


def needed_offset(pending: PendingRequest, partition: Partition, applied: int) -> int:
    """The offset that this partition's changelog has to reach before a request is answered from what is ``applied``.

    It is -1 for a request that demands no click. A click demanded by its event id, or by an offset of another partition, has
    no offset here, so everything applied has to be stored. In a clicks log that is new, that may be nothing: then the users
    are those of a former log, and in the changelog.
    """
    if not pending.demands_a_click:
        return -1
    after = pending.request.after
    return after.offset if after is not None and after.partition == partition.number else applied


def answered(found: Found, partition: Partition, stored: int, model: str, now_ms: float) -> Reply:
    """The answer with candidates.

    Args:
        partition: of the user's clicks.
        stored: the changelog holds the partition's clicks up to this offset.
    """
    pending, rung, result = found.pending, found.rung, found.result
    if is_lost(pending, partition):
        rung = "gap"
    near = result.similarities or [None] * len(result.items)
    items = [
        Candidate(
            item.item_id,
            round(item.score, 6),
            item.source,
            [
                Reason(share.event.item_id, share.event.at_ms, share.event.action, round(share.share, 4))
                for share in because
            ],
            msgspec.UNSET if similarity is None else round(similarity, 4),
        )
        for item, because, similarity in zip(result.items, result.because, near, strict=True)
    ]
    timings = {**pending.timings, "total": now_ms - pending.asked_ms}
    response = Response(
        pending.request.request_id,
        pending.request.user_id,
        "ok" if rung is None else "degraded",
        rung=rung,
        items=items,
        reflects=reflects(partition, stored, found.user),
        model=model,
        catalog=dict(found.catalog),
        timings_ms={name: round(ms, 3) for name, ms in timings.items()},
        why=dict(result.why),
        funnel=msgspec.UNSET if result.funnel is None else result.funnel,
    )
    return Reply(pending.address, response)


def is_lost(pending: PendingRequest, partition: Partition) -> bool:
    """Whether the demanded click was gone from the log before it was read."""
    after, gap = pending.request.after, partition.gap
    if after is None or gap is None or after.partition != partition.number:
        return False
    return gap.first <= after.offset <= gap.last


def reflects(partition: Partition, stored: int, user: UserInterests) -> Reflects:
    """The proof of freshness: the user's events as the answer saw them. Marks of retractions are no events."""
    log, events, last_at_ms = user.log, 0, None
    if log is not None:
        n = int(log.n[0])
        at_ms = [
            at
            for at, action in zip(log.at_ms[0, :n].tolist(), log.action[0, :n].tolist(), strict=True)
            if action != RETRACT
        ]
        events, last_at_ms = len(at_ms), at_ms[-1] if at_ms else None
    return Reflects(
        partition.number,
        stored,
        events,
        user.pending,
        user.last_event.decode(errors="replace") or None,
        last_at_ms,
        partition.gap,
    )


def rejected(rejection: Rejection, model: str) -> Reply:
    """The answer to an invalid request."""
    return Reply(rejection.address, Response(*rejection.sender, "rejected", rejection.error, model=model))


def overloaded(pending: PendingRequest, partition: Partition, model: str, refusal: str) -> Reply:
    """The answer to a request that would have to wait, where too many do."""
    return _refused(pending, partition, model, "rejected", "overloaded", f"after: {refusal}")


def failed(pending: PendingRequest, partition: Partition, model: str, error: Exception) -> Reply:
    """The answer to a request on which our own code fails."""
    message = f"this request made the worker fail ({type(error).__name__}); it is in its log"
    return _refused(pending, partition, model, "rejected", "internal_error", message)


def expired(pending: PendingRequest, partition: Partition, model: str) -> Reply:
    """The answer to a request whose time is over, with what did not come in time."""
    request = pending.request
    if pending.event is not None:
        message = (
            f"after_event_id: {quoted(request.after_event_id)} was not seen within {request.deadline_ms} ms; ids of events "
            "that enter no log, such as impressions, are remembered for a while, and not beyond a restart"
        )
    elif request.after is None:
        message = f"deadline_ms: {request.deadline_ms} ms were over before the request was read"
    else:
        message = (
            f"after: offset {request.after.offset} of partition {request.after.partition} was not applied within "
            f"{request.deadline_ms} ms; partition {partition.number} is at {partition.watermark}"
        )
    return _refused(pending, partition, model, "expired", "deadline", message)


def _refused(
    pending: PendingRequest,
    partition: Partition,
    model: str,
    status: Literal["expired", "rejected"],
    code: str,
    message: str,
) -> Reply:
    response = Response(
        pending.request.request_id,
        pending.request.user_id,
        status,
        ErrorDetail(code, message),
        reflects=Reflects(partition.number, partition.watermark, gap=partition.gap),
        model=model,
    )
    return Reply(pending.address, response)


class Fitted(NamedTuple):
    """A response as it is sent, and the same as JSON."""

    response: Response
    raw: bytes


def fitted(response: Response, most_bytes: int) -> Fitted:
    """A response of at most ``most_bytes``: without its funnel if it has to be, then without its reasons and its last items.

    A response that does not fit without any is rejected as ``too_large``, which takes at most 2 kB. With 0 bytes every
    response is: its topic did not take it.
    """
    raw = encode(response)
    if len(raw) <= most_bytes:
        return Fitted(response, raw)
    if response.funnel:
        cut = msgspec.structs.replace(response, funnel=msgspec.UNSET, truncated=True)
        raw = encode(cut)
        if len(raw) <= most_bytes:
            return Fitted(cut, raw)
    items = [msgspec.structs.replace(item, because=[]) for item in response.items]
    cut = msgspec.structs.replace(response, items=items, funnel=msgspec.UNSET, truncated=True)
    raw = encode(cut)
    if len(raw) > most_bytes:
        sizes = [len(encode(item)) + 1 for item in items]
        ends = list(accumulate(sizes, initial=len(raw) - sum(sizes)))
        items = items[: max(bisect_right(ends, most_bytes) - 1, 0)]
        cut = msgspec.structs.replace(cut, items=items)
        raw = encode(cut)
    if len(raw) <= most_bytes:
        return Fitted(cut, raw)
    expected = (
        f"at most {most_bytes}" if most_bytes else "what its topic takes with headers (max.message.bytes)"
    )
    error = ErrorDetail(
        "too_large", f"the answer takes {len(raw)} bytes without any item: expected {expected}"
    )
    refusal = Response(response.request_id, response.user_id, "rejected", error, model=response.model)
    return Fitted(refusal, encode(refusal))


def _outgoing(reply: Reply, answer: Fitted, most_bytes: int) -> Outgoing:
    """The record of an answer; with 0 bytes it repeats no headers."""
    headers = reply.address.headers if most_bytes else []
    key = reply.response.user_id.encode() or None
    return Outgoing(key, answer.raw, headers, None, reply.address.partition)


def _sent_elsewhere(reply: Reply, topic: str, why: str) -> Reply:
    """The answer with the reason why it is not on the topic that its sender named, whose partitions are not ours."""
    headers = [*reply.address.headers, reply_failed_header(reply.address.topic, why)]
    return Reply(ReplyAddress(topic, headers), reply.response)


def _is_of_probe(response: Response) -> bool:
    """Whether a freshness probe asked: its answers count in no figure but its own."""
    return response.user_id.startswith(PROBE_PREFIX)


class Outbox:
    """Everything that leaves the request path: answers, forwarded strays, dead letters.

    Args:
        observer: told the answers to pending requests, once they are acknowledged.
        clock: the time in seconds since 1970.
    """

    def __init__(
        self,
        producer: Producer,
        dead_letters: DeadLetters,
        topics: Topics,
        metrics: Metrics,
        observer: Observer,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._producer, self._dead_letters = producer, dead_letters
        self._observer, self._clock = observer, clock
        self._requests, self._responses, self._metrics = topics.requests, topics.responses, metrics
        self._refusals: dict[
            str, tuple[str, float]
        ] = {}  # of reply topics: why, and until when nobody asks again
        self._publish_seconds = metrics.request_stage_seconds.labels("publish")
        self._strays = metrics.strays_total.labels(topics.requests)
        self.in_flight = 0  # answers to pending requests that are not acknowledged yet

    async def deliver(self, replies: Sequence[tuple[PendingRequest, Reply]]) -> None:
        """Send the answers, wait until they are acknowledged, and count their requests as answered.

        Each topic is waited for by its own answers alone.

        Raises:
            StopWorker: the broker did not take them.
        """
        topics = {reply.address.topic for _, reply in replies}
        if len(topics) > 1:
            parts = ([each for each in replies if each[1].address.topic == topic] for topic in topics)
            await asyncio.gather(*map(self.deliver, parts))
        elif replies:
            await self._deliver(replies)

    async def _deliver(self, replies: Sequence[tuple[PendingRequest, Reply]]) -> None:
        self.in_flight += len(replies)
        try:
            await self.send([reply for _, reply in replies])
        finally:
            self.in_flight -= len(replies)
        now_ms = self._clock() * 1000.0
        for pending, reply in replies:
            if not _is_of_probe(reply.response):
                self._metrics.request_seconds.observe(max(now_ms - pending.asked_ms, 0.0) / 1000.0)
            pending.unanswered.answered()
        if self._observer.is_watched:
            replies = [each for each in replies if not _is_of_probe(each[1].response)]
            newest = replies[len(replies) - self._observer.allowance(Answered, len(replies)) :]
            events = [
                Answered(reply.response, now_ms - pending.asked_ms, now_ms) for pending, reply in newest
            ]
            self._observer.tell(events, omitted=len(replies) - len(newest))

    async def send(self, replies: Sequence[Reply]) -> None:
        """Send the answers and wait until they are acknowledged.

        An answer that its topic finds too large is cut. One whose topic does not take it for another reason goes to the
        usual topic, with the reason in a header.

        Raises:
            StopWorker: the broker did not take them.
        """
        if not replies:
            return
        started = time.perf_counter()
        topics = {address.topic for address, _ in replies}
        if len(topics) == 1:
            sent = await self._write_to(topics.pop(), replies)
        else:
            parts = {topic: [each for each in replies if each.address.topic == topic] for topic in topics}
            written = await asyncio.gather(*(self._write_to(*part) for part in parts.items()))
            sent = list(chain.from_iterable(written))
        for response in sent:
            if _is_of_probe(response):
                continue
            self._metrics.requests_total.labels(response.status).inc()
            if response.rung is not None:
                self._metrics.index_fallbacks_total.labels(response.rung).inc()
        self._publish_seconds.observe(time.perf_counter() - started)

    async def _write_to(self, topic: str, replies: Sequence[Reply]) -> list[Response]:
        """Write answers to a topic, or to the usual one if it does not take them; the responses as they were sent."""
        if topic == self._responses:
            return await self._write(topic, replies)
        why = await self._refusal_of(topic)
        if why is None:
            try:
                async with asyncio.timeout(_REPLY_TOPIC_ACK_S):
                    return await self._write(topic, replies)
            except (StopWorker, TimeoutError) as error:
                why = self._refuse(topic, str(error) or f"it took nothing within {_REPLY_TOPIC_ACK_S:g} s")
        return await self._write(
            self._responses, [_sent_elsewhere(reply, self._responses, why) for reply in replies]
        )

    async def _refusal_of(self, topic: str) -> str | None:
        """Why a reply topic takes no answers; None: it may. Asked for again after half a minute."""
        why, until_s = self._refusals.get(topic, ("", 0.0))
        if time.monotonic() < until_s:
            return why
        try:
            async with asyncio.timeout(_REPLY_TOPIC_LOOKUP_S):
                await self._producer.partitions_for(topic)
        except (KafkaError, TimeoutError) as error:
            return self._refuse(topic, f"there is no such topic for this worker ({type(error).__name__})")
        return None

    def _refuse(self, topic: str, why: str) -> str:
        self._refusals[topic] = why, time.monotonic() + _REFUSED_FOR_S
        log.warning("reply_topic_refused", topic=topic, why=why)
        return why

    async def _write(self, topic: str, replies: Sequence[Reply]) -> list[Response]:
        """Write answers to a topic, cut as far as it takes to have them taken; the responses as they were sent."""
        waiting, most_bytes = list(replies), MAX_ANSWER_BYTES
        sent: list[Response] = []
        while waiting:
            answers = [fitted(reply.response, most_bytes) for reply in waiting]
            outgoing = [
                _outgoing(reply, answer, most_bytes) for reply, answer in zip(waiting, answers, strict=True)
            ]
            refused = {id(each.record) for each in await write_scattered(self._producer, topic, outgoing)}
            sent.extend(
                answer.response
                for answer, out in zip(answers, outgoing, strict=True)
                if id(out) not in refused
            )
            waiting = [reply for reply, out in zip(waiting, outgoing, strict=True) if id(out) in refused]
            if waiting and most_bytes == 0:
                log.error(
                    "answers_too_large", topic=topic, count=len(waiting), expected="max.message.bytes of 2 kB"
                )
                break
            most_bytes = most_bytes // 2 if most_bytes > _LEAST_ANSWER_BYTES else 0
        return sent

    async def forward(self, strays: Sequence[Stray]) -> None:
        """Write strays to the partitions of their users and wait until they are acknowledged. Raises StopWorker."""
        if strays:
            await self.bury(await forward(self._producer, self._requests, strays))
            self._strays.inc(len(strays))

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        """Put records to the dead letters. Raises StopWorker."""
        await self._dead_letters.put(letters)
