"""Any index with its calls timed, for the metrics."""

import time
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from headwater.index import Hit, Index, IndexHealth, Point, Query, Stored
from headwater.index.filters import Filter
from headwater.messages import OfferState
from headwater.metrics import Metrics

T = TypeVar("T")


class TimedIndex:
    """The index, with the seconds of every successful call observed in ``index_seconds``. See `Index` for its contract."""

    def __init__(self, index: Index, metrics: Metrics) -> None:
        self._index = index
        self.in_process = index.in_process
        self.filled_by = index.filled_by
        self._seconds = {
            call: metrics.index_seconds.labels(call)
            for call in ("put", "put_offers", "search", "vectors", "items", "match")
        }

    async def put(self, points: Sequence[Point]) -> Stored:
        """As `Index.put`."""
        return await self._timed("put", self._index.put(points))

    async def put_offers(self, states: Sequence[OfferState]) -> None:
        """As `Index.put_offers`."""
        await self._timed("put_offers", self._index.put_offers(states))

    async def search(self, queries: Sequence[Query]) -> list[list[Hit]]:
        """As `Index.search`."""
        return await self._timed("search", self._index.search(queries))

    async def vectors(self, keys: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        """As `Index.vectors`: (D,) each."""
        return await self._timed("vectors", self._index.vectors(keys))

    async def items(self, keys: Sequence[int]) -> dict[int, dict[str, Any]]:
        """As `Index.items`."""
        return await self._timed("items", self._index.items(keys))

    async def match(self, keys: Sequence[int], where: Filter | None) -> dict[int, str]:
        """As `Index.match`."""
        return await self._timed("match", self._index.match(keys, where))

    async def count(self) -> int:
        """As `Index.count`; not timed."""
        return await self._index.count()

    async def sweep(self, before_s: float) -> None:
        """As `Index.sweep`; not timed."""
        await self._index.sweep(before_s)

    def health(self) -> IndexHealth:
        """As `Index.health`."""
        return self._index.health()

    async def close(self) -> None:
        """Close the index."""
        await self._index.close()

    async def _timed(self, call: str, awaited: Awaitable[T]) -> T:
        started = time.perf_counter()
        result = await awaited
        self._seconds[call].observe(time.perf_counter() - started)
        return result
