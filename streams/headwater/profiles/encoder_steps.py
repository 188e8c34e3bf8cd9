"""Encoder states of users: which calls of the step graph bring them up to date, prepared here, run in a thread.

New events are stepped on. A state is folded again from the whole log only where stepping would give another result.

While a log holds an item without a vector, readers fold it again themselves (`interests.py`), to have what has come by
then. So the stored state is left alone until the last of these vectors has come or the log has lost its event.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from headwater.encoder.features import clamp_gap_s
from headwater.index.item_vectors import ItemVectors
from headwater.profiles.actions import STEPS, Bools
from headwater.profiles.apply_clicks import ProfileDelta
from headwater.profiles.columns import F16, I64, U64, Log
from headwater.profiles.runs import before, firsts, lengths

F32 = NDArray[np.float32]

# Steps are microseconds of arithmetic on the CPU. A trip to a thread costs half a millisecond, or more on busy
# cores, and pays only for work that would hold the loop as long.
_IN_PLACE_EVENTS: Final = 64


class StepEncoder(Protocol):
    """The part of an encoder that steps states; `encoder.runtime.Encoder` is one."""

    forgets: bool

    def step(self, state: F32, items: F32, actions: I64, gaps_s: F32, mask: F32) -> F32:
        """New states (B, S) from states (B, S), item vectors (B, T, D), and codes, gaps and mask (B, T)."""
        ...


class StepInput(NamedTuple):
    """One call of the encoder's step graph: B users with up to T events each, padded at the end."""

    users: I64  # (B,) the caller's indices
    vector_rows: I64  # (B, T) rows of the vector matrix; padding points at row 0
    actions: I64  # (B, T) codes
    gaps_s: F32  # (B, T) since the event before
    mask: F32  # (B, T) 1 for an event, 0 for padding


# Users with similar numbers of events share a call: padding at most doubles the work of any of them.
_WIDTHS: Final = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256])
# Bounds one call's memory and time: 512 users x 64 events x 384 dimensions x 4 bytes = 50 MB.
_MAX_USERS_PER_CALL: Final = 512


def step_inputs(
    users: I64, vector_rows: I64, actions: I64, at_ms: I64, start_ms: I64, newest: int
) -> Iterator[StepInput]:
    """Group E events, sorted by user and oldest first, into padded calls.

    Args:
        users: (E,) the caller's index of each event's user, ascending.
        vector_rows, actions, at_ms: (E,) of each event.
        start_ms: (caller's users,) time of the event folded last, 0 for none: the first gap counts from it.
        newest: at most this many of a user's newest events are stepped.
    """
    if not len(users):
        return
    first = firsts(users)
    starts = first.nonzero()[0]
    unique, count = users[starts], lengths(starts, len(users))
    since_ms = before(at_ms)
    since_ms[first] = start_ms[unique]
    gaps = np.where(since_ms > 0, clamp_gap_s((at_ms - since_ms) / 1000.0), 0.0).astype(np.float32)
    taken_of = np.minimum(count, newest)
    # (E,) the place of each event among those of its user that are stepped; below 0, it is older and left out.
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


class EncoderJob(NamedTuple):
    """States of R users to bring up to date, with everything gathered: safe to run in another thread."""

    state: F32  # (R, S), before
    calls: list[tuple[StepInput, F32]]  # each with its gathered item vectors (B, T, D)
    state_at_ms: I64  # (R,) time of the last event in each state, after
    pending: I64  # (R,) events that have no vector yet, after

    @property
    def is_small(self) -> bool:
        """Whether it is faster run where it stands than in another thread."""
        return sum(call.mask.size for call, _ in self.calls) <= _IN_PLACE_EVENTS

    def run(self, encoder: StepEncoder) -> F16:
        """The new states (R, S). Blocks for the length of the computation."""
        state = self.state
        for call, items in self.calls:
            state[call.users] = encoder.step(state[call.users], items, call.actions, call.gaps_s, call.mask)
        return state.astype(np.float16)


def needs_refold(delta: ProfileDelta, forgets: bool) -> Bools:
    """(R,) the users whose state cannot be stepped on: the log changed inside, or the state lacks or exceeds it.

    The export proves forgetting (``forgets``) only for a log of L events that all step the encoder. A log that also holds
    dislikes or marks holds fewer, so evicted events could still matter: it is folded again.
    """
    remembers = ~STEPS[delta.log.action].all(axis=1) | (not forgets)
    lost = delta.evicted & remembers
    return (delta.refold | delta.state_is_stale | lost) & ~delta.erased


def keys_needed(delta: ProfileDelta, refold: Bools) -> list[int]:
    """Keys of the items whose vectors :func:`step_states` wants. ``refold`` (R,) is of :func:`needs_refold`."""
    _, folded, _, _ = folded_entries(delta.log, np.flatnonzero(refold))
    return list({*np.unique(delta.steps.item).tolist(), *np.unique(folded).tolist()})


def step_states(delta: ProfileDelta, refold: Bools, vectors: ItemVectors, initial: F32) -> EncoderJob:
    """Step appended events on, and fold the logs of the users in ``refold`` (R,) from ``initial`` (S,).

    The state of a user whose log holds an item without a vector is not worth a fold: see above.
    """
    state, state_at = delta.state.astype(np.float32), delta.state_at_ms
    state[state_at == 0] = initial
    users, steps = delta.steps_user, delta.steps
    if refold.any():
        stepping = ~refold[users]
        users, steps = users[stepping], steps.take(stepping)
    found = vectors.rows(steps.item.tolist())
    pending = np.zeros(len(state), dtype=np.int64)
    known = found >= 0
    if not known.all():
        lacking, late = users[~known], steps.take(~known)
        # If a batch brings more than a log holds, only events that are in the log can be waited for.
        oldest_at, oldest = delta.log.at_ms[lacking, 0], delta.log.event[lacking, 0]
        held = (late.at_ms > oldest_at) | ((late.at_ms == oldest_at) & (late.event >= oldest))
        pending = counts_by_user(lacking[held], len(state))
        users, steps, found = users[known], steps.take(known), found[known]
    actions = steps.action.astype(np.int64)
    calls = gathered(vectors, users, found, actions, steps.at_ms, state_at, delta.log.at_ms.shape[1])
    state_at = last_time(users, steps.at_ms, state_at)
    chosen = np.flatnonzero(refold)
    if len(chosen):
        users, keys, _, _ = folded_entries(delta.log, chosen)
        lacking = counts_by_user(users[vectors.rows(keys.tolist()) < 0], len(state))
        pending[chosen] = lacking[chosen]
        chosen = chosen[lacking[chosen] == 0]
        again = fold_again(delta.log, chosen, vectors, initial)
        state[chosen], state_at[chosen] = initial, again.state_at_ms[chosen]
        calls += again.calls
    return EncoderJob(state, calls if len(initial) else [], state_at, pending)


def fold_again(log: Log, chosen: I64, vectors: ItemVectors, initial: F32) -> EncoderJob:
    """Fold whole logs from ``initial`` (S,), for the users ``chosen`` among the R of ``log``."""
    size, width = len(log.n), log.at_ms.shape[1]
    users, keys, actions, at_ms = folded_entries(log, chosen)
    found = vectors.rows(keys.tolist())
    known = found >= 0
    nobody = np.zeros(size, dtype=np.int64)
    calls = gathered(vectors, users[known], found[known], actions[known], at_ms[known], nobody, width)
    return EncoderJob(
        np.tile(initial, (size, 1)),
        calls if len(initial) else [],
        last_time(users[known], at_ms[known], nobody),
        counts_by_user(users[~known], size),
    )


def gathered(
    vectors: ItemVectors, users: I64, vector_rows: I64, actions: I64, at_ms: I64, start_ms: I64, newest: int
) -> list[tuple[StepInput, F32]]:
    """The calls of :func:`step_inputs`, each with its item vectors (B, T, D)."""
    calls = step_inputs(users, vector_rows, actions, at_ms, start_ms, newest)
    return [(call, vectors.matrix[call.vector_rows]) for call in calls]


def folded_entries(log: Log, chosen: I64) -> tuple[I64, U64, I64, I64]:
    """The E log entries of users ``chosen`` that step the encoder: users, item keys, action codes and times, (E,) each."""
    real = np.arange(log.at_ms.shape[1]) < log.n[chosen][:, None]
    stepping = real & STEPS[log.action[chosen]]
    user, place = np.nonzero(stepping)
    where = (chosen[user], place)
    return chosen[user], log.item[where], log.action[where].astype(np.int64), log.at_ms[where]


def last_time(users: I64, at_ms: I64, otherwise: I64) -> I64:
    """(R,) the time of each user's last event, or ``otherwise`` (R,) for users without one.

    Args:
        users, at_ms: (E,) of each event, sorted by user and oldest first.
    """
    result = otherwise.copy()
    result[users] = at_ms  # numpy keeps the last assignment of a repeated index
    return result


def counts_by_user(users: I64, size: int) -> I64:
    """(size,) how often each user occurs in ``users`` (E,)."""
    return np.bincount(users, minlength=size).astype(np.int64)
