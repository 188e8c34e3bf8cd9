"""From sending a click to the answer that reflects it, on an idle system, beside an echo through a plain Faust agent.

Rounds take turns: an echo, then a click with its request, so that both see the same machine.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from headwater.client import Client
from headwater.messages import Position, Response
from tests.bench import catalog
from tests.bench.processes import BenchError, python, worker
from tests.bench.report import Figure
from tests.bench.system import System

WARM_UP = 20
_PAUSE_S = 0.01
_TIMEOUT_S = 30.0


class Echo:
    """One message at a time to the echo agent and back, by the means of our own client: no linger, consumer ready."""

    def __init__(self, producer: AIOKafkaProducer, consumer: AIOKafkaConsumer, asked: str) -> None:
        self._producer, self._consumer, self._asked = producer, consumer, asked
        self._waiting: dict[bytes, asyncio.Future[None]] = {}

    async def read(self) -> None:
        async for record in self._consumer:
            if waiting := self._waiting.pop(record.value, None):
                waiting.set_result(None)

    async def round_ms(self, number: int) -> float:
        message = b"%08d" % number + bytes(120)  # the size of a request
        waiting = self._waiting[message] = asyncio.get_running_loop().create_future()
        started = time.perf_counter()
        await self._producer.send(self._asked, message, key=b"%d" % (number % 50))
        await asyncio.wait_for(waiting, _TIMEOUT_S)
        return (time.perf_counter() - started) * 1000.0


async def measure(system: System) -> None:
    """p50 and p99 of an echo, of a request sent when its click is acknowledged, and of one sent with its click."""
    await catalog.fill(system)
    echoes: list[float] = []
    rounds: list[float] = []
    at_once: list[float] = []
    acknowledged: list[float] = []
    stages: dict[str, list[float]] = {}
    async with (
        worker("interests", system.folder, system.environment) as running,
        echo(system) as round_trip,
        Client(system.settings) as client,
    ):
        await running.wait_graph()
        for number in range(system.scale.rounds + WARM_UP):
            echoed = await round_trip.round_ms(number)
            await asyncio.sleep(_PAUSE_S)
            item_id = system.items[(number * 7919) % len(system.items)].item_id
            user = f"fresh-{number % 50}"
            started = time.perf_counter()
            clicked = await client.click(user, item_id)
            acknowledged_ms = (time.perf_counter() - started) * 1000.0
            answer = await client.recall(user, limit=20, reads="own")
            took_ms = (time.perf_counter() - started) * 1000.0
            _require_fresh(answer, clicked)
            await asyncio.sleep(_PAUSE_S)
            user = f"at-once-{number % 50}"
            started = time.perf_counter()
            clicked, together = await asyncio.gather(
                client.click(user, item_id), client.recall(user, limit=20, reads="own")
            )
            took_at_once_ms = (time.perf_counter() - started) * 1000.0
            _require_fresh(together, clicked)
            await asyncio.sleep(_PAUSE_S)
            if number >= WARM_UP:
                echoes.append(echoed)
                rounds.append(took_ms)
                at_once.append(took_at_once_ms)
                acknowledged.append(acknowledged_ms)
                for name, ms in answer.timings_ms.items():
                    stages.setdefault(name, []).append(ms)
    for name, taken, note in (
        ("click to answer", rounds, "click, acknowledgement, request with `after`, answer"),
        ("click and request sent at once", at_once, "the request names the click's event"),
    ):
        for percentile, at_most in ((50, 2.0), (99, 3.0)):
            ours, baseline = float(np.percentile(taken, percentile)), float(np.percentile(echoes, percentile))
            system.report.add(
                Figure(
                    f"{name}, p{percentile}",
                    ours,
                    "ms",
                    baseline,
                    "Faust echo",
                    ours / baseline,
                    at_most=at_most,
                    note=f"{len(taken)} rounds: {note}" if percentile == 50 else "",
                )
            )
    system.report.details["freshness_ms"] = {
        "click_acknowledged_p50": float(np.percentile(acknowledged, 50)),
        "worker_p50": {name: float(np.percentile(values, 50)) for name, values in stages.items()},
    }


def _require_fresh(answer: Response, clicked: Position) -> None:
    if answer.reflects is None or answer.reflects.offset < clicked.offset or answer.status != "ok":
        raise BenchError(
            f"an answer does not reflect its click at {clicked}: {answer.status}, {answer.reflects}"
        )


@asynccontextmanager
async def echo(system: System) -> AsyncIterator[Echo]:
    """A running echo agent with topics of its own."""
    settings = system.settings
    # A new group each time: one that was left without a word takes a minute to notice.
    run = f"{settings.topic_prefix}echo-{time.monotonic_ns()}"
    asked, answered = f"{run}-asked", f"{run}-answered"
    await system.create_plain(asked, answered)
    arguments = [
        *("-m", "tests.bench.echo_agent", settings.bootstrap_servers),
        *(asked, answered, str(system.folder)),
    ]
    consumer = AIOKafkaConsumer(**settings.kafka_options())
    producer = AIOKafkaProducer(**settings.kafka_options(), linger_ms=0, acks="all")
    async with python(arguments, system.folder, "echo-agent"):
        await consumer.start()
        await producer.start()
        tps = [TopicPartition(answered, number) for number in range(settings.partitions)]
        consumer.assign(tps)
        await consumer.seek_to_end(*tps)
        agent = Echo(producer, consumer, asked)
        reading = asyncio.ensure_future(agent.read())
        try:
            await agent.round_ms(0)  # the agent is up when the first answer comes
            yield agent
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await producer.stop()
            await consumer.stop()
