"""Encoded changes -> the index, where the catalog worker fills it, and the vectors topic."""

import time
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwater.index import Point
from headwater.index.offers import outliving
from headwater.index.vectors_topic import offer_record_of, record_of
from headwater.kafka.dead_letters import DeadLetter, DeadLetters
from headwater.kafka.publish import Outgoing
from headwater.messages import OfferState
from headwater.metrics import Metrics
from headwater.paths.catalog_changes import Change, point_of
from headwater.paths.catalog_encoding import Encoded
from headwater.paths.item_versions import ItemVersions
from headwater.paths.observer import ItemIndexed, Observer
from headwater.paths.serving import Serving
from headwater.paths.shared_index import put_or_wait
from headwater.paths.vectors_writer import VectorsWriter

# Written at once. Also texts encoded at once: enough to fill the encoder's batches, few enough to overlap with writing.
SLICE: Final = 512
# A little below Kafka's default bound of a record batch, so that a shared index never has what the topic refuses.
MAX_RECORD_BYTES: Final = 1_000_000


class Written(NamedTuple):
    """A change on its way to the index and the vectors topic."""

    change: Change
    point: Point
    outgoing: Outgoing


class CatalogPublishing:
    """Puts and writes changes of partitions that this worker owns. Hold the lock of the partition."""

    def __init__(
        self, writer: VectorsWriter, dead_letters: DeadLetters, metrics: Metrics, observer: Observer
    ) -> None:
        self._writer, self._dead_letters = writer, dead_letters
        self._metrics, self._observer = metrics, observer

    async def publish(self, versions: ItemVersions, encoded: Encoded, serving: Serving) -> None:
        """Index and write what was encoded. What cannot be written becomes a dead letter."""
        async with versions.offers.publishing:
            await self._publish(versions, encoded, serving)

    async def _publish(self, versions: ItemVersions, encoded: Encoded, serving: Serving) -> None:
        finite: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(encoded.vectors), axis=1)
        fresh = iter(zip(encoded.vectors, finite, strict=True))
        written: list[Written] = []
        bad, now_ms = encoded.bad, int(time.time() * 1000)
        for change in encoded.changes:
            vector, is_finite = (None, True) if change.item is None else next(fresh)
            if not is_finite:
                message = f"the vector of item {change.item_id!r} is not finite: bundle {serving.encoder.id} is broken"
                bad.append(DeadLetter(change.record, "bad_vector", message))
                continue
            point = point_of(change, vector)
            # A sender's time may lie further ahead than the vectors topic allows.
            at_ms = min(change.record.timestamp, now_ms)
            outgoing = record_of(point, serving.encoder.id, at_ms, versions.epoch)
            size = len(outgoing.key or b"") + len(outgoing.value or b"")
            if size > MAX_RECORD_BYTES:
                message = f"item {change.item_id!r} takes {size} bytes with its vector, expected at most {MAX_RECORD_BYTES}"
                bad.append(DeadLetter(change.record, "too_large", message))
                continue
            written.append(Written(change, point, outgoing))
        refused: dict[int, tuple[str, str]] = {}  # by offset: reason and message
        if serving.index is not None:
            collisions = await put_or_wait(
                serving.index, versions, versions.with_offers([each.point for each in written])
            )
            refused = {each.point.offset: ("key_collision", str(each)) for each in collisions}
        kept = [each for each in written if each.point.offset not in refused] if refused else written
        outlived = _outlived(versions, [each.change for each in kept])
        # Before the deletes themselves: offers of an item that is gone would wait for it.
        offers = [offer_record_of(*each, now_ms, versions.epoch) for each in outlived.items()]
        if unwritten := await self._writer.write(versions, [*offers, *(each.outgoing for each in kept)]):
            of_record = {id(each.outgoing): each.change for each in kept}
            for each in unwritten:
                change = of_record[id(each.record)]
                message = f"the vector of item {change.item_id!r}: {each.message}"
                refused[change.stamp.offset] = each.reason, message
        if refused:
            bad += [
                DeadLetter(each.change.record, *refused[each.point.offset])
                for each in written
                if each.point.offset in refused
            ]
            written = [each for each in written if each.point.offset not in refused]
        await self._dead_letters.put(bad)
        versions.add_published([each.point for each in written])
        for item_id, state in outlived.items():
            versions.offers.put(item_id, state)
        self._metrics.catalog_items_total.inc(len(written))
        if self._observer.is_watched:
            self._tell([(each.change, each.point) for each in written])

    def _tell(self, published: Sequence[tuple[Change, Point]]) -> None:
        """Tell listeners of the newest changes."""
        allowed = self._observer.allowance(ItemIndexed, len(published))
        newest, now_ms = published[len(published) - allowed :], time.time() * 1000.0
        events = [
            ItemIndexed(
                change.item_id,
                change.item.title if change.item is not None else "",
                change.item is None,
                point.partition,
                change.record.offset,
                max(now_ms - change.record.timestamp, 0.0),
            )
            for change, point in newest
        ]
        self._observer.tell(events, omitted=len(published) - len(newest))

    async def put_again(
        self, versions: ItemVersions, points: Sequence[tuple[Point, int]], serving: Serving
    ) -> None:
        """Index and write points, each with the time of its catalog change in ms."""
        async with versions.offers.publishing:
            for start in range(0, len(points), SLICE):
                part = points[start : start + SLICE]
                if serving.index is not None:
                    await put_or_wait(
                        serving.index, versions, versions.with_offers([point for point, _ in part])
                    )
                records = [
                    record_of(point, serving.encoder.id, at_ms, versions.epoch) for point, at_ms in part
                ]
                await self._writer.write(versions, records)


def _outlived(versions: ItemVersions, changes: Sequence[Change]) -> dict[str, OfferState | None]:
    """What is left of the offers of deleted items, by item, where that is not all of them."""
    states = versions.offers.states
    left = {
        change.item_id: outliving(states[change.item_id], change.record.timestamp)
        for change in changes
        if change.item is None and change.item_id in states
    }
    return {item_id: state for item_id, state in left.items() if state != states[item_id]}
