"""The value of a user on the profiles topic: a small binary record, packed and unpacked a batch at a time.

    header 57 bytes | state float16[S] | log, n entries of 20 bytes | strays, 12 bytes each | newest event id
    | counters, 10 bytes each

The log and all that precedes it have fixed places, so whole batches are packed and unpacked by numpy.

A record with counters is of format 2. One without is of format 1, byte by byte what versions before counters write and read.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from headwater.errors import HeadwaterError
from headwater.profiles.columns import I64, Columns, Log
from headwater.profiles.counters import LEAVES, MAX_LEVEL, CounterRows, count

FORMAT: Final = 1
FORMAT_WITH_COUNTERS: Final = 2
_HEADER: Final = np.dtype(
    [
        ("format", "u1"),
        ("n", "u1"),
        ("pending", "u1"),
        ("strays", "u1"),
        ("state_size", "<u2"),
        ("event_id_size", "<u2"),
        ("log_length", "u1"),
        ("writer", "<u8"),
        ("generation", "<i4"),
        ("bundle", "<u8"),
        ("offset", "<i8"),
        ("state_at_ms", "<i8"),
        ("forgotten_ms", "<i8"),
        ("counters", "u1"),
        ("reserved", "V3"),
    ]
)
# item key 8, event key 6, time and action 6: 44 bits of milliseconds reach the year 2527, 4 bits hold 15 actions.
# So the log of 50 and a state of 128 numbers take 1,256 bytes.
ENTRY_BYTES: Final = 20
_TIME_BITS: Final = 44
_ENTRY: Final = np.dtype(
    [
        ("item", "<u8"),
        ("event_low", "<u4"),
        ("event_high", "<u2"),
        ("stamp_low", "<u4"),
        ("stamp_high", "<u2"),
    ]
)
assert _ENTRY.itemsize == ENTRY_BYTES
_STRAY: Final = np.dtype([("partition", "<i4"), ("offset", "<i8")])
_COUNTER: Final = np.dtype([("item", "<u8"), ("level", "<u2")])
MAX_STRAYS: Final = 8
# After format, n, pending, strays (1 byte each), two sizes (2), log_length (1) and writer (8).
_GENERATION: Final = slice(17, 21)


class RecordError(HeadwaterError):
    """A record that this version cannot read; the worker must stop rather than overwrite it."""


class WriterStamp(NamedTuple):
    """Who wrote a record: for fencing, and for noticing states of another bundle."""

    writer: int
    generation: int
    bundle: int


def bundle_key(bundle_id: str) -> int:
    """The name of a bundle in records."""
    return xxhash.xxh3_64_intdigest(bundle_id.encode())


def header_size() -> int:
    return _HEADER.itemsize


def record_size(log_entries: int, state_size: int, counters: int = 0) -> int:
    """Bytes of a record without strays and event id."""
    return _HEADER.itemsize + 2 * state_size + ENTRY_BYTES * log_entries + _COUNTER.itemsize * counters


def generation_of(record: bytes) -> int:
    """The generation that wrote a record: all that fencing looks at, of every record that is read. -1: too short."""
    return int.from_bytes(record[_GENERATION], "little", signed=True) if len(record) >= header_size() else -1


def stamp_of(record: bytes) -> WriterStamp:
    header = np.frombuffer(record, dtype=_HEADER, count=1)[0]
    return WriterStamp(int(header["writer"]), int(header["generation"]), int(header["bundle"]))


def pack(columns: Columns, rows: I64, stamp: WriterStamp) -> list[bytes]:
    """The records of ``rows``, in order."""
    count, n, places = len(rows), columns.n[rows], rows.tolist()
    event_ids = [columns.last_event[row] for row in places]
    strays = [_strays(columns, row) for row in places] if columns.strays else [b""] * count
    counters = _places(columns.counter_levels[rows])
    header = np.zeros(count, dtype=_HEADER)
    header["format"] = np.where(counters > 0, FORMAT_WITH_COUNTERS, FORMAT)
    header["counters"] = counters
    header["n"] = n
    header["pending"] = columns.pending[rows]
    header["strays"] = [len(each) // _STRAY.itemsize for each in strays] if columns.strays else 0
    header["state_size"] = columns.state_size
    header["event_id_size"] = list(map(len, event_ids))
    header["log_length"] = columns.log_length
    header["writer"], header["generation"], header["bundle"] = stamp
    header["offset"] = columns.offset[rows]
    header["state_at_ms"] = columns.state_at_ms[rows]
    header["forgotten_ms"] = columns.forgotten_ms[rows]
    heads = np.empty((count, record_size(0, columns.state_size)), dtype=np.uint8)
    heads[:, : _HEADER.itemsize] = header.view(np.uint8).reshape(count, -1)
    state = columns.state[rows].astype("<f2", copy=False)
    heads[:, _HEADER.itemsize :] = state.view(np.uint8).reshape(count, -1)
    head_bytes, log_bytes = heads.tobytes(), _packed_logs(columns, rows, n)
    size = heads.shape[1]
    head_ends = range(size, count * size + 1, size)
    log_ends = np.cumsum(n * ENTRY_BYTES)
    log_starts = log_ends - n * ENTRY_BYTES
    tails = _packed_counters(columns, rows, counters) if counters.any() else [b""] * count
    return [
        b"".join((head_bytes[end - size : end], log_bytes[start:stop], stray, event_id, tail))
        for end, start, stop, stray, event_id, tail in zip(
            head_ends, log_starts.tolist(), log_ends.tolist(), strays, event_ids, tails, strict=True
        )
    ]


def _places(levels: NDArray[np.uint16]) -> I64:
    """How many places of each user's counters are written: up to the last that is taken."""
    taken = levels > 0
    places: I64 = (taken * np.arange(1, levels.shape[1] + 1)).max(axis=1, initial=0)
    return places


def _packed_counters(columns: Columns, rows: I64, places: I64) -> list[bytes]:
    held = np.flatnonzero(places)
    entries = np.empty((len(held), int(places.max())), dtype=_COUNTER)
    entries["item"] = columns.counter_items[rows[held], : entries.shape[1]]
    entries["level"] = columns.counter_levels[rows[held], : entries.shape[1]]
    packed, flat, each = [b""] * len(rows), entries.tobytes(), entries.shape[1] * _COUNTER.itemsize
    for start, index in enumerate(held.tolist()):
        packed[index] = flat[start * each : start * each + int(places[index]) * _COUNTER.itemsize]
    return packed


def _packed_logs(columns: Columns, rows: I64, n: I64) -> bytes:
    """The ``n`` real entries of each user's log, one after the other: most logs are far from full."""
    ends = np.cumsum(n)
    count = int(ends[-1])
    # One step for all in memory; on disk, a row's actions are counted in bytes and the others in eight of them.
    steps = {step for _, step in columns.flat.values()}
    at = {step: np.arange(count) - np.repeat(ends - n - rows * step, n) for step in steps}
    at_ms, events, items, actions = (numbers.take(at[step]) for numbers, step in columns.flat.values())
    stamps = at_ms | (actions.astype(np.int64) << _TIME_BITS)
    entries = np.empty(count, dtype=_ENTRY)
    entries["item"] = items
    entries["event_low"], entries["event_high"] = events & 0xFFFFFFFF, events >> 32
    entries["stamp_low"], entries["stamp_high"] = stamps & 0xFFFFFFFF, stamps >> 32
    return entries.tobytes()


def _strays(columns: Columns, row: int) -> bytes:
    strays = columns.strays.get(row)
    if not strays:
        return b""
    # Only the newest origins are kept: a user's client sends to one stray partition, or it is misconfigured.
    newest = sorted(strays.items(), key=lambda pair: -pair[1])[:MAX_STRAYS]
    return np.array(newest, dtype=_STRAY).tobytes()


def unpack(columns: Columns, rows: I64, records: Sequence[bytes], bundle: int) -> None:
    """Write ``records`` into ``rows``; a state of another bundle (or size) is marked stale.

    Raises:
        RecordError: a record is of an unknown format or cut short.
    """
    count, size = len(records), _HEADER.itemsize
    if not count:
        return
    known = (FORMAT, FORMAT_WITH_COUNTERS)
    short = next((record for record in records if len(record) < size or record[0] not in known), None)
    if short is not None:
        raise RecordError(
            f"state record: got format {short[0] if short else 'none'} with {len(short)} bytes, expected format "
            f"{FORMAT} or {FORMAT_WITH_COUNTERS} with at least {size} bytes; run the version that wrote it, or a newer one"
        )
    header = np.frombuffer(b"".join(record[:size] for record in records), dtype=_HEADER)
    log_at = size + 2 * header["state_size"].astype(np.int64)
    n = header["n"].astype(np.int64)
    strays_at = log_at + n * ENTRY_BYTES
    event_at = strays_at + header["strays"].astype(np.int64) * _STRAY.itemsize
    counters_at = event_at + header["event_id_size"]
    counters = header["counters"].astype(np.int64)
    whole_size = counters_at + counters * _COUNTER.itemsize
    lengths = np.array([len(record) for record in records])
    if (whole_size != lengths).any():
        wrong = int(np.flatnonzero(whole_size != lengths)[0])
        raise RecordError(
            f"state record: got {lengths[wrong]} bytes, expected {whole_size[wrong]}; the record is damaged"
        )
    counted = _counters(columns, rows, records, counters, counters_at)
    columns.offset[rows] = header["offset"]
    columns.state_at_ms[rows] = header["state_at_ms"]
    columns.forgotten_ms[rows] = header["forgotten_ms"]
    columns.pending[rows] = header["pending"]
    columns.generation[rows] = header["generation"]
    ours = (header["state_size"] == columns.state_size) & (header["bundle"] == bundle)
    columns.stale[rows] = ~ours
    kept = np.flatnonzero(ours)
    if len(kept) and columns.state_size:
        states = b"".join(records[index][size : size + 2 * columns.state_size] for index in kept.tolist())
        columns.state[rows[kept]] = np.frombuffer(states, dtype="<f2").reshape(len(kept), -1)
    columns.counter_levels[rows[columns.counter_levels[rows].any(axis=1)]] = 0
    columns.put_counters(counted)
    _unpack_logs(columns, rows, records, n, log_at)
    for index in np.flatnonzero(header["strays"]).tolist():
        raw = records[index][strays_at[index] : event_at[index]]
        columns.strays[int(rows[index])] = dict(np.frombuffer(raw, dtype=_STRAY).tolist())
    for row, record, start, stop in zip(
        rows.tolist(), records, event_at.tolist(), counters_at.tolist(), strict=True
    ):
        columns.last_event[row] = record[start:stop]


def _counters(
    columns: Columns, rows: I64, records: Sequence[bytes], counters: I64, counters_at: I64
) -> CounterRows:
    held = np.flatnonzero(counters)
    widest = int(counters.max())
    raw = b"".join(
        records[index][counters_at[index] :].ljust(widest * _COUNTER.itemsize, b"\0")
        for index in held.tolist()
    )
    entries = np.frombuffer(raw, dtype=_COUNTER).reshape(len(held), widest)
    keys, levels = entries["item"].astype(np.uint64), entries["level"].astype(np.uint16)
    if levels.max(initial=0) > MAX_LEVEL:
        raise RecordError(
            f"state record: got a counter of level {levels.max()}, expected at most {MAX_LEVEL}; the record is damaged"
        )
    if widest > columns.counters:  # a record of more counters than ours: the heaviest stay, where they stood
        heaviest = np.sort((-levels.astype(np.int64)).argsort(axis=1, kind="stable")[:, : columns.counters])
        keys, levels = (
            np.take_along_axis(keys, heaviest, axis=1),
            np.take_along_axis(levels, heaviest, axis=1),
        )
    missing = ((0, 0), (0, columns.counters - keys.shape[1]))
    return CounterRows(rows[held], np.pad(keys, missing), np.pad(levels, missing))


def _unpack_logs(columns: Columns, rows: I64, records: Sequence[bytes], n: I64, log_at: I64) -> None:
    length = columns.log_length
    widest = max(int(n.max()), length)
    raw = b"".join(
        record[start : start + count * ENTRY_BYTES].ljust(widest * ENTRY_BYTES, b"\0")
        for record, start, count in zip(records, log_at.tolist(), n.tolist(), strict=True)
    )
    entries = np.frombuffer(raw, dtype=np.uint8).reshape(len(records), widest, ENTRY_BYTES)
    stamps = _wide(entries[:, :, 14:20]).view(np.int64)
    log = Log(
        n,
        stamps & ((1 << _TIME_BITS) - 1),
        _wide(entries[:, :, 8:14]),
        _wide(entries[:, :, 0:8]),
        (stamps >> _TIME_BITS).astype(np.uint8),
    )
    # A record of a longer log than ours: only the newest entries fit, and the others leave it as any does.
    for index in np.flatnonzero(n > length).tolist():
        events, row = log.events(index), int(rows[index])
        log.write(index, events[-length:])
        keys, levels = columns.counter_items[row].tolist(), columns.counter_levels[row].tolist()
        count(keys, levels, ((event.item, int(LEAVES[event.action])) for event in events[:-length]))
        columns.counter_items[row], columns.counter_levels[row] = keys, levels
    columns.put_log(rows, log.take(slice(None), length))


def _wide(part: NDArray[np.uint8]) -> NDArray[np.uint64]:
    full = np.zeros((*part.shape[:2], 8), dtype=np.uint8)
    full[:, :, : part.shape[2]] = part
    return full.view("<u8").reshape(part.shape[:2])
