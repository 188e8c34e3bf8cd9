"""The index on a Qdrant server, over gRPC: for large catalogs and for many workers that share one index.

A point of the collection is one item, or the mark of its deletion:

    id       the item's key           vector   the item's, `lifted`, or zeros for a mark
    item_id, item {payload}           what `items` gives back
    words, price, number_*            what filters look up (`fields`); a mark has the word for deleted and nothing else
    revision                          of the offers that are laid over the item, if there are any
    version_high, version_low, offset the item's stamp; the version in two halves, since ranges compare as doubles
    partition                         where in the catalog it came from
    marked_at_s                       of a mark: when it was set, for `sweep`

**Two writers.** The newer version wins even where two workers write at once. An absent item is inserted only if it is still
absent. A stored one is replaced only while it is older. The stamps are then read again, until nothing of the batch is newer.
"""

import math
import time
import warnings
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import structlog
from grpc.aio import AioRpcError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from qdrant_client import AsyncQdrantClient, models

from headwater.encoder.features import item_key
from headwater.index import (
    Collision,
    FilledBy,
    Hit,
    IndexHealth,
    IndexRefused,
    IndexUnavailable,
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
from headwater.index.filters import Filter
from headwater.index.offers import laid_over
from headwater.index.server_calls import LOOK_UP_S, SEARCH_S, Calls
from headwater.index.server_collection import Collection, ServerCollection
from headwater.index.server_terms import (
    DELETED,
    condition_on_items,
    is_mark,
    older_than,
    query_request,
    same_as,
    server_condition,
    server_filter,
)
from headwater.messages import OfferState

log = structlog.get_logger(__name__)

# A batch of 64 queries takes a server some 40 ms; 500 points of 64 dimensions are about 300 KB.
SEARCH_SLICE = 64
PUT_SLICE = 500
READ_SLICE = 1000
_STAMP = ["item_id", "version_high", "version_low", "offset", "partition"]
_WHOLE = [*_STAMP, "item", "words", "revision"]
PUT_ROUNDS = 5

# By default gRPC waits up to two minutes before it reconnects, and gives a connection 20 s to come about. A host that
# vanished silently counts as connected until TCP gives up, a quarter of an hour later. So it is pinged while a call waits.
_CHANNEL_OPTIONS = {
    "grpc.initial_reconnect_backoff_ms": 200,
    "grpc.min_reconnect_backoff_ms": 2_000,
    "grpc.max_reconnect_backoff_ms": 1_000,
    "grpc.keepalive_time_ms": 5_000,
    "grpc.keepalive_timeout_ms": 2_000,
    "grpc.http2.max_pings_without_data": 0,
}

T = TypeVar("T")


class ServerAddress(NamedTuple):
    """A Qdrant server: its HTTP address, the gRPC port of the same host, and how long and often a call is tried."""

    url: str
    api_key: str | None = None
    grpc_port: int = 6334
    timeout_s: float = 5.0  # of one call that is written
    tries: int = 3


class ServerIndex:
    """`connect` it, and close it. Every call ends within its time limit, if need be with IndexUnavailable (`server_calls`)."""

    in_process = False
    filled_by: FilledBy = "the catalog worker"

    def __init__(self, client: AsyncQdrantClient, server: ServerAddress, collection: Collection) -> None:
        self._client = client
        self._collection = collection.name
        self._dim = collection.dim
        self._stored_dim = collection.dim + 1  # see `lifted`
        self._radius = collection.radius
        self._calls = Calls(
            f"Qdrant at {server.url}", self._look, timeout_s=server.timeout_s, tries=server.tries
        )
        self.collection = ServerCollection(client, self._calls, collection)

    @classmethod
    async def connect(cls, server: ServerAddress, collection: Collection) -> "ServerIndex":
        """Open the collection of one bundle, and create it where it is missing.

        Raises:
            IndexUnavailable: the server does not answer, or refuses us.
            ValueError: the server is too old, or the collection has another dimension.
        """
        client = _client(server)
        index = cls(client, server, collection)
        try:
            await index.collection.open()
        except AioRpcError as problem:
            await client.close()
            raise IndexUnavailable(index._calls.refusal(problem)) from None
        except BaseException:
            await client.close()
            raise
        return index

    async def put(self, points: Sequence[Point]) -> Stored:
        """As `Index.put`; waits for the server within all tries.

        Raises:
            BadVector, IndexUnavailable, IndexRefused: see `Index.put`.
        """
        check_points(points, self._dim)
        stored = Stored([], [])
        try:
            for part in _slices(points, PUT_SLICE):
                await self._put_slice(part, stored)
        except AioRpcError as problem:
            raise IndexRefused(self._calls.refusal(problem)) from problem
        return stored

    async def put_offers(self, states: Sequence[OfferState]) -> None:
        """As `Index.put_offers`; waits for the server within all tries.

        Raises:
            IndexUnavailable, IndexRefused: see `Index.put_offers`.
        """
        newest = {item_key(state.item_id): state for state in states}
        try:
            for part in _slices(list(newest), PUT_SLICE):
                await self._lay_slice({key: newest[key] for key in part})
        except AioRpcError as problem:
            raise IndexRefused(self._calls.refusal(problem)) from problem

    async def search(self, queries: Sequence[Query]) -> list[list[Hit]]:
        """As `Index.search`, within `SEARCH_S` for each `SEARCH_SLICE` queries."""
        for query in queries:
            check_vector(query.vector, self._dim, "query")
        found: list[list[Hit]] = []
        for part in _slices(queries, SEARCH_SLICE):
            requests = [query_request(query) for query in part]
            answers = await self._calls.prompt(
                SEARCH_S, self._client.query_batch_points, self._collection, requests
            )
            found += [
                [Hit(int(hit.id), (hit.payload or {})["item_id"], hit.score) for hit in each.points]
                for each in answers
            ]
        return found

    async def vectors(self, keys: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        """As `Index.vectors`: (D,) each, as they were before they were lifted."""
        records = await self._read(keys, payload=["words"], vectors=True)
        live = (record for record in records if not is_mark(record))
        return {int(record.id): np.asarray(record.vector, dtype=np.float32)[:-1] for record in live}

    async def items(self, keys: Sequence[int]) -> dict[int, dict[str, Any]]:
        """As `Index.items`."""
        found: dict[int, dict[str, Any]] = {}
        for record in await self._read(keys, payload=["item", "item_id", "words"]):
            if not is_mark(record):
                payload = record.payload or {}
                found[int(record.id)] = {**payload["item"], "item_id": payload["item_id"]}
        return found

    async def match(self, keys: Sequence[int], where: Filter | None) -> dict[int, str]:
        """As `Index.match`, with the filter as a search has it."""
        found: dict[int, str] = {}
        for part in _slices(keys, READ_SLICE):
            group = condition_on_items(where)
            wanted = server_filter(
                fields.Group((*group.must, fields.HasKey(frozenset(part))), group.should, group.must_not)
            )
            records, _ = await self._calls.prompt(
                LOOK_UP_S,
                self._client.scroll,
                self._collection,
                wanted,
                limit=READ_SLICE,
                with_payload=["item_id"],
                with_vectors=False,
            )
            found |= {int(record.id): (record.payload or {})["item_id"] for record in records}
        return found

    async def count(self) -> int:
        """As `Index.count`, exact."""
        live = server_filter(fields.Group(must_not=(fields.HasWord((DELETED,)),)))
        found = await self._calls.prompt(SEARCH_S, self._client.count, self._collection, live, exact=True)
        return found.count

    def health(self) -> IndexHealth:
        """Nothing: the server keeps its graph to itself."""
        return IndexHealth()

    async def close(self) -> None:
        """Cancel the reads in progress and disconnect."""
        await self._calls.close()
        await self._client.close()

    async def sweep(self, before_s: float) -> None:
        """As `Index.sweep`: the marks are points of the collection. Unused indexes of numbers go too.

        Raises:
            IndexUnavailable: the server does not answer, or refuses.
        """
        old = models.FieldCondition(key="marked_at_s", range=models.Range(lt=before_s))
        marks = models.Filter(must=[server_condition(fields.HasWord((DELETED,))), old])
        selector = models.FilterSelector(filter=marks)
        try:
            await self._calls.patient(self._client.delete, self._collection, selector, wait=True)
            await self.collection.sweep_number_indexes()
        except AioRpcError as problem:
            raise IndexUnavailable(self._calls.refusal(problem)) from problem

    # -- putting -----------------------------------------------------------------------------------------------------

    async def _put_slice(self, points: Sequence[Point], done: Stored) -> None:
        """Store what is newer, and add to ``done`` what became of the points."""
        newest: dict[int, Point] = {}
        for _ in range(PUT_ROUNDS):
            stored = await self._stamps({point.key for point in points})
            final: dict[int, tuple[Point, VersionStamp]] = {}
            collided: list[Collision] = []
            for point in points:
                item_id, held = stored.get(point.key, (point.item_id, None))
                if point.key in final:
                    item_id, held = final[point.key][0].item_id, final[point.key][1]
                if item_id != point.item_id:
                    collided.append(Collision(point, item_id))
                    continue
                stamp = newer(point.version, point.offset, held)
                if stamp is not None:
                    final[point.key] = (point, stamp)
            newest |= {key: point for key, (point, _) in final.items()}
            if not final:
                refused = {each.point.key: each.point for each in collided}
                done.points.extend(point for point in newest.values() if refused.get(point.key) is not point)
                done.collisions.extend(collided)
                return
            await self._write(final.values(), absent=final.keys() - stored.keys())
        raise IndexUnavailable(
            f"{len(final)} items of {self._collection} were not stored in {PUT_ROUNDS} rounds; "
            "is another process putting the same catalog partitions?"
        )

    async def _lay_slice(self, states: Mapping[int, OfferState]) -> None:
        """Replace payloads that are as they were read, and read again, until none has a lower revision."""
        for _ in range(PUT_ROUNDS):
            changes: list[models.UpdateOperation] = []
            for record in await self._read_patiently(list(states), _WHOLE):
                held, state = record.payload or {}, states[int(record.id)]
                if is_mark(record) or held["item_id"] != state.item_id:
                    continue
                if held.get("revision", -1) >= state.revision:
                    continue
                item = laid_over(held["item"], state)
                document = fields.document(item)
                if not state.attributes.keys() <= (held["item"].get("attributes") or {}).keys():
                    await self.collection.index_numbers(document)
                payload = {name: held[name] for name in _STAMP} | _searchable(item, document, state)
                unchanged = models.SetPayload(
                    payload=payload, filter=same_as(int(record.id), held, state.revision)
                )
                changes.append(models.OverwritePayloadOperation(overwrite_payload=unchanged))
            if not changes:
                return
            await self._calls.patient(self._client.batch_update_points, self._collection, changes, wait=True)
        raise IndexUnavailable(
            f"the offers of {len(changes)} items of {self._collection} were not stored in {PUT_ROUNDS} rounds; "
            "is another process putting the same catalog partitions?"
        )

    async def _stamps(self, keys: Iterable[int]) -> dict[int, tuple[str, VersionStamp | None]]:
        wanted = _STAMP[:-1]
        stored: dict[int, tuple[str, VersionStamp | None]] = {}
        for record in await self._read_patiently(list(keys), wanted):
            held = record.payload or {}
            stamp = VersionStamp((held["version_high"] << 32) | held["version_low"], held["offset"])
            stored[int(record.id)] = held["item_id"], stamp
        return stored

    async def _write(self, versions: Iterable[tuple[Point, VersionStamp]], absent: Iterable[int]) -> None:
        new = set(absent)
        inserts: list[models.PointStruct] = []
        replaces: list[models.UpdateOperation] = []
        for point, stamp in versions:
            item = laid_over(point.payload, point.offers)
            document = fields.document(item) if point.vector is not None else None
            if document is not None and point.key in new:
                await self.collection.index_numbers(document)
            struct = self._struct(point, stamp, item, document)
            if point.key in new:
                inserts.append(struct)
            else:
                upsert = models.PointsList(points=[struct], update_filter=older_than(point.item_id, stamp))
                replaces.append(models.UpsertOperation(upsert=upsert))
        if inserts:
            only = models.UpdateMode.INSERT_ONLY
            await self._calls.patient(
                self._client.upsert, self._collection, inserts, wait=True, update_mode=only
            )
        if replaces:
            await self._calls.patient(self._client.batch_update_points, self._collection, replaces, wait=True)

    def _struct(
        self, point: Point, stamp: VersionStamp, item: dict[str, Any], document: fields.Document | None
    ) -> models.PointStruct:
        payload: dict[str, Any] = {
            "item_id": point.item_id,
            "version_high": stamp.version >> 32,
            "version_low": stamp.version & 0xFFFFFFFF,
            "offset": stamp.offset,
            "partition": point.partition,
        }
        if document is None or point.vector is None:
            payload |= {"words": [DELETED], "marked_at_s": time.time()}
            return models.PointStruct(id=point.key, vector=[0.0] * self._stored_dim, payload=payload)
        payload |= _searchable(item, document, point.offers)
        [vector] = lifted(point.vector[None], self._radius).tolist()
        return models.PointStruct(id=point.key, vector=vector, payload=payload)

    # -- reading -----------------------------------------------------------------------------------------------------

    async def _read(
        self, keys: Sequence[int], *, payload: list[str], vectors: bool = False
    ) -> list[models.Record]:
        """The records of the keys, within `LOOK_UP_S` for each `READ_SLICE` keys."""
        found: list[models.Record] = []
        for call in self._retrievals(keys, payload, vectors):
            found += await self._calls.prompt(LOOK_UP_S, call)
        return found

    async def _read_patiently(self, keys: Sequence[int], payload: list[str]) -> list[models.Record]:
        """The records of the keys, for a write that waits for them."""
        found: list[models.Record] = []
        for call in self._retrievals(keys, payload, False):
            found += await self._calls.patient(call)
        return found

    def _retrievals(
        self, keys: Sequence[int], payload: list[str], vectors: bool
    ) -> Iterator[Callable[[], Awaitable[list[models.Record]]]]:
        for part in _slices(keys, READ_SLICE):
            yield partial(
                self._client.retrieve, self._collection, part, with_payload=payload, with_vectors=vectors
            )

    async def _look(self) -> None:
        """The smallest search: whether the server answers."""
        nothing = models.QueryRequest(query=models.NearestQuery(nearest=[0.0] * self._stored_dim), limit=1)
        await self._client.query_batch_points(self._collection, [nothing])


def _searchable(item: dict[str, Any], document: fields.Document, state: OfferState | None) -> dict[str, Any]:
    """What the collection holds of a live item besides its stamp."""
    revision = {} if state is None else {"revision": state.revision}
    return {"item": item, "words": document.words, **document.numbers, **revision}


def _client(server: ServerAddress) -> AsyncQdrantClient:
    if server.api_key is not None and server.url.startswith("http:"):
        log.warning("qdrant_key_sent_unencrypted", url=server.url, remedy="use https where others can listen")
    with warnings.catch_warnings():
        # The client warns of the same, with a line of our source.
        warnings.filterwarnings("ignore", "Api key is used with an insecure connection")
        return AsyncQdrantClient(
            url=server.url,
            api_key=server.api_key,
            grpc_port=server.grpc_port,
            prefer_grpc=True,
            timeout=math.ceil(server.timeout_s),
            grpc_options=dict(_CHANNEL_OPTIONS),
            check_compatibility=False,  # it would ask over HTTP, from a thread
        )


def _slices(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (values[start : start + size] for start in range(0, len(values), size))
