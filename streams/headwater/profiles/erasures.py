"""The erased users of one partition: until when their events are dropped, and what their tombstones rest on.

An erased user has no row. A later event gives the user a new one, which takes the time over. An erasure is forgotten
once the topic may have dropped its tombstone: what a restart would not know any more is not kept in memory either.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from headwater.kafka.headers import AppliedOffset, Erasure, applied_header, erasure_header
from headwater.kafka.publish import Outgoing
from headwater.profiles.order import Order


class Erased(NamedTuple):
    """Of one user: events up to ``erased_ms`` are dropped; ``written_ms`` is the time of the newest tombstone, if any."""

    erased_ms: int
    order: Order  # of the newest tombstone or, until there is one, of the record that it is to follow
    written_ms: int | None = None


class Erasures:
    """Everything that a partition knows of erased users, by their ids as UTF-8."""

    def __init__(self) -> None:
        self._by_user: dict[bytes, Erased] = {}  # in the order in which they were put

    def __contains__(self, user: bytes) -> bool:
        return user in self._by_user

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._by_user)

    def __len__(self) -> int:
        return len(self._by_user)

    def get(self, user: bytes) -> Erased | None:
        """What is known of the user's erasure."""
        return self._by_user.get(user)

    def erased_ms(self, user: bytes) -> int:
        """Events of the user up to this time are dropped; 0 if none are."""
        erased = self._by_user.get(user)
        return 0 if erased is None else erased.erased_ms

    def offset(self, user: bytes, incarnation: int) -> int:
        """The last offset of the clicks log that was applied before the erasure; -1 where it is not known."""
        erased = self._by_user.get(user)
        if erased is None or erased.order.incarnation != incarnation:
            return -1
        return max(erased.order.offset, -1)

    def put(self, user: bytes, erased: Erased) -> None:
        """Note an erasure."""
        self._by_user.pop(user, None)
        self._by_user[user] = erased

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
        """Forget erasures whose newest tombstone is older than that; returns how many there were."""
        old = []
        for user, erased in self._by_user.items():
            if erased.written_ms is not None and erased.written_ms >= before_ms:
                break
            if erased.written_ms is not None:
                old.append(user)
        for user in old:
            del self._by_user[user]
        return len(old)
