"""The erased users of one partition: until when their events are dropped, and what their tombstones rest on.

An erased user has no row. A later event gives the user a new one, which takes the time over. An erasure is forgotten
once the topic may have dropped its tombstone: what a restart would not know any more is not kept in memory either.

That holds for users who expired too: a late click of theirs, or a stale worker's record, would bring them back. There
may be millions of them, so an erasure takes 30 bytes. Its key is the user's `hash`. Python keys it at random for each
process, so nobody outside can compute ids that collide, and no id of an erased user stays in memory.
Where two collide by chance, the other one's events up to the same time are dropped too: with ten million erased users and
as many others the odds are 1 to 180,000.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np

from headwater.kafka.headers import APPLIED, ERASURE, AppliedOffset, Erasure
from headwater.kafka.publish import Outgoing
from headwater.packed_rows import PackedRows, Row
from headwater.profiles.order import UNTOLD, Order

# Times in ms and offsets have 48 bits, in two halves; an offset counts from `UNTOLD`.
_ROW: Final = np.dtype(
    [
        ("erased_low", "u4"),
        ("erased_high", "u2"),
        ("offset_low", "u4"),
        ("offset_high", "u2"),
        ("incarnation", "u2"),
        ("epoch", "i4"),
        ("written_s", "u4"),
    ]
)
_LARGEST: Final = (1 << 48) - 1
# The time of a tombstone that is not written yet: later than any.
_UNWRITTEN: Final = (1 << 32) - 1


class Erased(NamedTuple):
    """Of one user: events up to ``erased_ms`` are dropped; ``written_s`` is the time of the newest tombstone, if any."""

    erased_ms: int
    order: Order  # of the newest tombstone or, until there is one, of the record that it is to follow
    written_s: int | None = None


class Erasures:
    """Everything that a partition knows of erased users, by their ids as UTF-8."""

    def __init__(self) -> None:
        self._rows = PackedRows(_ROW, np.int64)

    def __contains__(self, user: bytes) -> bool:
        return self._rows.get(hash(user)) is not None

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, user: bytes) -> Erased | None:
        """What is known of the user's erasure."""
        row = self._rows.get(hash(user))
        return None if row is None else _erased(row)

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
        self._rows.put(hash(user), _row(erased))

    def tombstones(self, users: Iterable[bytes], incarnation: int, epoch: int, now_ms: int) -> list[Outgoing]:
        """The changelog records that erase ``users``, as the owner of ``epoch`` writes them from now on."""
        records = []
        for user in users:
            applied = AppliedOffset(incarnation, self.offset(user, incarnation))
            erased = Erased(self.erased_ms(user), Order(*applied, epoch), now_ms // 1000)
            self.put(user, erased)
            headers = [ERASURE.header(Erasure(erased.erased_ms, epoch)), APPLIED.header(applied)]
            records.append(Outgoing(user, None, headers))
        return records

    def sweep(self, before_ms: int) -> int:
        """Forget erasures whose newest tombstone is older than that, or leave a few until they are more.

        Returns:
            how many were forgotten.
        """
        return self._rows.forget_before(before_ms // 1000)


def _row(erased: Erased) -> Row:
    """The fields of `_ROW`."""
    incarnation, offset, epoch = erased.order
    written_s = _UNWRITTEN if erased.written_s is None else min(max(erased.written_s, 0), _UNWRITTEN - 1)
    return *_halves(erased.erased_ms), *_halves(offset - UNTOLD), incarnation, epoch, written_s


def _erased(row: Row) -> Erased:
    erased_low, erased_high, offset_low, offset_high, incarnation, epoch, written_s = row
    offset = (offset_high << 32 | offset_low) + UNTOLD
    known_s = None if written_s == _UNWRITTEN else written_s
    return Erased(erased_high << 32 | erased_low, Order(incarnation, offset, epoch), known_s)


def _halves(number: int) -> tuple[int, int]:
    """The lower 32 and the upper 16 bits of a number, which is cut to these."""
    number = min(max(number, 0), _LARGEST)
    return number & 0xFFFF_FFFF, number >> 32
