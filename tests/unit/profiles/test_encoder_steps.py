"""States of users: whatever the order, repetition and batching of events, the fold over their newest log."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.encoder import runtime as encoders
from headwater.encoder.features import ACTION_CODES
from headwater.encoder.runtime import Encoder
from headwater.index.item_vectors import ItemVectors
from headwater.profiles.actions import RETRACT
from headwater.profiles.columns import Columns
from headwater.profiles.encoder_steps import StepEncoder, fold_again
from headwater.profiles.event_log import Event
from tests.support.checkout import STARTER
from tests.support.histories import (
    CLICK,
    DIM,
    ITEMS,
    START_MS,
    ForgetfulEncoder,
    ForgetNothingEncoder,
    History,
    apply,
    apply_in_batches,
    canonical_log,
    canonical_state,
    cosine,
    histories,
    item_vectors,
)

ANN = b"ann"
CLOSE = 1 - 1e-6


@pytest.fixture(scope="module")
def starter() -> Encoder:
    return encoders.load(STARTER)


def check_states(columns: Columns, history: History, vectors: ItemVectors, encoder: StepEncoder) -> None:
    """Of everybody: pending counts, and the state as a reader gets it (folded again while something is pending)."""
    size, length = columns.state_size, columns.log_length
    for user, events in history.events.items():
        row = columns.rows[user]
        log = canonical_log(events, length)
        state, pending = canonical_state(log, vectors, encoder, size)
        assert columns.pending[row] == pending
        stored = columns.state[row].astype(np.float32)
        if pending:
            again = fold_again(
                columns.log(np.array([row])), np.array([0]), vectors, np.zeros(size, np.float32)
            )
            stored = again.run(encoder)[0].astype(np.float32)
        if columns.state_at_ms[row] == 0:
            stored = np.zeros(size, dtype=np.float32)
        assert cosine(stored, state) >= CLOSE


@given(histories(), st.integers(2, 8), st.booleans())
def test_any_order_repetition_and_batching_gives_the_state_of_the_canonical_log(
    history: History, length: int, forgets: bool
) -> None:
    encoder = ForgetfulEncoder() if forgets else ForgetNothingEncoder()
    vectors = item_vectors()
    columns = Columns(length, DIM, capacity=2)
    apply_in_batches(columns, history.stream, history.cuts, encoder, vectors)
    check_states(columns, history, vectors, encoder)


@given(histories(), st.integers(2, 8), st.sets(st.integers(0, ITEMS - 1), max_size=ITEMS - 1))
def test_items_without_a_vector_are_pending_and_the_rest_is_folded(
    history: History, length: int, unknown: set[int]
) -> None:
    encoder = ForgetfulEncoder()
    vectors = item_vectors([item for item in range(ITEMS) if item not in unknown])
    columns = Columns(length, DIM, capacity=2)
    apply_in_batches(columns, history.stream, history.cuts, encoder, vectors)
    check_states(columns, history, vectors, encoder)


@given(histories(most=40), st.data())
def test_the_shipped_starter_keeps_the_canonical_state(
    starter: Encoder, history: History, data: st.DataObject
) -> None:
    """Its whole log of 50, and float16 between batches."""
    vectors = item_vectors(dim=starter.dim)
    columns = Columns(starter.log_length, starter.state_size, capacity=2)
    apply_in_batches(columns, history.stream, history.cuts, starter, vectors)
    for user, events in history.events.items():
        log = canonical_log(events, starter.log_length)
        state, _ = canonical_state(log, vectors, starter, starter.state_size)
        stored = columns.state[columns.rows[user]]
        assert cosine(stored, state) >= CLOSE


@pytest.mark.parametrize("gap_s", [1, 3_600, 86_400])
def test_two_hundred_events_one_at_a_time_leave_the_starters_fold_over_the_newest_fifty(
    starter: Encoder, gap_s: int
) -> None:
    vectors = item_vectors(dim=starter.dim)
    columns = Columns(starter.log_length, starter.state_size)
    random = np.random.default_rng(3)
    actions = [ACTION_CODES[name] for name in ("click", "view", "purchase")]
    events = [
        Event(
            START_MS + number * gap_s * 1000,
            number + 1,
            int(random.integers(ITEMS)),
            actions[int(random.integers(3))],
        )
        for number in range(200)
    ]
    for offset, event in enumerate(events):
        delta = apply(columns, [(ANN, event)], starter, vectors, offset)
        assert not delta.refold.any()
    state, _ = canonical_state(events[-starter.log_length :], vectors, starter, starter.state_size)
    assert cosine(columns.state[columns.rows[ANN]], state) >= CLOSE


def click(seconds: int, event: int, item: int = 1, action: int = CLICK) -> Event:
    return Event(START_MS + seconds * 1000, event, item, action)


def stored_state(columns: Columns) -> np.ndarray[tuple[int], np.dtype[np.float16]]:
    return columns.state[columns.rows[ANN]]


def test_a_pending_click_counts_as_soon_as_its_item_has_a_vector() -> None:
    encoder, vectors = ForgetfulEncoder(), item_vectors([1])
    columns = Columns(4, DIM)
    apply(columns, [(ANN, click(1, 1)), (ANN, click(2, 2, item=5))], encoder, vectors)
    assert columns.pending[columns.rows[ANN]] == 1
    vectors = item_vectors([1, 5])
    apply(
        columns, [(ANN, click(2, 2, item=5))], encoder, vectors, 2
    )  # a mere repetition brings it up to date
    assert columns.pending[columns.rows[ANN]] == 0
    state, _ = canonical_state([click(1, 1), click(2, 2, item=5)], vectors, encoder, DIM)
    assert cosine(stored_state(columns), state) >= CLOSE


def test_no_more_is_pending_than_the_log_holds() -> None:
    columns = Columns(4, DIM)
    many = [(ANN, click(second, second, item=5)) for second in range(1, 301)]
    apply(columns, many, ForgetfulEncoder(), item_vectors([1]))
    assert columns.pending[columns.rows[ANN]] == 4


@pytest.mark.parametrize("action", ["dislike", "hide"])
def test_an_evicted_click_is_not_heard_behind_events_that_do_not_step(action: str) -> None:
    """Forgetting is shown for a log full of steps; a log of dislikes forgets nothing by itself."""
    encoder, vectors = ForgetfulEncoder(), item_vectors()
    columns = Columns(4, DIM)
    events = [click(1, 1, item=1), click(2, 2, item=2)]
    events += [click(second, second, item=3, action=ACTION_CODES[action]) for second in range(3, 6)]
    for offset, event in enumerate(events):
        apply(columns, [(ANN, event)], encoder, vectors, offset)
    state, _ = canonical_state(events[-4:], vectors, encoder, DIM)
    assert cosine(stored_state(columns), state) >= CLOSE
    apply(columns, [(ANN, click(6, 6, item=3, action=ACTION_CODES[action]))], encoder, vectors, 10)
    assert columns.state_at_ms[columns.rows[ANN]] == 0
    assert not stored_state(columns).any()


def test_a_retraction_takes_its_event_out_of_the_state() -> None:
    encoder, vectors = ForgetfulEncoder(), item_vectors()
    columns = Columns(4, DIM)
    apply(columns, [(ANN, click(1, 1, item=1)), (ANN, click(2, 2, item=2))], encoder, vectors)
    apply(columns, [(ANN, Event(START_MS + 3000, 2, 0, RETRACT))], encoder, vectors, 2)
    state, _ = canonical_state([click(1, 1, item=1)], vectors, encoder, DIM)
    assert cosine(stored_state(columns), state) >= CLOSE
    assert columns.state_at_ms[columns.rows[ANN]] == START_MS + 1000


def test_a_state_of_another_bundle_is_folded_again_before_it_is_stepped_on() -> None:
    encoder, vectors = ForgetfulEncoder(), item_vectors()
    columns = Columns(4, DIM)
    apply(columns, [(ANN, click(1, 1, item=1))], encoder, vectors)
    row = columns.rows[ANN]
    columns.state[row], columns.stale[row] = 123.0, True
    apply(columns, [(ANN, click(2, 2, item=2))], encoder, vectors, 1)
    state, _ = canonical_state([click(1, 1, item=1), click(2, 2, item=2)], vectors, encoder, DIM)
    assert cosine(stored_state(columns), state) >= CLOSE
    assert not columns.stale[row]


def test_an_encoder_without_a_state_needs_no_calls() -> None:
    columns = Columns(4, 0)
    apply(columns, [(ANN, click(1, 1)), (ANN, click(2, 2))], ForgetfulEncoder(), item_vectors())
    assert columns.n[columns.rows[ANN]] == 2
