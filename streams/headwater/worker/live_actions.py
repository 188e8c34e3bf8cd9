"""What the live page does through Kafka: it publishes a click, asks for an answer, and works on dead letters.

All of it goes the way of any other program, so that it reaches every user, whichever worker has them. The connection is
opened by the first call, and closed when nobody has called for a minute.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import msgspec
from aiokafka import ConsumerRecord
from aiokafka.errors import KafkaError
from msgspec import Struct

from headwater.arguments import check_publisher
from headwater.client_errors import ClientError, RecallTimeout
from headwater.errors import HeadwaterError, StopWorker
from headwater.kafka import letters
from headwater.kafka.connection import Connection
from headwater.kafka.letter_text import decoded, hex_lines, indented
from headwater.kafka.letters import Letters, Place, Wanted
from headwater.kafka.topics import Topics
from headwater.messages import (
    Click,
    Position,
    Request,
    Response,
    check_fields,
    decode_click,
    decode_request,
    encode,
)
from headwater.settings import Settings

_IDLE_S: Final = 60.0
_PUBLISH_S: Final = 10.0
# What an answer may need beyond its deadline: the way to a worker and back.
_MARGIN_S: Final = 3.0
_KEPT_S: Final = 2.0
_SHOWN_BYTES: Final = 4_096
_MOST_LISTED: Final = 500


Result = TypeVar("Result")
# Publishes what passes a filter again, at so many letters a second, but for what failed again so often; or only says what it
# would do. It calls back with how many are redriven by then.
Redriving = Callable[[Wanted, float, int, bool, Callable[[int], None]], Awaitable[Mapping[str, Any]]]


class Asking:
    """Clicks and answers, over one connection."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection: Connection | None = None
        self._opening = asyncio.Lock()
        self._calls = 0
        self._closing: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def click(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Publish an event; where it lies.

        Raises:
            BadMessage: a field is not allowed.
            ClientError: the broker did not take it.
        """
        now_ms = time.time_ns() // 1_000_000
        given = {"event_id": uuid.uuid4().hex, "at_ms": now_ms, **fields}
        click = decode_click(None, _raw(given, Click, {}), now_ms)
        check_publisher(click.user_id, click.action)
        started = time.perf_counter()
        async with self._connected() as connection:
            topic = connection.topics.clicks
            at = await connection.publish(topic, click.user_id, encode(click), _PUBLISH_S, click.event_id)
        return {
            "partition": at.partition,
            "offset": at.offset,
            "token": str(at),
            "event_id": click.event_id,
            "took_ms": round((time.perf_counter() - started) * 1000.0, 2),
        }

    async def recall(self, fields: Mapping[str, Any]) -> tuple[Response, float]:
        """The answer, whatever its status, and the ms that it took. It reflects all clicks that were published before.

        Raises:
            BadMessage: a field is not allowed.
            ClientError: the broker did not take the request, or no worker answered.
        """
        raw = _raw(fields, Request, {"request_id": uuid.uuid4().hex})
        request = decode_request(None, raw, time.time_ns() // 1_000_000)
        started = time.perf_counter()
        limit_s = request.deadline_ms / 1000.0 + _MARGIN_S
        async with self._connected() as connection:
            if request.after is None and request.after_event_id is None:
                request = msgspec.structs.replace(request, after=await _end(connection, request, limit_s))
            response = await connection.ask(request, encode(request), limit_s, limit_s)
        return response, round((time.perf_counter() - started) * 1000.0, 2)

    async def close(self) -> None:
        """Close the connection, if it is open."""
        if self._closing is not None:
            self._closing.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Connection]:
        async with self._opening:
            if self._connection is None:
                self._connection = await Connection(self._settings).open()
            connection = self._connection
        if self._closing is not None:
            self._closing.cancel()
        self._calls += 1
        is_broken = False
        try:
            yield connection
        except KafkaError as error:
            is_broken = True
            raise ClientError(
                f"the broker at {self._settings.bootstrap_servers} refused or is away ({type(error).__name__}: {error}); "
                "look at it, and at the rights of this worker's user"
            ) from error
        except ClientError as error:
            is_broken = not isinstance(error, RecallTimeout)
            raise
        finally:
            self._calls -= 1
            if self._calls == 0:
                # One that has failed may fail for good: the next call opens another.
                self._closing = asyncio.get_running_loop().call_later(
                    0.0 if is_broken else _IDLE_S, self._close_later
                )

    def _close_later(self) -> None:
        if self._calls == 0:
            task = asyncio.get_running_loop().create_task(self.close())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _end(connection: Connection, request: Request, limit_s: float) -> Position | None:
    """The last click of the user's partition; None without any. Raises KafkaError, RecallTimeout."""
    try:
        async with asyncio.timeout(limit_s):
            partition = await connection.partition_of(connection.topics.clicks, request.user_id)
            end = await connection.end_of_clicks(partition)
    except TimeoutError as error:
        raise RecallTimeout(
            f"the broker did not tell within {limit_s:g} s where the clicks end; look at it"
        ) from error
    return Position(partition, end - 1) if end > 0 else None


def _raw(fields: Mapping[str, Any], kind: type[Struct], own: Mapping[str, Any]) -> bytes:
    """The message of these fields and of our ``own`` as JSON. Raises BadMessage for a field that it has not."""
    check_fields(fields, [name for name in kind.__struct_fields__ if name not in own])
    return msgspec.json.encode({**fields, **own})


def redriving(settings: Settings) -> Redriving:
    """Redriving by this process. Faust is loaded by the first call: a gateway needs it for nothing else."""

    async def run(
        wanted: Wanted, rate: float, max_tries: int, dry_run: bool, told: Callable[[int], None]
    ) -> Mapping[str, Any]:
        redrive = await asyncio.to_thread(_redrive_module)
        done = await redrive.run(settings, wanted, rate, max_tries, told, dry_run=dry_run)
        return dict(done.fields())

    return run


def _redrive_module() -> Any:
    from headwater.kafka import redrive

    return redrive


class LetterDesk:
    """Dead letters: listed, shown, published again, taken out. One change at a time.

    Args:
        redrive: publishes letters again; None: this process does.
    """

    def __init__(self, settings: Settings, redrive: Redriving | None = None) -> None:
        self._settings, self._redrive = settings, redrive or redriving(settings)
        self._topic = Topics.named(settings.topic_prefix).dead_letters
        self._reading, self._changing = asyncio.Lock(), asyncio.Lock()
        self._read: Letters | None = None
        self._redriven: int | None = None  # so far, by the redrive that is under way

    async def summary(self) -> dict[str, Any]:
        """How many there are, and of what. Raises HeadwaterError."""
        found = await self._letters()
        waiting = found.open()
        groups = [letters.group_fields(each) for each in letters.groups(waiting)]
        return {"open": len(waiting), "redriven": len(found.redriven()), "groups": groups}

    def under_way(self) -> dict[str, Any] | None:
        """How far the redrive is that runs now: ``{redriven}``; None: none does."""
        return None if self._redriven is None else {"redriven": self._redriven}

    async def listed(self, wanted: Wanted, limit: int) -> list[dict[str, Any]]:
        """The newest of those that wait. Raises HeadwaterError."""
        waiting = [each for each in (await self._letters()).open() if wanted.takes(each)]
        return [letters.letter_fields(each) for each in waiting[::-1][: min(limit, _MOST_LISTED)]]

    async def shown(self, place: Place) -> dict[str, Any] | None:
        """One letter with its content; None: there is none. Raises HeadwaterError."""
        letter = (await self._letters()).at(place, self._topic)
        if letter is None:
            return None
        record = await _kafka(letters.record_of(self._settings, letter))
        return None if record is None else {**letters.letter_fields(letter), **_content(record)}

    async def redriven(self, wanted: Wanted, rate: float, max_tries: int, dry_run: bool) -> dict[str, Any]:
        """Publish letters again, each exactly once. Raises HeadwaterError."""
        async with self._change():
            self._redriven = None if dry_run else 0
            try:
                return dict(await _kafka(self._redrive(wanted, rate, max_tries, dry_run, self._tell)))
            finally:
                self._redriven = None

    def _tell(self, redriven: int) -> None:
        self._redriven = redriven

    async def purged(self, wanted: Wanted, dry_run: bool) -> int:
        """Take letters out for good; how many. Raises HeadwaterError."""
        async with self._change():
            doomed = [each for each in (await self._letters()).open() if wanted.takes(each)]
            if not dry_run:
                await _kafka(letters.purge(self._settings, doomed))
            return len(doomed)

    @asynccontextmanager
    async def _change(self) -> AsyncIterator[None]:
        if self._changing.locked():
            raise HeadwaterError("another redrive or purge of this page is under way: wait for its end")
        async with self._changing:
            self._read = None
            try:
                yield
            finally:
                self._read = None

    async def _letters(self) -> Letters:
        """All of them, kept for a moment: they take half a kilobyte each."""
        async with self._reading:
            if self._read is None:
                self._read = found = await _kafka(letters.read(self._settings))
                asyncio.get_running_loop().call_later(_KEPT_S, self._forget, found)
            return self._read

    def _forget(self, found: Letters) -> None:
        if self._read is found:
            self._read = None


async def _kafka(work: Awaitable[Result]) -> Result:
    """The result of work on the broker. Raises HeadwaterError where that is away or refuses."""
    try:
        return await work
    except KafkaError as error:
        raise HeadwaterError(
            f"the broker refused or is away ({type(error).__name__}: {error}); look at it, and at the rights of this user"
        ) from error
    except StopWorker as error:
        raise HeadwaterError(str(error)) from error


def _content(record: ConsumerRecord) -> dict[str, Any]:
    value = record.value
    cut = (value or b"")[:_SHOWN_BYTES]
    headers = [[name, decoded(held)] for name, held in letters.original_headers(record.headers)]
    formatted = indented(value or b"")
    text = decoded(cut) or "" if formatted is None else formatted[: 2 * _SHOWN_BYTES]
    lines = hex_lines(cut, with_ascii=False)
    return {"headers": headers, "text": None if value is None else text, "hex": "\n".join(lines)}
