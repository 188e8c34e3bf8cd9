"""A worker as its clients see it: answers requests on a real broker as a test says, and keeps what it was asked."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from headwater.kafka.headers import CORRELATION_HEADERS, ReplyPartition, reply_partition_of
from headwater.kafka.topics import Topics
from headwater.messages import Reflects, Request, Response, decode_request, encode
from headwater.settings import Settings

Answering = Callable[[Request], list[Response]]
# A broker that was just given nine topics by a busy machine may take its time; nothing here is about speed.
LONG_MS = 30_000


def echo(request: Request) -> list[Response]:
    reflects = Reflects(request.after.partition, request.after.offset) if request.after else None
    return [Response(request.request_id, request.user_id, "ok", reflects=reflects)]


class FakeWorker:
    """Answers requests from the moment it is entered on, as `answering` says."""

    def __init__(self, settings: Settings, answering: Answering) -> None:
        self._settings, self._topics = settings, Topics.named(settings.topic_prefix)
        self.answering = answering
        self.asked: list[Request] = []
        self.honours_partitions = False  # and echoes them; workers of earlier versions do not
        self.answered_on: list[int] = []

    async def run(self, ready: asyncio.Event) -> None:
        options = self._settings.kafka_options()
        partitions = [TopicPartition(self._topics.requests, n) for n in range(self._settings.partitions)]
        async with AIOKafkaConsumer(**options) as consumer, AIOKafkaProducer(**options) as producer:
            consumer.assign(partitions)
            for partition, end in (await consumer.end_offsets(partitions)).items():
                consumer.seek(partition, end)
            ready.set()
            async for record in consumer:
                request = decode_request(record.key, record.value, record.timestamp)
                self.asked.append(request)
                for response in self.answering(request):
                    headers = [(CORRELATION_HEADERS[0], response.request_id.encode())]
                    named = reply_partition_of(record.headers) if self.honours_partitions else None
                    if isinstance(named, ReplyPartition):
                        headers.append(named.header)
                    written = await producer.send_and_wait(
                        self._topics.responses,
                        encode(response),
                        key=response.user_id.encode(),
                        partition=named.partition if isinstance(named, ReplyPartition) else None,
                        headers=headers,
                    )
                    self.answered_on.append(written.partition)


@asynccontextmanager
async def answering(settings: Settings, answers: Answering = echo) -> AsyncIterator[FakeWorker]:
    worker, ready = FakeWorker(settings, answers), asyncio.Event()
    task = asyncio.create_task(worker.run(ready))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({task, waiting}, timeout=30, return_when=asyncio.FIRST_COMPLETED)
    assert ready.is_set(), task
    try:
        yield worker
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task  # raises what the fake itself failed with
