"""Items ordered by cosine similarity to other items. Dot products alone would rank by the norm."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwater.index import Index, Query
from headwater.index.filters import Filter

F32 = NDArray[np.float32]

# The search by dot products asks for this many times the items that are wanted; cosines choose among them.
CHOICE: Final = 3
_MAX_CHOICE: Final = 1_000


class Wanted(NamedTuple):
    """A search for at most ``limit`` items similar to any of the ``anchors``, which are item keys; never the anchors themselves.

    ``also`` are items, by key with their ids, that are compared wherever they lie. They match ``where``.
    """

    anchors: Sequence[int]
    limit: int
    where: Filter | None
    exclude: frozenset[int]
    also: Mapping[int, str] = MappingProxyType({})


async def nearest_items(index: Index, wanted: Sequence[Wanted]) -> list[list[tuple[int, str]]]:
    """For each of ``wanted`` the items, as (key, id), that are most similar to any anchor, best first.

    Raises:
        IndexUnavailable: the index does not answer.
    """
    return [
        most_similar(near.items, near.vectors, near.anchors)[: each.limit]
        for each, near in zip(wanted, await near_items(index, wanted), strict=True)
    ]


class Near(NamedTuple):
    """What lies near the anchors of a search."""

    items: Mapping[int, str]  # item key -> item id; not in order
    vectors: Mapping[int, F32]  # (D,) by key, of items and anchors; those that are gone are missing
    anchor_keys: Sequence[int]  # of the anchors that have a vector

    @property
    def anchors(self) -> list[F32]:
        """(D,) of each anchor."""
        return [self.vectors[key] for key in self.anchor_keys]


async def near_items(index: Index, wanted: Sequence[Wanted], choice: int = CHOICE) -> list[Near]:
    """For each of ``wanted`` ``choice`` times as many items for each anchor, by dot products, and all their vectors.

    One search for each anchor whose vector is there, all at once.

    Raises:
        IndexUnavailable: the index does not answer.
    """
    vectors = await index.vectors([*{key for each in wanted for key in each.anchors}])
    queries: list[Query] = []
    owners: list[int] = []
    for place, each in enumerate(wanted):
        pool = min(choice * each.limit, _MAX_CHOICE)
        for key in each.anchors:
            if key in vectors:
                queries.append(Query(vectors[key], pool, each.where, each.exclude.union(each.anchors)))
                owners.append(place)
    found: list[dict[int, str]] = [{} for _ in wanted]
    if not queries:
        return [Near({}, vectors, ()) for _ in wanted]
    for place, hits in zip(owners, await index.search(queries), strict=True):
        found[place].update((hit.key, hit.item_id) for hit in hits)
    for place in {*owners}:  # without an anchor there is nothing to compare with
        each = wanted[place]
        if each.also:
            out = each.exclude.union(each.anchors)
            found[place].update((key, item_id) for key, item_id in each.also.items() if key not in out)
    vectors |= await index.vectors([*{key for items in found for key in items}])
    return [
        Near(items, vectors, [key for key in each.anchors if key in vectors])
        for each, items in zip(wanted, found, strict=True)
    ]


def by_similarity(candidates: F32, anchors: F32) -> NDArray[np.int64]:
    """Positions of the candidates (n, D), the most similar to any of the anchors (m, D) first; m > 0."""
    return np.argsort(-(unit(candidates) @ unit(anchors).T).max(axis=1), kind="stable")


def unit(vectors: F32) -> F32:
    """Rows (n, D) of length one; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: F32 = vectors / np.maximum(lengths, 1e-12)
    return found


def most_similar(
    items: Mapping[int, str], vectors: Mapping[int, F32], anchors: Sequence[F32]
) -> list[tuple[int, str]]:
    """The items that have a vector, the most similar to any of the anchors first.

    Args:
        items: item key -> item id.
        vectors: (D,) by item key.
        anchors: (D,) each; at least one.
    """
    live = [key for key in items if key in vectors]
    if not live:
        return []
    order = by_similarity(np.stack([vectors[key] for key in live]), np.stack(anchors)).tolist()
    return [(live[place], items[live[place]]) for place in order]
