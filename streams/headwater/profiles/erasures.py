"""The erased users of one partition: until when their events are dropped, and what their tombstones rest on.

An erased user has no row. A later event gives the user a new one, which takes the time over. An erasure is forgotten
once the topic may have dropped its tombstone: what a restart would not know any more is not kept in memory either.

That holds for users who expired too: a late click of theirs, or a stale worker's record, would bring them back. There
may be millions of them, so an erasure takes 38 bytes in columns. They are sorted by the user's `hash`. Python keys it at
random for each process, so nobody outside can compute ids that collide, and no id of an erased user stays in memory.
Where two collide by chance, the other one's events up to the same time are dropped too: with ten million erased users and
as many others the odds are 1 to 180,000.
"""

from bisect import bisect_left
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwater.kafka.headers import AppliedOffset, Erasure, applied_header, erasure_header
from headwater.kafka.publish import Outgoing
from headwater.profiles.columns import I64
from headwater.profiles.order import Order

_ROW: Final = np.dtype(
    [("erased_ms", "i8"), ("incarnation", "u2"), ("offset", "i8"), ("epoch", "i4"), ("written_ms", "i8")]
)
# The time of a tombstone that is not written yet: later than any.
_UNWRITTEN: Final = int(np.iinfo(np.int64).max)
# New erasures are merged into the columns a few at a time, and old ones are taken out of them likewise: that copies the
# columns, which takes 30 ms for a million.
_LEAST_MERGED: Final = 1_024
_MERGED_SHARE: Final = 32
_SWEPT_SHARE: Final = 8


class Erased(NamedTuple):
    """Of one user: events up to ``erased_ms`` are dropped; ``written_ms`` is the time of the newest tombstone, if any."""

    erased_ms: int
    order: Order  # of the newest tombstone or, until there is one, of the record that it is to follow
    written_ms: int | None = None


class Erasures:
    """Everything that a partition knows of erased users, by their ids as UTF-8."""

    def __init__(self) -> None:
        self._new: dict[int, Erased] = {}  # by the hash of the user; none of these is in the columns
        self._hashes: I64 = np.zeros(0, dtype=np.int64)  # (N,) ascending
        self._rows: NDArray[Any] = np.zeros(0, dtype=_ROW)  # (N,)

    def __contains__(self, user: bytes) -> bool:
        return self.get(user) is not None

    def __len__(self) -> int:
        return len(self._new) + len(self._rows)

    def get(self, user: bytes) -> Erased | None:
        """What is known of the user's erasure."""
        erased = self._new.get(hash(user))
        if erased is None and (place := self._place(hash(user))) >= 0:
            erased_ms, incarnation, offset, epoch, written_ms = self._rows[place].item()
            known_ms = None if written_ms == _UNWRITTEN else written_ms
            erased = Erased(erased_ms, Order(incarnation, offset, epoch), known_ms)
        return erased

    def erased_ms(self, user: bytes) -> int:
        """Events of the user up to this time are dropped; 0 if none are."""
        erased = self.get(user)
        return 0 if erased is None else erased.erased_ms

    def offset(self, user: bytes, incarnation: int) -> int:
        """The last offset of the clicks log that was applied before the erasure; -1 where it is not known."""
        erased = self.get(user)
        if erased is None or erased.order.incarnation != incarnation:
            return -1
        return max(erased.order.offset, -1)

    def put(self, user: bytes, erased: Erased) -> None:
        """Note an erasure."""
        place = self._place(hash(user))
        if place >= 0:
            self._rows[place] = _row(erased)
            return
        self._new[hash(user)] = erased
        if len(self._new) >= max(_LEAST_MERGED, len(self._rows) // _MERGED_SHARE):
            self._merge()

    def tombstones(self, users: Iterable[bytes], incarnation: int, epoch: int, now_ms: int) -> list[Outgoing]:
        """The changelog records that erase ``users``, as the owner of ``epoch`` writes them from now on."""
        records = []
        for user in users:
            applied = AppliedOffset(incarnation, self.offset(user, incarnation))
            erased = Erased(self.erased_ms(user), Order(*applied, epoch), now_ms)
            self.put(user, erased)
            headers = [erasure_header(Erasure(erased.erased_ms, epoch)), applied_header(applied)]
            records.append(Outgoing(user, None, headers))
        return records

    def sweep(self, before_ms: int) -> int:
        """Forget erasures whose newest tombstone is older than that, or leave a few until they are more.

        Returns:
            how many were forgotten.
        """
        held = len(self)
        self._new = {
            user: erased
            for user, erased in self._new.items()
            if erased.written_ms is None or erased.written_ms >= before_ms
        }
        kept = self._rows["written_ms"] >= before_ms
        if np.count_nonzero(kept) < len(kept) * (1 - 1 / _SWEPT_SHARE):
            self._hashes, self._rows = self._hashes[kept], self._rows[kept]
        return held - len(self)

    def _place(self, user: int) -> int:
        """The place of a user's hash in the columns, or -1."""
        hashes = self._hashes.data
        place = bisect_left(hashes, user)
        return place if place < len(hashes) and hashes[place] == user else -1

    def _merge(self) -> None:
        hashes = np.fromiter(self._new, dtype=np.int64, count=len(self._new))
        rows = np.fromiter(map(_row, self._new.values()), dtype=_ROW, count=len(self._new))
        by_hash = hashes.argsort()
        hashes, rows = hashes[by_hash], rows[by_hash]
        places = self._hashes.searchsorted(hashes)
        self._hashes = np.insert(self._hashes, places, hashes)
        # As plain bytes: numpy copies records field by field.
        plain = np.dtype((np.void, _ROW.itemsize))
        self._rows = np.insert(self._rows.view(plain), places, rows.view(plain)).view(_ROW)
        self._new.clear()


def _row(erased: Erased) -> tuple[int, ...]:
    """The fields of `_ROW`."""
    written_ms = _UNWRITTEN if erased.written_ms is None else erased.written_ms
    return erased.erased_ms, *erased.order, written_ms
