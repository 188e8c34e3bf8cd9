"""The Kafka side of a worker alone, with one patch of the fast client taken out: it answers a request when its click is sent.

python -m tests.bench.patched_echo SERVERS PREFIX PARTITIONS

Each line of standard input is a command, each answered by one line: ``start NAME`` (of a patch that is left out, or
"all on"), ``stop``, ``state`` (processor seconds used so far and clicks handled).
"""

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import uvloop
from aiokafka import ConsumerRecord, TopicPartition

from headwater.kafka.fast_client import consumer as fast_consumer
from headwater.kafka.fast_client import dispatch, fetch_plan, records
from headwater.kafka.fast_client import producer as fast_producer
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.plain_client import PlainConsumer, PlainProducer
from headwater.kafka.publish import Outgoing, send_all
from headwater.settings import Settings

ALL_ON = "all on"
_MAX_RECORDS = 2_000
# What a batch holds the event loop for, beside the client's own work.
_WORK_S = 0.0003
_STATE = bytes(500)
_STATES = 40  # written per batch, at most


def _nothing(*_: Any) -> None: ...


async def _no_turns() -> None: ...


def _plain_write(self: Any, node: int, handler: Any) -> None:
    self._hand_to_aiokafka(node, handler)


# A patch by name: the attributes that take it out.
Change = tuple[object, str, Any]
NEXT_OFF: list[Change] = [(dispatch, "next_request", _nothing)]
URGENT_OFF: list[Change] = [(fast_consumer, "frozenset", lambda _: frozenset())]
PLAN_OFF: list[Change] = [(fetch_plan, "plan", _nothing)]
WITHOUT: dict[str, list[Change]] = {
    ALL_ON: [],
    "codec": [(fast_consumer, "install_fast_codec", _nothing)],
    "eager parsing": [(fetch_plan, "parse_eagerly", _nothing), (fast_producer, "parse_eagerly", _nothing)],
    "light records": [(records, "make_light", _nothing)],
    "immediate dispatch": [],  # the callback is not set
    "next fetch in place": NEXT_OFF,
    "handlers first": [(dispatch, "let_handlers_run", _no_turns)],
    "pacer": [(dispatch.FetchPacer, "pause_s", lambda *_: 0.0)],
    "urgent connection": URGENT_OFF,
    "urgent connection, next fetch": [*URGENT_OFF, *NEXT_OFF],
    "urgent connection, next fetch, planner": [*URGENT_OFF, *NEXT_OFF, *PLAN_OFF],
    "short stall": [(fetch_plan, "POLLED_WITHIN_S", 0.1), (fetch_plan, "PARTIAL_MAX_WAIT_MS", 500)],
    "write now": [(Producer, "write_now", _nothing)],
    "early acknowledgement": [(fast_producer._FastSender, "_write", _plain_write)],
    "sender": [],  # the plain producer
    "everything": [],  # both plain clients
}


@contextlib.contextmanager
def taken_out(name: str) -> Iterator[None]:
    """One patch left out, for as long as the block lasts."""
    missing = object()
    before = [
        (owner, attribute, vars(owner).get(attribute, missing)) for owner, attribute, _ in WITHOUT[name]
    ]
    for owner, attribute, value in WITHOUT[name]:
        setattr(owner, attribute, value)
    try:
        yield
    finally:
        for owner, attribute, value in before:
            if value is missing:
                delattr(owner, attribute)
            else:
                setattr(owner, attribute, value)


class Echo:
    """Reads clicks and requests without a group, as a worker's group does: one batch per partition in hand."""

    def __init__(
        self, name: str, settings: Settings, partitions: int, positions: dict[TopicPartition, int]
    ) -> None:
        self._name, self._settings, self._positions = name, settings, positions
        prefix = settings.topic_prefix
        self._clicks, self._requests = f"{prefix}clicks", f"{prefix}requests"
        self._states, self._answers = f"{prefix}states", f"{prefix}answers"
        self._tps = [
            TopicPartition(topic, n) for topic in (self._clicks, self._requests) for n in range(partitions)
        ]
        consumer_class = PlainConsumer if name == "everything" else Consumer
        producer_class = PlainProducer if name in ("sender", "everything") else Producer
        options = settings.kafka_options()
        self._consumer = consumer_class(
            **options,
            urgent=(self._requests,),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=_MAX_RECORDS,
            max_partition_fetch_bytes=1_048_576,
        )
        self._producers = [
            producer_class(**options, acks="all", linger_ms=0, max_batch_size=900 * 1024) for _ in range(2)
        ]
        self._busy: set[TopicPartition] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._seen: dict[bytes, asyncio.Future[None]] = {}
        self._soon = False
        self.handled = 0

    async def start(self) -> None:
        for producer in self._producers:
            await producer.start()
        await self._consumer.start()
        self._consumer.assign(self._tps)
        for tp in self._tps:
            if tp in self._positions:
                self._consumer.seek(tp, self._positions[tp])
        if self._name != "immediate dispatch":
            self._consumer.on_records = self._begin
        self._reading = asyncio.ensure_future(self._read())

    async def stop(self) -> None:
        self._reading.cancel()
        self._consumer.on_records = None
        await asyncio.gather(self._reading, return_exceptions=True)
        while self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
            for waiting in self._seen.values():
                waiting.done() or waiting.set_result(None)
        await self._consumer.stop()
        for producer in self._producers:
            await producer.stop()

    async def _read(self) -> None:
        while True:
            self._begin()
            await self._consumer.wait_for_records(1.0)

    def _begin_soon(self) -> None:
        if not self._soon:
            self._soon = True
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> int:
        self._soon = False
        fetched = self._consumer.poll_buffered({*self._tps} - self._busy, _MAX_RECORDS)
        for tp, found in fetched.items():
            self._busy.add(tp)
            self._positions[tp] = found[-1].offset + 1
            work = self._on_clicks if tp.topic == self._clicks else self._on_requests
            task = asyncio.ensure_future(work(tp, found))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return sum(map(len, fetched.values()))

    def _release(self, tp: TopicPartition) -> None:
        self._busy.discard(tp)
        self._begin_soon()

    async def _on_clicks(self, tp: TopicPartition, found: Sequence[ConsumerRecord]) -> None:
        until = time.perf_counter() + _WORK_S
        while time.perf_counter() < until:
            pass
        keys = {record.key for record in found}
        states = [Outgoing(key, _STATE) for key in list(keys)[:_STATES]]
        sent = await send_all(self._producers[0], self._states, tp.partition, states)
        self._producers[0].write_now()
        for key in keys:
            if key.startswith(b"pair"):
                waiting = self._seen.setdefault(key, asyncio.get_running_loop().create_future())
                waiting.done() or waiting.set_result(None)
        self._release(tp)
        await sent.acknowledged()
        self.handled += len(found)

    async def _on_requests(self, tp: TopicPartition, found: Sequence[ConsumerRecord]) -> None:
        self._release(tp)
        for record in found:
            if not record.key.startswith(b"free"):
                await self._seen.setdefault(record.key, asyncio.get_running_loop().create_future())
                del self._seen[record.key]
            sent = await self._producers[1].send(self._answers, record.key, partition=tp.partition)
            self._producers[1].write_now()
            await sent


async def _serve(servers: str, prefix: str, partitions: str) -> None:
    loop, commands = asyncio.get_running_loop(), asyncio.Queue[str]()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(commands.put_nowait, line.strip())

    threading.Thread(target=read, daemon=True).start()
    settings = Settings(kafka_bootstrap_servers=servers, topic_prefix=prefix)
    positions: dict[TopicPartition, int] = {}
    stack, echo = contextlib.ExitStack(), None
    while True:
        command, _, name = (await commands.get()).partition(" ")
        if command == "start":
            stack.enter_context(taken_out(name))
            echo = Echo(name, settings, int(partitions), positions)
            await echo.start()
        elif command == "stop" and echo is not None:
            await echo.stop()
            stack.close()
        handled = echo.handled if echo is not None else 0
        print(time.process_time(), handled, flush=True)


if __name__ == "__main__":
    uvloop.run(_serve(*sys.argv[1:]))
