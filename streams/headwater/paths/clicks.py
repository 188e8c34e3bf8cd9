"""Path 1: a batch of clicks -> the users' logs and encoder states -> the profiles changelog -> the watermark."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from itertools import repeat
from typing import Final, NamedTuple

import numpy as np
import structlog
from aiokafka import ConsumerRecord
from numpy.typing import NDArray

from headwater.encoder.features import ACTION_CODES, event_key, event_keys, item_keys
from headwater.encoder.runtime import Encoder
from headwater.errors import PartitionLost
from headwater.index import IndexUnavailable
from headwater.index.item_vectors import ItemVectors
from headwater.kafka.batch import Batch
from headwater.kafka.dead_letters import DeadLetter, DeadLetters
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.forwarding import redirect
from headwater.kafka.headers import Origin, origin_of
from headwater.kafka.partitioner import partitions_of
from headwater.kafka.publish import Outgoing, Sent, write_scattered
from headwater.messages import ReadClicks, decode_click
from headwater.metrics import Metrics
from headwater.paths.observer import ClickApplied, Observer
from headwater.profiles.actions import RETRACT, Bools
from headwater.profiles.apply_clicks import Clicks, ProfileDelta, joined, plan_batch
from headwater.profiles.columns import I64, JoinedColumns, Table
from headwater.profiles.encoder_steps import EncoderJob, keys_needed, needs_refold, step_states
from headwater.profiles.event_log import Outcome
from headwater.profiles.store import Partition, Profiles
from headwater.recall.popularity import Counts

logger = structlog.get_logger(__name__)

# Decoding holds the loop for about a millisecond a slice; requests get their turn in between.
_SLICE: Final = 400
# So many batches are worked on beside each other: one steps the encoder in its thread while another is decoded. With a
# backlog of all partitions in hand each turn of the loop would otherwise take as many slices, and requests wait for it.
_BESIDE: Final = 2
# Most of what so few clicks cost is what any batch costs, so those of several partitions are applied as one: up to that many.
_SMALL: Final = 64
_COMPANY: Final = 1_000
# How long a batch may wait for its partition to be opened: a restore is reading, or the worker is stuck.
_OPEN_TIMEOUT_S: Final = 600.0


class Decoded(NamedTuple):
    """Clicks of one batch that belong here, as parallel columns, with the records they came from."""

    clicks: Clicks
    records: list[ConsumerRecord]
    event_ids: list[bytes]
    sent_ms: I64  # timestamps of the records
    strays: list[tuple[int, int, int]]  # (row, origin partition, origin offset)

    def part(self, start: int, stop: int) -> "Decoded":
        return Decoded(
            self.clicks.take(slice(start, stop)),
            self.records[start:stop],
            self.event_ids[start:stop],
            self.sent_ms[start:stop],
            self.strays if start == 0 else [],
        )


class _Result(NamedTuple):
    """What clicks do to their users: their logs, and their encoder states (R, S) with the time and what is pending of each."""

    delta: ProfileDelta
    state: NDArray[np.float16]
    state_at_ms: I64
    pending: I64

    def part(self, users: slice, clicks: slice, row: int) -> "_Result":
        """See `ProfileDelta.part`."""
        return _Result(
            self.delta.part(users, clicks, row),
            self.state[users],
            self.state_at_ms[users],
            self.pending[users],
        )


class _Done(NamedTuple):
    """Clicks that are in the columns and on their way to the changelog, and what became of them; see `ProfileDelta`."""

    sent: Sent
    clicks: Clicks
    records: list[ConsumerRecord]
    outcome_counts: I64
    applied: Bools


class _Share:
    """One partition's small batch in a company, and what came of it: its delta, and the users that it erased."""

    def __init__(self, partition: Partition, decoded: Decoded, generation: int) -> None:
        self.partition, self.decoded, self.generation = partition, decoded, generation
        self.applied: tuple[ProfileDelta, dict[bytes, int]] | None = None


class _Company:
    """Small batches of several partitions, applied as one."""

    work: asyncio.Task[None]

    def __init__(self) -> None:
        self.shares: list[_Share] = []
        self.clicks = 0


class _Turn:
    """A batch's place among those that are worked on; given back while it waits for somebody else."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places, self._is_held = places, False

    async def take(self) -> None:
        if not self._is_held:
            await self._places.acquire()
            self._is_held = True

    def give(self) -> None:
        if self._is_held:
            self._is_held = False
            self._places.release()

    def handed_over(self) -> "_Turn":
        """The place, to somebody else."""
        other = _Turn(self._places)
        self._is_held, other._is_held = False, self._is_held
        return other


class ClickPath:
    """Applies click batches. One batch of a partition at a time; partitions beside each other."""

    def __init__(
        self,
        profiles: Profiles,
        vectors: ItemVectors,
        encoder: Encoder,
        threads: Executor,
        producer: Producer,
        dead_letters: DeadLetters,
        metrics: Metrics,
        *,
        topic: str,
        partitions: int,
        observer: Observer | None = None,
    ) -> None:
        self._profiles, self._vectors, self._encoder, self._threads = profiles, vectors, encoder, threads
        self._producer, self._dead_letters, self._metrics, self._topic = (
            producer,
            dead_letters,
            metrics,
            topic,
        )
        self._partitions = partitions
        self._observer = observer or Observer()
        self._initial = encoder.initial_state(1)[0]
        self._places = asyncio.Semaphore(_BESIDE)
        self._company: _Company | None = None  # one that has not begun, and takes more
        self.counts: dict[int, Counts] = {}
        self._stage = {
            name: metrics.click_batch_stage_seconds.labels(name)
            for name in ("decode", "apply", "encode", "changelog")
        }
        self._step_seconds = metrics.encoder_seconds.labels("step")
        self._batch_size = metrics.batch_size.labels("clicks")
        self._strays = metrics.strays_total.labels(topic)

    async def handle(self, batch: Batch) -> None:
        """Apply one partition batch, then finish it.

        Raises:
            PartitionLost: the partition was revoked meanwhile; nothing is acknowledged.
            StopWorker: the broker did not take what had to be written.
        """
        partition = self._profiles.partition(batch.partition)
        if partition is None:
            raise PartitionLost
        await partition.gate.wait_open(_OPEN_TIMEOUT_S)
        async with partition.lock:
            turn = _Turn(self._places)
            try:
                await turn.take()
                partition.require(batch.generation)
                started = time.perf_counter()
                letters: list[DeadLetter] = []
                strays: list[Outgoing] = []
                decoded = await self._decode(partition, batch.records, letters, strays)
                self._stage["decode"].observe(time.perf_counter() - started)
                done: list[_Done] = []
                is_done = not decoded.records
                if not is_done and self._joins(batch, decoded):
                    is_done = await self._apply_in_company(partition, decoded, batch.generation, done, turn)
                if not is_done:
                    letters += await self._apply(partition, decoded, batch.generation, done, turn)
            finally:
                turn.give()
            partition.require(batch.generation)
            before, settled = partition.changelog_done, asyncio.get_running_loop().create_future()
            partition.changelog_done = settled
        applied = time.perf_counter()
        try:
            partition.mark_applied(batch.last_offset, decoded.clicks.event)
            # The next batch is applied while this one is on its way to the changelog: two of a partition at most.
            if not before.done():
                await asyncio.wait({before})
            if not before.result():
                raise PartitionLost
            batch.release()
            for each in done:
                await self._profiles.settle(partition, each.sent, batch.generation)
            await self._dead_letters.put(letters)
            if strays:
                await write_scattered(self._producer, self._topic, strays)
                self._strays.inc(len(strays))
            partition.require(batch.generation)
            partition.move_watermark(batch.last_offset)
            batch.finish()
            settled.set_result(True)
        finally:
            if not settled.done():
                settled.set_result(False)
        await asyncio.sleep(0)  # requests that waited for these clicks go first
        for each in done:
            self._count(partition, each)
            if self._observer.is_watched:
                self._tell(each)
        self._stage["changelog"].observe(time.perf_counter() - applied)
        self._batch_size.observe(len(batch.records))
        now_ms = time.time() * 1000.0
        self._metrics.click_to_applied_seconds.observe_all(np.maximum(now_ms - decoded.sent_ms, 0.0) / 1000.0)

    async def _decode(
        self,
        partition: Partition,
        records: Sequence[ConsumerRecord],
        letters: list[DeadLetter],
        strays: list[Outgoing],
    ) -> Decoded:
        read: ReadClicks[ConsumerRecord] = ReadClicks()
        for start in range(0, len(records), _SLICE):
            if start:
                await asyncio.sleep(0)
            bad = read.add(records[start : start + _SLICE])
            letters += [DeadLetter(record, error.reason, str(error)) for record, error in bad]
        known = partition.columns.rows
        rows = np.fromiter(map(known.get, read.users, repeat(-1)), dtype=np.int64, count=len(read))
        strange = np.flatnonzero(rows < 0).tolist()
        kept = np.ones(len(read), dtype=np.bool_)
        homes = partitions_of([read.users[index] for index in strange], self._partitions)
        for index, home in zip(strange, homes, strict=True):
            if home == partition.number:
                rows[index] = partition.row_of(read.users[index])
            else:
                match redirect(read.records[index], read.users[index], home):
                    case DeadLetter() as letter:
                        letters.append(letter)
                    case stray:
                        strays.append(stray)
                kept[index] = False
        if not kept.all():
            rows, read = rows[kept], read.take(np.flatnonzero(kept).tolist())
        origins = [
            (int(rows[index]), origin.partition, origin.offset)
            for index, headers in enumerate(read.headers if any(read.headers) else ())
            if headers and isinstance(origin := origin_of(headers), Origin)
        ]
        columns = Clicks(
            rows,
            np.array(read.offsets, dtype=np.int64),
            np.array(read.at_ms, dtype=np.int64),
            event_keys(read.event_ids),
            item_keys(read.item_ids),
            np.array([ACTION_CODES[action] for action in read.actions], dtype=np.uint8),
        )
        sent_ms = np.array(read.sent_ms, dtype=np.int64)
        return Decoded(columns, read.records, read.event_ids, sent_ms, origins)

    async def _apply(
        self, partition: Partition, decoded: Decoded, generation: int, done: list[_Done], turn: _Turn
    ) -> list[DeadLetter]:
        """Apply what was decoded and send it; if our own code fails on it, halve it until the culprit stands alone."""
        await turn.take()
        try:
            result = await self._work_out(partition.columns, decoded.clicks, turn)
        except Exception as error:
            if len(decoded.records) == 1:
                record = decoded.records[0]
                logger.exception(
                    "click_failed", topic=record.topic, partition=record.partition, offset=record.offset
                )
                return [DeadLetter(record, "internal_error", f"{type(error).__name__}: {error}")]
            middle = len(decoded.records) // 2
            rest = decoded.part(middle, len(decoded.records))
            users = [partition.columns.users[row] for row in rest.clicks.row.tolist()]
            letters = await self._apply(partition, decoded.part(0, middle), generation, done, turn)
            # The first half may have erased users, whose rows are then gone.
            rows = np.array([partition.row_of(user) for user in users], dtype=np.int64)
            rest = rest._replace(clicks=rest.clicks._replace(row=rows))
            return letters + await self._apply(partition, rest, generation, done, turn)
        partition.require(generation)
        erased = self._commit(partition, decoded, result)
        turn.give()  # the producer may keep a large batch waiting for what is on its way to the same broker
        done.append(await self._send(partition, decoded, result.delta, erased, generation))
        self._producer.write_now()
        return []

    def _joins(self, batch: Batch, decoded: Decoded) -> bool:
        """Whether a batch is applied with others: it is small, there are such, and no vector has to be waited for."""
        return (
            len(batch.records) <= _SMALL
            and (batch.has_siblings or self._company is not None)
            and not self._vectors.missing(decoded.clicks.item.tolist())
        )

    async def _apply_in_company(
        self, partition: Partition, decoded: Decoded, generation: int, done: list[_Done], turn: _Turn
    ) -> bool:
        """Apply and send a small batch together with others. False: they failed together, and nothing was done.

        Who comes first opens a company and gives its place to it. It begins at the next turn of the loop. Until then it
        takes whoever comes, and each holds the lock of its partition.
        """
        share, company = _Share(partition, decoded, generation), self._company
        if company is None or company.clicks >= _COMPANY:
            company = self._company = _Company()
            company.work = asyncio.ensure_future(self._apply_company(company, turn.handed_over()))
        turn.give()
        company.shares.append(share)
        company.clicks += len(decoded.records)
        await asyncio.wait({company.work})
        company.work.result()
        partition.require(generation)
        if share.applied is None:
            return False
        done.append(await self._send(partition, decoded, *share.applied, generation))
        return True

    async def _apply_company(self, company: _Company, turn: _Turn) -> None:
        try:
            if self._company is company:
                self._company = None
            shares = [each for each in company.shares if each.partition.is_ours(each.generation)]
            if not shares:
                return
            table = JoinedColumns([share.partition.columns for share in shares])
            clicks = joined(share.decoded.clicks for share in shares)
            try:
                result = await self._work_out(table, clicks, turn)
            except Exception:
                logger.exception("company_failed", partitions=[share.partition.number for share in shares])
                return
        finally:
            turn.give()
        sizes = [len(share.decoded.records) for share in shares]
        for share, part in zip(shares, table.parts(result.delta.rows, sizes), strict=True):
            if share.partition.is_ours(share.generation):
                own = result.part(*part)
                share.applied = own.delta, self._commit(share.partition, share.decoded, own)

    async def _work_out(self, table: Table, clicks: Clicks, turn: _Turn) -> _Result:
        """What becomes of the users of these clicks; nothing is written yet."""
        started = time.perf_counter()
        delta = plan_batch(table, clicks)
        refold = needs_refold(delta, self._encoder.forgets)
        await self._fetch_vectors(delta, refold, turn)
        job = step_states(delta, refold, self._vectors, self._initial)
        planned = time.perf_counter()
        state = await self._run(job)
        self._stage["apply"].observe(planned - started)
        self._stage["encode"].observe(time.perf_counter() - planned)
        return _Result(delta, state, job.state_at_ms, job.pending)

    async def _send(
        self,
        partition: Partition,
        decoded: Decoded,
        delta: ProfileDelta,
        erased: dict[bytes, int],
        generation: int,
    ) -> _Done:
        rows = delta.rows[~delta.erased]
        sent = await self._profiles.send(partition, rows, erased, generation)
        return _Done(sent, decoded.clicks, decoded.records, delta.outcome_counts, delta.applied)

    async def _fetch_vectors(self, delta: ProfileDelta, refold: NDArray[np.bool_], turn: _Turn) -> None:
        if not self._vectors.can_fetch:
            return
        turn.give()
        try:
            await self._vectors.ensure(keys_needed(delta, refold))
        except IndexUnavailable as error:
            # Clicks go on: what has no vector now counts as pending, and is folded in when it has one.
            logger.debug("vectors_unavailable", error=str(error))  # the index has said so itself, once
        await turn.take()

    async def _run(self, job: EncoderJob) -> NDArray[np.float16]:
        if not job.calls:
            return job.state.astype(np.float16)
        started = time.perf_counter()
        if job.is_small:
            state = job.run(self._encoder)
        else:
            state = await asyncio.get_running_loop().run_in_executor(self._threads, job.run, self._encoder)
        self._step_seconds.observe(time.perf_counter() - started)
        return state

    def _commit(self, partition: Partition, decoded: Decoded, result: _Result) -> dict[bytes, int]:
        """Write a delta into the columns, all at once; returns the users that were erased, with the time."""
        columns, delta = partition.columns, result.delta
        rows = delta.rows
        columns.put_log(rows, delta.log)
        columns.put_counters(delta.counters)
        columns.offset[rows] = delta.offset
        columns.state[rows] = result.state
        columns.state_at_ms[rows] = result.state_at_ms
        columns.pending[rows] = result.pending
        columns.stale[rows] = False
        columns.forgotten_ms[rows] = delta.forgotten_ms
        newer = delta.newest >= 0
        for row, newest in zip(rows[newer].tolist(), delta.newest[newer].tolist(), strict=True):
            columns.last_event[row] = decoded.event_ids[newest]
        for index in np.flatnonzero(delta.refold).tolist():
            _drop_stale_id(columns.last_event, int(rows[index]), delta, index)
        beside = delta.outcome > Outcome.DUPLICATE
        if beside.any():
            partition.remember_unlogged(decoded.clicks.row[beside], decoded.clicks.event[beside])
        for row, origin, offset in decoded.strays:
            held = columns.strays.setdefault(row, {})
            held[origin] = max(offset, held.get(origin, -1))
        erased = {}
        for index in np.flatnonzero(delta.erased).tolist():
            user = columns.users[int(rows[index])]
            erased[user] = partition.forgotten[user] = int(delta.forgotten_ms[index])
            columns.remove(user)
        return erased

    def _count(self, partition: Partition, done: _Done) -> None:
        outcomes = done.outcome_counts
        self._metrics.clicks_total.inc(int(outcomes[Outcome.APPLIED]))
        self._metrics.duplicates_total.inc(
            int(outcomes[Outcome.DUPLICATE] + outcomes[Outcome.REPLAYED] + outcomes[Outcome.RETRACTED])
        )
        self._metrics.too_late_total.inc(int(outcomes[Outcome.TOO_LATE] + outcomes[Outcome.FORGOTTEN]))
        clicks, applied = done.clicks, done.applied
        counts = self.counts.setdefault(partition.number, Counts())
        counts.add(clicks.item[applied], clicks.action[applied], clicks.at_ms[applied])

    def _tell(self, done: _Done) -> None:
        """Tell listeners of the newest clicks that count."""
        applied = np.flatnonzero(done.applied)
        newest = applied[-self._observer.capacity :].tolist()
        now_ms = time.time() * 1000.0
        events = []
        for record in (done.records[index] for index in newest):
            click = decode_click(record.key, record.value, record.timestamp)
            events.append(
                ClickApplied(
                    click.user_id,
                    click.item_id,
                    click.action,
                    click.event_id,
                    click.at_ms,
                    record.partition,
                    record.offset,
                    max(now_ms - record.timestamp, 0.0),
                )
            )
        self._observer.tell(events, omitted=len(applied) - len(newest))


def _drop_stale_id(last_event: list[bytes], row: int, delta: ProfileDelta, index: int) -> None:
    """After a retraction the newest event is another one, whose id string is no longer known."""
    events = delta.log.events(index)
    newest = next((event.event for event in reversed(events) if event.action != RETRACT), -1)
    if event_key(last_event[row].decode()) != newest:
        last_event[row] = b""
