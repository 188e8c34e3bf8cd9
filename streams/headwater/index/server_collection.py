"""The collection of one bundle's items on a Qdrant server: checked or created, its alias, and the indexes of its fields."""

import sys
from typing import Final, NamedTuple

from grpc.aio import AioRpcError  # type: ignore[import-untyped]
from qdrant_client import AsyncQdrantClient, models

from headwater.index import fields
from headwater.index.server_calls import Calls

# It has insert-only and conditional upserts, which an older server ignores without a word.
OLDEST_SERVER: Final = (1, 18)
# A count of what has no index reads the whole collection.
_COUNTED_AT_A_SWEEP: Final = 4


class Collection(NamedTuple):
    """Where one bundle's items are kept.

    Attributes:
        dim: numbers in a vector.
        radius: see `lifted`. Vectors stored with another radius are found too, only less surely.
        alias: pointed at the collection unless it points elsewhere already; None: there is none.
    """

    name: str
    dim: int
    radius: float = 0.0
    alias: str | None = "items"


class ServerCollection:
    """One collection: `open` it first. Each call is patient (`server_calls`), and raises IndexUnavailable in the end."""

    def __init__(self, client: AsyncQdrantClient, calls: Calls, spec: Collection) -> None:
        self._client, self._calls, self._spec = client, calls, spec
        self._stored_dim = spec.dim + 1  # see `lifted`
        self._numbers: set[str] = set()  # attributes' number fields that have an index
        self._unused: set[str] = set()  # those of them that no item had at the last sweep
        self._number_indexes = fields.NumberIndexes()

    async def open(self) -> None:
        """Check the server, and check or create the collection. The alias names it if it names no other one.

        Raises:
            IndexUnavailable: the server does not answer.
            AioRpcError: the server refuses.
            ValueError: the server is too old, or the collection has another dimension.
        """
        await self._check_server()
        if not await self._exists():
            try:
                await self._create()
            except AioRpcError:
                if not await self._exists():  # else another worker was first
                    raise
        info = await self._calls.patient(self._client.get_collection, self._spec.name)
        held = info.config.params.vectors
        if not isinstance(held, models.VectorParams) or (held.size, held.distance) != (
            self._stored_dim,
            models.Distance.DOT,
        ):
            raise ValueError(
                f"collection {self._spec.name!r} of {self._calls.server} holds {held}, expected vectors of {self._spec.dim} + "
                "1 dimensions compared by dot product; use another bundle name, or delete it and import the catalog again"
            )
        self._numbers = _number_fields(info)
        if "words" not in info.payload_schema:
            await self._create_index("words", models.PayloadSchemaType.KEYWORD)
        if "price" not in info.payload_schema:
            await self._create_index("price", models.PayloadSchemaType.FLOAT)
        if self._spec.alias is not None and await self.live(self._spec.alias) is None:
            await self.make_live(self._spec.alias)

    async def make_live(self, alias: str) -> None:
        """Point the alias at this collection, in one step with taking it from another.

        Raises:
            IndexUnavailable: the server does not answer.
        """
        create = models.CreateAlias(collection_name=self._spec.name, alias_name=alias)
        changes: list[models.AliasOperations] = [models.CreateAliasOperation(create_alias=create)]
        if await self.live(alias) is not None:
            delete = models.DeleteAlias(alias_name=alias)
            changes.insert(0, models.DeleteAliasOperation(delete_alias=delete))
        await self._calls.patient(self._client.update_collection_aliases, changes)

    async def live(self, alias: str) -> str | None:
        """The collection that the alias names, or None. Raises IndexUnavailable."""
        aliases = (await self._calls.patient(self._client.get_aliases)).aliases
        return next((each.collection_name for each in aliases if each.alias_name == alias), None)

    async def drop(self) -> None:
        """Delete the collection, of a bundle that is no longer served. Raises IndexUnavailable."""
        await self._calls.patient(self._client.delete_collection, self._spec.name)

    async def sweep_number_indexes(self) -> None:
        """Delete indexes of numbers that no item has, now and at the sweep before; without room, one of those of few items.

        The index of a new name comes before its first item, so one look is not enough. Other workers sweep too.
        """
        info = await self._calls.patient(self._client.get_collection, self._spec.name)
        self._numbers = _number_fields(info)
        items = {
            field: await self._having(field) for field in list(self._numbers)
        }  # others may come meanwhile
        unused = {field for field, count in items.items() if count == 0}
        gone = unused & self._unused
        for field in gone:
            await self._drop_index(field)
        self._unused = unused - gone
        if len(self._numbers) < fields.MAX_NUMBER_FIELDS:
            return
        # One each time: every worker sweeps, and the next sweep sees what the others have done.
        rarest = min(items.keys() - gone, key=items.__getitem__)
        for field in self._number_indexes.waiting(self._numbers, _COUNTED_AT_A_SWEEP):
            if fields.is_worth_more(await self._having(field), items[rarest]):
                await self._drop_index(rarest)
                await self._create_index(field, models.PayloadSchemaType.FLOAT)
                self._numbers.add(field)
                return

    async def index_numbers(self, document: fields.Document) -> None:
        """Give the numbers of a new item's attributes an index, as far as there is room.

        A rarer one is not given up for it, since this worker sees only a part of the items.
        """
        for field in self._number_indexes.wanted(document, self._numbers):
            await self._create_index(field, models.PayloadSchemaType.FLOAT)
            self._numbers.add(field)

    async def _having(self, field: str) -> int:
        """How many items have a number in that field. Without an index the server looks at each of them."""
        any_number = models.FieldCondition(key=field, range=models.Range(gte=-sys.float_info.max))
        having = models.Filter(must=[any_number])
        found = await self._calls.patient(self._client.count, self._spec.name, having, exact=True)
        return int(found.count)

    async def _drop_index(self, field: str) -> None:
        await self._calls.patient(self._client.delete_payload_index, self._spec.name, field, wait=True)
        self._numbers.discard(field)

    async def _check_server(self) -> None:
        version = (await self._calls.patient(self._client.info)).version
        major, minor = (int(part) for part in version.split(".")[:2])
        if (major, minor) < OLDEST_SERVER:
            oldest = ".".join(map(str, OLDEST_SERVER))
            raise ValueError(
                f"{self._calls.server} is version {version}, expected {oldest} or newer; update the server"
            )

    async def _exists(self) -> bool:
        return await self._calls.patient(self._client.collection_exists, self._spec.name)

    async def _create(self) -> None:
        await self._calls.patient(
            self._client.create_collection,
            self._spec.name,
            vectors_config=models.VectorParams(size=self._stored_dim, distance=models.Distance.DOT),
            # In KB of vectors per segment. The default, 20,000, leaves 80,000 items of 64 dimensions unindexed.
            optimizers_config=models.OptimizersConfigDiff(indexing_threshold=2000),
            hnsw_config=models.HnswConfigDiff(m=16, ef_construct=100, full_scan_threshold=1000),
        )

    async def _create_index(self, field: str, kind: models.PayloadSchemaType) -> None:
        await self._calls.patient(self._client.create_payload_index, self._spec.name, field, kind, wait=True)


def _number_fields(info: models.CollectionInfo) -> set[str]:
    return {field for field in info.payload_schema if field.startswith("number_")}
