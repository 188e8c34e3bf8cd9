"""Requests in hand, cut into parts of bounded work; the clock is read before each. Pure; the time is passed in."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from headwater.paths.accepting import PendingRequest

T = TypeVar("T")

# What one part costs, in microseconds of the event loop, unless one request alone costs more. A hundred usual requests.
PART_US: Final = 100_000.0
# A part that costs more waits its turn.
COSTLY_US: Final = 20_000.0
# This many answers are made and sent together: a few milliseconds of work, also where they are mere refusals.
MOST_AT_ONCE: Final = 256


def parts_of(
    pending: Sequence[PendingRequest], now_ms: Callable[[], float]
) -> Iterator[list[PendingRequest]]:
    """The requests in parts, cheap ones first. Those whose time is over meanwhile come next, in parts of their own."""
    if len(pending) == 1:
        yield list(pending)
        return
    waiting = sorted(pending, key=lambda each: each.cost_us)[::-1]  # taken from its end
    soonest_ms = _soonest_ms(waiting, now_ms())
    while waiting:
        now = now_ms()
        if now >= soonest_ms:
            late = [each for each in waiting if each.left_ms(now) <= 0]
            waiting = [each for each in waiting if each.left_ms(now) > 0]
            soonest_ms = _soonest_ms(waiting, now)
            yield from cut(late, MOST_AT_ONCE)
            continue
        part: list[PendingRequest] = []
        cost_us = 0.0
        while waiting and len(part) < MOST_AT_ONCE and (not part or cost_us + waiting[-1].cost_us <= PART_US):
            cost_us += waiting[-1].cost_us
            part.append(waiting.pop())
        yield part


def cut(values: Sequence[T], size: int) -> Iterator[list[T]]:
    """The values in order, at most ``size`` at a time."""
    return (list(values[start : start + size]) for start in range(0, len(values), size))


def _soonest_ms(pending: Sequence[PendingRequest], now_ms: float) -> float:
    """When the first of them expires."""
    return now_ms + min((each.left_ms(now_ms) for each in pending), default=0.0)
