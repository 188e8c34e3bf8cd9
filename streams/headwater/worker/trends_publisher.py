"""Publishes what is popular in each clicks partition of this worker, every two seconds where it has changed."""

import asyncio
from collections.abc import Mapping
from typing import Final

import structlog

from headwater.errors import StopWorker
from headwater.index import Index, IndexUnavailable
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.publish import Outgoing, write_all
from headwater.messages import Trend, encode
from headwater.recall.popularity import HALF_LIFE_S, Counts

log = structlog.get_logger(__name__)

_EVERY_S: Final = 2.0
# At a rebalance other workers wait for the partitions that we give up.
_LAST_WITHIN_S: Final = 5.0
_MAX_NAMES: Final = 100_000


class TrendsPublisher:
    """Writes one record per partition to the trends topic. ``counts`` are those of the owned partitions, by number.

    Trends name items by id and counts know keys only, so ids come from the index. Those found are kept, up to 100,000.
    """

    def __init__(self, producer: Producer, topic: str, index: Index, counts: Mapping[int, Counts]) -> None:
        self._producer, self._topic, self._index, self._counts = producer, topic, index, counts
        self._item_ids: dict[int, str] = {}  # of popular items that are live

    async def run(self) -> None:
        """Publish forever. Raises StopWorker when the broker does not take it."""
        while True:
            await asyncio.sleep(_EVERY_S)
            await self.publish()

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
            top = counts.top()
            counts.changed = False  # before the next await: what is counted from here on is for the next time
            try:
                await self._find_ids([key for key, _ in top])
            except IndexUnavailable:
                counts.changed = True
                break
            named = [(self._item_ids[key], weight) for key, weight in top if key in self._item_ids]
            trend = Trend(number, counts.at_ms, HALF_LIFE_S, named)
            outgoing.append(Outgoing(str(number).encode(), encode(trend)))
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

    async def _find_ids(self, keys: list[int]) -> None:
        if len(self._item_ids) > _MAX_NAMES:
            self._item_ids.clear()
        payloads = await self._index.items([key for key in keys if key not in self._item_ids])
        self._item_ids.update((key, payload["item_id"]) for key, payload in payloads.items())
