"""What the soak's verdict rests on: its windows, its line, and the census of a worker's containers."""

from itertools import chain

import pytest

from tests.bench.census import containers, heap
from tests.bench.soak import slope
from tests.bench.soak_load import Window


def test_what_has_left_the_window_never_returns() -> None:
    window = Window(size=100, per_s=10.0, exponent=1.0, seed=3)
    for elapsed_s in range(20):
        new = window.move(float(elapsed_s))
        assert len(new) == (10 if elapsed_s else 0)
        assert all(window.oldest <= window.draw() <= window.newest for _ in range(200))
    assert window.oldest == 190


def test_the_line_is_that_of_the_samples_after_the_warm_up() -> None:
    warm = [{"elapsed_s": 5.0 * each, "mib": 1_000.0 * each} for each in range(120)]
    after = [{"elapsed_s": 600.0 + 5.0 * each, "mib": 300.0 + each / 720 * 12} for each in range(360)]
    found = slope([*warm, *after], "mib", 600.0)
    assert found is not None
    assert found.per_h == pytest.approx(12.0)
    assert found.within < 1e-6
    assert slope(warm, "mib", 599.0) is None


def test_a_container_is_named_by_the_way_to_it() -> None:
    class Lot:
        __slots__ = ("waiting",)

        def __init__(self) -> None:
            self.waiting = {each: bytes(8) for each in range(1_000)}

    class Worker:
        def __init__(self) -> None:
            self.lots = {0: Lot(), 1: Lot()}
            self.ask = lambda: numbers

    numbers = list(range(500))
    found = containers(worker=Worker())
    assert {way: each[:2] for way, each in found.items()} == {
        "worker.lots[].waiting": (2, 2_000),
        "worker.ask.closure.<cell>": (1, 500),
    }


def test_the_heap_is_told_in_numbers() -> None:
    found = heap()
    numbers = chain.from_iterable(
        each if isinstance(each, list | tuple) else [each] for each in found.values()
    )
    assert all(isinstance(each, int) for each in numbers)
    assert found["python_blocks"] > 0
