"""New items of the catalog that are like those of the user's current session, or that others take.

New items have no co-occurrence, and interests rank them below items seen in training; their text, their attributes and
what others have done since they came in separate them. They are compared with the items of the current session, one by one: by cosine, because
the norm of an untrained vector carries no information, and by the attributes that are equal, such as the maker. Those
that others take most are compared wherever they lie, and each doubling of their weight counts as much. Among equals the newest comes first. Figures: `models/RESULTS.md`, "New items".
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from headwater.index import Index
from headwater.index.filters import And, Filter, Range
from headwater.pacing import Pacer
from headwater.recall.popularity import PopularItem
from headwater.recall.session import current_session
from headwater.recall.similarity import Near, Wanted, near_items, unit
from headwater.recall.sources import Ask, Named, Resources, SearchSource, Why

# The usual end of a visit.
PAUSE_MS: Final = 1_800_000
# The index is asked for each anchor.
MAX_ANCHORS: Final = 8
# Outside a session the newest items stand in for it.
LAST_ANCHORS: Final = 3
# What it counts, beside the cosine, to have all attributes of an anchor.
_ATTRIBUTES: Final = 0.2
# More attributes of an anchor would hold back others.
_MOST_ATTRIBUTES: Final = 16
# Attributes and age choose among so many times the items that are wanted.
_CHOICE: Final = 6
# What it counts to weigh as much as the median of the rising items, and for each doubling beyond that. Where a few items
# have all the weight, the bound leaves something to the session.
_RISING: Final = 0.4
_MOST_MEDIANS: Final = 7.0
# Items of one text may differ by rounding; so far apart they are equals.
_DECIMALS: Final = 3
_DAY_MS: Final = 86_400_000


class NewItems(SearchSource):
    """New items, those first that are most like any of the anchors.

    Args:
        new_days: an item is new for so long after it came into the catalog.
        rising: the new items that are taken most, heaviest first.
    """

    name = "new"
    # It votes in requests that name it: a new item takes the place of one that is taken more often.
    default_weight = 0.0
    rung = "no-new"

    def __init__(
        self, index: Index, new_days: float, rising: Callable[[], Sequence[PopularItem]] = tuple
    ) -> None:
        self._index, self._new_ms, self._rising = index, int(new_days * _DAY_MS), rising
        self._pacer = Pacer()

    @classmethod
    def made_of(cls, given: Resources) -> Self:
        return cls(given.index, given.new_days, given.rising)

    def applies(self, ask: Ask) -> bool:
        return bool(ask.liked)

    def why(self, ask: Ask) -> Why | None:
        """There is nothing to compare new items with, or no new item to compare."""
        return "no_new" if ask.liked else "no_events"

    async def rankings(self, asks: Sequence[Ask]) -> Sequence[Sequence[Named]]:
        lifts = lifts_of(self._rising())
        of_rising = await self._index.items([*lifts]) if lifts else {}
        wanted = [
            Wanted(anchor_items(ask), ask.wanted, self._where(ask), ask.exclude, also)
            for ask, also in zip(asks, await self._matching(asks, of_rising), strict=True)
        ]
        near = await near_items(self._index, wanted, _CHOICE)
        found = {key for each in near for key in (*each.items, *each.anchor_keys)}
        payloads = {**of_rising, **await self._index.items([*(found - of_rising.keys())])}
        return [
            (await most_alike(of_ask, payloads, self._pacer, lifts))[: each.limit]
            for of_ask, each in zip(near, wanted, strict=True)
        ]

    async def _matching(
        self, asks: Sequence[Ask], payloads: Mapping[int, Mapping[str, Any]]
    ) -> list[dict[int, str]]:
        """For each ask those of some items, by key with their ids, that are new and match its filter, each filter looked up once."""
        if not payloads:
            return [{} for _ in asks]
        filters = {ask.where: None for ask in asks}
        found = await asyncio.gather(*(self._index.match([*payloads], where) for where in filters))
        matching = dict(zip(filters, found, strict=True))
        since_ms = {key: payload.get("since_ms") or 0 for key, payload in payloads.items()}
        also = []
        for ask in asks:
            await self._pacer.turn()
            new = self._is_new(ask)
            items = matching[ask.where].items()
            also.append({key: item_id for key, item_id in items if new.holds(since_ms.get(key, 0))})
        return also

    def _where(self, ask: Ask) -> Filter:
        """The ask's filter, for new items."""
        return And((ask.where, self._is_new(ask))) if ask.where else self._is_new(ask)

    def _is_new(self, ask: Ask) -> Range:
        """Items that are new. One that comes in later is not new yet."""
        return Range("since_ms", gte=float(ask.now_ms - self._new_ms), lte=float(ask.now_ms))


def lifts_of(rising: Sequence[PopularItem]) -> dict[int, float]:
    """By key, what it counts that others take new items.

    >>> lifts_of([PopularItem(7, "tea", 9.0), PopularItem(8, "cup", 3.0), PopularItem(9, "pot", 3.0)])
    {7: 0.8, 8: 0.4, 9: 0.4}
    """
    weights = np.array([item.weight for item in rising])
    taken = weights > 0
    if not taken.any():
        return {}
    medians = (weights / np.median(weights[taken])).clip(max=_MOST_MEDIANS)
    lifts = (_RISING * np.log2(1.0 + medians)).tolist()
    return {item.key: lift for item, lift in zip(rising, lifts, strict=True) if lift > 0}


def anchor_items(ask: Ask) -> list[int]:
    """Keys of the items, each once, that new ones are compared with: the newest of the session, or else the last ones.

    >>> minute = 60_000
    >>> log = [(7, 0, 1), (5, minute, 1), (6, 40 * minute, 1), (5, 41 * minute, 1)]
    >>> anchor_items(Ask(log=log, now_ms=42 * minute)), anchor_items(Ask(log=log, now_ms=90 * minute))
    ([6, 5], [7, 6, 5])
    """
    events = ask.liked
    session = current_session(events, ask.now_ms, PAUSE_MS)
    if session:
        return [key for key, _, _ in session[-MAX_ANCHORS:]]
    last = dict.fromkeys(key for key, _, _ in reversed(events))
    return [*reversed([*last][:LAST_ANCHORS])]


async def most_alike(
    near: Near,
    payloads: Mapping[int, Mapping[str, Any]],
    pacer: Pacer,
    lifts: Mapping[int, float] = MappingProxyType({}),
) -> list[Named]:
    """The items of a search that are live, those first that are most alike to any anchor; among equals the newest first.

    Args:
        near: items and anchors.
        payloads: of both, by key.
        lifts: what counts beside that, by key.
    """
    live = [key for key in near.items if key in near.vectors and key in payloads]
    if not live:
        return []
    attributes = [payloads[key].get("attributes", {}) for key in live]
    units, alike = unit(np.stack([near.vectors[key] for key in live])), np.full(len(live), -np.inf)
    for key, anchor in zip(near.anchor_keys, unit(np.stack(near.anchors)), strict=True):
        await pacer.turn()
        shared = shared_attributes(attributes, payloads.get(key, {}).get("attributes", {}))
        alike = np.maximum(alike, units @ anchor + _ATTRIBUTES * shared)
    alike += [lifts.get(key, 0.0) for key in live]
    since_ms = np.array([payloads[key].get("since_ms") or 0 for key in live])
    order = np.lexsort((-since_ms, -alike.round(_DECIMALS))).tolist()
    return [(live[place], near.items[live[place]]) for place in order]


def shared_attributes(
    items: Sequence[Mapping[str, object]], anchor: Mapping[str, object]
) -> NDArray[np.float64]:
    """(N,) the share of an anchor's attributes, its first ones, that each of N items has with the same value.

    >>> shared_attributes([{"maker": 7, "size": "l"}, {"maker": 8}], {"maker": 7, "size": "s"}).tolist()
    [0.5, 0.0]
    """
    shared = np.zeros(len(items))
    named = [*islice(anchor.items(), _MOST_ATTRIBUTES)]
    for name, value in named:
        shared += [attributes.get(name) == value for attributes in items]
    return shared / max(len(named), 1)
