"""Decayed counters of the items that a user wanted before the log begins: few and small. Pure.

A positive event is one of an action that steps the encoder. When the log pushes one out, it counts for its item, and all
counters of the user fade a little: by half over 200 positive events. If there is no room for another item, the lightest
counter makes way and leaves nothing behind. A dislike or hide that leaves the log drops the counter of its item; a
forget clears all of them.

A counter is a *level*, the logarithm of its weight in whole steps: fading is one step down. So all arithmetic is exact,
two bytes hold a level, and the counters follow from the order in which events left the log, however they were batched.
"""

from collections.abc import Callable, Iterable
from enum import IntEnum
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwater.profiles.actions import CODES, FORGET, SEEN, STEPS

U64 = NDArray[np.uint64]
U16 = NDArray[np.uint16]
U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]

# In positive events. What was tried: `models/RESULTS.md`.
HALF_LIFE: Final = 200
DEFAULT_COUNTERS: Final = 64
# The level of one positive event that has just left the log. Ten halvings below, at 0, the counter is gone.
ONE: Final = 2_048
# An item in every positive event stays below this level: there, one more no longer outweighs a step down.
MAX_LEVEL: Final = 4_095


class CounterEffect(IntEnum):
    """What an event that leaves the log does to the counters."""

    NOTHING = 0
    COUNT = 1  # one more for its item
    DROP = 2  # none for its item any more
    CLEAR = 3  # none at all any more


COUNTER_EFFECTS: Final[U8] = np.zeros(CODES, dtype=np.uint8)  # (16,) of `CounterEffect`, by action code
COUNTER_EFFECTS[SEEN] = CounterEffect.DROP
COUNTER_EFFECTS[STEPS] = CounterEffect.COUNT
COUNTER_EFFECTS[FORGET] = CounterEffect.CLEAR


class CounterRows(NamedTuple):
    """The counters of R users, M places each; where the level is 0 the place is free."""

    rows: I64  # (R,) unique
    keys: U64  # (R, M) item keys
    levels: U16  # (R, M)


def weight(level: float) -> float:
    """The weight of a counter, in positive events that have just left the log."""
    return float(2.0 ** ((level - ONE) / HALF_LIFE))


# Each level with one positive event more: `weight(_RAISED[level])` is `weight(level) + 1`, to within half a step.
_RAISED: Final[U16] = np.array(
    [ONE] + [round(ONE + HALF_LIFE * np.log2(weight(level) + 1.0)) for level in range(1, MAX_LEVEL + 1)],
    dtype=np.uint16,
)
_RAISED_LIST: Final[list[int]] = _RAISED.tolist()

# With fewer users than this, and for a user with more evictions than that, the plain rule is faster than numpy's calls.
_FEW: Final = 4
_MANY: Final = 24
_PLACES: Final = 256  # more than there are


def count_evictions(keys: list[int], levels: list[int], left: Iterable[tuple[int, int]]) -> None:
    """The rule, for one user, in place.

    Args:
        keys, levels: the user's counters, M places each.
        left: (item key, `CounterEffect`) of each event that has left the log, oldest first.

    >>> keys, levels = [0, 0], [0, 0]
    >>> count_evictions(keys, levels, [(7, CounterEffect.COUNT), (8, CounterEffect.COUNT), (7, CounterEffect.COUNT), (9, CounterEffect.COUNT)])
    >>> keys, [round(weight(level), 2) for level in levels]
    ([7, 9], [1.99, 1.0])
    """
    if not levels:
        return
    # Until the end, `levels` stay too high by what has faded: one subtraction for all positive events.
    faded = 0
    place_of = {key: place for place, (key, level) in enumerate(zip(keys, levels, strict=True)) if level}
    free = [place for place, level in enumerate(levels) if not level]
    # (a level that the place once had, place) of each place that is taken. Levels only rise, so the lightest is found fast.
    heap = [level * _PLACES + place for place, level in enumerate(levels) if level]
    heapify(heap)
    for key, what in left:
        place = place_of.get(key, -1)
        if what == CounterEffect.COUNT:
            faded += 1
            if place >= 0 and levels[place] > faded:
                levels[place] = _RAISED_LIST[levels[place] - faded] + faded
                continue
            _fade(levels, heap, free, faded)
            if free:
                place = heappop(free)
                heappush(heap, (ONE + faded) * _PLACES + place)
            else:
                place = heap[0] % _PLACES
                heapreplace(heap, (ONE + faded) * _PLACES + place)
            if place_of.get(keys[place]) == place:
                del place_of[keys[place]]
            keys[place], levels[place], place_of[key] = key, ONE + faded, place
        elif what == CounterEffect.DROP and place >= 0 and levels[place] > faded:
            levels[place] = 0
            heappush(free, place)
        elif what == CounterEffect.CLEAR:
            keys[:], levels[:] = [0] * len(keys), [0] * len(levels)
            place_of, free, heap = {}, list(range(len(keys))), []
    levels[:] = [level - faded if level > faded else 0 for level in levels]


def _fade(levels: list[int], heap: list[int], free: list[int], faded: int) -> None:
    """Free the places that have faded away. Afterwards the heap begins with the lightest of the others."""
    while heap:
        level, place = divmod(heap[0], _PLACES)
        if levels[place] > level:
            heapreplace(heap, levels[place] * _PLACES + place)
        elif levels[place] < level:  # it was freed, and may have been taken again
            heappop(heap)
        elif level <= faded:
            heappop(heap)
            levels[place] = 0
            heappush(free, place)
        else:
            break


def apply_evictions(
    counters_of: Callable[[I64], tuple[U64, U16]], rows: I64, items: U64, effects: U8
) -> CounterRows:
    """The new counters of all users whose log events have left; nothing is written.

    Args:
        counters_of: copies of the keys (R, M) and levels (R, M) of rows (R,).
        rows: (E,) the user of each event; those of a user stand together, oldest first.
        items: (E,) the events' item keys.
        effects: (E,) of `CounterEffect`, none of them NOTHING.
    """
    nobody = CounterRows(rows[:0], *counters_of(rows[:0]))
    if not len(rows) or not nobody.keys.shape[1]:
        return nobody
    first = np.concatenate([[True], rows[1:] != rows[:-1]])
    if first.all() and (effects == CounterEffect.COUNT).all():
        new = CounterRows(rows, *counters_of(rows))
        _count_one_each(new.keys, new.levels, items)
        return new
    starts = np.flatnonzero(first)
    lengths = np.diff(starts, append=len(rows))
    # Sort users by evictions, descending, so that every vectorised round works on a prefix. Users with more than 24
    # evictions, or with others than positive events, go last and are handled singly.
    only_counts = np.maximum.reduceat(effects, starts) == CounterEffect.COUNT
    rounds = np.where(only_counts & (lengths <= _MANY), lengths, 0)
    order = np.argsort(-rounds, kind="stable")
    starts, lengths, rounds = starts[order], lengths[order], rounds[order]
    new = CounterRows(rows[starts], *counters_of(rows[starts]))
    done, busy = 0, int(np.count_nonzero(rounds))
    while busy >= _FEW:
        _count_one_each(new.keys[:busy], new.levels[:busy], items[starts[:busy] + done])
        done += 1
        busy = int(np.searchsorted(-rounds, -done))
    rest = np.concatenate([np.arange(busy), np.flatnonzero(rounds == 0)])
    for user in rest.tolist():
        begin, stop = starts[user] + (done if rounds[user] else 0), starts[user] + lengths[user]
        keys, levels = new.keys[user].tolist(), new.levels[user].tolist()
        count_evictions(
            keys, levels, zip(items[begin:stop].tolist(), effects[begin:stop].tolist(), strict=True)
        )
        new.keys[user], new.levels[user] = keys, levels
    return new


def _count_one_each(keys: U64, levels: U16, items: U64) -> None:
    """Count one positive event for each of R users, in place: keys (R, M), levels (R, M), items (R,)."""
    levels -= levels > 0
    place = (keys == items[:, None]).argmax(axis=1)
    at = (np.arange(len(items)), place)
    before = levels[at] * (keys[at] == items)
    new = (before == 0).nonzero()[0]
    place[new] = levels[new].argmin(axis=1)
    keys[at], levels[at] = items, _RAISED[before]
