"""The profiles of one partition as numpy columns with one row per user, so that a batch is applied without a loop.

:meth:`Columns.write` is the only writer of a row.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from headwater.profiles.actions import Bools
from headwater.profiles.counters import DEFAULT_COUNTERS, CounterRows
from headwater.profiles.event_log import Event
from headwater.profiles.hides import DEFAULT_HIDES
from headwater.profiles.order import Order
from headwater.profiles.row_file import RowFile

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
U8 = NDArray[np.uint8]
F16 = NDArray[np.float16]


# Of the partitions from which a user's clicks were forwarded, those with the newest offsets: a user's client sends to one
# stray partition, or it is misconfigured.
MAX_STRAYS: Final = 8


class Log(NamedTuple):
    """The logs of R users: left-aligned, oldest first; only the first ``n`` entries of a row are real."""

    n: I64  # (users,)
    at_ms: I64  # (users, L)
    event: U64  # (users, L)
    item: U64  # (users, L)
    action: U8  # (users, L)

    def take(self, which: I64 | slice, width: int | None = None) -> "Log":
        """The logs of the users ``which`` (R,), cut to the first ``width`` places."""
        return Log(
            self.n[which],
            self.at_ms[which, :width],
            self.event[which, :width],
            self.item[which, :width],
            self.action[which, :width],
        )

    def events(self, index: int) -> list[Event]:
        """One user's entries, oldest first."""
        n = int(self.n[index])
        columns = (self.at_ms, self.event, self.item, self.action)
        return [
            Event(*entry) for entry in zip(*(column[index, :n].tolist() for column in columns), strict=True)
        ]

    def write(self, index: int, events: list[Event]) -> None:
        """Replace one user's entries in place."""
        self.n[index] = len(events)
        for place, event in enumerate(events):
            self.at_ms[index, place] = event.at_ms
            self.event[index, place] = event.event
            self.item[index, place] = event.item
            self.action[index, place] = event.action


class RowSnapshot(NamedTuple):
    """Copies of R users' rows, except their counters, which only few batches touch."""

    log: Log
    offset: I64  # (R,) last applied offset of the user's own partition
    forgotten_ms: I64  # (R,) events up to this time were erased
    state: F16  # (R, S)
    state_at_ms: I64  # (R,) time of the last folded event; 0: none
    state_is_stale: Bools  # (R,) the state lacks some of the log, or is of another bundle

    @classmethod
    def joined(cls, several: Iterable["RowSnapshot"]) -> "RowSnapshot":
        """Several snapshots as one: the users of each after those of the one before."""
        logs, *columns = zip(*several, strict=True)
        log = Log(*map(np.concatenate, zip(*logs, strict=True)))
        return cls(log, *map(np.concatenate, columns))


class RowValues(NamedTuple):
    """New values of R users' rows, for :meth:`Columns.write`."""

    rows: I64  # (R,) unique
    log: Log
    counters: CounterRows  # of those of the users whose counters change
    offset: I64  # (R,) last applied offset of the user's own partition
    forgotten_ms: I64  # (R,) events up to this time were erased
    state: F16  # (R, S)
    state_at_ms: I64  # (R,) time of the last folded event; 0: none
    pending: I64  # (R,) events not in the state because their item had no vector
    stale: Bools  # (R,) the state is of another bundle
    # (row, event id) of users whose newest event changes, and (row, partition, offset) of clicks forwarded to here.
    last_event: Iterable[tuple[int, bytes]] = ()
    origins: Iterable[tuple[int, int, int]] = ()
    # (R,) of the record, see `Order`; None: as they are
    epoch: NDArray[np.int32] | None = None
    incarnation: NDArray[np.uint16] | None = None
    # By row, of users whose kept hides change: all that they have then, see `hides.packed`.
    hides: Mapping[int, bytes] = MappingProxyType({})


class Table(Protocol):
    """Rows of users, as `apply_clicks.plan_batch` reads them."""

    def snapshot(self, rows: I64) -> RowSnapshot:
        """Copies of ``rows`` (R,), which are ascending."""
        ...

    def counters_of(self, rows: I64) -> tuple[U64, NDArray[np.uint16]]:
        """Copies of the counters of ``rows`` (R,): item keys (R, M) and levels (R, M), 0 for a free place."""
        ...

    @property
    def max_hides(self) -> int:
        """How many hides of a user are kept beyond the log."""
        ...

    def hides_of(self, rows: I64) -> dict[int, bytes]:
        """By row, the kept hides of those of ``rows`` (R,) that have any, see `hides.packed`."""
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
    "epoch",
    "incarnation",
)


class Columns:
    """Rows are handed out by :meth:`add` and given back by :meth:`remove`; arrays grow by doubling.

    Untouched rows cost no memory: the kernel maps the zeroed pages of a new array when they are first written.

    With a ``folder``, logs and states lie in a file there (`row_file.py`), those of one user side by side. A user whom
    the kernel has written out is then read back from one or two pages. The file grows by a quarter, since growing does
    not copy it. Columns of one number per user stay in memory, because some work looks at all users at once.
    """

    def __init__(
        self,
        log_length: int,
        state_size: int,
        capacity: int = 1024,
        counters: int = DEFAULT_COUNTERS,
        folder: Path | None = None,
        hides: int = DEFAULT_HIDES,
    ) -> None:
        self.log_length = log_length
        self.state_size = state_size
        self.counters = counters
        self.max_hides = hides
        self.hides: dict[int, bytes] = {}  # by row, in memory: few users have any
        self._folder = folder
        self._file: RowFile | None = None
        self.rows: dict[bytes, int] = {}
        self._free: list[int] = []
        self._used = 0
        self._allocate(capacity if folder is None else 0)

    def _allocate(self, room: int) -> None:
        length, size = self.log_length, self.state_size
        old = getattr(self, "n", None)
        capacity = max(room, 1)  # row 0 stands in for users who have none
        shapes: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
            "n": ((capacity,), np.int64),
            "at_ms": ((capacity, length), np.int64),
            "event": ((capacity, length), np.uint64),
            "item": ((capacity, length), np.uint64),
            "action": ((capacity, length), np.uint8),
            "counter_items": ((capacity, self.counters), np.uint64),  # items whose events have left the log
            "counter_levels": ((capacity, self.counters), np.uint16),  # how much they count; 0: a free place
            "offset": ((capacity,), np.int64),  # last applied offset of the user's own partition
            "state": ((capacity, size), np.float16),
            "state_at_ms": ((capacity,), np.int64),  # time of the last folded event; 0: none
            "pending": ((capacity,), np.int64),  # events not in the state because their item had no vector
            "stale": ((capacity,), np.bool_),  # the state is of another bundle: fold the log again before use
            "forgotten_ms": ((capacity,), np.int64),  # events up to this time were erased
            "epoch": ((capacity,), np.int32),  # of the owner that last wrote the user
            "incarnation": ((capacity,), np.uint16),  # of the clicks log that the offset is of
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
            self.origins: dict[int, dict[int, int]] = {}

    # The log's columns as flat arrays, with the step from row to row: `take` by one index is faster than by two.
    flat: dict[str, tuple[NDArray[Any], int]]
    n: I64
    at_ms: I64
    event: U64
    item: U64
    action: U8
    counter_items: U64
    counter_levels: NDArray[np.uint16]
    offset: I64
    state: F16
    state_at_ms: I64
    pending: I64
    stale: Bools
    forgotten_ms: I64
    epoch: NDArray[np.int32]
    incarnation: NDArray[np.uint16]

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, user: bytes, forgotten_ms: int = 0, offset: int = -1) -> int:
        """A zeroed row for a user who has none. Events up to ``forgotten_ms`` were erased, clicks up to ``offset`` are
        applied.

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
        self.offset[row], self.forgotten_ms[row] = offset, forgotten_ms
        self.rows[user] = row
        return row

    def remove(self, user: bytes) -> None:
        """Erase a user. The row is zeroed at once and may be handed out again."""
        row = self.rows.pop(user)
        for name in _COLUMNS:
            getattr(self, name)[row] = 0
        self.users[row] = b""
        self.last_event[row] = b""
        self.origins.pop(row, None)
        self.hides.pop(row, None)
        self._free.append(row)

    def prefetch(self, rows: I64) -> None:
        """Start reading ``rows`` (R,) back that the kernel has written out, all at once. In memory this does nothing."""
        if self._file is not None:
            self._file.prefetch(rows.tolist())

    def log(self, rows: I64) -> Log:
        """Copies of the logs of ``rows`` (R,)."""
        self.prefetch(rows)
        return self._log(rows)

    def _log(self, rows: I64) -> Log:
        return Log(self.n[rows], self.at_ms[rows], self.event[rows], self.item[rows], self.action[rows])

    def snapshot(self, rows: I64) -> RowSnapshot:
        """See `Table`."""
        self.prefetch(rows)
        return self.snapshot_prefetched(rows)

    def snapshot_prefetched(self, rows: I64) -> RowSnapshot:
        """:meth:`snapshot` of ``rows`` (R,), for which :meth:`prefetch` has been called."""
        return RowSnapshot(
            self._log(rows),
            self.offset[rows],
            self.forgotten_ms[rows],
            self.state[rows],
            self.state_at_ms[rows],
            self.stale[rows] | (self.pending[rows] > 0),
        )

    def counters_of(self, rows: I64) -> tuple[U64, NDArray[np.uint16]]:
        """See `Table`."""
        return self.counter_items[rows], self.counter_levels[rows]

    def hides_of(self, rows: I64) -> dict[int, bytes]:
        """See `Table`."""
        kept = self.hides
        return {row: kept[row] for row in rows.tolist() if row in kept} if kept else {}

    def has_counters(self, rows: I64) -> Bools:
        """(R,) which of the users have any counter."""
        return np.asarray(self.counter_levels[rows].any(axis=1))

    def write(self, values: RowValues) -> None:
        """Write rows, all at once. No other code writes into a row that was handed out."""
        rows, log = values.rows, values.log
        self.n[rows] = log.n
        self.at_ms[rows] = log.at_ms
        self.event[rows] = log.event
        self.item[rows] = log.item
        self.action[rows] = log.action
        counting = values.counters.rows
        self.counter_items[counting], self.counter_levels[counting] = (
            values.counters.keys,
            values.counters.levels,
        )
        self.offset[rows] = values.offset
        self.forgotten_ms[rows] = values.forgotten_ms
        self.state[rows] = values.state
        self.state_at_ms[rows] = values.state_at_ms
        self.pending[rows] = values.pending
        self.stale[rows] = values.stale
        if values.epoch is not None:
            self.epoch[rows] = values.epoch
        if values.incarnation is not None:
            self.incarnation[rows] = values.incarnation
        for row, event_id in values.last_event:
            self.last_event[row] = event_id
        for row, partition, offset in values.origins:
            origins = self.origins.setdefault(row, {})
            origins[partition] = max(offset, origins.get(partition, -1))
            if len(origins) > MAX_STRAYS:
                del origins[min(origins, key=origins.__getitem__)]
        for row, kept in values.hides.items():
            if kept:
                self.hides[row] = kept
            else:
                self.hides.pop(row, None)

    def mark_written(self, rows: I64, incarnation: int, epoch: int) -> None:
        """Note the owner's epoch in which ``rows`` (R,) were last written to the changelog, and the log's incarnation."""
        self.incarnation[rows], self.epoch[rows] = incarnation, epoch

    def order(self, row: int) -> Order:
        """The place of the user's newest record among those of the user."""
        return Order(int(self.incarnation[row]), int(self.offset[row]), int(self.epoch[row]))

    def start_incarnation(self, incarnation: int) -> None:
        """The clicks log is another one than the offsets are of: no click of it has been applied to any of these users."""
        rows = np.array(list(self.rows.values()), dtype=np.int64)
        older = rows[self.incarnation[rows] < incarnation]
        self.offset[older], self.incarnation[older] = -1, incarnation
        for row in older.tolist():
            self.origins.pop(row, None)

    def forget_offsets_from(self, first: int) -> None:
        """The clicks log has no offset from ``first`` on, so no click of it has been applied to users who name one."""
        rows = np.array(list(self.rows.values()), dtype=np.int64)
        self.offset[rows[self.offset[rows] >= first]] = -1


def _flat(column: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """A column (rows, width) as a flat view, and the number of its elements from one row to the next."""
    rows, width = column.shape
    step = column.strides[0] // column.itemsize
    return as_strided(column, ((rows - 1) * step + width if rows else 0,), (column.itemsize,)), step
