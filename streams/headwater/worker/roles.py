"""The two roles of a worker: what each builds, opens in order, and does when partitions come and go.

| role | consumes | holds |
|---|---|---|
| interests | clicks, requests | users of its partitions, item vectors, and the index where each worker fills its own |
| catalog | catalog, offers | the newest version of each item of its partitions, and what its offers have come to |

A worker of role `all` has both.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from typing import Final, Literal, NamedTuple

import numpy as np
import structlog
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import CommitFailedError
from prometheus_client import Counter

from headwater.encoder.runtime import Encoder
from headwater.index import Index, IndexUnavailable
from headwater.index.deletion_marks import MARKS_KEPT_S
from headwater.index.item_vectors import ItemVectors
from headwater.index.key_holders import KeyHolders
from headwater.index.vectors_follower import VectorsFollower
from headwater.kafka.broker_clock import PROBE_KEY, BrokerClock
from headwater.kafka.consumer_group import ConsumerGroup
from headwater.kafka.dead_letters import DeadLetters
from headwater.kafka.epochs import next_epoch
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.faust_group import FaustGroup
from headwater.kafka.skipped import SkippedRecords
from headwater.kafka.supervision import Background
from headwater.kafka.tail import Tail
from headwater.kafka.topics import Topics
from headwater.messages import BadMessage, Gap, SessionEvent, decode_trend
from headwater.metrics import Metrics
from headwater.paths.answering import Outbox
from headwater.paths.catalog import CatalogPath
from headwater.paths.clicks import ClickPath
from headwater.paths.observer import Observer
from headwater.paths.requests import RequestPath
from headwater.paths.serving import Serving
from headwater.profiles.clicks_log import ACCEPT_LOG
from headwater.profiles.interests import UserInterests, WhatIfEvents, interests_of
from headwater.profiles.partition import Partition
from headwater.profiles.store import ProfileLayout, Profiles
from headwater.recall.dislikes import SAMPLE, CatalogRamp
from headwater.recall.pipeline import Recall
from headwater.recall.popularity import Counts, Trends
from headwater.recall.rescoring import Scorer
from headwater.recall.sources import Resources
from headwater.recall.sources.registry import sources_of
from headwater.settings import Settings
from headwater.worker.eraser import Eraser
from headwater.worker.probe import AnswersTopic, Probe
from headwater.worker.trends_publisher import TrendsPublisher, read_trend

log = structlog.get_logger(__name__)

Role = Literal["all", "interests", "catalog"]

# Reading the vectors of a million items takes a minute. A topic that cannot be read fails by itself long before this.
_FOLLOWED_WITHIN_S: Final = 900.0
_CLAIM_S: Final = 1.0
# A person looks at a user's interests.
_FETCHED_WITHIN_S: Final = 2.0
_SWEEP_S: Final = 3_600.0


class Common(NamedTuple):
    """What both roles stand on. The worker opens and closes it."""

    settings: Settings
    topics: Topics
    encoder: Encoder
    producer: Producer
    dead_letters: DeadLetters
    metrics: Metrics
    background: Background
    observer: Observer
    clock: BrokerClock
    fail: Callable[[str], None]  # ends the worker, with the reason
    holders: KeyHolders | None  # None: the worker does not encode the catalog, or a shared index tells


class InterestsRole:
    """Applies clicks and answers requests.

    Answers go through a producer of their own. A producer has one request on its way to a broker at a time, and an answer
    must not wait until states are acknowledged that it does not rest on. States go through one that is idempotent: a late
    copy of a state would be older than what follows it.
    """

    def __init__(self, common: Common, index: Index, answers: Producer, states: Producer) -> None:
        self._common, self.index = common, index
        settings, topics, encoder = common.settings, common.topics, common.encoder
        is_shared = index.filled_by == "the catalog worker"
        self.vectors = ItemVectors(encoder.dim, fetch=index.vectors if is_shared else None)
        self.profiles = Profiles(
            settings,
            topics,
            states,
            common.metrics,
            ProfileLayout(encoder.id, encoder.log_length, encoder.state_size),
            writer=secrets.randbits(63),
            fail=common.fail,
            on_lost=self._lost_before_opening,
            is_member=self._is_member,
            clock=common.clock.now_s,
        )
        self._eraser = Eraser(settings, common.producer, common.metrics, self.profiles.close_segment)
        # Separate threads: a request must not wait behind the encoder's work for two thousand clicks.
        self._click_threads, self._request_threads = _thread("clicks"), _thread("requests")
        self._clicks = ClickPath(
            self.profiles,
            self._serving,
            self._click_threads,
            common.producer,
            common.dead_letters,
            common.metrics,
            common.observer,
            self._eraser.begin,
            common.clock.now_s,
        )
        self._trends, self._skipped = Trends(common.clock.now_s), SkippedRecords(common.metrics)
        self._trends_publisher = TrendsPublisher(
            common.producer, topics.trends, index, self._clicks.counts, encoder.id, settings.new_days
        )
        self._follower = VectorsFollower(
            index,
            self.vectors,
            encoder.id,
            common.metrics,
            settings.data_dir,
            self._trends_publisher.forget,
        )
        popular, rising = self._trends.popular, self._trends.rising
        self._recall = Recall(
            index,
            sources_of(Resources(index, encoder.neighbours, popular, settings.new_days, rising)),
            common.metrics,
            Scorer(encoder, self._request_threads, popular) if encoder.pool else None,
            encoder.manifest.sources,
            CatalogRamp(partial(self.vectors.sample, SAMPLE)),
        )
        self._requests = RequestPath(
            self.profiles,
            self._serving,
            self._request_threads,
            Outbox(answers, common.dead_letters, topics, common.metrics, common.observer, common.clock.now_s),
            settings,
            common.metrics,
            common.background.start,
            common.clock.now_s,
        )
        self.group: ConsumerGroup | None = None  # once it is opened
        self.probe: Probe | None = None  # the same, where HEADWATER_PROBE_S is set

    def _serving(self) -> Serving:
        follower = self._follower
        return Serving(
            self._common.encoder,
            self.vectors,
            self.index,
            self._recall,
            follower.offsets,
            follower.is_caught_up,
            bool(follower.other_bundles),
        )

    async def open(self, stack: AsyncExitStack) -> ConsumerGroup:
        """Follow vectors and trends, open the store, and return the group, ready to join.

        Raises:
            StopWorker: a topic cannot be read.
            TimeoutError: it takes longer than a quarter of an hour.
        """
        common = self._common
        settings, topics = common.settings, common.topics
        for threads in (self._click_threads, self._request_threads):
            _shut_down_with(stack, threads)
        from_end = self.index.filled_by == "the catalog worker"
        vectors = Tail(settings, topics.vectors, self._put_vectors, common.fail, from_end=from_end)
        trends = Tail(settings, topics.trends, self._put_trends, common.fail)
        for tail in (vectors, trends):
            await tail.start()
            stack.push_async_callback(tail.stop)
        # Clicks that came before the vectors would all be pending, and folded again later: first the vectors.
        async with asyncio.timeout(_FOLLOWED_WITHIN_S):
            await vectors.caught_up.wait()
            self._follower.is_caught_up = True
            await trends.caught_up.wait()
        await self.profiles.start()
        stack.push_async_callback(self.profiles.stop)
        group = self.group = FaustGroup(settings.interests_group, settings)
        group.handle(topics.clicks, self._clicks.handle, remedy=f"If it stops again, {ACCEPT_LOG}")
        group.handle(topics.requests, self._requests.handle, urgent=True)
        group.on_assigned(self._assigned)
        group.on_unreadable(common.dead_letters.put_unreadable)
        group.on_lost(self._lost)
        group.on_interrupt(self.profiles.interrupt)
        group.on_revoked(self._revoked)
        common.background.start(self._trends_publisher.run())
        if not from_end:
            common.background.start(keep_swept(self.index, common.clock.now_s))
        common.background.start(self._eraser.run())
        stack.push_async_callback(self._trends_publisher.publish_last)
        if settings.probe_s is not None:
            answers = AnswersTopic(settings, topics.responses)
            stack.push_async_callback(answers.stop)
            self.probe = Probe(
                common.producer,
                answers,
                topics,
                settings.partitions,
                settings.probe_s,
                self._owned,
                common.metrics,
                common.clock.now_s,
            )
            common.background.start(self.probe.run())
        return group

    async def interests(
        self,
        partition: Partition,
        user: bytes,
        now_ms: int,
        until_ms: int | None,
        session: Sequence[SessionEvent],
    ) -> UserInterests:
        """What a user of a partition is interested in at a moment.

        Args:
            until_ms: events of the user's log after it do not count; None: all do.
            session: what-if events that count too.

        Raises:
            IndexUnavailable, TimeoutError: vectors have to be fetched and cannot be, or not in time.
        """
        (found,) = await interests_of(
            partition.columns,
            [user],
            [WhatIfEvents.of(session, now_ms)],
            np.array([now_ms], dtype=np.int64),
            self.vectors,
            self._common.encoder,
            self._request_threads,
            fetch_s=_FETCHED_WITHIN_S,
            until_ms=None if until_ms is None else np.array([until_ms], dtype=np.int64),
        )
        return found

    @property
    def catalog(self) -> Mapping[int, int]:
        """The offset that the index has reached in each catalog partition."""
        return self._follower.offsets

    @property
    def other_bundles(self) -> set[str]:
        """The bundles that encode the catalog now, where that is not the one of this worker."""
        return self._follower.other_bundles

    @property
    def is_complete(self) -> bool:
        """Whether the state of each partition that it owns has been read. The followed topics are read before it opens."""
        return all(each.gate.is_open for each in self.profiles.partitions.values() if each.owned)

    def _owned(self) -> set[int]:
        return {each.number for each in self.profiles.partitions.values() if each.owned}

    def waits(self, partition: int) -> bool:
        """Whether a clicks partition waits for its state to be read, which has a time limit of its own."""
        found = self.profiles.partition(partition)
        return found is not None and not found.gate.is_open

    async def _assigned(self, partitions: set[TopicPartition]) -> None:
        assert self.group is not None
        numbers = _numbers(partitions, self._common.topics.clicks)
        keep_counts(self._clicks.counts, numbers, self._trends)
        self.profiles.assign(numbers, self.group.generation)
        for number in numbers:
            tp = TopicPartition(self._common.topics.clicks, number)
            self.profiles.partitions[number].gap_now = partial(self.group.gap, tp)
        self._eraser.assign(numbers)

    async def _revoked(self, partitions: set[TopicPartition]) -> None:
        self.profiles.freeze()
        self._requests.drop_parked()
        await self._trends_publisher.publish_last()

    async def _is_member(self) -> bool:
        return self.group is not None and await self.group.is_member()

    async def _lost_before_opening(self, tp: TopicPartition, gap: Gap) -> None:
        """The group has no offsets, and clicks are gone of which nothing says that they have been applied.

        The gap is committed before the partition is claimed: the claim says that nothing before it is missing.

        Raises:
            CommitFailedError: the broker did not take it.
        """
        assert self.group is not None
        log.warning(
            "group_offsets_gone",
            topic=tp.topic,
            partition=tp.partition,
            effect=f"clicks {gap.first} to {gap.last} are gone from the log too, applied or not; they count as lost",
        )
        if not await self.group.keep_gap(tp, gap):
            raise CommitFailedError(tp)

    def _lost(self, tp: TopicPartition, gap: Gap, is_new: bool) -> None:
        metrics = self._common.metrics
        if tp.topic == self._common.topics.clicks:
            tell_lost(tp, gap, is_new, metrics.clicks_lost_total)
        else:
            tell_lost(tp, gap, is_new, metrics.requests_lost_total)

    async def _put_vectors(self, records: Sequence[ConsumerRecord]) -> None:
        if self._common.holders is not None:
            self._common.holders.put(records)
        await self._follower.put(records)

    async def _put_trends(self, records: Sequence[ConsumerRecord]) -> None:
        for record in records:
            if record.key == PROBE_KEY:
                continue
            now_ms = self._common.clock.now_s() * 1000.0
            try:
                trend = read_trend(record.key, record.value, self._common.settings.partitions, now_ms)
            except BadMessage as error:
                self._skipped.add(record, error.reason, str(error))
                self._publish_again(record.key)
                continue
            if not self._trends.put(trend):
                self._skipped.add(
                    record,
                    "older",
                    f"epoch {trend.epoch}, written at {trend.written_ms} ms: a newer one is known",
                )
                self._publish_again(record.key)

    def _publish_again(self, key: bytes | None) -> None:
        """What cannot be used lies over our own trend, if it is of this worker: compaction keeps what comes last."""
        for number, counts in self._clicks.counts.items():
            if str(number).encode() == key:
                counts.changed = True


class CatalogRole:
    """Encodes catalog changes and publishes their vectors; writes to ``index`` where the catalog worker fills it."""

    def __init__(self, common: Common, index: Index | None) -> None:
        self._common = common
        self._threads = _thread("catalog")
        filled = self._filled = (
            index if index is not None and index.filled_by == "the catalog worker" else None
        )
        serving = Serving(common.encoder, ItemVectors(common.encoder.dim), filled)
        self.path = CatalogPath(
            common.settings,
            lambda: serving,
            self._threads,
            common.producer,
            common.dead_letters,
            common.metrics,
            common.observer,
            common.fail,
            self._is_member,
        )
        self.other_bundles: set[str] = set()
        """The bundle of the interests workers, where that is not the one of this worker."""
        if common.holders is not None:
            self.path.holders = common.holders.ids
        self._reads_vectors = index is None  # or the other role does, for the index
        self.group: ConsumerGroup | None = None  # once it is opened

    async def open(self, stack: AsyncExitStack) -> ConsumerGroup:
        """Return the group, ready to join.

        Raises:
            StopWorker: the vectors topic cannot be read.
            TimeoutError: that takes longer than a quarter of an hour.
        """
        common = self._common
        _shut_down_with(stack, self._threads)
        stack.push_async_callback(self.path.stop)
        trends = Tail(common.settings, common.topics.trends, self._compare_bundles, common.fail)
        await trends.start()
        stack.push_async_callback(trends.stop)
        if self._reads_vectors:
            # In every catalog partition: two items with one key may be in two of them.
            tail = Tail(common.settings, common.topics.vectors, self._put_holders, common.fail)
            await tail.start()
            stack.push_async_callback(tail.stop)
            async with asyncio.timeout(_FOLLOWED_WITHIN_S):
                await tail.caught_up.wait()
        group = self.group = FaustGroup(common.settings.catalog_group, common.settings)
        group.handle(common.topics.catalog, self.path.handle)
        group.handle(common.topics.offers, self.path.offers.handle)
        self.path.offers.is_behind = partial(self._is_behind, group)
        group.on_assigned(self._assigned)
        group.on_unreadable(common.dead_letters.put_unreadable)
        group.on_lost(self._lost)
        group.on_interrupt(self.path.interrupt)
        group.on_revoked(self._revoked)
        common.background.start(self._claim(group))
        if self._filled is not None:
            common.background.start(keep_swept(self._filled, common.clock.now_s))
        return group

    async def _put_holders(self, records: Sequence[ConsumerRecord]) -> None:
        assert self._common.holders is not None
        self._common.holders.put(records)

    async def _compare_bundles(self, records: Sequence[ConsumerRecord]) -> None:
        """Take note of the bundle that the newest trend names: the interests workers have it."""
        named = [record for record in records if record.key != PROBE_KEY]
        if named:
            with contextlib.suppress(BadMessage):
                bundle = decode_trend(named[-1].value).bundle
                self.other_bundles = {bundle} - {"", self._common.encoder.id}

    async def _claim(self, group: ConsumerGroup) -> None:
        """Tell every second how far partitions have come that brought nothing new, forever."""
        while True:
            await asyncio.sleep(_CLAIM_S)
            for number in self.path.open_partitions:
                tp = TopicPartition(self._common.topics.catalog, number)
                # A rebalance may be under way: the client knows positions of its assignment only.
                done = group.position(tp).next_offset if tp in group.assignment() else None
                if done is not None:
                    await self.path.claim(number, done - 1)

    def _is_behind(self, group: ConsumerGroup, number: int) -> bool:
        """Whether catalog records of a partition are still to be read."""
        tp = TopicPartition(self._common.topics.catalog, number)
        if tp not in group.assignment():
            return False
        at = group.position(tp)
        return at.next_offset is None or at.end is None or at.next_offset < at.end

    async def _is_member(self) -> bool:
        return self.group is not None and await self.group.is_member()

    async def _assigned(self, partitions: set[TopicPartition]) -> None:
        self.path.assign(_numbers(partitions, self._common.topics.catalog))

    async def _revoked(self, partitions: set[TopicPartition]) -> None:
        self.path.freeze()

    def _lost(self, tp: TopicPartition, gap: Gap, is_new: bool) -> None:
        metrics, is_offer = self._common.metrics, tp.topic == self._common.topics.offers
        tell_lost(tp, gap, is_new, metrics.offers_lost_total if is_offer else metrics.catalog_lost_total)


def tell_lost(tp: TopicPartition, gap: Gap, is_new: bool, lost_total: Counter) -> None:
    """Say that offsets of a partition were gone before they were read: in the log, once each, and in a metric."""
    if is_new:
        lost_total.inc(gap.last - gap.first + 1)
        log.error(
            "records_lost",
            topic=tp.topic,
            partition=tp.partition,
            first=gap.first,
            last=gap.last,
            reason="deleted before they were read",
            remedy="raise the topic's retention.ms, or look why the workers were behind for so long",
        )


async def keep_swept(index: Index, clock: Callable[[], float]) -> None:
    """Have an index forget the marks of deletions that are weeks old by ``clock``, every hour, forever."""
    while True:
        await asyncio.sleep(_SWEEP_S)
        with contextlib.suppress(IndexUnavailable):  # then it is for the next time
            await index.sweep(clock() - MARKS_KEPT_S)


def keep_counts(counts: dict[int, Counts], owned: set[int], trends: Trends) -> None:
    """Drop the counts of partitions that have gone; those of new partitions go on from their published trend."""
    for partition in counts.keys() - owned:
        del counts[partition]
    for partition in owned - counts.keys():
        counts[partition] = Counts()
        trend = trends.of(partition)
        if trend is not None:
            counts[partition].restore(trend)
        # Published at once, so that others know of the new owner.
        counts[partition].epoch = next_epoch(-1 if trend is None else trend.epoch, 0)
        counts[partition].changed = True


def _thread(name: str) -> ThreadPoolExecutor:
    """One thread, which starts with its first work."""
    return ThreadPoolExecutor(1, thread_name_prefix=name)


def _shut_down_with(stack: AsyncExitStack, threads: ThreadPoolExecutor) -> None:
    stack.callback(threads.shutdown, wait=False, cancel_futures=True)


def _numbers(partitions: set[TopicPartition], topic: str) -> set[int]:
    return {tp.partition for tp in partitions if tp.topic == topic}
