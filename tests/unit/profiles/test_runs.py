"""Runs of equal values, as numpy's own functions find them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headwater.profiles.runs import before, firsts, lengths

values = st.lists(st.integers(0, 3), max_size=12)


@given(values)
def test_the_first_of_each_run_is_found(numbers: list[int]) -> None:
    expected = [place == 0 or number != numbers[place - 1] for place, number in enumerate(numbers)]
    assert firsts(np.array(numbers, dtype=np.int64)).tolist() == expected


@given(values)
def test_each_value_has_the_one_before_it(numbers: list[int]) -> None:
    assert before(np.array(numbers, dtype=np.int64)).tolist() == (numbers[:1] + numbers[:-1])


@given(values)
def test_lengths_of_runs_add_up(numbers: list[int]) -> None:
    array = np.array(numbers, dtype=np.int64)
    starts = firsts(array).nonzero()[0]
    assert np.repeat(array[starts], lengths(starts, len(array))).tolist() == numbers
