"""Writing to an index that the catalog worker fills for all workers: it may be away, and it may lose what it had.

**Waiting.** While the index is away, catalog changes wait in their order. Nothing more of the partition is fetched, so one
batch waits and the rest stays in the topic.

**Refilling.** Every ten seconds the index is asked for some items of each partition that it must have. Where one is
missing, its collection was made anew or restored from a snapshot, and the partition's vectors are put again.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Final, TypeVar

import structlog
from aiokafka import ConsumerRecord

from headwater.errors import StopWorker
from headwater.index import BadVector, Collision, Index, IndexRefused, IndexUnavailable, Point
from headwater.index.vectors_topic import Fence, VectorRecord, read_records
from headwater.kafka.skipped import SkippedRecords
from headwater.kafka.supervision import once_broker_answers
from headwater.messages import OfferState
from headwater.paths.item_versions import ItemVersions

log = structlog.get_logger(__name__)

# Between tries to put; the index's own calls have been retried by then.
_RETRY_S: Final = 1.0
_AUDIT_S: Final = 10.0

T = TypeVar("T")
Records = AsyncGenerator[Sequence[ConsumerRecord], None]


async def put_or_wait(index: Index, versions: ItemVersions, points: Sequence[Point]) -> list[Collision]:
    """Put points of one partition, for as long as it takes. Returns those that other items keep out.

    Raises:
        PartitionLost: the partition was taken away meanwhile. Its next owner may have written newer versions.
        StopWorker: the index refused them, and would again.
    """
    stored = await _taken(versions, len(points), lambda: index.put(points))
    return stored.collisions


async def lay_or_wait(index: Index, versions: ItemVersions, states: Sequence[OfferState]) -> None:
    """Lay offers over items of one partition, for as long as it takes. Raises as `put_or_wait`."""
    if states:
        await _taken(versions, len(states), lambda: index.put_offers(states))


async def keep_filled(
    index: Index,
    versions: ItemVersions,
    bundle_id: str,
    topic: str,
    published: Callable[[int], Records],
    skipped: SkippedRecords,
) -> None:
    """Look every ten seconds whether the index has lost items of a partition, and put them again. Ends by its errors.

    Args:
        topic: the vectors topic, as messages name it.
        published: reads all records of a partition of that topic.

    Raises:
        PartitionLost: the partition was taken away.
        StopWorker: the index refused them, or the broker was away for two minutes.
    """
    await versions.gate.wait_open(None)
    while True:
        async with versions.lock:
            versions.require()
            if not await has_audited(index, versions):
                log.warning("index_lacks_items", partition=versions.partition, remedy="they are put again")
                versions.is_refilling = True
                try:
                    await once_broker_answers(
                        topic,
                        lambda: _refill(index, versions, bundle_id, published(versions.partition), skipped),
                    )
                finally:
                    versions.is_refilling = False
                # What that has not brought back is not asked for again.
                with contextlib.suppress(IndexUnavailable):
                    versions.audited &= set(await index.items(list(versions.audited)))
        await asyncio.sleep(_AUDIT_S)


async def has_audited(index: Index, versions: ItemVersions) -> bool:
    """Whether the index has the audited items, as far as it can be asked."""
    try:
        return len(await index.items(list(versions.audited))) == len(versions.audited)
    except IndexUnavailable:
        return True


async def _taken(versions: ItemVersions, items: int, write: Callable[[], Awaitable[T]]) -> T:
    """What a write to the index returns, once it succeeds."""
    versions.is_putting = True
    try:
        while True:
            with contextlib.suppress(IndexUnavailable):
                taken = await _tried(versions, items, write)
                break
            await asyncio.sleep(_RETRY_S)
            versions.require()
    finally:
        versions.is_putting = False
        versions.away_since_s = None
    versions.require()
    return taken


async def _tried(versions: ItemVersions, items: int, write: Callable[[], Awaitable[T]]) -> T:
    """Raises IndexUnavailable, which is told the first time."""
    try:
        taken = await write()
    except BadVector as error:
        raise StopWorker(f"the index refused a checked vector: {error}") from error
    except IndexRefused as error:
        raise StopWorker(str(error)) from error
    except IndexUnavailable as error:
        if versions.away_since_s is None:
            versions.away_since_s = time.monotonic()
            log.warning("catalog_waits_for_index", items=items, error=str(error))
        raise
    if versions.away_since_s is not None:
        log.warning("catalog_goes_on", seconds=round(time.monotonic() - versions.away_since_s, 1))
    return taken


async def _refill(
    index: Index, versions: ItemVersions, bundle_id: str, published: Records, skipped: SkippedRecords
) -> None:
    changes, started_s, fence = 0, time.monotonic(), Fence()
    async with aclosing(published) as batches:
        async for records in batches:
            points = [
                read.point
                for _, read in read_records(records, skipped)
                if fence.admits(versions.partition, read.epoch)
                and isinstance(read, VectorRecord)
                and read.bundle in ("", bundle_id)
            ]
            async with versions.offers.publishing:
                await put_or_wait(index, versions, versions.with_offers(points))
            changes += len(points)
    seconds = round(time.monotonic() - started_s, 1)
    log.warning("index_filled_again", partition=versions.partition, changes=changes, seconds=seconds)
