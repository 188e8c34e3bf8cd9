"""Publishes what is popular in each clicks partition of this worker to the trends topic, and reads what others publish."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, islice, takewhile
from typing import Final

import msgspec
import numpy as np
import structlog

from headwater.errors import StopWorker
from headwater.index import Index, IndexUnavailable
from headwater.kafka.epochs import MAX_EPOCH
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.publish import MAX_BATCH_BYTES, Outgoing, write_all
from headwater.messages import MAX_AHEAD_MS, MAX_ID_BYTES, BadMessage, Trend, decode_trend, encode, quoted
from headwater.recall.popularity import HALF_LIFE_S, RISING, TOP, Counts

log = structlog.get_logger(__name__)

_EVERY_S: Final = 2.0
# At a rebalance other workers wait for the partitions that we give up.
_LAST_WITHIN_S: Final = 5.0
_MAX_NAMES: Final = 100_000
# Shops delete items and put them again: what is back within this time keeps its counts.
_DELETED_KEPT_S: Final = 600.0
_DROPPED_AT_ONCE: Final = 1_000
# A millisecond or two in the edge engine. A batch of clicks in the meantime is for the next time.
_DATED_AT_ONCE: Final = 1_000
# Of trends that are read: a minute to ten years, and more weight than a partition of clicks can gather.
_HALF_LIVES_S: Final = (60.0, 10 * 365 * 86_400.0)
_MAX_WEIGHT: Final = 1e15
_OLDEST_HALF_LIVES: Final = 110.0


class TrendsPublisher:
    """Writes one record per partition to the trends topic. ``counts`` are those of the owned partitions, by number.

    Trends name items by id and counts know keys only, so ids come from the index. Those found are kept, up to 100,000. When
    an item came in is looked up once, with its first event in a partition: an item is new for ``new_days``.
    """

    def __init__(
        self,
        producer: Producer,
        topic: str,
        index: Index,
        counts: Mapping[int, Counts],
        bundle_id: str,
        new_days: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._producer, self._topic, self._index, self._counts = producer, topic, index, counts
        self._bundle_id, self._clock = bundle_id, clock
        self._new_ms = new_days * 86_400_000.0
        self._item_ids: dict[int, str] = {}  # of popular items that are live
        self._deleted: dict[int, float] = {}  # by key: when it was deleted; the newest last

    async def run(self) -> None:
        """Publish forever. Raises StopWorker when the broker does not take it."""
        while True:
            await asyncio.sleep(_EVERY_S)
            await self.publish()
            await self.drop_deleted()

    async def publish(self) -> None:
        """Publish the partitions that have changed. While the index is away, they keep for the next time.

        Raises:
            StopWorker: the broker did not take it.
        """
        outgoing = []
        for number, counts in list(self._counts.items()):
            if not counts.changed:
                continue
            await asyncio.sleep(0)  # summing takes milliseconds: requests come in between
            try:
                await self._date(counts)
                now_ms = int(time.time() * 1000)
                at_ms, top, rising = counts.at_ms, counts.top(), counts.rising(now_ms - self._new_ms, now_ms)
                counts.changed = (
                    False  # before the next await: what is counted from here on is for the next time
                )
                await self._find_ids({key for key, _ in (*top, *rising)})
            except IndexUnavailable:
                counts.changed = True
                break
            trend = Trend(
                number,
                at_ms,
                HALF_LIFE_S,
                self._named(top),
                counts.epoch,
                now_ms,
                self._bundle_id,
                self._named(rising),
            )
            outgoing.append(Outgoing(str(number).encode(), bounded(trend)))
        if outgoing:
            for each in await write_all(self._producer, self._topic, 0, outgoing):
                log.error(
                    "trend_not_written", partition=(each.record.key or b"").decode(), error=each.message
                )

    async def publish_last(self) -> None:
        """Publish before partitions go: clicks of the last seconds are committed and will not be counted again."""
        try:
            async with asyncio.timeout(_LAST_WITHIN_S):
                await self.publish()
        except (StopWorker, TimeoutError) as error:
            log.warning("last_trends_lost", error=str(error) or f"not written in {_LAST_WITHIN_S:g} s")

    def forget(self, key: int) -> None:
        """The item of this key has been deleted: trends no longer name it."""
        self._item_ids.pop(key, None)
        self._deleted.pop(key, None)
        self._deleted[key] = self._clock()
        if len(self._deleted) > _MAX_NAMES:  # the counts have a bound of their own
            del self._deleted[next(iter(self._deleted))]

    async def drop_deleted(self) -> None:
        """Drop the counts of items that were deleted ten minutes ago and are not back, a thousand at a time."""
        before_s = self._clock() - _DELETED_KEPT_S
        old = takewhile(lambda deleted: deleted[1] < before_s, self._deleted.items())
        keys = [key for key, _ in islice(old, _DROPPED_AT_ONCE)]
        if not keys:
            return
        try:
            live = await self._index.items(keys)
        except IndexUnavailable:
            return  # then it is for the next time
        gone = np.array([key for key in keys if key not in live], dtype=np.uint64)
        for counts in self._counts.values():
            counts.drop(gone)
        for key in keys:
            self._deleted.pop(key, None)

    async def _date(self, counts: Counts) -> None:
        """Tell the counts when their items came in. Raises IndexUnavailable."""
        keys = counts.undated()
        for start in range(0, len(keys), _DATED_AT_ONCE):
            part = keys[start : start + _DATED_AT_ONCE]
            payloads = await self._index.items(part.tolist())
            counts.date(part, {key: payload.get("since_ms") for key, payload in payloads.items()})
            await asyncio.sleep(0)

    def _named(self, weights: Sequence[tuple[int, float]]) -> list[tuple[str, float]]:
        return [(self._item_ids[key], weight) for key, weight in weights if key in self._item_ids]

    async def _find_ids(self, keys: set[int]) -> None:
        if len(self._item_ids) > _MAX_NAMES:
            self._item_ids.clear()
        payloads = await self._index.items([key for key in keys if key not in self._item_ids])
        self._item_ids.update((key, payload["item_id"]) for key, payload in payloads.items())


def bounded(trend: Trend) -> bytes:
    """The trend as its topic takes it: where ids are long, without the lightest of its new items, then of the others."""
    value = encode(trend)
    while len(value) > MAX_BATCH_BYTES:
        cut = "rising" if trend.rising else "counts"
        named: list[tuple[str, float]] = getattr(trend, cut)
        trend = msgspec.structs.replace(trend, **{cut: named[: len(named) // 2]})
        value = encode(trend)
    return value


def read_trend(key: bytes | None, value: bytes | None, partitions: int, now_ms: float) -> Trend:
    """A record of the trends topic, within the bounds of what an owner publishes.

    Raises:
        BadMessage: it is no trend, or says what no owner can know.
    """
    trend = decode_trend(value)
    if not 0 <= trend.partition < partitions or key != str(trend.partition).encode():
        raise BadMessage("wrong_partition", f"partition: got {trend.partition} under the key {quoted(key)}")
    if not 0 <= trend.epoch <= MAX_EPOCH:
        raise BadMessage("bad_epoch", f"epoch: got {trend.epoch}, expected at most {MAX_EPOCH}")
    if not 0 <= trend.at_ms <= now_ms + MAX_AHEAD_MS or trend.written_ms > now_ms + MAX_AHEAD_MS:
        raise BadMessage(
            "time_in_future", f"at_ms: got {trend.at_ms}, expected at most two days after {now_ms:.0f}"
        )
    if not _HALF_LIVES_S[0] <= trend.half_life_s <= _HALF_LIVES_S[1]:
        raise BadMessage(
            "bad_half_life", f"half_life_s: got {trend.half_life_s}, expected a minute to ten years"
        )
    for name, named, count in (("counts", trend.counts, TOP), ("rising", trend.rising, RISING)):
        if len(named) > count:
            raise BadMessage("too_many", f"{name}: got {len(named)}, expected at most {count}")
    # As of then: up to 0.1.0 weights were told as of a time years ago, since when what counts has doubled each half-life.
    half_lives = (now_ms - trend.at_ms) / (trend.half_life_s * 1000.0)
    most = _MAX_WEIGHT * 2.0 ** min(max(half_lives, 0.0), _OLDEST_HALF_LIVES)
    for item_id, weight in chain(trend.counts, trend.rising):
        if not item_id or len(item_id) > MAX_ID_BYTES or not 0 <= weight <= most:
            raise BadMessage(
                "bad_count", f"counts: got {quoted((item_id, weight))}, expected an id and a weight"
            )
    return trend
