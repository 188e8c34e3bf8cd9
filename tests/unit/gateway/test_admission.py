"""Who may come in, how often, and how many at once."""

from contextlib import ExitStack

import pytest

from headwater.gateway.admission import Admission, Refused


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def calls(admission: Admission, caller: str, count: int) -> int:
    """How many of them were let in."""
    let_in = 0
    for _ in range(count):
        try:
            with admission.admitted(caller):
                let_in += 1
        except Refused:
            pass
    return let_in


def test_a_caller_gets_its_rate_and_after_silence_no_more_than_a_second_of_it() -> None:
    clock = Clock()
    admission = Admission(10.0, 100, clock)
    assert calls(admission, "ann", 25) == 10
    clock.now_s += 0.5
    assert calls(admission, "ann", 25) == 5
    clock.now_s += 3_600
    assert calls(admission, "ann", 25) == 10


def test_one_caller_takes_nothing_from_another() -> None:
    admission = Admission(10.0, 100, Clock())
    assert calls(admission, "ann", 50) == 10
    assert calls(admission, "bob", 50) == 10


def test_a_refusal_says_when_to_come_back() -> None:
    clock = Clock()
    admission = Admission(0.25, 100, clock)
    assert calls(admission, "ann", 1) == 1
    with pytest.raises(Refused, match=r"more than 0\.25 calls a second: come back in 4 s") as refused:
        admission.admitted("ann").__enter__()
    clock.now_s += refused.value.after_s
    assert calls(admission, "ann", 1) == 1


def test_calls_in_progress_are_bounded_and_a_call_that_fails_gives_its_place_back() -> None:
    admission = Admission(1_000.0, 2, Clock())
    with (
        admission.admitted("ann"),
        admission.admitted("bob"),
        pytest.raises(Refused, match="2 calls are in progress, 0 of them yours"),
    ):
        admission.admitted("eve").__enter__()
    with pytest.raises(ZeroDivisionError), admission.admitted("ann"):
        raise ZeroDivisionError
    with admission.admitted("ann"), admission.admitted("bob"):
        pass


def test_a_caller_who_lets_calls_wait_leaves_places_for_others() -> None:
    admission = Admission(1_000.0, 100, Clock())
    with ExitStack() as waiting:

        def held(caller: str) -> int:
            for count in range(1_000):
                try:
                    waiting.enter_context(admission.admitted(caller))
                except Refused:
                    return count
            raise AssertionError("no bound")

        assert [held(caller) for caller in ("ann", "bob", "eve")] == [75, 19, 5]
        assert held("ann") == 0
    assert not admission._in_progress


def test_callers_are_not_remembered_without_bound() -> None:
    admission = Admission(1.0, 10, Clock())
    for number in range(12_000):
        calls(admission, f"caller {number}", 1)
    assert len(admission._left) == 10_000
