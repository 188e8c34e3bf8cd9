"""Dead letters published again, each exactly once, by a Faust consumer of their topic.

The record goes to the topic of its original, through the normal path. In the same Kafka transaction the letter is
marked, so both are there or neither is, whatever ends the process. A later run leaves marked letters out. Two runs at a
time have one transactional id, so the broker fences off the older one. Nothing is committed for the group: where a run
begins is told by the marks alone.

A letter that fails again is a new one. It carries how often it was tried, and a run leaves out those that were tried
too often. So nothing goes round in a loop.
"""

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from aiokafka import AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError, ProducerFenced
from aiokafka.structs import RecordMetadata

from headwater.errors import HeadwaterError, PartitionLost, StopWorker
from headwater.kafka.batch import Batch
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.faust_group import FaustGroup
from headwater.kafka.headers import ORIGIN, REDRIVEN, Redriven, RedrivenTo
from headwater.kafka.letters import (
    PARTITION,
    Letter,
    Place,
    Wanted,
    mark_of,
    original_headers,
    read,
    reading,
)
from headwater.kafka.partitioner import partition_of
from headwater.kafka.publish import REFUSALS, Outgoing
from headwater.kafka.read_to_end import read_to_end
from headwater.kafka.topics import Topics
from headwater.settings import Settings

# Clicks that are published behind an open transaction wait for its end. So one is short, and what is left of a process
# that was killed is aborted by the broker soon.
_MAX_LETTERS: Final = 500
_MAX_BYTES: Final = 900_000
_TRANSACTION_MS: Final = 10_000
_COMMIT_S: Final = 60.0
_REQUEST_TIMEOUT_MS: Final = 20_000
_STOP_S: Final = 5.0
# Transactions a second: they cost some 40 ms each.
_TURNS_A_SECOND: Final = 4.0
# A letter has at most 2 MB of value.
_MAX_REQUEST_BYTES: Final = 4 * 1024 * 1024


class RedriveError(HeadwaterError):
    """A run ended before its end. What it published is marked, and the same command goes on with the rest."""


class Refused(NamedTuple):
    """A letter whose record its topic does not take, and why: it is as it was."""

    place: Place
    reason: str


class Outcome(NamedTuple):
    """What a run did."""

    redriven: int
    skipped: Mapping[str, int]  # by code; see `sort_out`, `plan` and `Redrive`
    refused: Sequence[Refused]

    def fields(self) -> dict[str, Any]:
        """As JSON, on a terminal and on a page."""
        return {
            "redriven": self.redriven,
            "skipped": dict(self.skipped),
            "refused": {str(each.place): each.reason for each in self.refused},
        }


class Plan(NamedTuple):
    """The letters that a run takes, and how many others match its filter, by the reason why it does not take them."""

    ready: list[Letter]
    skipped: Counter[str]


def sort_out(letters: Iterable[Letter], names: Topics, max_tries: int) -> Plan:
    """Which letters can be redriven.

    | why not | |
    |---|---|
    | ``cut``, ``unreadable`` | the letter lacks a part of its original |
    | ``no_use`` | it is not of the clicks, catalog or offers of this system; nobody waits for the answer to a request |
    | ``failed_again`` | it has been redriven ``max_tries`` times |
    """
    plan = Plan([], Counter())
    for letter in letters:
        if letter.place.topic not in (names.clicks, names.catalog, names.offers):
            plan.skipped["no_use"] += 1
        elif letter.lacks:
            plan.skipped[letter.lacks] += 1
        elif letter.tries >= max_tries:
            plan.skipped["failed_again"] += 1
        else:
            plan.ready.append(letter)
    return plan


def outgoing(record: ConsumerRecord, letter: Letter) -> Outgoing:
    """The record of a letter as it is published again: the original's key, value and headers, and where it comes from.

    Where it was published first is left out: it goes to the partition of its key, as a new record.
    """
    kept = [pair for pair in original_headers(record.headers) if pair[0] not in (ORIGIN.name, REDRIVEN.name)]
    # The mark comes first, since a reader takes the first 128 headers.
    mark = REDRIVEN.header(Redriven(*letter.place, letter.tries + 1))
    return Outgoing(letter.key, record.value, [mark, *kept])


def portions(
    found: Iterable[tuple[ConsumerRecord, Letter]], rate: float
) -> Iterator[list[tuple[ConsumerRecord, Letter]]]:
    """Letters by transaction: bounded in number, in bytes, and to a quarter of a second at ``rate`` letters a second."""
    most = min(_MAX_LETTERS, math.ceil(rate / _TURNS_A_SECOND))
    portion: list[tuple[ConsumerRecord, Letter]] = []
    size = 0
    for record, letter in found:
        if portion and (len(portion) == most or size + letter.value_bytes > _MAX_BYTES):
            yield portion
            portion, size = [], 0
        portion.append((record, letter))
        size += letter.value_bytes
    if portion:
        yield portion


async def plan(settings: Settings, wanted: Wanted, max_tries: int) -> Plan:
    """What a run would take now. A catalog change or an offer is ``superseded`` where its item has got a later one.

    Raises:
        HeadwaterError: a topic is missing.
        KafkaError, StopWorker: the broker is away.
    """
    names = Topics.named(settings.topic_prefix)
    letters = await read(settings)
    found = sort_out(filter(wanted.takes, letters.open()), names, max_tries)
    late = set[Place]()
    for topic in (names.catalog, names.offers):
        late |= await _superseded(
            settings, topic, [each for each in found.ready if each.place.topic == topic]
        )
    if late:
        found.skipped["superseded"] = len(late)
    return Plan([letter for letter in found.ready if letter.place not in late], found.skipped)


async def run(
    settings: Settings,
    wanted: Wanted,
    rate: float,
    max_tries: int,
    told: Callable[[int], None] = lambda _: None,
    *,
    dry_run: bool = False,
) -> Outcome:
    """Redrive what passes the filter, or only say what would be.

    Raises:
        HeadwaterError, KafkaError: see `plan` and `Redrive.run`.
    """
    if dry_run:
        would = await plan(settings, wanted, max_tries)
        return Outcome(len(would.ready), would.skipped, ())
    return await Redrive(settings, wanted, rate, max_tries, told).run()


async def _superseded(settings: Settings, topic: str, letters: Sequence[Letter]) -> set[Place]:
    """The originals behind which their topic has another record of the same key: as new records they would undo it."""
    late: set[Place] = set()
    by_tp: dict[TopicPartition, dict[bytes | None, list[Place]]] = {}
    for letter in letters:
        if letter.place.partition < settings.catalog_partitions:
            tp = TopicPartition(topic, letter.place.partition)
            by_tp.setdefault(tp, {}).setdefault(letter.key, []).append(letter.place)
    if not by_tp:
        return late
    async with reading(settings, topic) as consumer:
        consumer.assign(list(by_tp))
        ends = await consumer.end_offsets(list(by_tp))
        for tp, keys in by_tp.items():
            first = min(place.offset for places in keys.values() for place in places)
            # A log that ends before the original is another one: the topic was made again.
            consumer.seek(tp, first + 1 if first < ends[tp] else 0)
        async for run in read_to_end(consumer, list(by_tp), ends):
            for record in run.records:
                places = by_tp[run.tp].get(record.key, ())
                late.update(
                    place for place in places if record.offset > place.offset or place.offset >= ends[run.tp]
                )
    return late


class Redrive:
    """One run. ``told`` is called with how many letters are redriven by then.

    Letters that are taken out while it runs are skipped as ``purged``, but for those of the transaction that is under way.
    """

    def __init__(
        self,
        settings: Settings,
        wanted: Wanted,
        rate: float,
        max_tries: int,
        told: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._settings, self._wanted = settings, wanted
        self._rate, self._max_tries, self._told = rate, max_tries, told
        self._names = Topics.named(settings.topic_prefix)
        self._letters_tp = TopicPartition(self._names.dead_letters, PARTITION)
        self._group: FaustGroup | None = None
        self._producer: AIOKafkaProducer | None = None
        self._plan: Plan | None = None
        self._ready: dict[int, Letter] = {}  # by their own offset; those that are still to be redriven
        self._at_of: dict[bytes, int] = {}  # the same by their keys on their topic
        self._later: Consumer | None = None  # reads what is written to their topic since the plan was made
        self._opened = contextlib.AsyncExitStack()
        self._last_at = -1
        self._next_s = 0.0  # when the rate allows the next transaction
        self._redriven = 0
        self._refused: list[Refused] = []
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._interrupted = asyncio.Event()

    async def run(self) -> Outcome:
        """Redrive what matches.

        Raises:
            RedriveError: the broker refused or went away, or another run took over.
            HeadwaterError: a topic is missing, or the embedded broker has such a run already.
            KafkaError, StopWorker: the broker is away before anything was published.
        """
        first = await plan(self._settings, self._wanted, self._max_tries)
        if not first.ready:
            return Outcome(0, first.skipped, ())
        self._group = group = FaustGroup(self._settings.redrive_group, self._settings)
        group.handle(self._names.dead_letters, self._handle)
        group.on_interrupt(self._interrupted.set)
        group.on_assigned(self._assigned)
        try:
            await group.join()
            await asyncio.wait((group.failed, self._done), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await group.stop()
            await self._close()
            await self._opened.aclose()
        if not self._done.done():
            raise RedriveError(
                f"{group.failed.result()}. {self._redriven} letters are redriven and marked; the same command goes on "
                "with the others"
            )
        assert self._plan is not None
        return Outcome(self._redriven, self._plan.skipped, self._refused)

    async def _assigned(self, tps: set[TopicPartition]) -> None:
        assert self._group is not None
        self._interrupted.clear()
        if self._letters_tp not in tps:
            self._group.fail("another redrive of this system is running, and goes on: wait for its end")

    async def _handle(self, batch: Batch) -> None:
        if self._plan is None:
            await self._begin()
        found = [
            (record, self._ready[record.offset])
            for record in batch.take_records()
            if record.offset in self._ready
        ]
        for portion in portions(found, self._rate):
            await self._wait_turn(len(portion))
            await self._leave_out_purged()
            if still_there := [each for each in portion if each[1].at in self._ready]:
                await self._redrive(still_there)
        if batch.stop > self._last_at and not self._done.done():
            self._done.set_result(None)
        # Never finished, hence never committed: the next run begins at the start.
        batch.release()

    async def _begin(self) -> None:
        """Fence off older runs, whose open transactions end with that, and look again what is left to do."""
        self._producer = await self._open()
        self._later = await self._opened.enter_async_context(
            reading(self._settings, self._names.dead_letters)
        )
        self._later.assign([self._letters_tp])
        await self._later.seek_to_end(self._letters_tp)
        self._plan = await plan(self._settings, self._wanted, self._max_tries)
        self._ready = {letter.at: letter for letter in self._plan.ready}
        self._at_of = {letter.topic_key: letter.at for letter in self._plan.ready}
        self._last_at = max(self._ready, default=-1)

    async def _wait_turn(self, letters: int) -> None:
        wait_s = max(self._next_s - time.monotonic(), 0.0)
        try:
            async with asyncio.timeout(wait_s):
                await self._interrupted.wait()
        except TimeoutError:
            self._next_s = max(self._next_s, time.monotonic()) + letters / self._rate
        else:
            raise PartitionLost

    async def _leave_out_purged(self) -> None:
        """Letters that were purged, or erased with their user, since the plan was made: a slow run takes hours."""
        assert self._later is not None
        assert self._plan is not None
        self._later.resume(self._letters_tp)
        async for run in read_to_end(self._later, [self._letters_tp]):
            for record in run.records:
                # The marks of this run are among them: their letters are ready no more.
                if (
                    record.value is None
                    and self._ready.pop(self._at_of.get(record.key, -1), None) is not None
                ):
                    self._plan.skipped["purged"] += 1

    async def _redrive(self, portion: list[tuple[ConsumerRecord, Letter]]) -> None:
        """Publish a portion in one transaction; where its topic refuses one of it, each in its own."""
        try:
            await self._in_time(self._transact(portion))
        except tuple(REFUSALS) as error:
            # The client has lost count of what it wrote: a new one begins a new count.
            await self._close()
            self._producer = await self._open()
            if len(portion) > 1:
                for each in portion:
                    await self._redrive([each])
                return
            letter = portion[0][1]
            self._refused.append(Refused(letter.place, REFUSALS[type(error)]))
            self._ready.pop(letter.at)
        except ProducerFenced as error:
            raise StopWorker(f"another redrive has taken over from this one ({error})") from error
        except (KafkaError, TimeoutError) as error:
            raise StopWorker(
                f"{portion[0][1].place}: the broker did not take it ({type(error).__name__}: {error}); look at the "
                "broker and at the rights of this user"
            ) from error
        else:
            for _, letter in portion:
                self._ready.pop(letter.at)
            self._redriven += len(portion)
            self._told(self._redriven)

    async def _in_time(self, transaction: Coroutine[Any, Any, None]) -> None:
        """Await a transaction, for a while. Left alone, it would wait for a broker that is away, also to abort."""
        task = asyncio.ensure_future(transaction)
        done, _ = await asyncio.wait((task,), timeout=_COMMIT_S)
        if not done:
            task.cancel()
            raise TimeoutError(f"no end of the transaction within {_COMMIT_S:g} s")
        task.result()

    async def _transact(self, portion: list[tuple[ConsumerRecord, Letter]]) -> None:
        assert self._producer is not None
        async with self._producer.transaction():
            written = await self._written(
                [
                    (letter.place.topic, await self._home(letter), outgoing(record, letter))
                    for record, letter in portion
                ]
            )
            now_ms = int(time.time() * 1000)
            await self._written(
                [
                    (
                        self._names.dead_letters,
                        PARTITION,
                        mark_of(letter, RedrivenTo(at.partition, at.offset, now_ms)),
                    )
                    for (_, letter), at in zip(portion, written, strict=True)
                ]
            )

    async def _home(self, letter: Letter) -> int:
        assert self._producer is not None
        count = len(await self._producer.partitions_for(letter.place.topic))
        return partition_of(letter.key, count) if letter.key else letter.place.partition % count

    async def _written(self, records: Iterable[tuple[str, int, Outgoing]]) -> list[RecordMetadata]:
        """Send records in order; where they landed. Raises KafkaError: the first error."""
        assert self._producer is not None
        sent = [
            await self._producer.send(
                topic,
                each.value,
                key=each.key,
                partition=partition,
                headers=list(each.headers),
            )
            for topic, partition, each in records
        ]
        results = await asyncio.gather(*sent, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return list(results)

    async def _open(self) -> AIOKafkaProducer:
        # aiokafka's own producer: ours writes no transactions.
        producer = AIOKafkaProducer(
            **self._settings.kafka_options(),
            transactional_id=self._settings.redrive_group,
            transaction_timeout_ms=_TRANSACTION_MS,
            max_request_size=_MAX_REQUEST_BYTES,
            request_timeout_ms=_REQUEST_TIMEOUT_MS,
        )
        try:
            async with asyncio.timeout(_COMMIT_S):
                await producer.start()
        except (KafkaError, TimeoutError) as error:
            await _stopped(producer)
            raise StopWorker(
                f"the broker begins no transactions for {self._settings.redrive_group} ({type(error).__name__}: "
                f"{error}): expected a broker with transactions, and the right to write with this transactional id"
            ) from error
        return producer

    async def _close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await _stopped(producer)


async def _stopped(producer: AIOKafkaProducer) -> None:
    """Stop a producer, which after a failure may wait for what it will never write."""
    with contextlib.suppress(KafkaError, TimeoutError):
        async with asyncio.timeout(_STOP_S):
            await producer.stop()
