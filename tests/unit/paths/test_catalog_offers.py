"""The path of offers without Kafka: what reaches the index and the vectors topic, what waits, and what is refused."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaConnectionError

from headwater.encoder import runtime as encoders
from headwater.encoder.features import item_key
from headwater.encoder.runtime import Encoder
from headwater.errors import PartitionLost, StopWorker
from headwater.index.edge import EdgeIndex
from headwater.index.item_vectors import ItemVectors
from headwater.index.vectors_follower import VectorsFollower
from headwater.index.vectors_topic import OfferRecord, offer_record_of, read_record
from headwater.kafka.batch import Batch
from headwater.messages import Offer, OfferState
from headwater.paths import catalog_offers, catalog_repair, item_offers
from headwater.paths.item_versions import ItemVersions
from headwater.paths.restored_versions import Restored
from tests.support.interests_worker import STARTER, until
from tests.unit.paths.test_catalog import COFFEE, TEA, CatalogWorker, Written, repaired

pytestmark = pytest.mark.asyncio(loop_scope="module")

PUBLISHED_MS = 1_700_000_000_000  # of every catalog record of `CatalogWorker`


@pytest.fixture(scope="module")
def starter() -> Encoder:
    return encoders.load(STARTER)


@pytest_asyncio.fixture(loop_scope="module")
async def worker(starter: Encoder, tmp_path: Path) -> AsyncIterator[CatalogWorker]:
    worker = CatalogWorker(starter, await EdgeIndex.open(tmp_path / "index", starter.dim))
    yield worker
    await worker.close()


def offer(worker: CatalogWorker, item_id: str, *, after_ms: int = 1_000, **fields: Any) -> ConsumerRecord:
    """A record of offers, that long after the item's."""
    value = json.dumps({"item_id": item_id, **fields}).encode() if fields else None
    return raw(worker, item_id.encode(), value, after_ms)


def raw(
    worker: CatalogWorker, key: bytes | None, value: bytes | None, after_ms: int = 1_000
) -> ConsumerRecord:
    worker._offset += 1
    at_ms = PUBLISHED_MS + after_ms
    return ConsumerRecord(worker.topics.offers, 0, worker._offset, at_ms, 0, key, value, None, 0, 0, ())


async def apply(worker: CatalogWorker, *records: ConsumerRecord) -> Batch:
    batch = Batch(cast(Any, worker.consumer), TopicPartition(worker.topics.offers, 0), records, 1)
    await worker.path.offers.handle(batch)
    return batch


async def held(worker: CatalogWorker, item_id: str = TEA) -> tuple[Any, Any, Any]:
    """Price, availability and attributes as the index has them."""
    assert worker.index is not None
    found = (await worker.index.items([item_key(item_id)]))[item_key(item_id)]
    assert found["title"] == item_id, "no offer touches the text"
    return found["price"], found["available"], found["attributes"]


def states(worker: CatalogWorker) -> dict[str, OfferState | None]:
    """As the vectors topic has them."""
    read = map(read_record, worker.producer.latest(worker.topics.vectors).values())
    return {each.item_id: each.state for each in read if isinstance(each, OfferRecord)}


def ignored(worker: CatalogWorker, reason: str) -> float:
    value: float = worker.metrics.offers_ignored_total.labels(reason)._value.get()
    return value


async def test_an_offer_changes_price_and_availability_and_encodes_nothing(
    worker: CatalogWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await worker.apply(worker.item(TEA, price=3.5, attributes={"colour": "green"}))
    monkeypatch.setattr(worker.encoder, "encode_items", lambda *_: pytest.fail("a text is encoded"))
    written = len(worker.vectors())
    batch = await apply(
        worker, offer(worker, TEA, price=2.0), offer(worker, TEA, available=False, attributes={"stock": 0.0})
    )
    assert await held(worker) == (2.0, False, {"colour": "green", "stock": 0.0})
    assert worker.consumer.finished[-1] is batch
    assert len(worker.vectors()) == written, "the item's own record stands"
    assert [record.key for record in worker.producer.records(worker.topics.vectors)][-1] == b"\xffoffers:tea"
    assert worker.metrics.offers_total._value.get() == 2


async def test_an_older_offer_loses_and_is_counted(worker: CatalogWorker) -> None:
    await worker.apply(worker.item(TEA, price=3.5))
    await apply(worker, offer(worker, TEA, price=2.0, after_ms=5_000))
    late = offer(worker, TEA, price=9.0, after_ms=6_000, at_ms=PUBLISHED_MS + 4_000)
    await apply(worker, late)
    assert (await held(worker))[0] == 2.0
    assert (ignored(worker, "older"), ignored(worker, "repeated")) == (1, 0)
    await apply(worker, offer(worker, TEA, price=2.0, after_ms=5_000))
    assert (ignored(worker, "older"), ignored(worker, "repeated")) == (1, 1)


async def test_an_offer_dated_ahead_counts_as_of_its_record(worker: CatalogWorker) -> None:
    await worker.apply(worker.item(TEA, price=3.5))
    await apply(worker, offer(worker, TEA, price=2.0, at_ms=PUBLISHED_MS + 86_400_000))
    await apply(worker, offer(worker, TEA, price=1.0, after_ms=1_001))
    assert (await held(worker))[0] == 1.0


async def test_a_newer_item_record_decides_what_it_states_and_keeps_the_rest_as_offered(
    worker: CatalogWorker,
) -> None:
    await worker.apply(worker.item(TEA, price=3.5))
    stated = offer(worker, TEA, price=2.0, available=False, after_ms=-2_000)
    await apply(worker, stated)
    assert await held(worker) == (3.5, False, {}), "the record states a price, and no availability"
    await worker.apply(worker.item(TEA))
    assert await held(worker) == (2.0, False, {})
    await worker.apply(worker.item(TEA, available=True))
    assert await held(worker) == (2.0, True, {})


async def test_an_offer_that_comes_before_its_item_waits_for_it(worker: CatalogWorker) -> None:
    await apply(worker, offer(worker, TEA, available=False))
    assert worker.path.offers_without_item == 1
    assert worker.index is not None
    assert await worker.index.count() == 0
    await worker.apply(worker.item(TEA, price=3.5))
    assert await held(worker) == (3.5, False, {})
    assert worker.path.offers_without_item == 0


async def test_a_withdrawal_brings_back_what_the_record_says(worker: CatalogWorker) -> None:
    await worker.apply(worker.item(TEA, price=3.5))
    await apply(worker, offer(worker, TEA, price=2.0), offer(worker, TEA, after_ms=1_001))
    assert await held(worker) == (3.5, True, {})
    nothing = len(states(worker))
    await apply(worker, offer(worker, COFFEE))
    assert len(states(worker)) == nothing, "nothing is kept of an item that nobody knows"


async def test_offers_go_with_their_item_before_its_delete_is_written(worker: CatalogWorker) -> None:
    await worker.apply(worker.item(TEA, price=3.5), worker.item(COFFEE))
    await apply(
        worker,
        offer(worker, TEA, price=2.0, after_ms=-1),
        offer(worker, COFFEE, price=2.0, after_ms=-1),
        offer(worker, COFFEE, available=False, after_ms=5_000),
    )
    await worker.apply(worker.delete(TEA), worker.delete(COFFEE))
    left = states(worker)
    assert left[TEA] is None
    assert left[COFFEE] is not None
    assert (left[COFFEE].price, left[COFFEE].available) == (None, False), "it is newer than the delete"
    keys = [record.key for record in worker.producer.records(worker.topics.vectors)]
    assert keys.index(b"tea", keys.index(b"\xffoffers:tea") + 1) > max(
        place for place, key in enumerate(keys) if key == b"\xffoffers:tea"
    )
    await worker.apply(worker.item(TEA), worker.item(COFFEE))
    assert (await held(worker))[:2] == (None, True)
    assert (await held(worker, COFFEE))[:2] == (None, False)


async def test_the_next_owner_knows_the_offers_from_the_vectors_topic(worker: CatalogWorker) -> None:
    await worker.apply(worker.item(TEA, price=3.5))
    await apply(worker, offer(worker, TEA, price=2.0, after_ms=5_000), offer(worker, COFFEE, available=False))
    worker.own()
    await apply(worker, offer(worker, TEA, price=9.0, after_ms=4_000))
    assert ignored(worker, "older") == 1
    assert worker.path.offers_without_item == 1
    await apply(worker, offer(worker, TEA, available=False, after_ms=6_000))
    assert (await held(worker))[:2] == (2.0, False)
    await worker.apply(worker.item(TEA, title=TEA), worker.item(COFFEE))
    assert (await held(worker))[:2] == (2.0, False)
    assert (await held(worker, COFFEE))[1] is False


async def test_an_interests_worker_follows_offers_whatever_comes_first(
    worker: CatalogWorker, tmp_path: Path
) -> None:
    """Compaction may leave an item's offers before or behind the item."""
    await worker.apply(worker.item(TEA, price=3.5), worker.item(COFFEE, price=4.0))
    await apply(worker, offer(worker, TEA, price=2.0), offer(worker, COFFEE, available=False))
    await worker.apply(worker.item(COFFEE, title=COFFEE, price=4.0))
    records = worker.producer.records(worker.topics.vectors)
    for number, order in enumerate((records, records[::-1])):
        index = await EdgeIndex.open(tmp_path / str(number), worker.encoder.dim)
        follower = VectorsFollower(
            index,
            ItemVectors(worker.encoder.dim),
            worker.encoder.id,
            worker.metrics,
            tmp_path,
            lambda key: None,
        )
        for record in order:
            await follower.put([record])
        found = {
            each["item_id"]: each for each in (await index.items([*map(item_key, (TEA, COFFEE))])).values()
        }
        assert (found[TEA]["price"], found[TEA]["available"]) == (2.0, True)
        assert (found[COFFEE]["price"], found[COFFEE]["available"]) == (4.0, False)
        gone = offer_record_of(COFFEE, None, 0, 1)
        await follower.put([raw_vectors(worker, gone.key, gone.value, gone.headers)])
        assert (await index.items([item_key(COFFEE)]))[item_key(COFFEE)]["available"] is True
        await index.close()


def raw_vectors(
    worker: CatalogWorker, key: bytes | None, value: bytes | None, headers: Any = ()
) -> ConsumerRecord:
    return ConsumerRecord(
        worker.topics.vectors, 0, 99, PUBLISHED_MS, 0, key, value, None, 0, 0, tuple(headers)
    )


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (b"tea", b"{", "bad_json"),
        (b"tea", b"\xff", "bad_json"),
        (b"tea", b'{"item_id": "tea"}', "bad_field"),
        (b"tea", b'{"item_id": "tea", "price": -1}', "bad_field"),
        (b"coffee", b'{"item_id": "tea", "price": 1}', "key_mismatch"),
        (b"tea", b'{"item_id": "tea", "price": 1, "at_ms": 1900000000000}', "time_in_future"),
        (None, None, "null_key"),
        (b"\xff\xfe", None, "bad_utf8"),
        (b"x" * 600, None, "bad_field"),
    ],
)
async def test_a_bad_offer_is_a_dead_letter_and_the_others_are_laid(
    worker: CatalogWorker, key: bytes | None, value: bytes | None, reason: str
) -> None:
    await worker.apply(worker.item(TEA, price=3.5))
    await apply(worker, raw(worker, key, value), offer(worker, TEA, price=2.0))
    assert worker.reasons() == [reason]
    assert (await held(worker))[0] == 2.0


async def test_an_offer_that_our_own_code_fails_on_is_a_dead_letter_and_the_others_are_laid(
    worker: CatalogWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = catalog_offers.offered

    def offered(state: OfferState | None, offer: Offer, at_ms: int, revision: int) -> OfferState | None:
        assert offer.price != 13.0, "a bug"
        return real(state, offer, at_ms, revision)

    monkeypatch.setattr(catalog_offers, "offered", offered)
    await worker.apply(worker.item(TEA, price=3.5))
    await apply(worker, offer(worker, TEA, price=13.0), offer(worker, TEA, price=2.0))
    assert worker.reasons() == ["internal_error"]
    assert (await held(worker))[0] == 2.0


async def test_offers_of_an_item_that_come_to_too_much_are_dead_letters(worker: CatalogWorker) -> None:
    await worker.apply(worker.item(TEA, price=3.5))
    await apply(worker, offer(worker, TEA, price=2.0))
    large = {f"name {number}": "x" * 1_000 for number in range(70)}
    await apply(worker, offer(worker, TEA, attributes=large, after_ms=2_000))
    assert worker.reasons() == ["too_large"]
    await apply(worker, offer(worker, TEA, available=False, after_ms=3_000))
    assert await held(worker) == (2.0, False, {})


async def test_who_finds_no_room_to_wait_for_an_item_is_a_dead_letter(
    worker: CatalogWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_offers, "_ROOM", 2)
    await worker.apply(worker.item(TEA, price=3.5))
    waiting = [offer(worker, f"item {number}", price=1.0) for number in range(4)]
    await apply(worker, *waiting, offer(worker, TEA, price=2.0))
    assert worker.reasons() == ["no_item", "no_item"]
    assert (await held(worker))[0] == 2.0, "its item is there"
    assert worker.path.offers_without_item == 2


async def test_offers_wait_for_room_while_the_catalog_brings_items(
    worker: CatalogWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_offers, "_ROOM", 1)
    monkeypatch.setattr(catalog_offers, "_RETRY_S", 0.001)
    worker.path.offers.is_behind = lambda partition: True
    await apply(worker, offer(worker, TEA, price=1.0))
    waiting = asyncio.ensure_future(apply(worker, offer(worker, COFFEE, price=2.0)))
    await until(lambda: worker.path.offers_wait(0))
    await worker.apply(worker.item(TEA))
    await waiting
    assert not worker.path.offers_wait(0)
    assert worker.reasons() == []
    stuck = asyncio.ensure_future(apply(worker, offer(worker, "third", price=2.0)))
    await until(lambda: worker.path.offers_wait(0))
    worker.path.freeze()
    with pytest.raises(PartitionLost):
        await stuck


async def test_offers_whose_item_has_not_come_for_a_week_make_room(
    worker: CatalogWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All records here are years old."""
    await apply(worker, offer(worker, "old", price=1.0))
    monkeypatch.setattr(item_offers, "_ROOM", 1)
    await apply(worker, offer(worker, COFFEE, price=2.0))
    assert worker.reasons() == []
    assert (states(worker)["old"], ignored(worker, "no_item")) == (None, 1)
    assert list(worker.path._partitions[0].offers.waiting) == [COFFEE]


async def test_what_a_stale_owner_wrote_of_offers_is_written_again(worker: CatalogWorker) -> None:
    await worker.apply(worker.item(TEA))
    await apply(worker, offer(worker, TEA, price=2.0))
    ours = states(worker)[TEA]
    for item_id in (TEA, COFFEE):
        stale = offer_record_of(item_id, OfferState(item_id, 99, 7.0, 1), 0, 0)
        await worker.producer.send(worker.topics.vectors, stale.value, stale.key, 0, headers=stale.headers)
    await repaired(worker)
    assert states(worker) == {TEA: ours, COFFEE: None}


async def test_a_change_of_an_item_and_its_offers_do_not_overtake_each_other(
    worker: CatalogWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An offer that comes while its item is on the way to the index is laid over the new one."""
    await worker.apply(worker.item(TEA, price=3.5))
    assert worker.index is not None
    put, comes = worker.index.put, asyncio.Event()
    later: list[asyncio.Task[Batch]] = []

    async def slow(points: Any) -> Any:
        later.append(asyncio.ensure_future(apply(worker, offer(worker, TEA, available=False))))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(comes.wait(), 0.02)
        return await put(points)

    monkeypatch.setattr(worker.index, "put", slow)
    await worker.apply(worker.item(TEA, price=4.0))
    await later[0]
    assert (await held(worker))[:2] == (4.0, False)


async def test_offers_on_their_way_are_not_behind_the_claim_of_a_higher_epoch(
    worker: CatalogWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers pass over what an owner writes in an epoch below one that it has claimed."""
    await worker.apply(worker.item(TEA, price=3.5))
    versions = worker.path._partitions[0]
    assert worker.index is not None
    lay, claims = worker.index.put_offers, list[asyncio.Task[None]]()

    async def slow(states: Any) -> None:
        claiming = worker.path._writer.claim_partition(versions, 5, worker.encoder.id)
        claims.append(asyncio.ensure_future(claiming))
        for _ in range(20):
            await asyncio.sleep(0)
        await lay(states)

    monkeypatch.setattr(worker.index, "put_offers", slow)
    await apply(worker, offer(worker, TEA, price=2.0))
    await claims[0]
    epochs = [read_record(record).epoch for record in worker.producer.records(worker.topics.vectors)]
    assert epochs == sorted(epochs)
    assert epochs[-1] == 6


@pytest.mark.parametrize(("is_claimed", "known"), [(False, False), (True, True)])
async def test_where_nothing_vouches_for_the_vectors_topic_all_offers_are_read_again(
    worker: CatalogWorker, monkeypatch: pytest.MonkeyPatch, is_claimed: bool, known: bool
) -> None:
    versions = ItemVersions(0)
    versions.is_claimed = is_claimed
    tea, sale = worker.item(TEA, price=3.5), offer(worker, TEA, price=2.0)

    faults = [KafkaConnectionError("the broker goes away")]

    class All(Written):
        def _records(self, tp: Any) -> Any:
            if tp.topic != worker.topics.offers:
                return super()._records(tp)
            if faults:
                raise faults.pop()
            return [sale]

    @contextlib.asynccontextmanager
    async def written(*_: object) -> AsyncIterator[Written]:
        yield All(worker, [tea])

    async def restore(*_: object) -> dict[int, Restored]:
        return {0: Restored(set(), -1, is_committed=True)}

    monkeypatch.setattr(catalog_repair, "reader", written)
    monkeypatch.setattr(catalog_repair, "restore_versions", restore)
    worker.path._partitions = {0: versions}
    if not known:
        with pytest.raises(KafkaConnectionError):
            await worker.path._repair.open([versions])
        assert not versions.gate.is_open, "or nobody would read the offers at the next try"
    await worker.path._repair.open([versions])
    assert versions.offers.gate.is_open
    assert versions.gate.is_open
    assert (TEA in versions.offers.states) is not known
    if not known:
        assert (await held(worker))[0] == 2.0


async def test_a_broker_that_takes_no_writes_stops_the_worker_and_nothing_is_finished(
    worker: CatalogWorker,
) -> None:
    worker.producer.down = True
    with pytest.raises(StopWorker, match="did not acknowledge"):
        await apply(worker, offer(worker, TEA, price=2.0))
    assert worker.consumer.finished == []
    assert worker.path.offers_without_item == 0
