"""The catalog as points of a plane, and its search."""

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray

from headwater.encoder.features import item_key
from headwater.encoder.runtime import Encoder
from headwater.index import Point
from headwater.index.edge import EdgeIndex
from headwater.index.item_vectors import ItemVectors
from headwater.worker.catalog_map import CatalogMap, axes_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

F32 = NDArray[np.float32]
DIM = 6
KINDS = ("tea", "coffee")


def vector(kind: int, number: int) -> F32:
    found = np.full(DIM, 0.02 * number, dtype=np.float32)
    found[kind] = 1.0
    return found


class Texts:
    """An encoder that knows which kind a text speaks of."""

    id, item_inputs = "bundle", "text"

    def encode_items(self, texts: list[str]) -> F32:
        return np.stack([vector(KINDS.index("coffee" if "bean" in text else "tea"), 0) for text in texts])


class Shop(SimpleNamespace):
    index: EdgeIndex
    vectors: ItemVectors
    map: CatalogMap


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    index = await EdgeIndex.open(tmp_path_factory.mktemp("index"), DIM)
    vectors = ItemVectors(DIM)
    await add(index, vectors, 5)
    yield Shop(index=index, vectors=vectors, map=CatalogMap(index, vectors, cast(Encoder, Texts())))
    await index.close()


async def add(index: EdgeIndex, vectors: ItemVectors, count: int, start: int = 0) -> None:
    points = []
    for kind, name in enumerate(KINDS):
        for number in range(start, start + count):
            item_id = f"{name}-{number}"
            payload = {"item_id": item_id, "title": f"<b>{name.title()}</b> no {number}", "category": name}
            points.append(Point(item_key(item_id), item_id, vector(kind, number), payload, None, 0, number))
            vectors.put(item_key(item_id), vector(kind, number))
    await index.put(points)


async def body(one: CatalogMap) -> dict[str, Any]:
    return cast(dict[str, Any], msgspec.json.decode((await one.packed()).body))


async def test_kinds_lie_apart_and_each_point_has_its_item(shop: Shop) -> None:
    said = await body(shop.map)
    assert (said["items"], said["shown"], said["bundle"]) == (10, 10, "bundle")
    assert sorted(said["categories"]) == sorted(KINDS)
    sides: dict[str, set[bool]] = {}
    for item_id, title, place, x, y in zip(
        *(said[name] for name in ("ids", "titles", "category", "x", "y")), strict=True
    ):
        assert title == f"<b>{item_id.split('-')[0].title()}</b> no {item_id.split('-')[1]}"
        assert said["categories"][place] == item_id.split("-")[0]
        assert -1 <= x <= 1
        assert -1 <= y <= 1
        sides.setdefault(item_id.split("-")[0], set()).add(x > 0)
    assert sorted(sides.values()) == [{False}, {True}] or sorted(sides.values()) == [{True}, {False}]
    assert said["spread"][0] > 0.9


async def test_the_same_vectors_give_the_same_axes_whatever_their_length() -> None:
    rows = np.random.default_rng(3).normal(size=(50, DIM)).astype(np.float32)
    one, other = axes_of(rows, 50), axes_of(rows * 7.0, 50)
    np.testing.assert_allclose(one.places(rows), other.places(rows * 3.0), atol=2e-4)
    assert np.abs(one.places(rows)).max() <= 1.0


async def test_one_item_and_one_dimension_have_a_place() -> None:
    assert axes_of(np.ones((1, 4), dtype=np.float32), 1).places(np.ones((1, 4), dtype=np.float32)) == [
        (0.0, 0.0)
    ]
    flat = axes_of(np.array([[1.0], [-1.0]], dtype=np.float32), 2)
    assert [y for _, y in flat.places(np.ones((1, 1), dtype=np.float32))] == [0.0]


async def test_an_item_is_found_by_its_id_then_by_its_title_then_by_what_it_is_like(shop: Shop) -> None:
    assert [each["item_id"] for each in await shop.map.search("tea-3", 1)] == ["tea-3"]
    by_title = await shop.map.search("COFFEE 4", 3)
    assert by_title[0]["item_id"] == "coffee-4"
    assert (by_title[0]["category"], by_title[0]["available"]) == ("coffee", True)
    like = await shop.map.search("something of beans", 3)
    assert {each["category"] for each in like} == {"coffee"}
    assert await shop.map.search("  ", 3) == []


async def test_what_is_like_a_text_comes_before_what_only_has_a_long_vector(tmp_path: Path) -> None:
    """The vector of an item that everybody takes is long: its dot product with anything is high."""
    index, vectors = await EdgeIndex.open(tmp_path, DIM), ItemVectors(DIM)
    await add(index, vectors, 5)
    popular = np.full(DIM, 9.0, dtype=np.float32)
    payload = {"item_id": "bananas", "title": "Bananas", "category": "fruit"}
    await index.put([Point(item_key("bananas"), "bananas", popular, payload, None, 0, 99)])
    vectors.put(item_key("bananas"), popular)
    found = await CatalogMap(index, vectors, cast(Encoder, Texts())).search("something of beans", 3)
    assert {each["category"] for each in found} == {"coffee"}
    await index.close()


async def test_items_have_the_places_that_they_have_on_the_map(shop: Shop) -> None:
    said = await body(shop.map)
    at = dict(zip(said["ids"], zip(said["x"], said["y"], strict=True), strict=True))
    found = await shop.map.items(["tea-1", "nothing", "coffee-2"])
    assert {item_id: (each["x"], each["y"]) for item_id, each in found.items()} == {
        item_id: at[item_id] for item_id in ("tea-1", "coffee-2")
    }


async def test_a_catalog_that_has_nothing_yet_is_an_empty_map(tmp_path: Path) -> None:
    index = await EdgeIndex.open(tmp_path, DIM)
    empty = CatalogMap(index, ItemVectors(DIM), cast(Encoder, Texts()))
    said = await body(empty)
    assert (said["shown"], said["ids"], said["spread"]) == (0, [], [])
    assert await empty.search("tea", 5) == []
    assert await empty.places(np.ones((2, DIM), dtype=np.float32)) == [None, None]
    await index.close()


async def test_axes_stay_until_the_catalog_has_doubled(shop: Shop) -> None:
    before = (await shop.map.items(["tea-1"]))["tea-1"]
    await add(shop.index, shop.vectors, 2, start=5)
    assert (await shop.map.items(["tea-1"]))["tea-1"] == before
    await add(shop.index, shop.vectors, 20, start=40)
    assert (await shop.map.items(["tea-1"]))["tea-1"] != before
