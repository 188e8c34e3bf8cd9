"""Recall over a real index: sources fused, and an answer in time whatever fails."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray

from streams.features import item_key
from streams.index import Hit, Index, IndexUnavailable, Point, Query
from streams.index.edge import EdgeIndex
from streams.recall.filters import Filter, parse
from streams.recall.pipeline import Answer, Ask, Recall
from streams.trends import PopularItem

pytestmark = pytest.mark.asyncio(loop_scope="module")

F32 = NDArray[np.float32]
DIM = 4
# Three themes, an axis each; the fourth axis tells the items of a theme apart.
COFFEE, TEA, SOAP = (np.eye(DIM, dtype=np.float32)[axis] for axis in range(3))
THEMES = {"coffee": COFFEE, "tea": TEA, "soap": SOAP}
SOON_S = 0.2


def vector_of(theme: str, number: int) -> F32:
    vector = THEMES[theme].copy()
    vector[3] = 0.05 * number
    return vector / np.float32(np.linalg.norm(vector))


class Fallible:
    """An index whose calls can be made to fail, or never to answer."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.failing: set[str] = set()
        self.hanging: set[str] = set()

    async def _through(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        if name in self.hanging:
            await asyncio.Event().wait()
        if name in self.failing:
            raise IndexUnavailable(f"{name} does not answer")
        return await call()

    async def put(self, points: Sequence[Point]) -> None:
        await self._index.put(points)

    async def search(self, queries: Sequence[Query]) -> list[list[Hit]]:
        return await self._through("search", lambda: self._index.search(queries))

    async def vectors(self, keys: Sequence[int]) -> dict[int, F32]:
        return await self._through("vectors", lambda: self._index.vectors(keys))

    async def items(self, keys: Sequence[int]) -> dict[int, dict[str, Any]]:
        return await self._through("items", lambda: self._index.items(keys))

    async def match(self, keys: Sequence[int], where: Filter | None) -> set[int]:
        return await self._through("match", lambda: self._index.match(keys, where))

    async def count(self) -> int:
        return await self._index.count()

    async def close(self) -> None:
        await self._index.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def items(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EdgeIndex]:
    """Five items of each theme; the last of each is not available."""
    edge = await EdgeIndex.open(tmp_path_factory.mktemp("index"), DIM)
    points = []
    for theme in THEMES:
        for number in range(5):
            item_id = f"{theme} {number}"
            payload = {"item_id": item_id, "category": theme, "available": number < 4}
            points.append(
                Point(item_key(item_id), item_id, vector_of(theme, number), payload, None, 0, len(points))
            )
    await edge.put(points)
    yield edge
    await edge.close()


@pytest.fixture
def index(items: EdgeIndex) -> Fallible:
    return Fallible(items)


def ask(
    *interests: F32,
    weights: Sequence[float] = (),
    limit: int = 3,
    query: F32 | None = None,
    where: dict[str, Any] | None = None,
    exclude: Sequence[str] = (),
    diversity: float = 0.0,
    sources: Mapping[str, float] | None = None,
    events: Sequence[tuple[str, int, str]] = (),
) -> Ask:
    return Ask(
        limit,
        np.array(interests, dtype=np.float32).reshape(-1, DIM),
        np.array(weights or [1.0] * len(interests), dtype=np.float32),
        query,
        parse(where) if where is not None else None,
        frozenset(item_key(item_id) for item_id in exclude),
        diversity,
        sources or {},
        [(item_key(item_id), at_ms, action) for item_id, at_ms, action in events],
    )


POPULAR = [
    PopularItem(item_key(name), name, 10.0 - place)
    for place, name in enumerate(("soap 0", "tea 0", "soap 4"))
]


async def answers(
    index: Index, *asks: Ask, popular: Sequence[PopularItem] = POPULAR, timeout_s: float = 10.0
) -> list[Answer]:
    return await Recall(index).candidates(asks, popular, timeout_s)


async def answer(index: Index, one: Ask, **options: Any) -> Answer:
    (only,) = await answers(index, one, **options)
    return only


def ids(answer: Answer) -> list[str]:
    return [item.item_id for item in answer.items]


async def test_the_items_nearest_to_the_interest_come_best_first(index: Fallible) -> None:
    found = await answer(index, ask(COFFEE))
    assert ids(found) == ["coffee 0", "coffee 1", "coffee 2"]
    assert {item.source for item in found.items} == {"interests"}
    assert found.rung is None
    assert found.because == [[], [], []]


async def test_several_interests_share_the_answer_by_their_weights(index: Fallible) -> None:
    uneven = await answer(index, ask(COFFEE, TEA, weights=[0.9, 0.1], limit=4))
    assert ids(uneven) == ["coffee 0", "coffee 1", "coffee 2", "coffee 3"]
    even = await answer(index, ask(COFFEE, TEA, weights=[1.0, 1.0], limit=4))
    assert ids(even) == ["coffee 0", "tea 0", "coffee 1", "tea 1"]


async def test_an_interest_without_weight_is_not_asked_for(index: Fallible) -> None:
    found = await answer(index, ask(COFFEE, SOAP, weights=[1.0, 0.0], limit=4))
    assert {name.split()[0] for name in ids(found)} == {"coffee"}


async def test_each_of_many_asks_gets_its_own_answer(index: Fallible) -> None:
    found = await answers(index, *(ask(THEMES[theme]) for theme in ("tea", "soap", "coffee", "tea")))
    assert [ids(each)[0] for each in found] == ["tea 0", "soap 0", "coffee 0", "tea 0"]


async def test_a_text_query_is_a_source_of_its_own(index: Fallible) -> None:
    found = await answer(index, ask(query=TEA))
    assert ids(found) == ["tea 0", "tea 1", "tea 2"]
    assert {item.source for item in found.items} == {"query"}


async def test_weights_of_sources_decide_what_comes_first(index: Fallible) -> None:
    by_interests = await answer(index, ask(COFFEE, query=TEA, sources={"interests": 2.0, "query": 1.0}))
    by_query = await answer(index, ask(COFFEE, query=TEA, sources={"interests": 1.0, "query": 2.0}))
    assert ids(by_interests)[0] == "coffee 0"
    assert ids(by_query)[0] == "tea 0"


async def test_a_source_that_is_not_named_is_not_asked(index: Fallible) -> None:
    found = await answer(index, ask(COFFEE, query=TEA, sources={"query": 1.0}))
    assert {item.source for item in found.items} == {"query"}


async def test_excluded_items_do_not_come_from_any_source(index: Fallible) -> None:
    found = await answer(index, ask(COFFEE, limit=10, exclude=["coffee 0", "soap 0"]))
    assert "coffee 0" not in ids(found)
    assert "soap 0" not in ids(found)


async def test_a_filter_holds_for_every_source(index: Fallible) -> None:
    found = await answer(index, ask(COFFEE, limit=10, where={"category": "tea"}))
    assert set(ids(found)) == {"tea 0", "tea 1", "tea 2", "tea 3"}


async def test_a_user_without_events_gets_what_is_popular_and_available(index: Fallible) -> None:
    found = await answer(index, ask())
    assert ids(found) == ["soap 0", "tea 0"]  # "soap 4" is not available
    assert {item.source for item in found.items} == {"popular"}
    assert found.rung is None


def finding_little(index: Fallible) -> None:
    """A search that finds four items of each query, as an approximate one under a filter may."""
    search = index.search

    async def few(queries: Sequence[Query]) -> list[list[Hit]]:
        return [hits[:4] for hits in await search(queries)]

    index.search = few  # type: ignore[method-assign]


async def test_popular_items_fill_up_behind_what_the_sources_found(index: Fallible) -> None:
    finding_little(index)
    popular = [PopularItem(item_key(f"soap {number}"), f"soap {number}", 1.0) for number in range(4)]
    found = await answer(index, ask(COFFEE, TEA, weights=[0.999, 0.001], limit=10), popular=popular)
    assert [item.source for item in found.items] == ["interests"] * 8 + ["popular"] * 2
    assert ids(found)[8:] == ["soap 0", "soap 1"]
    assert found.rung is None


async def test_a_filler_leaves_the_order_of_what_was_found(index: Fallible) -> None:
    """A popular item that the interests found anyway is not lifted by it."""
    finding_little(index)
    one = ask(COFFEE, limit=12)
    without = await answer(index, one, popular=[])
    last = without.items[-1]
    filled = await answer(index, one, popular=[PopularItem(last.key, last.item_id, 99.0)])
    assert filled.items == without.items


async def test_popular_items_are_looked_up_as_far_as_they_are_needed_and_once(index: Fallible) -> None:
    looks: list[int] = []
    match = index.match

    async def counted(keys: Sequence[int], where: Filter | None) -> set[int]:
        looks.append(len(keys))
        return await match(keys, where)

    index.match = counted  # type: ignore[method-assign]
    gone = [PopularItem(number, f"gone {number}", 99.0) for number in range(150)]
    first, second = await answers(index, ask(), ask(), popular=[*POPULAR[:2], *gone, POPULAR[2]])
    assert ids(first) == ids(second) == ["soap 0", "tea 0"]
    assert looks == [100, 53]
    looks.clear()
    await answers(index, ask(limit=2), ask(limit=1), popular=[*POPULAR, *gone])
    assert looks == [100]


async def test_popular_items_can_be_asked_for_with_a_weight(index: Fallible) -> None:
    found = await answer(index, ask(COFFEE, sources={"interests": 1.0, "popular": 5.0}))
    assert ids(found)[:2] == ["soap 0", "tea 0"]


async def test_diversity_brings_another_theme_in(index: Fallible) -> None:
    near = (COFFEE + 0.9 * TEA) / np.float32(np.linalg.norm(COFFEE + 0.9 * TEA))
    plain = await answer(index, ask(near))
    diverse = await answer(index, ask(near, diversity=0.7))
    assert {name.split()[0] for name in ids(plain)} == {"coffee"}
    assert ids(diverse)[0] == ids(plain)[0]
    assert len({name.split()[0] for name in ids(diverse)}) > 1
    assert len(diverse.items) == 3


async def test_events_explain_the_items_they_are_nearest_to(index: Fallible) -> None:
    events = [("coffee 4", 5, "purchase"), ("soap 1", 9, "click"), ("never seen", 7, "click")]
    found = await answer(index, ask(COFFEE, events=events))
    assert ids(found)[0] == "coffee 0"
    first = found.because[0]
    assert first[0].event == ("coffee 4", 5, "purchase")
    assert {share.event.item_id for share in first} == {"coffee 4", "soap 1"}
    assert sum(share.share for share in first) == pytest.approx(1.0)
    assert len(found.because) == len(found.items)


@pytest.mark.parametrize("way", ["failing", "hanging"])
async def test_when_the_search_does_not_answer_popular_items_do_and_the_rung_says_so(
    index: Fallible, way: str
) -> None:
    getattr(index, way).add("search")
    found = await answer(index, ask(COFFEE), timeout_s=SOON_S)
    assert found.rung == "popular"
    assert ids(found)[:2] == ["soap 0", "tea 0"]


async def test_who_needs_no_search_is_not_degraded_by_a_failed_one(index: Fallible) -> None:
    index.failing.add("search")
    known, new = await answers(index, ask(COFFEE), ask())
    assert known.rung == "popular"
    assert new.rung is None
    assert ids(new) == ids(known)


@pytest.mark.parametrize("way", ["failing", "hanging"])
async def test_when_nothing_answers_popular_items_come_unfiltered_and_filtered_asks_stay_empty(
    index: Fallible, way: str
) -> None:
    getattr(index, way).update({"search", "match"})
    both = (ask(COFFEE), ask(COFFEE, where={"category": "tea"}))
    plain, filtered = await answers(index, *both, timeout_s=SOON_S)
    assert (ids(plain), plain.rung) == (["soap 0", "tea 0", "soap 4"], "popular")
    assert (ids(filtered), filtered.rung) == ([], "none")


@pytest.mark.parametrize("call", ["vectors", "items"])
@pytest.mark.parametrize("way", ["failing", "hanging"])
async def test_without_vectors_or_payloads_the_answer_comes_without_reasons(
    index: Fallible, way: str, call: str
) -> None:
    getattr(index, way).add(call)
    found = await answer(
        index, ask(COFFEE, diversity=0.5, events=[("coffee 4", 5, "purchase")]), timeout_s=SOON_S
    )
    assert len(found.items) == 3
    assert found.because == [[], [], []]


async def test_a_bug_is_not_mistaken_for_an_index_that_is_away(index: Fallible) -> None:
    async def broken(queries: Sequence[Query]) -> list[list[Hit]]:
        raise ZeroDivisionError

    index.search = broken  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        await answer(index, ask(COFFEE))


async def test_no_asks_need_no_answers(index: Fallible) -> None:
    assert await answers(index) == []
