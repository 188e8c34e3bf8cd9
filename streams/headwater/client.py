"""What a user's code imports: publish clicks, items and requests, and await the answers.

    async with Client() as client:
        await client.click("ann", "coffee-1")
        answer = await client.recall("ann", limit=10)  # reflects the click, or raises RequestExpired

With no settings it finds the system that `headwater up` or `headwater demo` of this user runs. Reading one's own
writes is the default: the client remembers the last click of each user and demands it in the user's next request. Who does
not want to wait for the broker in between publishes and asks at once:

    _, answer = await asyncio.gather(client.click("ann", "coffee-1"), client.recall("ann"))
"""

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import msgspec
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import RecordMetadata

from headwater.errors import HeadwaterError, Unreachable
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.headers import CORRELATION_HEADERS, Headers, header
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
    decode_response,
    encode,
)
from headwater.run_file import running_system
from headwater.settings import Settings

# A broker that is there answers in milliseconds; one that is not must not hold a program for minutes.
CONNECT_TIMEOUT_S: Final = 10.0
# Longer than a leader election takes, which the producer rides out by itself.
PUBLISH_TIMEOUT_S: Final = 30.0
# What an answer may need beyond its deadline: the way to the worker and back, on a busy machine.
ANSWER_MARGIN_S: Final = 3.0
_STOP_TIMEOUT_S: Final = 5.0
_POLL_S: Final = 0.5
# Of answers, before others have their turn.
_MOST_TAKEN: Final = 500


class ClientError(HeadwaterError):
    """Something between this program and the workers failed. The message is one sentence with the remedy."""


class NoBroker(ClientError, Unreachable):
    """No broker let the client in."""


class NotPublished(ClientError, Unreachable):
    """The broker did not acknowledge a message in time; it may or may not have been stored."""


class RecallTimeout(ClientError, Unreachable):
    """No answer came in time."""


class RequestRejected(ClientError):
    """The request is invalid, or the worker is overloaded; `response.error` says what is allowed."""

    def __init__(self, response: Response) -> None:
        super().__init__(f"request {response.request_id} was rejected: {_reason(response)}")
        self.response = response


class RequestExpired(ClientError):
    """The demanded click was not applied by the deadline."""

    def __init__(self, response: Response) -> None:
        super().__init__(f"request {response.request_id} expired: {_reason(response)}")
        self.response = response


class _Published(NamedTuple):
    """A click that the broker has not acknowledged yet; whether it did, `ended` does not say."""

    click: Click
    ended: asyncio.Future[None]


class Client:
    """An async context manager, for one event loop. All methods may run many times at once.

    `remembered_users` bounds the memory of last clicks; a forgotten user's request just carries no `after`.
    """

    def __init__(self, settings: Settings | None = None, *, remembered_users: int = 100_000) -> None:
        self._settings = settings or running_system()
        self._topics = Topics.named(self._settings.topic_prefix)
        self._remembered_users = remembered_users
        self._last_clicks: OrderedDict[str, Position] = OrderedDict()
        self._last_at_ms: OrderedDict[str, int] = OrderedDict()
        # Of each user the newest click without an acknowledgement.
        self._on_its_way: dict[str, _Published] = {}
        self._waiting: dict[str, asyncio.Future[Response]] = {}
        self._producer: Producer | None = None
        self._consumer: Consumer | None = None
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
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
        """Sends what is still buffered, and stops; whoever waits for an answer gets a ClientError."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
            self._reader = None
        self._give_up(ClientError("the client was closed while this request waited for its answer"))
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
    ) -> Position:
        """Publish one event of a user and wait until the broker has stored it.

        The position is what a request's `after` demands. `event_id` makes a repeated event harmless: give the id
        your system knows it by, where there is one. For `retract` it names the event to take back. Without `at_ms`
        it is now, and later than the clicks of the same user before it: events of one millisecond have no order.

        Raises BadMessage (a field is not allowed) or NotPublished.
        """
        now_ms = time.time_ns() // 1_000_000
        raw_context = msgspec.Raw(msgspec.json.encode(dict(context or {})))
        click = Click(
            event_id or uuid.uuid4().hex,
            user_id,
            self._next_at_ms(user_id, now_ms) if at_ms is None else at_ms,
            item_id,
            action,
            raw_context,
        )
        value = _encoded(click)
        decode_click(None, value, now_ms)
        published = self._on_its_way[user_id] = _Published(click, asyncio.get_running_loop().create_future())
        try:
            position = await self._publish(self._topics.clicks, user_id, value)
            self._remember(user_id, position)
        finally:
            published.ended.set_result(None)
            if self._on_its_way.get(user_id) is published:
                del self._on_its_way[user_id]
        return position

    async def put_item(self, item: Item) -> Position:
        """Publish a catalog entry, new or changed; the position is one of the catalog topic.

        `response.catalog` has reached the position once answers can contain the item.

        Raises BadMessage (a field is not allowed) or NotPublished.
        """
        value = _encoded(item)
        decode_item(None, value)
        return await self._publish(self._topics.catalog, item.item_id, value)

    async def delete_item(self, item_id: str) -> Position:
        """Take an item out of the catalog. Raises BadMessage (no item can have this id) or NotPublished."""
        decode_item(None, _encoded(Item(item_id)))
        return await self._publish(self._topics.catalog, item_id, None)

    # Asking

    async def recall(
        self,
        user_id: str,
        *,
        limit: int = 20,
        filter: Mapping[str, Any] | None = None,  # noqa: A002 - the name of the message's field
        exclude: Sequence[str] = (),
        exclude_seen: bool = True,
        diversity: float = 0.0,
        query: str = "",
        session: Sequence[SessionEvent] = (),
        sources: Mapping[SourceName, float] | None = None,
        explain: bool = False,
        at_ms: int | None = None,
        after: Position | None = None,
        after_event_id: str | None = None,
        read_own_clicks: bool = True,
        deadline_ms: int = DEFAULT_DEADLINE_MS,
        timeout_s: float | None = None,
    ) -> Response:
        """Ask for items for a user; the answer's status is `ok` or `degraded`. Fields: see `messages.Request`.

        `after` demands a click of another program, `after_event_id` one whose place is not known yet; without them, the
        last click that this client published for the user is demanded, acknowledged or still on its way, unless
        `read_own_clicks` is off. `timeout_s`: how long to wait for the answer, by default the deadline and 3 s.

        Raises RequestRejected, RequestExpired, RecallTimeout or NotPublished.
        """
        limit_s = _limit_s(timeout_s, deadline_ms)
        began_s = asyncio.get_running_loop().time()
        if after is None and after_event_id is None and read_own_clicks:
            after_event_id = await self._click_on_its_way(user_id, limit_s)
            after = self.last_click(user_id) if after_event_id is None else None
        request = Request(
            request_id=uuid.uuid4().hex,
            user_id=user_id,
            limit=limit,
            filter=dict(filter) if filter is not None else None,
            exclude=list(exclude),
            exclude_seen=exclude_seen,
            diversity=diversity,
            query=query,
            session=list(session),
            after=after,
            after_event_id=after_event_id,
            deadline_ms=deadline_ms,
            at_ms=at_ms,
            sources=dict(sources or {}),
            explain=explain,
        )
        waited_s = asyncio.get_running_loop().time() - began_s
        response = await self.answer(request, timeout_s=limit_s - waited_s)
        if response.status == "rejected":
            raise RequestRejected(response)
        if response.status == "expired":
            raise RequestExpired(response)
        return response

    async def answer(self, request: Request, *, timeout_s: float | None = None) -> Response:
        """Send a request as it is, and await its answer, whatever its status.

        Raises RecallTimeout or NotPublished.
        """
        if self._producer is None or self._reader is None or self._reader.done():
            raise ClientError("the client is not connected: expected `async with Client() as client`")
        if request.request_id in self._waiting:
            raise ClientError(f"request {request.request_id} waits already: expected a new request_id")
        limit_s = _limit_s(timeout_s, request.deadline_ms)
        value = _encoded(request)
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._waiting[request.request_id] = future
        try:
            async with asyncio.timeout(limit_s):
                sent = await self._producer.send(
                    self._topics.requests,
                    value,
                    key=_key(request.user_id),
                    # Echoed by the worker: answers to others are then told apart without being decoded.
                    headers=[(CORRELATION_HEADERS[0], request.request_id.encode())],
                )
                sent.add_done_callback(lambda done: _pass_failure(done, future))
                return await future
        except TimeoutError as error:
            raise RecallTimeout(
                f"request {request.request_id} was not answered on {self._topics.responses} within {round(limit_s, 3):g} s: "
                "expected a worker of the role interests (or all) that runs and keeps up; see `headwater doctor`"
            ) from error
        except KafkaError as error:
            raise NotPublished(
                f"request {request.request_id} could not be sent to {self._topics.requests} "
                f"({type(error).__name__}: {error}): look at the broker, then ask again"
            ) from error
        finally:
            del self._waiting[request.request_id]

    def last_click(self, user_id: str) -> Position | None:
        """Where the last click of this user went that this client published and still remembers."""
        return self._last_clicks.get(user_id)

    async def _click_on_its_way(self, user_id: str, limit_s: float) -> str | None:
        """The event id of the user's newest click that has no place yet. What takes events back is waited for: its id is not
        its own, or nothing is left that would tell.

        Raises RecallTimeout.
        """
        try:
            async with asyncio.timeout(limit_s):
                while (published := self._on_its_way.get(user_id)) is not None:
                    if published.click.action not in ("retract", "forget"):
                        return published.click.event_id
                    await asyncio.wait({published.ended})
        except TimeoutError as error:
            raise RecallTimeout(
                f"{user_id!r} was not asked for: the broker did not acknowledge a retract or forget of this user "
                f"within {limit_s:g} s; look at the broker, or ask with read_own_clicks=False"
            ) from error
        return None

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
        # Naming one partition makes the client learn of all; a topic made a moment ago takes one or two rounds.
        self._consumer.assign([TopicPartition(self._topics.responses, 0)])
        while not (numbers := self._consumer.partitions_for_topic(self._topics.responses)):  # noqa: ASYNC110 - no event says so
            await asyncio.sleep(0.02)
        partitions = [TopicPartition(self._topics.responses, number) for number in sorted(numbers)]
        self._consumer.assign(partitions)
        # A position that is only "the end, whenever first fetched" would miss an answer that is faster.
        for partition, end in (await self._consumer.end_offsets(partitions)).items():
            self._consumer.seek(partition, end)
        # No lingering: a lone click goes out at once, and what comes while one is on its way shares the next batch.
        self._producer = Producer(
            **options, acks="all", linger_ms=0, request_timeout_ms=int(PUBLISH_TIMEOUT_S * 1000)
        )
        await self._producer.start()
        # Else the first message of each waits for it, beyond the reach of whoever closes the client meanwhile.
        await asyncio.gather(
            *map(self._producer.partitions_for, (self._topics.clicks, self._topics.requests))
        )
        self._reader = asyncio.create_task(self._read(self._consumer), name="headwater-answers")

    async def _read(self, consumer: Consumer) -> None:
        def take() -> int:
            taken = [
                *chain.from_iterable(consumer.poll_buffered(consumer.assignment(), _MOST_TAKEN).values())
            ]
            for record in taken:
                self._take(record.value, record.headers)
            return len(taken)

        consumer.on_records = take  # an answer reaches its caller in the same turn of the loop
        while True:
            try:
                while take() == _MOST_TAKEN:  # noqa: ASYNC110 - there is more; others have their turn
                    await asyncio.sleep(0)
                await consumer.wait_for_records(_POLL_S)
            except KafkaError as error:
                if not error.retriable:
                    self._give_up(
                        ClientError(
                            f"reading {self._topics.responses} failed ({type(error).__name__}: {error}): look at "
                            "the broker and at this user's rights, then connect again"
                        )
                    )
                    raise
                await asyncio.sleep(_POLL_S)
            except Exception as error:
                self._give_up(
                    ClientError(f"reading {self._topics.responses} failed: {error!r}; connect again")
                )
                raise

    def _take(self, value: bytes | None, headers: Headers) -> None:
        """Hand an answer to whoever waits for it; answers to others, and repeated ones, are left alone."""
        correlation = header(headers, CORRELATION_HEADERS[0])
        if correlation and (correlation[1] or b"").decode("utf-8", "replace") not in self._waiting:
            return
        try:
            response = decode_response(value)
        except BadMessage:
            return  # not written by a worker; whoever waits for it gets its timeout
        future = self._waiting.get(response.request_id)
        if future is not None and not future.done():
            future.set_result(response)

    def _give_up(self, error: ClientError) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)

    async def _publish(self, topic: str, key: str, value: bytes | None) -> Position:
        if self._producer is None:
            raise ClientError("the client is not connected: expected `async with Client() as client`")
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                written: RecordMetadata = await self._producer.send_and_wait(topic, value, key=_key(key))
        except (KafkaError, TimeoutError) as error:
            raise NotPublished(
                f"{topic}: the broker at {self._settings.bootstrap_servers} did not acknowledge a message for "
                f"{key!r} within {PUBLISH_TIMEOUT_S:g} s ({type(error).__name__}: {error}); look at the broker, "
                "then publish it again with the same id"
            ) from error
        return Position(written.partition, written.offset)

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


def _encoded(message: msgspec.Struct) -> bytes:
    try:
        return encode(message)
    except UnicodeEncodeError as error:
        raise BadMessage(
            "bad_field", f"{ascii(error.object)[:80]}: expected valid Unicode, without lone surrogates"
        ) from None


def _limit_s(timeout_s: float | None, deadline_ms: int) -> float:
    return deadline_ms / 1000.0 + ANSWER_MARGIN_S if timeout_s is None else timeout_s


def _key(text: str) -> bytes:
    return text.encode()


def _pass_failure(done: "asyncio.Future[RecordMetadata]", waiting: "asyncio.Future[Response]") -> None:
    if not done.cancelled() and (error := done.exception()) is not None and not waiting.done():
        waiting.set_exception(error)


def _reason(response: Response) -> str:
    return response.error.message if response.error else "the worker gave no reason"
