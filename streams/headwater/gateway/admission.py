"""Which calls the gateway admits: API keys, rate limits, calls at a time. Pure but for the clock."""

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from headwater.errors import HeadwaterError

# Of callers that share no key: one for each address. The longest silent are forgotten, and begin with a full measure again.
_MOST_CALLERS: Final = 10_000
# A caller may hold so many places for each that is free: alone three of four. However many calls one leaves waiting, there is
# room for others (dynamic thresholds, Choudhury and Hahne, 1998).
_HELD_FOR_EACH_FREE: Final = 3


class Refused(HeadwaterError):
    """Not now. ``after_s`` is when to come back, in whole seconds."""

    def __init__(self, message: str, after_s: int) -> None:
        super().__init__(message)
        self.after_s = after_s


class Admission:
    """A token bucket for each caller, and a bound on the calls in progress.

    Args:
        rate: calls a second of one caller; as many may come at once after a second of silence.
        at_once: calls in progress of all callers together. One may hold three for each place that it leaves free.
        now: seconds, of a clock that only goes forward.
    """

    def __init__(self, rate: float, at_once: int, now: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._at_once, self._now = rate, at_once, now
        self._in_progress: Counter[str] = Counter()  # by caller
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # by caller: calls left, as of when

    @contextmanager
    def admitted(self, caller: str) -> Iterator[None]:
        """A call in progress. Raises Refused."""
        self._take(caller)
        own, of_all = self._in_progress[caller], self._in_progress.total()
        if own >= _HELD_FOR_EACH_FREE * (self._at_once - of_all):
            raise Refused(
                f"{of_all} calls are in progress, {own} of them yours, which leaves no more than {self._at_once - of_all} for "
                "others: come back in 1 s",
                1,
            )
        self._in_progress[caller] += 1
        try:
            yield
        finally:
            self._in_progress[caller] -= 1
            if not self._in_progress[caller]:
                del self._in_progress[caller]

    def _take(self, caller: str) -> None:
        now_s, most = self._now(), max(1.0, self._rate)
        left, as_of_s = self._left.pop(caller, (most, now_s))
        left = min(most, left + (now_s - as_of_s) * self._rate)
        enough = left >= 1.0
        self._left[caller] = (left - 1.0 if enough else left, now_s)
        if len(self._left) > _MOST_CALLERS:
            self._left.popitem(last=False)
        if not enough:
            after_s = math.ceil((1.0 - left) / self._rate)
            raise Refused(f"more than {self._rate:g} calls a second: come back in {after_s} s", after_s)
