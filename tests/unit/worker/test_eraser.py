"""A forget comes to its end: the user's dead letters are taken out and a receipt says so, whatever happens to the worker."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

import msgspec
import pytest
import pytest_asyncio
from aiokafka import ConsumerRecord

from headwater.errors import StopWorker
from headwater.kafka import topics
from headwater.kafka.dead_letters import DeadLetter, DeadLetters
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.publish import Outgoing, producer_of, write_all
from headwater.kafka.topics import Topics
from headwater.messages import Click, ErasureReceipt
from headwater.metrics import Metrics
from headwater.settings import Settings
from headwater.worker import eraser
from headwater.worker.eraser import Eraser, gone_by_ms, hashed

DAY_MS = 86_400_000
NAMES = Topics.named("headwater.")
OF_ITEMS = {NAMES.catalog.encode(), NAMES.offers.encode()}


def letter(
    original: bytes | None, value: bytes | None, topic: str = NAMES.clicks, key: bytes = b"clicks/0/1"
) -> ConsumerRecord:
    headers = [("reason", b"bad_json"), ("topic", topic.encode())]
    if original is not None:
        headers.append(("key", original))
    return ConsumerRecord(NAMES.dead_letters, 0, 0, 0, 0, key, value, None, 0, 0, tuple(headers))


def found(letter: ConsumerRecord, *users: str) -> list[str]:
    names = {hashed(user): user for user in users}
    return [names[user] for user, key in eraser._letters_of(names, [letter], OF_ITEMS) if key == letter.key]


@pytest.mark.parametrize(
    ("original", "value"),
    [
        (b"ann", b"{"),
        (b"ann", None),
        (None, b'{"user_id": "ann", "action": "stroke"}'),
        (b"bob", b'{"user_id": "ann"}'),  # the message is another user's than its key
        (None, b'{"event_id": "e", "user_id": "ann", "item_id"'),  # cut
        (None, b'{"user": "ann"}'),
        (None, b'["\\u0061nn"'),
        (None, b"[" * 100_000 + b'"ann"'),
    ],
)
def test_a_dead_letter_that_names_the_user_is_found(original: bytes | None, value: bytes | None) -> None:
    assert found(letter(original, value), "ann", "carl") == ["ann"]


@pytest.mark.parametrize("sent", [b"ann", b'{"shopper": "ann"}', b'["\\u0061nn"'])
def test_a_dead_letter_whose_original_had_the_user_in_a_header_is_found(sent: bytes) -> None:
    of_bob = letter(b"bob", b'{"user_id": "bob"}')
    of_bob.headers += (("original.shopper", sent),)
    assert found(of_bob, "ann", "carl") == ["ann"]


@pytest.mark.parametrize(
    ("original", "value", "topic"),
    [
        (b"bob", b'{"user_id": "bob", "item_id": "ann"}', NAMES.clicks),  # an item of that name
        (b"anna", b"{", NAMES.clicks),
        (b"ann", b'{"item_id": "ann"}', NAMES.catalog),
        (b"ann", b'{"item_id": "ann"}', NAMES.offers),
        (b"\xff", b"\xff", NAMES.clicks),
        (None, None, NAMES.clicks),
    ],
)
def test_what_is_of_others_stays(original: bytes | None, value: bytes | None, topic: str) -> None:
    assert found(letter(original, value, topic), "ann") == []


def test_letters_of_earlier_versions_have_the_users_key_themselves() -> None:
    assert found(letter(None, b"{", key=b"ann"), "ann") == ["ann"]


def test_what_is_taken_out_already_is_not_taken_out_again() -> None:
    gone = ConsumerRecord(NAMES.dead_letters, 0, 0, 0, 0, b"ann", None, None, 0, 0, ())
    assert eraser._letters_of({hashed("ann")}, [gone], OF_ITEMS) == []


def as_created(**settings: float) -> dict[str, dict[str, str]]:
    return {
        spec.name: {"segment.ms": str(7 * DAY_MS), **spec.config}
        for spec in topics.specs(Settings(**cast(Any, settings)))
    }


def test_each_topic_with_users_has_a_bound() -> None:
    bounds = gone_by_ms(NAMES, as_created(clicks_retention_days=3), 0)
    assert set(bounds) == {
        NAMES.clicks,
        NAMES.requests,
        NAMES.responses,
        NAMES.profiles,
        NAMES.dead_letters,
    }
    assert bounds[NAMES.profiles] == bounds[NAMES.dead_letters] == DAY_MS + 3_600_000
    assert bounds[NAMES.clicks] == 4 * DAY_MS + 3_600_000


def test_a_receipt_promises_what_the_topics_of_the_broker_keep() -> None:
    configs = as_created(clicks_retention_days=3)
    configs[NAMES.clicks]["retention.ms"] = "-1"
    configs[NAMES.requests].update({"retention.ms": str(9 * DAY_MS), "segment.ms": str(DAY_MS)})
    configs[NAMES.profiles]["max.compaction.lag.ms"] = str(2**63 - 1)
    configs[NAMES.dead_letters]["max.compaction.lag.ms"] = str(2 * DAY_MS)
    del configs[NAMES.responses]
    bounds = gone_by_ms(NAMES, configs, 0)
    assert set(bounds) == {NAMES.requests, NAMES.dead_letters}
    assert bounds[NAMES.requests] == 10 * DAY_MS + 3_600_000
    assert (
        bounds[NAMES.dead_letters] == 29 * DAY_MS + 3_600_000
    )  # deleted with age, and not compacted in time


class Place:
    """Topics on a broker, and erasers of workers that come and go."""

    def __init__(self, settings: Settings, producer: Producer) -> None:
        self.settings, self.producer, self.metrics = settings, producer, Metrics()
        self.names = Topics.named(settings.topic_prefix)
        self.closed: list[int] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def _close_segment(self, partition: int) -> None:
        self.closed.append(partition)

    def eraser(self, *partitions: int) -> Eraser:
        made = Eraser(self.settings, self.producer, self.metrics, self._close_segment)
        made.assign(partitions)
        return made

    def run(self, which: Eraser) -> "asyncio.Task[None]":
        task = asyncio.create_task(which.run())
        self._tasks.append(task)
        return task

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def bad_clicks(self, *users: str) -> None:
        letters = DeadLetters(self.producer, self.names.dead_letters, self.metrics)
        records = [
            ConsumerRecord(self.names.clicks, 1, offset, 0, 0, user.encode(), b"{", None, 0, 0, ())
            for offset, user in enumerate(users)
        ]
        await letters.put([DeadLetter(record, "bad_json", "no JSON") for record in records])

    async def newest(self, topic: str) -> dict[bytes | None, bytes | None]:
        """The topic as compaction leaves it."""
        records: list[ConsumerRecord] = []
        async for run in self.eraser()._all_of(topic):
            records += run
        return {record.key: record.value for record in records}

    async def receipts(self) -> list[ErasureReceipt]:
        newest = await self.newest(self.names.erasures)
        return [msgspec.json.decode(value or b"", type=ErasureReceipt) for value in newest.values()]

    async def until_done(self, count: int) -> list[ErasureReceipt]:
        async with asyncio.timeout(60):
            while True:
                done = [receipt for receipt in await self.receipts() if receipt.status == "done"]
                if len(done) == count:
                    return done
                await asyncio.sleep(0.1)


@pytest_asyncio.fixture
async def place(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    monkeypatch.setattr(eraser, "SETTLE_S", 0.0)
    monkeypatch.setattr(eraser, "_RETRY_S", 0.1)
    await topics.create(settings)
    producer = producer_of(settings)
    await producer.start()
    place = Place(settings, producer)
    yield place
    await place.stop()
    await producer.stop()


def forget(user: str, event_id: str = "gone") -> Click:
    return Click(event_id, user, 5_000, action="forget")


async def test_a_forget_takes_out_the_users_letters_and_leaves_a_receipt(place: Place) -> None:
    await place.bad_clicks("ann", "bob", "ann")
    mine = place.eraser(2)
    place.run(mine)
    await mine.begin(2, [forget("ann")])
    assert "erasures_open 1.0" in place.metrics.exposition().decode()
    [receipt] = await place.until_done(1)
    assert (receipt.event_id, receipt.user_sha256, receipt.partition) == ("gone", hashed("ann"), 2)
    assert (receipt.forgot_ms, receipt.dead_letters) == (5_000, 2)
    assert receipt.done_ms is not None
    assert receipt.begun_ms <= receipt.done_ms < min(receipt.gone_by_ms.values())
    letters = await place.newest(place.names.dead_letters)
    kept = {key: value for key, value in letters.items() if value is not None}
    assert kept == {f"{place.names.clicks}/1/1".encode(): b"{"}
    raw = json.dumps([str(each) for each in (await place.newest(place.names.erasures)).items()])
    assert "ann" not in raw.replace(hashed("ann"), "")
    assert "erasures_open 0.0" in place.metrics.exposition().decode()


async def test_what_a_worker_began_the_next_owner_of_the_partition_ends(place: Place) -> None:
    await place.bad_clicks("ann")
    await place.eraser(2).begin(2, [forget("ann")])  # and dies
    other = place.eraser(1)
    place.run(other)
    await other.begin(1, [forget("bob")])
    [first] = await place.until_done(1)
    assert first.user_sha256 == hashed("bob")
    place.run(place.eraser(2))
    assert {receipt.user_sha256 for receipt in await place.until_done(2)} == {hashed("ann"), hashed("bob")}


async def test_the_end_of_a_log_is_closed_so_that_it_is_compacted_in_time(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics, "COMPACTION_LAG_MS", 1)
    mine = place.eraser(3)
    place.run(mine)
    await mine.begin(3, [forget("ann")])
    await place.until_done(1)
    async with asyncio.timeout(60):
        while not place.closed:
            await asyncio.sleep(0.05)
    assert place.closed == [3]
    async with asyncio.timeout(60):
        while eraser._CLOSING_KEY not in await place.newest(place.names.dead_letters):
            await asyncio.sleep(0.05)


async def test_a_successor_closes_what_its_predecessor_would_have(place: Place) -> None:
    mine = place.eraser(3)
    place.run(mine)
    await mine.begin(3, [forget("ann")])
    await place.until_done(1)
    successor = place.eraser(3)
    await successor._read_receipts()
    assert [each.partition for each in successor._closings] == [3]


async def test_what_was_due_while_a_partition_had_no_owner_is_closed_by_the_next_one(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = place.eraser(3)
    place.run(mine)
    await mine.begin(3, [forget("ann")])
    await place.until_done(1)
    monkeypatch.setattr(topics, "COMPACTION_LAG_MS", 0)
    successor = place.eraser(3)
    await successor._read_receipts()
    await successor._close_segments()
    assert place.closed == [3]
    assert eraser._CLOSING_KEY in await place.newest(place.names.dead_letters)


async def test_a_worker_counts_no_erasure_of_a_partition_that_it_has_lost(place: Place) -> None:
    mine = place.eraser(2)
    await mine.begin(2, [forget("ann")])
    mine.assign([1])
    assert "erasures_open 0.0" in place.metrics.exposition().decode()
    assert mine._open == {}


async def test_nothing_that_lies_on_the_topic_of_receipts_ends_a_worker(place: Place) -> None:
    odd = (None, b"", b"{", b"\xff", b"[" * 10_000, b'{"partition": 3}')
    records = [Outgoing(f"{number}".encode(), value) for number, value in enumerate(odd)]
    await write_all(place.producer, place.names.erasures, 0, records)
    mine = place.eraser(3)
    task = place.run(mine)
    await mine.begin(3, [forget("ann")])
    async with asyncio.timeout(60):
        while mine._open:
            await asyncio.sleep(0.05)
    assert not task.done()


async def test_a_broker_that_refuses_is_asked_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = [StopWorker("no right to write"), StopWorker("still none")]
    write: Callable[..., object] = eraser.write_all

    async def refusing(producer: Producer, topic: str, partition: int, records: Sequence[Outgoing]) -> object:
        if topic == place.names.dead_letters and refusals:
            raise refusals.pop()
        return await write(producer, topic, partition, records)  # type: ignore[misc]

    await place.bad_clicks("ann")
    monkeypatch.setattr(eraser, "write_all", refusing)
    mine = place.eraser(0)
    place.run(mine)
    await mine.begin(0, [forget("ann")])
    [receipt] = await place.until_done(1)
    assert not refusals
    assert receipt.dead_letters == 1
