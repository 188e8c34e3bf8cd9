"""Path 3: a batch of requests -> wait for the demanded click -> interests -> recall -> answers.

| state of a request | it leaves it when |
|---|---|
| accepted | it is looked at: it waits, or candidates are found for it, or it has expired |
| waiting | its click is applied, or its deadline is over (`parking.py`); it is then looked at again |
| found | the clicks that its answer rests on are in the changelog, at once for most |
| held back | these clicks are in the changelog, or its deadline is over |
| delivered | its answer is acknowledged; the batch is finished with the last of its requests |

A request that waits for its click never holds the partition: its batch stays uncommitted, later batches flow. Every
request whose id can be read gets an answer; the others go to the dead letters.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from headwater.encoder.runtime import Encoder
from headwater.errors import PartitionLost
from headwater.index import IndexUnavailable
from headwater.kafka.batch import Batch
from headwater.kafka.topics import Topics
from headwater.messages import MAX_AT_MS
from headwater.metrics import Metrics
from headwater.paths.accepting import Acceptance, Accepted, PendingRequest
from headwater.paths.answering import (
    Found,
    Outbox,
    Reply,
    answered,
    expired,
    failed,
    needed_offset,
    overloaded,
    rejected,
)
from headwater.paths.asking import ask_of, lacks_vectors
from headwater.paths.culprit import Culprit, halved
from headwater.paths.parking import Parking, may_answer
from headwater.paths.request_parts import COSTLY_US, MOST_AT_ONCE, cut, parts_of
from headwater.paths.serving import Serving
from headwater.profiles.interests import UserInterests, interests_of
from headwater.profiles.partition import Partition
from headwater.profiles.store import Profiles
from headwater.settings import Settings

log = structlog.get_logger(__name__)

# Time reserved after recall: fusing, encoding, writing.
_ANSWER_MS: Final = 20.0
# The share of the time left that fetching missing vectors may take, so that recall has its own.
_FETCH_SHARE: Final = 0.3
# Of a user whose state this version cannot read.
NEWER_FORMAT_RUNG: Final = "newer-format"
# How many costly parts are worked on at a time: one on the loop, one in the encoder's thread or on its way to the broker.
_COSTLY_AT_ONCE: Final = 2
# Requests that cost more than this are answered before the next batch is taken. The backlog waits in the broker.
_MOST_IN_HAND_US: Final = 2_000_000.0


class _Looked(NamedTuple):
    """Requests in hand, sorted by what can be done now. The others wait, or are left to the partition's next owner."""

    ready: list[PendingRequest]
    replies: list[tuple[PendingRequest, Reply]]  # of those that get no candidates


class RequestPath:
    """Answers request batches of the partitions whose clicks this worker applies.

    Args:
        serving: asked once per batch.
        threads: the encoder runs in these.
        outbox: takes answers, strays and dead letters.
        start: starts work alongside the batches, and stops the worker when it fails.
        clock: the time in seconds since 1970.
    """

    def __init__(
        self,
        profiles: Profiles,
        serving: Callable[[], Serving],
        threads: Executor,
        outbox: Outbox,
        settings: Settings,
        metrics: Metrics,
        start: Callable[[Coroutine[Any, Any, None]], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._profiles, self._serving, self._threads, self._outbox = profiles, serving, threads, outbox
        self._settings, self._start, self._clock = settings, start, clock
        self._responses = Topics.named(settings.topic_prefix).responses
        self._acceptance = Acceptance(settings.partitions, self._responses, settings.reply_topics, clock)
        self._parking = Parking(self._answer_later, metrics, clock, settings.max_parked)
        self._costly = asyncio.Semaphore(_COSTLY_AT_ONCE)
        self._in_hand_us = 0.0  # what the requests in hand cost
        self._decode_seconds, self._read_seconds, self._index_seconds = (
            metrics.request_stage_seconds.labels(stage) for stage in ("decode", "read", "index")
        )
        self._encoder_seconds = {
            "recurrent": metrics.encoder_seconds.labels("read"),
            "windowed": metrics.encoder_seconds.labels("window"),
        }
        self._batch_size = metrics.batch_size.labels("requests")

    async def handle(self, batch: Batch) -> None:
        """Answer what can be answered now, have the rest wait, and let the next batch come.

        Raises:
            PartitionLost: the partition was revoked meanwhile; its new owner answers what is unanswered.
            StopWorker: the broker did not take the answers.
        """
        partition = self._profiles.partition(batch.partition)
        if partition is None:
            raise PartitionLost
        if not batch.records:
            batch.finish()
            return
        serving, started, count = self._serving(), time.perf_counter(), len(batch.records)
        accepted = await self._acceptance.accept(batch, partition)
        self._decode_seconds.observe(time.perf_counter() - started)
        await self._outbox.bury(accepted.letters)
        await self._outbox.forward(accepted.strays)
        await self._reject(accepted, serving)
        partition.require(batch.generation)
        await self._answer(accepted.pending, partition, serving, batch.release)
        batch.release()
        self._batch_size.observe(count)

    async def _reject(self, accepted: Accepted, serving: Serving) -> None:
        """Have done with the records of a batch that are no pending requests; their letters and strays are written."""
        replies = [rejected(each, serving.encoder.id) for each in accepted.rejections]
        elsewhere = [reply for reply in replies if reply.address.topic != self._responses]
        if elsewhere:  # such a topic may not be there, and keeps nobody waiting

            async def reject_elsewhere() -> None:
                for some in cut(elsewhere, MOST_AT_ONCE):
                    await self._outbox.send(some)
                accepted.unanswered.answered(len(elsewhere))

            self._start(reject_elsewhere())
            replies = [reply for reply in replies if reply.address.topic == self._responses]
        for some in cut(replies, MOST_AT_ONCE):
            await self._outbox.send(some)
        if settled := len(accepted.letters) + len(accepted.strays) + len(replies):
            accepted.unanswered.answered(settled)

    @property
    def parked(self) -> int:
        """How many requests wait for their click."""
        return len(self._parking)

    def drop_parked(self) -> None:
        """Forget the requests that wait: a rebalance began, and the next owners read them again."""
        self._parking.clear()

    def _answer_later(self, pending: list[PendingRequest], partition: Partition) -> None:
        self._start(self._answer(pending, partition, self._serving()))

    async def _answer(
        self,
        pending: Sequence[PendingRequest],
        partition: Partition,
        serving: Serving,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        """Answer requests, those with about as much time left together.

        Calls ``release`` once candidates are found, so the next batch starts before these answers are acknowledged,
        unless ``max_parked`` answers are already in flight, or the requests in hand are seconds of work.
        """
        self._in_hand_us += sum(each.cost_us for each in pending)
        groups = _by_time_left(pending, self._now_ms())
        if len(groups) == 1:
            await self._answer_parts(groups[0], partition, serving, release)
        else:
            work = (self._answer_parts(group, partition, serving, release) for group in groups)
            await asyncio.gather(*work)

    async def _answer_parts(
        self,
        pending: Sequence[PendingRequest],
        partition: Partition,
        serving: Serving,
        release: Callable[[], None],
    ) -> None:
        """Answer requests in parts of bounded work, one after the other. Costly parts of all partitions take turns."""
        left_us = sum(each.cost_us for each in pending)
        try:
            for part in parts_of(pending, self._now_ms):
                part_us = sum(each.cost_us for each in part)
                async with self._costly if part_us > COSTLY_US else contextlib.nullcontext():
                    await self._answer_group(part, partition, serving, release)
                self._in_hand_us -= part_us
                left_us -= part_us
        finally:
            self._in_hand_us -= left_us  # of parts that were given up with the partition

    async def _answer_group(
        self,
        pending: Sequence[PendingRequest],
        partition: Partition,
        serving: Serving,
        release: Callable[[], None],
    ) -> None:
        """Answer requests; where our own code fails, halve them until the culprit stands alone."""
        ready, replies = self._look(pending, partition, serving)
        async for part in halved(ready, partial(self._find, partition=partition, serving=serving)):
            if isinstance(part, Culprit):
                log.error("request_failed", partition=partition.number, exc_info=part.error)
                replies.append((part.item, failed(part.item, partition, serving.encoder.id, part.error)))
            else:
                settled, held_back = self._split_by_storage(part.result, partition, serving)
                replies += settled
                if held_back:  # they delay neither the others nor the next batch
                    self._start(self._deliver_when_stored(held_back, partition, serving))
            await self._deliver(replies, release)
            replies = []
        await self._deliver(replies, release)

    async def _deliver(
        self, replies: Sequence[tuple[PendingRequest, Reply]], release: Callable[[], None]
    ) -> None:
        if self._outbox.in_flight < self._settings.max_parked and self._in_hand_us < _MOST_IN_HAND_US:
            release()
        await self._outbox.deliver(replies)

    def _look(self, pending: Sequence[PendingRequest], partition: Partition, serving: Serving) -> _Looked:
        """Sort requests by what can be done now, and have those wait whose click has not come.

        The clock is read once: a request whose deadline passed between two readings would go unanswered.
        """
        now_ms, model = self._now_ms(), serving.encoder.id
        looked = _Looked([], [])
        for each in pending:
            if each.left_ms(now_ms) <= 0:
                looked.replies.append((each, expired(each, partition, model)))
            elif may_answer(each, partition):
                looked.ready.append(each)
            elif not partition.is_ours(each.unanswered.batch.generation):
                pass  # the click is gone again after a rebalance; the next owner reads the request again
            elif (refusal := self._parking.refusal(each)) is not None:
                looked.replies.append((each, overloaded(each, partition, model, refusal)))
            else:
                self._parking.add(each, partition)
        return looked

    async def _find(
        self, pending: Sequence[PendingRequest], partition: Partition, serving: Serving
    ) -> list[Found]:
        """Candidates for requests whose clicks are applied."""
        recall = serving.recall
        assert recall is not None
        is_open = partition.gate.is_open
        if not is_open and any(each.demands_a_click for each in pending):
            raise PartitionLost  # it was ours when they were looked at
        # Read before the states, which may then be newer than the answer claims, never older.
        applied = partition.applied if is_open else -1
        started = time.perf_counter()
        users, has_fetched = await self._interests(pending, partition, is_open, serving)
        read_s = time.perf_counter() - started
        self._read_seconds.observe(read_s)
        self._encoder_seconds[serving.encoder.kind].observe(read_s)
        needed = [needed_offset(each, partition, applied) for each in pending]
        if max(needed) > partition.watermark:
            # The changelog has mostly acknowledged these clicks. Let its waiters run first: an answer that is
            # found before has to wait for the loop once more.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        texts = await self._text_vectors(pending, serving.encoder)
        asks = [
            ask_of(each, user, text, serving.encoder.pool)
            for each, user, text in zip(pending, users, texts, strict=True)
        ]
        left_ms = self._least_left_ms(pending)
        started = time.perf_counter()
        catalog = dict(serving.catalog)  # what comes while it is searched is not claimed
        results = await recall.candidates(asks, max(left_ms - _ANSWER_MS, 0.6 * left_ms) / 1000.0)
        index_s = time.perf_counter() - started
        self._index_seconds.observe(index_s)
        found = []
        for each, user, result, least in zip(pending, users, results, needed, strict=True):
            each.timings |= {"read": read_s * 1000.0, "recall": index_s * 1000.0}
            rung = result.rung
            if each.user in partition.sealed:
                # What is known of the user is no reason of a source either.
                result = result._replace(why={})
                rung = rung or NEWER_FORMAT_RUNG
            if not (is_open and serving.is_index_ready):
                # What is not read yet is no reason of a source.
                result = result._replace(why={})
                rung = rung or "restoring"
            if rung is None and serving.has_other_bundle:
                rung = "other-bundle"
            if rung is None and not has_fetched and lacks_vectors(each, user, serving.vectors):
                rung = "stored"
            found.append(Found(each, user, result, rung or result.missing, applied, least, catalog))
        return found

    def _now_ms(self) -> float:
        return self._clock() * 1000.0

    def _least_left_ms(self, pending: Sequence[PendingRequest]) -> float:
        now_ms = self._now_ms()
        return min(each.left_ms(now_ms) for each in pending)

    async def _interests(
        self, pending: Sequence[PendingRequest], partition: Partition, is_open: bool, serving: Serving
    ) -> tuple[list[UserInterests], bool]:
        """The users' interests, and whether the vectors that these lack were fetched, as far as they exist."""
        # While the partition is being read nothing of it is shown: half a state would be a wrong answer.
        users = [each.user if is_open else b"" for each in pending]
        at_ms = np.array([each.at_ms for each in pending], dtype=np.int64)
        until_ms = None
        if any(each.request.until_ms is not None for each in pending):
            until_ms = np.array([each.request.until_ms or MAX_AT_MS for each in pending], dtype=np.int64)
        read = partial(
            interests_of,
            partition.columns,
            users,
            [each.session for each in pending],
            at_ms,
            serving.vectors,
            serving.encoder,
            self._threads,
            until_ms=until_ms,
        )
        try:
            return await read(fetch_s=max(_FETCH_SHARE * self._least_left_ms(pending), 1.0) / 1000.0), True
        except (IndexUnavailable, TimeoutError):
            # Answer from the states as they are, and from those events of a session that have a vector here.
            return await read(fetch_s=0.0), False

    async def _text_vectors(
        self, pending: Sequence[PendingRequest], encoder: Encoder
    ) -> list[NDArray[np.float32] | None]:
        """(D,) the vector of each request's text; None without one, or where the bundle encodes no text."""
        vectors: list[NDArray[np.float32] | None] = [None] * len(pending)
        asked = [index for index, each in enumerate(pending) if each.request.query.strip()]
        if asked and encoder.item_inputs == "text":
            texts = [pending[index].request.query for index in asked]
            loop = asyncio.get_running_loop()
            encoded = await loop.run_in_executor(self._threads, encoder.encode_queries, texts)
            for index, vector in zip(asked, encoded, strict=True):
                vectors[index] = vector
        return vectors

    def _split_by_storage(
        self, found: Sequence[Found], partition: Partition, serving: Serving
    ) -> tuple[list[tuple[PendingRequest, Reply]], list[Found]]:
        """The answers that may be delivered now, and what has to be held back.

        An answer that depends on clicks whose changelog write is unacknowledged is held back until it is.
        """
        now_ms, model = self._now_ms(), serving.encoder.id
        replies: list[tuple[PendingRequest, Reply]] = []
        held_back: list[Found] = []
        for each in found:
            stored = min(partition.watermark, each.applied)
            if each.needed <= stored:
                reply = answered(each, partition, stored, model, now_ms)
                replies.append((each.pending, reply))
            elif each.pending.left_ms(now_ms) > 0:
                held_back.append(each)
            else:
                replies.append((each.pending, expired(each.pending, partition, model)))
        return replies, held_back

    async def _deliver_when_stored(
        self, held_back: Sequence[Found], partition: Partition, serving: Serving
    ) -> None:
        while held_back:
            left_ms = self._least_left_ms([each.pending for each in held_back])
            try:
                await partition.reached(min(each.needed for each in held_back), left_ms / 1000.0)
            except PartitionLost:
                return  # the partition's new owner reads these requests again
            replies, held_back = self._split_by_storage(held_back, partition, serving)
            await self._outbox.deliver(replies)


def _by_time_left(pending: Sequence[PendingRequest], now_ms: float) -> list[list[PendingRequest]]:
    """Requests that have about as much time left, to within a factor of two.

    What the index is asked for several requests at once may take no longer than the most impatient of them allows.
    """
    groups: dict[int, list[PendingRequest]] = {}
    for each in pending:
        groups.setdefault(int(max(each.left_ms(now_ms), 0.0)).bit_length(), []).append(each)
    return list(groups.values())
