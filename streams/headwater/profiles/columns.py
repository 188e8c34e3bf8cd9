"""The profiles of one partition as numpy columns, one row a user: what lets a batch be applied without a loop.

Several partitions' are one table to who only reads: what a batch costs, whatever is in it, is then paid once for all.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from headwater.profiles.counters import DEFAULT_COUNTERS, CounterRows
from headwater.profiles.event_log import Event
from headwater.profiles.row_file import RowFile

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


class RowSnapshot(NamedTuple):
    """Copies of what is held of R users, but for their counters, which only few batches touch."""

    log: Log
    offset: I64  # (R,) last applied offset of the user's own partition
    forgotten_ms: I64  # (R,) events up to this time were erased
    state: NDArray[np.float16]  # (R, S)
    state_at_ms: I64  # (R,) time of the last folded event; 0: none
    state_is_stale: NDArray[np.bool_]  # (R,) the state lacks some of the log, or is of another bundle

    @classmethod
    def joined(cls, several: Iterable["RowSnapshot"]) -> "RowSnapshot":
        logs, *columns = zip(*several, strict=True)
        log = Log(*map(np.concatenate, zip(*logs, strict=True)))
        return cls(log, *map(np.concatenate, columns))


class Table(Protocol):
    """Rows of users, as `fold.plan` reads them."""

    def snapshot(self, rows: I64) -> RowSnapshot:
        """Args: rows: (R,) ascending."""
        ...

    def counters_of(self, rows: I64) -> tuple[U64, NDArray[np.uint16]]:
        """Items (R, M) and how much they count; copies."""
        ...


_COLUMNS = (
    "n",
    "at_ms",
    "event",
    "item",
    "action",
    "counter_items",
    "counter_levels",
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

    With a ``folder``, logs and states lie in a file there (`row_file.py`), a user's side by side, so that one who has
    been written out is read back from one or two pages; the file grows by a quarter, since it is not copied for it. What
    is looked at for all users at once, a number for each, stays in memory.
    """

    def __init__(
        self,
        log_length: int,
        state_size: int,
        capacity: int = 1024,
        counters: int = DEFAULT_COUNTERS,
        folder: Path | None = None,
    ) -> None:
        self.log_length = log_length
        self.state_size = state_size
        self.counters = counters
        self._folder = folder
        self._file: RowFile | None = None
        self.rows: dict[bytes, int] = {}
        self._free: list[int] = []
        self._used = 0
        self._allocate(capacity if folder is None else 0)

    def _allocate(self, room: int) -> None:
        length, size = self.log_length, self.state_size
        old = getattr(self, "n", None)
        capacity = max(room, 1)  # row 0 stands in for whoever has none
        shapes: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
            "n": ((capacity,), np.int64),
            "at_ms": ((capacity, length), np.int64),
            "event": ((capacity, length), np.uint64),
            "item": ((capacity, length), np.uint64),
            "action": ((capacity, length), np.uint8),
            "counter_items": ((capacity, self.counters), np.uint64),  # items whose wishes have left the log
            "counter_levels": ((capacity, self.counters), np.uint16),  # how much they count; 0: a free place
            "offset": ((capacity,), np.int64),  # last applied offset of the user's own partition
            "state": ((capacity, size), np.float16),
            "state_at_ms": ((capacity,), np.int64),  # time of the last folded event; 0: none
            "pending": ((capacity,), np.int64),  # events not in the state because their item had no vector
            "stale": ((capacity,), np.bool_),  # the state is of another bundle: fold the log again before use
            "forgotten_ms": ((capacity,), np.int64),  # events up to this time were erased
            "generation": ((capacity,), np.int32),  # of the group, when the user was last written
        }
        assert tuple(shapes) == _COLUMNS
        if self._folder is not None and room:
            wide = [(name, kind, shape[1:]) for name, (shape, kind) in shapes.items() if len(shape) > 1]
            self._file = self._file or RowFile(self._folder, np.dtype(wide, align=True))
            rows = self._file.grown(capacity)
            for name, _, _ in wide:
                setattr(self, name, rows[name])
                del shapes[name]
        # Most users have no counters, and to copy their zeros would map the pages of the new arrays.
        counting = (
            np.flatnonzero(self.counter_levels.any(axis=1))
            if old is not None and "counter_levels" in shapes
            else None
        )
        for name, (shape, kind) in shapes.items():
            array: NDArray[Any] = np.zeros(shape, dtype=kind)
            if old is not None:
                kept = counting if name in ("counter_items", "counter_levels") else slice(len(old))
                array[kept] = getattr(self, name)[kept]
            setattr(self, name, array)
        self.flat = {name: _flat(getattr(self, name)) for name in ("at_ms", "event", "item", "action")}
        self._room = room
        if old is None:
            self.users: list[bytes] = []
            self.last_event: list[bytes] = []
            self.strays: dict[int, dict[int, int]] = {}

    # Of the log's columns: for `take` by one index, which is faster than by two.
    flat: dict[str, tuple[NDArray[Any], int]]
    n: I64
    at_ms: I64
    event: U64
    item: U64
    action: U8
    counter_items: U64
    counter_levels: NDArray[np.uint16]
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
        """A zeroed row for a user who has none.

        Raises:
            DiskFull: the users are kept on disk, and there is no room for another one.
        """
        if self._free:
            row = self._free.pop()
            self.users[row] = user
        else:
            row = self._used
            if row == self._room:
                self._allocate(2 * row if self._folder is None else max(1024, row + row // 4))
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

    def prefetch(self, rows: I64) -> None:
        """Have those rows read from the disk that have been written out there."""
        if self._file is not None:
            self._file.prefetch(rows.tolist())

    def log(self, rows: I64) -> Log:
        """Copies of the logs of ``rows``."""
        self.prefetch(rows)
        return self._log(rows)

    def _log(self, rows: I64) -> Log:
        return Log(self.n[rows], self.at_ms[rows], self.event[rows], self.item[rows], self.action[rows])

    def snapshot(self, rows: I64) -> RowSnapshot:
        self.prefetch(rows)
        return self.snapshot_prefetched(rows)

    def snapshot_prefetched(self, rows: I64) -> RowSnapshot:
        """:meth:`held`, of rows that :meth:`want` has been called for."""
        return RowSnapshot(
            self._log(rows),
            self.offset[rows],
            self.forgotten_ms[rows],
            self.state[rows],
            self.state_at_ms[rows],
            self.stale[rows] | (self.pending[rows] > 0),
        )

    def counters_of(self, rows: I64) -> tuple[U64, NDArray[np.uint16]]:
        return self.counter_items[rows], self.counter_levels[rows]

    def put_log(self, rows: I64, log: Log) -> None:
        self.n[rows] = log.n
        self.at_ms[rows] = log.at_ms
        self.event[rows] = log.event
        self.item[rows] = log.item
        self.action[rows] = log.action

    def put_counters(self, new: CounterRows) -> None:
        self.counter_items[new.rows], self.counter_levels[new.rows] = new.keys, new.levels


class JoinedColumns:
    """Several partitions' columns as one table: the rows of each come after those of the one before."""

    SPREAD: Final = 1 << 40  # rows; more than there are of any

    def __init__(self, tables: Sequence[Columns]) -> None:
        self._tables = tables

    def parts(self, rows: I64, sizes: Sequence[int]) -> Iterator[tuple[slice, slice, int]]:
        """Of each table, whose batch is of so many clicks: which of ``rows``, ascending, and of all clicks are its own, and
        its first row."""
        first = 0
        for number, (start, stop) in enumerate(pairwise([0, *self._ends(rows)])):
            yield slice(start, stop), slice(first, first + sizes[number]), number * self.SPREAD
            first += sizes[number]

    def _ends(self, rows: I64) -> list[int]:
        ends: list[int] = np.searchsorted(rows, np.arange(1, len(self._tables) + 1) * self.SPREAD).tolist()
        return ends

    def snapshot(self, rows: I64) -> RowSnapshot:
        of_tables = np.split(rows % self.SPREAD, self._ends(rows)[:-1])
        parts = [*zip(self._tables, of_tables, strict=True)]
        for table, own in parts:
            table.prefetch(own)
        return RowSnapshot.joined(table.snapshot_prefetched(own) for table, own in parts)

    def counters_of(self, rows: I64) -> tuple[U64, NDArray[np.uint16]]:
        places = self._tables[0].counters
        keys = np.empty((len(rows), places), dtype=np.uint64)
        levels = np.empty((len(rows), places), dtype=np.uint16)
        number = rows // self.SPREAD
        for each in np.unique(number).tolist():
            mine = np.flatnonzero(number == each)
            keys[mine], levels[mine] = self._tables[each].counters_of(rows[mine] % self.SPREAD)
        return keys, levels


def _flat(column: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """The numbers of a column one after the other, and how many it is from one row to the next."""
    rows, width = column.shape
    step = column.strides[0] // column.itemsize
    return as_strided(column, ((rows - 1) * step + width if rows else 0,), (column.itemsize,)), step
