"""Encoder states of users: which calls of the step graph bring them up to date, prepared here, run in a thread."""

from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from headwater.index.item_vectors import ItemVectors
from headwater.profiles.actions import STEPS
from headwater.profiles.apply_clicks import (
    ProfileDelta,
    StepInput,
    counts_by_user,
    folded_entries,
    last_time,
    step_inputs,
)
from headwater.profiles.columns import I64, Log

F32 = NDArray[np.float32]


# Steps are microseconds of arithmetic on the CPU. A trip to a thread costs half a millisecond, or more on busy
# cores, and is worth it only for what would hold the loop as long.
_IN_PLACE_EVENTS: Final = 64


class StepEncoder(Protocol):
    """What is needed of an encoder here; `encoder.Encoder` is one."""

    forgets: bool

    def step(self, state: F32, items: F32, actions: I64, gaps_s: F32, mask: F32) -> F32: ...


class EncoderJob(NamedTuple):
    """States to bring up to date, with everything gathered: safe to run in another thread."""

    state: F32  # (users, S), before
    calls: list[tuple[StepInput, F32]]  # with the gathered item vectors (B, T, D)
    state_at_ms: I64  # (users,), after
    pending: I64  # (users,), after

    @property
    def is_small(self) -> bool:
        """Whether it is better run where it stands than in another thread."""
        return sum(call.mask.size for call, _ in self.calls) <= _IN_PLACE_EVENTS

    def run(self, encoder: StepEncoder) -> NDArray[np.float16]:
        state = self.state
        for call, items in self.calls:
            state[call.users] = encoder.step(state[call.users], items, call.actions, call.gaps_s, call.mask)
        return state.astype(np.float16)


def needs_refold(delta: ProfileDelta, forgets: bool) -> NDArray[np.bool_]:
    """Whose state cannot simply be stepped on: the log changed inside, or the state lacks or exceeds it.

    That an encoder forgets is shown for a log's worth of events that step it. A log with others among them (a
    dislike, a mark) holds fewer, and what it has lost would still be heard.
    """
    heard = ~STEPS[delta.log.action].all(axis=1) | (not forgets)
    lost = delta.evicted & heard
    return (delta.refold | delta.state_is_stale | lost) & ~delta.erased


def keys_needed(delta: ProfileDelta, refold: NDArray[np.bool_]) -> list[int]:
    """Items whose vectors a job for ``change`` wants."""
    _, folded, _, _ = folded_entries(delta.log, np.flatnonzero(refold))
    return list({*np.unique(delta.steps.item).tolist(), *np.unique(folded).tolist()})


def step_states(
    delta: ProfileDelta, refold: NDArray[np.bool_], vectors: ItemVectors, initial: F32
) -> EncoderJob:
    """Step appended events on; fold whole logs where that is not enough. ``initial`` is the state of nobody (S,)."""
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
        # Of more than a log's worth at once, only what the log holds can be waited for.
        oldest_at, oldest = delta.log.at_ms[lacking, 0], delta.log.event[lacking, 0]
        held = (late.at_ms > oldest_at) | ((late.at_ms == oldest_at) & (late.event >= oldest))
        pending = counts_by_user(lacking[held], len(state))
        users, steps, found = users[known], steps.take(known), found[known]
    actions = steps.action.astype(np.int64)
    calls = gathered(vectors, users, found, actions, steps.at_ms, state_at, delta.log.at_ms.shape[1])
    state_at = last_time(users, steps.at_ms, state_at)
    chosen = np.flatnonzero(refold)
    if len(chosen):
        again = fold_again(delta.log, chosen, vectors, initial)
        state[chosen] = initial
        state_at[chosen], pending[chosen] = again.state_at_ms[chosen], again.pending[chosen]
        calls += again.calls
    return EncoderJob(state, calls if len(initial) else [], state_at, pending)


def fold_again(log: Log, chosen: I64, vectors: ItemVectors, initial: F32) -> EncoderJob:
    """Fold whole logs from nothing, for the users ``chosen`` of ``log``."""
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
    calls = step_inputs(users, vector_rows, actions, at_ms, start_ms, newest)
    return [(call, vectors.matrix[call.vector_rows]) for call in calls]
