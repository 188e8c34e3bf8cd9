"""Writing to Kafka in whole record batches, each acknowledged by all replicas before the caller goes on."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import chain
from typing import Final, NamedTuple

from aiokafka.errors import (
    InvalidTimestampError,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    UnknownTopicOrPartitionError,
)
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.structs import RecordMetadata
from msgspec import Struct

from headwater.errors import StopWorker
from headwater.kafka.fast_client.producer import Producer, set_delivery_timeout
from headwater.kafka.headers import Headers
from headwater.kafka.partitioner import partition_of, partitions_of
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


class Refused(NamedTuple):
    """A record that its topic does not take, while it takes others; the broker is well.

    | reason | the broker's bound |
    |---|---|
    | ``too_large`` | ``max.message.bytes`` of the topic, or our own of a request |
    | ``bad_timestamp`` | ``message.timestamp.before.max.ms`` and ``message.timestamp.after.max.ms`` of the topic |
    """

    record: Outgoing
    reason: str
    message: str


class Sent:
    """Records on their way to one partition, in order. They count as written once :meth:`acknowledged` returns."""

    def __init__(self, producer: Producer, topic: str, partition: int) -> None:
        self._producer, self._topic, self._partition = producer, topic, partition
        self._pending: list[tuple[asyncio.Future[RecordMetadata], Sequence[Outgoing]]] = []
        self.refused: list[Refused] = []  # once they are acknowledged

    async def add(self, builder: BatchBuilder, records: Sequence[Outgoing]) -> None:
        """Send the batch of ``records`` that ``builder`` has, after those that were added before. Raises KafkaError."""
        future = await self._producer.send_batch(builder, self._topic, partition=self._partition)
        # Retrieve the exception: a batch that is given up does not await its writes.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._pending.append((future, records))

    def __len__(self) -> int:
        return sum(len(records) for _, records in self._pending)

    async def acknowledged(self) -> list[Written]:
        """Wait until all replicas have everything.

        Raises:
            StopWorker: the broker did not take them in time, or the topic does not take one of them.
        """
        written = await self.settled()
        if self.refused:
            raise StopWorker(f"{self.refused[0].message}: expected a topic that takes what workers write")
        return written

    async def settled(self) -> list[Written]:
        """Wait until all replicas have everything but what is ``refused`` from then on.

        Raises:
            StopWorker: the broker did not take them in time.
        """
        written: list[Written] = []
        try:
            async with asyncio.timeout(_ACK_TIMEOUT_S):
                for future, records in self._pending:
                    written += await self._written(future, records)
        except (KafkaError, TimeoutError) as error:
            raise _not_written(self._topic, self._partition, error) from error
        return written

    async def _written(
        self, future: asyncio.Future[RecordMetadata], records: Sequence[Outgoing]
    ) -> list[Written]:
        """Wait for a batch. Where the topic does not take it, its halves are written, until the culprits stand alone."""
        try:
            meta = await future
        except tuple(REFUSALS) as error:
            if len(records) == 1:
                self.refused.append(_refusal(self._topic, records[0], error))
                return []
            middle = len(records) // 2
            halves = [
                await send_all(self._producer, self._topic, self._partition, half)
                for half in (records[:middle], records[middle:])
            ]
            written = [each for half in halves for each in await half.settled()]
            self.refused += [each for half in halves for each in half.refused]
            return written
        return [Written(meta.offset, meta.offset + len(records))]


REFUSALS: Final[dict[type[KafkaError], str]] = {
    MessageSizeTooLargeError: "too_large",
    RecordListTooLargeError: "too_large",
    InvalidTimestampError: "bad_timestamp",
}


def _refusal(topic: str, record: Outgoing, error: KafkaError) -> Refused:
    size = sum(len(part) for part in (record.key or b"", record.value or b""))
    message = f"{topic} does not take it: got {size} bytes of key and value ({type(error).__name__})"
    if isinstance(error, InvalidTimestampError):
        message = (
            f"{topic} does not take it: got the timestamp {record.timestamp_ms} ({type(error).__name__})"
        )
    return Refused(record, REFUSALS[type(error)], message)


def _not_written(topic: str, partition: int, error: Exception) -> StopWorker:
    return StopWorker(
        f"{topic}: the broker did not acknowledge a write to partition {partition} "
        f"({type(error).__name__}: {error}); nothing past it is committed. Look at the broker, then start again"
    )


async def send_all(producer: Producer, topic: str, partition: int, records: Iterable[Outgoing]) -> Sent:
    """Hand ``records`` to the producer, in order, as whole record batches of one partition.

    Raises:
        StopWorker: the producer did not take them in time.
    """
    sent = Sent(producer, topic, partition)
    try:
        await _known(producer, topic)
        builder, run = producer.create_batch(), list[Outgoing]()
        for record in records:
            if not _append(builder, record):  # an empty one takes any
                await sent.add(builder, run)
                builder, run = producer.create_batch(), []
                _append(builder, record)
            run.append(record)
        if run:
            await sent.add(builder, run)
    except (KafkaError, TimeoutError) as error:
        raise _not_written(topic, partition, error) from error
    return sent


async def write_all(
    producer: Producer, topic: str, partition: int, records: Iterable[Outgoing]
) -> list[Refused]:
    """:func:`send_all`, and wait until everything is acknowledged but what is returned. Raises StopWorker as both do."""
    sent = await send_all(producer, topic, partition, records)
    await sent.settled()
    return sent.refused


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


def _append(builder: BatchBuilder, record: Outgoing) -> bool:
    """False: the batch has no room for it."""
    headers = list(record.headers) if record.headers else _NO_HEADERS
    return (
        builder.append(key=record.key, value=record.value, timestamp=record.timestamp_ms, headers=headers)
        is not None
    )


async def write_scattered(producer: Producer, topic: str, records: Sequence[Outgoing]) -> list[Refused]:
    """Write records to the partitions that they name, or of their keys; wait until all are acknowledged but those returned.

    Raises:
        StopWorker: the broker did not take them in time.
    """
    try:
        partitions = await _known(producer, topic)
        futures = [await _sent(producer, topic, record, partitions) for record in records]
        producer.write_now()
        async with asyncio.timeout(_ACK_TIMEOUT_S):
            results = await asyncio.gather(*futures, return_exceptions=True)
        refused = []
        for record, result in zip(records, results, strict=True):
            if isinstance(result, tuple(REFUSALS)):  # perhaps for others in its batch
                home = record.partition
                if home is None or home not in partitions:
                    home = partition_of(record.key, len(partitions)) if record.key else 0
                refused += await write_all(producer, topic, home, [record])
            elif isinstance(result, BaseException):
                raise result
    except (KafkaError, TimeoutError) as error:
        raise StopWorker(
            f"{topic}: the broker did not acknowledge a write ({type(error).__name__}: {error}); "
            "nothing past it is committed. Look at the broker, then start again"
        ) from error
    return refused


async def _sent(
    producer: Producer, topic: str, record: Outgoing, partitions: set[int]
) -> "asyncio.Future[RecordMetadata]":
    partition = record.partition if record.partition in partitions else None
    headers = list(record.headers)
    sent: asyncio.Future[RecordMetadata]
    try:
        sent = await producer.send(
            topic, key=record.key, value=record.value, partition=partition, headers=headers
        )
    except MessageSizeTooLargeError as error:  # than any request of ours may be
        sent = asyncio.get_running_loop().create_future()
        sent.set_exception(error)
    return sent


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
        StopWorker: the broker did not take them in time, or the topic does not take one of them.
    """
    written, _ = await _write_chunks(producer, topic, partitions, chunks, done, _write_strictly)
    return written


async def write_accepted(
    producer: Producer,
    topic: str,
    partitions: int,
    chunks: Iterable[Sequence[Outgoing]],
    done: Callable[[int], None],
) -> tuple[int, list[Refused]]:
    """:func:`write_keyed`, but records that the topic does not take are returned beside the number of those written.

    Raises:
        StopWorker: the broker did not take them in time.
    """
    handed, refused = await _write_chunks(producer, topic, partitions, chunks, done, write_all)
    return handed - len(refused), refused


async def _write_chunks(
    producer: Producer,
    topic: str,
    partitions: int,
    chunks: Iterable[Sequence[Outgoing]],
    done: Callable[[int], None],
    write: Callable[[Producer, str, int, Sequence[Outgoing]], Awaitable[list[Refused]]],
) -> tuple[int, list[Refused]]:
    """How many records were handed over, and which of them were refused."""
    handed, refused = 0, list[Refused]()
    writing: asyncio.Future[list[list[Refused]]] | None = None
    try:
        for chunk in chunks:
            parts: dict[int, list[Outgoing]] = {}
            homes = partitions_of([record.key or b"" for record in chunk], partitions)
            for record, home in zip(chunk, homes, strict=True):
                parts.setdefault(home, []).append(record)
            if writing is not None:
                # One chunk at a time, so that a partition keeps the order.
                refused += chain.from_iterable(await writing)
                done(handed)
            writing = asyncio.gather(*(write(producer, topic, *part) for part in sorted(parts.items())))
            handed += len(chunk)
            await asyncio.sleep(0)
        if writing is not None:
            refused += chain.from_iterable(await writing)
            done(handed)
    finally:
        if writing is not None:
            await asyncio.gather(writing, return_exceptions=True)
    return handed, refused


async def _write_strictly(
    producer: Producer, topic: str, partition: int, records: Sequence[Outgoing]
) -> list[Refused]:
    await (await send_all(producer, topic, partition, records)).acknowledged()
    return []
