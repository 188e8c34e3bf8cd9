"""How even the machine is: the same millisecond of work again and again, beside nothing but a broker at rest.

A virtual machine shares its cores with others. The one of the figures in the README runs at half its speed, or at a tenth, for
100 ms every 1.55 s, with none of these processes: whatever takes a few milliseconds has that in its p99, and a worker
that is busy for three quarters of the time falls behind meanwhile.
"""

import time

import numpy as np
from numpy.typing import NDArray

from tests.bench.report import Figure
from tests.bench.system import System

_SECONDS = 10.0
_WORK_S = 0.001


async def measure(system: System) -> None:
    """Its median and its slowest hundredth."""
    taken = 1000.0 * _rounds_s()
    median, slow = map(float, np.percentile(taken, (50, 99)))
    slow_share = float(taken[taken > 2 * median].sum() / taken.sum())
    system.report.add(
        Figure(
            "the machine: a millisecond of work, p99",
            slow,
            "ms",
            median,
            "p50",
            slow / median,
            note=f"{slow_share:.0%} of the time it ran at less than half its speed",
        )
    )


def _rounds_s() -> NDArray[np.float64]:
    count = 1_000
    while min(_work_s(count) for _ in range(50)) < _WORK_S:
        count *= 2
    taken, end = [], time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        taken.append(_work_s(count))
    return np.array(taken)


def _work_s(count: int) -> float:
    started, total = time.perf_counter(), 0
    for number in range(count):
        total += number * number
    return time.perf_counter() - started
