"""A shard of Qdrant's engine in a folder: items and queries in the engine's terms.

The engine holds Python's lock during every call, so all of these block the thread that makes them.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import qdrant_edge as engine
import xxhash
from numpy.typing import NDArray

from headwater.index import NoRoom, Query, fields
from headwater.index.filters import EVERYTHING, Filter

# Candidates that a search through the graph keeps at least: finds 99.7 % of the 20 best of the items of `groceries`.
SEARCH_EF: Final = 128
_SEARCH: Final = engine.SearchParams(hnsw_ef=SEARCH_EF)
# The engine writes into mapped files. On a full disk the kernel ends such a process at once (SIGBUS), without a word. So
# this much is free before every write: a new shard takes 40 MB of it, a slice or the index of a new number field 2 MB.
ROOM_BYTES: Final = 64 * 1024 * 1024
_EXACT: Final = 2.0**53  # whole numbers below it are the same as ints and as floats
_HALF: Final = 1 << 63


class Plan(NamedTuple):
    """How one query is put to the engine: its filter, how many hits are asked for, and whether hidden ones are dropped."""

    query: Query
    where: engine.Filter | None
    limit: int
    drops_hidden: bool


class Shard:
    """`create` or `load` it, and close it."""

    def __init__(self, path: Path, shard: engine.EdgeShard, number_fields: set[str]) -> None:
        self.path = path
        self.number_fields = number_fields
        """Fields of numbers that have an index of their own, besides the price, which always has."""
        self._shard = shard

    @classmethod
    def create(cls, path: Path, dim: int) -> "Shard":
        """An empty shard of vectors of ``dim`` numbers, in a folder that does not exist yet."""
        path.mkdir()
        config = engine.EdgeConfig(
            vectors=engine.EdgeVectorParams(dim, engine.Distance.Dot),
            payload_memory=engine.Memory.Cached,
            max_search_threads=1,  # there is a segment or two; more threads would only wait for each other
            wal_enabled=False,  # nothing outlives the process
        )
        shard = cls(path, engine.EdgeShard.create(str(path), config), set())
        words = engine.IntegerIndexParams(lookup=True, range=False)
        for field, kind in (("words", words), ("price", engine.PayloadSchemaType.Float)):
            shard._shard.update(engine.UpdateOperation.create_field_index(field, kind))
        return shard

    @classmethod
    def load(cls, path: Path, number_fields: set[str]) -> "Shard":
        """A shard that lies in a folder, and the number fields, besides the price, that are indexed there."""
        return cls(path, engine.EdgeShard.load(str(path)), number_fields)

    def index_numbers(self, field: str) -> None:
        """Give a field of numbers an index."""
        operation = engine.UpdateOperation.create_field_index(field, engine.PayloadSchemaType.Float)
        self._shard.update(operation)
        self.number_fields.add(field)

    def drop_numbers(self, field: str) -> None:
        """Take the index of a field of numbers away."""
        self._shard.update(engine.UpdateOperation.delete_field_index(field))
        self.number_fields.discard(field)

    def put(self, documents: Mapping[int, fields.Document], vectors: NDArray[np.float32]) -> None:
        """Store items by key with their vectors, (items, dim), in the same order."""
        rows = vectors.tolist()
        points = [
            engine.Point(key, row, _stored(document))
            for (key, document), row in zip(documents.items(), rows, strict=True)
        ]
        self._shard.update(engine.UpdateOperation.upsert_points(points))

    def delete(self, keys: Sequence[int]) -> None:
        """Remove items; keys that are not stored are ignored."""
        self._shard.update(engine.UpdateOperation.delete_points(list(keys)))

    def search(self, plans: Sequence[Plan]) -> list[list[engine.ScoredPoint]]:
        """What each plan finds, best first: points with the key of an item as their `id`, and a `score`."""
        return self._shard.query_batch(engine.QueryBatchRequest([_request(plan) for plan in plans]))

    def flush(self) -> None:
        """Bring everything to the disk."""
        self._shard.flush()

    def close(self) -> None:
        """Release the folder, which stays."""
        self._shard.close()


# The interests of one user share filter and exclusions, so these are translated once.
Translated = dict[tuple[Filter | None, frozenset[int]], engine.Filter]


def plans_of(
    queries: Sequence[Query], droppable: int, hidden: float | None, translated: Translated
) -> list[Plan]:
    """How to put the queries to the engine.

    Args:
        droppable: exclusions up to this many are searched for too, and dropped from what is found.
        hidden: the share of items that are not available, where those may be dropped too; None where they may not.
        translated: what has been translated so far; added to.
    """
    plans = []
    for query in queries:
        dropped = len(query.exclude) if len(query.exclude) <= droppable else 0
        excluded = frozenset() if dropped else query.exclude
        limit = query.limit + dropped
        if query.where is None and not excluded and hidden is not None:
            # Twice their share: a search again costs as much as all of this.
            plans.append(Plan(query, None, limit + math.ceil(2 * hidden * limit), True))
            continue
        if query.where == EVERYTHING and not excluded:
            plans.append(Plan(query, None, limit, False))
            continue
        shared = (query.where, excluded)
        if shared not in translated:
            translated[shared] = engine_filter(fields.condition(*shared))
        plans.append(Plan(query, translated[shared], limit, False))
    return plans


def engine_filter(group: fields.Group) -> engine.Filter:
    """A condition as the engine takes it."""
    return engine.Filter(
        must=[_condition(each) for each in group.must] or None,
        should=[_condition(each) for each in group.should] or None,
        must_not=[_condition(each) for each in group.must_not] or None,
    )


def require_room(folder: Path, more_bytes: int = 0) -> None:
    """Raises NoRoom unless the folder's disk has room for the next writes and ``more_bytes``."""
    free, least = shutil.disk_usage(folder).free, ROOM_BYTES + more_bytes
    if free < least:
        raise NoRoom(
            f"{free >> 20} MB are free on its disk, expected at least {least >> 20} MB for the index: make room, then "
            "start again"
        )


def _request(plan: Plan) -> engine.QueryRequest:
    nearest = engine.Query.Nearest([*plan.query.vector.tolist(), 0.0])
    return engine.QueryRequest(limit=plan.limit, query=nearest, filter=plan.where, params=_SEARCH)


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
            return engine_filter(condition)


def _stored(document: fields.Document) -> dict[str, Any]:
    numbers = {
        field: _number(held[0]) if len(held) == 1 else list(map(_number, held))
        for field, held in document.numbers.items()
    }
    return {"words": list(map(_word_number, document.words)), **numbers}


def _number(number: float) -> int | float:
    """A number as it crosses into the engine: a whole one as an int, a third of the time of a float. Both compare alike."""
    return int(number) if number.is_integer() and abs(number) < _EXACT else number


def _word_number(word: str) -> int:
    """A word as a signed 64-bit number, which crosses into the engine three times as fast as a text."""
    return xxhash.xxh3_64_intdigest(word.encode()) - _HALF
