"""Python's door to Headwater: publish clicks and items, ask, and read the answers.

    from headwater import Client

    async with Client("localhost:9092") as client:
        await client.click("ann", "coffee-1")
        answer = await client.recall("ann", limit=10)  # reflects the click, or raises RequestExpired

What an answer is sure to reflect is chosen by ``reads``:

| reads | the answer reflects | it costs |
|---|---|---|
| ``"all"`` (default) | every click of the user that was acknowledged before the call, by any program in any language, and those that this client was still publishing | one small question to the broker, shared by all calls that wait |
| ``"own"`` | the clicks that this client published, also those without an acknowledgement yet | nothing |
| ``"any"`` | whatever has been applied by then | nothing |

Both may be started at once. The request then waits for the click:

    _, answer = await asyncio.gather(client.click("ann", "coffee-1"), client.recall("ann"))

One exception holds for ``"all"``. A publisher with another partitioner than Kafka's default (librdkafka's clients, unless
told ``partitioner=murmur2_random``) puts a click on a partition where it is not looked for; a worker forwards it within
milliseconds. Such a click is covered by its position: hand it on as ``after``.
"""

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Literal, Self, get_args

import msgspec
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from aiokafka.structs import RecordMetadata

from headwater.errors import HeadwaterError, Unreachable
from headwater.kafka.end_offsets import EndOffsets
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.headers import Header
from headwater.kafka.partitioner import partition_of
from headwater.kafka.replies import Replies
from headwater.kafka.topics import Topics
from headwater.kafka.unreachable import why_unreachable
from headwater.messages import (
    DEFAULT_DEADLINE_MS,
    ActionName,
    BadMessage,
    Click,
    Item,
    Position,
    Request,
    Response,
    SessionEvent,
    SourceName,
    decode_click,
    decode_item,
    decode_request,
    encode,
    shown,
)
from headwater.run_file import running_system
from headwater.settings import Settings

Reads = Literal["all", "own", "any"]

# A broker that is there answers in milliseconds; one that is not must not hold a program for minutes.
CONNECT_TIMEOUT_S: Final = 10.0
# Longer than a leader election takes, which the producer rides out by itself.
PUBLISH_TIMEOUT_S: Final = 30.0
# What an answer may need beyond its deadline: the way to the worker and back, on a busy machine.
ANSWER_MARGIN_S: Final = 3.0
# A worker answers by the deadline. A little later the answer is looked for on all partitions, in the rest of the margin.
_SILENCE_S: Final = 0.5
_STOP_TIMEOUT_S: Final = 5.0
# Records of one partition that are handed to the producer at a time. The others wait in line: each record that finds
# the producer's batch full is woken by every batch that leaves, so 10,000 at once would cost 10,000 x 140 wake-ups.
_SENDING: Final = 256
# A thousand clicks in one request.
_BATCH_BYTES: Final = 192 * 1024


class ClientError(HeadwaterError):
    """Something between this program and the workers failed. The message is one sentence with the remedy."""


class NoBroker(ClientError, Unreachable):
    """No broker let the client in. The message says what was tried, and the remedy."""


class NotPublished(ClientError, Unreachable):
    """The broker did not acknowledge a message in time. It may have been stored all the same.

    A click is published again under the same event id, so that it counts once whatever became of the first:

        try:
            await client.click("ann", "coffee-1", timeout_s=2)
        except NotPublished as error:
            await client.click("ann", "coffee-1", event_id=error.event_id)

    Attributes:
        event_id: Of the click; None where an item or a request was not published. Those may be sent again as they are.
    """

    def __init__(self, message: str, event_id: str | None = None) -> None:
        super().__init__(message)
        self.event_id = event_id


class RecallTimeout(ClientError, Unreachable):
    """No answer came within the time limit. The message says which limit, and what was waited for."""


class RequestRejected(ClientError):
    """The request is invalid, or the worker is overloaded.

    Attributes:
        response: The answer; its ``error`` says what is allowed.
    """

    def __init__(self, response: Response) -> None:
        super().__init__(f"request {response.request_id} was rejected: {_reason(response)}")
        self.response = response


class RequestExpired(ClientError):
    """The demanded click was not applied by the deadline.

    Attributes:
        response: The answer, without items; its ``reflects`` says how far the worker is.
    """

    def __init__(self, response: Response) -> None:
        super().__init__(f"request {response.request_id} expired: {_reason(response)}")
        self.response = response


class _Publishing:
    """A click without an acknowledgement. ``ended`` completes when its sending ends, successfully or not."""

    __slots__ = ("click", "ended")

    def __init__(self, click: Click) -> None:
        self.click = click
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Client:
    """A connection to one system, as an async context manager for one event loop.

    All methods may run many times at once. What does not fit on its way to the broker waits its turn, first come first
    served, for as long as ``timeout_s`` of the call allows.
    """

    def __init__(self, system: Settings | str | None = None, *, remembered_users: int = 100_000) -> None:
        """Nothing is connected before ``async with``.

        Args:
            system: The broker, as ``host:port`` or several separated by commas; or settings; or None for the
                environment, ``headwater.toml``, and else the system that ``headwater up`` or ``demo`` runs.
            remembered_users: How many users' last clicks are kept for ``reads="own"``. A user who was forgotten is
                asked for without such a demand.

        Raises:
            SettingsError: the address, or a setting in the environment, is invalid.
            BadMessage: an argument has the wrong type.
        """
        self._settings = _settings_of(system)
        if not _is_int(remembered_users) or remembered_users < 1:
            raise _wrong("remembered_users", remembered_users, "a number of at least 1")
        self._topics = Topics.named(self._settings.topic_prefix)
        self._remembered_users = remembered_users
        self._last_clicks: OrderedDict[str, Position] = OrderedDict()
        self._last_at_ms: OrderedDict[str, int] = OrderedDict()
        self._publishing: dict[str, dict[_Publishing, None]] = {}  # by user, oldest first
        self._turns: dict[tuple[str, int], asyncio.Semaphore] = {}  # by topic and partition
        self._producer: Producer | None = None
        self._consumer: Consumer | None = None
        self._replies: Replies | None = None
        self._ends: EndOffsets | None = None

    async def __aenter__(self) -> Self:
        """Connect. Raises NoBroker, or ClientError where the broker lacks our topics."""
        try:
            await asyncio.wait_for(self._connect(), CONNECT_TIMEOUT_S)
        except (KafkaError, OSError, TimeoutError) as error:
            await self.close()
            failure = str(error) or f"waited {CONNECT_TIMEOUT_S:g} s"
            raise NoBroker(await why_unreachable(self._settings, failure)) from error
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

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
                    await asyncio.wait_for(part.stop(), _STOP_TIMEOUT_S)

    # Publishing

    async def click(
        self,
        user_id: str,
        item_id: str = "",
        action: ActionName = "click",
        *,
        at_ms: int | None = None,
        event_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        timeout_s: float = PUBLISH_TIMEOUT_S,
    ) -> Position:
        """Publish one event of a user, and wait until the broker has stored it.

        Args:
            user_id: 1 to 512 bytes of UTF-8.
            item_id: The item; empty only for ``retract`` and ``forget``.
            action: What the user did; ``retract`` takes an event back, ``forget`` erases the user.
            at_ms: When, in milliseconds since 1970. By default now, and later than the clicks of this user that this
                client published before: events of one millisecond have no order.
            event_id: The id by which your system knows the event; published again, it still counts once. By
                default a new one. For ``retract`` it names the event to take back.
            context: A JSON object that is kept with the event and not interpreted.
            timeout_s: How long to wait for the acknowledgement, in seconds, the wait for a turn included.

        Returns:
            The position of the event in the clicks topic. It prints as a token, such as ``3-1042``, that another program
            may give to :meth:`recall` as ``after``.

        Raises:
            BadMessage: an argument is not allowed; nothing was sent.
            NotPublished: no acknowledgement in time; see there for how to publish it again.
            ClientError: the client is not connected.
        """
        limit_s = _limit_s(timeout_s)
        if not isinstance(user_id, str):
            raise _wrong("user_id", user_id, "text")
        now_ms = time.time_ns() // 1_000_000
        click = Click(
            uuid.uuid4().hex if event_id is None else event_id,
            user_id,
            self._next_at_ms(user_id, now_ms) if at_ms is None else at_ms,
            item_id,
            action,
            _raw_context(context),
        )
        value = _encoded(click)
        decode_click(None, value, now_ms)
        mine = _Publishing(click)
        publishing = self._publishing.setdefault(user_id, {})
        publishing[mine] = None
        try:
            position = await self._publish(self._topics.clicks, user_id, value, limit_s, click.event_id)
            self._remember(user_id, position)
        finally:
            mine.ended.set_result(None)
            del publishing[mine]
            if not publishing:
                del self._publishing[user_id]
        return position

    async def put_item(self, item: Item, *, timeout_s: float = PUBLISH_TIMEOUT_S) -> Position:
        """Publish a catalog entry, new or changed, and wait until the broker has stored it.

        Args:
            item: The whole entry. Fields that are left out are emptied.
            timeout_s: How long to wait for the acknowledgement, in seconds.

        Returns:
            The position in the catalog topic. Answers can contain the item once ``response.catalog`` has reached it.

        Raises:
            BadMessage: a field is not allowed; nothing was sent.
            NotPublished: no acknowledgement in time; put it again.
            ClientError: the client is not connected.
        """
        limit_s = _limit_s(timeout_s)
        if not isinstance(item, Item):
            raise _wrong("item", item, 'an Item, such as Item("coffee-1", title="Filter coffee")')
        value = _encoded(item)
        decode_item(None, value)
        return await self._publish(self._topics.catalog, item.item_id, value, limit_s)

    async def delete_item(self, item_id: str, *, timeout_s: float = PUBLISH_TIMEOUT_S) -> Position:
        """Take an item out of the catalog, and wait until the broker has stored that.

        Args:
            item_id: The item; it need not exist.
            timeout_s: How long to wait for the acknowledgement, in seconds.

        Returns:
            The position in the catalog topic. Answers leave the item out once ``response.catalog`` has reached it.

        Raises:
            BadMessage: no item can have this id; nothing was sent.
            NotPublished: no acknowledgement in time; delete it again.
            ClientError: the client is not connected.
        """
        limit_s = _limit_s(timeout_s)
        decode_item(None, _encoded(Item(item_id)))
        return await self._publish(self._topics.catalog, item_id, None, limit_s)

    # Asking

    async def recall(
        self,
        user_id: str,
        *,
        limit: int = 20,
        filter: Mapping[str, Any] | None = None,  # noqa: A002 - the name of the message's field
        exclude: Iterable[str] = (),
        exclude_seen: bool = True,
        diversity: float = 0.0,
        query: str = "",
        session: Iterable[SessionEvent] = (),
        sources: Mapping[SourceName, float] | None = None,
        explain: bool = False,
        at_ms: int | None = None,
        reads: Reads = "all",
        after: Position | str | None = None,
        after_event_id: str | None = None,
        deadline_ms: int = DEFAULT_DEADLINE_MS,
        timeout_s: float | None = None,
    ) -> Response:
        """Ask for items for a user, and wait for the answer.

        Args:
            user_id: Whom to recommend to; a user that nobody has heard of gets popular items.
            limit: How many items at most, 1 to 1000.
            filter: Conditions on catalog fields, such as ``{"category": "garden", "price": {"lt": 20}}``.
            exclude: Item ids to leave out, at most 1000.
            exclude_seen: Leave out what the user has clicked, bought or hidden.
            diversity: From 0 (by likeness alone) to 1 (as varied as possible).
            query: Text that items should match, at most 2000 characters.
            session: What-if events that count for this answer and are stored nowhere, at most 100.
            sources: Weights of the sources by name, 0 to 100; by default each has its own.
            explain: Say which past events brought each item.
            at_ms: What is "now" for interests that fade, in milliseconds since 1970; by default the time of the request.
            reads: What the answer has to reflect: see the table in the module's docstring.
            after: Demand the click at this position instead of ``reads``: a position of :meth:`click`, or its token.
                It also covers a click that a foreign partitioner put elsewhere.
            after_event_id: Demand the event with this id instead of ``reads``, before its position is known. Not
                together with ``after``.
            deadline_ms: How long the worker may wait for what is demanded, 1 to 60,000 ms from when the broker has
                the request.
            timeout_s: How long to wait for the answer, in seconds, whatever is waited for before included. By default the
                deadline and 3 s.

        Returns:
            The answer, with the status ``ok``, or ``degraded`` and a ``rung`` that says why. Items come best first.

        Raises:
            BadMessage: an argument is not allowed; nothing was sent.
            RequestRejected: the worker refused the request.
            RequestExpired: what is demanded was not applied by ``deadline_ms``.
            RecallTimeout: no answer within ``timeout_s``.
            NotPublished: the request could not be sent.
            ClientError: the client is not connected, or the broker refused.
        """
        began_s = time.monotonic()
        if reads not in get_args(Reads):
            raise _wrong("reads", reads, '"all", "own" or "any"')
        request = Request(
            request_id=uuid.uuid4().hex,
            user_id=user_id,
            limit=limit,
            filter=_mapping("filter", filter, '{"category": "garden"}'),
            exclude=_listed("exclude", exclude, 'item ids, such as ["S1"]'),
            exclude_seen=exclude_seen,
            diversity=diversity,
            query=query,
            session=_listed("session", session, 'SessionEvents, such as [SessionEvent("S1")]'),
            after=_position(after),
            after_event_id=after_event_id,
            deadline_ms=deadline_ms,
            at_ms=at_ms,
            sources=_mapping("sources", sources, '{"interests": 1.0}') or {},
            explain=explain,
        )
        _checked(request)
        limit_s = _limit_s(timeout_s, deadline_ms)
        if after is None and after_event_id is None and reads != "any":
            demanded = await self._demand(user_id, reads, limit_s)
            if isinstance(demanded, Position):
                request = msgspec.structs.replace(request, after=demanded)
            elif demanded is not None:
                request = msgspec.structs.replace(request, after_event_id=demanded)
        left_s = limit_s - (time.monotonic() - began_s)
        response = await self._answer(request, encode(request), left_s, limit_s)
        if response.status == "rejected":
            raise RequestRejected(response)
        if response.status == "expired":
            raise RequestExpired(response)
        return response

    async def answer(self, request: Request, *, timeout_s: float | None = None) -> Response:
        """Send a request as it is, and wait for its answer, whatever its status.

        Args:
            request: The message; its ``request_id`` must not wait for an answer already.
            timeout_s: How long to wait for the answer, in seconds; by default the deadline and 3 s.

        Returns:
            The answer, also with the status ``rejected`` or ``expired``.

        Raises:
            BadMessage: a field is not allowed; nothing was sent.
            RecallTimeout: no answer within ``timeout_s``.
            NotPublished: the request could not be sent.
            ClientError: the client is not connected, or the request waits already.
        """
        if not isinstance(request, Request):
            raise _wrong("request", request, "a Request")
        value = _checked(request)
        limit_s = _limit_s(timeout_s, request.deadline_ms)
        return await self._answer(request, value, limit_s, limit_s)

    def last_click(self, user_id: str) -> Position | None:
        """The position of the user's last click that this client published and still remembers."""
        return self._last_clicks.get(user_id)

    # What a request demands

    async def _demand(self, user_id: str, reads: Reads, limit_s: float) -> Position | str | None:
        """The position or the event id to demand, or None.

        Raises:
            RecallTimeout: neither is known within ``limit_s``.
            ClientError: the broker refused.
        """
        ends = self._ends
        if ends is None:
            raise _not_connected()
        waits_for = "an acknowledgement of this user's clicks"
        try:
            async with asyncio.timeout(limit_s):
                if reads == "own":
                    return await self._own(user_id)
                partition = await self._partition(self._topics.clicks, user_id.encode())
                publishing = [each.ended for each in self._publishing.get(user_id, ())]
                if publishing:
                    _, end = await asyncio.gather(asyncio.wait(publishing), ends.of(partition))
                    last = self._last_clicks.get(user_id)
                    # Ours may have been stored after the broker was asked.
                    end = max(end, last.offset + 1) if last and last.partition == partition else end
                else:
                    waits_for = f"the end of partition {partition}"
                    end = await ends.of(partition)
                return Position(partition, end - 1) if end > 0 else None
        except TimeoutError as error:
            raise RecallTimeout(
                f"{user_id!r} was not asked for: the broker gave no answer within {limit_s:g} s (timeout_s) about "
                f'{waits_for} of {self._topics.clicks}; look at the broker, or ask with reads="any"'
            ) from error
        except KafkaError as error:
            raise ClientError(
                f"{user_id!r} was not asked for: the broker does not tell where {self._topics.clicks} ends "
                f'({type(error).__name__}: {error}); look at the rights of this user, or ask with reads="own"'
            ) from error

    async def _own(self, user_id: str) -> Position | str | None:
        """The user's newest click of this client: its position, or its event id while the acknowledgement is outstanding.

        Waits for a ``retract`` or ``forget`` without an acknowledgement, which cannot be demanded by id.
        """
        while publishing := self._publishing.get(user_id):
            newest = next(reversed(publishing))
            if newest.click.action not in ("retract", "forget"):
                return newest.click.event_id
            await asyncio.wait({newest.ended})
        return self.last_click(user_id)

    # Connection

    async def _connect(self) -> None:
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
        wanted = (self._topics.clicks, self._topics.catalog, self._topics.requests, self._topics.responses)
        if missing := [name for name in wanted if name not in existing]:
            raise ClientError(
                f"the broker at {self._settings.bootstrap_servers} has no topic {', '.join(missing)}: run "
                "`headwater topics create`, or set HEADWATER_TOPIC_PREFIX to the prefix in use"
            )
        replies = Replies(self._consumer, self._topics.responses, self._reading_failed)
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
        # Else the first message of each waits for it, beyond the reach of whoever closes the client meanwhile.
        await asyncio.gather(
            *map(self._producer.partitions_for, (self._topics.clicks, self._topics.requests))
        )
        self._ends = EndOffsets(self._producer.client, self._topics.clicks)
        await self._ends.connect()

    def _reading_failed(self, error: Exception) -> ClientError:
        if isinstance(error, KafkaError):
            return ClientError(
                f"reading {self._topics.responses} failed ({type(error).__name__}: {error}): look at the broker and at "
                "this user's rights, then connect again"
            )
        return ClientError(f"reading {self._topics.responses} failed: {error!r}; connect again")

    async def _answer(self, request: Request, value: bytes, left_s: float, limit_s: float) -> Response:
        """Send a checked request and await its answer for ``left_s`` of its time limit."""
        replies, topic = self._replies, self._topics.requests
        if replies is None or not replies.is_reading:
            raise _not_connected()
        if replies.expects(request.request_id):
            raise ClientError(f"request {request.request_id} waits already: expected a new request_id")
        answer, headers = replies.expect(request.request_id)
        again: asyncio.Task[None] | None = None

        async def send() -> None:
            sent = await self._send(topic, request.user_id.encode(), value, headers)
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

        silence_s = request.deadline_ms / 1000.0 + _SILENCE_S
        timer = asyncio.get_running_loop().call_later(silence_s, silent)
        try:
            async with asyncio.timeout(left_s):
                await send()
                return await answer
        except TimeoutError as error:
            replies.start_reading_all()
            raise RecallTimeout(
                f"request {request.request_id} was not answered on {self._topics.responses} within {round(limit_s, 3):g} s "
                f"(timeout_s; its deadline_ms is {request.deadline_ms}): expected a worker of the role interests (or all) "
                "that runs and keeps up; see `headwater doctor`"
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

    async def _publish(
        self, topic: str, key: str, value: bytes | None, limit_s: float, event_id: str | None = None
    ) -> Position:
        what = f"a message for {key!r}" if event_id is None else f"event {event_id!r} of {key!r}"
        remedy = (
            f"look at the broker, then publish it again{'' if event_id is None else ' with this event_id'}"
        )
        try:
            async with asyncio.timeout(limit_s):
                written: RecordMetadata = await (await self._send(topic, key.encode(), value))
        except TimeoutError as error:
            raise NotPublished(
                f"{topic}: the broker at {self._settings.bootstrap_servers} did not acknowledge {what} within "
                f"{limit_s:g} s (timeout_s); {remedy}",
                event_id,
            ) from error
        except MessageSizeTooLargeError as error:
            raise _too_large(topic, value) from error
        except KafkaError as error:
            raise NotPublished(
                f"{topic}: the broker at {self._settings.bootstrap_servers} did not acknowledge {what} "
                f"({type(error).__name__}: {error}); {remedy}",
                event_id,
            ) from error
        return Position(written.partition, written.offset)

    async def _send(
        self, topic: str, key: bytes, value: bytes | None, headers: Collection[Header] = ()
    ) -> "asyncio.Future[RecordMetadata]":
        """Hand one record to the producer when its turn has come. Raises KafkaError."""
        partition = await self._partition(topic, key)
        turns = self._turns.get((topic, partition))
        if turns is None:
            turns = self._turns[topic, partition] = asyncio.Semaphore(_SENDING)
        async with turns:
            if self._producer is None:
                raise _not_connected()
            sent: asyncio.Future[RecordMetadata] = await self._producer.send(
                topic, value, key=key, partition=partition, headers=list(headers)
            )
            return sent

    async def _partition(self, topic: str, key: bytes) -> int:
        if self._producer is None:
            raise _not_connected()
        return partition_of(key, len(await self._producer.partitions_for(topic)))

    def _next_at_ms(self, user_id: str, now_ms: int) -> int:
        at_ms = max(now_ms, self._last_at_ms.pop(user_id, 0) + 1)
        self._last_at_ms[user_id] = at_ms
        while len(self._last_at_ms) > self._remembered_users:
            self._last_at_ms.popitem(last=False)
        return at_ms

    def _remember(self, user_id: str, position: Position) -> None:
        known = self._last_clicks.pop(user_id, None)
        # Clicks of one user may be acknowledged in any order when they are published at once.
        if known is not None and known.partition == position.partition and known.offset > position.offset:
            position = known
        self._last_clicks[user_id] = position
        while len(self._last_clicks) > self._remembered_users:
            self._last_clicks.popitem(last=False)


# What is refused before anything is sent


def _settings_of(system: object) -> Settings:
    match system:
        case None:
            return running_system()
        case Settings():
            return system
        case str():
            return running_system(Settings.load(kafka_bootstrap_servers=system))
    raise _wrong("system", system, 'an address such as "localhost:9092", Settings, or nothing')


def _checked(request: Request) -> bytes:
    """The request's bytes, if a worker would take them, but for its filter. Raises BadMessage."""
    value = _encoded(request)
    decode_request(None, value, time.time_ns() // 1_000_000)
    return value


def _encoded(message: msgspec.Struct) -> bytes:
    try:
        return encode(message)
    except UnicodeEncodeError as error:
        raise BadMessage(
            "bad_field", f"{ascii(error.object)[:80]}: expected valid Unicode, without lone surrogates"
        ) from None
    except (TypeError, ValueError, OverflowError, RecursionError):
        for field in message.__struct_fields__:
            value = getattr(message, field)
            try:
                msgspec.json.encode(value)
            except (TypeError, ValueError, OverflowError, RecursionError):
                raise _wrong(field, value, "a value that JSON has") from None
        raise


def _raw_context(context: Mapping[str, Any] | None) -> msgspec.Raw:
    given = _mapping("context", context, '{"page": 3}') or {}
    try:
        return msgspec.Raw(msgspec.json.encode(given))
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise _wrong("context", given, "an object of values that JSON has") from None


def _mapping(field: str, value: object, example: str) -> dict[Any, Any] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise _wrong(field, value, f"an object, such as {example}")
    return dict(value)


def _listed(field: str, value: object, expected: str) -> list[Any]:
    # Text is a sequence of texts to Python: "S1" would exclude "S" and "1".
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise _wrong(field, value, f"a list of {expected}")
    return list(value)


def _position(after: object) -> Position | None:
    match after:
        case None | Position():
            return after
        case str():
            try:
                return Position.parse(after)
            except BadMessage:
                pass
    raise _wrong("after", after, "a Position of `click`, or its token, such as 3-1042")


def _limit_s(timeout_s: object, deadline_ms: int | None = None) -> float:
    if timeout_s is None and deadline_ms is not None:
        return deadline_ms / 1000.0 + ANSWER_MARGIN_S
    if not isinstance(timeout_s, (int, float)) or isinstance(timeout_s, bool) or not timeout_s > 0:
        raise _wrong("timeout_s", timeout_s, "seconds, more than 0")
    return float(timeout_s)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong(field: str, value: object, expected: str) -> BadMessage:
    return BadMessage("bad_field", f"{field}: got {shown(value)}, expected {expected}")


def _too_large(topic: str, value: bytes | None) -> BadMessage:
    return BadMessage(
        "too_large",
        f"message for {topic}: got {len(value or b'')} bytes, expected fewer (Kafka takes 1 MB by default)",
    )


def _not_connected() -> ClientError:
    return ClientError("the client is not connected: expected `async with Client() as client`")


def _pass_failure(done: "asyncio.Future[RecordMetadata]", waiting: "asyncio.Future[Response]") -> None:
    if not done.cancelled() and (error := done.exception()) is not None and not waiting.done():
        waiting.set_exception(error)


def _reason(response: Response) -> str:
    return response.error.message if response.error else "the worker gave no reason"
