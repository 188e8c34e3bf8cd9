"""A record of the requests topic becomes a pending request, a rejection, a dead letter, or a stray."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from aiokafka import ConsumerRecord

from headwater.encoder.features import event_key
from headwater.index import filters
from headwater.kafka.batch import Batch
from headwater.kafka.dead_letters import DeadLetter
from headwater.kafka.forwarding import Stray, redirect
from headwater.kafka.headers import ORIGIN, BadHeader, Origin, correlation_of, reply_partition_of, reply_to_of
from headwater.kafka.partitioner import partition_of
from headwater.messages import (
    MAX_DEADLINE_MS,
    BadMessage,
    ErrorDetail,
    Request,
    decode_request,
    quoted,
    sender_of,
)
from headwater.pacing import Pacer
from headwater.paths import request_cost
from headwater.profiles.interests import WhatIfEvents
from headwater.profiles.partition import Partition

_NO_EVENTS: Final = WhatIfEvents([], [], [])


class Unanswered:
    """Counts the requests of a batch that are still unanswered; the batch is finished with the last."""

    def __init__(self, batch: Batch, count: int) -> None:
        self.batch, self._count = batch, count

    def answered(self, count: int = 1) -> None:
        """Count requests as answered; the batch is finished with the last of them."""
        self._count -= count
        if self._count == 0:
            self.batch.finish()


class ReplyAddress(NamedTuple):
    """The topic of an answer, the headers that it echoes, and the partition that its sender reads (None: its key's)."""

    topic: str
    headers: list[tuple[str, bytes | None]]
    partition: int | None = None


@dataclass(eq=False)
class PendingRequest:
    """One valid request in hand.

    Attributes:
        user: the user id in UTF-8.
        session: the what-if events, keyed and coded.
        at_ms: the moment that the answer is for.
        asked_ms: when it was asked; the deadline counts from here. See `Acceptance`.
        event: key of the event whose application it demands by id.
        cost_us: what it costs, see `request_cost`.
        size_bytes: of its record.
        timings: milliseconds by stage, for the answer.
        timer: expires it while it waits.
        has_expired: the demanded click did not come in time.
        ticket: its number in the parking lot.
    """

    request: Request
    user: bytes
    where: filters.Filter | None
    session: WhatIfEvents
    at_ms: int
    asked_ms: float
    address: ReplyAddress
    unanswered: Unanswered
    event: int | None = None
    cost_us: float = 0.0
    size_bytes: int = 0
    timings: dict[str, float] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None
    has_expired: bool = False
    ticket: int = -1

    @property
    def has_waited(self) -> bool:
        """Whether it has waited for its click before."""
        return self.ticket >= 0

    @property
    def demands_a_click(self) -> bool:
        """Whether the answer has to reflect a certain click."""
        return self.event is not None or self.request.after is not None

    def left_ms(self, now_ms: float) -> float:
        """Milliseconds until its deadline; 0 or less when that is over."""
        return 0.0 if self.has_expired else self.asked_ms + self.request.deadline_ms - now_ms


class Rejection(NamedTuple):
    """An invalid request whose sender, (request id, user id), can be told why."""

    sender: tuple[str, str]
    error: ErrorDetail
    address: ReplyAddress


class Accepted(NamedTuple):
    """A batch of records, sorted; each list in the order of the records."""

    pending: list[PendingRequest]
    rejections: list[Rejection]
    letters: list[DeadLetter]
    strays: list[Stray]
    unanswered: Unanswered


class Acceptance:
    """The rules by which records are accepted.

    A request was asked at the timestamp of its record, or of the record that was forwarded. Both may come from outside, so
    the earlier one counts, it is never after the time now, and no earlier than any deadline is long.

    Args:
        partitions: of the clicks and requests topics.
        responses: the topic of answers that name no other.
        reply_topics: the topics that a request may name beside it.
        clock: the time in seconds since 1970.
    """

    def __init__(
        self, partitions: int, responses: str, reply_topics: Sequence[str], clock: Callable[[], float]
    ) -> None:
        self._partitions, self._responses, self._clock = partitions, responses, clock
        self._reply_topics = (responses, *reply_topics)
        self._pacer = Pacer()

    async def accept(self, batch: Batch, partition: Partition) -> Accepted:
        """Sort the records of a batch, which forgets them; other work runs between them."""
        records = batch.take_records()
        accepted = Accepted([], [], [], [], Unanswered(batch, len(records)))
        for record in records:
            await self._pacer.turn()
            match self.accept_one(record, partition, accepted.unanswered):
                case PendingRequest() as pending:
                    accepted.pending.append(pending)
                case Rejection() as rejection:
                    accepted.rejections.append(rejection)
                case DeadLetter() as letter:
                    accepted.letters.append(letter)
                case stray:
                    accepted.strays.append(stray)
        return accepted

    def accept_one(
        self, record: ConsumerRecord, partition: Partition, unanswered: Unanswered
    ) -> PendingRequest | Rejection | DeadLetter | Stray:
        """One record; a ``Stray`` has to be written to its user's own partition."""
        correlation = correlation_of(record.headers)
        echoed = [] if correlation is None or isinstance(correlation, BadHeader) else [correlation]
        topic, reply_partition = self._responses, None
        asked_ms = self._asked_ms(record)
        try:
            if isinstance(correlation, BadHeader):
                raise BadMessage("bad_correlation_id", correlation.reason)
            wanted = reply_partition_of(record.headers)
            if isinstance(wanted, BadHeader):
                raise BadMessage("bad_reply_partition", wanted.reason)
            if wanted is not None:
                reply_partition = wanted.partition
                echoed.append(wanted.header)  # tells the sender that this worker honours it
            request = decode_request(record.key, record.value, asked_ms)
            where = filters.parse(request.filter) if request.filter else None
            cost_us = request_cost.cost_us(request, where)
            too_costly = request_cost.complaint(request, where, cost_us)
            if too_costly is not None:
                raise BadMessage("too_costly", too_costly)
            topic = self._reply_topic(record)
            self._check_after(request)
        except (BadMessage, filters.FilterError) as error:
            if isinstance(error, BadMessage):
                reason = error.reason
            else:
                reason = "too_costly" if isinstance(error, filters.CostlyFilter) else "bad_filter"
            sender = sender_of(record.value)
            if sender is None:
                return DeadLetter(record, reason, str(error))
            return Rejection(
                sender, ErrorDetail(reason, str(error)), ReplyAddress(topic, echoed, reply_partition)
            )
        user = request.user_id.encode()
        if user not in partition.columns.rows:
            home = partition_of(user, self._partitions)
            if home != partition.number:
                return redirect(record, user, home)
        at_ms = request.at_ms or request.until_ms or asked_ms
        return PendingRequest(
            request,
            user,
            where,
            WhatIfEvents.of(request.session, at_ms) if request.session else _NO_EVENTS,
            at_ms,
            asked_ms,
            ReplyAddress(topic, echoed, reply_partition),
            unanswered,
            None if request.after_event_id is None else event_key(request.after_event_id),
            cost_us,
            len(record.value or b"") + sum(len(value or b"") for _, value in echoed),
        )

    def _asked_ms(self, record: ConsumerRecord) -> int:
        now_ms = int(self._clock() * 1000.0)
        came_ms = min(record.timestamp, now_ms) if record.timestamp >= 0 else now_ms
        origin = ORIGIN.of(record.headers)
        asked_ms = min(origin.timestamp_ms, came_ms) if isinstance(origin, Origin) else came_ms
        return max(asked_ms, now_ms - MAX_DEADLINE_MS)

    def _reply_topic(self, record: ConsumerRecord) -> str:
        asked = reply_to_of(record.headers)
        if asked is None:
            return self._responses
        if isinstance(asked, BadHeader):
            raise BadMessage("reply_topic_not_allowed", asked.reason)
        if asked.topic not in self._reply_topics:
            raise BadMessage(
                "reply_topic_not_allowed",
                f"header {asked.name}: got {quoted(asked.topic)}, expected one of {', '.join(self._reply_topics)} "
                "(HEADWATER_REPLY_TOPICS)",
            )
        return asked.topic

    def _check_after(self, request: Request) -> None:
        if request.after is not None and request.after.partition >= self._partitions:
            raise BadMessage(
                "unknown_partition",
                f"after.partition: got {request.after.partition}, expected 0 to {self._partitions - 1}",
            )
