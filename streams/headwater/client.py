"""The Python client: publish clicks, items and offers, ask for items, and read the answers.

    from headwater import Client

    async with Client("localhost:9092") as client:
        await client.click("ann", "coffee-1")
        answer = await client.recall("ann", limit=10)  # reflects the click, or raises RequestExpired

What an answer is sure to reflect is chosen by ``reads``:

| reads | the answer reflects | it costs |
|---|---|---|
| ``"all"`` (default) | every click of the user that was acknowledged before the call, by any program in any language, and those that this client was still publishing | two small questions to the broker at once, shared by all calls that wait; while a transaction on the partition is open, up to a tenth of a second |
| ``"own"`` | the clicks that this client published, also those without an acknowledgement yet | nothing |
| ``"any"`` | whatever has been applied by then | nothing |

While the workers are behind, a request that demands something waits for them, and expires at its ``deadline_ms``.

A click and a request for it may be started at once. The request then waits for the click:

    _, answer = await asyncio.gather(client.click("ann", "coffee-1"), client.recall("ann"))

Two exceptions hold for ``"all"``. A publisher with another partitioner than Kafka's default (librdkafka's clients, unless
told ``partitioner=murmur2_random``) puts a click on a partition where it is not looked for; a worker forwards it within
milliseconds. And while a transaction on the partition stays open, Kafka gives nobody what was published behind it, so such
clicks are not demanded. Either is covered by its position: hand it on as ``after``, or ask with ``reads="own"``.
"""

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Literal, Self, get_args

import msgspec
from aiokafka.errors import KafkaError

from headwater.arguments import (
    check_publisher,
    count_of,
    encoded,
    encoded_request,
    limit_of,
    listed,
    mapping,
    position_of,
    raw_context,
    wrong,
)
from headwater.client_errors import (
    ClientError,
    NoBroker,
    NotPublished,
    RecallTimeout,
    RequestExpired,
    RequestRejected,
    not_connected,
)
from headwater.kafka.connection import PUBLISH_TIMEOUT_S, Connection
from headwater.kafka.topics import Topics
from headwater.messages import (
    DEFAULT_DEADLINE_MS,
    ActionName,
    Click,
    Item,
    Offer,
    Position,
    Request,
    Response,
    SessionEvent,
    SourceName,
    decode_click,
    decode_item,
    decode_offer,
    encode,
)
from headwater.run_file import running_system
from headwater.settings import Settings

__all__ = [
    "Client",
    "ClientError",
    "NoBroker",
    "NotPublished",
    "Reads",
    "RecallTimeout",
    "RequestExpired",
    "RequestRejected",
]

Reads = Literal["all", "own", "any"]

# What an answer may need beyond its deadline: the way to the worker and back, on a busy machine.
ANSWER_MARGIN_S: Final = 3.0


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
        self._topics = Topics.named(self._settings.topic_prefix)
        self._remembered_users = count_of("remembered_users", remembered_users)
        self._last_clicks: OrderedDict[str, Position] = OrderedDict()
        self._last_at_ms: OrderedDict[str, int] = OrderedDict()
        self._publishing: dict[str, dict[_Publishing, None]] = {}  # by user, oldest first
        self._connection: Connection | None = None

    async def __aenter__(self) -> Self:
        """Connect. Raises NoBroker, or ClientError where the broker lacks our topics."""
        if self._connection is not None:
            raise ClientError("the client is connected already: expected one `async with` for each Client")
        self._connection = await Connection(self._settings).open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Send what is still buffered, and disconnect. Calls that wait for an answer raise ClientError."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    @property
    def _connected(self) -> Connection:
        if self._connection is None:
            raise not_connected()
        return self._connection

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
        limit_s = limit_of(timeout_s)
        if not isinstance(user_id, str):
            raise wrong("user_id", user_id, "text")
        now_ms = time.time_ns() // 1_000_000
        check_publisher(user_id, action)
        click = Click(
            uuid.uuid4().hex if event_id is None else event_id,
            user_id,
            self._next_at_ms(user_id, now_ms) if at_ms is None else at_ms,
            item_id,
            action,
            raw_context(context),
        )
        value = encoded(click)
        decode_click(None, value, now_ms)
        mine = _Publishing(click)
        publishing = self._publishing.setdefault(user_id, {})
        publishing[mine] = None
        try:
            position = await self._connected.publish(
                self._topics.clicks, user_id, value, limit_s, click.event_id
            )
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
            item: The whole entry. Fields that are left out are emptied; for a change of price, availability or attributes
                alone see :meth:`offer`.
            timeout_s: How long to wait for the acknowledgement, in seconds.

        Returns:
            The position in the catalog topic. Answers can contain the item once ``response.catalog`` has reached it.

        Raises:
            BadMessage: a field is not allowed; nothing was sent.
            NotPublished: no acknowledgement in time; put it again.
            ClientError: the client is not connected.
        """
        limit_s = limit_of(timeout_s)
        if not isinstance(item, Item):
            raise wrong("item", item, 'an Item, such as Item("coffee-1", title="Filter coffee")')
        value = encoded(item)
        decode_item(None, value)
        return await self._connected.publish(self._topics.catalog, item.item_id, value, limit_s)

    async def delete_item(self, item_id: str, *, timeout_s: float = PUBLISH_TIMEOUT_S) -> Position:
        """Take an item out of the catalog, and wait until the broker has stored that.

        Args:
            item_id: The item; it need not exist. One with versions comes back with a version that is at least as high:
                workers leave a lower one out, count it in ``catalog_ignored_total`` and log it.
            timeout_s: How long to wait for the acknowledgement, in seconds.

        Returns:
            The position in the catalog topic. Answers leave the item out once ``response.catalog`` has reached it.

        Raises:
            BadMessage: no item can have this id; nothing was sent.
            NotPublished: no acknowledgement in time; delete it again.
            ClientError: the client is not connected.
        """
        limit_s = limit_of(timeout_s)
        decode_item(None, encoded(Item(item_id)))
        return await self._connected.publish(self._topics.catalog, item_id, None, limit_s)

    async def offer(
        self,
        item_id: str,
        *,
        price: float | None = None,
        available: bool | None = None,
        attributes: Mapping[str, str | float | bool] | None = None,
        at_ms: int | None = None,
        timeout_s: float = PUBLISH_TIMEOUT_S,
    ) -> Position:
        """Publish a new price, availability or attributes of an item, and wait until the broker has stored it.

        Whatever is left out stays as it is, the text too. See `Offer` for what decides between offers and the item's record.

        Args:
            item_id: The item. Where it is not in the catalog yet, the offer waits for it.
            price: 0 or more.
            available: Whether the item may be recommended.
            attributes: The attributes that change, by name.
            at_ms: When it was so, in milliseconds since 1970; by default when the broker stores it.
            timeout_s: How long to wait for the acknowledgement, in seconds.

        Returns:
            The position in the offers topic. Answers follow within about a second.

        Raises:
            BadMessage: an argument is not allowed, or nothing is offered; nothing was sent.
            NotPublished: no acknowledgement in time; offer it again.
            ClientError: the client is not connected.
        """
        limit_s = limit_of(timeout_s)
        stated = dict(mapping("attributes", attributes, '{"colour": "red"}') or {})
        value = encoded(Offer(item_id, price, available, stated, at_ms))
        decode_offer(None, value, time.time_ns() // 1_000_000)
        return await self._connected.publish(self._topics.offers, item_id, value, limit_s)

    async def withdraw_offers(self, item_id: str, *, timeout_s: float = PUBLISH_TIMEOUT_S) -> Position:
        """Take back all offers of an item so far: its own record holds again. Wait until the broker has stored that.

        Args:
            item_id: The item; it need not exist.
            timeout_s: How long to wait for the acknowledgement, in seconds.

        Returns:
            The position in the offers topic. Answers follow within about a second.

        Raises:
            BadMessage: no item can have this id; nothing was sent.
            NotPublished: no acknowledgement in time; withdraw them again.
            ClientError: the client is not connected.
        """
        limit_s = limit_of(timeout_s)
        decode_item(None, encoded(Item(item_id)))
        return await self._connected.publish(self._topics.offers, item_id, None, limit_s)

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
        items: Iterable[str] = (),
        session: Iterable[SessionEvent] = (),
        sources: Mapping[SourceName, float] | None = None,
        explain: bool = False,
        at_ms: int | None = None,
        until_ms: int | None = None,
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
            diversity: From 0 (by score alone) to 1 (as varied as possible).
            query: Text that items should match, at most 2000 characters.
            items: Item ids whose nearest items are wanted, at most 10; ``sources={"item": 1}`` asks for these alone.
            session: What-if events that count for this answer and are stored nowhere, at most 100.
            sources: Weights of the sources by name, 0 to 100; by default each has its own.
            explain: Say which past events brought each item.
            at_ms: What is "now" for interests that fade, in milliseconds since 1970; by default the time of the request.
            until_ms: Answer as it was then, in milliseconds since 1970: later events of the user do not count. Only with
                ``explain``.
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
            raise wrong("reads", reads, '"all", "own" or "any"')
        request = Request(
            request_id=uuid.uuid4().hex,
            user_id=user_id,
            limit=limit,
            filter=mapping("filter", filter, '{"category": "garden"}'),
            exclude=listed("exclude", exclude, 'item ids, such as ["S1"]'),
            exclude_seen=exclude_seen,
            diversity=diversity,
            query=query,
            items=listed("items", items, 'item ids, such as ["S1"]'),
            session=listed("session", session, 'SessionEvents, such as [SessionEvent("S1")]'),
            after=position_of(after),
            after_event_id=after_event_id,
            deadline_ms=deadline_ms,
            at_ms=at_ms,
            until_ms=until_ms,
            sources=mapping("sources", sources, '{"interests": 1.0}') or {},
            explain=explain,
        )
        encoded_request(request)
        limit_s = _answer_limit(timeout_s, deadline_ms)
        if after is None and after_event_id is None and reads != "any":
            demanded = await self._demand(user_id, reads, limit_s)
            if isinstance(demanded, Position):
                request = msgspec.structs.replace(request, after=demanded)
            elif demanded is not None:
                request = msgspec.structs.replace(request, after_event_id=demanded)
        left_s = limit_s - (time.monotonic() - began_s)
        response = await self._connected.ask(request, encode(request), left_s, limit_s)
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
            raise wrong("request", request, "a Request")
        value = encoded_request(request)
        limit_s = _answer_limit(timeout_s, request.deadline_ms)
        return await self._connected.ask(request, value, limit_s, limit_s)

    async def check_broker(self, *, timeout_s: float = 2.0) -> None:
        """Ask the broker something small, to know that it is there.

        Raises:
            ClientError: no answer within ``timeout_s`` seconds, the client is not connected, or it cannot read answers any more.
        """
        try:
            async with asyncio.timeout(limit_of(timeout_s)):
                await self._connected.end_of_clicks(0)
            self._connected.check_reading()
        except (TimeoutError, KafkaError) as error:
            raise ClientError(
                f"the broker at {self._settings.bootstrap_servers} does not answer "
                f"({str(error) or f'waited {timeout_s:g} s'}): look at the broker"
            ) from error

    async def broken(self) -> ClientError:
        """Wait until this client cannot read answers any more, and say why: only another connection can.

        Raises:
            ClientError: the client is not connected.
        """
        return await self._connected.broken()

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
        connection = self._connected
        waits_for = "an acknowledgement of this user's clicks"
        try:
            async with asyncio.timeout(limit_s):
                if reads == "own":
                    return await self._own(user_id)
                partition = await connection.partition_of(self._topics.clicks, user_id)
                publishing = [each.ended for each in self._publishing.get(user_id, ())]
                if publishing:
                    _, end = await asyncio.gather(
                        asyncio.wait(publishing), connection.end_of_clicks(partition)
                    )
                    last = self._last_clicks.get(user_id)
                    # Ours may have been stored after the broker was asked.
                    end = max(end, last.offset + 1) if last and last.partition == partition else end
                else:
                    waits_for = f"the end of partition {partition}"
                    end = await connection.end_of_clicks(partition)
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


def _answer_limit(timeout_s: object, deadline_ms: int) -> float:
    return deadline_ms / 1000.0 + ANSWER_MARGIN_S if timeout_s is None else limit_of(timeout_s)


def _settings_of(system: object) -> Settings:
    if system is None:
        return running_system()
    if isinstance(system, Settings):
        return system
    if isinstance(system, str):
        return running_system(Settings.load(kafka_bootstrap_servers=system))
    raise wrong("system", system, 'an address such as "localhost:9092", Settings, or nothing')
