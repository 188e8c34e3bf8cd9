"""The index in the process: Qdrant's engine as a library, a private shard in a folder of its own.

The engine holds Python's lock during every call, so a thread would only add a hop. Calls are made on the event loop
instead, in slices of a few milliseconds, and other work runs between the slices. Each slice is therefore atomic. A lock is
needed only while the shard is copied for a new graph (`edge_graph`).

What the engine gives back slowly is kept beside it: vectors as rows of one array, payloads as msgpack, and ids. Marks of
deletions live here only. The index is filled anew at each start, from the vectors topic.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
import qdrant_edge as engine
from numpy.typing import NDArray

from headwater.encoder.features import item_key
from headwater.index import (
    Collision,
    FilledBy,
    Hit,
    IndexHealth,
    Point,
    Query,
    Stored,
    VersionStamp,
    check_points,
    check_vector,
    fields,
    lifted,
    newer,
)
from headwater.index.deletion_marks import DeletionMarks
from headwater.index.edge_graph import GraphPolicy, SearchGraph
from headwater.index.edge_shard import Plan, Shard, Translated, plans_of, require_room
from headwater.index.filters import Filter, admitting, is_available, size
from headwater.index.offers import laid_over
from headwater.messages import OfferState
from headwater.pacing import Pacer

T = TypeVar("T")

# 40 us a point; 3 ms a query over 92,000 items while there is no graph: a slice holds the loop for 5-12 ms.
PUT_SLICE: Final = 128
SEARCH_SLICE: Final = 4
MATCH_SLICE: Final = 64  # 1 us for each condition of a filter and each item
# Up to this many exclusions are searched for too and then dropped. In a scan of 92,000 items 1,000 more hits cost 2 ms and
# a condition on ids 10 ms; through the graph the condition is nearly free, and more hits widen the search.
DROPPED_AFTER_SCAN: Final = 1024
DROPPED_AFTER_GRAPH: Final = 100
# The newest marks of deletions, 3 MB.
MARKS_KEPT: Final = 100_000
# While at most this share of items is unavailable, they are dropped after the search. The engine evaluates a condition on
# every item it visits, which makes a graph search three times slower. Where too many hits were dropped, the search is
# repeated with the condition.
MOST_HIDDEN: Final = 0.1


class _Item(msgspec.Struct, gc=False):
    item_id: str
    version: int
    offset: int
    row: int  # of the vectors
    payload: bytes
    is_hidden: bool  # not available


class EdgeIndex:
    """`open` it within a running event loop and `close` it there. `open` and `put` raise NoRoom when the disk is full.

    See `Index` for the contract of its calls.
    """

    in_process = True
    filled_by: FilledBy = "each worker"

    def __init__(self, folder: Path, lock: int, dim: int, radius: float, policy: GraphPolicy) -> None:
        self._folder, self._lock = folder, lock
        self._dim, self._radius = dim, radius
        self._items: dict[int, _Item] = {}  # the live ones
        self._rows = np.zeros((1024, dim), dtype=np.float32)
        self._free_rows = list(range(1023, -1, -1))
        self._marks = DeletionMarks(MARKS_KEPT)
        self._number_indexes = fields.NumberIndexes()
        self._hidden = 0  # items that are not available
        self._is_closed = False
        self._pacer = Pacer()
        stored_dim = dim + 1  # see `lifted`
        self.shard = Shard.create(folder / "shard-0", stored_dim)
        self.writing = asyncio.Lock()
        self.graph = SearchGraph(self, folder, stored_dim, policy)

    @classmethod
    async def open(
        cls, path: Path, dim: int, *, radius: float = 0.0, graph: GraphPolicy | None = None
    ) -> "EdgeIndex":
        """An empty index in a new folder under `path`, gone again after `close`. Folders of killed processes go too.

        Args:
            dim: numbers in a vector.
            radius: see `lifted`.
            graph: when to build a search graph.

        Raises:
            NoRoom: the disk has too little room.
            OSError: the folder cannot be made.
        """
        path.mkdir(parents=True, exist_ok=True)
        require_room(path)
        folder, lock = await asyncio.to_thread(_own_folder, path)
        return cls(folder, lock, dim, radius, graph or GraphPolicy())

    async def put(self, points: Sequence[Point]) -> Stored:
        """As `Index.put`, in slices of `PUT_SLICE` points; other work runs between the slices.

        Raises:
            BadVector, NoRoom: see `Index.put`.
        """
        check_points(points, self._dim)
        stored = Stored([], [])
        for part in _slices(points, PUT_SLICE):
            require_room(self._folder)
            part = [each if each.offers is None else _laid(each) for each in part]
            documents = [None if each.vector is None else fields.document(each.payload) for each in part]
            async with self.writing:
                await self._index_new_numbers(part, documents)
                self._put_slice(part, documents, stored)
            await asyncio.sleep(0)
        return stored

    async def put_offers(self, states: Sequence[OfferState]) -> None:
        """As `Index.put_offers`, in slices of `PUT_SLICE` items. The last state of an item counts.

        Raises:
            NoRoom: see `Index.put_offers`.
        """
        newest = {item_key(state.item_id): state for state in states}
        for part in _slices(list(newest), PUT_SLICE):
            require_room(self._folder)
            async with self.writing:
                changed: dict[int, fields.Document | None] = {}
                for key, item in self._live(part):
                    if item.item_id == newest[key].item_id:
                        changed |= await self._lay(key, item, newest[key])
                if changed:
                    self._write(self.shard, changed)
                    self.graph.note_put(changed, len(changed))
            await asyncio.sleep(0)

    async def search(self, queries: Sequence[Query]) -> list[list[Hit]]:
        """As `Index.search`, in slices that weigh `SEARCH_SLICE`; other work runs between the slices."""
        for query in queries:
            check_vector(query.vector, self._dim, "query")
        found: list[list[Hit]] = []
        translated: Translated = {}
        for part in _search_slices(queries):
            await self._pacer.turn()
            found += self._search_slice(part, translated)
        return found

    async def vectors(self, keys: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        """As `Index.vectors`: (D,) each, from memory."""
        live = [(key, item.row) for key, item in self._live(keys)]
        rows = self._rows[[row for _, row in live]] if live else self._rows[:0]  # a copy: rows are used again
        return {key: row for (key, _), row in zip(live, rows, strict=True)}

    async def items(self, keys: Sequence[int]) -> dict[int, dict[str, Any]]:
        """As `Index.items`, from memory."""
        return {key: _payload(item) for key, item in self._live(keys)}

    async def match(self, keys: Sequence[int], where: Filter | None) -> dict[int, str]:
        """As `Index.match`, by `filters.admitting`, in slices of `MATCH_SLICE` items."""
        if where is None:
            return {key: item.item_id for key, item in self._live(keys) if not item.is_hidden}
        found: dict[int, str] = {}
        admits = admitting(where)
        for part in _slices(keys, MATCH_SLICE):
            await self._pacer.turn()
            found |= {key: item.item_id for key, item in self._live(part) if admits(_payload(item))}
        return found

    async def count(self) -> int:
        """As `Index.count`."""
        return self.live_items

    async def sweep(self, before_s: float) -> None:
        """As `Index.sweep`, in memory. A few old marks are left until they are more."""
        self._marks.sweep(before_s)

    def health(self) -> IndexHealth:
        """The items in the search graph."""
        return IndexHealth(graph=self.graph.covers)

    async def close(self) -> None:
        """End a build at once, with its process, and remove the folder."""
        if self._is_closed:
            return
        self._is_closed = True
        await self.graph.close()
        self.shard.close()
        os.close(self._lock)
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    @property
    def live_items(self) -> int:
        """Items that are not deleted, available or not."""
        return len(self._rows) - len(self._free_rows)

    def copy_to(self, shard: Shard, keys: Iterable[int]) -> None:
        """Bring the present versions of these items into a shard, or remove them where they are gone."""
        held = {key: self._items.get(key) for key in keys}
        documents = {
            key: fields.document(_payload(item)) if item is not None else None for key, item in held.items()
        }
        self._write(shard, documents)

    # -- searching ---------------------------------------------------------------------------------------------------

    def _search_slice(self, queries: Sequence[Query], translated: Translated) -> list[list[Hit]]:
        droppable = DROPPED_AFTER_GRAPH if self.graph.covers else DROPPED_AFTER_SCAN
        share = self._hidden / max(self.live_items, 1)
        plans = plans_of(queries, droppable, share if share <= MOST_HIDDEN else None, translated)
        answers = self.shard.search(plans)
        found = [self._hits(plan, scored) for plan, scored in zip(plans, answers, strict=True)]
        # Where more were hidden than expected, there may be others behind them.
        short = [
            n
            for n, (plan, scored, hits) in enumerate(zip(plans, answers, found, strict=True))
            if plan.drops_hidden and len(hits) < plan.query.limit and len(scored) == plan.limit
        ]
        if short:
            again = plans_of([queries[n] for n in short], droppable, None, translated)
            for n, plan, scored in zip(short, again, self.shard.search(again), strict=True):
                found[n] = self._hits(plan, scored)
        return found

    def _hits(self, plan: Plan, scored: Iterable[engine.ScoredPoint]) -> list[Hit]:
        found = ((int(each.id), each.score) for each in scored)  # our ids are never UUIDs
        hits = (
            Hit(key, item.item_id, score)
            for key, score in found
            if key not in plan.query.exclude
            and not ((item := self._items[key]).is_hidden and plan.drops_hidden)
        )
        return list(islice(hits, plan.query.limit))

    # -- putting -----------------------------------------------------------------------------------------------------

    def _put_slice(
        self, points: Sequence[Point], documents: Sequence[fields.Document | None], done: Stored
    ) -> None:
        """Store what is newer, and add to ``done`` what became of the points; ``documents`` are theirs."""
        changed: dict[int, fields.Document | None] = {}
        now_s = time.time()
        for point, document in zip(points, documents, strict=True):
            held = self._items.get(point.key)
            if held is not None and held.item_id != point.item_id:
                done.collisions.append(Collision(point, held.item_id))
                continue
            if held is None:
                stored = self._marks.get(point.key, point.item_id)
            else:
                stored = VersionStamp(held.version, held.offset)
            stamp = newer(point.version, point.offset, stored)
            if stamp is None:
                continue
            self._hidden -= held is not None and held.is_hidden
            row = self._place(-1 if held is None else held.row, point.vector)
            if point.vector is None:
                self._items.pop(point.key, None)
                self._marks.put(point.key, point.item_id, stamp, now_s)
            else:
                hidden = not is_available(point.payload)
                self._hidden += hidden
                payload = msgspec.msgpack.encode(point.payload)
                self._items[point.key] = _Item(point.item_id, *stamp, row, payload, hidden)
                if held is None:
                    self._marks.remove(point.key)
            changed[point.key] = document
            done.points.append(point)
        if changed:
            self._write(self.shard, changed)
            self.graph.note_put(changed, sum(document is not None for document in changed.values()))

    async def _lay(self, key: int, item: _Item, state: OfferState) -> dict[int, fields.Document]:
        """Lay offers over a stored item; its new document, where that changes anything."""
        before = msgspec.msgpack.decode(item.payload)
        payload = laid_over(before, state)
        if payload == before:
            return {}
        document = fields.document(payload)
        if not state.attributes.keys() <= (before.get("attributes") or {}).keys():
            await self._index_numbers(document)
        self._hidden -= item.is_hidden
        item.payload, item.is_hidden = msgspec.msgpack.encode(payload), not is_available(payload)
        self._hidden += item.is_hidden
        return {key: document}

    def _place(self, row: int, vector: NDArray[np.float32] | None) -> int:
        """The row that now holds the vector, or -1 if there is none any more."""
        if vector is None:
            if row >= 0:
                self._free_rows.append(row)
            return -1
        if row < 0:
            if not self._free_rows:
                held = len(self._rows)
                self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
                self._free_rows = list(range(2 * held - 1, held - 1, -1))
            row = self._free_rows.pop()
        self._rows[row] = vector
        return row

    def _write(self, shard: Shard, documents: dict[int, fields.Document | None]) -> None:
        """Store these documents with their items' present vectors; None removes."""
        live = {key: document for key, document in documents.items() if document is not None}
        gone = [key for key in documents if key not in live]
        if live:
            shard.put(live, lifted(self._rows[[self._items[key].row for key in live]], self._radius))
        if gone:
            shard.delete(gone)

    async def _index_new_numbers(
        self, points: Sequence[Point], documents: Sequence[fields.Document | None]
    ) -> None:
        """Give the numbers of new items' attributes an index, as far as there is room for their names.

        Other work runs between them: each is a few files on the disk, and an item may bring dozens.
        """
        for point, document in zip(points, documents, strict=True):
            held = self._items.get(point.key)
            if document is not None and held is None:
                await self._index_numbers(document)

    async def _index_numbers(self, document: fields.Document) -> None:
        """Count the number fields of a new item, or those that offers bring it, and index what is worth it."""
        wanted = self._number_indexes.wanted(document, self.shard.number_fields)
        exchange = self._number_indexes.rarest_below(document, self.shard.number_fields)
        if exchange is not None:
            field, rarest = exchange
            self.shard.drop_numbers(rarest)
            wanted = [field]
        for field in wanted:
            require_room(self._folder)
            self.shard.index_numbers(field)
            await asyncio.sleep(0)

    def _live(self, keys: Iterable[int]) -> Iterator[tuple[int, _Item]]:
        for key in keys:
            item = self._items.get(key)
            if item is not None:
                yield key, item


def _laid(point: Point) -> Point:
    """A point whose payload has its offers."""
    return msgspec.structs.replace(point, payload=laid_over(point.payload, point.offers))


def _payload(item: _Item) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.msgpack.decode(item.payload)
    decoded["item_id"] = item.item_id
    return decoded


def _own_folder(path: Path) -> tuple[Path, int]:
    """A new folder and the lock that marks it as ours, after removing those that no living process holds."""
    gate = os.open(path, os.O_RDONLY)
    try:
        # No other process may take our folder for abandoned before it is locked.
        fcntl.flock(gate, fcntl.LOCK_EX)
        for folder in path.glob("edge-*"):
            held = os.open(folder, os.O_RDONLY)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            os.close(held)
        folder = Path(tempfile.mkdtemp(prefix="edge-", dir=path))
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return folder, lock
    finally:
        os.close(gate)


def _search_slices(queries: Sequence[Query]) -> Iterator[Sequence[Query]]:
    """The queries in order, in slices of about the same work. A query of 1,000 hits takes as long as six of 20."""
    start, weight = 0, 0
    for place, query in enumerate(queries):
        conditions, values = size(query.where)
        own = 1 + query.limit // 200 + conditions // 16 + values // 256
        if place > start and weight + own > SEARCH_SLICE:
            yield queries[start:place]
            start, weight = place, 0
        weight += own
    if queries:
        yield queries[start:]


def _slices(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (values[start : start + size] for start in range(0, len(values), size))
