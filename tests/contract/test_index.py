"""What every index must do. Runs on the edge engine, on a stand-in that speaks Qdrant's gRPC, and on a Qdrant server
where HEADWATER_TEST_QDRANT_URL names one."""

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from headwater.encoder.features import item_key
from headwater.index import BadVector, Index, Point, Query
from headwater.index import server as index_server
from headwater.index.edge import EdgeIndex
from headwater.index.filters import And, Filter, FilterError, Range, admitting, parse
from headwater.index.server import ServerAddress, ServerIndex
from headwater.index.server_collection import Collection
from headwater.messages import OfferState
from tests.contract import qdrant_stand_in

DIM = 8
URL = os.environ.get("HEADWATER_TEST_QDRANT_URL")
no_server = pytest.mark.skipif(not URL, reason="HEADWATER_TEST_QDRANT_URL names no Qdrant server")


ENGINES = ["edge", "stand-in", pytest.param("server", marks=[pytest.mark.qdrant, no_server])]
SERVERS = ENGINES[1:]

Connect = Callable[..., Awaitable[ServerIndex]]


@asynccontextmanager
async def server(kind: str) -> AsyncIterator[Connect]:
    """How to connect to a collection there."""
    if kind == "stand-in":
        async with qdrant_stand_in.serving() as stand_in:
            yield connecting(ServerAddress(stand_in.url, grpc_port=stand_in.port))
    else:
        api_key = os.environ.get("HEADWATER_TEST_QDRANT_API_KEY")
        grpc_port = int(os.environ.get("HEADWATER_TEST_QDRANT_GRPC_PORT", "6334"))
        yield connecting(ServerAddress(URL or "", api_key, grpc_port))


def connecting(server: ServerAddress) -> Connect:
    async def connect(name: str, dim: int = DIM, alias: str | None = None) -> ServerIndex:
        return await ServerIndex.connect(server, Collection(name, dim, alias=alias))

    return connect


@asynccontextmanager
async def opened(kind: str, path: Path) -> AsyncIterator[Index]:
    if kind == "edge":
        edge = await EdgeIndex.open(path, DIM)
        yield edge
        await edge.close()
        return
    async with server(kind) as connect:
        index = await connect(f"items-test-{uuid.uuid4().hex}")
        with pytest.MonkeyPatch.context() as patch:
            # What is tested is what comes, not when: the machine may be busy.
            patch.setattr(index_server, "LOOK_UP_S", 60.0)
            patch.setattr(index_server, "SEARCH_S", 60.0)
            yield index
        await index.collection.drop()
        await index.close()


@pytest.fixture(params=ENGINES)
async def index(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Index]:
    async with opened(request.param, tmp_path) as opened_index:
        yield opened_index


@pytest.fixture(params=SERVERS)
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    async with server(request.param) as connect:
        yield connect


def unit(direction: int) -> NDArray[np.float32]:
    return np.eye(DIM, dtype=np.float32)[direction]


def item(
    item_id: str,
    vector: NDArray[np.float32] | None = None,
    *,
    version: int | None = None,
    offset: int = 0,
    **payload: Any,
) -> Point:
    vector = unit(0) if vector is None else vector
    return Point(item_key(item_id), item_id, vector, {"title": item_id, **payload}, version, 0, offset)


def mark(item_id: str, *, version: int | None = None, offset: int) -> Point:
    return Point(item_key(item_id), item_id, None, {}, version, 0, offset)


async def found(index: Index, where: Filter | None = None, exclude: frozenset[int] = frozenset()) -> set[str]:
    [hits] = await index.search([Query(np.ones(DIM, dtype=np.float32), 1000, where, exclude)])
    return {hit.item_id for hit in hits}


async def title(index: Index, item_id: str) -> Any:
    return (await index.items([item_key(item_id)])).get(item_key(item_id), {}).get("title")


# -- searching ---------------------------------------------------------------------------------------------------------


async def test_empty_index_answers_with_nothing(index: Index) -> None:
    assert await index.search([]) == []
    assert await index.search([Query(unit(0), 10), Query(unit(1), 10)]) == [[], []]
    assert await index.count() == 0
    assert await index.vectors([1]) == {}
    assert await index.items([1]) == {}
    assert await index.match([1], None) == {}
    await index.put([])


async def test_nearest_come_first_by_dot_product_of_vectors_as_they_are(index: Index) -> None:
    await index.put(
        [item("short", unit(0)), item("long", 3 * unit(0)), item("other", unit(1)), item("against", -unit(0))]
    )
    [hits] = await index.search([Query(2 * unit(0), 10)])
    assert [hit.item_id for hit in hits] == ["long", "short", "other", "against"]
    assert [hit.score for hit in hits] == pytest.approx([6, 2, 0, -2])
    assert hits[0].key == item_key("long")


async def test_limit_bounds_the_hits(index: Index) -> None:
    await index.put([item(f"item {i}", (i + 1) * unit(0)) for i in range(30)])
    [few, one] = await index.search([Query(unit(0), 7), Query(unit(0), 1)])
    assert [hit.item_id for hit in few] == [f"item {i}" for i in range(29, 22, -1)]
    assert [hit.item_id for hit in one] == ["item 29"]


async def test_batch_answers_in_the_order_of_its_queries(index: Index) -> None:
    await index.put([item(f"item {i}", unit(i)) for i in range(DIM)])
    order = [3, 0, 7, 3, 1, 6, 2, 5, 4, 0] * 20
    answers = await index.search([Query(unit(i), 1) for i in order])
    assert [hits[0].item_id for hits in answers] == [f"item {i}" for i in order]


async def test_excluded_items_are_not_found(index: Index) -> None:
    await index.put([item(f"item {i}", (i + 1) * unit(0)) for i in range(1200)])
    exclude = frozenset(item_key(f"item {i}") for i in range(200, 1200))
    [hits, unknown] = await index.search(
        [Query(unit(0), 1000, None, exclude), Query(unit(0), 2, None, frozenset({5}))]
    )
    assert [hit.item_id for hit in hits] == [f"item {i}" for i in range(199, -1, -1)]
    assert [hit.item_id for hit in unknown] == ["item 1199", "item 1198"]


@pytest.mark.parametrize("excluded", [1, 100, 101, 1024, 1025, 1300])
async def test_exclusions_never_shorten_the_answer(index: Index, excluded: int) -> None:
    await index.put(
        [item(f"item {i}", (i + 1) * unit(0), category="even" * (i % 2 == 0)) for i in range(1400)]
    )
    exclude = frozenset(item_key(f"item {i}") for i in range(1400 - excluded, 1400))
    even = parse({"category": "even"})
    [hits, evens] = await index.search([Query(unit(0), 40, None, exclude), Query(unit(0), 40, even, exclude)])
    left = range(1400 - excluded - 1, -1, -1)
    assert [hit.item_id for hit in hits] == [f"item {i}" for i in left][:40]
    assert [hit.item_id for hit in evens] == [f"item {i}" for i in left if i % 2 == 0][:40]


async def test_unavailable_items_are_found_only_where_the_filter_asks(index: Index) -> None:
    await index.put([item("here", available=True), item("gone", available=False), item("unsaid")])
    keys = [item_key(name) for name in ("here", "gone", "unsaid", "unknown")]
    for raw, expected in [
        (None, {"here", "unsaid"}),
        ({"available": True}, {"here", "unsaid"}),
        ({"available": False}, {"gone"}),
        ({"available": {"any": [True, False]}}, {"here", "gone", "unsaid"}),
        ({"not": {"available": True}}, {"gone"}),
        ({}, {"here", "unsaid"}),
    ]:
        where = None if raw is None else parse(raw)
        assert await found(index, where) == expected
        assert await index.match(keys, where) == {item_key(name): name for name in expected}
    assert await index.count() == 3
    assert set(await index.items(keys)) == set(await index.vectors(keys)) == set(keys[:3])


async def test_what_came_in_since_a_moment_is_found_to_the_millisecond(index: Index) -> None:
    moment = 1_700_000_000_000
    await index.put(
        [
            item("before", since_ms=moment - 1),
            item("then", since_ms=moment),
            item("later", since_ms=moment + 1, category="garden"),
            item("unsaid", since_ms=None),
        ]
    )
    new = Range("since_ms", gte=float(moment))
    assert await found(index, new) == {"then", "later"}
    assert await found(index, And((parse({"category": "garden"}), new))) == {"later"}
    assert await found(index, parse({"since_ms": {"lt": moment}})) == {"before"}


# -- reading back ------------------------------------------------------------------------------------------------------


async def test_vectors_and_payloads_come_back_as_they_went_in(index: Index) -> None:
    vector = np.linspace(-2, 2, DIM, dtype=np.float32)
    payload = {
        "category": "garden",
        "tags": ["a", "b"],
        "price": 9.99,
        "available": True,
        "attributes": {"colour": "rot", "weight": 7, "fair": False, 'odd "name" [0].x': "y"},
    }
    await index.put([item("rake", vector, **payload), item("bare")])
    keys = [item_key("rake"), item_key("bare"), item_key("unknown")]
    vectors = await index.vectors(keys)
    assert set(vectors) == set(keys[:2])
    assert vectors[keys[0]].dtype == np.float32
    np.testing.assert_array_equal(vectors[keys[0]], vector)
    assert await index.items(keys) == {
        keys[0]: {"item_id": "rake", "title": "rake", **payload},
        keys[1]: {"item_id": "bare", "title": "bare"},
    }


async def test_vectors_read_are_not_changed_by_later_puts(index: Index) -> None:
    await index.put([item("a", unit(0), offset=1)])
    before = (await index.vectors([item_key("a")]))[item_key("a")]
    await index.put([item("a", unit(1), offset=2)])
    np.testing.assert_array_equal(before, unit(0))


@pytest.mark.parametrize("item_id", ["ж☕️ item", "a\x00b", "x" * 512, '"quoted" \\ ', "-", "0"])
async def test_any_text_can_be_an_item_id(index: Index, item_id: str) -> None:
    await index.put([item(item_id, category=item_id)])
    assert await found(index) == {item_id}
    assert await found(index, parse({"item_id": item_id, "category": item_id})) == {item_id}
    assert (await index.items([item_key(item_id)]))[item_key(item_id)]["item_id"] == item_id


async def test_keys_use_all_sixty_four_bits(index: Index) -> None:
    top = next(name for name in (f"item {i}" for i in range(100)) if item_key(name) >= 1 << 63)
    await index.put([item(top)])
    [[hit]] = await index.search([Query(unit(0), 1)])
    assert hit.key == item_key(top)
    assert await found(index, None, frozenset({item_key(top)})) == set()


# -- versions ----------------------------------------------------------------------------------------------------------


async def test_newer_version_replaces_and_older_is_ignored(index: Index) -> None:
    await index.put([item("a", unit(0), version=2, offset=10, title="second", category="old")])
    await index.put([item("a", unit(1), version=3, offset=5, title="third", category="new")])
    await index.put([item("a", unit(2), version=2, offset=99, title="late", category="late")])
    assert await title(index, "a") == "third"
    assert await found(index, parse({"category": "new"})) == {"a"}
    assert await found(index, parse({"category": {"any": ["old", "late"]}})) == set()
    [[hit]] = await index.search([Query(unit(1), 5)])
    assert hit.score == pytest.approx(1)
    assert await index.count() == 1


async def test_offset_decides_between_equal_versions(index: Index) -> None:
    await index.put([item("a", version=2, offset=10, title="first")])
    await index.put([item("a", version=2, offset=9, title="earlier")])
    assert await title(index, "a") == "first"
    await index.put([item("a", version=2, offset=11, title="later")])
    assert await title(index, "a") == "later"


async def test_missing_version_inherits_the_stored_one(index: Index) -> None:
    await index.put([item("a", version=7, offset=10, title="versioned")])
    await index.put([item("a", offset=9, title="earlier")])
    assert await title(index, "a") == "versioned"
    await index.put([item("a", offset=11, title="unversioned")])
    assert await title(index, "a") == "unversioned"
    await index.put([item("a", version=6, offset=12, title="older")])
    assert await title(index, "a") == "unversioned"


async def test_any_version_is_newer_than_none(index: Index) -> None:
    await index.put([item("a", offset=10, title="none")])
    await index.put([item("a", version=-5, offset=3, title="minus five")])
    assert await title(index, "a") == "minus five"


@pytest.mark.parametrize("version", [2**53 + 1, 1_700_000_000_000_000_001, 2**62, -(2**62)])
async def test_versions_are_compared_exactly(index: Index, version: int) -> None:
    await index.put([item("a", version=version, offset=5, title="first")])
    await index.put([item("a", version=version - 1, offset=9, title="older")])
    assert await title(index, "a") == "first"
    await index.put([item("a", version=version + 1, offset=1, title="newer")])
    assert await title(index, "a") == "newer"


async def test_repeated_put_changes_nothing(index: Index) -> None:
    points = [item(f"item {i}", unit(i % DIM), offset=i, category="c") for i in range(300)]
    for _ in range(2):
        await index.put(points)
        assert await index.count() == 300
        assert len(await found(index, parse({"category": "c"}))) == 300


async def test_one_batch_may_hold_several_versions_of_an_item(index: Index) -> None:
    versions = [
        item("a", offset=1, title="one"),
        item("b"),
        item("a", offset=3, title="three"),
        item("a", offset=2),
    ]
    await index.put(versions)
    assert await title(index, "a") == "three"
    await index.put(
        [item("c", offset=1), mark("c", offset=2), mark("b", offset=5), item("b", offset=6, title="back")]
    )
    assert await found(index) == {"a", "b"}
    assert await title(index, "b") == "back"


async def test_deleted_item_is_nowhere(index: Index) -> None:
    await index.put(
        [item("a", offset=1, category="c", price=1.0), item("b", offset=2, category="c", price=1.0)]
    )
    await index.put([mark("a", offset=3)])
    key = item_key("a")
    assert await found(index) == {"b"}
    for raw in (
        {"category": "c"},
        {"price": {"lt": 2}},
        {"item_id": {"any": ["a", "b"]}},
        {"available": True},
    ):
        assert await found(index, parse(raw)) == {"b"}
    for raw in ({"not": {"category": "c"}}, {"available": False}, {"not": {"available": True}}):
        assert await found(index, parse(raw)) == set()
        assert await index.match([key], parse(raw)) == {}
    assert await index.count() == 1
    assert (await index.items([key]), await index.vectors([key]), await index.match([key], None)) == (
        {},
        {},
        {},
    )


async def test_deleted_stays_deleted_when_an_older_version_arrives_late(index: Index) -> None:
    await index.put([item("a", version=3, offset=10)])
    await index.put([mark("a", offset=11)])
    await index.put([item("a", version=2, offset=12), item("a", version=3, offset=10), item("a", offset=9)])
    assert await found(index) == set()


async def test_newer_version_returns_after_a_delete(index: Index) -> None:
    await index.put([item("a", version=3, offset=10)])
    await index.put([mark("a", offset=11)])
    await index.put([item("a", unit(1), version=3, offset=12, title="back")])
    assert await found(index) == {"a"}
    assert await title(index, "a") == "back"
    np.testing.assert_array_equal((await index.vectors([item_key("a")]))[item_key("a")], unit(1))


async def test_delete_of_an_unknown_item_leaves_a_mark(index: Index) -> None:
    await index.put([mark("a", version=4, offset=10)])
    assert await index.count() == 0
    await index.put([item("a", version=3, offset=12)])
    assert await found(index) == set()
    await index.put([item("a", version=5, offset=13)])
    assert await found(index) == {"a"}


async def test_late_delete_does_not_remove_a_newer_version(index: Index) -> None:
    await index.put([item("a", version=3, offset=10)])
    await index.put([mark("a", offset=9), mark("a", version=2, offset=99)])
    assert await found(index) == {"a"}


async def test_item_whose_key_another_one_holds_is_refused_and_the_rest_is_stored(index: Index) -> None:
    await index.put([item("a")])
    thief = Point(item_key("a"), "thief", unit(1), {}, 9, 0, 9)
    stored = await index.put([thief, item("b")])
    assert [point.item_id for point in stored.points] == ["b"]
    ((refused, holder),) = stored.collisions
    assert (refused.item_id, holder) == ("thief", "a")
    assert await found(index) == {"a", "b"}


async def test_what_was_not_newer_is_not_told_as_stored(index: Index) -> None:
    await index.put([item("a", version=3, offset=10)])
    stored = await index.put([item("a", version=2, offset=12), mark("b", offset=1)])
    assert [point.item_id for point in stored.points] == ["b"]
    assert stored.collisions == []


async def test_marks_of_deletions_are_swept_and_items_stay(index: Index) -> None:
    await index.put([item("a", offset=10), item("b", offset=11)])
    await index.put([mark("b", offset=12)])
    await index.sweep(time.time() - 3_600)
    await index.put([item("b", offset=9)])
    assert await found(index) == {"a"}, "a mark of this hour is kept"
    await index.sweep(time.time() + 3_600)
    await index.put([item("b", offset=9)])
    assert await found(index) == {"a", "b"}


# -- bad vectors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
async def test_vector_that_is_not_finite_reaches_no_engine(index: Index, bad: float) -> None:
    broken = unit(0).copy()
    broken[3] = bad
    with pytest.raises(BadVector, match=r"item 'broken': got a vector with NaN or infinity"):
        await index.put([item("fine"), item("broken", broken)])
    assert await index.count() == 0
    with pytest.raises(BadVector, match="query"):
        await index.search([Query(broken, 5)])


@pytest.mark.parametrize("shape", [(DIM - 1,), (DIM + 1,), (1, DIM), (0,)])
async def test_vector_of_another_dimension_reaches_no_engine(index: Index, shape: tuple[int, ...]) -> None:
    with pytest.raises(BadVector, match=r"got a vector of shape \(.*\), expected \(8,\)"):
        await index.put([item("fine"), item("broken", np.ones(shape, dtype=np.float32))])
    assert await index.count() == 0
    with pytest.raises(BadVector, match="query"):
        await index.search([Query(np.ones(shape, dtype=np.float32), 5)])


# -- filters -----------------------------------------------------------------------------------------------------------

# Few values, so that items and filters meet; odd ones among them.
words = st.sampled_from(["", "a", "b", "a=b", "true", "1", "ж ☕", "x\x00y", 'q"q', "garden"])
names = st.sampled_from(["x", "y", "a=b", "a.b", 'q"[0]', "ж"])
numbers = st.sampled_from([0, -0.0, 1, 1.0, 2.5, -7, 1e300, 5e-324, 2**53 + 1, 0.1])
attribute = st.one_of(
    words, numbers, st.booleans(), st.lists(st.one_of(words, numbers, st.booleans()), max_size=3)
)
payloads = st.fixed_dictionaries(
    {},
    optional={
        "category": words,
        "tags": st.lists(words, max_size=3),
        "price": numbers,
        "available": st.booleans(),
        "since_ms": numbers,
        "attributes": st.dictionaries(names, attribute, max_size=4),
    },
)
bounds = st.dictionaries(st.sampled_from(["gte", "gt", "lte", "lt"]), numbers, min_size=1, max_size=2)


def one_or_any(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return values | st.lists(values, min_size=1, max_size=3).map(lambda chosen: {"any": chosen})


def entry(
    name: st.SearchStrategy[str], condition: st.SearchStrategy[Any]
) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(name, condition).map(lambda pair: {pair[0]: pair[1]})


conditions = st.one_of(
    entry(st.sampled_from(["category", "tags"]), one_or_any(words)),
    entry(st.sampled_from(["price", "since_ms"]), one_or_any(numbers) | bounds),
    entry(st.just("available"), one_or_any(st.booleans())),
    entry(st.just("item_id"), one_or_any(st.sampled_from([f"item {i}" for i in range(10)]))),
    entry(names.map("attributes.".__add__), one_or_any(st.one_of(words, numbers, st.booleans())) | bounds),
)
filters = st.recursive(
    conditions,
    lambda inner: st.one_of(
        entry(st.just("not"), inner),
        entry(st.sampled_from(["and", "or"]), st.lists(inner, min_size=1, max_size=3)),
        st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1]),
    ),
    max_leaves=6,
).filter(lambda raw: _is_within_the_caps(raw))


def _is_within_the_caps(raw: dict[str, Any]) -> bool:
    try:
        parse(raw)
    except FilterError as refused:
        return "at most" not in str(refused)
    return True


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_engine_finds_exactly_what_the_filter_means(index_runner: "Runner", data: st.DataObject) -> None:
    payload_list = data.draw(st.lists(payloads, min_size=1, max_size=8))
    wheres = data.draw(st.lists(filters, min_size=1, max_size=5))
    items = {f"item {i}": payload for i, payload in enumerate(payload_list)}

    async def check(index: Index) -> None:
        offset = index_runner.next_offset()
        gone = [mark(f"item {i}", offset=offset) for i in range(len(items), 8)]
        await index.put([item(name, offset=offset, **payload) for name, payload in items.items()] + gone)
        for raw in wheres:
            where = parse(raw)
            admits = admitting(where)
            expected = {name for name, payload in items.items() if admits({"item_id": name, **payload})}
            assert await found(index, where) == expected
            keys = [item_key(name) for name in items]
            assert await index.match(keys, where) == {item_key(name): name for name in expected}

    index_runner.run(check)


class Runner:
    """Runs examples on one index in one event loop: a new shard per example would take most of the time."""

    def __init__(self, run: Callable[[Callable[[Index], Awaitable[None]]], None]) -> None:
        self.run = run
        self._offset = 0

    def next_offset(self) -> int:
        self._offset += 1
        return self._offset


@pytest.fixture(params=ENGINES)
def index_runner(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Runner]:
    with asyncio.Runner() as loop:
        opening = opened(request.param, tmp_path)
        index = loop.run(opening.__aenter__())

        async def call(check: Callable[[Index], Awaitable[None]]) -> None:
            await check(index)

        yield Runner(lambda check: loop.run(call(check)))
        loop.run(opening.__aexit__(None, None, None))


# -- the server alone --------------------------------------------------------------------------------------------------


async def test_server_keeps_items_and_marks_over_a_new_connection(connect: Connect) -> None:
    collection = f"items-test-{uuid.uuid4().hex}"
    first = await connect(collection)
    try:
        await first.put(
            [item("a", version=3, offset=1, attributes={"weight": 5}), item("b", version=3, offset=2)]
        )
        await first.put([mark("b", offset=3)])
        second = await connect(collection)
        try:
            await second.put([item("b", version=2, offset=4)])
            assert await found(second) == {"a"}
            assert await found(second, parse({"attributes.weight": {"gt": 4}})) == {"a"}
            await second.sweep(before_s=0.0)
            await second.put([item("b", version=2, offset=5)])
            assert await found(second) == {"a"}
            await second.sweep(before_s=1e12)
            await second.put([item("b", version=2, offset=5)])
            assert await found(second) == {"a", "b"}
        finally:
            await second.close()
        with pytest.raises(ValueError, match=r"expected vectors of 9 \+ 1 dimensions"):
            await connect(collection, dim=DIM + 1)
    finally:
        await first.collection.drop()
        await first.close()


async def test_alias_names_the_live_collection_and_moves_in_one_step(connect: Connect) -> None:
    alias = f"test-{uuid.uuid4().hex}"
    old, new = [await connect(f"items-{alias}-{i}", alias=alias) for i in (1, 2)]
    try:
        await old.put([item("in the old one")])
        await new.put([item("in the new one")])
        assert await old.collection.live(alias) == await new.collection.live(alias) == f"items-{alias}-1"
        await new.collection.make_live(alias)
        assert await old.collection.live(alias) == f"items-{alias}-2"
        assert await old.collection.live(f"{alias}-unknown") is None
    finally:
        for each in (old, new):
            await each.collection.drop()
            await each.close()


async def test_two_that_open_a_new_collection_at_once_both_get_it(connect: Connect) -> None:
    collection = f"items-test-{uuid.uuid4().hex}"
    both = await asyncio.gather(connect(collection), connect(collection))
    try:
        await both[0].put([item("a")])
        assert await found(both[1]) == {"a"}
    finally:
        await both[0].collection.drop()
        for each in both:
            await each.close()


# -- offers ------------------------------------------------------------------------------------------------------------


def state(item_id: str, revision: int, **fields: Any) -> OfferState:
    return OfferState(item_id, revision, **fields)


async def test_offers_change_filters_and_payload_and_neither_vector_nor_version(index: Index) -> None:
    await index.put(
        [
            item("tea", price=5.0, available=True, category="grocery", at_ms=1_000, offset=4),
            item("soap", price=5.0, available=True, at_ms=1_000, offset=5),
        ]
    )
    cheap = parse({"price": {"lt": 3}})
    assert await found(index, cheap) == set()
    on_sale = state("tea", 1, price=2.0, price_ms=2_000, attributes={"stock": (4.0, 2_000)})
    await index.put_offers([on_sale, state("nobody", 1, price=1.0, price_ms=2_000)])
    assert await found(index, cheap) == {"tea"}
    assert await found(index, parse({"attributes.stock": {"gte": 4}})) == {"tea"}
    assert await found(index, parse({"category": "grocery"})) == {"tea"}
    sold_out = state("tea", 2, price=2.0, price_ms=2_000, available=False, available_ms=3_000)
    await index.put_offers([sold_out])
    assert await found(index) == {"soap"}
    assert await index.match([item_key("tea"), item_key("soap")], None) == {item_key("soap"): "soap"}
    assert np.array_equal((await index.vectors([item_key("tea")]))[item_key("tea")], unit(0))
    held = (await index.items([item_key("tea")]))[item_key("tea")]
    assert (held["title"], held["category"], held["price"], held["available"]) == (
        "tea",
        "grocery",
        2.0,
        False,
    )
    assert await index.count() == 2
    assert (await index.put([item("tea", offset=4, at_ms=1_000)])).points == [], "its version is what it was"


async def test_an_item_is_put_with_its_offers_by_time(index: Index) -> None:
    offers = state("tea", 1, available=False, available_ms=2_000)
    old = item("tea", offset=1, available=True, at_ms=1_000)
    await index.put([msgspec.structs.replace(old, offers=offers)])
    assert await found(index) == set()
    newer = item("tea", offset=2, available=True, at_ms=3_000)
    await index.put([msgspec.structs.replace(newer, offers=offers)])
    assert await found(index) == {"tea"}
    await index.put_offers([state("tea", 2, available=False, available_ms=4_000)])
    assert await found(index) == set()
    await index.put([mark("tea", offset=3)])
    await index.put_offers([state("tea", 3, available=True, available_ms=5_000)])
    assert await index.items([item_key("tea")]) == {}
    assert await found(index) == set()


async def test_a_late_writers_older_offers_do_not_come_back_to_a_shared_index(connect: Connect) -> None:
    index = await connect(f"items-test-{uuid.uuid4().hex}")
    await index.put([item("tea", available=True, at_ms=1_000)])
    await index.put_offers([state("tea", 5, available=False, available_ms=3_000)])
    await index.put_offers([state("tea", 4, available=True, available_ms=2_000)])
    assert await found(index) == set()
    await index.collection.drop()
    await index.close()
