"""The item vectors that user encoders step on: one matrix, keys in a dict, misses fetched from the index."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Final

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Fetch = Callable[[Sequence[int]], Awaitable[Mapping[int, F32]]]

# How many keys without a vector are remembered, so that a click on an unknown item costs one look-up, not many.
_MAX_ABSENT: Final = 100_000


class ItemVectors:
    """Row 0 is all zeros, for padding.

    Args:
        fetch: asked for keys that are not here; None where every vector of the catalog is put here anyway.
        bound: at most about this many vectors are held when ``fetch`` can bring them back.
    """

    def __init__(self, dim: int, *, fetch: Fetch | None = None, bound: int = 1_000_000) -> None:
        self.dim = dim
        self.matrix: F32 = np.zeros((1024, dim), dtype=np.float32)
        self._rows: dict[int, int] = {}
        self._free: list[int] = []
        self._used = 1
        self._fetch = fetch
        self._bound = bound
        self._absent: dict[int, None] = {}
        self._asked: list[frozenset[int]] = []  # what is being fetched

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: int) -> bool:
        return key in self._rows

    @property
    def can_fetch(self) -> bool:
        """Whether :meth:`ensure` can bring in anything."""
        return self._fetch is not None

    def rows(self, keys: Sequence[int]) -> NDArray[np.int64]:
        """Row of each key in :attr:`matrix`, -1 where it has no vector."""
        return np.fromiter(map(self._rows.get, keys, repeat(-1)), dtype=np.int64, count=len(keys))

    def put(self, key: int, vector: F32) -> None:
        row = self._rows.get(key)
        if row is None:
            row = self._free.pop() if self._free else self._used
            if row == self._used:
                self._used += 1
            if row == len(self.matrix):
                grown = np.zeros((2 * row, self.dim), dtype=np.float32)
                grown[:row] = self.matrix
                self.matrix = grown
            self._rows[key] = row
            self._absent.pop(key, None)
        self.matrix[row] = vector

    def remove(self, key: int) -> None:
        row = self._rows.pop(key, None)
        if row is not None:
            self._free.append(row)

    def changed(self, key: int, vector: F32) -> None:
        """News from the vectors topic: with ``fetch``, only what is held or was missed before is kept."""
        wanted = key in self._rows or key in self._absent or any(key in asked for asked in self._asked)
        if self._fetch is None or wanted:
            self.put(key, vector)

    def missing(self, keys: Iterable[int]) -> frozenset[int]:
        """Those of the keys that :meth:`ensure` would have to ask for."""
        if self._fetch is None:
            return frozenset()
        return frozenset(key for key in keys if key not in self._rows and key not in self._absent)

    async def ensure(self, keys: Iterable[int]) -> None:
        """Bring in what is missing; read :meth:`rows` and :attr:`matrix` right after, before the next await."""
        needed = frozenset(keys)
        missing = self.missing(needed)
        if self._fetch is None or not missing:
            return
        self._asked.append(missing)
        try:
            found = await self._fetch(list(missing))
        finally:
            self._asked.remove(missing)
        if len(self._rows) + len(found) > self._bound:
            # Oldest first: dicts keep insertion order. Half at once, so that this is rare.
            for key in [key for key in self._rows if key not in needed][: len(self._rows) // 2]:
                self.remove(key)
        if len(self._absent) > _MAX_ABSENT:
            self._absent.clear()
        for key in missing:
            # What came from the vectors topic meanwhile is newer than the answer.
            if key in self._rows:
                continue
            if key in found:
                self.put(key, found[key])
            else:
                self._absent[key] = None
