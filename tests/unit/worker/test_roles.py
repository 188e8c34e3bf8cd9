"""What each role is made of, and what it keeps when partitions come and go."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import pytest_asyncio
from aiokafka import ConsumerRecord

from headwater.encoder import runtime as encoders
from headwater.encoder.features import ACTION_CODES, item_key
from headwater.encoder.runtime import Encoder
from headwater.index import FilledBy, IndexHealth, Point
from headwater.index.edge import EdgeIndex
from headwater.index.key_holders import KeyHolders
from headwater.index.vectors_topic import record_of
from headwater.kafka.broker_clock import PROBE_KEY, BrokerClock
from headwater.kafka.dead_letters import DeadLetters
from headwater.kafka.fast_client.records import Record
from headwater.kafka.supervision import Background
from headwater.kafka.topics import Topics
from headwater.messages import Trend, encode
from headwater.metrics import Metrics
from headwater.paths.observer import Observer
from headwater.recall.popularity import HALF_LIFE_S, Counts, Trends
from headwater.settings import Settings
from headwater.worker.roles import CatalogRole, Common, InterestsRole, keep_counts
from tests.support.checkout import STARTER
from tests.support.recording_producer import RecordingProducer

NOW_MS = int(time.time() * 1000)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return encoders.load(STARTER)


def common(encoder: Encoder, folder: Path) -> Common:
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1", topic_prefix="test.", data_dir=folder)
    topics, metrics, producer = Topics.named("test."), Metrics(), cast(Any, RecordingProducer(1))
    failures: list[str] = []
    return Common(
        settings=settings,
        topics=topics,
        encoder=encoder,
        producer=producer,
        dead_letters=DeadLetters(producer, topics.dead_letters, metrics),
        metrics=metrics,
        background=Background("the background", failures.append),
        observer=Observer(),
        clock=BrokerClock(producer, topics.trends),
        fail=failures.append,
        holders=KeyHolders(),
    )


class SharedIndex:
    """One that the catalog worker fills, as far as a role asks before its first batch."""

    in_process = False
    filled_by: FilledBy = "the catalog worker"

    def health(self) -> IndexHealth:
        return IndexHealth()

    async def vectors(self, keys: Any) -> Any:
        return {}


@pytest_asyncio.fixture
async def own_index(encoder: Encoder, tmp_path: Path) -> AsyncIterator[EdgeIndex]:
    index = await EdgeIndex.open(tmp_path / "index", encoder.dim)
    yield index
    await index.close()


async def test_an_index_of_its_own_is_filled_from_all_vectors_of_the_topic(
    encoder: Encoder, own_index: EdgeIndex, tmp_path: Path
) -> None:
    role = InterestsRole(
        common(encoder, tmp_path), own_index, cast(Any, RecordingProducer(1)), cast(Any, RecordingProducer(1))
    )
    assert not role.vectors.can_fetch
    assert not role._serving().is_index_ready, "not before the topic has been read"
    assert role._serving().catalog == {}
    await role.profiles.stop()


async def test_vectors_of_a_shared_index_are_fetched_when_they_are_missed(
    encoder: Encoder, tmp_path: Path
) -> None:
    index = cast(Any, SharedIndex())
    role = InterestsRole(
        common(encoder, tmp_path), index, cast(Any, RecordingProducer(1)), cast(Any, RecordingProducer(1))
    )
    assert role.vectors.can_fetch
    await role.profiles.stop()


async def test_probes_of_the_brokers_clock_are_no_trends(
    encoder: Encoder, own_index: EdgeIndex, tmp_path: Path
) -> None:
    given = common(encoder, tmp_path)
    role = InterestsRole(given, own_index, cast(Any, RecordingProducer(1)), cast(Any, RecordingProducer(1)))
    await given.clock.measure()
    probe, *_ = cast(Any, given.producer).records(given.topics.trends)
    await role._put_trends([probe])
    assert probe.key == PROBE_KEY
    assert role._trends.of(-1) is None
    await role.profiles.stop()


async def test_whatever_an_interests_worker_dates_or_lets_expire_goes_by_the_brokers_clock(
    encoder: Encoder, own_index: EdgeIndex, tmp_path: Path
) -> None:
    """A worker whose own clock is years ahead would erase every user as expired."""
    given = common(encoder, tmp_path)
    role = InterestsRole(given, own_index, given.producer, given.producer)
    for part in (role.profiles, role._clicks, role._requests, role._trends):
        assert cast(Any, part)._clock == given.clock.now_s
    await role.profiles.stop()


async def test_only_a_shared_index_is_written_by_the_catalog_role(
    encoder: Encoder, own_index: EdgeIndex, tmp_path: Path
) -> None:
    given, shared = common(encoder, tmp_path), cast(Any, SharedIndex())
    assert CatalogRole(given, shared).path._serving().index is shared
    assert CatalogRole(given, own_index).path._serving().index is None
    assert CatalogRole(given, None).path._serving().index is None


async def test_a_worker_of_both_roles_reads_the_vectors_topic_once(
    encoder: Encoder, own_index: EdgeIndex, tmp_path: Path
) -> None:
    given = common(encoder, tmp_path)
    interests = InterestsRole(given, own_index, given.producer, given.producer)
    catalog = CatalogRole(given, own_index)
    point = Point(item_key("tea"), "tea", np.ones(encoder.dim, np.float32), {}, None, 0, 0)
    sent = record_of(point, encoder.id, NOW_MS, 1)
    await interests._put_vectors([Record("vectors", 0, 0, NOW_MS, sent.key, sent.value, tuple(sent.headers))])
    assert catalog.path._holder(item_key("tea")) == "tea"
    assert await own_index.count() == 1
    assert not catalog._reads_vectors
    assert CatalogRole(given, None)._reads_vectors
    await interests.profiles.stop()


async def test_a_partition_without_its_state_waits_and_keeps_the_role_incomplete(
    encoder: Encoder, own_index: EdgeIndex, tmp_path: Path
) -> None:
    role = InterestsRole(
        common(encoder, tmp_path), own_index, cast(Any, RecordingProducer(1)), cast(Any, RecordingProducer(1))
    )
    assert role.is_complete
    partition = role.profiles._new_partition(3)
    partition.owned = True
    role.profiles.partitions[3] = partition
    assert role.waits(3)
    assert not role.is_complete
    partition.gate.open()
    assert not role.waits(3)
    assert role.is_complete
    await role.profiles.stop()


def bought(*items: str) -> Counts:
    counts = Counts()
    keys = np.array([item_key(item) for item in items], np.uint64)
    actions = np.full(len(items), ACTION_CODES["purchase"], np.uint8)
    counts.add(keys, actions, np.full(len(items), NOW_MS, np.int64))
    return counts


def test_counts_of_a_new_partition_go_on_from_what_its_last_owner_published() -> None:
    trends, counts = Trends(), {0: bought("tea")}
    trends.put(Trend(1, NOW_MS, HALF_LIFE_S, [("soap", 4.0)]))
    trends.put(Trend(0, NOW_MS, HALF_LIFE_S, [("old", 9.0)]))
    keep_counts(counts, {0, 1, 2}, trends)
    assert [key for key, _ in counts[0].top()] == [item_key("tea")], "a partition that stays counts on"
    assert counts[1].top() == [(item_key("soap"), 4.0)]
    assert len(counts[2]) == 0


def test_counts_of_new_items_go_on_too() -> None:
    """They are light, so what is popular does not name them."""
    trends, counts = Trends(), dict[int, Counts]()
    trends.put(Trend(1, NOW_MS, HALF_LIFE_S, [("soap", 4.0)], rising=[("new", 0.5)]))
    keep_counts(counts, {1}, trends)
    assert counts[1].top() == [(item_key("soap"), 4.0), (item_key("new"), 0.5)]


def test_counts_of_a_partition_that_has_gone_go_too() -> None:
    counts = {0: bought("tea"), 1: bought("soap")}
    keep_counts(counts, {1}, Trends())
    assert set(counts) == {1}


async def test_a_catalog_worker_sees_from_trends_that_interests_workers_have_another_bundle(
    encoder: Encoder, tmp_path: Path
) -> None:
    def record(key: bytes, value: bytes) -> ConsumerRecord:
        return ConsumerRecord("trends", 0, 0, 0, 0, key, value, None, 0, 0, ())

    def trend(bundle: str) -> ConsumerRecord:
        return record(b"1", encode(Trend(1, NOW_MS, HALF_LIFE_S, [], bundle=bundle)))

    role = CatalogRole(common(encoder, tmp_path), None)
    await role._compare_bundles([trend(encoder.id), trend("another"), record(PROBE_KEY, b"{}")])
    assert role.other_bundles == {"another"}
    await role._compare_bundles([record(PROBE_KEY, b"{}"), record(b"1", b"{")])
    assert role.other_bundles == {"another"}, "nothing that says otherwise"
    await role._compare_bundles([trend(encoder.id)])
    assert role.other_bundles == set()
    await role._compare_bundles([trend("")])
    assert role.other_bundles == set(), "a version that does not say"


def test_an_owner_of_a_partition_publishes_at_once_with_an_epoch_above_the_last_ones() -> None:
    trends = Trends()
    trends.put(Trend(1, NOW_MS, HALF_LIFE_S, [("soap", 4.0)], epoch=6))
    counts: dict[int, Counts] = {}
    keep_counts(counts, {0, 1}, trends)
    assert (counts[0].epoch, counts[1].epoch) == (0, 7)
    assert counts[0].changed
    assert counts[1].changed
    keep_counts(counts, {0, 1}, trends)
    assert counts[1].epoch == 7, "it stays the owner"


async def test_a_bad_trend_is_passed_over_and_a_stale_one_has_ours_published_again(
    encoder: Encoder, own_index: EdgeIndex, tmp_path: Path
) -> None:
    def record(trend: Trend) -> ConsumerRecord:
        return ConsumerRecord(
            "trends", 0, 0, 0, 0, str(trend.partition).encode(), encode(trend), None, 0, 0, ()
        )

    given = common(encoder, tmp_path)
    role = InterestsRole(given, own_index, given.producer, given.producer)
    role._clicks.counts[1] = Counts()
    await role._put_trends([record(Trend(1, NOW_MS, HALF_LIFE_S, [("soap", 4.0)], epoch=2))])
    assert not role._clicks.counts[1].changed
    zero = record(Trend(1, NOW_MS, 0.0, [("soap", 4.0)], epoch=3))
    await role._put_trends([zero])
    assert role._clicks.counts[1].changed, "compaction would keep the bad one instead of ours"
    role._clicks.counts[1].changed = False
    await role._put_trends([record(Trend(1, NOW_MS, HALF_LIFE_S, [("stale", 9.0)], epoch=1))])
    assert [item.item_id for item in role._trends.popular()] == ["soap"]
    assert role._clicks.counts[1].changed
    skipped = given.metrics.skipped_records_total
    assert [skipped.labels("trends", reason)._value.get() for reason in ("bad_half_life", "older")] == [1, 1]
    await role.profiles.stop()
