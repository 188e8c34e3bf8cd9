"""The item vectors in reach of the encoder: what is fetched, kept, forgotten, and never lost."""

import asyncio
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from headwater.index.item_vectors import ItemVectors

F32 = NDArray[np.float32]


def vector(number: float) -> F32:
    return np.full(2, number, dtype=np.float32)


class Shelf:
    """An index that counts how often it is asked."""

    def __init__(self, keys: Sequence[int]) -> None:
        self.stored = {key: vector(key) for key in keys}
        self.asked: list[list[int]] = []

    async def fetch(self, keys: Sequence[int]) -> Mapping[int, F32]:
        self.asked.append(sorted(keys))
        found = {key: self.stored[key] for key in keys if key in self.stored}
        await asyncio.sleep(0)
        return found


def held(vectors: ItemVectors, key: int) -> list[float]:
    (row,) = vectors.rows([key])
    assert row > 0, f"{key} is not held"
    return vectors.matrix[row].tolist()


def test_row_zero_stays_zero_for_padding() -> None:
    vectors = ItemVectors(2)
    for key in range(5_000):
        vectors.put(key, vector(1))
    assert not vectors.matrix[0].any()
    assert sorted(vectors.rows(range(5_000)).tolist()) == list(range(1, 5_001))


def test_an_unknown_item_has_no_row() -> None:
    assert ItemVectors(2).rows([4]).tolist() == [-1]


def test_an_item_put_again_keeps_its_row_and_takes_the_new_vector() -> None:
    vectors = ItemVectors(2)
    vectors.put(4, vector(1))
    vectors.put(4, vector(2))
    assert held(vectors, 4) == [2, 2]
    assert len(vectors) == 1


def test_rows_of_removed_items_are_used_again() -> None:
    vectors = ItemVectors(2)
    vectors.put(4, vector(4))
    (row,) = vectors.rows([4])
    vectors.remove(4)
    vectors.remove(4)
    vectors.put(5, vector(5))
    assert vectors.rows([4, 5]).tolist() == [-1, row]
    assert held(vectors, 5) == [5, 5]


async def test_only_what_is_missing_is_fetched_and_only_once() -> None:
    shelf = Shelf([1, 2, 3])
    vectors = ItemVectors(2, fetch=shelf.fetch)
    await vectors.ensure([1, 2])
    await vectors.ensure([2, 3, 3])
    await vectors.ensure([1, 2, 3])
    assert shelf.asked == [[1, 2], [3]]
    assert held(vectors, 3) == [3, 3]


async def test_an_item_that_nobody_knows_is_looked_up_once() -> None:
    shelf = Shelf([])
    vectors = ItemVectors(2, fetch=shelf.fetch)
    await vectors.ensure([9])
    await vectors.ensure([9])
    assert shelf.asked == [[9]]
    assert 9 not in vectors


async def test_the_vector_of_an_item_that_was_missed_comes_with_the_news() -> None:
    vectors = ItemVectors(2, fetch=Shelf([]).fetch)
    await vectors.ensure([9])
    vectors.changed(9, vector(9))
    assert held(vectors, 9) == [9, 9]


async def test_news_of_items_that_nobody_asked_for_is_not_kept_where_it_can_be_fetched() -> None:
    vectors = ItemVectors(2, fetch=Shelf([]).fetch)
    vectors.changed(9, vector(9))
    assert 9 not in vectors
    everything = ItemVectors(2)
    everything.changed(9, vector(9))
    assert 9 in everything


async def test_news_during_a_fetch_is_newer_than_what_is_fetched() -> None:
    shelf = Shelf([1])
    vectors = ItemVectors(2, fetch=shelf.fetch)
    fetching = asyncio.ensure_future(vectors.ensure([1, 2]))
    await asyncio.sleep(0)
    assert shelf.asked == [[1, 2]]
    vectors.changed(1, vector(10))
    vectors.changed(2, vector(20))
    await fetching
    assert held(vectors, 1) == [10, 10]
    assert held(vectors, 2) == [20, 20]


async def test_the_bound_holds_and_never_costs_what_was_just_asked_for() -> None:
    shelf = Shelf(range(200))
    vectors = ItemVectors(2, fetch=shelf.fetch, bound=10)
    await vectors.ensure(range(10))
    await vectors.ensure([0, 1, 50])
    for key in (0, 1, 50):
        assert held(vectors, key) == [key, key]
    for start in range(0, 200, 4):
        await vectors.ensure(range(start, start + 4))
        assert (vectors.rows(range(start, start + 4)) > 0).all()
        assert len(vectors) <= 14


async def test_a_failed_fetch_leaves_nothing_behind() -> None:
    shelf = Shelf([1])

    async def broken(keys: Sequence[int]) -> Mapping[int, F32]:
        raise ConnectionError("away")

    vectors = ItemVectors(2, fetch=broken)
    for _ in range(2):
        try:
            await vectors.ensure([1])
        except ConnectionError:
            pass
        else:
            raise AssertionError("the failure was swallowed")
    vectors._fetch = shelf.fetch
    await vectors.ensure([1])
    assert held(vectors, 1) == [1, 1]
