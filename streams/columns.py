"""The profiles of one partition as numpy columns, one row a user: what lets a batch be applied without a loop."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streams.counters import DEFAULT_COUNTERS, Counted
from streams.profile import Event

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
U8 = NDArray[np.uint8]


class Log(NamedTuple):
    """The logs of R users: left-aligned, oldest first; only the first ``n`` entries of a row are real."""

    n: I64  # (users,)
    at_ms: I64  # (users, L)
    event: U64  # (users, L)
    item: U64  # (users, L)
    action: U8  # (users, L)

    def take(self, which: I64 | slice, width: int | None = None) -> "Log":
        """Some of the users, and of their entries only the first ``width`` places."""
        return Log(
            self.n[which],
            self.at_ms[which, :width],
            self.event[which, :width],
            self.item[which, :width],
            self.action[which, :width],
        )

    def events(self, index: int) -> list[Event]:
        n = int(self.n[index])
        columns = (self.at_ms, self.event, self.item, self.action)
        return [
            Event(*entry) for entry in zip(*(column[index, :n].tolist() for column in columns), strict=True)
        ]

    def write(self, index: int, events: list[Event]) -> None:
        self.n[index] = len(events)
        for place, event in enumerate(events):
            self.at_ms[index, place] = event.at_ms
            self.event[index, place] = event.event
            self.item[index, place] = event.item
            self.action[index, place] = event.action


_COLUMNS = (
    "n",
    "at_ms",
    "event",
    "item",
    "action",
    "counted",
    "level",
    "offset",
    "state",
    "state_at_ms",
    "pending",
    "stale",
    "forgotten_ms",
    "generation",
)


class Columns:
    """Rows are handed out by :meth:`add` and given back by :meth:`remove`; arrays grow by doubling.

    Untouched rows cost no memory: the kernel maps the zeroed pages of a new array when they are first written.
    """

    def __init__(
        self, log_length: int, state_size: int, capacity: int = 1024, counters: int = DEFAULT_COUNTERS
    ) -> None:
        self.log_length = log_length
        self.state_size = state_size
        self.counters = counters
        self.rows: dict[bytes, int] = {}
        self._free: list[int] = []
        self._used = 0
        self._allocate(capacity)

    def _allocate(self, capacity: int) -> None:
        length, size = self.log_length, self.state_size
        old = getattr(self, "n", None)
        shapes: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
            "n": ((capacity,), np.int64),
            "at_ms": ((capacity, length), np.int64),
            "event": ((capacity, length), np.uint64),
            "item": ((capacity, length), np.uint64),
            "action": ((capacity, length), np.uint8),
            "counted": ((capacity, self.counters), np.uint64),  # items whose wishes have left the log
            "level": ((capacity, self.counters), np.uint16),  # and how much they count; 0: the place is free
            "offset": ((capacity,), np.int64),  # last applied offset of the user's own partition
            "state": ((capacity, size), np.float16),
            "state_at_ms": ((capacity,), np.int64),  # time of the last folded event; 0: none
            "pending": ((capacity,), np.int64),  # events not in the state because their item had no vector
            "stale": ((capacity,), np.bool_),  # the state is of another bundle: fold the log again before use
            "forgotten_ms": ((capacity,), np.int64),  # events up to this time were erased
            "generation": ((capacity,), np.int32),  # of the group, when the user was last written
        }
        # Most users have no counters, and to copy their zeros would map the pages of the new arrays.
        counting = np.zeros(0, dtype=np.int64)
        if old is not None:
            counting = np.flatnonzero(self.level.any(axis=1))
        for name, (shape, kind) in shapes.items():
            array: NDArray[Any] = np.zeros(shape, dtype=kind)
            if old is not None:
                kept = counting if name in ("counted", "level") else slice(len(old))
                array[kept] = getattr(self, name)[kept]
            setattr(self, name, array)
        assert tuple(shapes) == _COLUMNS
        if old is None:
            self.users: list[bytes] = []
            self.last_event: list[bytes] = []
            self.strays: dict[int, dict[int, int]] = {}

    n: I64
    at_ms: I64
    event: U64
    item: U64
    action: U8
    counted: U64
    level: NDArray[np.uint16]
    offset: I64
    state: NDArray[np.float16]
    state_at_ms: I64
    pending: I64
    stale: NDArray[np.bool_]
    forgotten_ms: I64
    generation: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, user: bytes) -> int:
        """A zeroed row for a user who has none."""
        if self._free:
            row = self._free.pop()
            self.users[row] = user
        else:
            row = self._used
            if row == len(self.n):
                self._allocate(2 * row)
            self._used += 1
            self.users.append(user)
            self.last_event.append(b"")
        self.offset[row] = -1
        self.rows[user] = row
        return row

    def remove(self, user: bytes) -> None:
        """Erase a user: the row is zeroed at once and may be handed out again."""
        row = self.rows.pop(user)
        for name in _COLUMNS:
            getattr(self, name)[row] = 0
        self.users[row] = b""
        self.last_event[row] = b""
        self.strays.pop(row, None)
        self._free.append(row)

    def log(self, rows: I64) -> Log:
        """Copies of the logs of ``rows``."""
        return Log(self.n[rows], self.at_ms[rows], self.event[rows], self.item[rows], self.action[rows])

    def put_log(self, rows: I64, log: Log) -> None:
        self.n[rows] = log.n
        self.at_ms[rows] = log.at_ms
        self.event[rows] = log.event
        self.item[rows] = log.item
        self.action[rows] = log.action

    def put_counters(self, new: Counted) -> None:
        self.counted[new.rows], self.level[new.rows] = new.keys, new.levels
