"""What the live page costs its worker, and what a flood makes of the page and of the gateway.

Clicks a second with one viewer and with none take turns on one worker, so that both see the same machine. How far two
times without a viewer lie apart says what can be measured at all.
"""

import asyncio
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from typing import Any, Final

import aiohttp
import msgspec
import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition

from tests.bench import catalog, clicks, gateway, load
from tests.bench.processes import BenchError, Worker, python, worker
from tests.bench.report import Figure
from tests.bench.system import System

_PAIRS: Final = 4
_QUICK_PAIRS: Final = 2
_MOST: Final = 50
_LOOKS_S: Final = 10.0
_QUICK_LOOKS_S: Final = 4.0
_HEARD_S: Final = 20.0
_SMALL_BUFFER: Final = 2_048
_RATE: Final = 200.0
_IN_FLIGHT: Final = 32
_ASKED: Final = 200
_JUNK_PAUSE_S: Final = 0.002
# Method, path, type, and body of what nobody should send.
_JUNK: Final[tuple[tuple[str, str, str, bytes], ...]] = (
    ("POST", "/clicks", "application/json", b"x" * 10_000_000),
    ("POST", "/clicks", "text/plain", b"{}"),
    ("POST", "/recall", "application/x-www-form-urlencoded", b"user_id=ann"),
    ("POST", "/recall", "application/json", b"[" * 100_000),
    ("POST", "/recall", "application/json", b'{"limit": ' + b"9" * 50_000 + b"}"),
    ("GET", "/nothing/here", "", b""),
    ("PUT", "/clicks", "application/json", b"{}"),
    ("GET", "/docs/..%2f..%2fetc%2fpasswd", "", b""),
)


async def measure(system: System) -> None:
    """The page of a worker under clicks, then the gateway under a flood."""
    await clicks.fill(system)
    environment = {**system.environment, "HEADWATER_LIVE_OPEN": "true"}
    async with worker("interests", system.folder, environment) as running:
        await running.wait_graph()
        await clicks.again(system, running)  # the first one after a start is slower
        await _viewers(system, running)
        await _crowd(system, running)
        await _silent(system, running)
        await _flooded(system)


class _Viewer:
    """A browser's stream, read as it comes."""

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self._content = content
        self.heard: list[tuple[str, Any]] = []
        self.size = 0

    async def read(self) -> None:
        name = ""
        async for line in self._content:
            self.size += len(line)
            field, _, value = line.decode().rstrip("\n").partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                self.heard.append((name, msgspec.json.decode(value) if name != "clicks" else None))

    def names(self) -> Counter[str]:
        return Counter(name for name, _ in self.heard)

    async def until(self, wanted: str) -> Any:
        """The data of the first event of that name. Raises BenchError."""
        for _ in range(round(_HEARD_S / 0.02)):
            for name, data in self.heard:
                if name == wanted:
                    return data
            await asyncio.sleep(0.02)
        raise BenchError(f"a viewer heard no {wanted!r} within {_HEARD_S:.0f} s: {self.names()}")


@asynccontextmanager
async def _viewer(running: Worker) -> AsyncIterator[_Viewer]:
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as http,
        http.get(f"{running.address}/live/events") as response,
    ):
        viewer = _Viewer(response.content)
        reading = asyncio.ensure_future(viewer.read())
        try:
            await viewer.until("hello")
            yield viewer
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def _viewers(system: System, running: Worker) -> None:
    """Clicks a second: nobody, one viewer, nobody, one viewer, ..., nobody."""
    pairs = _QUICK_PAIRS if system.report.quick else _PAIRS
    alone, watched = [await clicks.again(system, running)], []
    for _ in range(pairs):
        async with _viewer(running) as viewer:
            watched.append(await clicks.again(system, running))
            if viewer.names()["figures"] == 0:
                raise BenchError("a viewer heard no figures while clicks were applied")
        alone.append(await clicks.again(system, running))
    one = [
        seen / ((before + after) / 2) for (before, after), seen in zip(pairwise(alone), watched, strict=True)
    ]
    none = [after / before for before, after in pairwise(alone)]
    spread = f"{min(none):.3f} to {max(none):.3f}"
    system.report.add(
        Figure(
            "page: one viewer",
            float(np.median(watched)),
            "clicks/s",
            float(np.median(alone)),
            "nobody looks",
            float(np.median(one)),
            at_least=0.98,
            note=f"{pairs} times between two without a viewer: {', '.join(f'{each:.3f}' for each in one)}; two "
            f"without one after the other: {spread}",
        ),
        Figure(
            "page: nobody looks any more",
            float(np.median(alone[1:])),
            "clicks/s",
            alone[0],
            "before anybody did",
            float(np.median(alone[1:])) / alone[0],
            note=f"no target: nothing is made then, and two such times are {spread} of each other anyway",
        ),
    )
    system.report.details["page"] = {"nobody": alone, "one_viewer": watched}


async def _crowd(system: System, running: Worker) -> None:
    """Fifty viewers, one more, and what fifty cost a worker with a backlog."""
    async with AsyncExitStack() as stack:
        viewers = [await stack.enter_async_context(_viewer(running)) for _ in range(_MOST)]
        used_s, started_s = running.process.used_cpu_s(), time.monotonic()
        looks_s = _QUICK_LOOKS_S if system.report.quick else _LOOKS_S
        await asyncio.sleep(looks_s)
        share = (running.process.used_cpu_s() - used_s) / (time.monotonic() - started_s)
        crowded = await clicks.again(system, running)
        late = await stack.enter_async_context(_viewer(running))
        bye = await viewers[0].until("bye")
        seen = (await late.until("figures"))["viewers"]
    alone = await clicks.again(system, running)
    system.report.add(
        Figure(
            f"page: {_MOST} viewers",
            crowded,
            "clicks/s",
            alone,
            "nobody looks",
            crowded / alone,
            note=f"no target: they are bounded in number; an idle worker uses {100 * share:.1f} % of a core with them, this client beside it on the same cores",
        ),
        Figure(
            "page: viewers after one more came",
            float(seen),
            "viewers",
            float(_MOST),
            "places",
            seen / _MOST,
            at_most=1.0,
            note=f"the oldest was told {bye['reason']!r}, to come again after {bye['retry_ms'] / 1000:g} s",
        ),
    )


async def _silent(system: System, running: Worker) -> None:
    """Viewers that do not read, beside one that does, while clicks come."""
    before_mib = running.process.memory_mib()
    host, _, port = running.address.removeprefix("http://").rpartition(":")
    held = []
    try:
        for _ in range(_MOST - 1):
            there = socket.socket()
            there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)
            await asyncio.to_thread(there.connect, (host, int(port)))
            there.sendall(f"GET /live/events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            held.append(there)
        async with load.clicking(system, running), _viewer(running) as viewer:
            started_s, before = time.monotonic(), viewer.names()["figures"]
            await asyncio.sleep(_QUICK_LOOKS_S if system.report.quick else _LOOKS_S)
            seconds, heard = time.monotonic() - started_s, viewer.names()["figures"] - before
    finally:
        for there in held:
            there.close()
    system.report.add(
        Figure(
            "page: seconds told beside viewers that do not read",
            float(heard),
            "seconds",
            seconds,
            "passed",
            heard / seconds,
            at_least=0.7,
            note=f"{_MOST - 1} do not read, beside clicks; the worker took {running.process.memory_mib() - before_mib:.1f} MiB more",
        )
    )


async def _flooded(system: System) -> None:
    """More clicks over HTTP than the gateway lets in, and requests beside junk."""
    await catalog.fill(system)
    environment = {**system.environment, "HEADWATER_GATEWAY_RATE": str(_RATE)}
    arguments = ["-m", "headwater.commands.main", "gateway", "--port", "0"]
    async with (
        python(arguments, system.folder, "flooded-gateway", environment) as process,
        aiohttp.ClientSession() as http,
        _ends(system) as end,
    ):
        address = await gateway.address_of(process, system.folder)
        before = await end()
        seconds = system.scale.request_s
        statuses, unsaid, took_s = await _flood(http, f"{address}/clicks", seconds)
        stored = await end() - before
    allowed = _RATE * (1.0 + took_s)  # a second's measure at once, and what comes while it lasts
    lost = statuses[201] - stored
    system.report.add(
        Figure(
            "gateway: let in of a flood",
            float(statuses[201]),
            "clicks",
            allowed,
            f"at {_RATE:g}/s",
            statuses[201] / allowed,
            at_most=1.05,
            note=f"{sum(statuses.values()) / took_s:,.0f} calls/s for {took_s:.0f} s: {_told(statuses)}; "
            f"{unsaid} refused without Retry-After",
        ),
        Figure(
            "gateway: clicks lost of a flood",
            float(lost),
            "clicks",
            float(statuses[201]),
            "told 201",
            abs(lost) / max(statuses[201], 1),
            at_most=0.0,
            note="beside what lies on the topic",
        ),
    )
    await _beside_junk(system)


def _told(statuses: Counter[int]) -> str:
    return ", ".join(f"{count:,} of {status}" for status, count in sorted(statuses.items()))


async def _flood(http: aiohttp.ClientSession, url: str, seconds: float) -> tuple[Counter[int], int, float]:
    """Statuses of as many clicks as go, how many refusals did not say when to come back, and the seconds taken."""
    statuses: Counter[int] = Counter()
    unsaid = 0
    started_s = time.monotonic()

    async def again(number: int) -> None:
        nonlocal unsaid
        while time.monotonic() - started_s < seconds:
            body = {"user_id": f"flood-{number}", "item_id": "c1"}
            async with http.post(url, json=body) as answer:
                await answer.read()
                statuses[answer.status] += 1
                unsaid += answer.status == 429 and "Retry-After" not in answer.headers

    await asyncio.gather(*map(again, range(_IN_FLIGHT)))
    return statuses, unsaid, time.monotonic() - started_s


@asynccontextmanager
async def _ends(system: System) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """Counts the records on the clicks topic."""
    consumer = AIOKafkaConsumer(**system.settings.kafka_options())
    await consumer.start()
    tps = [TopicPartition(system.topics.clicks, number) for number in range(system.settings.partitions)]

    async def end() -> int:
        return sum((await consumer.end_offsets(tps)).values())

    try:
        yield end
    finally:
        await consumer.stop()


async def _beside_junk(system: System) -> None:
    """p50 of a request over HTTP, without and beside a stranger who sends what nobody should."""
    environment = {**system.environment, "HEADWATER_GATEWAY_RATE": "1e9"}
    arguments = ["-m", "headwater.commands.main", "gateway", "--port", "0"]
    async with (
        python(arguments, system.folder, "junk-gateway", environment) as process,
        aiohttp.ClientSession() as http,
    ):
        address = await gateway.address_of(process, system.folder)
        await _asked_ms(http, address)
        before = await _asked_ms(http, address)
        sent: Counter[int] = Counter()
        stranger = asyncio.ensure_future(_send_junk(address, sent))
        beside = await _asked_ms(http, address)
        stranger.cancel()
        await asyncio.gather(stranger, return_exceptions=True)
        after = await _asked_ms(http, address)
    alone = [*before, *after]
    if bad := [status for status in sent if not 400 <= status < 500]:
        raise BenchError(f"junk was answered with {bad}: {_told(sent)}")
    system.report.add(
        Figure(
            "gateway: p50 beside junk",
            float(np.percentile(beside, 50)),
            "ms",
            float(np.percentile(alone, 50)),
            "without",
            float(np.percentile(beside, 50) / np.percentile(alone, 50)),
            note=f"no target; p99 {np.percentile(beside, 99):.1f} and {np.percentile(alone, 99):.1f} ms; "
            f"10 MB, odd types, no JSON, unknown routes: {_told(sent)}",
        )
    )


async def _asked_ms(http: aiohttp.ClientSession, address: str) -> list[float]:
    took_ms = []
    for number in range(_ASKED):
        started_s = time.perf_counter()
        body = {"user_id": f"user-{number:06d}", "limit": 20, "reads": "any"}
        async with http.post(f"{address}/recall", json=body) as answer:
            await answer.read()
            if answer.status != 200:
                raise BenchError(f"the gateway answered {answer.status}: {await answer.text()}")
        took_ms.append((time.perf_counter() - started_s) * 1000.0)
    return took_ms


async def _send_junk(address: str, sent: Counter[int]) -> None:
    while True:
        for method, path, kind, body in _JUNK:
            headers = {"Content-Type": kind} if kind else {}
            try:
                async with (
                    aiohttp.ClientSession() as http,
                    http.request(method, f"{address}{path}", data=body or None, headers=headers) as answer,
                ):
                    await answer.read()
                    sent[answer.status] += 1
            except aiohttp.ClientError:
                sent[413] += 1  # it was refused before it had sent everything, and the connection closed
            await asyncio.sleep(_JUNK_PAUSE_S)
