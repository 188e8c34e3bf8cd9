"""A Qdrant server for tests without one: real gRPC on a loopback port, answered by qdrant-client's own local mode.

So the index's calls cross the wire in both directions and meet a second implementation of filters, conditional upserts
and versions. What it is not: a server's storage, its search graph, its replication. It can be told to fail, to be slow
or silent, to keep an answer to itself, to close its port, and to ask for a key.
"""

# ruff: noqa: N802 - the methods are named by the protocol

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from qdrant_client import AsyncQdrantClient, models
from qdrant_client import grpc as wire
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc

# gRPC's own servers end a connection whose client asks often whether they are there; Qdrant's does not.
_TAKES_ANY_PINGS = [("grpc.http2.min_ping_interval_without_data_ms", 100), ("grpc.http2.max_ping_strikes", 0)]


@dataclass
class StandIn:
    port: int = 0
    version: str = "1.19.0"
    fail_next: list[grpc.StatusCode] = field(default_factory=list)  # each fails one call to the points
    calls: list[str] = field(default_factory=list)
    created: list[Any] = field(default_factory=list)  # requests that made a collection
    indexes: dict[str, str] = field(default_factory=dict)  # payload field -> kind
    before_upsert: Any = None  # called once, before the next upsert: another writer that is faster
    # Of every call, for as long as they are set:
    delay_s: float = 0.0
    error: grpc.StatusCode | None = None
    is_silent: bool = False  # it takes calls, and says nothing
    api_key: str | None = None  # as a real server does, it asks for it in all calls but the health check
    keep_back: list[str] = field(
        default_factory=list
    )  # each, the answer to one call of this name, its work done
    kept_back: int = 0
    _server: Any = None
    _new_server: Callable[[], Any] = grpc.aio.server

    @property
    def url(self) -> str:
        return "http://127.0.0.1:6333"  # of which only the host counts

    async def open_port(self) -> None:
        """Listen: on any free port at first, then on the same again."""
        self._server = self._new_server()
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def close_port(self) -> None:
        """End every connection, and refuse new ones."""
        await self._server.stop(grace=None)

    async def enter(self, request: Any, context: Any) -> None:
        self.calls.append(type(request).__name__)
        if self.fail_next:
            await context.abort(self.fail_next.pop(0), "told to fail")


@asynccontextmanager
async def serving(**given: Any) -> AsyncIterator[StandIn]:
    stand_in = StandIn(**given)
    local = AsyncQdrantClient(location=":memory:")

    def new_server() -> Any:
        server = grpc.aio.server(interceptors=[_Faults(stand_in)], options=_TAKES_ANY_PINGS)
        wire.add_QdrantServicer_to_server(_Root(stand_in), server)
        wire.add_CollectionsServicer_to_server(_Collections(stand_in, local), server)
        wire.add_PointsServicer_to_server(_Points(stand_in, local), server)
        return server

    stand_in._new_server = new_server
    await stand_in.open_port()
    try:
        yield stand_in
    finally:
        await stand_in.close_port()
        await local.close()


class _Faults(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """What the stand-in was told to do, around every call."""

    def __init__(self, stand_in: StandIn) -> None:
        self._stand_in = stand_in

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        handler = await continuation(details)
        name = details.method.rpartition("/")[2]
        key = dict(details.invocation_metadata).get("api-key")

        async def faulted(request: Any, context: Any) -> Any:
            await self._before(name, key, context)
            answer = await handler.unary_unary(request, context)
            await self._after(name)
            return answer

        return grpc.unary_unary_rpc_method_handler(
            faulted, handler.request_deserializer, handler.response_serializer
        )

    async def _before(self, name: str, key: str | None, context: Any) -> None:
        told = self._stand_in
        if told.is_silent:
            await _for_ever()
        await asyncio.sleep(told.delay_s)
        if told.error is not None:
            await context.abort(told.error, "told to fail")
        if told.api_key is not None and name != "HealthCheck" and key != told.api_key:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "Invalid API key or JWT")

    async def _after(self, name: str) -> None:
        if name in self._stand_in.keep_back:
            self._stand_in.keep_back.remove(name)
            self._stand_in.kept_back += 1
            await _for_ever()


async def _for_ever() -> None:
    """Until the client gives up or the port is closed."""
    await asyncio.get_running_loop().create_future()


class _Root(wire.QdrantServicer):
    def __init__(self, stand_in: StandIn) -> None:
        self._stand_in = stand_in

    async def HealthCheck(self, request: Any, context: Any) -> Any:
        return wire.HealthCheckReply(title="stand-in", version=self._stand_in.version)


class _Collections(wire.CollectionsServicer):
    def __init__(self, stand_in: StandIn, local: AsyncQdrantClient) -> None:
        self._stand_in, self._local = stand_in, local

    async def CollectionExists(self, request: Any, context: Any) -> Any:
        exists = await self._local.collection_exists(request.collection_name)
        return wire.CollectionExistsResponse(result=wire.CollectionExists(exists=exists))

    async def Create(self, request: Any, context: Any) -> Any:
        self._stand_in.created.append(request)
        if await self._local.collection_exists(request.collection_name):
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, "collection already exists")
        vectors = GrpcToRest.convert_vectors_config(request.vectors_config)
        await self._local.create_collection(request.collection_name, vectors_config=vectors)
        return wire.CollectionOperationResponse(result=True)

    async def Get(self, request: Any, context: Any) -> Any:
        info = await self._local.get_collection(request.collection_name)
        told = wire.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(info))
        for field_name, kind in self._stand_in.indexes.items():
            of_field = wire.PayloadSchemaType.Value(kind.removeprefix("FieldType"))
            told.result.payload_schema[field_name].data_type = of_field
        return told

    async def Delete(self, request: Any, context: Any) -> Any:
        return wire.CollectionOperationResponse(
            result=await self._local.delete_collection(request.collection_name)
        )

    async def ListAliases(self, request: Any, context: Any) -> Any:
        aliases = (await self._local.get_aliases()).aliases
        return wire.ListAliasesResponse(
            aliases=[RestToGrpc.convert_alias_description(each) for each in aliases]
        )

    async def UpdateAliases(self, request: Any, context: Any) -> Any:
        changes = [GrpcToRest.convert_alias_operations(each) for each in request.actions]
        return wire.CollectionOperationResponse(result=await self._local.update_collection_aliases(changes))


class _Points(wire.PointsServicer):
    def __init__(self, stand_in: StandIn, local: AsyncQdrantClient) -> None:
        self._stand_in, self._local = stand_in, local

    async def CreateFieldIndex(self, request: Any, context: Any) -> Any:
        await self._stand_in.enter(request, context)
        self._stand_in.indexes[request.field_name] = wire.FieldType.Name(request.field_type)
        return _done()

    async def DeleteFieldIndex(self, request: Any, context: Any) -> Any:
        await self._stand_in.enter(request, context)
        del self._stand_in.indexes[request.field_name]
        return _done()

    async def Upsert(self, request: Any, context: Any) -> Any:
        await self._stand_in.enter(request, context)
        if self._stand_in.before_upsert is not None:
            faster, self._stand_in.before_upsert = self._stand_in.before_upsert, None
            await faster()
        await self._local.upsert(
            request.collection_name,
            [GrpcToRest.convert_point_struct(point) for point in request.points],
            update_filter=GrpcToRest.convert_filter(request.update_filter)
            if request.HasField("update_filter")
            else None,
            update_mode=GrpcToRest.convert_update_mode(request.update_mode)
            if request.HasField("update_mode")
            else None,
        )
        return _done()

    async def UpdateBatch(self, request: Any, context: Any) -> Any:
        await self._stand_in.enter(request, context)
        operations = [GrpcToRest.convert_points_update_operation(each) for each in request.operations]
        await self._local.batch_update_points(request.collection_name, operations)
        return wire.UpdateBatchResponse(result=[_completed()] * len(operations))

    async def Delete(self, request: Any, context: Any) -> Any:
        await self._stand_in.enter(request, context)
        await self._local.delete(request.collection_name, GrpcToRest.convert_points_selector(request.points))
        return _done()

    async def Get(self, request: Any, context: Any) -> Any:
        await self._stand_in.enter(request, context)
        records = await self._local.retrieve(
            request.collection_name,
            [GrpcToRest.convert_point_id(each) for each in request.ids],
            with_payload=GrpcToRest.convert_with_payload_interface(request.with_payload),
            with_vectors=GrpcToRest.convert_with_vectors_selector(request.with_vectors),
        )
        return wire.GetResponse(result=[RestToGrpc.convert_retrieved_point(each) for each in records])

    async def QueryBatch(self, request: Any, context: Any) -> Any:
        await self._stand_in.enter(request, context)
        queries = [GrpcToRest.convert_query_points(each) for each in request.query_points]
        for query in queries:
            query.params = None  # the local mode is always exact, and warns of parameters that it ignores
        answers = await self._local.query_batch_points(request.collection_name, queries)
        batches = [[RestToGrpc.convert_scored_point(hit) for hit in each.points] for each in answers]
        return wire.QueryBatchResponse(result=[wire.BatchResult(result=hits) for hits in batches])

    async def Scroll(self, request: Any, context: Any) -> Any:
        await self._stand_in.enter(request, context)
        records, _ = await self._local.scroll(
            request.collection_name,
            GrpcToRest.convert_filter(request.filter),
            limit=request.limit,
            with_payload=GrpcToRest.convert_with_payload_interface(request.with_payload),
        )
        return wire.ScrollResponse(result=[RestToGrpc.convert_retrieved_point(each) for each in records])

    async def Count(self, request: Any, context: Any) -> Any:
        await self._stand_in.enter(request, context)
        found = await self._local.count(request.collection_name, GrpcToRest.convert_filter(request.filter))
        return wire.CountResponse(result=wire.CountResult(count=found.count))


def _completed() -> Any:
    return RestToGrpc.convert_update_result(
        models.UpdateResult(operation_id=0, status=models.UpdateStatus.COMPLETED)
    )


def _done() -> Any:
    return wire.PointsOperationResponse(result=_completed())
