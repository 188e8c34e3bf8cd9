"""New items of the catalog that are like those of the user's current session.

New items have no co-occurrence and no popularity, and interests rank them below items seen in training; only their text
and their attributes separate them. They are compared with the items of the current session, one by one: by cosine, because
the norm of an untrained vector carries no information, and by the attributes that are equal, such as the maker. Among
equals the newest comes first. Figures: `models/RESULTS.md`, "New items".
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from headwater.index import Index
from headwater.index.filters import And, Filter, Range
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
# Attributes and age choose among so many times the items that are wanted.
_CHOICE: Final = 6
# Items of one text may differ by rounding; so far apart they are equals.
_DECIMALS: Final = 3
_DAY_MS: Final = 86_400_000


class NewItems(SearchSource):
    """New items, those first that are most like any of the anchors.

    Args:
        new_days: an item is new for so long after it came into the catalog.
    """

    name = "new"
    # It votes in requests that name it: a new item takes the place of one that is taken more often.
    default_weight = 0.0
    rung = "no-new"

    def __init__(self, index: Index, new_days: float) -> None:
        self._index, self._new_ms = index, int(new_days * _DAY_MS)

    @classmethod
    def made_of(cls, given: Resources) -> Self:
        return cls(given.index, given.new_days)

    def applies(self, ask: Ask) -> bool:
        return bool(ask.liked)

    def why(self, ask: Ask) -> Why | None:
        """There is nothing to compare new items with, or no new item to compare."""
        return "no_new" if ask.liked else "no_events"

    async def rankings(self, asks: Sequence[Ask]) -> Sequence[Sequence[Named]]:
        wanted = [Wanted(anchor_items(ask), ask.wanted, self._where(ask), ask.exclude) for ask in asks]
        near = await near_items(self._index, wanted, _CHOICE)
        payloads = await self._index.items(
            [*{key for each in near for key in (*each.items, *each.anchor_keys)}]
        )
        return [most_alike(found, payloads)[: each.limit] for found, each in zip(near, wanted, strict=True)]

    def _where(self, ask: Ask) -> Filter:
        """The ask's filter, for new items. One that comes in later is not new yet."""
        new = Range("since_ms", gte=float(ask.now_ms - self._new_ms), lte=float(ask.now_ms))
        return And((ask.where, new)) if ask.where else new


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


def most_alike(near: Near, payloads: Mapping[int, Mapping[str, Any]]) -> list[Named]:
    """The items of a search that are live, those first that are most alike to any anchor; among equals the newest first.

    Args:
        near: items and anchors.
        payloads: of both, by key.
    """
    live = [key for key in near.items if key in near.vectors and key in payloads]
    if not live:
        return []
    cosines = unit(np.stack([near.vectors[key] for key in live])) @ unit(np.stack(near.anchors)).T
    shared = shared_attributes(
        [payloads[key].get("attributes", {}) for key in live],
        [payloads.get(key, {}).get("attributes", {}) for key in near.anchor_keys],
    )
    alike = (cosines + _ATTRIBUTES * shared).max(axis=1).round(_DECIMALS)
    since_ms = np.array([payloads[key].get("since_ms") or 0 for key in live])
    order = np.lexsort((-since_ms, -alike)).tolist()
    return [(live[place], near.items[live[place]]) for place in order]


def shared_attributes(
    items: Sequence[Mapping[str, object]], anchors: Sequence[Mapping[str, object]]
) -> NDArray[np.float32]:
    """(N, A) the share of each anchor's attributes whose value each of N items has too; 0 for an anchor without any.

    >>> shared_attributes([{"maker": 7, "size": "l"}, {"maker": 8}], [{"maker": 7, "size": "s"}]).tolist()
    [[0.5], [0.0]]
    """
    having: dict[tuple[str, object], list[int]] = defaultdict(list)
    for place, attributes in enumerate(items):
        for pair in attributes.items():
            having[pair].append(place)
    shared = np.zeros((len(items), len(anchors)), dtype=np.float32)
    for column, attributes in enumerate(anchors):
        for pair in attributes.items():
            shared[having.get(pair, []), column] += 1 / len(attributes)
    return shared
