"""The value of a user on the profiles topic: a small binary record, packed and unpacked a batch at a time.

    header 57 bytes | state float16[S] | log, n entries of 20 bytes | strays, 12 bytes each | newest event id
    | counters, 10 bytes each | kept hides, 20 bytes each

The log and the parts before it have fixed places, so numpy packs and unpacks whole batches. A *stray* here is the origin
of a click that was forwarded to the user's partition: (partition, offset). A record with kept hides is of format 3, any
other one with counters of format 2, and one without either of format 1. Versions without epochs wrote the generation of the
group in the epoch's place, and incarnation 0.

All formats have one header. So the order of a record of a newer format is known, and nothing else of it.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from headwater.errors import HeadwaterError
from headwater.messages import MAX_AHEAD_MS, MAX_AT_MS, MIN_AT_MS
from headwater.profiles.columns import F16, I64, Columns, Log, RowValues
from headwater.profiles.counters import COUNTER_EFFECTS, MAX_LEVEL, CounterRows, count_evictions
from headwater.profiles.hides import HIDE_BYTES, keep, packed, unpacked
from headwater.profiles.order import Order

FORMAT: Final = 1
FORMAT_WITH_COUNTERS: Final = 2
FORMAT_WITH_HIDES: Final = 3
NEWEST_FORMAT: Final = FORMAT_WITH_HIDES
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
        ("epoch", "<i4"),
        ("bundle", "<u8"),
        ("offset", "<i8"),
        ("state_at_ms", "<i8"),
        ("forgotten_ms", "<i8"),
        ("counters", "u1"),
        ("incarnation", "<u2"),
        ("hides", "u1"),
    ]
)
# Item key 8, event key 6, time and action 6: 44 bits of milliseconds reach the year 2527, 4 bits hold 15 actions.
# A log of 50 and a state of 128 numbers take 1,256 bytes.
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
# A first byte above the known formats and up to this one is that of a newer version, if the rest may be such a header.
# Anything else is damage.
_LAST_FORMAT: Final = 31


class RecordError(HeadwaterError):
    """A record that this version cannot read."""


class WriterStamp(NamedTuple):
    """The writer of a record: for its order, and for telling states of another bundle."""

    writer: int
    epoch: int
    bundle: int
    incarnation: int = 0  # of the clicks log that the applied offset is of


def bundle_key(bundle_id: str) -> int:
    """The 64-bit name of a bundle in records."""
    return xxhash.xxh3_64_intdigest(bundle_id.encode())


def header_size() -> int:
    """The size of a record's header in bytes."""
    return _HEADER.itemsize


def record_size(log_entries: int, state_size: int, counters: int = 0, hides: int = 0) -> int:
    """The size of a record in bytes, without strays and event id."""
    entries = ENTRY_BYTES * log_entries + _COUNTER.itemsize * counters + HIDE_BYTES * hides
    return _HEADER.itemsize + 2 * state_size + entries


def orders_of(records: Sequence[bytes]) -> list[Order | None]:
    """The order of each record, also of those of a newer format; None for one that is damaged."""
    if not records:
        return []
    header, _, is_sound, is_newer = _parsed(records)
    columns = (header[name].tolist() for name in ("incarnation", "offset", "epoch"))
    orders = map(Order._make, zip(*columns, strict=True))
    is_ordered = (is_sound | is_newer).tolist()
    return [order if ordered else None for order, ordered in zip(orders, is_ordered, strict=True)]


def is_of_newer_format(record: bytes) -> bool:
    """Whether a record that has an order, see `orders_of`, is of a format that this version does not know."""
    return record[0] > NEWEST_FORMAT


def empty_record(epoch: int, bundle: int) -> bytes:
    """The record of a user of whom nothing is known: versions without epochs read it as any other."""
    header = np.zeros(1, dtype=_HEADER)
    header["format"], header["epoch"], header["bundle"], header["offset"] = FORMAT, epoch, bundle, -1
    return header.tobytes()


def stamp_of(record: bytes) -> WriterStamp:
    """The writer of a record, which must be whole."""
    header = np.frombuffer(record, dtype=_HEADER, count=1)[0]
    return WriterStamp(*(int(header[name]) for name in WriterStamp._fields))


def pack(columns: Columns, rows: I64, stamp: WriterStamp) -> list[bytes]:
    """The records of ``rows`` (R,), in order."""
    count, n, places = len(rows), columns.n[rows], rows.tolist()
    event_ids = [columns.last_event[row] for row in places]
    strays = [_strays(columns, row) for row in places] if columns.origins else [b""] * count
    counters = _places(columns.counter_levels[rows])
    header = np.zeros(count, dtype=_HEADER)
    header["format"] = np.where(counters > 0, FORMAT_WITH_COUNTERS, FORMAT)
    header["counters"] = counters
    hides = [columns.hides.get(row, b"") for row in places] if columns.hides else []
    if any(hides):
        header["hides"] = [len(each) // HIDE_BYTES for each in hides]
        header["format"][header["hides"] > 0] = FORMAT_WITH_HIDES
    header["n"] = n
    header["pending"] = columns.pending[rows]
    header["strays"] = [len(each) // _STRAY.itemsize for each in strays] if columns.origins else 0
    header["state_size"] = columns.state_size
    header["event_id_size"] = list(map(len, event_ids))
    header["log_length"] = columns.log_length
    for name, value in stamp._asdict().items():
        header[name] = value
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
    if any(hides):
        tails = list(map(bytes.__add__, tails, hides))
    return [
        b"".join((head_bytes[end - size : end], log_bytes[start:stop], stray, event_id, tail))
        for end, start, stop, stray, event_id, tail in zip(
            head_ends, log_starts.tolist(), log_ends.tolist(), strays, event_ids, tails, strict=True
        )
    ]


def _places(levels: NDArray[np.uint16]) -> I64:
    """(R,) the number of each user's counter places that are written: up to the last that is taken.

    Args:
        levels: (R, M).
    """
    taken = levels > 0
    places: I64 = (taken * np.arange(1, levels.shape[1] + 1)).max(axis=1, initial=0)
    return places


def _packed_counters(columns: Columns, rows: I64, places: I64) -> list[bytes]:
    """The counters of each of ``rows`` (R,), ``places`` (R,) entries long."""
    held = np.flatnonzero(places)
    entries = np.empty((len(held), int(places.max())), dtype=_COUNTER)
    entries["item"] = columns.counter_items[rows[held], : entries.shape[1]]
    entries["level"] = columns.counter_levels[rows[held], : entries.shape[1]]
    packed, flat, each = [b""] * len(rows), entries.tobytes(), entries.shape[1] * _COUNTER.itemsize
    for start, index in enumerate(held.tolist()):
        packed[index] = flat[start * each : start * each + int(places[index]) * _COUNTER.itemsize]
    return packed


def _packed_logs(columns: Columns, rows: I64, n: I64) -> bytes:
    """The ``n`` (R,) real entries of each user's log, one after the other. Most logs are far from full."""
    ends = np.cumsum(n)
    count = int(ends[-1])
    # In memory all columns have one step from row to row. On disk, actions step in bytes and the others in eight bytes.
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
    strays = columns.origins.get(row)
    if not strays:
        return b""
    return np.array(list(strays.items()), dtype=_STRAY).tobytes()


def unpack(
    columns: Columns, rows: I64, records: Sequence[bytes], bundle: int, written_ms: I64 | None = None
) -> None:
    """Write one record into each of ``rows`` (R,). A state of another bundle, or of another size, is marked stale.

    ``written_ms`` (R,) is the time of each record: events that are dated years after it count as of then.

    Raises:
        RecordError: a record is of a newer format, or damaged. Nothing is written.
    """
    if not len(records):
        return
    header, places, is_sound, is_newer = _parsed(records)
    if not is_sound.all():
        place = int(np.flatnonzero(~is_sound)[0])
        wrong = records[place]
        if is_newer[place]:
            raise RecordError(
                f"state record: got format {wrong[0]} with {len(wrong)} bytes, expected format {FORMAT} to "
                f"{NEWEST_FORMAT}; run the version that wrote it, or a newer one"
            )
        raise RecordError(
            f"state record: got {len(wrong)} bytes that no version writes; the record is damaged"
        )
    n = header["n"].astype(np.int64)
    states, ours = _unpacked_states(
        columns, records, (header["state_size"] == columns.state_size) & (header["bundle"] == bundle)
    )
    log = _unpacked_logs(records, n, places.log, columns.log_length)
    counters = _unpacked_counters(
        columns, rows, records, header["counters"].astype(np.int64), places.counters
    )
    hides = _unpacked_hides(columns, rows, records, header["hides"].astype(np.int64), places.hides)
    log, counters = _cut_to(columns.log_length, rows, log, counters, hides, columns.max_hides)
    forgotten_ms = header["forgotten_ms"].astype(np.int64)
    stale = ~ours
    if written_ms is not None:
        forgotten_ms = past(forgotten_ms, written_ms)
        stale |= _made_past(log, written_ms)
    event_ids = (
        record[start:stop]
        for record, start, stop in zip(
            records, places.event_id.tolist(), places.counters.tolist(), strict=True
        )
    )
    columns.write(
        RowValues(
            rows=rows,
            log=log,
            counters=counters,
            offset=header["offset"].astype(np.int64),
            forgotten_ms=forgotten_ms,
            state=states,
            state_at_ms=header["state_at_ms"].astype(np.int64),
            pending=header["pending"].astype(np.int64),
            stale=stale,
            last_event=zip(rows.tolist(), event_ids, strict=True),
            origins=[
                (int(rows[index]), partition, offset)
                for index in np.flatnonzero(header["strays"]).tolist()
                for partition, offset in np.frombuffer(
                    records[index][places.origins[index] : places.event_id[index]], dtype=_STRAY
                ).tolist()
            ],
            epoch=header["epoch"].astype(np.int32),
            incarnation=header["incarnation"].astype(np.uint16),
            hides=hides,
        )
    )


def past(at_ms: I64, written_ms: I64 | np.int64) -> I64:
    """(n,) times as a record of ``written_ms`` (n,) can honestly hold them: a publisher's clock once set any.

    Nothing is known of a record whose own time is none.
    """
    is_ahead = (written_ms >= MIN_AT_MS) & (at_ms > written_ms + MAX_AHEAD_MS)
    return np.where(is_ahead, written_ms, at_ms)


def _made_past(log: Log, written_ms: I64) -> NDArray[np.bool_]:
    """Date events of the future back, in place; (R,) the users who had any."""
    newest = log.at_ms[np.arange(len(log.n)), np.maximum(log.n - 1, 0)]
    ahead = (log.n > 0) & (past(newest, written_ms) < newest)
    for index in np.flatnonzero(ahead).tolist():
        n = int(log.n[index])
        log.at_ms[index, :n] = past(log.at_ms[index, :n], written_ms[index])
        log.write(index, sorted(log.events(index)))
    return ahead


class _Places(NamedTuple):
    """Where the parts of each record begin, in bytes: (R,) each."""

    log: I64
    origins: I64
    event_id: I64
    counters: I64
    hides: I64


class _Parsed(NamedTuple):
    """R records, as far as their headers tell."""

    header: NDArray[Any]  # (R,)
    places: _Places
    is_sound: NDArray[np.bool_]  # (R,) whole, and of a format that this version reads
    is_newer: NDArray[np.bool_]  # (R,) of a newer format


def _parsed(records: Sequence[bytes]) -> _Parsed:
    size = _HEADER.itemsize
    header = np.frombuffer(b"".join(record[:size].ljust(size, b"\0") for record in records), dtype=_HEADER)
    log = size + 2 * header["state_size"].astype(np.int64)
    origins = log + header["n"].astype(np.int64) * ENTRY_BYTES
    event_id = origins + header["strays"].astype(np.int64) * _STRAY.itemsize
    counters = event_id + header["event_id_size"]
    hides = counters + header["counters"].astype(np.int64) * _COUNTER.itemsize
    whole = hides + header["hides"].astype(np.int64) * HIDE_BYTES
    lengths = np.fromiter(map(len, records), dtype=np.int64, count=len(records))
    form, is_placed = header["format"], header["offset"] >= -1
    is_newer = (form > NEWEST_FORMAT) & (form <= _LAST_FORMAT) & (whole <= lengths) & is_placed
    if is_newer.any():
        is_newer &= _may_be_written(header)
    is_sound = (
        np.isin(form, (FORMAT, FORMAT_WITH_COUNTERS, FORMAT_WITH_HIDES)) & (whole == lengths) & is_placed
    )
    return _Parsed(header, _Places(log, origins, event_id, counters, hides), is_sound, is_newer)


def _may_be_written(header: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of the headers (R,) have times that a worker writes: of random ones, one in 2^38."""
    times = np.stack([header["state_at_ms"], header["forgotten_ms"]])
    return np.asarray(((times >= 0) & (times <= MAX_AT_MS)).all(axis=0))


def _unpacked_states(
    columns: Columns, records: Sequence[bytes], ours: NDArray[np.bool_]
) -> tuple[F16, NDArray[np.bool_]]:
    """The states (R, S) of the records that are ``ours`` (R,), and which of them are numbers; zeros for the others."""
    start, size = _HEADER.itemsize, columns.state_size
    states = np.zeros((len(records), size), dtype=np.float16)
    kept = np.flatnonzero(ours)
    if len(kept) and size:
        raw = b"".join(records[index][start : start + 2 * size] for index in kept.tolist())
        states[kept] = np.frombuffer(raw, dtype="<f2").reshape(len(kept), -1)
    is_number = np.isfinite(states).all(axis=1)
    states[~is_number] = 0
    return states, ours & is_number


def _unpacked_counters(
    columns: Columns, rows: I64, records: Sequence[bytes], counters: I64, counters_at: I64
) -> CounterRows:
    """New counters of users whose record has ``counters`` (R,), and none for other users that had some."""
    held = np.flatnonzero(counters)
    widest = int(counters.max())
    raw = b"".join(
        records[index][counters_at[index] :][: counters[index] * _COUNTER.itemsize].ljust(
            widest * _COUNTER.itemsize, b"\0"
        )
        for index in held.tolist()
    )
    entries = np.frombuffer(raw, dtype=_COUNTER).reshape(len(held), widest)
    keys, levels = entries["item"].astype(np.uint64), entries["level"].astype(np.uint16)
    np.minimum(levels, MAX_LEVEL, out=levels)  # no table has a higher one
    if widest > columns.counters:  # a record of more counters than ours: the heaviest stay, where they stood
        heaviest = np.sort((-levels.astype(np.int64)).argsort(axis=1, kind="stable")[:, : columns.counters])
        keys, levels = (
            np.take_along_axis(keys, heaviest, axis=1),
            np.take_along_axis(levels, heaviest, axis=1),
        )
    cleared = rows[columns.has_counters(rows) & (counters == 0)]
    missing = ((0, len(cleared)), (0, columns.counters - keys.shape[1]))
    return CounterRows(np.concatenate([rows[held], cleared]), np.pad(keys, missing), np.pad(levels, missing))


def _unpacked_hides(
    columns: Columns, rows: I64, records: Sequence[bytes], hides: I64, hides_at: I64
) -> dict[int, bytes]:
    """By row, the kept hides of users whose record has ``hides`` (R,), and none for other users that had some."""
    found = dict.fromkeys(columns.hides_of(rows), b"")
    for index in np.flatnonzero(hides).tolist():
        newest = records[index][hides_at[index] :][-columns.max_hides * HIDE_BYTES :]
        found[int(rows[index])] = newest if columns.max_hides else b""
    return found


def _cut_to(
    length: int, rows: I64, log: Log, counters: CounterRows, hides: dict[int, bytes], max_hides: int
) -> tuple[Log, CounterRows]:
    """Of logs longer than ours only the newest ``length`` entries; the others leave them as any event does.

    Those that hide their items go to ``hides``, by row, in place.
    """
    longer = np.flatnonzero(log.n > length)
    if len(longer):
        place_of = {row: place for place, row in enumerate(counters.rows.tolist())}
        added = [row for row in rows[longer].tolist() if row not in place_of]
        place_of.update({row: len(place_of) + number for number, row in enumerate(added)})
        counters = CounterRows(
            np.append(counters.rows, np.array(added, dtype=np.int64)),
            np.pad(counters.keys, ((0, len(added)), (0, 0))),
            np.pad(counters.levels, ((0, len(added)), (0, 0))),
        )
        for index in longer.tolist():
            events, place = log.events(index), place_of[int(rows[index])]
            log.write(index, events[-length:])
            keys, levels = counters.keys[place].tolist(), counters.levels[place].tolist()
            count_evictions(
                keys, levels, ((event.item, int(COUNTER_EFFECTS[event.action])) for event in events[:-length])
            )
            counters.keys[place], counters.levels[place] = keys, levels
            row = int(rows[index])
            kept = unpacked(hides.get(row, b""))
            for event in events[:-length]:
                keep(kept, event, max_hides)
            if kept:
                hides[row] = packed(kept)
    return log.take(slice(None), length), counters


def _unpacked_logs(records: Sequence[bytes], n: I64, log_at: I64, length: int) -> Log:
    """The logs of R records, at least ``length`` places wide."""
    widest = max(int(n.max()), length)
    raw = b"".join(
        record[start : start + count * ENTRY_BYTES].ljust(widest * ENTRY_BYTES, b"\0")
        for record, start, count in zip(records, log_at.tolist(), n.tolist(), strict=True)
    )
    entries = np.frombuffer(raw, dtype=np.uint8).reshape(len(records), widest, ENTRY_BYTES)
    stamps = _wide(entries[:, :, 14:20]).view(np.int64)
    return Log(
        n,
        stamps & ((1 << _TIME_BITS) - 1),
        _wide(entries[:, :, 8:14]),
        _wide(entries[:, :, 0:8]),
        (stamps >> _TIME_BITS).astype(np.uint8),
    )


def _wide(part: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Little-endian integers of fewer than eight bytes (R, L, bytes) as numbers (R, L)."""
    full = np.zeros((*part.shape[:2], 8), dtype=np.uint8)
    full[:, :, : part.shape[2]] = part
    return full.view("<u8").reshape(part.shape[:2])
