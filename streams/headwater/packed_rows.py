"""A map from 64-bit keys to small records, for millions of them: columns sorted by key, and a few new ones in a dict.

A record takes its own bytes and eight of the key. As a tuple in a dict it would take ten times as many.
"""

from bisect import bisect_left
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# New records are merged into the columns a few at a time. A merge copies the columns: 30 ms for a million. While they wait,
# they take some 400 bytes each: three for each record in the columns.
_LEAST_MERGED: Final = 256
_MERGED_SHARE: Final = 128
# Old records are removed once they are more than one in this many.
_SWEPT_SHARE: Final = 8

Row = tuple[int, ...]


class PackedRows:
    """Records by key, each a tuple of the integers in ``fields``. The last field is the age: the smaller, the older."""

    def __init__(self, fields: np.dtype[Any], key_type: type[np.int64] | type[np.uint64]) -> None:
        assert fields.names
        self._age = fields.names[-1]
        self._new: dict[int, Row | None] = {}  # these count, not the columns; None: it was removed
        self._keys: NDArray[Any] = np.zeros(0, dtype=key_type)  # (N,) ascending
        self._rows: NDArray[Any] = np.zeros(0, dtype=fields)  # (N,)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """What the columns take."""
        return self._keys.nbytes + self._rows.nbytes

    def get(self, key: int) -> Row | None:
        """The record of a key."""
        if key in self._new:
            return self._new[key]
        keys = self._keys.data
        place = bisect_left(keys, key)
        if place < len(keys) and keys[place] == key:
            row: Row = self._rows.item(place)
            return row
        return None

    def put(self, key: int, row: Row) -> None:
        """Set the record of a key."""
        self._count += self.get(key) is None
        self._change(key, row)

    def remove(self, key: int) -> None:
        """Forget a key, if it is there."""
        if self.get(key) is not None:
            self._count -= 1
            self._change(key, None)

    def forget_before(self, age: int) -> int:
        """Forget records of a lower age, or leave a few of them until they are more; returns how many it forgot."""
        held = self._count
        for key in [key for key, row in self._new.items() if row is not None and row[-1] < age]:
            self.remove(key)
        if np.count_nonzero(self._rows[self._age] < age) > len(self._rows) / _SWEPT_SHARE:
            self._merge()
            self._take(self._rows[self._age] >= age)
        return held - self._count

    def forget_oldest(self, count: int) -> None:
        """Forget the oldest ``count`` records. Of those of one age, any."""
        self._merge()
        by_age = np.argpartition(self._rows[self._age], count - 1)
        kept = np.ones(len(by_age), dtype=np.bool_)
        kept[by_age[:count]] = False
        self._take(kept)

    def _change(self, key: int, row: Row | None) -> None:
        self._new[key] = row
        if len(self._new) >= max(_LEAST_MERGED, len(self._rows) // _MERGED_SHARE):
            self._merge()

    def _merge(self) -> None:
        if not self._new:
            return
        changed = np.fromiter(self._new, dtype=self._keys.dtype, count=len(self._new))
        places = self._keys.searchsorted(changed)
        within = places < len(self._keys)
        held = places[within][self._keys[places[within]] == changed[within]]
        if len(held):
            kept = np.ones(len(self._keys), dtype=np.bool_)
            kept[held] = False
            self._take(kept)
        given = {key: row for key, row in self._new.items() if row is not None}
        keys = np.fromiter(given, dtype=self._keys.dtype, count=len(given))
        rows = np.fromiter(given.values(), dtype=self._rows.dtype, count=len(given))
        order = keys.argsort()
        places = self._keys.searchsorted(keys[order])
        self._keys = np.insert(self._keys, places, keys[order])
        # As plain bytes: numpy copies records field by field.
        plain = np.dtype((np.void, rows.dtype.itemsize))
        merged = np.insert(self._rows.view(plain), places, rows[order].view(plain))
        self._rows = merged.view(rows.dtype)
        self._new.clear()
        self._count = len(self._keys)

    def _take(self, kept: NDArray[np.bool_]) -> None:
        if not kept.all():
            self._keys, self._rows = self._keys[kept], self._rows[kept]
            self._count = len(self._keys)
