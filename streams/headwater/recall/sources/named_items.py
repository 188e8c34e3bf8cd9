"""The items nearest to those that the request names: what is like this item, with or without a user."""

from collections.abc import Sequence
from typing import Self

from headwater.index import Index
from headwater.recall.similarity import Wanted, nearest_items
from headwater.recall.sources import Ask, Named, Resources, SearchSource, Why


class NamedItems(SearchSource):
    """The items that are most like any of the named ones, by cosine; never these themselves."""

    name = "item"
    default_weight = 1.0
    rung = "no-item"

    def __init__(self, index: Index) -> None:
        self._index = index

    @classmethod
    def made_of(cls, given: Resources) -> Self:
        """Over the index that is given."""
        return cls(given.index)

    def applies(self, ask: Ask) -> bool:
        """Whether the request names an item."""
        return bool(ask.items)

    def why(self, ask: Ask) -> Why | None:
        """The request names no item, or none that the catalog has, or nothing else that may come is like them."""
        return "no_like" if ask.items else "no_items"

    async def rankings(self, asks: Sequence[Ask]) -> Sequence[Sequence[Named]]:
        """One search for each named item of each ask; what they find, by its highest cosine with any of them."""
        wanted = [Wanted(ask.items, ask.wanted, ask.where, ask.exclude) for ask in asks]
        return await nearest_items(self._index, wanted)
