"""States of users: whatever the order, repetition and batching of events, the fold over their newest log."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.encoder import runtime as encoders
from headwater.encoder.features import ACTION_CODES, MAX_GAP_S
from headwater.encoder.runtime import Encoder
from headwater.index.item_vectors import ItemVectors
from headwater.profiles.actions import RETRACT
from headwater.profiles.apply_clicks import plan_batch
from headwater.profiles.columns import Columns
from headwater.profiles.encoder_steps import StepEncoder, fold_again, needs_refold, step_inputs, step_states
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
    clicks_of,
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
        elif columns.state_at_ms[row] == 0:
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
    vectors.put(5, item_vectors([5]).matrix[1])
    apply(
        columns, [(ANN, click(2, 2, item=5))], encoder, vectors, 2
    )  # a mere repetition brings it up to date
    assert columns.pending[columns.rows[ANN]] == 0
    state, _ = canonical_state([click(1, 1), click(2, 2, item=5)], vectors, encoder, DIM)
    assert cosine(stored_state(columns), state) >= CLOSE


@given(
    histories(),
    st.integers(2, 8),
    st.booleans(),
    st.lists(st.integers(0, ITEMS - 1), max_size=ITEMS, unique=True),
)
def test_vectors_that_come_between_batches_count_from_the_next_event_on(
    history: History, length: int, forgets: bool, late: list[int]
) -> None:
    encoder = ForgetfulEncoder() if forgets else ForgetNothingEncoder()
    vectors, whole = item_vectors([item for item in range(ITEMS) if item not in late]), item_vectors()
    columns, coming = Columns(length, DIM, capacity=2), list(late)
    cuts = sorted({0, len(history.stream), *(cut for cut in history.cuts if cut < len(history.stream))})
    for number, (start, stop) in enumerate(pairwise(cuts)):
        apply(columns, history.stream[start:stop], encoder, vectors, start)
        if coming and number % 2:
            item = coming.pop()
            vectors.put(item, whole.matrix[whole.rows([item])[0]])
    again = [(user, event) for user, events in history.events.items() for event in events[-1:]]
    for place, one in enumerate(again):
        apply(columns, [one], encoder, vectors, len(history.stream) + place)
    check_states(columns, history, vectors, encoder)


def test_a_click_on_an_unknown_item_does_not_fold_the_log_at_every_click_after_it() -> None:
    """Each click of the user would cost as much as the whole log."""
    encoder, vectors = ForgetNothingEncoder(), item_vectors([1, 2])
    columns = Columns(4, DIM)
    events = [click(second, second, item=5 if second % 4 == 2 else 1) for second in range(1, 30)]
    for offset, event in enumerate(events):
        delta = plan_batch(columns, clicks_of(columns, [(ANN, event)], offset))
        refold = needs_refold(delta, forgets=False)
        job = step_states(delta, refold, vectors, np.zeros(DIM, np.float32))
        assert sum(call.mask.size for call, _ in job.calls) == int(offset == 0)
        apply(columns, [(ANN, event)], encoder, vectors, offset)
        _, pending = canonical_state(events[: offset + 1][-4:], vectors, encoder, DIM)
        assert columns.pending[columns.rows[ANN]] == pending
    vectors.put(5, item_vectors([5]).matrix[1])
    apply(columns, [(ANN, click(30, 30))], encoder, vectors, len(events))
    state, _ = canonical_state([*events, click(30, 30)][-4:], vectors, encoder, DIM)
    assert columns.pending[columns.rows[ANN]] == 0
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


# Calls of the step graph


def calls_of(users: list[int], at_s: list[int], start_s: list[int], newest: int = 50):  # type: ignore[no-untyped-def]
    count = len(users)
    return list(
        step_inputs(
            np.array(users, dtype=np.int64),
            np.arange(1, count + 1, dtype=np.int64),
            np.full(count, CLICK, dtype=np.int64),
            np.array(at_s, dtype=np.int64) * 1000,
            np.array(start_s, dtype=np.int64) * 1000,
            newest,
        )
    )


def test_gaps_count_from_the_event_before_and_from_the_last_folded_one() -> None:
    (call,) = calls_of([0, 0, 0], [110, 115, 135], [100])
    assert call.gaps_s[0, :3].tolist() == [10.0, 5.0, 20.0]


def test_the_first_gap_of_a_user_without_events_is_zero() -> None:
    (call,) = calls_of([0, 0], [110, 115], [0])
    assert call.gaps_s[0].tolist() == [0.0, 5.0]


def test_gaps_stop_at_thirty_days() -> None:
    (call,) = calls_of([0], [100 + 40 * 86_400], [100])
    assert call.gaps_s[0, 0] == MAX_GAP_S


def test_calls_are_padded_at_the_end_and_padding_points_at_the_zero_vector() -> None:
    (call,) = calls_of([0, 0, 0], [1, 2, 3], [0])
    assert call.mask.tolist() == [[1.0, 1.0, 1.0, 0.0]]
    assert call.vector_rows.tolist() == [[1, 2, 3, 0]]
    assert call.actions.tolist() == [[CLICK, CLICK, CLICK, 0]]
    assert call.gaps_s[0, 3] == 0.0


def test_only_a_logs_worth_of_the_newest_events_is_stepped() -> None:
    (call,) = calls_of([0] * 5, [1, 2, 3, 4, 5], [0], newest=2)
    assert call.vector_rows.tolist() == [[4, 5]]
    assert call.gaps_s.tolist() == [[1.0, 1.0]]


def test_users_with_few_events_do_not_pay_for_those_with_many() -> None:
    calls = calls_of([0, *[1] * 30, 2], [*range(1, 33)], [0, 0, 0])
    assert {tuple(call.users.tolist()): call.mask.shape[1] for call in calls} == {(0, 2): 1, (1,): 32}


def test_no_events_make_no_calls() -> None:
    assert calls_of([], [], [0, 0]) == []


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_every_event_is_stepped_once_and_in_order(counts: list[int]) -> None:
    users = [user for user, count in enumerate(counts) for _ in range(count)]
    calls = calls_of(users, list(range(1, len(users) + 1)), [0] * len(counts))
    seen: dict[int, list[int]] = {}
    for call in calls:
        for place, user in enumerate(call.users.tolist()):
            seen[user] = call.vector_rows[place][call.mask[place] > 0].tolist()
    expected = {user: [i + 1 for i, other in enumerate(users) if other == user] for user in set(users)}
    assert seen == expected


@pytest.mark.parametrize("count", [513, 1100])
def test_a_call_holds_a_bounded_number_of_users(count: int) -> None:
    calls = calls_of(list(range(count)), list(range(1, count + 1)), [0] * count)
    assert max(len(call.users) for call in calls) == 512
    assert sorted(user for call in calls for user in call.users.tolist()) == list(range(count))
