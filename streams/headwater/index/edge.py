"""The index in the process: Qdrant's engine as a library, a private shard in a folder of its own.

The engine holds Python's lock during every call, so a thread would only add a hop. Calls are made on the event loop
instead, in slices of a few milliseconds, and other work runs between the slices. That also makes each slice atomic:
there is nothing to lock but the moment in which the shard is copied for a new graph (`hnsw`).

What the engine is slow to give back stays beside it: vectors as rows of one array, payloads as msgpack, ids. The marks
of deletions live here only; the index is filled anew at each start, from the vectors topic.
"""

import asyncio
import contextlib
import fcntl
import math
import os
import shutil
import signal
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import qdrant_edge as engine
import structlog
import xxhash
from numpy.typing import NDArray

from headwater.index import (
    FilledBy,
    Hit,
    IndexHealth,
    KeyCollision,
    NoRoom,
    Point,
    Query,
    VersionStamp,
    check_points,
    check_vector,
    fields,
    hnsw,
    lifted,
    newer,
)
from headwater.index.filters import Filter, admits, is_available

log = structlog.get_logger(__name__)

# 40 us a point; 3 ms a query over 92,000 items while there is no graph: a slice holds the loop for 5-12 ms.
PUT_SLICE = 128
SEARCH_SLICE = 4
# Candidates that a search through the graph keeps at least: finds 99.7 % of the 20 best of the starter bundle's items.
SEARCH_EF = 128
_SEARCH = engine.SearchParams(hnsw_ef=SEARCH_EF)
# Exclusions up to so many are searched for too and then dropped. In a scan of 92,000 items 1,000 more hits cost 2 ms,
# a condition on ids 10 ms; through the graph the condition is nearly free, and more hits widen the search.
DROPPED_AFTER_SCAN = 1024
DROPPED_AFTER_GRAPH = 100
# Items that may not be shown are dropped like that while they are few: the engine looks every condition up for every item
# it meets, which takes a search through the graph three times as long. Where many of them lie near, it is made again.
MOST_HIDDEN = 0.1

# The engine writes into mapped files. On a full disk the kernel ends such a process at once (SIGBUS), without a word. So
# this much is free before every write: a new shard takes 40 MB of it, a slice or the index of a new number field 2 MB.
ROOM_BYTES = 64 * 1024 * 1024


class GraphPolicy(msgspec.Struct, frozen=True):
    """When a new search graph is worth half a minute of a core: a scan costs 40 us per thousand items and query."""

    min_items: int = 10_000  # items outside the graph, below which a scan of them is cheap
    growth: float = 0.25  # and this share of the items within it
    quiet_s: float = 5.0  # once nothing was put for so long,
    patience_s: float = 120.0  # or the last graph was begun so long ago
    timeout_s: float = 3600.0

    def is_due(self, outside: int, within: int, quiet_s: float, since_last_s: float) -> bool:
        wanted = outside >= max(self.min_items, self.growth * within)
        return wanted and (quiet_s >= self.quiet_s or since_last_s >= self.patience_s)


class _Item(msgspec.Struct, gc=False):
    item_id: str
    version: int
    offset: int
    row: int  # of the vectors; -1 = deleted
    payload: bytes
    is_hidden: bool  # not available


class EdgeIndex:
    """`open` it within a running event loop and `close` it there. `open` and `put` raise NoRoom when the disk is full."""

    in_process = True
    filled_by: FilledBy = "each worker"

    def __init__(self, folder: Path, lock: int, dim: int, radius: float, policy: GraphPolicy) -> None:
        self._folder = folder
        self._lock = lock
        self._dim = dim
        self._stored_dim = dim + 1  # see `lifted`
        self._radius = radius
        self._policy = policy
        self._items: dict[int, _Item] = {}
        self._rows = np.zeros((1024, dim), dtype=np.float32)
        self._free_rows = list(range(1023, -1, -1))
        self._path = folder / "shard-0"
        self._shard = _create(self._path, self._stored_dim)
        self._indexed_fields = {"price"}
        self._hidden = 0  # items that are not available
        self._writing = asyncio.Lock()
        self._building = asyncio.Lock()
        self._changed: set[int] | None = None  # keys put since the copy of a graph under construction
        self._outside = self._within = self._builds = 0
        self._last_put_s = self._last_build_s = asyncio.get_running_loop().time()
        self.building: int | None = None  # the process id of a build, while it runs
        self._closing = False
        self._tender = asyncio.create_task(self._tend_graph(), name="edge-index-graph")

    @classmethod
    async def open(
        cls, path: Path, dim: int, *, radius: float = 0.0, graph: GraphPolicy | None = None
    ) -> "EdgeIndex":
        """An empty index in a new folder under `path`, gone again after `close`. Folders of killed processes go too.

        `radius`: see `lifted`.
        """
        path.mkdir(parents=True, exist_ok=True)
        _require_room(path)
        folder, lock = await asyncio.to_thread(_own_folder, path)
        return cls(folder, lock, dim, radius, graph or GraphPolicy())

    @property
    def graph_covers(self) -> int:
        """How many items the search graph was last built over; 0 while every search is a scan."""
        return self._within

    async def put(self, points: Sequence[Point]) -> None:
        check_points(points, self._dim)
        collisions: list[str] = []
        for part in _slices(points, PUT_SLICE):
            _require_room(self._folder)
            async with self._writing:
                self._put_slice(part, collisions)
            await asyncio.sleep(0)
        if collisions:
            raise KeyCollision("; ".join(collisions))

    async def search(self, queries: Sequence[Query]) -> list[list[Hit]]:
        for query in queries:
            check_vector(query.vector, self._dim, "query")
        found: list[list[Hit]] = []
        for part in _slices(queries, SEARCH_SLICE):
            if found:
                await asyncio.sleep(0)
            found += self._searched(part)
        return found

    async def vectors(self, keys: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        live = [(key, item.row) for key, item in self._live(keys)]
        rows = self._rows[[row for _, row in live]] if live else self._rows[:0]  # a copy: rows are used again
        return {key: row for (key, _), row in zip(live, rows, strict=True)}

    async def items(self, keys: Sequence[int]) -> dict[int, dict[str, Any]]:
        return {key: _payload(item) for key, item in self._live(keys)}

    async def match(self, keys: Sequence[int], where: Filter | None) -> dict[int, str]:
        if where is None:
            return {key: item.item_id for key, item in self._live(keys) if not item.is_hidden}
        return {key: item.item_id for key, item in self._live(keys) if admits(where, _payload(item))}

    async def count(self) -> int:
        return self._live_rows

    def health(self) -> IndexHealth:
        return IndexHealth(graph=self.graph_covers)

    async def close(self) -> None:
        """Ends a build at once, with its process, and removes the folder."""
        if self._closing:
            return
        self._closing = True
        self._tender.cancel()
        await asyncio.gather(self._tender, return_exceptions=True)
        if self.building is not None:
            os.kill(self.building, signal.SIGKILL)
        async with self._building:
            self._shard.close()
        os.close(self._lock)
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    @property
    def _live_rows(self) -> int:
        return len(self._rows) - len(self._free_rows)

    def _searched(self, queries: Sequence[Query]) -> list[list[Hit]]:
        droppable = DROPPED_AFTER_GRAPH if self._within else DROPPED_AFTER_SCAN
        share = self._hidden / max(self._live_rows, 1)
        plans = _plans(queries, droppable, share if share <= MOST_HIDDEN else None)
        answers = self._ask(plans)
        found = [self._hits(plan, scored) for plan, scored in zip(plans, answers, strict=True)]
        # Where more were hidden than was reckoned with, there may be others behind them.
        short = [
            n
            for n, (plan, scored, hits) in enumerate(zip(plans, answers, found, strict=True))
            if plan.drops_hidden and len(hits) < plan.query.limit and len(scored) == plan.limit
        ]
        if short:
            again = _plans([queries[n] for n in short], droppable, None)
            for n, plan, scored in zip(short, again, self._ask(again), strict=True):
                found[n] = self._hits(plan, scored)
        return found

    def _ask(self, plans: Sequence["_Plan"]) -> list[list[engine.ScoredPoint]]:
        return self._shard.query_batch(engine.QueryBatchRequest([_request(plan) for plan in plans]))

    def _hits(self, plan: "_Plan", scored: Iterable[engine.ScoredPoint]) -> list[Hit]:
        found = ((int(each.id), each.score) for each in scored)  # our ids are never UUIDs
        hits = (
            Hit(key, item.item_id, score)
            for key, score in found
            if key not in plan.query.exclude
            and not ((item := self._items[key]).is_hidden and plan.drops_hidden)
        )
        return list(islice(hits, plan.query.limit))

    # -- putting -----------------------------------------------------------------------------------------------------

    def _put_slice(self, points: Sequence[Point], collisions: list[str]) -> None:
        documents: dict[int, fields.Document | None] = {}
        for point in points:
            held = self._items.get(point.key)
            if held is not None and held.item_id != point.item_id:
                collisions.append(
                    f"items {held.item_id!r} and {point.item_id!r} share the key {point.key}; kept the first"
                )
                continue
            stamp = newer(
                point.version, point.offset, None if held is None else VersionStamp(held.version, held.offset)
            )
            if stamp is None:
                continue
            row = self._place(-1 if held is None else held.row, point.vector)
            payload = b"" if point.vector is None else msgspec.msgpack.encode(point.payload)
            hidden = point.vector is not None and not is_available(point.payload)
            self._hidden += hidden - (held is not None and held.is_hidden)
            self._items[point.key] = _Item(point.item_id, stamp.version, stamp.offset, row, payload, hidden)
            documents[point.key] = None if point.vector is None else fields.document(point.payload)
        if not documents:
            return
        self._index_numbers(document for document in documents.values() if document is not None)
        self._write(self._shard, documents)
        if self._changed is not None:
            self._changed.update(documents)
        self._outside += sum(document is not None for document in documents.values())
        self._last_put_s = asyncio.get_running_loop().time()

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

    def _write(self, shard: engine.EdgeShard, documents: dict[int, fields.Document | None]) -> None:
        """Stores these documents with their items' present vectors; None removes."""
        live = {key: document for key, document in documents.items() if document is not None}
        gone: list[engine.PointId] = [key for key in documents if key not in live]
        if live:
            rows = lifted(self._rows[[self._items[key].row for key in live]], self._radius).tolist()
            points = [engine.Point(key, row, _stored(live[key])) for key, row in zip(live, rows, strict=True)]
            shard.update(engine.UpdateOperation.upsert_points(points))
        if gone:
            shard.update(engine.UpdateOperation.delete_points(gone))

    def _index_numbers(self, documents: Iterable[fields.Document]) -> None:
        """Gives an attribute's numbers an index when its name first appears, before the first item that has it."""
        for field in {field for document in documents for field in document.numbers} - self._indexed_fields:
            if len(self._indexed_fields) <= fields.MAX_NUMBER_FIELDS:
                _require_room(self._folder)
                self._indexed_fields.add(field)
                self._shard.update(_number_index(field))

    def _live(self, keys: Iterable[int]) -> Iterator[tuple[int, _Item]]:
        for key in keys:
            item = self._items.get(key)
            if item is not None and item.row >= 0:
                yield key, item

    # -- the search graph --------------------------------------------------------------------------------------------

    async def _tend_graph(self) -> None:
        not_before_s = 0.0
        while True:
            await asyncio.sleep(min(1.0, self._policy.quiet_s))
            now_s = asyncio.get_running_loop().time()
            quiet_s, since_last_s = now_s - self._last_put_s, now_s - self._last_build_s
            if now_s < not_before_s or not self._policy.is_due(
                self._outside, self._within, quiet_s, since_last_s
            ):
                continue
            try:
                await self.build_graph()
            except Exception as problem:  # noqa: BLE001 - the engine's errors have no type of their own
                # Without a graph every search is a scan: slower, never wrong.
                log.warning("search_graph_not_built", error=str(problem))
                not_before_s = now_s + self._policy.patience_s

    async def build_graph(self) -> None:
        """Builds a graph over the present items in a child process, and swaps it in with what was put meanwhile."""
        async with self._building:
            self._builds += 1
            path = self._folder / f"shard-{self._builds}"
            self._last_build_s = asyncio.get_running_loop().time()
            # The copy, in which no hole stays a hole, and as much again for the graph and what is put meanwhile.
            _require_room(self._folder, 2 * _size(self._path))
            outside = self._outside
            try:
                async with self._writing:
                    self._shard.flush()
                    self._changed = set()
                    within, self._outside = await self.count(), 0
                    indexed = frozenset(self._indexed_fields)
                    await asyncio.to_thread(shutil.copytree, self._path, path)
                await self._run_build(path)
                fresh = engine.EdgeShard.load(str(path))
                await self._catch_up(fresh, indexed)
            except BaseException:
                self._outside += outside
                shutil.rmtree(path, ignore_errors=True)
                raise
            finally:
                self._changed = None
            # Since the last slice of the catching up, nothing else has run.
            old, old_path = self._shard, self._path
            self._shard, self._path, self._within = fresh, path, within
            old.close()
            await asyncio.to_thread(shutil.rmtree, old_path, ignore_errors=True)

    async def _run_build(self, path: Path) -> None:
        child = await asyncio.create_subprocess_exec(
            *hnsw.command(path, self._stored_dim),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the parent, which ends the child itself
        )
        self.building = child.pid
        try:
            if self._closing:
                raise RuntimeError("the index is closing")
            async with asyncio.timeout(self._policy.timeout_s):
                _, problem = await child.communicate()
        finally:
            self.building = None
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                await child.wait()
        if child.returncode != 0:
            said = problem.decode(errors="replace").strip().splitlines()
            raise RuntimeError(
                f"the build ended with {child.returncode}: {said[-1] if said else 'no message'}"
            )

    async def _catch_up(self, fresh: engine.EdgeShard, indexed: frozenset[str]) -> None:
        """Applies what was put since the copy. Twice as fast as items can be put, so it ends."""
        assert self._changed is not None
        while len(self._changed) > PUT_SLICE:
            some = [self._changed.pop() for _ in range(min(2 * PUT_SLICE, len(self._changed)))]
            self._write(fresh, self._documents(some))
            await asyncio.sleep(0)
        for field in self._indexed_fields - indexed:
            fresh.update(_number_index(field))
        self._write(fresh, self._documents(self._changed))

    def _documents(self, keys: Iterable[int]) -> dict[int, fields.Document | None]:
        held = {key: self._items[key] for key in keys}
        return {key: fields.document(_payload(item)) if item.row >= 0 else None for key, item in held.items()}


def _create(path: Path, dim: int) -> engine.EdgeShard:
    path.mkdir()
    config = engine.EdgeConfig(
        vectors=engine.EdgeVectorParams(dim, engine.Distance.Dot),
        payload_memory=engine.Memory.Cached,
        max_search_threads=1,  # there is a segment or two; more threads would only wait for each other
        wal_enabled=False,  # nothing outlives the process
    )
    shard = engine.EdgeShard.create(str(path), config)
    words = engine.IntegerIndexParams(lookup=True, range=False)
    shard.update(engine.UpdateOperation.create_field_index("words", words))
    shard.update(_number_index("price"))
    return shard


def _number_index(field: str) -> engine.UpdateOperation:
    return engine.UpdateOperation.create_field_index(field, engine.PayloadSchemaType.Float)


class _Plan(NamedTuple):
    """How one query is put to the engine: with which filter, for how many, and what is dropped from what it finds."""

    query: Query
    where: engine.Filter | None
    limit: int
    drops_hidden: bool


def _plans(queries: Sequence[Query], droppable: int, hidden: float | None) -> list[_Plan]:
    """`hidden`: the share of items that are not available, where those may be dropped."""
    # The interests of one user share filter and exclusions, so these are translated once.
    seen: dict[tuple[Filter | None, frozenset[int]], engine.Filter] = {}
    plans = []
    for query in queries:
        dropped = len(query.exclude) if len(query.exclude) <= droppable else 0
        excluded = frozenset() if dropped else query.exclude
        limit = query.limit + dropped
        if query.where is None and not excluded and hidden is not None:
            # Twice their share: a search again costs as much as all of this.
            plans.append(_Plan(query, None, limit + math.ceil(2 * hidden * limit), True))
            continue
        shared = (query.where, excluded)
        if shared not in seen:
            seen[shared] = _filter(fields.condition(*shared))
        plans.append(_Plan(query, seen[shared], limit, False))
    return plans


def _request(plan: _Plan) -> engine.QueryRequest:
    nearest = engine.Query.Nearest([*plan.query.vector.tolist(), 0.0])
    return engine.QueryRequest(limit=plan.limit, query=nearest, filter=plan.where, params=_SEARCH)


def _filter(group: fields.Group) -> engine.Filter:
    return engine.Filter(
        must=[_condition(each) for each in group.must] or None,
        should=[_condition(each) for each in group.should] or None,
        must_not=[_condition(each) for each in group.must_not] or None,
    )


def _condition(condition: fields.Condition) -> "engine.ConditionType":
    match condition:
        case fields.HasWord(words=words):
            numbers = [_word_number(word) for word in words]
            wanted = engine.MatchValue(numbers[0]) if len(numbers) == 1 else engine.MatchAny(numbers)
            return engine.FieldCondition("words", match=wanted)
        case fields.HasNumber(field=field, bounds=at):
            return engine.FieldCondition(
                field, range=engine.RangeFloat(gte=at.gte, gt=at.gt, lte=at.lte, lt=at.lt)
            )
        case fields.HasKey(keys=keys):
            return engine.HasIdCondition(set(keys))
        case fields.Group():
            return _filter(condition)


def _stored(document: fields.Document) -> dict[str, Any]:
    numbers = {field: held[0] if len(held) == 1 else held for field, held in document.numbers.items()}
    return {"words": [_word_number(word) for word in document.words], **numbers}


def _word_number(word: str) -> int:
    """A word as a signed 64-bit number, which crosses into the engine three times as fast as a text."""
    return xxhash.xxh3_64_intdigest(word.encode()) - (1 << 63)


def _payload(item: _Item) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.msgpack.decode(item.payload)
    decoded["item_id"] = item.item_id
    return decoded


def _require_room(folder: Path, beside: int = 0) -> None:
    free, least = shutil.disk_usage(folder).free, ROOM_BYTES + beside
    if free < least:
        raise NoRoom(
            f"{free >> 20} MB are free on its disk, expected at least {least >> 20} MB for the index: make room, then "
            "start again"
        )


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _own_folder(path: Path) -> tuple[Path, int]:
    """A new folder and the lock that marks it as ours, after removing those that no living process holds."""
    gate = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(gate, fcntl.LOCK_EX)  # so that nobody takes our folder for abandoned before it is locked
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


T = TypeVar("T")


def _slices(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (values[start : start + size] for start in range(0, len(values), size))
