"""A batch of clicks against the columns of its partition, or of several together: new logs, and what the encoder has to step or fold again.

Pure: arrays in, arrays out. Users whose events simply come after what they have (nearly all) are handled together;
the others (late, repeated, retracted, forgotten) one by one, by the rules of `profile.py`. Both ways give the same
log, which a property test holds to.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwater.encoder.features import clamp_gap_s, event_keys
from headwater.profiles.actions import FORGET, IMPRESSION, RETRACT, STEPS, TAKES_BACK, Bools
from headwater.profiles.columns import F16, I64, U8, U64, Log, RowValues, Table
from headwater.profiles.counters import LEAVES, CounterRows, Left, apply_evictions
from headwater.profiles.event_log import Event, Outcome, insert

F32 = NDArray[np.float32]


class Clicks(NamedTuple):
    """N clicks of one partition in offset order, with rows of its `Columns`.

    Or of several partitions, one after the other, with rows of a table that joins them.
    """

    row: I64  # (N,)
    offset: I64  # (N,)
    at_ms: I64  # (N,)
    event: U64  # (N,) event keys, 48 bits
    item: U64  # (N,) item keys
    action: U8  # (N,) action codes

    def take(self, which: "I64 | Bools | slice") -> "Clicks":
        return Clicks(
            self.row[which],
            self.offset[which],
            self.at_ms[which],
            self.event[which],
            self.item[which],
            self.action[which],
        )


class Leaving(NamedTuple):
    """Events that have left their logs, those of a user together and oldest first."""

    user: I64  # (E,)
    item: U64
    action: U8


class ProfileDelta(NamedTuple):
    """What a batch does to the R users that it touches. Nothing is written yet.

    :func:`plan_batch` leaves the encoder's states as they were; :meth:`stepped` gives the delta with the new ones.
    """

    rows: I64  # (R,) unique, ascending
    log: Log  # the new logs
    counters: CounterRows  # the new counters of users whose log an event has left
    offset: I64  # (R,) new applied offsets
    state: F16  # (R, S)
    state_at_ms: I64  # (R,) time of the last event in each state; 0: none
    pending: I64  # (R,) events not in the state because their item had no vector
    state_is_stale: Bools  # (R,) the state lacks some of the log, or is of another bundle
    refold: Bools  # (R,) the log changed elsewhere than at its end
    evicted: Bools  # (R,) appending pushed old events out
    steps_user: I64  # (E,) index into rows of each appended event that may step the encoder, in order
    steps: Clicks  # (E,) those events
    erased: Bools  # (R,) forget took everything
    forgotten_ms: I64  # (R,)
    newest: I64  # (R,) index into the batch of the event that is now the user's newest, or -1
    outcome: U8  # (batch,) what became of each event
    applied: Bools  # (batch,) events that count, for popularity

    def stepped(self, state: F16, state_at_ms: I64, pending: I64) -> "ProfileDelta":
        """The same with the users' new states (R, S), their times (R,) and the events that each lacks (R,)."""
        return self._replace(
            state=state, state_at_ms=state_at_ms, pending=pending, state_is_stale=np.zeros_like(self.erased)
        )

    @property
    def outcome_counts(self) -> I64:
        """(outcomes,) the number of events by `Outcome`."""
        return np.bincount(self.outcome, minlength=len(Outcome))

    def part(self, users: slice, clicks: slice, row: int) -> "ProfileDelta":
        """The delta of some of the users. ``clicks`` are all clicks of theirs, and ``row`` becomes row 0."""
        mine = slice(*np.searchsorted(self.steps_user, (users.start, users.stop)).tolist())
        begin, end = self.rows[users][[0, -1]]
        counting = (self.counters.rows >= begin) & (self.counters.rows <= end)
        newest = self.newest[users]
        return ProfileDelta(
            rows=self.rows[users] - row,
            log=self.log.take(users),
            counters=CounterRows(
                self.counters.rows[counting] - row,
                self.counters.keys[counting],
                self.counters.levels[counting],
            ),
            offset=self.offset[users],
            state=self.state[users],
            state_at_ms=self.state_at_ms[users],
            pending=self.pending[users],
            state_is_stale=self.state_is_stale[users],
            refold=self.refold[users],
            evicted=self.evicted[users],
            steps_user=self.steps_user[mine] - users.start,
            steps=self.steps.take(mine)._replace(row=self.steps.row[mine] - row),
            erased=self.erased[users],
            forgotten_ms=self.forgotten_ms[users],
            newest=np.where(newest < 0, -1, newest - clicks.start),
            outcome=self.outcome[clicks],
            applied=self.applied[clicks],
        )

    def values(
        self, event_ids: Sequence[bytes], last_event: Sequence[bytes], origins: Iterable[tuple[int, int, int]]
    ) -> RowValues:
        """What is to stand in the users' rows.

        Args:
            event_ids: (batch,) the id of each event, as UTF-8.
            last_event: by row, the id of the user's newest event so far.
            origins: (row, partition, offset) of each event that was forwarded to here.
        """
        return RowValues(
            self.rows,
            self.log,
            self.counters,
            self.offset,
            self.forgotten_ms,
            self.state,
            self.state_at_ms,
            self.pending,
            self.state_is_stale,
            self._last_events(event_ids, last_event),
            origins,
        )

    def _last_events(
        self, event_ids: Sequence[bytes], last_event: Sequence[bytes]
    ) -> list[tuple[int, bytes]]:
        """(row, event id) of users whose newest event changes. After a retraction its id may not be known any more."""
        newer = self.newest >= 0
        changed = [
            (row, event_ids[place])
            for row, place in zip(self.rows[newer].tolist(), self.newest[newer].tolist(), strict=True)
        ]
        for index in (self.refold & ~newer).nonzero()[0].tolist():
            row, events = int(self.rows[index]), self.log.events(index)
            newest = next((event.event for event in reversed(events) if event.action != RETRACT), -1)
            if int(event_keys([last_event[row]])[0]) != newest:
                changed.append((row, b""))
        return changed


def plan_batch(table: Table, clicks: Clicks) -> ProfileDelta:
    """Work out what ``clicks`` do, without touching ``table``."""
    order = clicks.row.argsort(kind="stable")
    ordered = clicks.take(order)
    first = _firsts(ordered.row)
    rows = ordered.row[first]
    user = first.cumsum() - 1  # of each event in `order`
    snapshot = table.snapshot(rows)
    log, offset, forgotten = (
        snapshot.log,
        snapshot.offset,
        snapshot.forgotten_ms,
    )  # copies: they become the new ones

    replayed = ordered.offset <= offset[user]
    unlogged = ~replayed & (ordered.action == IMPRESSION)
    used = (~(replayed | unlogged)).nonzero()[0]
    at_ms, event = ordered.at_ms[used], ordered.event[used]
    item, action, whose = ordered.item[used], ordered.action[used], user[used]

    slow = _needs_care(log, forgotten, whose, at_ms, event, action)
    easy: Bools | slice = ~slow[whose] if slow.any() else slice(None)
    outcome = replayed * np.uint8(Outcome.REPLAYED) + unlogged * np.uint8(Outcome.UNLOGGED)  # else 0, applied
    applied = np.zeros(len(order), dtype=np.bool_)
    refold = np.zeros(len(rows), dtype=np.bool_)
    erased = np.zeros(len(rows), dtype=np.bool_)
    newest = np.full(len(rows), -1, dtype=np.int64)

    leaving = _append(log, whose[easy], at_ms[easy], event[easy], item[easy], action[easy])
    evicted = np.zeros(len(rows), dtype=np.bool_)
    evicted[leaving.user] = True
    left: list[tuple[int, Event]] = []  # the same of the others
    applied[used[easy]] = True
    newest[whose[easy]] = order[used[easy]]  # later assignments win: the user's last event

    hard = slow[whose].nonzero()[0]
    for group in np.split(hard, _firsts(whose[hard]).nonzero()[0][1:]) if len(hard) else ():
        index = int(whose[group[0]])
        events = log.events(index)
        before = list(events)
        gone: list[Event] = []
        places: dict[int, int] = {}  # in the batch, of each event of it that came into the log
        for place in group.tolist():
            new = Event(int(at_ms[place]), int(event[place]), int(item[place]), int(action[place]))
            if new.action == FORGET:
                if new.at_ms > forgotten[index]:
                    gone = [new]  # a counter knows no times
                forgotten[index] = max(int(forgotten[index]), new.at_ms)
                events = [kept for kept in events if kept.at_ms > new.at_ms]
                became = Outcome.APPLIED
            elif new.at_ms <= forgotten[index]:
                became = Outcome.FORGOTTEN
            else:
                became = insert(events, new, log.at_ms.shape[1], gone)
            outcome[used[place]] = became
            if became is Outcome.APPLIED and not TAKES_BACK[new.action]:
                applied[used[place]] = True
                places[new.event] = place
        last = next((entry for entry in reversed(events) if entry.action != RETRACT), None)
        if last is not None and last.event in places:
            newest[index] = order[used[places[last.event]]]
        erased[index] = not events and forgotten[index] > 0
        left += [(index, entry) for entry in gone]
        if events != before:
            refold[index] = True
            log.write(index, events)

    steps = used[easy][STEPS[action[easy]]]
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    offset[user] = np.maximum(offset[user], ordered.offset)  # in order, so that the user's last counts
    return ProfileDelta(
        rows=rows,
        log=log,
        counters=_counters(table, rows, _joined(leaving, left)),
        offset=offset,
        state=snapshot.state,
        state_at_ms=snapshot.state_at_ms,
        pending=np.zeros_like(rows),
        state_is_stale=snapshot.state_is_stale,
        refold=refold,
        evicted=evicted,
        steps_user=user[steps],
        steps=ordered.take(steps),
        erased=erased,
        forgotten_ms=forgotten,
        newest=newest,
        outcome=outcome[back],
        applied=applied[back],
    )


def _needs_care(log: Log, forgotten: I64, whose: I64, at_ms: I64, event: U64, action: U8) -> Bools:
    """Which users' events do not simply append: out of order, repeated, or taking something back."""
    careful = np.zeros(len(log.n), dtype=np.bool_)
    if not len(whose):
        return careful
    first = _firsts(whose)
    starts = whose[first]
    end = log.n[starts] - 1  # -1 without a log: what stands there plays no part, at a time before all
    before_at, before_event = _before(at_ms), _before(event)
    before_at[first] = np.where(end < 0, -1, log.at_ms[starts, end])
    before_event[first] = log.event[starts, end]
    falling = (at_ms < before_at) | ((at_ms == before_at) & (event <= before_event))
    # What an entry beyond the end once was may be found too; looking twice at its user does no harm.
    known = (log.event[whose] == event[:, None]).any(axis=1)
    care = falling | known | TAKES_BACK[action] | (at_ms <= forgotten[whose])
    careful[whose[care]] = True
    if len(starts) < len(whose):
        by_event = np.lexsort((event, whose))
        twice = ~(_firsts(whose[by_event]) | _firsts(event[by_event]))
        careful[whose[by_event[twice]]] = True
    return careful


def _append(log: Log, whose: I64, at_ms: I64, event: U64, item: U64, action: U8) -> Leaving:
    """Append in place, shifting out the oldest; returns what has left."""
    width = log.at_ms.shape[1]
    count = np.bincount(whose, minlength=len(log.n))
    shift = np.maximum(log.n + count - width, 0)
    full = (shift > 0).nonzero()[0]
    gone, place = (np.arange(width) < np.minimum(shift, log.n)[full, None]).nonzero()
    gone = full[gone]
    leaving = Leaving(gone, log.item[gone, place], log.action[gone, place])
    if len(full):
        place_after = np.minimum(np.arange(width) + shift[full, None], width - 1)
        source = place_after + full[:, None] * width  # in all logs, one after the other
        for column in (log.at_ms, log.event, log.item, log.action):
            column[full] = column.ravel().take(source)
    rank = np.arange(len(whose)) - (count.cumsum() - count)[whose]
    place = (log.n - shift)[whose] + rank
    fits = place >= 0  # of more than a log's worth at once, only the newest stay
    if not fits.all():
        user = np.concatenate([leaving.user, whose[~fits]])
        order = user.argsort(kind="stable")
        through = (
            np.concatenate([leaving.item, item[~fits]]),
            np.concatenate([leaving.action, action[~fits]]),
        )
        leaving = Leaving(user[order], through[0][order], through[1][order])
        whose, place, at_ms, event, item, action = (
            column[fits] for column in (whose, place, at_ms, event, item, action)
        )
    at = (whose, place)
    log.at_ms[at], log.event[at], log.item[at], log.action[at] = at_ms, event, item, action
    np.minimum(log.n + count, width, out=log.n)
    return leaving


def _joined(leaving: Leaving, left: list[tuple[int, Event]]) -> Leaving:
    if not left:
        return leaving
    return Leaving(
        np.append(leaving.user, [index for index, _ in left]),
        np.append(leaving.item, np.array([entry.item for _, entry in left], dtype=np.uint64)),
        np.append(leaving.action, np.array([entry.action for _, entry in left], dtype=np.uint8)),
    )


def _counters(table: Table, rows: I64, leaving: Leaving) -> CounterRows:
    what = LEAVES[leaving.action]
    counts = what != Left.NOTHING
    if not counts.all():
        leaving = Leaving(leaving.user[counts], leaving.item[counts], leaving.action[counts])
        what = what[counts]
    return apply_evictions(table.counters_of, rows[leaving.user], leaving.item, what)


class StepInput(NamedTuple):
    """One call of the encoder's step graph for ``users`` (indices of the caller), padded at the end."""

    users: I64  # (B,)
    vector_rows: I64  # (B, T) rows of the vector matrix; padding points at row 0
    actions: I64  # (B, T)
    gaps_s: F32  # (B, T)
    mask: F32  # (B, T)


# Users with similar numbers of events share a call: padding at most doubles the work of any of them.
_WIDTHS: Final = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256])
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
    first = _firsts(users)
    starts = first.nonzero()[0]
    unique, count = users[starts], _lengths(starts, len(users))
    before = _before(at_ms)
    before[first] = start_ms[unique]
    gaps = np.where(before > 0, clamp_gap_s((at_ms - before) / 1000.0), 0.0).astype(np.float32)
    taken_of = np.minimum(count, newest)
    # Of each event among those of its user that are stepped; below 0: it is older than they.
    place = np.arange(len(users)) - (starts + count - taken_of).repeat(count)
    class_of = _WIDTHS.searchsorted(taken_of)
    for each in np.bincount(class_of).nonzero()[0].tolist():
        width = int(_WIDTHS[each])
        fitting = (class_of == each).nonzero()[0]
        for cut in range(0, len(fitting), _MAX_USERS_PER_CALL):
            chosen = fitting[cut : cut + _MAX_USERS_PER_CALL]
            slot = np.full(len(unique), -1, dtype=np.int64)
            slot[chosen] = np.arange(len(chosen))
            row = slot.repeat(count)
            taken = (place >= 0) & (row >= 0)
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


# numpy's own `diff` and `roll` do the same, for five times the price where there are few values.


def _firsts(values: NDArray[Any]) -> Bools:
    """Where a value differs from the one before it."""
    differs = np.empty(len(values), dtype=np.bool_)
    differs[:1] = True
    np.not_equal(values[1:], values[:-1], out=differs[1:])
    return differs


def _before(values: NDArray[Any]) -> NDArray[Any]:
    """The value before each one; before the first, itself."""
    before = values.copy()
    before[1:] = values[:-1]
    return before


def _lengths(starts: I64, stop: int) -> I64:
    """How far it is from each start to the next, and from the last to ``stop``."""
    lengths = np.full(len(starts), stop)
    lengths[:-1] = starts[1:]
    lengths -= starts
    return lengths


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
