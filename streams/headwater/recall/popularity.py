"""Popularity: decayed counts of each clicks partition, shared by all workers through the trends topic.

An event of age ``a`` weighs ``w * 2^(-a / half_life)``. Weights are relative to a moving origin of time, so an event costs
one multiplication and no weight is ever decayed again.

**New items** weigh little beside what has sold for months, so the heaviest of them are told apart, as *rising*.

**One user, one voice.** A user who clicks without end would put an item first for everybody. So an event counts less the more
there is of the kind, see :func:`shares`.
"""

import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from headwater.encoder.features import item_key
from headwater.messages import Trend
from headwater.profiles.actions import POPULARITY, Bools
from headwater.profiles.columns import I64, U8, U64, Log

F64 = NDArray[np.float64]

# A week: long enough for a quiet shop, short enough to forget last month's season.
HALF_LIFE_S: Final = 7 * 86_400.0
# The number of items that a partition publishes and that a worker keeps of all partitions: the largest answer.
TOP: Final = 1_000
# The same of new items. The others have few events, and more of them find less (`models/RESULTS.md`, "New items").
RISING: Final = 200
# Beyond this, 5 MB, the lighter half is dropped. The published items weigh far more.
_MAX_ITEMS: Final = 200_000
# Weights are told as of the origin. It moves before they look like no counts any more: by then they are 256 times as high.
_REBASE_HALF_LIVES: Final = 8.0
# Of a user's events about as many count fully in this time as a log holds.
_FULL_LOG_MS: Final = 86_400_000.0
# At most this many events wait to be summed up: a few milliseconds of work.
_MAX_WAITING: Final = 20_000
# In place of the time when an item came in: nobody has looked; the catalog does not have the item; or not its time.
_UNASKED, _ABSENT, _UNDATED = np.nan, np.inf, -np.inf


def shares(log: Log, forgotten_ms: I64, user: I64, items: U64, at_ms: I64) -> F64:
    """(E,) how much of its action's weight each event counts for, 0 to 1.

    | bound | rule |
    |---|---|
    | of one user and item | half as much with each earlier event on the item in the user's log |
    | of one user | where the log is full, or a forget has emptied it: the time since its oldest event, or the forget, in days |

    So a user adds at most two events' worth to an item with each log, and about as many events a day as a log holds.

    Args:
        log, forgotten_ms: of the R users, after the events.
        user, items, at_ms: (E,) the index of each event's user among them, its item's key and its time.
    """
    width = log.at_ms.shape[1]
    since_ms = np.maximum((log.n == width) * log.at_ms[:, 0], forgotten_ms)
    share: F64 = ((at_ms - since_ms[user]) / _FULL_LOG_MS).clip(0.0, 1.0)
    # The event itself is in the log, too. Few users come back to an item: only these are looked at closely.
    again = ((log.item[user] == items[:, None]).sum(axis=1) > 1).nonzero()[0]
    if len(again):
        user, items, at_ms = user[again], items[again], at_ms[again]
        earlier = (log.item[user] == items[:, None]) & (log.at_ms[user] <= at_ms[:, None])
        earlier &= np.arange(width) < log.n[user][:, None]
        share[again] *= np.exp2(-np.maximum(earlier.sum(axis=1) - 1.0, 0.0))
    return share


class Counts:
    """Decayed counts of one clicks partition, by item key."""

    def __init__(self, half_life_s: float = HALF_LIFE_S) -> None:
        self._half_life_ms = half_life_s * 1000.0
        self._keys: U64 = np.zeros(0, dtype=np.uint64)  # ascending
        self._weights: F64 = np.zeros(0, dtype=np.float64)
        self._came_in_ms: F64 = np.zeros(0, dtype=np.float64)
        self._origin_ms = 0
        self._waiting: list[tuple[U64, F64, I64]] = []
        self._waiting_events = 0
        self.changed = False
        self.epoch = 0
        """Of this owner of the partition, by which its trends are ordered."""

    def __len__(self) -> int:
        self._sum_up()
        return len(self._keys)

    def add(self, items: U64, actions: U8, at_ms: I64, share: F64 | float = 1.0) -> None:
        """Count events: item keys, action codes, times in ms, and the share of each, all (events,)."""
        weights = POPULARITY[actions] * share
        counted = weights > 0
        if not counted.any():
            return
        # Summed up later: many events at once touch fewer items than the same events one by one.
        self._waiting.append((items[counted], weights[counted], at_ms[counted]))
        self._waiting_events += len(self._waiting[-1][0])
        self.changed = True
        if self._waiting_events >= _MAX_WAITING:
            self._sum_up()

    def drop(self, items: U64) -> None:
        """Count nothing of these items (n,) any more: they are not in the catalog."""
        self._sum_up()
        kept = ~np.isin(self._keys, items)
        if not kept.all():
            self._keep(kept)

    def _sum_up(self) -> None:
        if not self._waiting:
            return
        items, weights, at_ms = (np.concatenate(column) for column in zip(*self._waiting, strict=True))
        self._waiting, self._waiting_events = [], 0
        newest = int(at_ms.max())
        if not len(self._keys):
            self._origin_ms = newest
        elif newest - self._origin_ms > _REBASE_HALF_LIVES * self._half_life_ms:
            self._rebase(newest)
        ages = (at_ms - self._origin_ms) / self._half_life_ms
        grown = weights * np.exp2(np.clip(ages, -1000, 2 * _REBASE_HALF_LIVES))
        keys, place = np.unique(items, return_inverse=True)
        sums = np.bincount(place, weights=grown)
        at = np.searchsorted(self._keys, keys)
        held = np.zeros(len(keys), dtype=np.bool_)
        inside = at < len(self._keys)
        held[inside] = self._keys[at[inside]] == keys[inside]
        again = at[held]
        self._weights[again] += sums[held]
        # Perhaps the catalog has it by now.
        self._came_in_ms[again[self._came_in_ms[again] == _ABSENT]] = _UNASKED
        self._keys = np.insert(self._keys, at[~held], keys[~held])
        self._weights = np.insert(self._weights, at[~held], sums[~held])
        self._came_in_ms = np.insert(self._came_in_ms, at[~held], _UNASKED)
        if len(self._keys) > _MAX_ITEMS:
            self._keep(np.sort(_heaviest(self._weights, _MAX_ITEMS // 2)))

    def _keep(self, kept: I64 | Bools) -> None:
        self._keys, self._weights = self._keys[kept], self._weights[kept]
        self._came_in_ms = self._came_in_ms[kept]

    def _rebase(self, origin_ms: int) -> None:
        self._weights *= 2.0 ** ((self._origin_ms - origin_ms) / self._half_life_ms)
        self._origin_ms = origin_ms

    def top(self) -> list[tuple[int, float]]:
        """The heaviest items: (item key, weight as of :attr:`at_ms`)."""
        self._sum_up()
        heavy = _heaviest(self._weights, TOP)
        return list(zip(self._keys[heavy].tolist(), self._weights[heavy].tolist(), strict=True))

    def undated(self) -> U64:
        """(n,) keys of the items of which :meth:`date` has to say when they came in."""
        self._sum_up()
        return self._keys[np.isnan(self._came_in_ms)]

    def date(self, items: U64, came_in_ms: Mapping[int, float | None]) -> None:
        """Say when items (n,) came in, by key: None where the catalog has no time; those it lacks are missing."""
        self._sum_up()
        places = np.searchsorted(self._keys, items)
        held = places < len(self._keys)
        held[held] = self._keys[places[held]] == items[held]  # others have been dropped
        found = [came_in_ms.get(key, _ABSENT) for key in items[held].tolist()]
        self._came_in_ms[places[held]] = [_UNDATED if at_ms is None else at_ms for at_ms in found]

    def rising(self, since_ms: float, until_ms: float) -> list[tuple[int, float]]:
        """The heaviest of the items that came in at these times: (item key, weight as of :attr:`at_ms`)."""
        self._sum_up()
        new = np.flatnonzero((self._came_in_ms >= since_ms) & (self._came_in_ms <= until_ms))
        heavy = new[_heaviest(self._weights[new], RISING)]
        return list(zip(self._keys[heavy].tolist(), self._weights[heavy].tolist(), strict=True))

    @property
    def at_ms(self) -> int:
        """The origin of time of the weights, in ms since 1970."""
        self._sum_up()
        return self._origin_ms

    def restore(self, trend: Trend) -> None:
        """Continue from the counts that the partition's last owner published."""
        self._origin_ms = trend.at_ms
        self._waiting, self._waiting_events = [], 0
        told = [*trend.counts, *trend.rising]
        keys = np.array([item_key(item_id) for item_id, _ in told], dtype=np.uint64)
        weights = np.array([weight for _, weight in told], dtype=np.float64)
        self._keys, first = np.unique(keys, return_index=True)
        self._weights, self._came_in_ms = weights[first], np.full(len(first), _UNASKED)


def _heaviest(weights: F64, count: int) -> I64:
    """Places of the ``count`` largest of (n,) weights, heaviest first."""
    least = max(len(weights) - count, 0)
    places = np.argpartition(weights, least)[least:] if least else np.arange(len(weights))
    return places[np.argsort(-weights[places], kind="stable")]


class PopularItem(NamedTuple):
    """An item and its weight, summed over all partitions."""

    key: int
    item_id: str
    weight: float


class Trends:
    """The newest counts of every clicks partition, and the popular and the rising items they add up to."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._by_partition: dict[int, Trend] = {}
        self._popular: list[PopularItem] | None = None
        self._rising: list[PopularItem] | None = None

    def put(self, trend: Trend) -> bool:
        """Replace what is known of the trend's partition, unless that is newer; returns whether it was replaced.

        A stale owner's trend has a lower epoch, and a late copy of a trend an older time. Weights as of the future, which
        a publisher's clock once gave, hold as of now: from now on they fade.
        """
        known = self._by_partition.get(trend.partition)
        if known is not None and (trend.epoch, trend.written_ms) < (known.epoch, known.written_ms):
            return False
        at_ms = min(trend.at_ms, int(self._clock() * 1000.0))
        self._by_partition[trend.partition] = msgspec.structs.replace(trend, at_ms=at_ms)
        self._popular = self._rising = None
        return True

    def of(self, partition: int) -> Trend | None:
        """The newest trend of a partition, None before there is one."""
        return self._by_partition.get(partition)

    def popular(self) -> list[PopularItem]:
        """The items, heaviest first, with weights as of the newest partition's origin of time."""
        if self._popular is None:
            self._popular = self._summed(lambda trend: trend.counts, TOP)
        return self._popular

    def rising(self) -> list[PopularItem]:
        """The same of new items. Of a partition whose owner has an earlier version there are none."""
        if self._rising is None:
            self._rising = self._summed(lambda trend: trend.rising, RISING)
        return self._rising

    def _summed(self, told: Callable[[Trend], Sequence[tuple[str, float]]], count: int) -> list[PopularItem]:
        trends = self._by_partition.values()
        now_ms = max((trend.at_ms for trend in trends), default=0)
        total: dict[str, float] = {}
        for trend in trends:
            factor = 2.0 ** ((trend.at_ms - now_ms) / (trend.half_life_s * 1000.0))
            for item_id, weight in told(trend):
                total[item_id] = total.get(item_id, 0.0) + weight * factor
        top = heapq.nlargest(count, total.items(), key=lambda pair: pair[1])
        return [PopularItem(item_key(item_id), item_id, weight) for item_id, weight in top]
