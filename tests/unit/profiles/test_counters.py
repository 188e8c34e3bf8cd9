"""Counters of what has left a log: the rule, many users at once, and what the levels mean."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.messages import ACTIONS
from headwater.profiles.counters import (
    COUNTER_EFFECTS,
    HALF_LIFE,
    I64,
    MAX_LEVEL,
    ONE,
    U16,
    U64,
    CounterEffect,
    apply_evictions,
    count_evictions,
    weight,
)

Event = tuple[int, int]


def one_by_one(events: list[Event], places: int) -> tuple[list[int], list[int]]:
    """The rule in its plainest words: everything fades at once, then the item of the positive event counts one more."""
    keys, levels = [0] * places, [0] * places
    for key, what in events:
        if what == CounterEffect.CLEAR:
            levels = [0] * places
        held = {key: place for place, key in enumerate(keys) if levels[place] > 0}
        if what == CounterEffect.DROP and key in held:
            levels[held[key]] = 0
        if what == CounterEffect.COUNT:
            levels = [max(level - 1, 0) for level in levels]
            place = held.get(key)
            if place is not None and levels[place] > 0:
                levels[place] = round(ONE + HALF_LIFE * np.log2(weight(levels[place]) + 1))
            else:
                place = levels.index(min(levels))
                keys[place], levels[place] = key, ONE
    return keys, levels


def live(keys: list[int], levels: list[int]) -> list[tuple[int, int] | None]:
    return [(key, level) if level else None for key, level in zip(keys, levels, strict=True)]


def of(keys: U64, levels: U16, rows: I64) -> tuple[U64, U16]:
    return keys[rows], levels[rows]


positive_events = st.tuples(st.integers(0, 9), st.just(int(CounterEffect.COUNT)))
mixed = st.tuples(
    st.integers(0, 9),
    st.sampled_from([CounterEffect.COUNT] * 6 + [CounterEffect.DROP, CounterEffect.CLEAR]).map(int),
)


@given(
    st.lists(st.lists(positive_events, max_size=9) | st.lists(mixed, max_size=9), min_size=1, max_size=20),
    st.integers(1, 5),
    st.data(),
)
def test_many_users_in_any_batches_are_counted_as_each_alone(
    users: list[list[Event]], places: int, data: st.DataObject
) -> None:
    keys, levels = np.zeros((len(users), places), np.uint64), np.zeros((len(users), places), np.uint16)
    cut = data.draw(st.integers(0, 9))
    for batch in ([events[:cut] for events in users], [events[cut:] for events in users]):
        order = data.draw(st.permutations(range(len(users))))
        rows = np.array([user for user in order for _ in batch[user]], dtype=np.int64)
        items = np.array([key for user in order for key, _ in batch[user]], dtype=np.uint64)
        what = np.array([what for user in order for _, what in batch[user]], dtype=np.uint8)
        before = keys.copy(), levels.copy()
        new = apply_evictions(partial(of, keys, levels), rows, items, what)
        assert (keys == before[0]).all()
        assert (levels == before[1]).all(), "nothing is written yet"
        keys[new.rows], levels[new.rows] = new.keys, new.levels
    for user, events in enumerate(users):
        assert live(keys[user].tolist(), levels[user].tolist()) == live(*one_by_one(events, places))


def test_few_positive_events_that_fade_away_and_come_again_are_counted_alike() -> None:
    """The levels of a long history, in which counters die and their places are taken again."""
    rng = np.random.default_rng(5)
    events = [(int(key), int(CounterEffect.COUNT)) for key in rng.choice([1] * 2_000 + [2, 3, 4, 5], 7_000)]
    keys, levels = [0] * 6, [0] * 6
    for start in range(0, len(events), 700):
        count_evictions(keys, levels, events[start : start + 700])
    assert live(keys, levels) == live(*one_by_one(events, 6))
    assert 0 in levels


def test_a_positive_event_is_worth_half_after_as_many_others_as_the_half_life() -> None:
    keys, levels = [0] * 300, [0] * 300
    count_evictions(keys, levels, [(key, CounterEffect.COUNT) for key in range(HALF_LIFE + 1)])
    assert weight(levels[keys.index(0)]) == pytest.approx(0.5)
    assert weight(levels[keys.index(HALF_LIFE)]) == 1.0


def test_two_positive_events_weigh_two_and_the_lightest_makes_way() -> None:
    keys, levels = [0, 0], [0, 0]
    count_evictions(
        keys,
        levels,
        [
            (7, CounterEffect.COUNT),
            (8, CounterEffect.COUNT),
            (7, CounterEffect.COUNT),
            (9, CounterEffect.COUNT),
        ],
    )
    assert keys == [7, 9]
    assert weight(levels[0]) == pytest.approx(2, rel=0.01)


def test_an_item_of_every_positive_event_stays_within_the_levels() -> None:
    keys, levels = [0, 0], [0, 0]
    count_evictions(keys, levels, [(7, CounterEffect.COUNT)] * 5_000)
    assert weight(levels[0]) > 150
    assert levels[0] < MAX_LEVEL


def test_without_counters_nothing_is_counted() -> None:
    none = np.zeros((3, 0), np.uint64), np.zeros((3, 0), np.uint16)
    new = apply_evictions(
        partial(of, *none), np.array([1]), np.array([7], np.uint64), np.array([CounterEffect.COUNT], np.uint8)
    )
    assert not len(new.rows)


def test_what_leaves_the_log_counts_by_its_action() -> None:
    effects = {name: CounterEffect(COUNTER_EFFECTS[action.code]) for name, action in ACTIONS.items()}
    positive = ("click", "view", "like", "add_to_cart", "purchase")
    assert {name: effect for name, effect in effects.items() if effect is not CounterEffect.NOTHING} == {
        **dict.fromkeys(positive, CounterEffect.COUNT),
        "dislike": CounterEffect.DROP,
        "hide": CounterEffect.DROP,
        "forget": CounterEffect.CLEAR,
    }
