"""What is popular and matches, also where the index does not say what matches."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from headwater.index import IndexUnavailable
from headwater.index.filters import Filter, parse
from headwater.recall.popularity import PopularItem
from headwater.recall.sources import Ask, Filled
from headwater.recall.sources.popular import Popular

pytestmark = pytest.mark.asyncio

POPULAR = [PopularItem(key, f"item {key}", 1000.0 - key) for key in range(300)]
CARE = parse({"category": "care"})


class Matches:
    """An index that is asked for matches alone: even keys match every filter, all keys match none."""

    def __init__(self, *failing: Filter | None) -> None:
        self.failing = failing
        self.looks: list[int] = []

    async def match(self, keys: Sequence[int], where: Filter | None) -> dict[int, str]:
        self.looks.append(len(keys))
        if where in self.failing:
            raise IndexUnavailable("told to be away")
        return {key: f"item {key}" for key in keys if where is None or key % 2 == 0}


async def fill(index: Matches, *asks: Ask) -> Sequence[Filled]:
    deadline = asyncio.get_running_loop().time() + 10
    return await Popular(cast(Any, index), lambda: POPULAR).fill(asks, deadline)


async def test_the_most_popular_that_match_and_are_not_excluded_come() -> None:
    plain, filtered = await fill(
        Matches(), Ask(limit=2, exclude=frozenset({0})), Ask(limit=2, where=CARE, exclude=frozenset({2}))
    )
    assert plain == Filled([(1, "item 1"), (2, "item 2")])
    assert filtered == Filled([(0, "item 0"), (4, "item 4")])


async def test_a_filter_is_looked_up_once_and_no_further_than_needed() -> None:
    index = Matches()
    await fill(index, Ask(limit=5), Ask(limit=50), Ask(limit=120))
    assert index.looks == [100, 200]


async def test_an_index_that_is_away_leaves_popular_items_to_requests_without_a_filter() -> None:
    plain, filtered = await fill(Matches(None, CARE), Ask(limit=1), Ask(limit=1, where=CARE))
    assert plain == Filled([(0, "item 0")], "popular")
    assert filtered == Filled((), "none")


async def test_a_filter_that_fails_takes_nothing_from_others() -> None:
    plain, filtered = await fill(Matches(CARE), Ask(limit=1), Ask(limit=1, where=CARE))
    assert (plain.rung, filtered.rung) == (None, "none")
