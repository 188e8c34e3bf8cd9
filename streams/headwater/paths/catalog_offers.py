"""Path 2b: a batch of offers -> the index and the vectors topic, without a text or a vector."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import structlog
from aiokafka import ConsumerRecord

from headwater.encoder.features import item_key
from headwater.errors import PartitionLost
from headwater.index.offers import offered, withdrawn
from headwater.index.vectors_topic import offer_record_of
from headwater.kafka.batch import Batch
from headwater.kafka.dead_letters import DeadLetter, DeadLetters
from headwater.kafka.publish import Outgoing
from headwater.messages import MAX_AT_MS, BadMessage, Offer, OfferState, decode_offer
from headwater.metrics import Metrics
from headwater.paths.catalog_changes import deleted_id
from headwater.paths.item_versions import ItemVersions
from headwater.paths.serving import Serving
from headwater.paths.shared_index import lay_or_wait
from headwater.paths.vectors_writer import VectorsWriter

log = structlog.get_logger(__name__)

# Decoded, laid and written at once: a few milliseconds of the event loop.
_SLICE: Final = 512
# What the offers of one item may come to: read at each start, and by each interests worker.
MAX_STATE_BYTES: Final = 65_536
_RETRY_S: Final = 0.2


class Laid(NamedTuple):
    """What the offers of an item have come to, with the records of a batch that it rests on."""

    state: OfferState
    records: list[ConsumerRecord]


class Decided(NamedTuple):
    """What a slice of records comes to.

    Attributes:
        laid: by item id.
        ignored: valid records that change nothing, by the reason.
    """

    laid: dict[str, Laid]
    bad: list[DeadLetter]
    ignored: Counter[str]


class CatalogOffers:
    """Lays offers over the items of partitions that this worker owns.

    ``is_behind`` says whether catalog records of a partition are still to be read: with them come the items that offers
    wait for.
    """

    def __init__(
        self,
        partition: Callable[[int], ItemVersions | None],
        serving: Callable[[], Serving],
        writer: VectorsWriter,
        dead_letters: DeadLetters,
        metrics: Metrics,
    ) -> None:
        self._partition, self._serving = partition, serving
        self._writer, self._dead_letters, self._metrics = writer, dead_letters, metrics
        self.is_behind: Callable[[int], bool] = lambda partition: False
        self._batch_size = metrics.batch_size.labels("offers")

    async def handle(self, batch: Batch) -> None:
        """Lay and publish one partition batch, then finish it.

        Raises:
            PartitionLost: the partition was revoked meanwhile.
            StopWorker: the broker or the index did not take it.
        """
        versions = self._partition(batch.partition)
        if versions is None:
            raise PartitionLost
        await versions.offers.gate.wait_open(None)
        await self.apply(versions, batch.records)
        batch.finish()
        self._batch_size.observe(len(batch.records))

    async def apply(
        self, versions: ItemVersions, records: Sequence[ConsumerRecord], *, buries: bool = True
    ) -> None:
        """Lay what is new in the records. Raises as `handle`.

        ``buries``: bad ones become dead letters; not where they have been put there before, and no item is waited for.
        """
        for start in range(0, len(records), _SLICE):
            if buries:
                await self._make_room(versions)
            async with versions.offers.publishing:
                versions.require()
                decided = decide(records[start : start + _SLICE], versions)
                refused = await self._publish(versions, decided.laid)
                if buries:
                    await self._dead_letters.put([*decided.bad, *refused])
                    self._count(versions, decided)
            await asyncio.sleep(0)

    async def _publish(self, versions: ItemVersions, laid: dict[str, Laid]) -> list[DeadLetter]:
        """Index and write what offers have come to; the dead letters of what cannot be written."""
        bad: list[DeadLetter] = []
        kept: dict[str, Laid] = {}
        outgoing: list[Outgoing] = []
        now_ms = int(time.time() * 1000)
        for item_id, each in laid.items():
            # A sender's time may lie further ahead than the vectors topic allows.
            at_ms = min(each.records[-1].timestamp, now_ms)
            record = offer_record_of(item_id, each.state, at_ms, versions.epoch)
            if len(record.value or b"") > MAX_STATE_BYTES:
                message = (
                    f"the offers of item {item_id!r} come to {len(record.value or b'')} bytes, expected at most "
                    f"{MAX_STATE_BYTES}; withdraw them, or let its own record have these attributes"
                )
                bad += [DeadLetter(one, "too_large", message) for one in each.records]
                continue
            kept[item_id] = each
            outgoing.append(record)
        index = self._serving().index
        if index is not None:
            there = [each.state for item_id, each in kept.items() if versions.is_there(item_id)]
            await lay_or_wait(index, versions, there)
        of_record = {id(record): item_id for record, item_id in zip(outgoing, kept, strict=True)}
        for refused in await self._writer.write(versions, outgoing) if outgoing else ():
            item_id = of_record[id(refused.record)]
            message = f"the offers of item {item_id!r}: {refused.message}"
            bad += [DeadLetter(one, refused.reason, message) for one in kept.pop(item_id).records]
        for item_id, each in kept.items():
            versions.offers.put(item_id, each.state)
        self._metrics.offers_total.inc(sum(len(each.records) for each in kept.values()))
        return bad

    async def _make_room(self, versions: ItemVersions) -> None:
        """Where too many items with offers are not there: wait while the catalog brings some, then forget the oldest.

        Raises as `handle`.
        """
        offers = versions.offers
        offers.waits_for_room = True
        try:
            while offers.is_full and self.is_behind(versions.partition):
                await asyncio.sleep(_RETRY_S)
                versions.require()
        finally:
            offers.waits_for_room = False
        if not offers.is_full:
            return
        async with offers.publishing:
            versions.require()
            now_ms = int(time.time() * 1000)
            gone = list(offers.expired(now_ms))
            if not gone:
                return
            log.warning("offers_without_item_forgotten", partition=versions.partition, items=len(gone))
            self._metrics.offers_ignored_total.labels("no_item").inc(len(gone))
            for start in range(0, len(gone), _SLICE):
                part = gone[start : start + _SLICE]
                records = [offer_record_of(item_id, None, now_ms, versions.epoch) for item_id in part]
                await self._writer.write(versions, records)
                for item_id in part:
                    offers.put(item_id, None)

    def _count(self, versions: ItemVersions, decided: Decided) -> None:
        for reason, count in decided.ignored.items():
            self._metrics.offers_ignored_total.labels(reason).inc(count)
        if older := decided.ignored["older"]:
            log.info("older_offers_ignored", partition=versions.partition, count=older)


def decide(records: Sequence[ConsumerRecord], versions: ItemVersions) -> Decided:
    """What the offers of items come to with the records of a batch, in their order."""
    decided = Decided({}, [], Counter())
    new = 0  # items that wait from now on
    for record in records:
        try:
            new += _add(record, decided, versions, new)
        except BadMessage as error:
            decided.bad.append(DeadLetter(record, error.reason, str(error)))
        except Exception as error:
            log.exception(
                "offer_failed", topic=record.topic, partition=record.partition, offset=record.offset
            )
            message = f"{type(error).__name__}: {error}"
            decided.bad.append(DeadLetter(record, "internal_error", message))
    return decided


def _add(record: ConsumerRecord, decided: Decided, versions: ItemVersions, new: int) -> bool:
    """Add a record to what its item's offers come to. Returns whether they begin to wait for the item, beside ``new`` others.

    Raises:
        BadMessage: the record cannot be used.
    """
    came_ms = min(max(record.timestamp, 0), MAX_AT_MS)
    item_id, offer = _offer_of(record, came_ms)
    earlier = decided.laid.get(item_id)
    before = earlier.state if earlier is not None else versions.offers.states.get(item_id)
    is_there = versions.is_there(item_id)
    if before is None and not is_there:
        _check_place(versions, item_id, new)
    after = None
    if offer is not None:
        at_ms = came_ms if offer.at_ms is None else min(offer.at_ms, came_ms)
        after = offered(before, offer, at_ms, record.offset)
    elif before is not None or is_there:
        after = withdrawn(before, item_id, came_ms, record.offset)
    if after is None:
        decided.ignored["repeated" if _is_repeat(before, offer, came_ms) else "older"] += 1
        return False
    decided.laid[item_id] = Laid(after, [*(earlier.records if earlier is not None else ()), record])
    return before is None and not is_there


def _offer_of(record: ConsumerRecord, came_ms: int) -> tuple[str, Offer | None]:
    """The item id of a record and its offer, None for a withdrawal. Raises BadMessage."""
    if record.value is None:
        return deleted_id(record.key), None
    offer = decode_offer(record.key, record.value, came_ms)
    return offer.item_id, offer


def _check_place(versions: ItemVersions, item_id: str, more: int) -> None:
    """Raises BadMessage: no item of this id can come, or too many others are waited for."""
    holder = versions.ids.get(item_key(item_id))
    if holder is not None and holder != item_id:
        raise BadMessage("key_collision", f"items {holder!r} and {item_id!r} have one key; kept the first")
    if not versions.offers.has_room_for(item_id, more):
        raise BadMessage(
            "no_item",
            f"item {item_id!r} is not in the catalog, and neither are {len(versions.offers.waiting):,} others of its "
            "partition that have offers: publish the items, then redrive this letter",
        )


def _is_repeat(before: OfferState | None, offer: Offer | None, came_ms: int) -> bool:
    """Whether a record that changes nothing states what is known, rather than something older."""
    if before is None:
        return True
    if offer is None:
        return before.withdrawn_ms == came_ms
    at_ms = came_ms if offer.at_ms is None else min(offer.at_ms, came_ms)
    known = [
        *([before.price_ms] if offer.price is not None else []),
        *([before.available_ms] if offer.available is not None else []),
        *(before.attributes[name][1] for name in offer.attributes if name in before.attributes),
    ]
    return before.withdrawn_ms < at_ms and all(since_ms <= at_ms for since_ms in known)
