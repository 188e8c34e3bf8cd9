"""The items of a dataset as an index of the serving system, which looks at every item: the pipeline runs over it offline."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from headwater.index import FilledBy, Hit, IndexHealth, Point, Query, Stored
from headwater.index.filters import And, Filter, Range
from headwater.messages import OfferState
from headwater_models.arrays import F32, F64, I64, Bools
from headwater_models.judging.evaluation import Catalog, best

# Scores held at once: 64 MB.
_SCORES: Final = 2**24


class ExactIndex:
    """An engine of the contract `headwater.index.Index` over arrays; nothing can be put into it.

    All items are available. Of payloads it knows numbers and attributes; filters are ranges of the numbers.

    Args:
        numbers: by field, a number of each item, (items,); NaN: the item lacks the field.
    """

    in_process = True
    filled_by: FilledBy = "each worker"

    def __init__(self, catalog: Catalog, numbers: Mapping[str, F64] = MappingProxyType({})) -> None:
        self._catalog, self._numbers = catalog, numbers
        self.keys: Final[list[int]] = catalog.keys.tolist()
        self.items_of: Final = dict(zip(self.keys, range(len(self.keys)), strict=True))  # by item key

    def health(self) -> IndexHealth:
        """It has no graph."""
        return IndexHealth()

    async def put(self, points: Sequence[Point]) -> Stored:
        """See `Index.put`. Raises TypeError."""
        raise TypeError(f"got {len(points)} points, expected none: the items are those of a dataset")

    async def put_offers(self, states: Sequence[OfferState]) -> None:
        """See `Index.put_offers`. Raises TypeError."""
        raise TypeError(f"got offers of {len(states)} items, expected none: the items are those of a dataset")

    async def search(self, queries: Sequence[Query]) -> list[list[Hit]]:
        """See `Index.search`; among equal scores the lower item comes first."""
        each = max(1, _SCORES // max(len(self.keys), 1))
        return [
            hits
            for start in range(0, len(queries), each)
            for hits in self._search(queries[start : start + each])
        ]

    def _search(self, queries: Sequence[Query]) -> list[list[Hit]]:
        scores = np.stack([query.vector for query in queries]) @ self._catalog.vectors.T
        scores[:, ~self._catalog.known] = -np.inf
        for row, query in enumerate(queries):
            scores[row, self._numbered(query.exclude)] = -np.inf
            if query.where is not None:
                scores[row, ~self._matching(query.where)] = -np.inf
        lists = best(scores, max(query.limit for query in queries))
        hits = []
        for row, query in enumerate(queries):
            items = lists[row, : query.limit]
            items = items[np.isfinite(scores[row, items])]
            found = zip(items.tolist(), scores[row, items].tolist(), strict=True)
            hits.append([Hit(self.keys[item], "", score) for item, score in found])
        return hits

    async def vectors(self, keys: Sequence[int]) -> dict[int, F32]:
        """See `Index.vectors`: (D,) by key."""
        return {self.keys[item]: self._catalog.vectors[item] for item in self._known(keys)}

    async def items(self, keys: Sequence[int]) -> dict[int, dict[str, Any]]:
        """See `Index.items`."""
        return {self.keys[item]: self._payload(item) for item in self._known(keys)}

    def _payload(self, item: int) -> dict[str, Any]:
        attributes = self._catalog.attributes
        numbers = {name: float(of[item]) for name, of in self._numbers.items() if not np.isnan(of[item])}
        own = attributes[item] if item < len(attributes) else {}
        return {"item_id": "", "attributes": own, **numbers}

    async def match(self, keys: Sequence[int], where: Filter | None) -> dict[int, str]:
        """See `Index.match`."""
        matching = None if where is None else self._matching(where)
        return {self.keys[item]: "" for item in self._known(keys) if matching is None or matching[item]}

    async def count(self) -> int:
        """See `Index.count`."""
        return int(np.count_nonzero(self._catalog.known))

    async def sweep(self, before_s: float) -> None:
        """Nothing is ever deleted."""

    async def close(self) -> None:
        """Nothing is open."""

    def _numbered(self, keys: frozenset[int]) -> I64:
        found = (self.items_of.get(key) for key in keys)
        return np.array([item for item in found if item is not None], dtype=np.int64)

    def _known(self, keys: Sequence[int]) -> list[int]:
        """The items of these keys that have a vector."""
        known = self._catalog.known
        found = (self.items_of.get(key) for key in keys)
        return [item for item in found if item is not None and known[item]]

    def _matching(self, where: Filter) -> Bools:
        """(items,) which items match. Raises TypeError: a condition on anything but a number."""
        if isinstance(where, And):
            every: Bools = np.ones(len(self.keys), dtype=np.bool_)
            for part in where.of:
                every &= self._matching(part)
            return every
        if not isinstance(where, Range) or where.field not in self._numbers:
            raise TypeError(
                f"got the filter {where}, expected ranges of {', '.join(self._numbers) or 'nothing'}"
            )
        numbers = self._numbers[where.field]
        found: Bools = ~np.isnan(numbers)
        for bound, compare in (
            (where.gte, np.greater_equal),
            (where.gt, np.greater),
            (where.lte, np.less_equal),
            (where.lt, np.less),
        ):
            if bound is not None:
                found &= compare(numbers, bound)
        return found
