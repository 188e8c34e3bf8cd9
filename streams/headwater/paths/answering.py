"""What was found becomes a response, with its proof of freshness and its rung; responses are sent. Pure, but for the sending."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from headwater.kafka.dead_letters import DeadLetter, DeadLetters
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.forwarding import Stray, forward
from headwater.kafka.publish import Outgoing, write_scattered
from headwater.kafka.topics import Topics
from headwater.messages import Candidate, ErrorDetail, Reason, Reflects, Response, encode, quoted
from headwater.metrics import Metrics
from headwater.paths.accepting import PendingRequest, Rejection, ReplyAddress
from headwater.paths.observer import Answered, Observer
from headwater.profiles.actions import RETRACT
from headwater.profiles.interests import UserInterests
from headwater.profiles.partition import Partition
from headwater.recall.pipeline import RecallResult


class Reply(NamedTuple):
    """A response and where it goes."""

    address: ReplyAddress
    response: Response


class Found(NamedTuple):
    """Candidates for one request, to be delivered as soon as the clicks that they rest on are stored.

    They rest on the partition's clicks up to offset ``applied``; the request demands that those up to ``needed`` are in
    the changelog.
    """

    pending: PendingRequest
    user: UserInterests
    result: RecallResult
    rung: str | None
    applied: int
    needed: int


def needed_offset(pending: PendingRequest, partition: Partition, applied: int) -> int:
    """The offset that this partition's changelog has to reach before a request is answered from what is ``applied``.

    It is -1 for a request that demands no click. A click demanded by its event id, or by an offset of another partition, has
    no offset here, so everything applied has to be stored, and at least one record.
    """
    if not pending.demands_a_click:
        return -1
    after = pending.request.after
    return after.offset if after is not None and after.partition == partition.number else max(applied, 0)


def answered(
    found: Found, partition: Partition, stored: int, model: str, catalog: Mapping[int, int], now_ms: float
) -> Reply:
    """The answer with candidates.

    Args:
        partition: of the user's clicks.
        stored: the changelog holds the partition's clicks up to this offset.
        catalog: offset of each catalog partition that the index is at.
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
        catalog=dict(catalog),
        timings_ms={name: round(ms, 3) for name, ms in timings.items()},
        why=dict(result.why),
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
        self._requests, self._metrics = topics.requests, metrics
        self._publish_seconds = metrics.request_stage_seconds.labels("publish")
        self._strays = metrics.strays_total.labels(topics.requests)
        self.in_flight = 0  # answers to pending requests that are not acknowledged yet

    async def deliver(self, replies: Sequence[tuple[PendingRequest, Reply]]) -> None:
        """Send the answers, wait until they are acknowledged, and count their requests as answered.

        Raises:
            StopWorker: the broker did not take them.
        """
        if not replies:
            return
        self.in_flight += len(replies)
        try:
            await self.send([reply for _, reply in replies])
        finally:
            self.in_flight -= len(replies)
        now_ms = self._clock() * 1000.0
        for pending, _ in replies:
            self._metrics.request_seconds.observe(max(now_ms - pending.asked_ms, 0.0) / 1000.0)
            pending.unanswered.answered()
        if self._observer.is_watched:
            newest = replies[-self._observer.capacity :]
            events = [Answered(reply.response, now_ms - pending.asked_ms) for pending, reply in newest]
            self._observer.tell(events, omitted=len(replies) - len(newest))

    async def send(self, replies: Sequence[Reply]) -> None:
        """Send the answers and wait until they are acknowledged. Raises StopWorker."""
        if not replies:
            return
        started = time.perf_counter()
        for topic in {address.topic for address, _ in replies}:
            outgoing = [
                Outgoing(
                    response.user_id.encode() or None,
                    encode(response),
                    address.headers,
                    None,
                    address.partition,
                )
                for address, response in replies
                if address.topic == topic
            ]
            await write_scattered(self._producer, topic, outgoing)
        for _, response in replies:
            self._metrics.requests_total.labels(response.status).inc()
            if response.rung is not None:
                self._metrics.index_fallbacks_total.labels(response.rung).inc()
        self._publish_seconds.observe(time.perf_counter() - started)

    async def forward(self, strays: Sequence[Stray]) -> None:
        """Write strays to the partitions of their users and wait until they are acknowledged. Raises StopWorker."""
        if strays:
            await self.bury(await forward(self._producer, self._requests, strays))
            self._strays.inc(len(strays))

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        """Put records to the dead letters. Raises StopWorker."""
        await self._dead_letters.put(letters)
