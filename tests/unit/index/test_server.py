"""What is the server's own: its collection, passing faults, and writers that meet."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import grpc
import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from headwater.encoder.features import item_key
from headwater.index import IndexRefused, IndexUnavailable, Point, Query
from headwater.index.fields import number_field
from headwater.index.server import ServerAddress, ServerIndex
from headwater.index.server_collection import Collection
from tests.contract import qdrant_stand_in
from tests.contract.qdrant_stand_in import StandIn

DIM = 4
ONE = np.ones(DIM, dtype=np.float32)


@pytest.fixture
async def stand_in() -> AsyncIterator[StandIn]:
    async with qdrant_stand_in.serving() as serving:
        yield serving


def connecting(stand_in: StandIn, **options: Any) -> Any:
    server = ServerAddress(stand_in.url, grpc_port=stand_in.port)
    return ServerIndex.connect(server._replace(**options), Collection("items-test", DIM))


@pytest.fixture
async def index(stand_in: StandIn) -> AsyncIterator[ServerIndex]:
    connected = await connecting(stand_in)
    yield connected
    await connected.close()


def item(item_id: str, *, version: int | None = None, offset: int = 0, **payload: Any) -> Point:
    return Point(item_key(item_id), item_id, ONE, payload, version, 0, offset)


async def test_collection_is_created_for_small_vectors_with_its_indexes(
    stand_in: StandIn, index: ServerIndex
) -> None:
    [request] = stand_in.created
    assert request.optimizers_config.indexing_threshold == 2000
    assert request.vectors_config.params.size == DIM + 1
    assert stand_in.indexes == {"words": "FieldTypeKeyword", "price": "FieldTypeFloat"}
    assert await index.collection.live("items") == "items-test"


async def test_numbers_get_an_index_at_once_for_few_names_and_for_more_once_many_items_have_them(
    stand_in: StandIn, index: ServerIndex
) -> None:
    await index.put(
        [item("a", attributes={"weight": 5, "colour": "red"}), item("b", attributes={"weight": 6})]
    )
    assert sorted(stand_in.indexes.values()) == ["FieldTypeFloat", "FieldTypeFloat", "FieldTypeKeyword"]
    await index.put([item(f"item {i}", attributes={f"n{i}": i}) for i in range(100)])
    assert sum(field.startswith("number_") for field in stand_in.indexes) == 16
    for names in (range(50), range(50, 100)):
        numbers = {f"n{i}": i for i in names}
        await index.put([item(f"of {names.start}, {n}", attributes=numbers) for n in range(16)])
    assert sum(field.startswith("number_") for field in stand_in.indexes) == 64


async def test_indexes_of_numbers_that_no_item_has_make_room(stand_in: StandIn, index: ServerIndex) -> None:
    """Not at once: the index of a new name comes before its first item."""
    numbers = {f"n{i}": i for i in range(64)}
    await index.put([item(f"item {n}", attributes=numbers | {"weight": -5}) for n in range(16)])
    await index.put([item("heavy", attributes={"weight": -5})])
    assert sum(field.startswith("number_") for field in stand_in.indexes) == 64
    gone = [item(f"item {n}", offset=1) for n in range(16)]
    await index.put([msgspec.structs.replace(each, vector=None) for each in gone])
    await index.sweep(0.0)
    assert sum(field.startswith("number_") for field in stand_in.indexes) == 64
    other = await connecting(stand_in)
    await index.sweep(0.0)
    assert {field for field in stand_in.indexes if field.startswith("number_")} <= {
        number_field("attributes.weight")
    }
    await other.sweep(0.0)  # it learns what is gone
    await other.put([item("new", attributes={"size": 38})])
    assert number_field("attributes.size") in stand_in.indexes
    await other.close()


async def test_an_index_of_numbers_that_few_items_have_goes_for_one_that_many_have(
    stand_in: StandIn, index: ServerIndex
) -> None:
    """They are counted on the server: a worker sees a part of the items, and not what became of them."""
    await index.put(
        [item(f"item {n}", attributes={f"n{i}": i for i in range(64) if i or n < 15}) for n in range(16)]
    )
    await index.put([item(f"heavy {n}", attributes={"weight": -5}) for n in range(30)])
    weight, rarest = number_field("attributes.weight"), number_field("attributes.n0")
    assert (weight in stand_in.indexes, rarest in stand_in.indexes) == (False, True)
    await index.sweep(0.0)
    assert weight not in stand_in.indexes, "it is on less than twice as many"
    await index.put([item("heavy 30", attributes={"weight": -5})])
    await index.sweep(0.0)
    assert (weight in stand_in.indexes, rarest in stand_in.indexes) == (True, False)
    assert sum(field.startswith("number_") for field in stand_in.indexes) == 64


async def test_another_connection_leaves_the_live_alias_alone(stand_in: StandIn, index: ServerIndex) -> None:
    other = await ServerIndex.connect(
        ServerAddress(stand_in.url, grpc_port=stand_in.port), Collection("items-next", DIM)
    )
    assert await other.collection.live("items") == "items-test"
    await other.close()


async def test_passing_faults_are_tried_again(stand_in: StandIn, index: ServerIndex) -> None:
    stand_in.fail_next = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED]
    await index.put([item("a")])
    stand_in.fail_next = [grpc.StatusCode.UNAVAILABLE] * 2
    [[hit]] = await index.search([Query(ONE, 5)])
    assert hit.item_id == "a"


async def test_lasting_fault_is_reported_after_a_bounded_number_of_tries(
    stand_in: StandIn, index: ServerIndex
) -> None:
    stand_in.fail_next = [grpc.StatusCode.UNAVAILABLE] * 10
    with pytest.raises(
        IndexUnavailable, match=r"did not answer in 3 tries of 5.0 s: UNAVAILABLE: told to fail"
    ):
        await index.search([Query(ONE, 5)])
    assert len(stand_in.fail_next) == 7


async def test_fault_that_will_not_pass_is_not_tried_again(stand_in: StandIn, index: ServerIndex) -> None:
    stand_in.fail_next = [grpc.StatusCode.INVALID_ARGUMENT] * 2
    with pytest.raises(grpc.aio.AioRpcError):
        await index.search([Query(ONE, 5)])
    assert len(stand_in.fail_next) == 1


@pytest.mark.parametrize(
    ("answer", "remedy"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "HEADWATER_QDRANT_API_KEY"),
        (grpc.StatusCode.NOT_FOUND, "start the catalog worker again, which makes the collection anew"),
    ],
)
async def test_put_that_is_refused_says_what_to_do(
    stand_in: StandIn, index: ServerIndex, answer: grpc.StatusCode, remedy: str
) -> None:
    stand_in.fail_next = [answer]
    with pytest.raises(
        IndexRefused, match=f"Qdrant at {stand_in.url} answered {answer.name}: .*; .*{remedy}"
    ):
        await index.put([item("a")])


async def test_server_that_is_not_there_is_named() -> None:
    with pytest.raises(IndexUnavailable, match=r"Qdrant at http://127.0.0.1:6333 did not answer in 2 tries"):
        await ServerIndex.connect(
            ServerAddress("http://127.0.0.1:6333", grpc_port=1, timeout_s=1.0, tries=2),
            Collection("items", DIM),
        )


async def test_server_too_old_for_conditional_writes_is_refused(stand_in: StandIn) -> None:
    stand_in.version = "1.15.4"
    with pytest.raises(ValueError, match=r"is version 1.15.4, expected 1.18 or newer; update the server"):
        await connecting(stand_in)


async def test_a_key_is_sent_and_where_it_is_sent_as_it_is_the_log_says_so_without_it(
    stand_in: StandIn,
) -> None:
    stand_in.api_key = "the-right-key"
    with pytest.raises(
        IndexUnavailable, match="UNAUTHENTICATED: Invalid API key or JWT; check HEADWATER_QDRANT"
    ):
        await connecting(stand_in, api_key="a-wrong-key")
    with capture_logs() as logged:
        index = await connecting(stand_in, api_key="the-right-key")
    await index.put([item("a")])
    await index.close()
    assert [(line["event"], line["url"]) for line in logged] == [
        ("qdrant_key_sent_unencrypted", stand_in.url)
    ]
    assert "-key" not in str(logged)


@pytest.mark.parametrize("fault", ["silent", "closed"])
async def test_reads_of_a_server_that_is_away_end_soon_and_begin_again_by_themselves(
    stand_in: StandIn, index: ServerIndex, fault: str
) -> None:
    await index.put([item("a")])
    stand_in.is_silent = fault == "silent"
    if fault == "closed":
        await stand_in.close_port()
    reads: list[Any] = [
        index.search([Query(ONE, 5)] * 1000),
        index.vectors([item_key("a")]),
        index.items(list(range(10_000))),
        index.match([item_key("a")], None),
    ]
    for read in reads:
        with pytest.raises(IndexUnavailable):
            await asyncio.wait_for(read, 3.0)
    stand_in.is_silent = False
    if fault == "closed":
        await stand_in.open_port()
    async with asyncio.timeout(10.0):
        while True:
            try:
                [hits] = await index.search([Query(ONE, 5)])
            except IndexUnavailable:
                await asyncio.sleep(0.05)
            else:
                break
    assert [hit.item_id for hit in hits] == ["a"]


async def test_newer_version_wins_over_a_writer_that_inserts_first(
    stand_in: StandIn, index: ServerIndex
) -> None:
    """Both have seen that the item is absent; the other one's insert arrives before ours."""
    other = await connecting(stand_in)
    stand_in.before_upsert = partial(other.put, [item("a", version=1, title="older")])
    await index.put([item("a", version=2, title="newer")])
    assert (await index.items([item_key("a")]))[item_key("a")]["title"] == "newer"
    stand_in.before_upsert = partial(other.put, [item("b", version=2, title="newer")])
    await index.put([item("b", version=1, title="older")])
    assert (await index.items([item_key("b")]))[item_key("b")]["title"] == "newer"
    await other.close()
