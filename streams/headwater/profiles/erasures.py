"""The erased users of one partition: until when their events are dropped, and the generation that wrote it.

An erased user has no row. A later event gives the user a new one, which takes the time over.
"""

from collections.abc import Iterable, Iterator

from headwater.kafka.headers import Erasure, erasure_header
from headwater.kafka.publish import Outgoing

# An erasure that no generation of the group has written yet.
UNWRITTEN = -1


class Erasures:
    """Everything that a partition knows of erased users, by their ids as UTF-8."""

    def __init__(self) -> None:
        self._by_user: dict[bytes, Erasure] = {}

    def __contains__(self, user: bytes) -> bool:
        return user in self._by_user

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._by_user)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Erasures) and self._by_user == other._by_user

    __hash__ = None  # type: ignore[assignment]

    def erased_ms(self, user: bytes) -> int:
        """Events of the user up to this time are dropped; 0 if none are."""
        erasure = self._by_user.get(user)
        return 0 if erasure is None else erasure.erased_ms

    def generation(self, user: bytes) -> int:
        """The generation of the group that wrote the erasure: a record of an older one does not undo it. Else -1."""
        erasure = self._by_user.get(user)
        return UNWRITTEN if erasure is None else erasure.epoch

    def put(self, user: bytes, erased_ms: int, generation: int | None = None) -> None:
        """Note an erasure. Without a ``generation`` it has still to be written."""
        written = self.generation(user) if generation is None else generation
        self._by_user[user] = Erasure(erased_ms, written)

    def tombstones(self, users: Iterable[bytes], generation: int) -> list[Outgoing]:
        """The changelog records that erase ``users``, as ``generation`` writes them from now on."""
        records = []
        for user in users:
            self.put(user, self.erased_ms(user), generation)
            records.append(Outgoing(user, None, [erasure_header(self._by_user[user])]))
        return records
