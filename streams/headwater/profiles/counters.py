"""What a user wished for before their log begins: decayed counters of items, few and small. Pure.

A wish that the log pushes out is counted for its item, and all counters of the user fade a little: to half in 200 wishes. Where
there is no room for one more item, the lightest makes way and leaves nothing behind. A dislike or hide that leaves the log
takes the counter of its item along; a forget takes all.

A counter is a *level*, the logarithm of its weight in whole steps: to fade is to go down by one, all arithmetic is exact, and
two bytes hold it. So the counters follow from what has left the log, in order, however it came in batches.
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

# In wishes. What was tried: `models/RESULTS.md`.
HALF_LIFE: Final = 200
DEFAULT_COUNTERS: Final = 64
MAX_COUNTERS: Final = 255  # a byte of the record tells their number
# The level of one wish that has just left the log. Ten halvings below, at 0, there is no counter any more.
ONE: Final = 2_048
# An item that comes back with every wish stays below: there one wish more no longer outweighs a step down.
MAX_LEVEL: Final = 4_095


class Left(IntEnum):
    """What an event that has left the log does to the counters."""

    NOTHING = 0
    WISH = 1
    UNWISH = 2
    FORGET = 3


LEAVES: Final[U8] = np.zeros(CODES, dtype=np.uint8)  # (16,) of `Left`, by action code
LEAVES[SEEN] = Left.UNWISH
LEAVES[STEPS] = Left.WISH
LEAVES[FORGET] = Left.FORGET


class CounterRows(NamedTuple):
    """The counters of R users; where the level is 0 the place is free."""

    rows: I64  # (R,) unique
    keys: U64  # (R, M) items
    levels: U16  # (R, M)


def weight(level: float) -> float:
    """What a counter is worth, in wishes that have just left the log."""
    return float(2.0 ** ((level - ONE) / HALF_LIFE))


# Each level and one wish more: `weight(_RAISED[level])` is `weight(level) + 1`, to within half a step.
_RAISED: Final[U16] = np.array(
    [ONE] + [round(ONE + HALF_LIFE * np.log2(weight(level) + 1.0)) for level in range(1, MAX_LEVEL + 1)],
    dtype=np.uint16,
)
_RAISED_LIST: Final[list[int]] = _RAISED.tolist()

# The plain rule is quicker than rounds of numpy's calls with fewer users than this, and for a user who loses more.
_FEW: Final = 4
_MANY: Final = 24
_PLACES: Final = 256  # more than there are


def count(keys: list[int], levels: list[int], left: Iterable[tuple[int, int]]) -> None:
    """The rule, for one user: (item key, `Left`) of each event that has left the log, oldest first.

    >>> keys, levels = [0, 0], [0, 0]
    >>> count(keys, levels, [(7, Left.WISH), (8, Left.WISH), (7, Left.WISH), (9, Left.WISH)])
    >>> keys, [round(weight(level), 2) for level in levels]
    ([7, 9], [1.99, 1.0])
    """
    if not levels:
        return
    # `levels` stay too high by what has faded until the end: one subtraction for all wishes.
    faded = 0
    place_of = {key: place for place, (key, level) in enumerate(zip(keys, levels, strict=True)) if level}
    free = [place for place, level in enumerate(levels) if not level]
    # Of each place that is taken its level at some time, with the place: levels only rise, so the lightest is soon found.
    heap = [level * _PLACES + place for place, level in enumerate(levels) if level]
    heapify(heap)
    for key, what in left:
        place = place_of.get(key, -1)
        if what == Left.WISH:
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
        elif what == Left.UNWISH and place >= 0 and levels[place] > faded:
            levels[place] = 0
            heappush(free, place)
        elif what == Left.FORGET:
            keys[:], levels[:] = [0] * len(keys), [0] * len(levels)
            place_of, free, heap = {}, list(range(len(keys))), []
    levels[:] = [level - faded if level > faded else 0 for level in levels]


def _fade(levels: list[int], heap: list[int], free: list[int], faded: int) -> None:
    """Free the places that have faded away; then the lightest of the others is the first of the heap."""
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
    counters_of: Callable[[I64], tuple[U64, U16]], rows: I64, items: U64, what: U8
) -> CounterRows:
    """The same for many users: their new counters, with nothing written yet.

    Args:
        counters_of: copies of the counters, (R, M) each, of rows (R,) as they are.
        rows: (E,) whose log each event has left, those of a user together and oldest first; items: (E,); what: (E,)
            of `Left`, but nothing of `NOTHING`.
    """
    nobody = CounterRows(rows[:0], *counters_of(rows[:0]))
    if not len(rows) or not nobody.keys.shape[1]:
        return nobody
    first = np.concatenate([[True], rows[1:] != rows[:-1]])
    if first.all() and (what == Left.WISH).all():
        new = CounterRows(rows, *counters_of(rows))
        _count_wishes(new.keys, new.levels, items)
        return new
    starts = np.flatnonzero(first)
    lengths = np.diff(starts, append=len(rows))
    # Who loses most comes first, so that who still loses something in a round are the first ones. Whoever loses many, or
    # more than wishes, comes last, with no rounds.
    only_wishes = np.maximum.reduceat(what, starts) == Left.WISH
    rounds = np.where(only_wishes & (lengths <= _MANY), lengths, 0)
    order = np.argsort(-rounds, kind="stable")
    starts, lengths, rounds = starts[order], lengths[order], rounds[order]
    new = CounterRows(rows[starts], *counters_of(rows[starts]))
    done, busy = 0, int(np.count_nonzero(rounds))
    while busy >= _FEW:
        _count_wishes(new.keys[:busy], new.levels[:busy], items[starts[:busy] + done])
        done += 1
        busy = int(np.searchsorted(-rounds, -done))
    rest = np.concatenate([np.arange(busy), np.flatnonzero(rounds == 0)])
    for user in rest.tolist():
        begin, stop = starts[user] + (done if rounds[user] else 0), starts[user] + lengths[user]
        keys, levels = new.keys[user].tolist(), new.levels[user].tolist()
        count(keys, levels, zip(items[begin:stop].tolist(), what[begin:stop].tolist(), strict=True))
        new.keys[user], new.levels[user] = keys, levels
    return new


def _count_wishes(keys: U64, levels: U16, items: U64) -> None:
    """One wish of each user, in place."""
    levels -= levels > 0
    place = (keys == items[:, None]).argmax(axis=1)
    at = (np.arange(len(items)), place)
    before = levels[at] * (keys[at] == items)
    new = (before == 0).nonzero()[0]
    place[new] = levels[new].argmin(axis=1)
    keys[at], levels[at] = items, _RAISED[before]
