"""What is known of users never goes back in time, and who is erased stays erased: through groups that are deleted or
expire, logs that are restored, and writes that come late."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import DeleteGroupsRequest

from headwater.kafka import topics
from headwater.kafka.epochs import CLAIM_KEY, MAX_EPOCH, claim_record
from headwater.kafka.headers import CLAIM, Claim
from headwater.kafka.topics import Topics
from headwater.settings import Settings
from tests.conftest import new_topic_prefix, skipping_where_no_kafka_can_run
from tests.end_to_end.conftest import System
from tests.end_to_end.oracle import applied
from tests.end_to_end.outside import PATIENCE_S, Outside
from tests.end_to_end.worker_process import WorkerProcess, finished
from tests.faults.proxy import ProduceProxy, Weather
from tests.faults.scale import IS_FULL, TIMEOUT_S
from tests.support.kafka_server import KafkaNode, Listener, own_node

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S)]

# Generations that the group has seen before it begins at 1 again.
_LIVES = 3


@pytest_asyncio.fixture
async def proxy() -> AsyncIterator[ProduceProxy]:
    async with ProduceProxy() as proxy:
        yield proxy


@pytest.fixture
def node(proxy: ProduceProxy) -> Iterator[KafkaNode]:
    # A group of which nobody is left loses its offsets after a minute; Kafka knows nothing shorter.
    expiring = {"offsets.retention.minutes": 1, "offsets.retention.check.interval.ms": 1_000}
    listeners = [Listener("PROXIED", told_port=proxy.port)]
    with (
        skipping_where_no_kafka_can_run(),
        own_node(listeners, properties=expiring if IS_FULL else {}) as node,
    ):
        proxy.broker_port = node.port("PROXIED")
        yield node


@pytest.fixture
def broker(node: KafkaNode) -> str:
    return node.servers


async def restart(worker: WorkerProcess) -> None:
    assert await asyncio.to_thread(worker.stop) == 0
    await asyncio.to_thread(worker.start)


async def events_of(outside: Outside, *users: str) -> list[int]:
    """How many events the answers to these users rest on, which demand the last click."""
    await applied(outside)
    return [(await outside.ask(user, limit=1))["reflects"]["events"] for user in users]


async def click(outside: Outside, user: str, count: int) -> None:
    for number in range(count):
        await outside.click(user, f"coffee-{1 + number % 5}")


async def delete_group(settings: Settings, outside: Outside) -> None:
    admin = AIOKafkaAdminClient(**settings.kafka_options())
    await admin.start()

    async def is_deleted() -> bool:
        answer = await admin._send_request(DeleteGroupsRequest([settings.interests_group]))
        return answer.results[0][1] == 0  # it takes a moment until the last member is known to have left

    try:
        await outside.until("the group is deleted", is_deleted)
    finally:
        await admin.close()


async def expired(settings: Settings, outside: Outside) -> None:
    """Wait until the broker itself has dropped the group's offsets."""
    for _ in range(10):
        if not await outside.committed(settings.interests_group, outside.topics.clicks):
            return
        await asyncio.sleep(20)
    raise AssertionError("the offsets did not expire")


@pytest.mark.parametrize(
    "lose_group",
    [
        delete_group,
        pytest.param(
            expired, marks=pytest.mark.skipif(not IS_FULL, reason="takes minutes: with `make faults`")
        ),
    ],
)
async def test_a_group_that_begins_anew_takes_nobody_back(
    new_system: Callable[..., System], lose_group: Callable[[Settings, Outside], Any]
) -> None:
    system = new_system()
    worker = system.worker
    async with system.stocked() as outside:
        ann, gone, going = (outside.own(name) for name in ("ann", "gone", "going"))
        for _ in range(_LIVES):
            await restart(worker)
        for user in (ann, gone, going):
            await click(outside, user, 4)
        await outside.click(gone, "", "forget")
        assert await events_of(outside, ann, gone, going) == [4, 0, 4]
        assert await asyncio.to_thread(worker.stop) == 0

        await lose_group(system.settings, outside)
        await asyncio.to_thread(worker.start)
        assert await events_of(outside, ann, gone, going) == [4, 0, 4]
        await click(outside, ann, 5)
        await outside.click(going, "", "forget")
        assert await events_of(outside, ann, gone, going) == [9, 0, 0]
        for _ in range(2):
            await restart(worker)
            assert await events_of(outside, ann, gone, going) == [9, 0, 0]


async def test_topics_restored_elsewhere_are_told_and_accepted_without_losing_a_user(
    new_system: Callable[..., System], own_topics: Settings
) -> None:
    system = new_system()
    prefix = new_topic_prefix()
    async with system.stocked() as outside:
        ann, bob, gone = (outside.own(name) for name in ("ann", "bob", "gone"))
        for user in (ann, bob, gone):
            await click(outside, user, 6)
        await outside.click(gone, "", "forget")
        assert await events_of(outside, ann, bob, gone) == [6, 6, 0]
        assert await asyncio.to_thread(system.worker.stop) == 0
        restored = system.settings.model_copy(update={"topic_prefix": prefix})
        await topics.create(restored)
        for name, skipped in (("profiles", 0), ("clicks", 4)):  # the oldest clicks are past their retention
            await copy(outside, getattr(outside.topics, name), getattr(Topics.named(prefix), name), skipped)

    elsewhere = System(restored, system.worker)
    worker = elsewhere.worker
    worker.settings["topic_prefix"] = prefix
    worker.launch()
    assert await asyncio.to_thread(worker.exit_code, 5 * PATIENCE_S) == 1
    assert "headwater topics accept" in worker.last_words()
    done = await asyncio.to_thread(finished, worker.home, "topics", "accept", **worker.settings)
    assert done.returncode == 0, done.stderr
    assert f"accepted partition {restored.partitions - 1}" in done.stdout
    async with elsewhere.stocked() as outside:
        assert await events_of(outside, ann, bob, gone) == [6, 6, 0]
        await click(outside, ann, 3)
        await click(outside, gone, 1)
        for _ in range(2):
            assert await events_of(outside, ann, bob, gone) == [9, 6, 1]
            await restart(worker)


async def copy(outside: Outside, source: str, target: str, skipped: int) -> None:
    """As a mirror does it: each partition in order, with offsets of its own."""
    records = [each for each in await outside.records_of(source) if each.offset >= skipped]
    async with AIOKafkaProducer(**outside.settings.kafka_options()) as producer:
        sent = [
            await producer.send(
                target,
                each.value,
                key=each.key,
                partition=each.partition,
                headers=list(each.headers),
                timestamp_ms=each.timestamp,
            )
            for each in records
        ]
        await asyncio.gather(*sent)


async def test_logs_that_lost_their_end_and_have_grown_again_are_told_and_what_is_in_them_is_read(
    new_system: Callable[..., System], node: KafkaNode
) -> None:
    """As after an unclean election: topics have their ids, and other records at offsets that were committed.

    Clicks have to be accepted, and changes of the catalog are read by themselves.
    """
    system = new_system()
    worker = system.worker
    async with system.stocked() as outside:
        ann = outside.own("ann")
        place = await outside.click(ann, "coffee-1")
        await click(outside, ann, 5)
        assert await events_of(outside, ann) == [6]
        shelf = {"category": outside.own("shelf")}
        lost = await outside.put(outside.item_at(0, "lost"), title="lost lamp", **shelf)
        await outside.catalog_applied([lost])
        assert await asyncio.to_thread(worker.stop) == 0
        home, cut = place["partition"], place["offset"] + 3
        await asyncio.to_thread(node.kill)
        cut_log(node.home / "logs" / f"{outside.topics.clicks}-{home}", cut)
        cut_log(node.home / "logs" / f"{outside.topics.catalog}-0", lost.offset)
        await asyncio.to_thread(node.start)
        await click(outside, ann, 8)
        lamps = [outside.item_at(0, name) for name in ("oil", "desk", "floor")]
        put = [await outside.put(lamp, title="reading lamp", **shelf) for lamp in lamps]
        assert put[0].offset == lost.offset
        worker.launch()
        assert await asyncio.to_thread(worker.exit_code, 5 * PATIENCE_S) == 1
        assert "headwater topics accept" in worker.last_words()
        done = await asyncio.to_thread(finished, worker.home, "topics", "accept", **worker.settings)
        assert done.returncode == 0, done.stderr
        assert f"accepted partition {home}, which is read from offset {cut} on" in done.stdout
        await asyncio.to_thread(worker.start)
        for _ in range(2):
            assert await events_of(outside, ann) == [14]
            gap = (await outside.ask(ann, limit=1))["reflects"]["gap"]
            assert gap == {"first": cut, "last": cut + 7}
            await outside.catalog_applied(put)
            found = await outside.items(ann, query="a lamp", limit=100, filter=shelf)
            assert set(lamps) <= set(found)
            await restart(worker)


def cut_log(folder: Path, offset: int) -> None:
    """Cut the log of a partition before a batch, while no broker runs."""
    segment = next(folder.glob("*.log"))
    raw, at = segment.read_bytes(), 0
    while int.from_bytes(raw[at : at + 8], "big") < offset:
        at += 12 + int.from_bytes(raw[at + 8 : at + 12], "big")
    segment.write_bytes(raw[:at])


async def test_a_late_copy_of_a_write_is_not_taken_though_its_owner_dies_at_once(
    proxy: ProduceProxy, new_system: Callable[..., System]
) -> None:
    system = new_system(kafka_bootstrap_servers=f"127.0.0.1:{proxy.port}")
    worker = system.worker
    async with system.stocked() as outside:
        ann = outside.own("ann")
        await click(outside, ann, 1)
        assert await events_of(outside, ann) == [1]
        proxy.weather = Weather.LATE
        clicking = asyncio.create_task(click(outside, ann, 1))
        await proxy.has_met(1)
        proxy.weather = Weather.FAIR
        await clicking
        await click(outside, ann, 4)
        assert await events_of(outside, ann) == [6]
        written = await states_of(outside, ann)
        assert await proxy.deliver_late() > 0
        await asyncio.to_thread(worker.kill)
        assert await states_of(outside, ann) == written
        await asyncio.to_thread(worker.start)
        assert await events_of(outside, ann) == [6]


async def test_an_older_state_at_the_end_of_the_changelog_does_not_win_and_is_overwritten(
    new_system: Callable[..., System],
) -> None:
    """As a copy of an own write, or the write of an owner that was frozen, leaves it there with nobody to repair it."""
    system = new_system()
    worker = system.worker
    async with system.stocked() as outside:
        ann, gone = outside.own("ann"), outside.own("gone")
        for user in (ann, gone):
            await click(outside, user, 2)
        assert await events_of(outside, ann, gone) == [2, 2]
        old = {user: (await states_of(outside, user))[-1] for user in (ann, gone)}
        await click(outside, ann, 4)
        await outside.click(gone, "", "forget")
        assert await events_of(outside, ann, gone) == [6, 0]
        await asyncio.to_thread(worker.kill)
        for user, value in old.items():
            await outside.send(outside.topics.profiles, value, key=user.encode())
        await asyncio.to_thread(worker.start)
        assert await events_of(outside, ann, gone) == [6, 0]

        async def is_repaired() -> bool:
            newest = [(await states_of(outside, user))[-1] for user in (ann, gone)]
            return newest[0] not in (None, old[ann]) and newest[1] is None

        await outside.until("both are written again", is_repaired)


async def states_of(outside: Outside, user: str) -> Sequence[bytes | None]:
    """The user's records in the changelog, in order."""
    records = await outside.records_of(outside.topics.profiles)
    return [each.value for each in records if each.key == user.encode()]


async def test_claims_of_somebody_who_owns_nothing_end_no_worker_and_are_out_claimed(
    new_system: Callable[..., System],
) -> None:
    """Of other logs and beyond the end of ours; while the worker runs, and before it starts."""
    system = new_system()
    worker = system.worker
    async with system.stocked() as outside:
        ann = outside.own("ann")
        await click(outside, ann, 2)
        assert await events_of(outside, ann) == [2]

        async def forge(claim: Claim) -> dict[str, int]:
            """The offset on each topic."""
            forged = claim_record(claim, b'{"bundle": "forged"}')
            stored = {}
            for topic in (outside.topics.vectors, outside.topics.profiles):
                place = await outside.send(
                    topic, forged.value, key=forged.key, partition=0, headers=forged.headers
                )
                stored[topic] = place.offset
            return stored

        async def are_out_claimed(stored: dict[str, int]) -> bool:
            for topic, offset in stored.items():
                records = [each for each in await outside.records_of(topic) if each.partition == 0]
                claims = {each.offset: CLAIM.of(each.headers) for each in records if each.key == CLAIM_KEY}
                newest = claims[max(claims)]
                if not isinstance(newest, Claim) or max(claims) == offset or newest.topic_id == "forged":
                    return False
            return True

        for claim in (
            Claim(100, 9, 2**62, "forged"),
            Claim(MAX_EPOCH - 9, 0, 2**63 - 1, None),
            Claim(2, 0, 5, "forged"),
        ):
            stored = await forge(claim)
            await outside.until("ours is the newest claim", partial(are_out_claimed, stored))
        await click(outside, ann, 1)
        assert await events_of(outside, ann) == [3]

        assert await asyncio.to_thread(worker.stop) == 0
        stored = await forge(Claim(MAX_EPOCH, 0, 2**62, "forged"))
        await asyncio.to_thread(worker.start)
        await outside.until("ours is the newest claim", partial(are_out_claimed, stored))
        await click(outside, ann, 1)
        assert await events_of(outside, ann) == [4]
