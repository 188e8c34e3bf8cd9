"""A way to the broker on which writes suffer, or commits fail, and everything else flows."""

import asyncio
import contextlib
import random
import struct
from enum import Enum, auto
from types import TracebackType
from typing import Final, Self

from tests.end_to_end.outside import PATIENCE_S

# Every request is its length, then the number of what is asked for: https://kafka.apache.org/protocol#protocol_messages
_LENGTH: Final = struct.Struct(">i")
_API_KEY: Final = struct.Struct(">h")
_PRODUCE: Final = 0
_OFFSET_COMMIT: Final = 8
_PIECE: Final = 1 << 16


class Weather(Enum):
    """What becomes of a Produce request."""

    FAIR = auto()
    SLOW = auto()  # it is held for half a second to five seconds
    REFUSING = (
        auto()
    )  # its connection is cut: before the broker has it, or when the broker has it and not yet answered
    LATE = auto()  # its connection is cut, and the broker has it when `deliver_late` is called


class ProduceProxy:
    """Open it with `async with`, have the broker name `port` to its clients, and set `broker_port`."""

    def __init__(self) -> None:
        self.weather = Weather.FAIR
        self.port = self.broker_port = 0
        self.commits_fail = False  # the connection of every commit is cut, too
        self.met = 0  # Produce requests that were held or refused
        self._late: list[bytes] = []
        self._random = random.Random(6)
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        await self.cut()

    async def has_met(self, more: int) -> None:
        """Wait until so many more Produce requests have been held or refused."""
        enough = self.met + more
        async with asyncio.timeout(PATIENCE_S):
            while self.met < enough:
                await asyncio.sleep(0.01)

    async def cut(self) -> None:
        """Lose what is on its way; who still lives may connect again."""
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def deliver_late(self) -> int:
        """Have the broker take what was late, each over a connection of its own; returns how many there were."""
        late, self._late = self._late, []
        for frame in late:
            broker, to_broker = await asyncio.open_connection("127.0.0.1", self.broker_port)
            with contextlib.closing(to_broker):
                to_broker.write(frame)
                await broker.readexactly(_LENGTH.size)  # of its answer
        return len(late)

    def _accept(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._connect(client, to_client))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        task.add_done_callback(lambda _: to_client.close())  # also of one that is cut before it has begun

    async def _connect(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """Both ways, until one side has gone or a request is refused."""
        with contextlib.suppress(OSError):
            broker, to_broker = await asyncio.open_connection("127.0.0.1", self.broker_port)
            with contextlib.closing(to_broker):
                ways = [
                    asyncio.create_task(self._requests(client, to_broker)),
                    asyncio.create_task(_answers(broker, to_client)),
                ]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)

    async def _requests(self, client: asyncio.StreamReader, to_broker: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await client.readexactly(_LENGTH.size)
                body = await client.readexactly(*_LENGTH.unpack(head))
                key = _API_KEY.unpack_from(body)[0]
                if key == _OFFSET_COMMIT and self.commits_fail:
                    return
                goes_on = key != _PRODUCE or await self._is_let_pass()
                if not goes_on and self.weather is Weather.LATE:
                    self._late.append(head + body)
                elif goes_on or self._random.random() < 0.5:
                    to_broker.write(head + body)
                    await to_broker.drain()
                if not goes_on:
                    return

    async def _is_let_pass(self) -> bool:
        """Whether the connection of a Produce request goes on, after as long as the request is held."""
        weather = self.weather
        self.met += weather is not Weather.FAIR
        if weather is Weather.SLOW:
            await asyncio.sleep(self._random.uniform(0.5, 5.0))
        return weather in (Weather.FAIR, Weather.SLOW)


async def _answers(broker: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await broker.read(_PIECE):
            to_client.write(piece)
            await to_client.drain()
