"""Marks of deletions: the version at which each item was deleted, so that a late copy of an older one stays out.

A publisher may repeat an old version of an item hours after its deletion. Nothing else in memory knows of the item then, so
a mark stays for four weeks, and of too many the newest stay. Without its mark an item is new: such a copy would bring it
back until its next change. A stale owner's copies are turned away by their epoch, however late they are.
"""

from typing import Final

import numpy as np

from headwater.index import VersionStamp
from headwater.packed_rows import PackedRows

# A publisher that is later than this is none.
MARKS_KEPT_S: Final = 28 * 86_400.0
# So much more than the marks that are kept is too many: each cut copies them.
_SLACK: Final = 1 / 8
# With the key a mark has 32 bytes. Ids have up to 512: of them a part of Python's own hash is kept, which is keyed at random
# for each process, so nobody outside can compute another id with it.
_LATEST_S: Final = (1 << 32) - 1.0
_MARK: Final = np.dtype([("version", "i8"), ("offset", "i8"), ("id_check", "u4"), ("set_s", "u4")])


class DeletionMarks:
    """The deleted items of an index or of a catalog partition, the newest ``kept`` and a few more. 32 bytes each.

    A key has one mark. Where ids of two items share a key, the newer deletion has it.
    """

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._marks = PackedRows(_MARK, np.uint64)

    def __len__(self) -> int:
        return len(self._marks)

    def get(self, key: int, item_id: str) -> VersionStamp | None:
        """The stamp of an item's deletion, if it is known to be deleted."""
        mark = self._marks.get(key)
        if mark is None or mark[2] != _id_check(item_id):
            return None
        return VersionStamp(mark[0], mark[1])

    def put(self, key: int, item_id: str, stamp: VersionStamp, set_s: float) -> None:
        """Note a deletion, and when it was marked in seconds since 1970, as a record's timestamp may say: any number.

        Of too many the oldest go.
        """
        self._marks.put(key, (*stamp, _id_check(item_id), int(min(max(set_s, 0.0), _LATEST_S))))
        if len(self._marks) > self._kept * (1 + _SLACK):
            self._marks.forget_oldest(len(self._marks) - self._kept)

    def remove(self, key: int) -> None:
        """The item of this key is back, or nothing is to be known of it."""
        self._marks.remove(key)

    def sweep(self, before_s: float) -> None:
        """Forget marks that were set before, or leave a few of them until they are more."""
        self._marks.forget_before(int(before_s))


def _id_check(item_id: str) -> int:
    return hash(item_id) & 0xFFFF_FFFF
