"""The index of items: one contract, two engines (`edge`: in the process, `server`: Qdrant over gRPC).

Both keep the same order of versions, refuse the same vectors and answer the same filters. One contract suite runs on both.
Scores are dot products of the vectors as given; nothing is normalised.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from headwater.index.filters import Filter
from headwater.messages import OfferState

# Below every version an item can have (signed 64 bits): an item that never carried one.
NO_VERSION = -(1 << 63)


class BadVector(ValueError):
    """A vector of the wrong dimension, or with NaN or infinity. An engine would rank it first without a word."""


class IndexUnavailable(RuntimeError):
    """The engine did not answer within its time and tries; the same call may succeed later."""


class IndexRefused(RuntimeError):
    """The engine refused, and would refuse again. The message says what it wants."""


class NoRoom(RuntimeError):
    """The disk has too little room for what the engine is about to write."""


class Point(msgspec.Struct, frozen=True):
    """One version of an item, or the mark of its deletion (`vector` None, payload empty).

    `version` is the item's own, if its source gives one. None inherits the stored version, so that the catalog's `offset`
    decides. A mark may carry the version of the item that it deletes. `offers` are laid over the payload when the point is stored.
    """

    key: int  # `encoder.features.item_key` of the item id
    item_id: str
    vector: NDArray[np.float32] | None  # (D,)
    payload: dict[str, Any]
    version: int | None
    partition: int  # of the catalog topic
    offset: int  # in that partition
    offers: OfferState | None = None


class Collision(NamedTuple):
    """A point that was refused: ``holder``, another item, was stored before it under the same 64-bit key."""

    point: Point
    holder: str

    def __str__(self) -> str:
        return (
            f"items {self.holder!r} and {self.point.item_id!r} share the key {self.point.key}; kept the first"
        )


class Stored(NamedTuple):
    """What a call of `Index.put` did with its points. Those that are in neither list were not newer."""

    points: list[Point]  # stored now
    collisions: list[Collision]


class Query(msgspec.Struct, frozen=True):
    """The `limit` items with the largest dot products with `vector`, (D,), that match `where` and are not in `exclude`."""

    vector: NDArray[np.float32]
    limit: int
    where: Filter | None = None  # None: every available item
    exclude: frozenset[int] = frozenset()  # keys


class Hit(NamedTuple):
    """An item found, with the dot product of its vector and the query's."""

    key: int
    item_id: str
    score: float


FilledBy = Literal["each worker", "the catalog worker"]


class IndexHealth(NamedTuple):
    """What an engine says of itself without being asked over a network."""

    graph: int | None = None  # items in its search graph; None where the engine keeps that to itself


class Index(Protocol):
    """The contract of an engine. A live item is one that is stored and not deleted, whether available or not.

    Each read may raise IndexUnavailable. A call that was cancelled may still take effect.
    """

    in_process: bool  # reads never wait for a network
    filled_by: FilledBy  # each worker fills one of its own from the vectors topic, or the catalog worker fills one for all

    def health(self) -> IndexHealth:
        """What is known without asking."""
        ...

    async def put(self, points: Sequence[Point]) -> Stored:
        """Store the points that are newer than what is stored, by (version, offset), and ignore the rest.

        A repeat is therefore harmless. Every call that starts after this one returned sees what it stored. Of two items
        with one key the first is kept while it is live, and the other one is refused. A deleted item may keep its key.

        Raises:
            BadVector: before anything is stored.
            IndexUnavailable, IndexRefused, NoRoom: some points may be stored.
        """
        ...

    async def put_offers(self, states: Sequence[OfferState]) -> None:
        """Lay what offers have come to over their items, in place of what was laid over them before.

        Vectors and versions stay. States of items that are not live are ignored: they come with their points. An index
        that several write to ignores those of a lower revision than it has.

        Raises:
            IndexUnavailable, IndexRefused, NoRoom: some may be laid.
        """
        ...

    async def search(self, queries: Sequence[Query]) -> list[list[Hit]]:
        """The nearest items of each query, best first, in the order of the queries.

        Raises:
            BadVector: a query's vector is not (D,) finite numbers.
        """
        ...

    async def vectors(self, keys: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        """The vectors, (D,), of the keys that have a live item."""
        ...

    async def items(self, keys: Sequence[int]) -> dict[int, dict[str, Any]]:
        """The payloads, with `item_id`, of the keys that have a live item."""
        ...

    async def match(self, keys: Sequence[int], where: Filter | None) -> dict[int, str]:
        """The keys that a search with this filter could return, with the ids of their items."""
        ...

    async def count(self) -> int:
        """The number of live items."""
        ...

    async def sweep(self, before_s: float) -> None:
        """Forget the marks of deletions that were set before a Unix time in seconds.

        Older versions of those items must be gone from the topics by then. Raises IndexUnavailable.
        """
        ...

    async def close(self) -> None:
        """Release everything. Calls in progress end or fail."""
        ...


class VersionStamp(NamedTuple):
    """The place of one version in the order of an item's versions; later is newer."""

    version: int
    offset: int


def newer(version: int | None, offset: int, stored: VersionStamp | None) -> VersionStamp | None:
    """The stamp that a change takes over what is stored, or None where it is not newer.

    ``version`` is the item's own; None inherits the version stored, so that the catalog's ``offset`` decides.

    >>> newer(None, 12, VersionStamp(3, 10))
    VersionStamp(version=3, offset=12)
    >>> newer(2, 12, VersionStamp(3, 10)) is None
    True
    """
    inherited = NO_VERSION if stored is None else stored.version
    stamp = VersionStamp(inherited if version is None else version, offset)
    return stamp if stored is None or stamp > stored else None


def lifted(vectors: NDArray[np.float32], radius: float) -> NDArray[np.float32]:
    """Vectors, (n, D), as an engine stores them, (n, D + 1): one more number makes each of them `radius` long.

    A search graph is built for distances, which order vectors of one length as dot products do. A query has 0 in the added
    place, so its products stay the same. Vectors longer than `radius` stay as long, and with `radius` 0 nothing changes.
    Bachrach et al. 2014, "Speeding up the Xbox recommender system using a Euclidean transformation for inner-product
    spaces", section 3.2.

    Whether this helps depends on the vectors, and so on the bundle. The 92,331 items of `groceries` lie in tight clusters of
    slightly different length: a graph finds 99.7 % of the 20 best instead of 93 %, in two thirds of the time. Item factors
    of a matrix, a hundred times longer where popular, lose: it finds next to nothing instead of 99.8 %.
    """
    squares = np.einsum("nd,nd->n", vectors, vectors)
    return np.column_stack([vectors, np.sqrt(np.maximum(radius * radius - squares, 0.0))]).astype(np.float32)


def check_points(points: Sequence[Point], dim: int) -> None:
    """Check that all vectors are (dim,) finite numbers.

    Raises:
        BadVector: names the item of the first vector that is not.
    """
    given = [(point.item_id, point.vector) for point in points if point.vector is not None]
    if (
        all(vector.shape == (dim,) for _, vector in given)
        and np.isfinite([vector for _, vector in given]).all()
    ):
        return
    for item_id, vector in given:
        check_vector(vector, dim, f"item {item_id!r}")


def check_vector(vector: NDArray[np.float32], dim: int, of: str) -> None:
    """Check that a vector is (dim,) finite numbers; ``of`` names it in the message.

    Raises:
        BadVector: it is not.
    """
    if vector.shape != (dim,):
        raise BadVector(
            f"{of}: got a vector of shape {vector.shape}, expected ({dim},); is it from another bundle?"
        )
    if not np.isfinite(vector).all():
        raise BadVector(
            f"{of}: got a vector with NaN or infinity, expected {dim} finite numbers; the bundle is broken"
        )
