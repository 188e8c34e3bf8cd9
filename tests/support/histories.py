"""Users' histories for tests: made up by hypothesis, applied in batches, and folded afresh by the definition.

The definition here knows nothing of logs that are updated: it takes the set of a user's events and says what the log
and the state of it have to be.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from headwater.encoder.features import ACTION_CODES, MAX_GAP_S
from headwater.index.item_vectors import ItemVectors
from headwater.profiles.actions import FORGET, IMPRESSION, RETRACT, STEPS
from headwater.profiles.apply_clicks import Clicks, ProfileDelta, plan_batch
from headwater.profiles.columns import Columns, RowValues
from headwater.profiles.counters import CounterRows
from headwater.profiles.encoder_steps import StepEncoder, needs_refold, step_states
from headwater.profiles.event_log import Event

# The same examples on every run, and no clock in the verdict: a red build is red again on the next machine.

CLICK = ACTION_CODES["click"]
START_MS = 1_700_000_000_000
ITEMS = 12
DIM = 8

F32 = NDArray[np.float32]
User = bytes


class ForgetfulEncoder:
    """Old events fade so fast that two events back is below the noise of a float16, as `forgets` promises."""

    forgets = True
    state_size = DIM

    def __init__(self, keep: float = 0.001) -> None:
        self._keep = keep

    def step(self, state: F32, items: F32, actions: NDArray[np.int64], gaps_s: F32, mask: F32) -> F32:
        """Depends on the item, the action, the gap and the order, so that a mistake in any of them shows."""
        state = state.copy()
        for t in range(items.shape[1]):
            real = mask[:, t : t + 1]
            weight = (1.0 + actions[:, t : t + 1]) * (1.0 + gaps_s[:, t : t + 1] / MAX_GAP_S)
            state = np.where(real > 0, self._keep * state + weight * items[:, t], state)
        return state.astype(np.float32)


class ForgetNothingEncoder(ForgetfulEncoder):
    """Every event of the log counts alike: what was evicted has to be folded away."""

    forgets = False

    def __init__(self) -> None:
        super().__init__(keep=0.8)


def item_vectors(known: Sequence[int] = range(ITEMS), dim: int = DIM) -> ItemVectors:
    """A vector for each known item; the same item always has the same one."""
    vectors = ItemVectors(dim)
    everything = np.random.default_rng(7).normal(size=(ITEMS, dim)).astype(np.float32)
    for item in known:
        vectors.put(item, everything[item])
    return vectors


def clicks_of(columns: Columns, stream: Sequence[tuple[User, Event]], first_offset: int = 0) -> Clicks:
    """A batch as it is decoded: rows are made for users who have none."""
    rows = [columns.rows[user] if user in columns.rows else columns.add(user) for user, _ in stream]
    return Clicks(
        np.array(rows, dtype=np.int64),
        np.arange(first_offset, first_offset + len(stream), dtype=np.int64),
        np.array([event.at_ms for _, event in stream], dtype=np.int64),
        np.array([event.event for _, event in stream], dtype=np.uint64),
        np.array([event.item for _, event in stream], dtype=np.uint64),
        np.array([event.action for _, event in stream], dtype=np.uint8),
    )


def values_of(columns: Columns, rows: Sequence[int]) -> RowValues:
    """What stands in some rows, to be written back with changes."""
    at = np.array(rows, dtype=np.int64)
    return RowValues(
        at,
        columns.log(at),
        CounterRows(at, *columns.counters_of(at)),
        *(
            getattr(columns, name)[at]
            for name in ("offset", "forgotten_ms", "state", "state_at_ms", "pending", "stale")
        ),
    )


def apply(
    columns: Columns,
    stream: Sequence[tuple[User, Event]],
    encoder: StepEncoder,
    vectors: ItemVectors,
    first_offset: int = 0,
) -> ProfileDelta:
    """One batch, all the way into the columns."""
    delta = plan_batch(columns, clicks_of(columns, stream, first_offset))
    refold = needs_refold(delta, encoder.forgets)
    initial = np.zeros(columns.state_size, dtype=np.float32)
    job = step_states(delta, refold, vectors, initial)
    stepped = delta.stepped(job.run(encoder), job.state_at_ms, job.pending)
    columns.write(stepped.values([b""] * len(stream), columns.last_event, []))
    # The click path gives these rows back and keeps the time of the forget elsewhere.
    erased = delta.rows[delta.erased]
    columns.state[erased], columns.state_at_ms[erased] = 0, 0
    return delta


def apply_in_batches(
    columns: Columns,
    stream: Sequence[tuple[User, Event]],
    cuts: Sequence[int],
    encoder: StepEncoder,
    vectors: ItemVectors,
) -> list[ProfileDelta]:
    bounds = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    return [
        apply(columns, stream[start:stop], encoder, vectors, start)
        for start, stop in pairwise(bounds)
        if stop > start
    ]


def canonical_log(events: Sequence[Event], capacity: int) -> list[Event]:
    """The definition: of the set of a user's events, the newest ``capacity`` by (time, event key)."""
    forgotten_ms = max((event.at_ms for event in events if event.action == FORGET), default=-1)
    by_key: dict[int, Event] = {}
    marks: dict[int, int] = {}
    for event in events:
        if event.action == RETRACT:
            marks[event.event] = max(event.at_ms, marks.get(event.event, -1))
        elif event.action not in (FORGET, IMPRESSION):
            by_key.setdefault(event.event, event)
    for key, at_ms in marks.items():
        by_key[key] = Event(at_ms, key, 0, RETRACT)
    kept = sorted(event for event in by_key.values() if event.at_ms > forgotten_ms)
    return kept[-capacity:]


def canonical_state(
    log: Sequence[Event], vectors: ItemVectors, encoder: StepEncoder, size: int
) -> tuple[F32, int]:
    """The fold over a log, one event a call, in float32; and how many events lack a vector."""
    state = np.zeros((1, size), dtype=np.float32)
    before_ms, pending = 0, 0
    for event in log:
        if not STEPS[event.action]:
            continue
        if event.item not in vectors:
            pending += 1
            continue
        gap_s = min((event.at_ms - before_ms) / 1000.0, MAX_GAP_S) if before_ms else 0.0
        state = encoder.step(
            state,
            vectors.matrix[vectors.rows([event.item])][None],
            np.array([[event.action]], dtype=np.int64),
            np.array([[gap_s]], dtype=np.float32),
            np.ones((1, 1), dtype=np.float32),
        )
        before_ms = event.at_ms
    return state[0], pending


def cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Of two zero vectors, 1: the state of nobody is the state of nobody."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b / norms) if norms > 0 else float(np.array_equal(a, b))


class History(NamedTuple):
    """What happened, and one way in which it reached us: any order, repetitions, cut into batches."""

    events: Mapping[User, Sequence[Event]]
    stream: list[tuple[User, Event]]
    cuts: list[int]


_STEPPING = [ACTION_CODES[name] for name in ("click", "view", "purchase")]
_OTHERS = [ACTION_CODES[name] for name in ("dislike", "hide", "impression")]


@st.composite
def user_events(draw: st.DrawFn, most: int = 14, take_back: bool = True) -> list[Event]:
    """Events of one user with ids of their own; times often tie. A retraction is not older than its event."""
    count = draw(st.integers(1, most))
    keys = draw(st.lists(st.integers(1, 60), min_size=count, max_size=count, unique=True))
    events = [
        Event(
            START_MS + draw(st.integers(0, 12)) * 1000,
            key,
            draw(st.integers(0, ITEMS - 1)),
            draw(st.sampled_from([*_STEPPING * 3, *_OTHERS])),
        )
        for key in keys
    ]
    if take_back:
        taken_back = draw(st.lists(st.tuples(st.sampled_from(events), st.integers(0, 3)), max_size=3))
        events += [Event(event.at_ms + s * 1000, event.event, 0, RETRACT) for event, s in taken_back]
        if draw(st.integers(0, 3)) == 0:
            forgets = draw(st.lists(st.integers(0, 12), min_size=1, max_size=2))
            events += [Event(START_MS + s * 1000, 98 + n, 0, FORGET) for n, s in enumerate(forgets)]
    return events


@st.composite
def histories(draw: st.DrawFn, most: int = 14, take_back: bool = True) -> History:
    users = [b"ann", b"bob", b"cy"][: draw(st.integers(1, 3))]
    events = {user: draw(user_events(most, take_back)) for user in users}
    once = [(user, event) for user in users for event in events[user]]
    again = draw(st.lists(st.sampled_from(once), max_size=6))
    in_order = draw(st.booleans())
    stream = sorted([*once, *again], key=lambda pair: pair[1].at_ms) if in_order else [*once, *again]
    if not in_order:
        stream = draw(st.permutations(stream))
    cuts = draw(st.lists(st.integers(1, len(stream)), max_size=4, unique=True))
    return History(events, stream, cuts)
