"""Path 1: a batch of clicks -> the users' logs and encoder states -> the profiles changelog -> the watermark."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import structlog
from aiokafka import ConsumerRecord
from numpy.typing import NDArray

from headwater.encoder.runtime import Encoder
from headwater.errors import PartitionLost
from headwater.index import IndexUnavailable
from headwater.index.item_vectors import ItemVectors
from headwater.kafka.batch import Batch
from headwater.kafka.dead_letters import DeadLetter, DeadLetters
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.forwarding import forward
from headwater.kafka.partitioner import probe_user
from headwater.kafka.publish import Sent
from headwater.messages import Click, decode_click
from headwater.metrics import Metrics
from headwater.paths.click_columns import ClickBatch, decode
from headwater.paths.coalescing import Coalescing, Member
from headwater.paths.concurrency import ConcurrencySlot
from headwater.paths.culprit import Culprit, halved
from headwater.paths.observer import ClickApplied, Observer
from headwater.paths.serving import Serving
from headwater.profiles.actions import FORGET, Bools
from headwater.profiles.apply_clicks import Clicks, ProfileDelta, check_single_users, plan_batch
from headwater.profiles.columns import I64, Table
from headwater.profiles.encoder_steps import EncoderJob, keys_needed, needs_refold, step_states
from headwater.profiles.event_log import Outcome
from headwater.profiles.partition import Partition
from headwater.profiles.store import Profiles
from headwater.recall.popularity import F64, Counts, shares

logger = structlog.get_logger(__name__)

# At most two click batches run concurrently: one in the encoder's thread, one being decoded. Without the limit, a
# backlog on all partitions would run one decode slice per partition in every loop iteration and delay requests.
_CONCURRENT: Final = 2
# How long a batch may wait for its partition to be opened: a restore is reading, or the worker is stuck.
_OPEN_TIMEOUT_S: Final = 600.0


class Applied(NamedTuple):
    """Clicks that are in the columns and on their way to the changelog."""

    sent: Sent
    clicks: Clicks
    records: list[ConsumerRecord]
    outcome_counts: I64  # (outcomes,) by `Outcome`
    counts: Bools  # (clicks,) those that count, for popularity; none of a probe
    share: F64  # (clicks that count,) how much of each


class ClickPath:
    """Applies click batches: one batch of a partition at a time, several partitions concurrently."""

    def __init__(
        self,
        profiles: Profiles,
        serving: Callable[[], Serving],
        threads: Executor,
        producer: Producer,
        dead_letters: DeadLetters,
        metrics: Metrics,
        observer: Observer,
        forgotten: Callable[[int, Sequence[Click]], Awaitable[None]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._profiles, self._serving, self._threads = profiles, serving, threads
        self._producer, self._dead_letters = producer, dead_letters
        self._metrics, self._observer, self._clock = metrics, observer, clock
        self._forgotten = forgotten  # awaited with the forgets of a partition, before they are committed
        self._places = asyncio.Semaphore(_CONCURRENT)
        self._coalescing = Coalescing()
        self.counts: dict[int, Counts] = {}
        self._stage = {
            name: metrics.click_batch_stage_seconds.labels(name)
            for name in ("decode", "apply", "encode", "changelog")
        }
        self._step_seconds = metrics.encoder_seconds.labels("step")
        self._batch_size = metrics.batch_size.labels("clicks")
        self._strays = metrics.strays_total.labels(profiles.clicks_topic)

    async def handle(self, batch: Batch) -> None:
        """Apply one partition batch, then finish it.

        Raises:
            PartitionLost: the partition was revoked meanwhile; nothing is acknowledged.
            StopWorker: the broker did not take what had to be written, or the disk has no room for a new user.
        """
        partition = self._profiles.partition(batch.partition)
        if partition is None:
            raise PartitionLost
        await partition.gate.wait_open(_OPEN_TIMEOUT_S)
        async with partition.lock:
            slot = ConcurrencySlot(self._places)
            try:
                await slot.take()
                partition.require(batch.generation)
                started = time.perf_counter()
                good, letters, strays, sealed = await decode(
                    batch.records, partition, self._profiles.partition_count, self._now_ms()
                )
                self._stage["decode"].observe(time.perf_counter() - started)
                sent_ms = good.sent_ms
                if (others := self._not_of_probe(partition, good)) is not None:
                    sent_ms = sent_ms[others]
                applied, failed = await self._apply(partition, good, batch, slot)
            finally:
                slot.give_back()
            partition.require(batch.generation)
            before, done = partition.changelog_done, asyncio.get_running_loop().create_future()
            partition.changelog_done = done
        applied_s = time.perf_counter()
        try:
            partition.remember_unlogged_of(sealed)
            partition.mark_applied(batch.last_offset, None if sealed else good.clicks.event)
            # The next batch is applied while this one is on its way to the changelog: two of a partition at most.
            if not before.done():
                await asyncio.wait({before})
            if not before.result():
                raise PartitionLost
            batch.release()
            for each in applied:
                await self._profiles.settle(partition, each.sent, batch.generation)
            if strays:
                letters += await forward(self._producer, self._profiles.clicks_topic, strays)
                self._strays.inc(len(strays))
            await self._dead_letters.put(letters + failed)
            if (forgets := (good.clicks.action == FORGET).nonzero()[0]).size:
                await self._forgotten(partition.number, [_click(good, place) for place in forgets.tolist()])
            partition.require(batch.generation)
            partition.move_watermark(batch.last_offset)
            batch.finish()
            done.set_result(True)
        finally:
            if not done.done():
                done.set_result(False)
        await asyncio.sleep(0)  # requests that waited for these clicks go first
        for each in applied:
            self._count(partition, each)
            if self._observer.is_watched:
                self._tell(each)
        self._stage["changelog"].observe(time.perf_counter() - applied_s)
        self._batch_size.observe(len(batch.records))
        self._metrics.click_to_applied_seconds.observe_all(np.maximum(self._now_ms() - sent_ms, 0) / 1000.0)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000.0)

    async def _apply(
        self, partition: Partition, good: ClickBatch, batch: Batch, slot: ConcurrencySlot
    ) -> tuple[list[Applied], list[DeadLetter]]:
        """Apply valid clicks and send their users to the changelog.

        A small batch goes with others, and one that would hold the event loop for long is halved. Where our own code
        fails, the record at fault becomes a dead letter and all others are applied.
        """
        applied: list[Applied] = []
        letters: list[DeadLetter] = []
        if not good.records:
            return applied, letters
        serving, generation = self._serving(), batch.generation
        work_out = partial(self._work_out, serving)
        if self._coalescing.suits(good, batch.has_siblings, serving.vectors):
            member = Member(partition, good, generation)
            delta = await self._coalescing.delta_of(member, serving.vectors, work_out, slot)
            partition.require(generation)
            if delta is not None:
                return [await self._write(partition, good, delta, generation)], letters

        async def planned(places: Sequence[int]) -> tuple[ClickBatch, ProfileDelta]:
            await slot.take()
            is_whole = len(places) == len(good.records)
            part = good if is_whole else good.part(places[0], places[-1] + 1, partition)
            return part, await work_out(partition.columns, part.clicks, slot)

        async for outcome in halved(range(len(good.records)), planned):
            if isinstance(outcome, Culprit):
                letters.append(_failed(good.records[outcome.item], outcome.error))
                continue
            partition.require(generation)
            part, delta = outcome.result
            slot.give_back()  # the producer may hold a large batch back until the broker took what is on its way
            applied.append(await self._write(partition, part, delta, generation))
            self._profiles.write_now()
        return applied, letters

    async def _work_out(
        self, serving: Serving, table: Table, clicks: Clicks, slot: ConcurrencySlot
    ) -> ProfileDelta:
        """What these clicks do to their users, with the encoder's new states. Nothing is written yet."""
        started = time.perf_counter()
        delta = plan_batch(table, clicks)
        refold = needs_refold(delta, serving.encoder.forgets)
        check_single_users(refold)
        await self._fetch_vectors(serving.vectors, delta, refold, slot)
        job = step_states(delta, refold, serving.vectors, serving.encoder.initial_state(1)[0])
        planned = time.perf_counter()
        state = await self._run(job, serving.encoder)
        self._stage["apply"].observe(planned - started)
        self._stage["encode"].observe(time.perf_counter() - planned)
        return delta.stepped(state, job.state_at_ms, job.pending)

    async def _fetch_vectors(
        self, vectors: ItemVectors, delta: ProfileDelta, refold: Bools, slot: ConcurrencySlot
    ) -> None:
        if not vectors.can_fetch:
            return
        slot.give_back()
        try:
            await vectors.ensure(keys_needed(delta, refold))
        except IndexUnavailable as error:
            # Clicks go on. Events without a vector count as pending, and are folded in once they have one.
            logger.debug("vectors_unavailable", error=str(error))  # the index has said so itself, once
        await slot.take()

    async def _run(self, job: EncoderJob, encoder: Encoder) -> NDArray[np.float16]:
        if not job.calls:
            return job.state.astype(np.float16)
        started = time.perf_counter()
        if job.is_small:
            state = job.run(encoder)
        else:
            state = await asyncio.get_running_loop().run_in_executor(self._threads, job.run, encoder)
        self._step_seconds.observe(time.perf_counter() - started)
        return state

    async def _write(
        self, partition: Partition, batch: ClickBatch, delta: ProfileDelta, generation: int
    ) -> Applied:
        """Write a delta into the columns, all at once, and hand its users to the changelog."""
        counts, outcome_counts = delta.applied, delta.outcome_counts
        if (others := self._not_of_probe(partition, batch)) is not None:
            counts = counts & others
            outcome_counts = np.bincount(delta.outcome[others], minlength=len(Outcome))
        erased = partition.commit(delta, batch.clicks, batch.event_ids, batch.origins)
        sent = await self._profiles.send(partition, delta.rows[delta.log.n > 0], erased, generation)
        clicks = batch.clicks.take(counts)
        user = np.searchsorted(delta.rows, clicks.row)
        share = shares(delta.log, delta.forgotten_ms, user, clicks.item, clicks.at_ms)
        return Applied(sent, batch.clicks, batch.records, outcome_counts, counts, share)

    def _not_of_probe(self, partition: Partition, batch: ClickBatch) -> Bools | None:
        """(clicks,) those that are not of the partition's freshness probe, which counts for nothing; None: all are."""
        row = partition.columns.rows.get(probe_user(partition.number, self._profiles.partition_count))
        if row is None:
            return None
        others = batch.clicks.row != row
        return None if others.all() else others

    def _count(self, partition: Partition, applied: Applied) -> None:
        outcomes = applied.outcome_counts
        self._metrics.clicks_total.inc(int(outcomes[Outcome.APPLIED]))
        self._metrics.duplicates_total.inc(
            int(outcomes[Outcome.DUPLICATE] + outcomes[Outcome.REPLAYED] + outcomes[Outcome.RETRACTED])
        )
        self._metrics.too_late_total.inc(int(outcomes[Outcome.TOO_LATE] + outcomes[Outcome.FORGOTTEN]))
        clicks, counting = applied.clicks, applied.counts
        counts = self.counts.setdefault(partition.number, Counts())
        counts.add(clicks.item[counting], clicks.action[counting], clicks.at_ms[counting], applied.share)

    def _tell(self, applied: Applied) -> None:
        """Tell listeners of the newest clicks that count, as many as they may be told."""
        counting = applied.counts.nonzero()[0]
        allowed = self._observer.allowance(ClickApplied, len(counting))
        newest = counting[len(counting) - allowed :].tolist()
        now_ms = self._now_ms()
        events = []
        for place in newest:
            record, at_ms = applied.records[place], int(applied.clicks.at_ms[place])
            click = decode_click(record.key, record.value, at_ms)
            events.append(
                ClickApplied(
                    click.user_id,
                    click.item_id,
                    click.action,
                    click.event_id,
                    at_ms,
                    record.partition,
                    record.offset,
                    float(max(now_ms - record.timestamp, 0)),
                    float(now_ms),
                )
            )
        self._observer.tell(events, omitted=len(counting) - len(newest))


def _click(batch: ClickBatch, place: int) -> Click:
    """The message of a valid click, with the time that it counts as."""
    record = batch.records[place]
    return decode_click(record.key, record.value, int(batch.clicks.at_ms[place]))


def _failed(record: ConsumerRecord, error: Exception) -> DeadLetter:
    """The dead letter of a click that our own code fails on."""
    logger.error(
        "click_failed",
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        exc_info=error,
    )
    return DeadLetter(record, "internal_error", f"{type(error).__name__}: {error}")
