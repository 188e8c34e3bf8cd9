"""A batch of clicks against columns: the new logs and counters, and what the encoder has to step or fold again.

Pure: arrays in, arrays out, nothing written. Nearly all users' events simply come after what they have, and these users
are handled together. The others (late, repeated, retracted, forgotten) are handled one by one by the rules of
`event_log.py`. A property test holds both ways to the same logs. The columns may be those of several partitions.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from headwater.encoder.features import event_keys
from headwater.profiles.actions import FORGET, HIDES, IMPRESSION, RETRACT, STEPS, TAKES_BACK, UNHIDES, Bools
from headwater.profiles.columns import F16, I64, U8, U64, Log, RowValues, Table
from headwater.profiles.counters import COUNTER_EFFECTS, CounterEffect, CounterRows, apply_evictions
from headwater.profiles.event_log import Event, Outcome, insert
from headwater.profiles.hides import keep, packed, unpacked
from headwater.profiles.runs import before, firsts

# A user who is handled singly costs a tenth of a millisecond, and so does one whose log is folded. The event loop stands
# meanwhile, so a batch has at most this many of either: more than a coalesced batch has clicks.
MAX_SINGLE_USERS: Final = 1_100


class TooManySingleUsers(Exception):
    """The batch would hold the event loop for too long. Half of it may not."""


def check_single_users(users: Bools) -> None:
    """Raises TooManySingleUsers if there are more than may be handled singly in one batch.

    Args:
        users: (R,) whether each user has to be.
    """
    if np.count_nonzero(users) > MAX_SINGLE_USERS:
        raise TooManySingleUsers


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
        """The clicks at ``which``: indices (M,), a mask (N,) or a slice."""
        return Clicks(
            self.row[which],
            self.offset[which],
            self.at_ms[which],
            self.event[which],
            self.item[which],
            self.action[which],
        )


class Evictions(NamedTuple):
    """E events that have left their logs. Those of a user stand together, oldest first."""

    user: I64  # (E,) index into the touched users
    at_ms: I64  # (E,)
    event: U64  # (E,)
    item: U64  # (E,)
    action: U8  # (E,)


class ProfileDelta(NamedTuple):
    """What a batch does to the R users that it touches. Nothing is written yet.

    :func:`plan_batch` leaves the encoder's states as they were; :meth:`stepped` gives the delta with the new ones.
    """

    rows: I64  # (R,) unique, ascending
    log: Log  # the new logs
    counters: CounterRows  # the new counters of users whose log an event has left
    hides: Mapping[int, bytes]  # by row, the hides kept beyond the log, of users whose change
    offset: I64  # (R,) new applied offsets
    state: F16  # (R, S)
    state_at_ms: I64  # (R,) time of the last event in each state; 0: none
    pending: I64  # (R,) events not in the state because their item had no vector
    state_is_stale: Bools  # (R,) the state lacks some of the log, or is of another bundle
    refold: Bools  # (R,) the log changed elsewhere than at its end
    evicted: Bools  # (R,) appending pushed old events out
    steps_user: I64  # (E,) index into rows of each appended event that may step the encoder, in order
    steps: Clicks  # (E,) those events
    erased: Bools  # (R,) a forget took everything, and nothing has come since that is remembered
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
            hides={each - row: kept for each, kept in self.hides.items() if begin <= each <= end},
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
        """The new values of the users' rows.

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
            hides=self.hides,
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
    """Work out what ``clicks`` (N,) do to their R users, without touching ``table``.

    Raises:
        TooManySingleUsers: most of them are late, repeated, retracted or forgotten.
    """
    order = clicks.row.argsort(kind="stable")
    ordered = clicks.take(order)
    first = firsts(ordered.row)
    rows = ordered.row[first]
    user = first.cumsum() - 1  # (N,) index into rows
    snapshot = table.snapshot(rows)
    # Copies: they become the new ones.
    log, offset, forgotten = snapshot.log, snapshot.offset, snapshot.forgotten_ms

    replayed = ordered.offset <= offset[user]
    unlogged = ~replayed & (ordered.action == IMPRESSION)
    used = (~(replayed | unlogged)).nonzero()[0]  # (U,) places in `ordered`
    at_ms, event = ordered.at_ms[used], ordered.event[used]
    item, action, whose = ordered.item[used], ordered.action[used], user[used]

    outcome = replayed * np.uint8(Outcome.REPLAYED) + unlogged * np.uint8(Outcome.UNLOGGED)  # else 0, applied
    applied = np.zeros(len(order), dtype=np.bool_)
    refold = np.zeros(len(rows), dtype=np.bool_)
    evicted = np.zeros(len(rows), dtype=np.bool_)
    newest = np.full(len(rows), -1, dtype=np.int64)

    # Nearly all users: their events come after what the log has.
    careful = _needs_care(log, forgotten, whose, at_ms, event, action)
    check_single_users(careful)
    easy: Bools | slice = ~careful[whose] if careful.any() else slice(None)
    evictions = _append(log, whose[easy], at_ms[easy], event[easy], item[easy], action[easy])
    evicted[evictions.user] = True
    applied[used[easy]] = True
    newest[whose[easy]] = order[used[easy]]  # later assignments win: the user's last event
    steps = used[easy][STEPS[action[easy]]]

    # The others, one by one.
    held, most = table.hides_of(rows), table.max_hides
    hides = _new_hides(held, most, rows, evictions)
    left: list[tuple[int, Event]] = []
    hard = careful[whose].nonzero()[0]
    for group in np.split(hard, firsts(whose[hard]).nonzero()[0][1:]) if len(hard) else ():
        index, places = int(whose[group[0]]), used[group]
        columns = (at_ms, event, item, action)
        new = list(map(Event, *(column[group].tolist() for column in columns)))
        old, row = log.events(index), int(rows[index])
        kept = unpacked(held.get(row, b""))
        result = _apply_carefully(old, new, kept, int(forgotten[index]), log.at_ms.shape[1], most)
        if result.kept != kept:
            hides[row] = packed(result.kept)
        outcome[places], applied[places] = result.outcomes, result.counts
        forgotten[index] = result.forgotten_ms
        left += [(index, entry) for entry in result.left]
        if result.newest >= 0:
            newest[index] = order[places[result.newest]]
        if result.log != old:
            refold[index] = True
            log.write(index, result.log)

    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    offset[user] = np.maximum(offset[user], ordered.offset)  # in order, so that the user's last counts
    return ProfileDelta(
        rows=rows,
        log=log,
        counters=_new_counters(table, rows, _with(evictions, left)),
        hides=hides,
        offset=offset,
        state=snapshot.state,
        state_at_ms=snapshot.state_at_ms,
        pending=np.zeros_like(rows),
        state_is_stale=snapshot.state_is_stale,
        refold=refold,
        evicted=evicted,
        steps_user=user[steps],
        steps=ordered.take(steps),
        erased=(log.n == 0) & (forgotten > 0),
        forgotten_ms=forgotten,
        newest=newest,
        outcome=outcome[back],
        applied=applied[back],
    )


class _CarefulResult(NamedTuple):
    """What K events do to one user, by the rules."""

    log: list[Event]
    kept: list[Event]  # hides beyond the log
    forgotten_ms: int
    outcomes: list[Outcome]  # (K,)
    counts: list[bool]  # (K,) events that count, for popularity
    newest: int  # index of the event that is now the log's newest, or -1
    left: list[Event]  # what has left the log, oldest first; a forget stands for all before it


def _apply_carefully(
    log: Sequence[Event],
    new: Sequence[Event],
    kept: Sequence[Event],
    forgotten_ms: int,
    capacity: int,
    max_hides: int,
) -> _CarefulResult:
    """Apply one user's events one after the other, by the rules of `event_log.py`."""
    events, outcomes, counts, kept = list(log), [], [], list(kept)
    left: list[Event] = []
    index_of: dict[int, int] = {}  # by event key, of those that came into the log
    for index, event in enumerate(new):
        if event.action == FORGET:
            if event.at_ms > forgotten_ms:
                left = [event]  # counters know no times: all of them go
            forgotten_ms = max(forgotten_ms, event.at_ms)
            events = [entry for entry in events if entry.at_ms > event.at_ms]
            kept = [entry for entry in kept if entry.at_ms > event.at_ms]
            outcome = Outcome.APPLIED
        elif event.at_ms <= forgotten_ms:
            outcome = Outcome.FORGOTTEN
        else:
            outcome, evicted = insert(events, event, capacity)
            if evicted is not None:
                left.append(evicted)
                keep(kept, evicted, max_hides)
            if event.action == RETRACT:
                kept = [entry for entry in kept if entry.event != event.event]
            elif outcome is Outcome.TOO_LATE:
                keep(kept, event, max_hides)
        outcomes.append(outcome)
        counts.append(outcome is Outcome.APPLIED and not TAKES_BACK[event.action])
        if counts[-1]:
            index_of[event.event] = index
    last = next((entry for entry in reversed(events) if entry.action != RETRACT), None)
    newest = -1 if last is None else index_of.get(last.event, -1)
    return _CarefulResult(events, kept, forgotten_ms, outcomes, counts, newest, left)


def _needs_care(log: Log, forgotten: I64, whose: I64, at_ms: I64, event: U64, action: U8) -> Bools:
    """(R,) the users whose events do not simply append: out of order, repeated, or taking something back.

    Args:
        log, forgotten: of R users.
        whose: (U,) the user of each event, ascending; the other columns (U,) likewise.
    """
    careful = np.zeros(len(log.n), dtype=np.bool_)
    if not len(whose):
        return careful
    first = firsts(whose)
    starts = whose[first]
    end = log.n[starts] - 1  # -1 without a log: the time -1 then stands for it, which is before all others
    before_at, before_event = before(at_ms), before(event)
    before_at[first] = np.where(end < 0, -1, log.at_ms[starts, end])
    before_event[first] = log.event[starts, end]
    falling = (at_ms < before_at) | ((at_ms == before_at) & (event <= before_event))
    # Old entries beyond the end may be found too. That costs a second look at the user, and no more.
    known = (log.event[whose] == event[:, None]).any(axis=1)
    care = falling | known | TAKES_BACK[action] | (at_ms <= forgotten[whose])
    careful[whose[care]] = True
    if len(starts) < len(whose):
        by_event = np.lexsort((event, whose))
        twice = ~(firsts(whose[by_event]) | firsts(event[by_event]))
        careful[whose[by_event[twice]]] = True
    return careful


def _append(log: Log, whose: I64, at_ms: I64, event: U64, item: U64, action: U8) -> Evictions:
    """Append events (U,), sorted by user and time, to the logs in place, and shift out the oldest entries."""
    width = log.at_ms.shape[1]
    count = np.bincount(whose, minlength=len(log.n))
    shift = np.maximum(log.n + count - width, 0)
    full = (shift > 0).nonzero()[0]
    gone, place = (np.arange(width) < np.minimum(shift, log.n)[full, None]).nonzero()
    gone = full[gone]
    at = (gone, place)
    evictions = Evictions(gone, log.at_ms[at], log.event[at], log.item[at], log.action[at])
    if len(full):
        place_after = np.minimum(np.arange(width) + shift[full, None], width - 1)
        source = place_after + full[:, None] * width  # in all logs, one after the other
        for column in (log.at_ms, log.event, log.item, log.action):
            column[full] = column.ravel().take(source)
    rank = np.arange(len(whose)) - (count.cumsum() - count)[whose]
    place = (log.n - shift)[whose] + rank
    fits = place >= 0  # if a batch brings more than a log holds, only the newest stay
    if not fits.all():
        user = np.concatenate([evictions.user, whose[~fits]])
        order = user.argsort(kind="stable")
        evictions = Evictions(
            user[order],
            np.concatenate([evictions.at_ms, at_ms[~fits]])[order],
            np.concatenate([evictions.event, event[~fits]])[order],
            np.concatenate([evictions.item, item[~fits]])[order],
            np.concatenate([evictions.action, action[~fits]])[order],
        )
        whose, place, at_ms, event, item, action = (
            column[fits] for column in (whose, place, at_ms, event, item, action)
        )
    at = (whose, place)
    log.at_ms[at], log.event[at], log.item[at], log.action[at] = at_ms, event, item, action
    np.minimum(log.n + count, width, out=log.n)
    return evictions


def _with(evictions: Evictions, more: list[tuple[int, Event]]) -> Evictions:
    """The evictions and those of other users, (user, event) each."""
    if not more:
        return evictions
    return Evictions(
        np.append(evictions.user, [index for index, _ in more]),
        np.append(evictions.at_ms, [entry.at_ms for _, entry in more]),
        np.append(evictions.event, np.array([entry.event for _, entry in more], dtype=np.uint64)),
        np.append(evictions.item, np.array([entry.item for _, entry in more], dtype=np.uint64)),
        np.append(evictions.action, np.array([entry.action for _, entry in more], dtype=np.uint8)),
    )


def _new_hides(
    held: Mapping[int, bytes], max_hides: int, rows: I64, evictions: Evictions
) -> dict[int, bytes]:
    """By row, the new kept hides of the users (some of ``rows``) whose evictions change any.

    Args:
        held: by row, what the users have.
    """
    hiding = HIDES[evictions.action]
    if not held and not hiding.any():
        return {}
    row_of = rows[evictions.user]
    have_some = np.isin(row_of, [*held, *row_of[hiding].tolist()])
    kept: dict[int, list[Event]] = {}
    for place in (hiding | (UNHIDES[evictions.action] & have_some)).nonzero()[0].tolist():
        row = int(row_of[place])
        if row not in kept:
            kept[row] = unpacked(held.get(row, b""))
        keep(kept[row], Event(*(int(column[place]) for column in evictions[1:])), max_hides)
    return {row: packed(events) for row, events in kept.items()}


def _new_counters(table: Table, rows: I64, evictions: Evictions) -> CounterRows:
    """The new counters of the users (some of ``rows``) whose evictions change any."""
    effects = COUNTER_EFFECTS[evictions.action]
    changes = effects != CounterEffect.NOTHING
    if not changes.all():
        evictions = Evictions(*(column[changes] for column in evictions))
        effects = effects[changes]
    return apply_evictions(table.counters_of, rows[evictions.user], evictions.item, effects)
