"""The items nearest to those that the request names: what is like this item, with or without a user."""

from collections.abc import Sequence
from typing import Final, Self

from headwater.index import Index, Query
from headwater.recall.likeness import most_alike
from headwater.recall.sources import Ask, Named, Resources, SearchSource, Why

# So many times the number wanted is asked for by dot products, to choose by cosines from.
_CHOICE: Final = 3
_MAX_CHOICE: Final = 1_000


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
        """The request names no item, or none that the catalog has, or nothing that matches is like them."""
        if not ask.items:
            return "no_items"
        return "unavailable" if ask.where is None else "filtered"

    async def rankings(self, asks: Sequence[Ask]) -> Sequence[Sequence[Named]]:
        """One search for each named item of each ask; what they find, by its highest cosine with any of them."""
        vectors = await self._index.vectors([*{key for ask in asks for key in ask.items}])
        queries: list[Query] = []
        owners: list[int] = []
        for index, ask in enumerate(asks):
            limit = min(_CHOICE * ask.wanted, _MAX_CHOICE)
            for key in ask.items:
                if key in vectors:
                    queries.append(Query(vectors[key], limit, ask.where, ask.exclude.union(ask.items)))
                    owners.append(index)
        if not queries:
            return [()] * len(asks)
        found: list[dict[int, str]] = [{} for _ in asks]
        for index, hits in zip(owners, await self._index.search(queries), strict=True):
            found[index].update((hit.key, hit.item_id) for hit in hits)
        near = await self._index.vectors([*{key for items in found for key in items}])
        return [
            most_alike(items, near, [vectors[key] for key in ask.items if key in vectors])[: ask.wanted]
            for ask, items in zip(asks, found, strict=True)
        ]
