"""A batch of clicks against the columns of its partition: new logs, and what the encoder has to step or fold again.

Pure: arrays in, arrays out. Users whose events simply come after what they have (nearly all) are handled together;
the others (late, repeated, retracted, forgotten) one by one, by the rules of `profile.py`. Both ways give the same
log, which a property test holds to.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streams.columns import I64, U8, U64, Columns, Log
from streams.features import ACTION_CODES, clamp_gap_s
from streams.messages import ACTIONS
from streams.profile import FORGET, IMPRESSION, RETRACT, Event, Outcome, insert

F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]

_CODES: Final = max(ACTION_CODES.values()) + 1


def _by_code(chosen: Callable[[str], bool]) -> Bools:
    return np.array(
        [code in {ACTION_CODES[name] for name in ACTIONS if chosen(name)} for code in range(_CODES)]
    )


STEPS: Final = _by_code(lambda name: ACTIONS[name].steps_encoder)
SEEN: Final = _by_code(lambda name: ACTIONS[name].counts_as_seen)
POPULARITY: Final = np.zeros(_CODES, dtype=np.float64)
for _name, _action in ACTIONS.items():
    POPULARITY[ACTION_CODES[_name]] = _action.popularity


class Clicks(NamedTuple):
    """Decoded clicks of one partition in offset order; ``row`` points into the partition's columns."""

    row: I64
    offset: I64
    at_ms: I64
    event: U64
    item: U64
    action: U8

    def take(self, which: I64 | slice) -> "Clicks":
        return Clicks(
            self.row[which],
            self.offset[which],
            self.at_ms[which],
            self.event[which],
            self.item[which],
            self.action[which],
        )


class Change(NamedTuple):
    """What a batch does to R touched users. Nothing is written until :func:`commit`."""

    rows: I64  # (R,) unique
    log: Log  # the new logs
    offset: I64  # (R,) new applied offsets
    refold: Bools  # (R,) the log changed elsewhere than at its end
    evicted: Bools  # (R,) appending pushed old events out
    steps_user: I64  # (E,) index into rows of each appended event that may step the encoder, in order
    steps: Clicks  # (E,) those events
    erased: Bools  # (R,) forget took everything
    forgotten_ms: I64  # (R,)
    newest: I64  # (R,) index into the batch of the event that is now the user's newest, or -1
    outcomes: NDArray[np.int64]  # counts by Outcome
    applied: Bools  # (batch,) events that count, for popularity


def plan(columns: Columns, clicks: Clicks) -> Change:
    """Work out what ``clicks`` do, without touching ``columns``."""
    capacity = columns.log_length
    order = np.argsort(clicks.row, kind="stable")
    rows, counts = _runs(clicks.row[order])
    user = np.repeat(np.arange(len(rows)), counts)  # of each event in `order`
    log = columns.log(rows)
    offset = columns.offset[rows]
    forgotten = columns.forgotten_ms[rows]

    offsets = clicks.offset[order]
    replayed = offsets <= offset[user]
    unlogged = ~replayed & (clicks.action[order] == IMPRESSION)
    used = np.flatnonzero(~replayed & ~unlogged)
    at_ms, event = clicks.at_ms[order][used], clicks.event[order][used]
    item, action, whose = clicks.item[order][used], clicks.action[order][used], user[used]

    slow = _needs_care(log, forgotten, whose, at_ms, event, action)
    outcomes = np.zeros(len(Outcome), dtype=np.int64)
    outcomes[Outcome.REPLAYED], outcomes[Outcome.UNLOGGED] = replayed.sum(), unlogged.sum()
    applied = np.zeros(len(order), dtype=np.bool_)
    refold = np.zeros(len(rows), dtype=np.bool_)
    erased = np.zeros(len(rows), dtype=np.bool_)
    newest = np.full(len(rows), -1, dtype=np.int64)

    easy = ~slow[whose]
    evicted = _append(log, whose[easy], at_ms[easy], event[easy], item[easy], action[easy])
    applied[used[easy]] = True
    outcomes[Outcome.APPLIED] += int(easy.sum())
    newest[whose[easy]] = order[used[easy]]  # later assignments win: the user's last event

    hard = np.flatnonzero(~easy)
    bounds = np.flatnonzero(np.diff(whose[hard], prepend=-1))
    for group in np.split(hard, bounds[1:]) if len(hard) else ():
        index = int(whose[group[0]])
        events = log.events(index)
        before = list(events)
        places: dict[int, int] = {}  # in the batch, of each event of it that came into the log
        for place in group.tolist():
            new = Event(int(at_ms[place]), int(event[place]), int(item[place]), int(action[place]))
            if new.action == FORGET:
                forgotten[index] = max(int(forgotten[index]), new.at_ms)
                events = [kept for kept in events if kept.at_ms > new.at_ms]
                outcome = Outcome.APPLIED
            elif new.at_ms <= forgotten[index]:
                outcome = Outcome.FORGOTTEN
            else:
                outcome = insert(events, new, capacity)
            outcomes[outcome] += 1
            if outcome is Outcome.APPLIED and new.action < RETRACT:
                applied[used[place]] = True
                places[new.event] = place
        last = next((entry for entry in reversed(events) if entry.action != RETRACT), None)
        if last is not None and last.event in places:
            newest[index] = order[used[places[last.event]]]
        erased[index] = not events and forgotten[index] > 0
        if events != before:
            refold[index] = True
            log.write(index, events)

    steps = used[easy][STEPS[action[easy]]]
    chosen = order[steps]
    was_applied = np.zeros(len(order), dtype=np.bool_)
    was_applied[order] = applied
    ends = np.cumsum(counts) - 1
    return Change(
        rows=rows,
        log=log,
        offset=np.maximum(offset, offsets[ends]),
        refold=refold,
        evicted=evicted,
        steps_user=user[steps],
        steps=clicks.take(chosen),
        erased=erased,
        forgotten_ms=forgotten,
        newest=newest,
        outcomes=outcomes,
        applied=was_applied,
    )


def _needs_care(log: Log, forgotten: I64, whose: I64, at_ms: I64, event: U64, action: U8) -> Bools:
    """Which users' events do not simply append: out of order, repeated, or taking something back."""
    users = len(log.n)
    if not len(whose):
        return np.zeros(users, dtype=np.bool_)
    has_log = log.n > 0
    end = np.maximum(log.n - 1, 0)
    every = np.arange(users)
    last_at = np.where(has_log, log.at_ms[every, end], -1)
    last_event = np.where(has_log, log.event[every, end], 0)
    first = np.diff(whose, prepend=-1) != 0
    before_at = np.where(first, last_at[whose], np.roll(at_ms, 1))
    before_event = np.where(first, last_event[whose], np.roll(event, 1))
    rising = (at_ms > before_at) | ((at_ms == before_at) & (event > before_event))
    # What an entry beyond the end once was may be found too; looking twice at its user does no harm.
    known = (log.event[whose] == event[:, None]).any(axis=1)
    by_event = np.lexsort((event, whose))
    twice = (np.diff(whose[by_event]) == 0) & (np.diff(event[by_event]) == 0)
    care = ~rising | known | (action >= RETRACT) | (at_ms <= forgotten[whose])
    care[by_event[1:][twice]] = True
    careful = np.zeros(users, dtype=np.bool_)
    careful[whose[care]] = True
    return careful


def _append(log: Log, whose: I64, at_ms: I64, event: U64, item: U64, action: U8) -> Bools:
    """Append in place, shifting out the oldest; returns which users lost an event."""
    users, width = len(log.n), log.at_ms.shape[1]
    count = np.bincount(whose, minlength=users)
    shift = np.maximum(log.n + count - width, 0)
    full = np.flatnonzero(shift)
    if len(full):
        source = np.minimum(np.arange(width)[None, :] + shift[full, None], width - 1)
        for column in (log.at_ms, log.event, log.item, log.action):
            column[full] = np.take_along_axis(column[full], source, axis=1)
    starts = np.cumsum(count) - count
    rank = np.arange(len(whose)) - starts[whose]
    place = log.n[whose] - shift[whose] + rank
    fits = place >= 0  # of more than a log's worth at once, only the newest stay
    at = (whose[fits], place[fits])
    log.at_ms[at], log.event[at] = at_ms[fits], event[fits]
    log.item[at], log.action[at] = item[fits], action[fits]
    np.minimum(log.n + count, width, out=log.n)
    lost: Bools = shift > 0
    return lost


class StepInput(NamedTuple):
    """One call of the encoder's step graph for ``users`` (indices of the caller), padded at the end."""

    users: I64  # (B,)
    vector_rows: I64  # (B, T) rows of the vector matrix; padding points at row 0
    actions: I64  # (B, T)
    gaps_s: F32  # (B, T)
    mask: F32  # (B, T)


# Users with similar numbers of events share a call: padding at most doubles the work of any of them.
_WIDTHS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# Bounds one call's memory and time: 512 users x 64 events x 384 dimensions x 4 bytes = 50 MB.
_MAX_USERS_PER_CALL: Final = 512


def step_inputs(
    users: I64, vector_rows: I64, actions: I64, at_ms: I64, start_ms: I64, newest: int
) -> Iterator[StepInput]:
    """Group events (sorted by user, oldest first) into padded calls.

    Args:
        users: (E,) caller's index of each event's user, ascending.
        start_ms: (caller's users,) time of the event folded last, 0 for none: the first gap counts from it.
        newest: at most this many of a user's newest events are stepped.
    """
    if not len(users):
        return
    unique, count = _runs(users)
    starts = np.cumsum(count) - count
    rank = np.arange(len(users)) - np.repeat(starts, count)
    before = np.where(rank == 0, start_ms[users], np.roll(at_ms, 1))
    gaps = np.where(before > 0, clamp_gap_s((at_ms - before) / 1000.0), 0.0).astype(np.float32)
    skip = np.maximum(count - newest, 0)
    keep = rank >= np.repeat(skip, count)
    place, width_of = rank - np.repeat(skip, count), np.minimum(count, newest)
    class_of = np.searchsorted(_WIDTHS, width_of)
    for each in np.flatnonzero(np.bincount(class_of)).tolist():
        width = _WIDTHS[each]
        fitting = np.flatnonzero(class_of == each)
        for cut in range(0, len(fitting), _MAX_USERS_PER_CALL):
            chosen = fitting[cut : cut + _MAX_USERS_PER_CALL]
            slot = np.full(len(unique), -1, dtype=np.int64)
            slot[chosen] = np.arange(len(chosen))
            row = np.repeat(slot, count)
            taken = keep & (row >= 0)
            at = (row[taken], place[taken])
            shape = (len(chosen), width)
            call = StepInput(
                unique[chosen],
                np.zeros(shape, dtype=np.int64),
                np.zeros(shape, dtype=np.int64),
                np.zeros(shape, dtype=np.float32),
                np.zeros(shape, dtype=np.float32),
            )
            call.vector_rows[at], call.actions[at] = vector_rows[taken], actions[taken]
            call.gaps_s[at], call.mask[at] = gaps[taken], 1.0
            yield call


def _runs(ascending: I64) -> tuple[I64, I64]:
    """The distinct values of a sorted array, and how often each occurs."""
    starts = np.flatnonzero(np.diff(ascending, prepend=-1))
    return ascending[starts], np.diff(starts, append=len(ascending))


def folded_entries(log: Log, chosen: I64) -> tuple[I64, U64, I64, I64]:
    """The log entries of users ``chosen`` that step the encoder: (user index, item key, action, time) each."""
    real = np.arange(log.at_ms.shape[1]) < log.n[chosen][:, None]
    stepping = real & STEPS[log.action[chosen]]
    user, place = np.nonzero(stepping)
    where = (chosen[user], place)
    return chosen[user], log.item[where], log.action[where].astype(np.int64), log.at_ms[where]


def last_time(users: I64, at_ms: I64, otherwise: I64) -> I64:
    """Per user the time of the last of its events (sorted by user, oldest first), or ``otherwise``."""
    result = otherwise.copy()
    result[users] = at_ms  # numpy keeps the last assignment of a repeated index
    return result


def counts_by_user(users: I64, size: int) -> I64:
    return np.bincount(users, minlength=size).astype(np.int64)


def key_array(keys: Sequence[int]) -> U64:
    return np.array(keys, dtype=np.uint64)
