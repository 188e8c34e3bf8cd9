"""What a worker says of itself, from its start to its end."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import pytest_asyncio
from aiokafka import TopicPartition

from headwater.encoder.features import item_key
from headwater.index import IndexUnavailable, Point
from headwater.index.edge import EdgeIndex
from headwater.index.vectors_topic import payload_of
from headwater.kafka.broker_clock import BrokerClock
from headwater.kafka.consumer_group import GroupPosition
from headwater.kafka.partitioner import probe_user
from headwater.messages import Gap, Item
from headwater.metrics import Metrics
from headwater.profiles.order import Order
from headwater.profiles.sealed import Sealed
from headwater.settings import Settings
from headwater.worker.status import HELD_BACK_S, NoSuchUser, Status, keep_counting_items
from headwater.worker.watchdog import TO_COMMIT, TO_READ, Progress
from tests.support.interests_worker import InterestsWorker, until

SETTINGS = Settings(kafka_bootstrap_servers="127.0.0.1:1", topic_prefix="test.", partitions=1)


@pytest_asyncio.fixture
async def failed() -> "asyncio.Future[str]":
    return asyncio.get_running_loop().create_future()


class Group:
    """A consumer group as far as it is asked: its assignment, and how far each partition has come."""

    def __init__(self, *tps: TopicPartition) -> None:
        self.tps, self.is_assigned = set(tps), bool(tps)
        self.next_offsets: dict[TopicPartition, int] = {}
        self.ends: dict[TopicPartition, int] = {}
        self.held_back: dict[TopicPartition, int] = {}
        self.lost: dict[TopicPartition, Gap] = {}

    def gaps(self) -> dict[TopicPartition, Gap]:
        return self.lost

    def assignment(self) -> set[TopicPartition]:
        return self.tps

    def position(self, tp: TopicPartition) -> GroupPosition:
        done = self.next_offsets.get(tp)
        return GroupPosition(done, self.ends.get(tp), done or 0, 0, self.held_back.get(tp, 0))


class Shop:
    """A worker of the interests role without Kafka: its profiles, vectors and index are real."""

    other_bundles: frozenset[str] = frozenset()

    def __init__(self, status: Status, index: EdgeIndex) -> None:
        self.worker = InterestsWorker({"tea": "Green tea", "soap": "Hand soap"}, topic_prefix="test.")
        self.group, self.is_complete, self.waiting = Group(), True, False
        self.profiles, self.vectors, self.index = self.worker.profiles, self.worker.vectors, index
        status.index = index
        status.interests = cast(Any, self)

    def waits(self, partition: int) -> bool:
        return self.waiting


@pytest.fixture
def status(failed: "asyncio.Future[str]") -> Status:
    return Status(SETTINGS, "all", failed)


@pytest_asyncio.fixture
async def shop(status: Status, tmp_path: Path) -> AsyncIterator[Shop]:
    index = await EdgeIndex.open(tmp_path / "index", 2)
    vector, payload = np.ones(2, np.float32), payload_of(Item("tea", "Green tea"), 7)
    await index.put([Point(item_key("tea"), "tea", vector, payload, None, 0, 0)])
    shop = Shop(status, index)
    yield shop
    await shop.worker.close()
    await index.close()


async def test_a_worker_that_has_only_begun_is_well_and_not_ready(status: Status) -> None:
    said = status.health()
    assert (said["ok"], said["ready"], said["reason"]) == (True, False, None)
    assert (said["role"], said["partitions"], said["users"]) == ("all", {}, 0)
    assert (said["items"], said["graph"], said["index_away_s"]) == (None, None, None)


async def test_a_worker_that_has_to_stop_is_not_well_and_says_why(
    status: Status, failed: "asyncio.Future[str]"
) -> None:
    failed.set_result("clicks-2 stands still")
    said = status.health()
    assert (said["ok"], said["reason"]) == (False, "clicks-2 stands still")


async def test_health_counts_the_users_whose_state_a_newer_version_wrote(status: Status, shop: Shop) -> None:
    assert status.health()["newer_format_users"] == 0
    shop.worker.partition().sealed[b"ann"] = Sealed(Order(0, 3, 1), 0)
    assert status.health()["newer_format_users"] == 1


async def test_health_names_both_bundles_where_the_roles_differ(status: Status) -> None:
    status.bundle_id = "ours"
    status.catalog = cast(
        Any, SimpleNamespace(group=None, other_bundles=set(), path=SimpleNamespace(index_away_s=0.0))
    )
    assert status.health()["bundle_mismatch"] is None
    status.catalog.other_bundles = {"theirs"}
    said = status.health()
    assert said["ok"], "it goes on"
    assert "this worker has bundle ours, and the interests workers have theirs" in said["bundle_mismatch"]


async def test_health_says_by_how_much_the_clock_is_ahead_of_the_brokers(status: Status) -> None:
    assert status.health()["clock_skew_s"] is None
    status.clock = cast(BrokerClock, SimpleNamespace(skew_s=2.5004))
    assert status.health()["clock_skew_s"] == 2.5


async def test_health_counts_partitions_users_and_items(status: Status, shop: Shop) -> None:
    await shop.worker.apply(shop.worker.click("ann", "tea"), shop.worker.click("bob", "soap"))
    shop.worker.own(7, is_open=False)
    probe = probe_user(0, SETTINGS.partitions).decode()  # no user of the shop's
    await shop.worker.apply(shop.worker.click(probe, "nothing in the catalog"))
    said = status.health()
    assert said["partitions"] == {0: 2, 7: -1}
    assert said["opening"] == [7]
    assert (said["users"], said["items"], said["graph"]) == (2, 2, 0)
    assert status._pending_of(shop.worker.partition()) == 0
    assert shop.worker.partition().columns.pending.sum() == 1


async def test_figures_tell_how_far_each_partition_is_also_an_empty_one(status: Status, shop: Shop) -> None:
    clicks, catalog = TopicPartition("test.clicks.v1", 0), TopicPartition("test.catalog.v1", 3)
    shop.group = Group(clicks, catalog)
    probe = probe_user(0, SETTINGS.partitions).decode()
    await shop.worker.apply(shop.worker.click("ann", "tea"), shop.worker.click("bob", "nothing"))
    await shop.worker.apply(shop.worker.click(probe, "nothing"))
    empty = {"topic": clicks.topic, "partition": 0, "watermark": 2, "lag": 0, "still_s": 0.0}
    assert status.figures()["partitions"] == [empty], "nothing is known of the ends yet"
    shop.group.next_offsets, shop.group.ends = {clicks: 3, catalog: 5}, {clicks: 10, catalog: 5}
    said = status.figures()
    assert said["partitions"] == [
        {**empty, "lag": 7},
        {"topic": catalog.topic, "partition": 3, "watermark": 4, "lag": 0, "still_s": 0.0},
    ]
    assert (said["users"], said["items"], said["pending"]) == (2, 2, 1)


async def test_a_user_is_described_as_people_read_it(status: Status, shop: Shop) -> None:
    await shop.worker.apply(
        shop.worker.click("ann", "tea", action="purchase", event_id="first"),
        shop.worker.click("ann", "soap", event_id="second"),
    )
    said = await status.describe_user("ann")
    assert said is not None
    assert (said["user_id"], said["partition"], said["watermark"]) == ("ann", 0, 1)
    assert [(each["item_id"], each["title"], each["action"], each["pending"]) for each in said["events"]] == [
        ("tea", "Green tea", "purchase", False),
        (None, None, "click", True),
    ]
    assert (said["pending"], said["last_event_id"]) == (1, "second")


async def test_an_action_of_another_version_and_a_broken_event_id_are_told_as_they_are(
    status: Status, shop: Shop
) -> None:
    await shop.worker.apply(shop.worker.click("ann", "tea"))
    columns = shop.worker.partition().columns
    columns.action[0, 0], columns.last_event[0] = 15, b"\xff"
    said = await status.describe_user("ann")
    assert said is not None
    assert said["events"][0]["action"] == "action 15"
    assert said["last_event_id"] == "\N{REPLACEMENT CHARACTER}"


async def test_a_user_whom_nobody_has_clicked_for_is_not_there(status: Status, shop: Shop) -> None:
    with pytest.raises(NoSuchUser, match="has no events yet") as refused:
        await status.describe_user("nobody")
    assert refused.value.code == "unknown_user"


async def test_a_user_whom_a_newer_version_wrote_is_told_with_the_remedy(status: Status, shop: Shop) -> None:
    shop.worker.partition().sealed[b"ann"] = Sealed(Order(0, 3, 1), 0)
    with pytest.raises(NoSuchUser, match="run the version that wrote them") as refused:
        await status.describe_user("ann")
    assert refused.value.code == "newer_format"


async def test_a_catalog_worker_has_no_users(status: Status) -> None:
    with pytest.raises(NoSuchUser) as refused:
        await status.describe_user("ann")
    assert refused.value.code == "elsewhere"


async def test_items_are_described_by_their_ids(status: Status, shop: Shop) -> None:
    said = await status.describe_items(["tea", "unheard of"])
    assert {item_id: item["title"] for item_id, item in said.items()} == {"tea": "Green tea"}


async def test_an_index_that_is_away_costs_the_titles_and_nothing_else(status: Status, shop: Shop) -> None:
    class Away:
        async def items(self, keys: Any) -> Any:
            raise IndexUnavailable("it is away")

    await shop.worker.apply(shop.worker.click("ann", "tea"))
    shop.index = status.index = cast(Any, Away())
    said = await status.describe_user("ann")
    assert said is not None
    assert [each["title"] for each in said["events"]] == [None]
    assert await status.describe_items(["tea"]) == {}


async def test_progress_is_how_far_reading_and_committing_have_come(status: Status, shop: Shop) -> None:
    clicks, requests = TopicPartition("test.clicks.v1", 0), TopicPartition("test.requests.v1", 0)
    shop.group = Group(clicks, requests)
    assert {each.left for each in status.progress()} == {TO_COMMIT}, "nothing is known of the ends yet"
    shop.group.next_offsets = {clicks: 3, requests: 8}
    shop.group.ends = {clicks: 10, requests: 9}
    read = [each for each in status.progress() if each.left == TO_READ]
    assert read == [Progress(clicks.topic, 0, 3, 7)], "requests may be parked, so they are left out"
    shop.waiting = True
    assert [each.waits for each in status.progress() if each.left == TO_READ] == [True]


async def test_health_names_what_was_lost_and_what_an_open_transaction_holds_back(
    status: Status, shop: Shop
) -> None:
    clicks = TopicPartition("test.clicks.v1", 0)
    shop.group = Group(clicks)
    shop.group.next_offsets[clicks], shop.group.ends[clicks], shop.group.held_back[clicks] = 7, 7, 3
    shop.group.lost[clicks] = Gap(2, 4)
    status.note_held_back(100.0)
    assert status.health()["held_back_s"] == {}
    status.note_held_back(100.0 + HELD_BACK_S)
    assert status.health()["held_back_s"] == {"test.clicks.v1-0": HELD_BACK_S}
    assert status.health()["lost"] == {"test.clicks.v1-0": [2, 4]}
    assert status.health()["ok"] is True
    assert [each.lag for each in status.progress()] == [0, 0]
    shop.group.ends[clicks] = 8  # it goes on
    status.note_held_back(200.0)
    assert status.health()["held_back_s"] == {}


async def test_a_worker_is_complete_once_each_group_has_partitions_and_these_their_state(
    status: Status, shop: Shop
) -> None:
    assert not status.is_complete
    shop.group = Group(TopicPartition("test.clicks.v1", 0))
    assert status.is_complete
    shop.is_complete = False
    assert not status.is_complete


async def test_a_worker_without_a_partition_to_have_is_complete(status: Status, shop: Shop) -> None:
    shop.group.is_assigned = True
    assert status.is_complete


async def test_items_are_counted_again_and_again_also_after_the_index_was_away() -> None:
    class Flickering:
        asked = 0

        async def count(self) -> int:
            self.asked += 1
            if self.asked == 1:
                raise IndexUnavailable("it is away")
            return 12

    index, metrics = Flickering(), Metrics()
    counting = asyncio.ensure_future(keep_counting_items(metrics, cast(Any, index)))
    await until(lambda: b"headwater_index_points 12.0" in metrics.exposition())
    counting.cancel()
    await asyncio.gather(counting, return_exceptions=True)


async def test_a_worker_is_ready_while_it_serves_all_that_it_holds(
    status: Status, shop: Shop, failed: "asyncio.Future[str]"
) -> None:
    assert status.readiness() == {
        "ready": False,
        "waits_for": ["its partitions, from the broker", "its start to end"],
    }
    shop.group.is_assigned, shop.is_complete = True, False
    assert status.readiness()["waits_for"][0] == "the state of its partitions, which is being read"
    shop.is_complete = True
    status.ready.set()
    assert status.readiness() == {"ready": True, "waits_for": []}
    shop.is_complete = False  # a rebalance: it is still well, and not ready
    assert (status.health()["ok"], status.readiness()["ready"]) == (True, False)
    shop.is_complete = True
    failed.set_result("the broker refused")
    assert status.readiness() == {"ready": False, "waits_for": ["the broker refused"]}


async def test_gauges_tell_nothing_of_a_partition_that_is_lost(
    shop: Shop, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwater.worker.status._GAUGES_S", 0.01)
    kept, lost = TopicPartition("test.clicks.v1", 0), TopicPartition("test.clicks.v1", 1)
    shop.group.tps = {kept, lost}
    shop.group.next_offsets, shop.group.ends = {kept: 3, lost: 3}, {kept: 5, lost: 9}
    metrics, watchdog = Metrics(), SimpleNamespace(still_s=lambda topic, partition: 2.0)

    def told() -> dict[str, set[str]]:
        gauges = (metrics.lag, metrics.held_back, metrics.watermark_age_seconds)
        return {
            each.name: {sample.labels["partition"] for sample in each.samples}
            for gauge in gauges
            for each in gauge.collect()
        }

    task = asyncio.create_task(status.keep_gauges(metrics, cast(Any, watchdog)))
    await asyncio.sleep(0.1)
    assert set(map(frozenset, told().values())) == {frozenset({"0", "1"})}
    shop.group.tps = {kept}
    await asyncio.sleep(0.1)
    task.cancel()
    assert len(told()) == 3
    assert set(map(frozenset, told().values())) == {frozenset({"0"})}
