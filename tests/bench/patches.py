"""What each patch of ``kafka/fast_client`` buys: the Kafka side of a worker, once with all of them and once without each.

Each block without a patch stands between two blocks with all of them, so that both see the same machine. The order of
the patches is drawn anew for each cycle. A block has three loads:

- *idle*: a click and its request sent at once, one pair at a time;
- *steady*: the same beside 2,000 clicks a second;
- *backlog*: requests that need no click, one at a time, while a backlog of clicks is worked off.

Reported are the quartiles, over the cycles, of the ratio of each figure without the patch to that with it.
"""

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from headwater.kafka.embedded_broker import dying_with_us
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.fast_client.producer import Producer
from tests.bench.patched_echo import ALL_ON, WITHOUT
from tests.bench.processes import BenchError
from tests.bench.system import System

_IDLE_PAIRS, _STEADY_PAIRS = 80, 40
_STEADY_PER_S, _BACKLOG = 2_000, 30_000
_PAUSE_S = 0.002
_TIMEOUT_S = 120.0
_VALUE = bytes(120)

T = TypeVar("T")


class Client:
    """Sends clicks and requests, and waits for answers."""

    def __init__(self, system: System, prefix: str, partitions: int) -> None:
        options = system.settings.kafka_options()
        self._prefix, self._partitions, self._count = prefix, partitions, 0
        self._producer: AIOKafkaProducer = Producer(**options, acks="all", linger_ms=0)
        self._consumer: AIOKafkaConsumer = Consumer(**options, auto_offset_reset="latest")
        self._waiting: dict[bytes, asyncio.Future[None]] = {}

    async def start(self) -> None:
        await self._producer.start()
        await self._consumer.start()
        tps = [TopicPartition(f"{self._prefix}answers", n) for n in range(self._partitions)]
        self._consumer.assign(tps)
        await self._consumer.seek_to_end(*tps)
        self._reading = asyncio.ensure_future(self._read())

    async def stop(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._consumer.stop()
        await self._producer.stop()

    async def _read(self) -> None:
        async for record in self._consumer:
            if waiting := self._waiting.pop(record.value, None):
                waiting.set_result(None)

    async def pair_ms(self) -> float:
        """From a click and its request, sent at once, to the answer."""
        self._count += 1
        key, partition = b"pair-%d" % self._count, self._count % self._partitions
        waiting = self._waiting[key] = asyncio.get_running_loop().create_future()
        started = time.perf_counter()
        await self._producer.send(f"{self._prefix}clicks", _VALUE, key=key, partition=partition)
        await self._producer.send(f"{self._prefix}requests", _VALUE, key=key, partition=partition)
        await _in_time("did not answer", waiting)
        return (time.perf_counter() - started) * 1000.0

    async def request_ms(self) -> float:
        """From a request that needs no click to its answer."""
        self._count += 1
        key, partition = b"free-%d" % self._count, self._count % self._partitions
        waiting = self._waiting[key] = asyncio.get_running_loop().create_future()
        started = time.perf_counter()
        await self._producer.send(f"{self._prefix}requests", _VALUE, key=key, partition=partition)
        await _in_time("did not answer", waiting)
        return (time.perf_counter() - started) * 1000.0

    async def pairs_ms(self, count: int) -> list[float]:
        found = []
        for _ in range(count):
            found.append(await self.pair_ms())
            await asyncio.sleep(_PAUSE_S)
        return found

    async def clicks(self, count: int) -> None:
        """As fast as they go, of 5,000 users."""
        sent = []
        for number in range(count):
            key = b"load-%d" % (number % 5_000)
            partition = number % self._partitions
            sent.append(
                await self._producer.send(f"{self._prefix}clicks", _VALUE, key=key, partition=partition)
            )
        await asyncio.gather(*sent)

    async def steady(self, per_s: int) -> None:
        started, sent = time.monotonic(), 0
        while True:
            due = int((time.monotonic() - started) * per_s)
            await self.clicks(due - sent)
            sent = max(due, sent)
            await asyncio.sleep(0.005)


class Server:
    """The echo in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def tell(self, command: str) -> tuple[float, int]:
        """Processor seconds used so far, and clicks handled since the start."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\n".encode())
        line = await _in_time(f"did not follow {command!r}", self._process.stdout.readline())
        if not line:
            raise BenchError(f"the echo ended at {command!r}")
        cpu_s, handled = line.split()
        return float(cpu_s), int(handled)


async def _in_time(what: str, done: Awaitable[T]) -> T:
    try:
        return await asyncio.wait_for(done, _TIMEOUT_S)
    except TimeoutError:
        raise BenchError(f"the echo {what} within {_TIMEOUT_S:.0f} s") from None


async def measure(system: System, loads: Sequence[str] = ("backlog", "idle", "steady")) -> None:
    """Fill ``details["patches"]`` of the report: for each patch, the ratio of each figure without it to that with it."""
    partitions = system.settings.partitions
    prefix = f"{system.settings.topic_prefix}patches-"
    await system.create_plain(*(f"{prefix}{name}" for name in ("clicks", "requests", "states", "answers")))
    client = Client(system, prefix, partitions)
    await client.start()
    blocks: list[tuple[str, dict[str, float]]] = []  # every second one with all patches
    try:
        async with _echo(system, prefix, partitions) as server:
            await _block(server, client, ALL_ON, loads)  # warm-up
            blocks.append((ALL_ON, await _block(server, client, ALL_ON, loads)))
            for cycle in range(system.scale.patch_cycles):
                names = [name for name in WITHOUT if name != ALL_ON]
                random.Random(cycle).shuffle(names)
                for name in names:
                    blocks.append((name, await _block(server, client, name, loads)))
                    blocks.append((ALL_ON, await _block(server, client, ALL_ON, loads)))
                system.report.details["patches"] = summary(blocks)
    finally:
        await client.stop()


async def measure_idle(system: System) -> None:
    """The idle load alone, so that there are more blocks of it in the same time."""
    await measure(system, ("idle",))


def summary(blocks: Sequence[tuple[str, dict[str, float]]]) -> dict[str, Any]:
    """Medians with all patches; by patch, and for all patches again, the quartiles of each figure's ratio.

    A block is compared with the mean of its two neighbours with all patches. ``noise`` compares such blocks with
    each other in the same way: a ratio within its quartiles says nothing.
    """
    whole = [figures for name, figures in blocks if name == ALL_ON]
    ratios: dict[str, list[dict[str, float]]] = {}
    for before, (name, figures), after in zip(blocks, blocks[1:], blocks[2:], strict=False):
        if name != ALL_ON:
            ratios.setdefault(name, []).append(_ratio(figures, before[1], after[1]))
    ratios["noise"] = [
        _ratio(figures, *beside) for figures, *beside in zip(whole[1:], whole, whole[2:], strict=False)
    ]
    return {
        "blocks": len(blocks),
        ALL_ON: {figure: float(np.median([each[figure] for each in whole])) for figure in whole[0]},
        **{
            name: {figure: _quartiles([each[figure] for each in found]) for figure in whole[0]}
            for name, found in ratios.items()
        },
    }


def _ratio(figures: dict[str, float], before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: 2.0 * value / (before[name] + after[name]) for name, value in figures.items()}


def _quartiles(ratios: list[float]) -> list[float]:
    return [round(float(each), 3) for each in np.percentile(ratios, [25, 50, 75])]


async def _block(server: Server, client: Client, name: str, loads: Sequence[str]) -> dict[str, float]:
    if "backlog" in loads:
        await client.clicks(_BACKLOG)  # while nobody reads
    await server.tell(f"start {name}")
    figures = {}
    for load in loads:
        figures |= await LOADS[load](server, client)
    await server.tell("stop")
    return figures


async def _backlog(server: Server, client: Client) -> dict[str, float]:
    started_s, _ = await server.tell("state")
    took_ms, handled = [], 0
    while handled < _BACKLOG:
        took_ms.append(await client.request_ms())
        used_s, handled = await server.tell("state")
    return {**_percentiles("backlog", took_ms), "backlog_cpu_us": 1e6 * (used_s - started_s) / handled}


async def _idle(server: Server, client: Client) -> dict[str, float]:
    before_s, _ = await server.tell("state")
    took_ms = await client.pairs_ms(_IDLE_PAIRS)
    after_s, _ = await server.tell("state")
    return {**_percentiles("idle", took_ms), "idle_cpu_us": 1e6 * (after_s - before_s) / _IDLE_PAIRS}


async def _steady(server: Server, client: Client) -> dict[str, float]:
    load = asyncio.ensure_future(client.steady(_STEADY_PER_S))
    await asyncio.sleep(0.1)
    before_s, handled_before = await server.tell("state")
    took_ms = await client.pairs_ms(_STEADY_PAIRS)
    after_s, handled = await server.tell("state")
    load.cancel()
    await asyncio.gather(load, return_exceptions=True)
    cpu_us = 1e6 * (after_s - before_s) / max(handled - handled_before, 1)
    return {**_percentiles("steady", took_ms), "steady_cpu_us": cpu_us}


# In the order they run: what is left of the backlog must not be in the way of the others.
LOADS: dict[str, Callable[[Server, Client], Awaitable[dict[str, float]]]] = {
    "backlog": _backlog,
    "idle": _idle,
    "steady": _steady,
}


def _percentiles(load: str, took_ms: list[float]) -> dict[str, float]:
    """The median, and the second percentile: of the moments in which a busy machine did nothing else."""
    p2, p50 = np.percentile(took_ms, [2, 50])
    return {f"{load}_p2_ms": float(p2), f"{load}_p50_ms": float(p50)}


@asynccontextmanager
async def _echo(system: System, prefix: str, partitions: int) -> AsyncIterator[Server]:
    arguments = [
        *(sys.executable, "-m", "tests.bench.patched_echo"),
        *(system.settings.bootstrap_servers, prefix, str(partitions)),
    ]
    process = await asyncio.create_subprocess_exec(
        *dying_with_us(arguments), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield Server(process)
    finally:
        process.terminate()
        await process.wait()
