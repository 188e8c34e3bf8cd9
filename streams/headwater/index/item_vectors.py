"""The item vectors that user encoders step on: one matrix, keys in a dict, missing ones fetched from the index."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import islice, repeat
from typing import Final

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Fetch = Callable[[Sequence[int]], Awaitable[Mapping[int, F32]]]

# Keys without a vector that are remembered, so that clicks on an unknown item cost one look-up.
_MAX_ABSENT: Final = 100_000


class ItemVectors:
    """Vectors by item key. Row 0 of :attr:`matrix`, (rows, dim) float32, is all zeros, for padding.

    Args:
        dim: numbers in a vector.
        fetch: returns the vectors, (dim,), of missing keys; None where every vector of the catalog is put here.
        bound: about the most vectors that are held when ``fetch`` can bring them back.
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
        self._fetching: list[frozenset[int]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: int) -> bool:
        return key in self._rows

    def some_keys(self, count: int) -> list[int]:
        """At most ``count`` of the keys that are held, from all over them."""
        step = max(-(-len(self._rows) // max(count, 1)), 1)
        return list(islice(self._rows, 0, None, step))

    def sample(self, count: int) -> F32:
        """The vectors, (n, dim), of at most ``count`` of the keys that are held, from all over them."""
        return self.matrix[self.rows(self.some_keys(count))]

    @property
    def can_fetch(self) -> bool:
        """Whether :meth:`ensure` can bring in anything."""
        return self._fetch is not None

    def rows(self, keys: Sequence[int]) -> NDArray[np.int64]:
        """The rows of the keys in :attr:`matrix`, (keys,) int64; -1 where a key has no vector."""
        return np.fromiter(map(self._rows.get, keys, repeat(-1)), dtype=np.int64, count=len(keys))

    def put(self, key: int, vector: F32) -> None:
        """Store the vector, (dim,), of a key. May replace :attr:`matrix` by a larger one."""
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
        """Forget the vector of a key, if there is one. Its row is used again."""
        row = self._rows.pop(key, None)
        if row is not None:
            self._free.append(row)

    def changed(self, key: int, vector: F32) -> None:
        """Take in a vector, (dim,), from the vectors topic. With ``fetch``, only keys that are held or were missed are kept."""
        wanted = key in self._rows or key in self._absent or any(key in keys for keys in self._fetching)
        if self._fetch is None or wanted:
            self.put(key, vector)

    def missing(self, keys: Iterable[int]) -> frozenset[int]:
        """The keys that :meth:`ensure` would fetch."""
        if self._fetch is None:
            return frozenset()
        return frozenset(key for key in keys if key not in self._rows and key not in self._absent)

    async def ensure(self, keys: Iterable[int]) -> None:
        """Fetch what is missing. Read :meth:`rows` and :attr:`matrix` before the next await: rows may move then.

        Raises:
            Whatever ``fetch`` raises.
        """
        needed = frozenset(keys)
        missing = self.missing(needed)
        if self._fetch is None or not missing:
            return
        self._fetching.append(missing)
        try:
            found = await self._fetch(list(missing))
        finally:
            self._fetching.remove(missing)
        if len(self._rows) + len(found) > self._bound:
            # Drop the oldest half (dicts keep insertion order), so that this is rare.
            for key in [key for key in self._rows if key not in needed][: len(self._rows) // 2]:
                self.remove(key)
        if len(self._absent) > _MAX_ABSENT:
            self._absent.clear()
        for key in missing:
            # A vector that came from the vectors topic meanwhile is newer than the fetched one.
            if key in self._rows:
                continue
            if key in found:
                self.put(key, found[key])
            else:
                self._absent[key] = None
