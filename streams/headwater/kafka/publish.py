"""Writing to Kafka in whole record batches, each acknowledged by all replicas before the caller goes on."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.structs import RecordMetadata
from msgspec import Struct

from headwater.errors import StopWorker
from headwater.kafka.fast_client.producer import Producer, set_delivery_timeout
from headwater.kafka.headers import Headers
from headwater.kafka.partitioner import partitions_of
from headwater.settings import Settings

# Longer than a broker takes to restart, or its partitions to move to another.
_DELIVERY_TIMEOUT_S: Final = 120.0
# A little longer, so that aiokafka's own error says what went wrong.
_ACK_TIMEOUT_S: Final = _DELIVERY_TIMEOUT_S + 40.0
# The changelog of one partition batch fits a few of these. Kafka's default limit of a record batch is 1 MB.
MAX_BATCH_BYTES: Final = 900 * 1024

_NO_HEADERS: Final[list[tuple[str, bytes | None]]] = []


# Not followed by the garbage collector: it holds bytes only, and tens of thousands are made a second.
class Outgoing(Struct, frozen=True, gc=False):
    """One record to be written."""

    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    timestamp_ms: int | None = None  # None: now
    partition: int | None = None  # for `write_scattered`; None, or one that the topic lacks: that of the key


def producer_of(settings: Settings, **options: object) -> Producer:
    """A producer that waits for all replicas, retries for two minutes, and fills record batches of 900 kB.

    ``options`` are more of aiokafka's. The caller starts and stops it.
    """
    producer = Producer(
        **settings.kafka_options(),
        acks="all",
        linger_ms=0,
        max_batch_size=MAX_BATCH_BYTES,
        max_request_size=4 * 1024 * 1024,
        request_timeout_ms=30_000,
        **options,
    )
    set_delivery_timeout(producer, _DELIVERY_TIMEOUT_S)
    return producer


class Written(NamedTuple):
    """The offsets that a run of records landed at, ``stop`` excluded."""

    start: int
    stop: int


class Sent:
    """Records on their way to one partition, in order. They count as written once :meth:`acknowledged` returns."""

    def __init__(self, topic: str, partition: int) -> None:
        self._topic, self._partition = topic, partition
        self._pending: list[tuple[asyncio.Future[RecordMetadata], int]] = []

    def add(self, future: asyncio.Future[RecordMetadata], count: int) -> None:
        """Add ``count`` records whose acknowledgement is ``future``, after those that were added before."""
        # Retrieve the exception: a batch that is given up does not await its writes.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._pending.append((future, count))

    def __len__(self) -> int:
        return sum(count for _, count in self._pending)

    async def acknowledged(self) -> list[Written]:
        """Wait until all replicas have everything.

        Raises:
            StopWorker: the broker did not take them in time.
        """
        try:
            async with asyncio.timeout(_ACK_TIMEOUT_S):
                done = [await future for future, _ in self._pending]
        except (KafkaError, TimeoutError) as error:
            raise _refused(self._topic, self._partition, error) from error
        return [
            Written(meta.offset, meta.offset + count)
            for meta, (_, count) in zip(done, self._pending, strict=True)
        ]


def _refused(topic: str, partition: int, error: Exception) -> StopWorker:
    return StopWorker(
        f"{topic}: the broker did not acknowledge a write to partition {partition} "
        f"({type(error).__name__}: {error}); nothing past it is committed. Look at the broker, then start again"
    )


async def send_all(producer: Producer, topic: str, partition: int, records: Iterable[Outgoing]) -> Sent:
    """Hand ``records`` to the producer, in order, as whole record batches of one partition.

    Raises:
        StopWorker: the producer did not take them in time.
    """
    sent = Sent(topic, partition)
    try:
        await _known(producer, topic)
        builder, count = producer.create_batch(), 0
        for record in records:
            appended = _appended(builder, record)
            if appended is None and count:
                sent.add(await producer.send_batch(builder, topic, partition=partition), count)
                builder, count = producer.create_batch(), 0
                appended = _appended(builder, record)
            if appended is None:
                future = await producer.send(
                    topic,
                    key=record.key,
                    value=record.value,
                    partition=partition,
                    timestamp_ms=record.timestamp_ms,
                    headers=list(record.headers),
                )
                sent.add(future, 1)
            else:
                count += 1
        if count:
            sent.add(await producer.send_batch(builder, topic, partition=partition), count)
    except (KafkaError, TimeoutError) as error:
        raise _refused(topic, partition, error) from error
    return sent


async def write_all(
    producer: Producer, topic: str, partition: int, records: Iterable[Outgoing]
) -> list[Written]:
    """:func:`send_all`, and wait until everything is acknowledged. Raises StopWorker as both do."""
    return await (await send_all(producer, topic, partition, records)).acknowledged()


async def _known(producer: Producer, topic: str) -> set[int]:
    """The partitions of a topic, waited for where it has not been written to before.

    aiokafka itself gives a silent broker no more than a request's time to say where it is.
    """
    deadline = time.monotonic() + _DELIVERY_TIMEOUT_S
    while True:
        try:
            partitions: set[int] = await producer.partitions_for(topic)
        except UnknownTopicOrPartitionError:
            if time.monotonic() > deadline:
                raise
        else:
            return partitions


def _appended(builder: BatchBuilder, record: Outgoing) -> RecordMetadata | None:
    """None: the batch has no room for it."""
    headers = list(record.headers) if record.headers else _NO_HEADERS
    return builder.append(key=record.key, value=record.value, timestamp=record.timestamp_ms, headers=headers)


async def write_scattered(producer: Producer, topic: str, records: Iterable[Outgoing]) -> None:
    """Write records to the partitions that they name, or of their keys, and wait until all are acknowledged.

    Raises:
        StopWorker: the broker did not take them in time.
    """
    try:
        partitions = await _known(producer, topic)
        futures = [
            await producer.send(
                topic,
                key=record.key,
                value=record.value,
                partition=record.partition if record.partition in partitions else None,
                headers=list(record.headers),
            )
            for record in records
        ]
        producer.write_now()
        async with asyncio.timeout(_ACK_TIMEOUT_S):
            await asyncio.gather(*futures)
    except (KafkaError, TimeoutError) as error:
        raise StopWorker(
            f"{topic}: the broker did not acknowledge a write ({type(error).__name__}: {error}); "
            "nothing past it is committed. Look at the broker, then start again"
        ) from error


async def write_keyed(
    producer: Producer,
    topic: str,
    partitions: int,
    chunks: Iterable[Sequence[Outgoing]],
    done: Callable[[int], None],
) -> int:
    """Write records to the partitions of their keys, in order. The next chunk is prepared while one is on its way.

    Returns how many were written. ``done`` is called after each chunk with how many are acknowledged by then.

    Raises:
        StopWorker: the broker did not take them in time.
    """
    written = 0
    writing: asyncio.Future[list[object]] | None = None
    try:
        for chunk in chunks:
            parts: dict[int, list[Outgoing]] = {}
            homes = partitions_of([record.key or b"" for record in chunk], partitions)
            for record, home in zip(chunk, homes, strict=True):
                parts.setdefault(home, []).append(record)
            if writing is not None:
                await writing  # one chunk at a time, so that a partition keeps the order
                done(written)
            writing = asyncio.gather(*(write_all(producer, topic, *part) for part in sorted(parts.items())))
            written += len(chunk)
            await asyncio.sleep(0)
        if writing is not None:
            await writing
            done(written)
    finally:
        if writing is not None:
            await asyncio.gather(writing, return_exceptions=True)
    return written
