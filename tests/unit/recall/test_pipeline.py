"""Recall over a real index: sources fused, and an answer in time whatever fails."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray

from headwater.encoder.features import ACTION_CODES, CANDIDATE_FEATURES, item_key
from headwater.encoder.neighbours import Neighbours
from headwater.encoder.runtime import Encoder
from headwater.index import Hit, Index, IndexUnavailable, Point, Query
from headwater.index.edge import EdgeIndex
from headwater.index.filters import Filter, parse
from headwater.metrics import Metrics
from headwater.recall.pipeline import Recall, RecallResult
from headwater.recall.popularity import PopularItem
from headwater.recall.rescoring import Scorer
from headwater.recall.sources import Ask, KeySource, Named, Resources, SearchSource, Source
from headwater.recall.sources.registry import REGISTRY, sources_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

F32 = NDArray[np.float32]
DIM = 4
# Three themes, an axis each; the fourth axis tells the items of a theme apart.
COFFEE, TEA, SOAP = (np.eye(DIM, dtype=np.float32)[axis] for axis in range(3))
THEMES = {"coffee": COFFEE, "tea": TEA, "soap": SOAP}
# Time enough for a busy machine, and time that a call which hangs has to use up.
LONG_S, SOON_S = 120.0, 1.0
DAY_MS = 86_400_000
NEW_DAYS = 10


def vector_of(theme: str, number: int) -> F32:
    vector = THEMES[theme].copy()
    vector[3] = 0.05 * number
    return vector / np.float32(np.linalg.norm(vector))


class Fallible:
    """An index whose calls can be made to fail, or never to answer."""

    in_process = False

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

    async def match(self, keys: Sequence[int], where: Filter | None) -> dict[int, str]:
        return await self._through("match", lambda: self._index.match(keys, where))

    async def count(self) -> int:
        return await self._index.count()

    async def close(self) -> None:
        await self._index.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def items(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EdgeIndex]:
    """Five items of each theme, the first from day 0 to the last from day 4; that one is not available."""
    edge = await EdgeIndex.open(tmp_path_factory.mktemp("index"), DIM)
    points = []
    for theme in THEMES:
        for number in range(5):
            item_id = f"{theme} {number}"
            payload = {
                "item_id": item_id,
                "category": theme,
                "available": number < 4,
                "since_ms": number * DAY_MS,
            }
            points.append(
                Point(item_key(item_id), item_id, vector_of(theme, number), payload, None, 0, len(points))
            )
    await edge.put(points)
    yield edge
    await edge.close()


@pytest.fixture
def index(items: EdgeIndex) -> Fallible:
    return Fallible(items)


# The contents of baskets, each of which the table of neighbours knows to go with its items, the first ones most.
BASKETS: dict[str, Sequence[tuple[str, float]]] = {}


def table() -> Neighbours:
    names = sorted({*BASKETS, *(name for near in BASKETS.values() for name, _ in near)}, key=item_key)
    rows = {name: row for row, name in enumerate(names)}
    near = [sorted((rows[name], likeness) for name, likeness in BASKETS.get(each, ())) for each in names]
    pairs = [pair for each in near for pair in each]
    return Neighbours(
        np.array([item_key(name) for name in names], dtype=np.uint64),
        np.cumsum([0, *map(len, near)]),
        np.array([row for row, _ in pairs], dtype=np.int64),
        np.array([likeness for _, likeness in pairs], dtype=np.float32),
        pause_ms=1_000,
    )


def keyed(events: Sequence[tuple[str, int, str]]) -> list[tuple[int, int, int]]:
    return [(item_key(item_id), at_ms, ACTION_CODES[action]) for item_id, at_ms, action in events]


def ask(
    *interests: F32,
    weights: Sequence[float] = (),
    where: dict[str, Any] | None = None,
    exclude: Sequence[str] = (),
    sources: Mapping[str, float] | None = None,
    events: Sequence[tuple[str, int, str]] = (),
    again: Sequence[str] = (),
    similar: Sequence[str] = (),
    session: Sequence[tuple[str, int, str]] = (),
    taken: Sequence[str] = (),
    new_since: int = 0,
    items: Sequence[str] = (),
    **others: Any,
) -> Ask:
    """What is asked at a moment when items are new that came on day ``new_since`` or later.

    Args:
        events: of the log; given, the answer is to be explained.
        again: items of the log, the newest first, for a request that allows seen items.
        similar: items that go with the basket in hand, best first.
        taken: items of the basket in hand.
        items: that the request names.
    """
    now_ms = (new_since + NEW_DAYS) * DAY_MS
    in_hand = [(item_id, now_ms, "click") for item_id in taken]
    if similar:
        basket = f"basket {len(BASKETS)}"
        BASKETS[basket] = [(item_id, 0.9 - 0.01 * place) for place, item_id in enumerate(similar)]
        in_hand.append((basket, now_ms, "click"))
    log = events or [(item_id, at_ms, "click") for at_ms, item_id in enumerate(reversed(again))]
    return Ask(
        **{"limit": 3, **others},
        now_ms=now_ms,
        interests=np.array(interests, dtype=np.float32).reshape(-1, DIM),
        interest_weights=np.array(weights or [1.0] * len(interests), dtype=np.float32),
        log=keyed(log),
        session=keyed([*session, *in_hand]),
        where=parse(where) if where is not None else None,
        exclude=frozenset(item_key(item_id) for item_id in exclude),
        exclude_seen=not again,
        weights=sources or {},
        explain=bool(events),
        items=[item_key(item_id) for item_id in items],
    )


POPULAR = [
    PopularItem(item_key(name), name, 10.0 - place)
    for place, name in enumerate(("soap 0", "tea 0", "soap 4"))
]


async def answers(
    index: Index,
    *asks: Ask,
    popular: Sequence[PopularItem] = POPULAR,
    timeout_s: float = LONG_S,
    registry: Sequence[type[Source]] = REGISTRY,
    metrics: Metrics | None = None,
) -> list[RecallResult]:
    resources = Resources(index, table(), lambda: popular, NEW_DAYS)
    return await Recall(index, sources_of(resources, registry), metrics or Metrics()).candidates(
        asks, timeout_s
    )


async def answer(index: Index, one: Ask, **options: Any) -> RecallResult:
    (only,) = await answers(index, one, **options)
    return only


def ids(answer: RecallResult) -> list[str]:
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


async def test_a_dislike_pushes_away_from_what_is_like_it(index: Fallible) -> None:
    one = ask(COFFEE + TEA * np.float32(0.9))
    assert ids(await answer(index, one)) == ["coffee 0", "coffee 1", "coffee 2"]
    disliked = one._replace(
        dislikes=[(item_key("coffee 0"), one.now_ms)], unwanted=frozenset({item_key("coffee 0")})
    )
    assert ids(await answer(index, disliked)) == ["tea 0", "tea 1", "tea 2"]
    long_ago = one._replace(dislikes=[(item_key("coffee 0"), one.now_ms - 365 * DAY_MS)])
    assert ids(await answer(index, long_ago)) == ["coffee 0", "coffee 1", "coffee 2"]
    alone, beside = await answers(index, one, disliked)
    assert (ids(alone), ids(beside)) == (["coffee 0", "coffee 1", "coffee 2"], ["tea 0", "tea 1", "tea 2"])


async def test_a_dislike_lowers_what_any_source_brings(index: Fallible) -> None:
    popular = ask(limit=2, sources={"popular": 1.0})
    assert ids(await answer(index, popular)) == ["soap 0", "tea 0"]
    disliked = popular._replace(dislikes=[(item_key("soap 3"), popular.now_ms)])
    assert ids(await answer(index, disliked)) == ["tea 0", "soap 0"]


async def test_a_request_with_a_text_gets_what_it_asks_for_whatever_is_disliked(index: Fallible) -> None:
    one = ask(query=COFFEE, has_text=True, sources={"query": 1.0})
    disliked = one._replace(dislikes=[(item_key("coffee 3"), one.now_ms)])
    assert ids(await answer(index, disliked)) == ids(await answer(index, one))


async def test_interests_in_what_is_disliked_alone_leave_the_answer_to_what_is_popular(
    index: Fallible,
) -> None:
    one = ask(COFFEE)
    key = item_key("coffee 0")
    found = await answer(index, one._replace(dislikes=[(key, one.now_ms)], unwanted=frozenset({key})))
    assert ids(found) == ["soap 0", "tea 0"]
    assert found.why["interests"] == "hidden"


async def test_dislikes_cost_those_who_have_none_no_call(index: Fallible) -> None:
    index.failing.add("vectors")
    found = await answer(index, ask(COFFEE))
    assert (ids(found), found.rung) == (["coffee 0", "coffee 1", "coffee 2"], None)
    one = ask(COFFEE)
    disliked = await answer(index, one._replace(dislikes=[(item_key("coffee 0"), one.now_ms)]))
    assert (len(disliked.items), disliked.rung) == (3, None), "and those who have some are answered without"


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


async def test_a_bundle_says_what_sources_count_where_a_request_does_not(index: Fallible) -> None:
    resources = Resources(index, table(), lambda: POPULAR, NEW_DAYS)
    recall = Recall(index, sources_of(resources), Metrics(), None, {"popular": 5.0, "interests": 0.5})
    asks = [
        ask(COFFEE),
        ask(COFFEE, sources={"interests": 1.0}),
        ask(COFFEE, query=TEA, has_text=True),
        ask(COFFEE, items=["tea 1"]),
    ]
    own, named, text, items = await recall.candidates(asks, LONG_S)
    assert ids(own)[:2] == ["soap 0", "tea 0"]
    assert {item.source for item in named.items} == {"interests"}
    for found, source in ((text, "query"), (items, "item")):
        assert {item.source for item in found.items} == {"interests", source}, "what is asked for stays pure"


async def test_what_may_be_wanted_again_is_a_source_of_its_own(index: Fallible) -> None:
    both = await answer(index, ask(COFFEE, again=["soap 1", "gone", "soap 4"], limit=4))
    assert ids(both) == ["soap 1", "coffee 0", "coffee 1", "coffee 2"]  # "soap 4" is not available
    assert [item.source for item in both.items] == ["buy-again", "interests", "interests", "interests"]
    filtered = await answer(index, ask(COFFEE, again=["soap 1", "coffee 3"], where={"category": "coffee"}))
    assert ids(filtered)[0] == "coffee 3"
    assert "soap 1" not in ids(filtered)


async def test_an_item_that_is_wanted_again_and_near_is_lifted_by_both(index: Fallible) -> None:
    found = await answer(index, ask(COFFEE, again=["tea 0", "coffee 2"]))
    assert ids(found) == ["coffee 2", "tea 0", "coffee 0"]


async def test_whose_log_holds_nothing_to_want_again_costs_no_look(index: Fallible) -> None:
    index.failing.add("match")
    repeats, none = await answers(index, ask(COFFEE, again=["soap 1"]), ask(COFFEE))
    assert (ids(none), none.rung) == (["coffee 0", "coffee 1", "coffee 2"], None)
    assert (ids(repeats), repeats.rung) == (ids(none), "no-repeats")
    assert (await answer(index, ask(COFFEE))).rung is None


@pytest.mark.parametrize("where", [None, {"category": "coffee"}])
async def test_repeats_that_cannot_be_looked_up_take_nothing_from_a_full_answer(
    index: Fallible, where: dict[str, Any] | None
) -> None:
    index.failing.add("match")
    found = await answer(index, ask(COFFEE, again=["soap 1"], where=where))
    assert (ids(found), found.rung) == (["coffee 0", "coffee 1", "coffee 2"], "no-repeats")


async def test_a_repeat_is_explained_by_the_event_it_repeats(index: Fallible) -> None:
    events = [("coffee 3", 5, "click"), ("soap 1", 9, "purchase")]
    found = await answer(index, ask(COFFEE, again=["allowed"], events=events))
    assert found.items[0].source == "buy-again"
    assert found.because[0][0].event == ("soap 1", 9, "purchase")


async def test_what_goes_with_the_session_is_a_source_of_its_own(index: Fallible) -> None:
    found = await answer(index, ask(COFFEE, similar=["soap 1", "gone", "soap 4", "tea 2"], limit=4))
    assert ids(found) == ["soap 1", "coffee 0", "tea 2", "coffee 1"]  # "soap 4" is not available
    assert [item.source for item in found.items] == ["similar", "interests", "similar", "interests"]
    far = [*(f"tea {n}" for n in range(4)), *(f"soap {n}" for n in range(3)), "coffee 3"]
    filtered = ask(COFFEE, similar=far, where={"category": "coffee"}, limit=1, sources={"similar": 1.0})
    assert ids(await answer(index, filtered)) == ["coffee 3"]


async def test_what_cannot_be_looked_up_costs_an_answer_its_rung_once(index: Fallible) -> None:
    index.failing.add("match")
    similar, both, none = await answers(
        index, ask(COFFEE, similar=["soap 1"]), ask(COFFEE, similar=["soap 1"], again=["soap 2"]), ask(COFFEE)
    )
    assert ids(similar) == ids(both) == ids(none) == ["coffee 0", "coffee 1", "coffee 2"]
    assert [found.rung for found in (similar, both, none)] == ["no-similar", "no-repeats", None]


async def test_a_similar_item_is_explained_by_the_session_and_not_by_what_is_near(index: Fallible) -> None:
    now_ms = NEW_DAYS * DAY_MS
    session = [("tea 0", now_ms - 1, "add_to_cart"), ("gone", now_ms, "click")]
    BASKETS["tea 0"], BASKETS["gone"] = [("soap 1", 0.75)], [("soap 1", 0.25)]
    asked = ask(COFFEE, session=session, events=[("soap 0", 5, "click")], limit=2)
    for broken in ((), ("vectors",)):
        index.failing = set(broken)
        found = await answer(index, asked)
        assert [item.source for item in found.items] == ["similar", "interests"]
        assert found.because[0] == [(("tea 0", now_ms - 1, "add_to_cart"), 0.75)]
        assert bool(found.because[1]) is not bool(broken)


NEW = {"new": 1.0}


async def test_what_is_new_and_like_what_the_user_takes_is_a_source_of_its_own(index: Fallible) -> None:
    found = await answer(index, ask(SOAP, taken=["coffee 0", "gone"], new_since=2, sources=NEW, limit=2))
    assert ids(found) == [
        "coffee 2",
        "coffee 3",
    ]  # "coffee 0" and "coffee 1" are old, "coffee 4" is not available
    assert {item.source for item in found.items} == {"new"}
    assert found.rung is None
    filtered = ask(SOAP, taken=["coffee 1"], new_since=2, sources=NEW, where={"category": "tea"})
    assert ids(await answer(index, filtered)) == ["tea 3", "tea 2"]
    mixed, others = {"interests": 1.0, "new": 1.0}, ["soap 3", "tea 3"]
    # Three, since only three soaps are like the interest: a fourth would be any of the items that are equally unlike it.
    both = await answer(
        index, ask(SOAP, taken=["coffee 0"], new_since=3, sources=mixed, exclude=others, limit=3)
    )
    assert ids(both) == ["soap 0", "coffee 3", "soap 1"]
    assert [item.source for item in both.items] == ["interests", "new", "interests"]


async def test_new_items_are_like_any_that_is_taken_and_are_none_of_them(index: Fallible) -> None:
    asked = ask(taken=["coffee 1", "tea 2"], new_since=1, sources=NEW, exclude=["tea 1"], limit=10)
    # In both themes the nearest by angle first; "coffee 1", "tea 1" and "tea 2" may not come, "soap" is like neither.
    assert ids(await answer(index, asked))[:3] == ["tea 3", "coffee 2", "coffee 3"]
    assert not {"coffee 1", "tea 1", "tea 2"} & set(ids(await answer(index, asked)))


async def test_of_new_items_a_long_vector_is_no_merit(index: Fallible) -> None:
    long = Point(item_key("long"), "long", 3 * vector_of("tea", 9), {"since_ms": 9 * DAY_MS}, None, 0, 99)
    await index.put([long])
    try:
        found = await answer(index, ask(taken=["tea 1"], new_since=2, sources=NEW, limit=3))
        assert ids(found) == ["tea 2", "tea 3", "long"]
    finally:
        await index.put([Point(long.key, "long", None, {}, None, 0, 100)])


@pytest.mark.parametrize("broken", ["vectors", "search"])
async def test_new_items_that_cannot_be_looked_up_cost_an_answer_its_rung(
    index: Fallible, broken: str
) -> None:
    index.failing.add(broken)
    asked = (ask(taken=["coffee 0"], new_since=2, sources=NEW), ask(sources=NEW))
    found, other = await answers(index, *asked)
    assert (ids(found), found.rung) == ([], "no-new")
    assert (ids(other), other.rung) == ([], None)


ITEM = {"item": 1.0}


async def test_what_is_like_a_named_item_needs_no_user_and_is_never_that_item(index: Fallible) -> None:
    found = await answer(index, ask(sources=ITEM, items=["tea 1"], limit=2))
    assert ids(found) == ["tea 2", "tea 0"]  # by angle
    assert {item.source for item in found.items} == {"item"}
    both = await answer(index, ask(sources=ITEM, items=["tea 3", "gone", "coffee 3"], limit=2))
    assert set(ids(both)) == {"tea 2", "coffee 2"}
    filtered = ask(sources=ITEM, items=["tea 3"], where={"category": "soap"}, limit=1)
    assert ids(await answer(index, filtered)) == ["soap 3"]  # the fourth axis is all that they share


async def test_a_named_item_takes_part_beside_the_interests_of_a_user(index: Fallible) -> None:
    found = await answer(index, ask(SOAP, items=["tea 0"], limit=4))
    assert {item.source for item in found.items} == {"interests", "item"}


@pytest.mark.parametrize("broken", ["vectors", "search"])
async def test_items_like_a_named_one_that_cannot_be_looked_up_cost_an_answer_its_rung(
    index: Fallible, broken: str
) -> None:
    index.failing.add(broken)
    found, other = await answers(index, ask(sources=ITEM, items=["tea 0"]), ask(sources=ITEM))
    assert (ids(found), found.rung) == ([], "no-item")
    assert (ids(other), other.rung) == ([], None)


async def test_how_alike_an_item_is_to_a_named_one_is_told(index: Fallible) -> None:
    asked = ask(sources=ITEM, items=["tea 0"], limit=1)._replace(explain=True)
    (near,) = (await answer(index, asked)).similarities or ()
    assert near == pytest.approx(float(vector_of("tea", 0) @ vector_of("tea", 1)), abs=1e-5)


async def test_a_new_item_is_explained_by_the_events_that_it_is_like(index: Fallible) -> None:
    events = [("coffee 0", 5, "purchase"), ("tea 1", 9, "click")]
    found = await answer(
        index, ask(taken=["tea 1"], new_since=2, sources=NEW, events=events, exclude=["tea 3"], limit=1)
    )
    assert ids(found) == ["tea 2"]
    assert found.because[0][0].event == ("tea 1", 9, "click")


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


async def test_an_explained_answer_tells_what_was_taken_out_on_the_way(index: Fallible) -> None:
    of_log = [("coffee 1", 0, "click")]
    one = ask(
        COFFEE,
        events=of_log,
        exclude=["coffee 0", "coffee 1"],
        where={"not": {"item_id": "coffee 2"}},
        limit=2,
    )
    found = await answer(index, one)
    stages = {stage.source or stage.stage: stage for stage in found.funnel or ()}
    assert stages["interests"].count == 2
    assert [item.item_id for item in stages["interests"].items] == ["coffee 0", "coffee 1"]
    assert {item.item_id: item.why for item in stages["excluded"].items} == {
        "coffee 0": "excluded",
        "coffee 1": "seen",
    }
    assert stages["refilled"].items[0].item_id == ids(found)[0] == "coffee 3"
    hidden = await answer(index, ask(COFFEE + 0.9 * vector_of("coffee", 4), events=of_log, limit=5))
    stages = {stage.source or stage.stage: stage for stage in hidden.funnel or ()}
    assert {item.item_id: item.why for item in stages["unavailable"].items}["coffee 4"] == "unavailable"
    assert stages["shown"].count == 5


async def test_an_answer_that_is_not_explained_asks_no_source_twice(index: Fallible) -> None:
    searches: list[int] = []
    search = index.search

    async def counted(queries: Sequence[Query]) -> list[list[Hit]]:
        searches.append(len(queries))
        return await search(queries)

    index.search = counted  # type: ignore[method-assign]
    assert (await answer(index, ask(COFFEE))).funnel is None
    assert searches == [1]
    assert (await answer(index, ask(COFFEE, events=[("coffee 1", 0, "click")]))).funnel
    assert searches == [1, 1, 1]


async def test_what_is_asked_again_for_a_funnel_counts_in_no_metric(index: Fallible) -> None:
    metrics = Metrics()
    await answer(index, ask(COFFEE, events=[("coffee 1", 0, "click")]), metrics=metrics)
    assert metrics.source_items_total.labels("interests")._value.get() == 3.0


async def test_a_degraded_answer_comes_without_a_funnel(index: Fallible) -> None:
    index.failing = {"search"}
    found = await answer(index, ask(COFFEE, events=[("coffee 1", 0, "click")]))
    assert (found.rung, found.funnel) == ("popular", None)


async def test_no_asks_need_no_answers(index: Fallible) -> None:
    assert await answers(index) == []


# With a bundle that scores candidates


class ScoreGraph:
    """A score graph that prefers what the first interest is least like; slow on demand."""

    pool = 8
    log_length = 50
    neighbours = None

    def __init__(self, takes_s: float = 0.0) -> None:
        self.takes_s = takes_s
        self.runs: list[int] = []

    def score(self, features: F32, interests: F32, items: F32) -> F32:
        assert features.shape == (len(items), len(CANDIDATE_FEATURES))
        np.testing.assert_allclose(features[:, 0], (interests * items).sum(axis=1), rtol=1e-5)
        self.runs.append(len(items))
        time.sleep(self.takes_s)
        return np.exp(-features[:, 0])


POOL = ScoreGraph.pool


async def scored(
    index: Index, graph: ScoreGraph, *asks: Ask, timeout_s: float = LONG_S
) -> list[RecallResult]:
    with ThreadPoolExecutor(1) as threads:
        scorer = Scorer(cast(Encoder, graph), threads, lambda: POPULAR)
        recall = Recall(index, sources_of(Resources(index, None, lambda: POPULAR)), Metrics(), scorer)
        return await recall.candidates(asks, timeout_s)


async def test_a_bundle_that_scores_orders_its_whole_pool_once_for_all_requests(index: Fallible) -> None:
    graph = ScoreGraph()
    near = COFFEE + 0.5 * TEA
    one, other = await scored(index, graph, ask(near, limit=2, pool=POOL), ask(SOAP, limit=2, pool=POOL))
    # Of the eight nearest, four coffees and four teas, the teas are the furthest.
    assert ids(one) == ["tea 3", "tea 2"]
    assert one.items[0].score > one.items[1].score
    assert (one.rung, other.rung) == (None, None)
    assert graph.runs == [16]


async def test_an_answer_that_is_not_scored_keeps_the_order_of_the_sources(index: Fallible) -> None:
    graph, one = ScoreGraph(), ask(COFFEE)
    (found,) = await scored(index, graph, one)
    assert ids(found) == ids(await answer(index, one))
    assert graph.runs == []


async def test_without_time_to_score_the_order_stays_and_the_rung_says_so(index: Fallible) -> None:
    (found,) = await scored(index, ScoreGraph(2 * SOON_S), ask(COFFEE, pool=POOL), timeout_s=SOON_S)
    assert (ids(found), found.rung) == (["coffee 0", "coffee 1", "coffee 2"], "unscored")


@pytest.mark.parametrize("way", ["failing", "hanging"])
async def test_without_vectors_the_order_stays_and_the_rung_says_so(index: Fallible, way: str) -> None:
    getattr(index, way).add("vectors")
    (found,) = await scored(index, ScoreGraph(), ask(COFFEE, pool=POOL), timeout_s=SOON_S)
    assert (ids(found), found.rung) == (["coffee 0", "coffee 1", "coffee 2"], "unscored")


async def test_a_request_without_vectors_leaves_the_others_their_scores(index: Fallible) -> None:
    vectors = index.vectors

    async def no_soap(keys: Sequence[int]) -> dict[int, F32]:
        return {key: found for key, found in (await vectors(keys)).items() if key not in soaps}

    soaps = {item_key(f"soap {number}") for number in range(5)}
    index.vectors = no_soap  # type: ignore[method-assign]
    asks = (ask(COFFEE, pool=POOL), ask(SOAP, where={"category": "soap"}, pool=POOL))
    coffee, soap = await scored(index, ScoreGraph(), *asks)
    assert (coffee.rung, soap.rung) == (None, "unscored")


async def test_diversity_chooses_among_the_scored(index: Fallible) -> None:
    near = COFFEE + 0.5 * TEA
    (found,) = await scored(index, ScoreGraph(), ask(near, limit=2, diversity=0.5, pool=POOL))
    assert ids(found)[0] == "tea 3"
    assert len(found.items) == 2


# A source from outside


class Chosen(KeySource):
    """What an editor has chosen."""

    name = "chosen"
    default_weight = 50.0
    rung = "no-choice"

    def keys(self, ask: Ask) -> Mapping[int, float]:
        return {item_key(name): 1.0 for name in ("soap 2", "gone", "soap 4")}


class Loud(SearchSource):
    """Items that are searched for by the source itself."""

    name = "loud"
    default_weight = 50.0
    rung = "no-loud"

    def __init__(self, index: Index) -> None:
        self._index = index

    @classmethod
    def made_of(cls, given: Resources) -> "Loud":
        return cls(given.index)

    def applies(self, ask: Ask) -> bool:
        return len(ask.interests) > 0

    async def rankings(self, asks: Sequence[Ask]) -> list[list[Named]]:
        found = await self._index.search(
            [Query(SOAP, each.wanted, each.where, each.exclude) for each in asks]
        )
        return [[(hit.key, hit.item_id) for hit in hits] for hits in found]


async def test_a_source_from_outside_needs_its_class_and_a_place_in_the_registry(index: Fallible) -> None:
    registry = (*REGISTRY, Chosen, Loud)
    found = await answer(index, ask(COFFEE, exclude=["soap 0"]), registry=registry)
    assert [(item.item_id, item.source) for item in found.items] == [
        ("soap 2", "chosen"),
        ("soap 1", "loud"),
        ("soap 3", "loud"),
    ]
    only = await answer(index, ask(COFFEE, sources={"chosen": 1.0}), registry=registry)
    assert [(item.item_id, item.source) for item in only.items] == [("soap 2", "chosen")]
    assert only.rung is None


@pytest.mark.parametrize(("broken", "rung"), [("match", "no-choice"), ("search", "popular")])
async def test_a_source_from_outside_that_fails_costs_its_rung(
    index: Fallible, broken: str, rung: str
) -> None:
    index.failing.add(broken)
    found = await answer(index, ask(COFFEE), registry=(*REGISTRY, Chosen, Loud))
    assert found.rung == rung
    assert found.items


class Lacking(Chosen):
    """A source whose table the bundle lacks."""

    is_there = False


async def test_a_request_that_names_a_source_that_the_bundle_lacks_is_told(index: Fallible) -> None:
    registry = (*REGISTRY, Lacking)
    named = await answer(index, ask(COFFEE, sources={"interests": 1.0, "chosen": 1.0}), registry=registry)
    assert (named.rung, named.missing) == (None, "no-choice")
    assert (await answer(index, ask(COFFEE), registry=registry)).missing is None


async def test_what_each_source_ranked_and_failed_is_counted(index: Fallible) -> None:
    metrics = Metrics()
    await answers(index, ask(COFFEE), ask(COFFEE, TEA, again=["soap 1"]), metrics=metrics)
    index.failing.add("match")
    await answers(
        index, ask(COFFEE, again=["soap 1"]), ask(COFFEE, sources={"popular": 1.0}), metrics=metrics
    )
    counted = metrics.exposition().decode().splitlines()
    assert 'headwater_source_items_total{source="interests"} 12.0' in counted
    assert 'headwater_source_items_total{source="buy-again"} 1.0' in counted
    assert 'headwater_source_lost_total{source="buy-again"} 1.0' in counted
    assert 'headwater_source_lost_total{source="popular"} 1.0' in counted


# Why a source brought nothing

DEFAULTS = ("buy-again", "similar", "interests", "query", "item")


async def test_a_full_answer_has_nothing_to_explain(index: Fallible) -> None:
    assert (await answer(index, ask(COFFEE))).why == {}


@pytest.mark.parametrize(
    ("asked", "source", "code"),
    [
        (ask(sources={"interests": 1.0}), "interests", "no_events"),
        (ask(sources={"interests": 1.0}, session=[("new", 1, "click")]), "interests", "no_vectors"),
        (ask(COFFEE, sources={"query": 1.0}), "query", "no_query"),
        (ask(COFFEE, has_text=True), "query", "no_text"),
        (ask(COFFEE, sources={"item": 1.0}), "item", "no_items"),
        (ask(sources={"item": 1.0}, items=["gone"]), "item", "no_like"),
        (ask(sources={"item": 1.0}, items=["tea 0"], where={"category": "hats"}), "item", "no_like"),
        (ask(COFFEE, sources={"query": 0.0}), "query", "no_weight"),
        (ask(COFFEE, sources={"interests": 1.0}, where={"category": "hats"}), "interests", "filtered"),
        (ask(COFFEE, sources={"interests": 1.0}, limit=50, exclude=["tea 0"]), "interests", "excluded"),
        (ask(COFFEE, sources={"interests": 1.0}, limit=50), "interests", "no_more"),
        (ask(sources={"similar": 1.0}), "similar", "no_events"),
        (ask(sources={"similar": 1.0}, session=[("tea 0", 1, "click")]), "similar", "no_session"),
        (ask(sources={"similar": 1.0}, taken=["unheard of"]), "similar", "unknown_items"),
        (ask(sources={"similar": 1.0}, similar=["no such item"]), "similar", "unavailable"),
        (ask(sources={"similar": 1.0}, similar=["tea 0"], exclude=["tea 0"]), "similar", "excluded"),
        (ask(sources={"similar": 1.0}, similar=["tea 0"], where={"category": "x"}), "similar", "filtered"),
        (ask(sources={"buy-again": 1.0}, taken=["tea 0"]), "buy-again", "seen_excluded"),
        (ask(sources={"buy-again": 1.0})._replace(exclude_seen=False), "buy-again", "no_events"),
        (
            ask(sources={"buy-again": 1.0}, taken=["tea 0"])._replace(exclude_seen=False),
            "buy-again",
            "too_recent",
        ),
        (ask(sources={"new": 1.0}), "new", "no_events"),
        (ask(sources={"new": 1.0}, taken=["tea 0"], new_since=400), "new", "no_new"),
        (ask(sources={"popular": 1.0}, exclude=["soap 0", "tea 0", "soap 4"]), "popular", "excluded"),
    ],
)
async def test_a_source_that_brings_nothing_or_too_little_says_why(
    index: Fallible, asked: Ask, source: str, code: str
) -> None:
    assert (await answer(index, asked)).why[source] == code


async def test_a_cold_user_in_a_young_system_is_told_so(index: Fallible) -> None:
    found = await answer(index, ask(), popular=[])
    assert (found.items, found.rung) == ([], None)
    assert found.why == {
        "buy-again": "seen_excluded",
        "similar": "no_events",
        "interests": "no_events",
        "query": "no_query",
        "item": "no_items",
        "popular": "no_popularity",
    }


async def test_popular_items_that_stand_in_for_a_cold_user_say_so(index: Fallible) -> None:
    found = await answer(index, ask(limit=2))
    assert len(found.items) == 2
    assert set(found.why) == set(DEFAULTS)


async def test_a_table_that_is_missing_and_a_source_that_fails_say_so(index: Fallible) -> None:
    resources = Resources(index, None, lambda: POPULAR, NEW_DAYS)
    index.failing = {"search"}
    asked = ask(COFFEE, sources={"interests": 1.0, "similar": 1.0})
    (found,) = await Recall(index, sources_of(resources), Metrics()).candidates([asked], LONG_S)
    assert found.why == {"interests": "late", "similar": "not_in_bundle", "popular": "no_more"}


async def test_an_empty_catalog_is_the_reason_of_every_source(tmp_path: Path) -> None:
    edge = await EdgeIndex.open(tmp_path, DIM)
    found = await answer(cast(Any, edge), ask(COFFEE), popular=[])
    await edge.close()
    assert set(found.why) == {*DEFAULTS, "popular"}
    assert set(found.why.values()) == {"empty_catalog"}


@pytest.mark.parametrize("named", [None, *DEFAULTS, "popular", "new"])
@pytest.mark.parametrize("popular", [POPULAR, []])
async def test_an_answer_shorter_than_asked_for_always_says_why(
    index: Fallible, named: str | None, popular: Sequence[PopularItem]
) -> None:
    sources = {} if named is None else {named: 1.0}
    for asked in (ask(sources=sources, limit=50), ask(COFFEE, sources=sources, limit=50, taken=["tea 0"])):
        found = await answer(index, asked, popular=popular)
        assert len(found.items) < 50
        assert set(found.why) >= {named or "popular"}
