"""The most popular items that match a request's filter."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final, Self

from headwater.index import Index, IndexUnavailable
from headwater.index.filters import Filter
from headwater.recall.popularity import PopularItem
from headwater.recall.sources import Ask, Filled, Filler, Named, Resources, Why

# Of a thousand a few dozen are wanted, and most match. Where they do not, one more look is the last.
_FIRST_LOOK: Final = 100


class Popular(Filler):
    """The most popular items that match a request's filter."""

    name = "popular"
    rung = "none"

    def __init__(self, index: Index, popular: Callable[[], Sequence[PopularItem]]) -> None:
        self._index, self._popular = index, popular

    @classmethod
    def made_of(cls, given: Resources) -> Self:
        return cls(given.index, given.popular)

    def why(self, ask: Ask) -> Why | None:
        """Nothing is popular in a young system."""
        return None if self._popular() else "no_popularity"

    async def fill(self, asks: Sequence[Ask], deadline: float) -> Sequence[Filled]:
        """If the index does not say what matches, popular items come unfiltered; none come where a filter is set."""
        popular = self._popular()
        matching: dict[Filter | None, _Matching] = {}
        filled = []
        for ask in asks:
            where = ask.where
            if where not in matching:
                matching[where] = _Matching(self._index, popular, where, deadline)
            items = await matching[where].first(ask.wanted, ask.exclude)
            if items is not None:
                filled.append(Filled(items))
            elif where is None:
                filled.append(Filled(_first(popular, ask.wanted, ask.exclude), self.name))
            else:
                filled.append(Filled((), self.rung))
        return filled


class _Matching:
    """The popular items that match a filter, looked up as far as they are needed."""

    def __init__(
        self, index: Index, popular: Sequence[PopularItem], where: Filter | None, deadline: float
    ) -> None:
        self._index, self._where, self._deadline = index, where, deadline
        self._found: list[PopularItem] = []
        self._unseen = [part for part in (popular[:_FIRST_LOOK], popular[_FIRST_LOOK:]) if part]
        self._has_failed = False

    async def first(self, count: int, exclude: frozenset[int]) -> list[Named] | None:
        """The most popular items that match; None where the index does not say in time."""
        items = _first(self._found, count, exclude)
        while len(items) < count and self._unseen and not self._has_failed:
            part = self._unseen[0]
            try:
                async with asyncio.timeout_at(self._deadline):
                    live = await self._index.match([item.key for item in part], self._where)
            except (IndexUnavailable, TimeoutError):
                self._has_failed = True
                break
            del self._unseen[0]
            self._found += [item for item in part if item.key in live]
            items = _first(self._found, count, exclude)
        return None if self._has_failed else items


def _first(items: Iterable[PopularItem], count: int, exclude: frozenset[int]) -> list[Named]:
    wanted = ((item.key, item.item_id) for item in items if item.key not in exclude)
    return list(islice(wanted, count))
