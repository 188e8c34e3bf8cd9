"""The interests of users at the moment of their requests: states are read, what-if events stepped on for one answer."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwater.encoder.features import ACTION_CODES, clamp_gap_s, gaps_s, item_key
from headwater.encoder.runtime import Encoder
from headwater.index.item_vectors import ItemVectors
from headwater.messages import SessionEvent
from headwater.profiles.columns import I64, Columns, Log
from headwater.profiles.encoder_steps import EncoderJob, fold_again, folded_entries, gathered
from headwater.profiles.event_log import Event
from headwater.profiles.hides import unpacked

F32 = NDArray[np.float32]


# Reading this few states is faster than the trip to a thread, as in `encoder_steps.py`.
_IN_PLACE_USERS: Final = 16
_NOBODY: Final[I64] = np.zeros(0, dtype=np.int64)


class WhatIfEvents(NamedTuple):
    """The what-if events of one request, oldest first."""

    items: list[int]  # item keys
    actions: list[int]  # action codes
    at_ms: list[int]

    @classmethod
    def of(cls, session: Sequence[SessionEvent], at_ms: int) -> "WhatIfEvents":
        """The events of a request; those without a time happen at ``at_ms``."""
        return cls(
            [item_key(event.item_id) for event in session],
            [ACTION_CODES[event.action] for event in session],
            [event.at_ms or at_ms for event in session],
        )


class UserInterests(NamedTuple):
    """One user at one moment: K interests of D dimensions. A user without events has K = 0."""

    interests: F32  # (K, D)
    weights: F32  # (K,)
    pending: int  # events that are in no interest, because their item has no vector
    log: Log | None  # of this user alone
    last_event: bytes  # the newest event's id; empty if it is not known
    counters: Sequence[tuple[int, int]] = ()  # (item key, level) of what left the log
    hides: Sequence[Event] = ()  # kept beyond the log, oldest first; see `hides.keep`


async def interests_of(
    columns: Columns,
    users: Sequence[bytes],
    sessions: Sequence[WhatIfEvents],
    now_ms: I64,
    vectors: ItemVectors,
    encoder: Encoder,
    threads: Executor,
    *,
    fetch_s: float,
    until_ms: I64 | None = None,
) -> list[UserInterests]:
    """The interests of R users, each at its own moment. Users need not be known.

    A state is folded again from its log if it is of another bundle, or lacks events whose items have got a vector since.

    Args:
        users: (R,) ids as UTF-8.
        sessions: (R,) what-if events, stepped on for this answer alone.
        now_ms: (R,).
        threads: where work that would hold the event loop is done.
        fetch_s: how long missing vectors may be fetched; 0: not at all.
        until_ms: (R,) events of the log after it are left out; None: none are.

    Raises:
        IndexUnavailable, TimeoutError: vectors have to be fetched and cannot be, or not in time.
    """
    if fetch_s > 0 and vectors.can_fetch:
        rows, known = _rows(columns, users)
        read_again = _to_read_again(columns, rows, known, encoder)
        if until_ms is not None:
            read_again = np.union1d(read_again, np.flatnonzero(known))
        _, wanted, _, _ = folded_entries(columns.log(rows), read_again)
        async with asyncio.timeout(fetch_s):
            await vectors.ensure([*wanted.tolist(), *(key for session in sessions for key in session.items)])
    # Other batches ran during the fetch. From here on nothing is awaited until the users are copied.
    rows, known = _rows(columns, users)
    count = len(users)
    log = columns.log(rows)
    log.n[~known] = 0
    cut = _NOBODY if until_ms is None else _left_out(log, until_ms)
    found = _without_interests(columns, rows, known, log, encoder.dim)
    if until_ms is not None:
        for index in cut.tolist():
            earlier = [hide for hide in found[index].hides if hide.at_ms <= until_ms[index]]
            found[index] = found[index]._replace(last_event=b"", hides=earlier)
    if encoder.kind == "windowed":
        return await _by_window(found, log, sessions, now_ms, vectors, encoder, threads)
    initial = encoder.initial_state(1)[0]
    state = columns.state[rows].astype(np.float32)
    state_at = np.where(known, columns.state_at_ms[rows], 0)
    state[state_at == 0] = initial
    pending = np.where(known, columns.pending[rows], 0)
    stale = np.union1d(_to_read_again(columns, rows, known, encoder), cut)
    again = fold_again(log, stale, vectors, initial) if len(stale) else None
    if again is not None:
        state_at[stale], pending[stale] = again.state_at_ms[stale], again.pending[stale]
    sessions_job = _session_job(sessions, state_at, vectors, columns.log_length)
    if again is None and not sessions_job.calls and not (state_at > 0).any():
        return [user._replace(pending=int(lacking)) for user, lacking in zip(found, pending, strict=True)]

    def run() -> tuple[F32, F32]:
        if again is not None:
            state[stale] = again.run(encoder)[stale]
        moved = state
        if sessions_job.calls:
            moved = sessions_job._replace(state=state.copy()).run(encoder).astype(np.float32)
        gap = clamp_gap_s((now_ms - sessions_job.state_at_ms) / 1000.0)
        return encoder.read(moved, gap)

    if count <= _IN_PLACE_USERS and sessions_job.is_small and (again is None or again.is_small):
        interests, weights = run()
    else:
        interests, weights = await asyncio.get_running_loop().run_in_executor(threads, run)
    return _with_interests(found, interests, weights, pending, sessions_job.state_at_ms > 0)


def _left_out(log: Log, until_ms: I64) -> I64:
    """Cut each log at ``until_ms`` (R,), in place. Returns the places of those that lost an event."""
    real = np.arange(log.at_ms.shape[1]) < log.n[:, None]
    n = (real & (log.at_ms <= until_ms[:, None])).sum(axis=1)  # oldest first, so the first ones stay
    cut = np.flatnonzero(n < log.n)
    log.n[:] = n
    return cut


def _rows(columns: Columns, users: Sequence[bytes]) -> tuple[I64, NDArray[np.bool_]]:
    """(R,) the row of each user, and (R,) whether there is one; else row 0 stands in, to be masked."""
    rows = np.array([columns.rows.get(user, -1) for user in users], dtype=np.int64)
    return np.maximum(rows, 0), rows >= 0


def _to_read_again(columns: Columns, rows: I64, known: NDArray[np.bool_], encoder: Encoder) -> I64:
    """Places of the users whose log has to be read again. A windowed encoder always reads the log."""
    if encoder.kind == "windowed":
        return np.flatnonzero(known)
    return np.flatnonzero(known & (columns.stale[rows] | (columns.pending[rows] > 0)))


def _session_job(
    sessions: Sequence[WhatIfEvents], state_at: I64, vectors: ItemVectors, length: int
) -> EncoderJob:
    """The calls that step what-if events on from states with times ``state_at`` (R,). Items without a vector are left out."""
    users = np.array([i for i, session in enumerate(sessions) for _ in session.items], dtype=np.int64)
    found = vectors.rows([key for session in sessions for key in session.items])
    actions = np.array([code for session in sessions for code in session.actions], dtype=np.int64)
    at_ms = np.array([at for session in sessions for at in session.at_ms], dtype=np.int64)
    known = found >= 0
    calls = gathered(vectors, users[known], found[known], actions[known], at_ms[known], state_at, length)
    after = state_at.copy()
    after[users[known]] = at_ms[known]
    return EncoderJob(
        np.zeros((len(sessions), 0), dtype=np.float32), calls, after, np.zeros(len(sessions), dtype=np.int64)
    )


async def _by_window(
    kept: Sequence[UserInterests],
    log: Log,
    sessions: Sequence[WhatIfEvents],
    now_ms: I64,
    vectors: ItemVectors,
    encoder: Encoder,
    threads: Executor,
) -> list[UserInterests]:
    """Interests by a windowed encoder: it sees the newest L events with a vector, the what-if events last."""
    count, length = len(log.n), encoder.log_length
    users, keys, actions, at_ms = folded_entries(log, np.arange(count))
    pending = np.zeros(count, dtype=np.int64)
    items = np.zeros((count, length, encoder.dim), dtype=np.float32)
    codes = np.zeros((count, length), dtype=np.int64)
    times = np.zeros((count, length), dtype=np.int64)
    mask = np.zeros((count, length), dtype=np.float32)
    found = vectors.rows(keys.tolist())
    for i in range(count):
        mine = np.flatnonzero(users == i)
        pending[i] = int((found[mine] < 0).sum())
        mine = mine[found[mine] >= 0]
        session = sessions[i]
        extra = vectors.rows(session.items)
        real = np.flatnonzero(extra >= 0)
        rows = np.concatenate([found[mine], extra[real]])[-length:]
        n = len(rows)
        items[i, :n] = vectors.matrix[rows]
        codes[i, :n] = np.concatenate([actions[mine], np.array(session.actions, dtype=np.int64)[real]])[
            -length:
        ]
        times[i, :n] = np.concatenate([at_ms[mine], np.array(session.at_ms, dtype=np.int64)[real]])[-length:]
        mask[i, :n] = 1.0
    events = mask.sum(axis=1).astype(np.int64)
    last = times[np.arange(count), np.maximum(events - 1, 0)]
    gaps = gaps_s(times) * mask
    gap_to_now = clamp_gap_s((now_ms - last) / 1000.0)
    loop = asyncio.get_running_loop()
    interests, weights = await loop.run_in_executor(
        threads, encoder.window, items, codes, gaps.astype(np.float32), mask, gap_to_now
    )
    return _with_interests(kept, interests, weights, pending, events > 0)


def _without_interests(
    columns: Columns, rows: I64, known: NDArray[np.bool_], log: Log, dim: int
) -> list[UserInterests]:
    """Copies of everything else that is known of the users of ``rows`` (R,), whose logs are ``log``."""
    nothing = np.zeros((0, dim), dtype=np.float32)
    users = [
        UserInterests(nothing, nothing[:, 0], 0, log.take(slice(i, i + 1)), b"") for i in range(len(rows))
    ]
    for index in np.flatnonzero(known).tolist():
        users[index] = users[index]._replace(last_event=columns.last_event[rows[index]])
    for index in np.flatnonzero(known & columns.counter_levels[rows].any(axis=1)).tolist():
        keys, levels = columns.counter_items[rows[index]], columns.counter_levels[rows[index]]
        held = levels > 0
        pairs = list(zip(keys[held].tolist(), levels[held].tolist(), strict=True))
        users[index] = users[index]._replace(counters=pairs)
    kept = columns.hides_of(rows)
    for index in np.flatnonzero(known).tolist() if kept else ():
        if (row := int(rows[index])) in kept:
            users[index] = users[index]._replace(hides=unpacked(kept[row]))
    return users


def _with_interests(
    users: Sequence[UserInterests], interests: F32, weights: F32, pending: I64, any_event: NDArray[np.bool_]
) -> list[UserInterests]:
    return [
        user._replace(interests=interests[i], weights=weights[i], pending=int(pending[i]))
        if any_event[i]
        else user._replace(pending=int(pending[i]))
        for i, user in enumerate(users)
    ]
