"""A batch of requests, from records to answers: waiting for clicks, deadlines, refusals, proofs."""

import asyncio
import copy
import gc
import json
import time
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, cast

import jsonschema
import numpy as np
import pytest
import pytest_asyncio
from aiokafka import ConsumerRecord
from aiokafka.structs import RecordMetadata

from headwater.encoder import runtime as encoders
from headwater.encoder.features import event_key, item_key
from headwater.encoder.neighbours import Neighbours
from headwater.encoder.runtime import Encoder
from headwater.errors import PartitionLost, StopWorker
from headwater.index import IndexUnavailable, Point
from headwater.index.edge import EdgeIndex
from headwater.index.item_vectors import F32, Fetch
from headwater.kafka.batch import Batch
from headwater.kafka.broker_clock import BrokerClock
from headwater.kafka.forwarding import forwarded
from headwater.kafka.partitioner import partition_of
from headwater.messages import Response, decode_response, schemas
from headwater.paths.answering import Outbox
from headwater.paths.requests import RequestPath
from headwater.paths.serving import Serving
from headwater.profiles.order import Order
from headwater.profiles.sealed import Sealed
from headwater.recall.pipeline import Recall
from headwater.recall.popularity import PopularItem
from headwater.recall.rescoring import Scorer
from headwater.recall.sources import Ask, KeySource, Resources, Source
from headwater.recall.sources.registry import REGISTRY, sources_of
from tests.support.interests_worker import GENERATION, STARTER, InterestsWorker, now_ms, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXTS = {
    "dark roast": "Ground coffee, dark roast, 12 oz",
    "espresso": "Espresso coffee beans, whole bean",
    "decaf": "Decaf ground coffee, medium roast",
    "filters": "Paper coffee filters, 100 ct",
    "green tea": "Green tea bags, 20 ct",
    "shampoo": "Shampoo for dry hair",
    "dog food": "Dry dog food, chicken, 20 lb",
    "cat litter": "Clumping cat litter",
    "batteries": "Alkaline batteries, AA, 8 pack",
}
CATEGORIES = {"shampoo": "care", "dog food": "pets", "cat litter": "pets"}
LONG_MS = 30_000
PARTITIONS = 4


@pytest.fixture(scope="module")
def starter() -> Encoder:
    return encoders.load(STARTER)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def index(starter: Encoder, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EdgeIndex]:
    edge = await EdgeIndex.open(tmp_path_factory.mktemp("index"), starter.dim)
    vectors = starter.encode_items(list(TEXTS.values()))
    await edge.put(
        [
            Point(
                item_key(item_id),
                item_id,
                vector,
                {"item_id": item_id, "category": CATEGORIES.get(item_id, "grocery"), "available": True},
                None,
                0,
                offset,
            )
            for offset, (item_id, vector) in enumerate(zip(TEXTS, vectors, strict=True))
        ]
    )
    yield edge
    await edge.close()


class Appending:
    """A broker on this machine's time, which acknowledges at once and says when it appended."""

    async def send(self, topic: str, _value: bytes, **_place: Any) -> "asyncio.Future[Any]":
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        done.set_result(RecordMetadata(topic, 0, None, 0, now_ms(), 1, 0))
        return done


class Asked(InterestsWorker):
    """An interests worker that also answers requests, by the bundle's scorer if it has one."""

    def __init__(
        self,
        encoder: Encoder,
        index: EdgeIndex,
        texts: Mapping[str, str] = TEXTS,
        popular: Sequence[PopularItem] = (PopularItem(item_key("batteries"), "batteries", 3.0),),
        registry: Sequence[type[Source]] = REGISTRY,
        **options: Any,
    ) -> None:
        super().__init__(texts, encoder=encoder, **options)
        self.tasks: set[asyncio.Future[None]] = set()
        self.index_ready = True
        self.catalog = {0: 8}
        self.clock = time.time
        recall = Recall(
            index,
            sources_of(Resources(index, encoder.neighbours, lambda: popular), registry),
            self.metrics,
            Scorer(encoder, self.threads, lambda: popular) if encoder.pool else None,
        )
        self.requests = RequestPath(
            self.profiles,
            lambda: Serving(encoder, self.vectors, index, recall, self.catalog, self.index_ready),
            self.threads,
            Outbox(
                cast(Any, self.producer),
                self.dead_letters,
                self.topics,
                self.metrics,
                self.observer,
                lambda: self.clock(),
            ),
            self.settings,
            self.metrics,
            lambda work: self.tasks.add(asyncio.ensure_future(work)),
            lambda: self.clock(),
        )

    def request(self, user: str, request_id: str = "r1", **fields: Any) -> ConsumerRecord:
        names = ("partition", "offset", "headers", "timestamp_ms")
        place = {name: fields.pop(name) for name in names if name in fields}
        message = {"request_id": request_id, "user_id": user, "deadline_ms": LONG_MS, **fields}
        return self.record(self.topics.requests, user.encode(), json.dumps(message).encode(), **place)

    async def ask(self, *records: ConsumerRecord) -> Batch:
        batch = self.batch(records)
        await self.requests.handle(batch)
        return batch

    def responses(self) -> dict[str, Response]:
        return {
            response.request_id: response
            for record in self.producer.records(self.topics.responses)
            for response in [decode_response(record.value)]
        }

    async def answer(self, user: str, **fields: Any) -> Response:
        request_id = f"r{len(self.responses())}"
        await self.ask(self.request(user, request_id, **fields))
        return self.responses()[request_id]

    async def close(self) -> None:
        await asyncio.gather(*self.tasks)
        self.requests.drop_parked()
        await super().close()


@pytest_asyncio.fixture(loop_scope="module")
async def worker(starter: Encoder, index: EdgeIndex) -> AsyncIterator[Asked]:
    worker = Asked(starter, index)
    yield worker
    await worker.close()


@pytest_asyncio.fixture(loop_scope="module")
async def wide(starter: Encoder, index: EdgeIndex) -> AsyncIterator[Asked]:
    worker = Asked(
        starter, index, partitions=PARTITIONS, owned=range(PARTITIONS), reply_topics=("shop.replies",)
    )
    yield worker
    await worker.close()


def after(offset: int, partition: int = 0) -> dict[str, int]:
    return {"partition": partition, "offset": offset}


# What an answer holds


async def test_a_user_who_clicks_coffee_gets_coffee_and_what_was_clicked_is_left_out(worker: Asked) -> None:
    await worker.apply(worker.click("ann", "dark roast"))
    response = await worker.answer("ann", limit=2)
    assert response.status == "ok"
    assert {item.item_id for item in response.items} <= {"espresso", "decaf", "filters"}
    seen = await worker.answer("ann", limit=1, exclude_seen=False)
    assert seen.items[0].item_id == "dark roast"


async def test_what_was_bought_comes_again_where_seen_items_may(worker: Asked) -> None:
    hours_ago = [{"at_ms": now_ms() - hours * 3_600_000} for hours in (9, 8, 7, 6, 5)]
    names = ("green tea", "dark roast", "green tea", "espresso", "batteries")
    await worker.apply(*(worker.click("ann", name, **at) for name, at in zip(names, hours_ago, strict=True)))
    await worker.apply(worker.click("ann", "espresso", action="hide"), worker.click("ann", "dark roast"))
    again = {"sources": {"buy-again": 1.0}, "explain": True}
    found = await worker.answer("ann", exclude_seen=False, **again)
    # Espresso is hidden, dark roast in the basket in hand.
    assert [item.item_id for item in found.items] == ["green tea", "batteries"]
    assert [item.because[0].item_id for item in found.items] == ["green tea", "batteries"]
    assert (
        await worker.answer("ann", exclude_seen=False, exclude=["batteries"], **again)
    ).items == found.items[:1]
    assert (await worker.answer("ann", **again)).items == []
    basket = [{"item_id": "green tea", "action": "add_to_cart"}]
    what_if = await worker.answer("ann", exclude_seen=False, session=basket, **again)
    assert [item.item_id for item in what_if.items] == ["batteries"]
    by_default = await worker.answer("ann", exclude_seen=False)
    assert "buy-again" in {item.source for item in by_default.items}


async def test_what_left_the_log_may_come_again_is_left_out_where_seen_items_are_and_is_told(
    worker: Asked,
) -> None:
    times = [now_ms() - hours * 3_600_000 for hours in range(60, 5, -1)]
    names = ["shampoo"] * 5 + ["green tea"] * 50
    await worker.apply(*(worker.click("ann", name, at_ms=at) for name, at in zip(names, times, strict=True)))
    again = {"sources": {"buy-again": 1.0}, "exclude_seen": False, "explain": True}
    found = await worker.answer("ann", **again)
    assert [item.item_id for item in found.items] == ["green tea", "shampoo"]
    # No event of the log is of it; those that are there are named as for any item.
    assert {reason.item_id for item in found.items for reason in item.because} == {"green tea"}
    everything = await worker.answer("ann", limit=20)
    assert not {"green tea", "shampoo"} & {item.item_id for item in everything.items}
    await worker.apply(worker.click("ann", "shampoo", action="hide"))
    hidden = await worker.answer("ann", **again)
    assert [item.item_id for item in hidden.items] == ["green tea"]


async def test_what_goes_with_the_session_at_hand_comes_from_a_bundle_with_a_table(
    starter: Encoder, index: EdgeIndex
) -> None:
    keys = np.sort(np.array([item_key(name) for name in TEXTS], dtype=np.uint64))
    row = {name: int(np.searchsorted(keys, item_key(name))) for name in TEXTS}
    pairs = sorted(
        (row[one], row[other], likeness)
        for one, other, likeness in (
            ("batteries", "dog food", 0.4),
            ("batteries", "shampoo", 0.3),
            ("batteries", "no such item", 0.9),
            ("green tea", "filters", 0.2),
        )
        if other in row
    )
    of, to, likeness = (np.array(column) for column in zip(*pairs, strict=True))
    starts = np.searchsorted(of, np.arange(len(keys) + 1))
    bundle = copy.copy(starter)
    bundle.neighbours = Neighbours(keys, starts, to, likeness.astype(np.float32), pause_ms=60_000)
    worker = Asked(bundle, index)
    only = {"sources": {"similar": 1.0}, "explain": True}
    lately = now_ms() - 30_000
    await worker.apply(
        worker.click("ann", "batteries", at_ms=lately), worker.click("ann", "green tea", at_ms=lately + 1)
    )
    found = await worker.answer("ann", **only)
    assert [(item.item_id, item.source) for item in found.items] == [
        ("dog food", "similar"),
        ("shampoo", "similar"),
        ("filters", "similar"),
    ]
    assert [[reason.item_id for reason in item.because] for item in found.items] == [
        ["batteries"],
        ["batteries"],
        ["green tea"],
    ]
    left = await worker.answer("ann", exclude=["dog food"], **only)
    assert [item.item_id for item in left.items] == ["shampoo", "filters"]
    await worker.apply(worker.click("ann", "shampoo", action="hide"))
    pets = await worker.answer("ann", exclude_seen=False, filter={"category": "pets"}, **only)
    hidden = await worker.answer("ann", exclude_seen=False, **only)
    assert [item.item_id for item in pets.items] == ["dog food"]
    assert [item.item_id for item in hidden.items] == ["dog food", "filters"]
    basket = [{"item_id": "green tea", "action": "add_to_cart"}]
    what_if = await worker.answer("bob", session=basket, **only)
    assert [item.item_id for item in what_if.items] == ["filters"]
    assert (what_if.items[0].because[0].item_id, what_if.items[0].because[0].action) == (
        "green tea",
        "add_to_cart",
    )
    assert (await worker.answer("ann", at_ms=now_ms() + 70_000, **only)).items == []
    by_default = await worker.answer("ann")
    assert "similar" in {item.source for item in by_default.items}
    assert (await worker.answer("ann", sources={"interests": 1.0})).items != by_default.items
    assert {answer.status for answer in worker.responses().values()} == {"ok"}
    await worker.close()


async def test_new_items_like_what_the_user_takes_come_to_who_asks_for_them(
    worker: Asked, index: EdgeIndex, starter: Encoder
) -> None:
    day_ms = 86_400_000
    arrivals = {
        "new tea": ("Herbal tea bags, 20 ct", now_ms() - day_ms),
        "new shampoo": ("Shampoo for oily hair", now_ms() - 29 * day_ms),
        "old tea": ("Black tea bags, 20 ct", now_ms() - 31 * day_ms),
    }
    vectors = starter.encode_items([text for text, _ in arrivals.values()])
    points = [
        Point(item_key(item_id), item_id, vector, {"item_id": item_id, "since_ms": since_ms}, None, 0, 100)
        for (item_id, (_, since_ms)), vector in zip(arrivals.items(), vectors, strict=True)
    ]
    await index.put(points)
    try:
        await worker.apply(worker.click("ann", "green tea"), worker.click("ann", "shampoo", action="hide"))
        only = {"sources": {"new": 1.0}, "explain": True}
        found = await worker.answer("ann", **only)
        assert [(item.item_id, item.source) for item in found.items] == [
            ("new tea", "new"),
            ("new shampoo", "new"),
        ]
        assert found.items[0].because[0].item_id == "green tea"
        basket = [{"item_id": "shampoo", "action": "add_to_cart"}]
        what_if = await worker.answer("bob", session=basket, limit=1, **only)
        assert [item.item_id for item in what_if.items] == ["new shampoo"]
        assert (await worker.answer("nobody", **only)).items == []
        assert "new" not in {item.source for item in (await worker.answer("ann")).items}
    finally:
        await index.put([Point(each.key, each.item_id, None, {}, None, 0, 101) for each in points])


async def test_a_request_for_neighbours_of_a_bundle_without_a_table_is_told(
    starter: Encoder, index: EdgeIndex
) -> None:
    bundle = copy.copy(starter)
    bundle.neighbours = None
    worker = Asked(bundle, index)
    await worker.apply(worker.click("ann", "green tea"))
    found = await worker.answer("ann", sources={"similar": 1.0})
    assert (found.status, found.rung, found.items) == ("degraded", "no-similar", [])
    assert (await worker.answer("ann")).rung is None
    await worker.close()


class EditorsChoice(KeySource):
    """A source from outside: its class, and a place in the registry."""

    name = "editors-choice"
    default_weight = 100.0
    rung = "no-choice"

    def keys(self, ask: Ask) -> Mapping[int, float]:
        return {item_key("cat litter"): 1.0, item_key("no such item"): 0.5}


async def test_a_source_from_outside_comes_into_answers(starter: Encoder, index: EdgeIndex) -> None:
    worker = Asked(starter, index, registry=(*REGISTRY, EditorsChoice))
    await worker.apply(worker.click("ann", "dark roast"))
    found = await worker.answer("ann", limit=2, explain=True)
    assert (found.items[0].item_id, found.items[0].source) == ("cat litter", "editors-choice")
    assert found.items[0].because[0].item_id == "dark roast"
    assert (found.items[1].source, found.rung) == ("interests", None)
    assert (await worker.answer("ann", exclude=["cat litter"])).items[0].source == "interests"
    await worker.close()


async def test_the_answer_proves_what_it_reflects(worker: Asked) -> None:
    await worker.apply(worker.click("ann", "dark roast"), worker.click("bob", "green tea"))
    record = worker.click("ann", "no such item", event_id="the last")
    await worker.apply(record)
    response = await worker.answer("ann")
    assert response.reflects is not None
    proof = response.reflects
    assert (proof.partition, proof.offset, proof.events, proof.pending) == (0, 2, 2, 1)
    assert proof.last_event_id == "the last"
    assert proof.last_event_at_ms == json.loads(record.value)["at_ms"]
    assert response.model == worker.encoder.id
    assert response.catalog == {0: 8}
    assert {"read", "recall", "total"} <= set(response.timings_ms)


async def test_recall_is_asked_for_the_pool_of_a_bundle_that_scores(
    worker: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks: list[Ask] = []
    candidates = Recall.candidates

    async def watched(self: Recall, given: Sequence[Ask], *rest: Any) -> Any:
        asks.extend(given)
        return await candidates(self, given, *rest)

    monkeypatch.setattr(Recall, "candidates", watched)
    await worker.apply(worker.click("ann", "espresso"), worker.click("ann", "shampoo", action="hide"))
    await worker.answer("ann")
    monkeypatch.setattr(worker.encoder, "pool", 7)
    response = await worker.answer("ann", at_ms=(now := now_ms() + 5_000), session=[{"item_id": "filters"}])
    await worker.answer("ann", sources={"interests": 1.0})
    assert [each.pool for each in asks] == [0, 7, 0]
    assert [key for key, _, _ in asks[1].events] == [item_key("espresso"), item_key("filters")]
    assert asks[1].events[1][1] == asks[1].now_ms == now
    assert asks[1].unwanted == {item_key("shampoo")}
    assert response.status == "ok"


async def hide(worker: Asked, user: str, item: str, action: str = "hide") -> None:
    """Bought twice and hidden, and then sixty purchases of other items, so the log has lost all three."""
    start_ms = now_ms() - 8 * 3_600_000
    events = [*[(item, "purchase")] * 2, (item, action), *[("filters", "purchase"), ("decaf", "click")] * 30]
    await worker.apply(
        *(
            worker.click(user, each, action=done, event_id=f"{user} {number}", at_ms=start_ms + number)
            for number, (each, done) in enumerate(events)
        )
    )


ALL_SOURCES: list[dict[str, float]] = [
    {},
    *({name: 1.0} for name in ("interests", "buy-again", "query", "item", "popular", "similar", "new")),
]


@pytest.mark.parametrize("sources", ALL_SOURCES, ids=str)
@pytest.mark.parametrize("action", ["hide", "dislike"])
async def test_what_a_user_hides_comes_from_no_source_and_is_no_reason(
    worker: Asked, sources: dict[str, float], action: str
) -> None:
    await hide(worker, "ann", "batteries", action)
    for more in (
        {},
        {"session": [{"item_id": "batteries"}, {"item_id": "espresso"}]},
        {"at_ms": now_ms() + 9},
    ):
        found = await worker.answer(
            "ann",
            exclude_seen=False,
            explain=True,
            items=["green tea"],
            limit=9,
            sources=sources,
            query="alkaline batteries",
            **more,
        )
        assert "batteries" not in [item.item_id for item in found.items]
        assert "batteries" not in {reason.item_id for item in found.items for reason in item.because}
        assert found.items or sources


async def test_what_a_user_hides_stays_hidden_while_the_index_is_down(
    worker: Asked, index: EdgeIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def down(*_arguments: Any) -> Any:
        raise IndexUnavailable("it is away")

    await hide(worker, "ann", "batteries")
    for call in ("search", "match", "vectors", "items"):
        monkeypatch.setattr(index, call, down)
    shown = await worker.answer("bob", exclude_seen=False)
    assert (shown.rung, [item.item_id for item in shown.items]) == ("popular", ["batteries"])
    assert (await worker.answer("ann", exclude_seen=False)).items == []


async def test_what_comes_short_says_that_it_is_hidden(worker: Asked) -> None:
    start_ms = now_ms() - 8 * 3_600_000
    await worker.apply(
        worker.click("ann", "batteries", action="purchase", at_ms=start_ms),
        worker.click("ann", "batteries", action="hide", at_ms=start_ms + 1),
    )
    found = await worker.answer("ann", exclude_seen=False, sources={"buy-again": 1.0, "popular": 1.0})
    assert (found.items, found.why) == ([], {"buy-again": "hidden", "popular": "hidden"})


async def test_a_hidden_item_comes_again_when_the_hide_is_taken_back_or_the_item_is_liked(
    worker: Asked,
) -> None:
    for user in ("ann", "bob", "cy"):
        await hide(worker, user, "batteries")
    what_if = [{"item_id": "batteries", "action": "like"}]
    asked: dict[str, Any] = {"exclude_seen": False, "sources": {"popular": 1.0}}
    assert [i.item_id for i in (await worker.answer("cy", session=what_if, **asked)).items] == ["batteries"]
    assert (await worker.answer("cy", **asked)).items == []
    await worker.apply(
        worker.click("ann", action="retract", event_id="ann 2", at_ms=now_ms()),
        worker.click("bob", "batteries", action="like"),
    )
    for user in ("ann", "bob"):
        assert [item.item_id for item in (await worker.answer(user, **asked)).items] == ["batteries"]
    await worker.apply(worker.click("cy", "filters", action="forget", at_ms=now_ms()))
    assert [item.item_id for item in (await worker.answer("cy", **asked)).items] == ["batteries"]


async def test_the_list_changes_when_all_that_explains_it_is_disliked(worker: Asked) -> None:
    start_ms = now_ms() - 60_000
    bought = ("espresso", "decaf", "filters")
    await worker.apply(*(worker.click("ann", item, action="purchase", at_ms=start_ms) for item in bought))
    before = await worker.answer("ann", explain=True, limit=3)
    reasons = {reason.item_id for item in before.items for reason in item.because}
    assert reasons == {*bought}
    assert before.items[0].item_id == "dark roast"
    await worker.apply(*(worker.click("ann", item, action="dislike", at_ms=start_ms + 1) for item in reasons))
    after = await worker.answer("ann", explain=True, limit=3)
    assert "dark roast" not in [item.item_id for item in after.items]
    assert not any(item.because for item in after.items)


async def test_marks_of_retractions_are_no_events_of_the_proof(worker: Asked) -> None:
    await worker.apply(
        worker.click("ann", "dark roast", event_id="e1"), worker.click("ann", "shampoo", event_id="e2")
    )
    await worker.apply(worker.click("ann", action="retract", event_id="e1"))
    response = await worker.answer("ann")
    assert response.reflects is not None
    assert response.reflects.events == 1
    assert response.reflects.last_event_id == "e2"


async def test_an_unknown_user_gets_what_is_popular(worker: Asked) -> None:
    response = await worker.answer("nobody")
    assert (response.status, [item.item_id for item in response.items]) == ("ok", ["batteries"])
    assert response.reflects is not None
    assert (response.reflects.events, response.reflects.last_event_id) == (0, None)


async def test_what_if_events_count_for_one_answer_and_are_stored_nowhere(worker: Asked) -> None:
    response = await worker.answer(
        "ann", limit=2, session=[{"item_id": "dark roast"}, {"item_id": "espresso"}]
    )
    assert {item.item_id for item in response.items} <= {"decaf", "filters"}
    assert b"ann" not in worker.partition().columns.rows
    again = await worker.answer("ann")
    assert [item.item_id for item in again.items] == ["batteries"]


async def test_a_text_query_needs_no_history(worker: Asked) -> None:
    response = await worker.answer("ann", query="food for my dog", limit=1, sources={"query": 1.0})
    assert (response.items[0].item_id, response.items[0].source) == ("dog food", "query")


async def test_an_answer_with_nothing_in_it_says_why(worker: Asked) -> None:
    nothing = await worker.answer("ann", sources={"query": 1.0})
    assert (nothing.status, nothing.items, nothing.why) == ("ok", [], {"query": "no_query"})
    cold = await worker.answer("ann", limit=1)
    assert ([item.item_id for item in cold.items], cold.why["interests"]) == (["batteries"], "no_events")
    await worker.apply(worker.click("ann", "no such item"))
    assert (await worker.answer("ann")).why["interests"] == "no_vectors"


async def test_what_is_still_being_read_is_told_by_the_rung_and_by_no_reason(worker: Asked) -> None:
    worker.index_ready = False
    response = await worker.answer("ann", sources={"interests": 1.0})
    assert (response.items, response.rung, response.why) == ([], "restoring", {})


async def test_a_text_that_the_bundle_cannot_read_is_told_beside_a_full_answer(
    worker: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.encoder, "item_inputs", "item_id")
    response = await worker.answer("ann", limit=1, query="dog food")
    assert (len(response.items), response.why["query"]) == (1, "no_text")


async def test_filter_exclusion_and_limit_hold(worker: Asked) -> None:
    await worker.apply(worker.click("ann", "dark roast"))
    response = await worker.answer("ann", filter={"category": "pets"}, exclude=["cat litter"], limit=5)
    assert [item.item_id for item in response.items] == ["dog food"]


async def test_reasons_name_the_users_own_events_only_when_asked_for(worker: Asked) -> None:
    await worker.apply(worker.click("ann", "dark roast", action="purchase"), worker.click("ann", "dog food"))
    explained = await worker.answer("ann", limit=1, explain=True, filter={"category": "grocery"})
    because = explained.items[0].because
    assert because[0].item_id == "dark roast"
    assert because[0].action == "purchase"
    assert sum(reason.share for reason in because) == pytest.approx(1.0, abs=1e-3)
    assert (await worker.answer("ann", limit=1)).items[0].because == []


async def test_every_answer_fits_the_printed_schema(worker: Asked) -> None:
    await worker.apply(worker.click("ann", "dark roast"))
    await worker.answer("ann", explain=True)
    await worker.answer("ann", limit=0)
    await worker.answer("ann", deadline_ms=1, timestamp_ms=now_ms() - 5)
    worker.index_ready = False
    await worker.answer("ann")
    records = worker.producer.records(worker.topics.responses)
    statuses = set()
    for record in records:
        message = json.loads(record.value)
        jsonschema.validate(message, schemas()["Response"], jsonschema.Draft202012Validator)
        statuses.add(message["status"])
        assert record.key == b"ann"
    assert statuses == {"ok", "rejected", "expired", "degraded"}


# Waiting for a click


async def test_a_request_waits_for_its_click_and_holds_nobody_up(worker: Asked) -> None:
    parked = await worker.ask(worker.request("ann", "waits", after=after(0)))
    assert worker.responses() == {}
    assert parked in worker.consumer.released
    assert parked not in worker.consumer.finished
    assert worker.measured("parked_requests") == 1
    other = await worker.ask(worker.request("bob", "goes"))
    assert set(worker.responses()) == {"goes"}
    assert other in worker.consumer.finished
    await worker.apply(worker.click("ann", "dark roast"))
    await until(lambda: "waits" in worker.responses())
    response = worker.responses()["waits"]
    assert response.status == "ok"
    assert response.reflects is not None
    assert (response.reflects.offset, response.reflects.events) == (0, 1)
    await until(lambda: parked in worker.consumer.finished)
    assert worker.measured("parked_requests") == 0


async def test_the_next_requests_need_not_wait_until_an_answer_is_acknowledged(worker: Asked) -> None:
    worker.producer.slow = {worker.topics.responses}
    batch = worker.batch([worker.request("bob", "goes")])
    answering = asyncio.create_task(worker.requests.handle(batch))
    await until(worker.responses)
    assert batch in worker.consumer.released
    assert batch not in worker.consumer.finished
    worker.producer.acknowledge()
    await answering
    assert batch in worker.consumer.finished


async def test_the_next_batch_comes_before_acknowledgements_where_deadlines_differ(worker: Asked) -> None:
    worker.producer.slow = {worker.topics.responses}
    records = [worker.request("ann", "patient"), worker.request("bob", "hasty", deadline_ms=9_000)]
    batch = worker.batch(records)
    answering = asyncio.create_task(worker.requests.handle(batch))
    await until(lambda: len(worker.responses()) == 2)
    assert batch in worker.consumer.released
    assert batch not in worker.consumer.finished
    worker.producer.acknowledge()
    worker.producer.acknowledge()
    await answering
    assert batch in worker.consumer.finished


async def test_the_next_batch_comes_before_acknowledgements_where_our_own_code_failed(
    worker: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = worker.encoder.encode_queries

    def brittle(texts: list[str]) -> Any:
        if len(texts) > 1:
            raise ArithmeticError
        return encode(texts)

    monkeypatch.setattr(worker.encoder, "encode_queries", brittle)
    worker.producer.slow = {worker.topics.responses}
    batch = worker.batch([worker.request("ann", query, query=query) for query in ("tea", "coffee")])
    answering = asyncio.create_task(worker.requests.handle(batch))
    await until(lambda: len(worker.responses()) == 1)
    assert batch in worker.consumer.released
    assert batch not in worker.consumer.finished
    worker.producer.acknowledge()
    await until(lambda: len(worker.responses()) == 2)
    worker.producer.acknowledge()
    await answering
    assert batch in worker.consumer.finished


async def test_a_click_that_is_applied_already_is_not_waited_for(worker: Asked) -> None:
    await worker.apply(worker.click("ann", "dark roast"))
    assert (await worker.answer("ann", after=after(0))).status == "ok"


async def test_a_request_may_wait_for_a_click_whose_place_nobody_knows_yet(worker: Asked) -> None:
    parked = await worker.ask(worker.request("ann", "waits", after_event_id="mine"))
    await worker.apply(worker.click("ann", "dark roast", event_id="another"))
    await worker.apply(worker.click("bob", "decaf", event_id="mine"))
    assert worker.responses() == {}
    assert worker.requests.parked == 1
    await worker.apply(worker.click("ann", "decaf", event_id="mine"))
    await until(lambda: parked in worker.consumer.finished)
    response = worker.responses()["waits"]
    assert response.status == "ok"
    assert response.reflects is not None
    assert (response.reflects.last_event_id, response.reflects.offset) == ("mine", 2)
    assert worker.requests.parked == 0
    assert (await worker.answer("ann", after_event_id="another")).status == "ok"  # it is in the log


@pytest.mark.parametrize(
    "beside",
    [
        {"action": "impression"},
        {"at_ms": 1_500_000_000_000},  # too late for a full log
    ],
)
async def test_an_event_that_comes_into_no_log_is_waited_for_as_well(
    worker: Asked, beside: dict[str, Any]
) -> None:
    await worker.apply(*(worker.click("ann", "dark roast") for _ in range(worker.encoder.log_length)))
    await worker.ask(worker.request("ann", "before", after_event_id="beside"))
    assert worker.responses() == {}
    await worker.apply(worker.click("ann", "decaf", event_id="beside", **beside))
    await until(worker.responses)
    assert worker.responses()["before"].status == "ok"
    assert (await worker.answer("ann", after_event_id="beside")).status == "ok"


async def test_an_event_that_newer_ones_have_pushed_out_of_its_log_has_come_all_the_same(
    worker: Asked,
) -> None:
    start_ms = now_ms() - 1_000
    events = [
        worker.click("ann", "decaf", event_id=f"e{n}", at_ms=start_ms + n)
        for n in range(worker.encoder.log_length + 1)
    ]
    await worker.ask(worker.request("ann", "before", after_event_id="e0"))
    await worker.apply(*events)
    await until(worker.responses)
    assert worker.responses()["before"].status == "ok"
    assert (await worker.answer("ann", after_event_id="e0")).status == "ok"
    await worker.ask(worker.request("bob", "another", after_event_id="e0", deadline_ms=50))
    await until(lambda: "another" in worker.responses())
    assert worker.responses()["another"].status == "expired"


async def test_what_is_remembered_of_events_beside_the_logs_is_bounded(
    worker: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwater.profiles.partition._MAX_UNLOGGED", 2)
    seen = [worker.click("ann", "decaf", action="impression", event_id=f"seen {n}") for n in range(4)]
    await worker.apply(worker.click("ann", "decaf"), *seen)
    statuses = [
        (await worker.answer("ann", after_event_id=f"seen {n}", deadline_ms=50)).status for n in (2, 3)
    ]
    assert statuses == ["ok", "ok"]
    assert len(worker.partition()._unlogged) == 2


async def test_an_event_that_does_not_come_lets_the_request_expire(worker: Asked) -> None:
    batch = await worker.ask(worker.request("ann", after_event_id="lost", deadline_ms=30))
    await until(worker.responses)
    response = worker.responses()["r1"]
    assert response.status == "expired"
    assert response.error is not None
    assert response.error.message.startswith("after_event_id: 'lost' was not seen within 30 ms")
    await until(lambda: batch in worker.consumer.finished)
    assert worker.requests.parked == 0


async def test_an_event_that_the_last_owner_applied_is_found_when_its_partition_is_opened(
    worker: Asked,
) -> None:
    partition = worker.partition()
    await worker.apply(worker.click("ann", "dark roast", event_id="mine"))
    partition.gate.close()
    await worker.ask(worker.request("ann", after_event_id="mine"))
    assert worker.responses() == {}
    partition.gate.open()
    partition.mark_applied(0)
    await until(worker.responses)
    assert worker.responses()["r1"].status == "ok"


async def test_an_event_of_a_former_clicks_log_is_found_before_the_present_one_has_any(worker: Asked) -> None:
    partition = worker.partition()
    await worker.apply(worker.click("ann", "dark roast", event_id="mine"))
    partition.start_incarnation(1)
    partition.applied = partition.watermark = -1
    response = await worker.answer("ann", after_event_id="mine")
    assert response.reflects is not None
    assert (response.status, response.reflects.offset, response.reflects.events) == ("ok", -1, 1)


async def test_an_event_is_not_missed_while_a_later_one_of_its_user_is_on_its_way(worker: Asked) -> None:
    partition = worker.partition()
    await worker.apply(worker.click("ann", "dark roast", event_id="mine"))
    row = partition.columns.rows[b"ann"]
    partition.columns.offset[row] = 1  # the next batch is in the columns, and not on its way yet
    await worker.ask(worker.request("ann", after_event_id="mine"))
    assert worker.responses() == {}
    partition.mark_applied(1, np.array([7], dtype=np.uint64))  # which had another event
    partition.move_watermark(1)
    await until(worker.responses)
    assert worker.responses()["r1"].status == "ok"
    assert worker.requests.parked == 0


async def test_a_request_whose_user_moves_on_before_it_is_answered_waits_for_that_too(worker: Asked) -> None:
    partition = worker.partition()
    batch = await worker.ask(worker.request("ann", after_event_id="mine"))
    await worker.apply(worker.click("bob", "decaf"))
    columns = partition.columns
    partition.row_of(b"ann")
    row = columns.rows[b"ann"]
    partition.remember_unlogged(np.array([row]), np.array([event_key("mine")], dtype=np.uint64))
    partition.mark_applied(0)
    assert worker.requests.parked == 0  # it is about to be answered,
    columns.offset[row] = 1  # when the next batch is in the columns, and not on its way to the changelog yet
    await asyncio.gather(*worker.tasks)
    assert (worker.responses(), worker.requests.parked) == ({}, 1)
    partition.mark_applied(1, np.array([7], dtype=np.uint64))
    partition.move_watermark(1)
    await until(lambda: batch in worker.consumer.finished)
    assert worker.responses()["r1"].status == "ok"


async def test_what_is_remembered_beside_the_logs_outlives_the_erasure_of_others(worker: Asked) -> None:
    await worker.apply(
        worker.click("ann", "decaf"),
        worker.click("ann", "decaf", action="impression", event_id="seen"),
        worker.click("bob", "decaf"),
        worker.click("bob", action="forget", at_ms=now_ms()),
    )
    assert (await worker.answer("ann", after_event_id="seen")).status == "ok"


async def test_a_request_waits_for_a_place_or_an_event_not_both(worker: Asked) -> None:
    response = await worker.answer("ann", after=after(0), after_event_id="mine")
    assert response.status == "rejected"
    assert response.error is not None
    assert response.error.message == "after_event_id: got it beside after, expected one of the two"


async def test_an_answer_that_waited_for_an_event_waits_for_it_to_be_stored(worker: Asked) -> None:
    await worker.ask(worker.request("ann", after_event_id="mine"))
    worker.producer.slow = {worker.topics.profiles}
    applying = asyncio.create_task(worker.apply(worker.click("ann", "dark roast", event_id="mine")))
    await until(lambda: worker.requests.parked == 0)
    await asyncio.sleep(0.05)
    assert worker.responses() == {}
    worker.producer.acknowledge()
    await applying
    await until(worker.responses)
    assert worker.responses()["r1"].status == "ok"


async def test_a_bad_click_wakes_who_waits_for_its_offset(worker: Asked) -> None:
    await worker.ask(worker.request("ann", after=after(0)))
    await worker.apply(worker.record(worker.topics.clicks, b"ann", b"{"))
    await until(worker.responses)
    assert worker.responses()["r1"].status == "ok"


async def test_a_batch_is_finished_with_the_last_of_its_requests(worker: Asked) -> None:
    batch = await worker.ask(
        worker.request("ann", "now"),
        worker.request("ann", "second", after=after(1)),
        worker.request("ann", "first", after=after(0)),
    )
    await worker.apply(worker.click("ann", "dark roast"))
    await until(lambda: "first" in worker.responses())
    assert set(worker.responses()) == {"now", "first"}
    assert batch not in worker.consumer.finished
    await worker.apply(worker.click("ann", "decaf"))
    await until(lambda: batch in worker.consumer.finished)
    assert set(worker.responses()) == {"now", "first", "second"}


async def test_a_click_that_does_not_come_lets_the_request_expire_with_where_things_are(
    worker: Asked,
) -> None:
    batch = await worker.ask(worker.request("ann", after=after(7), deadline_ms=30))
    await until(worker.responses)
    response = worker.responses()["r1"]
    assert response.status == "expired"
    assert response.error is not None
    assert "offset 7 of partition 0 was not applied within 30 ms" in response.error.message
    assert "partition 0 is at -1" in response.error.message
    assert response.items == []
    await until(lambda: batch in worker.consumer.finished)
    assert worker.requests.parked == 0


async def test_expired_requests_leave_no_records_behind_while_others_wait(worker: Asked) -> None:
    await worker.ask(worker.request("ann", "patient", after=after(5)))
    records = [worker.request("ann", f"r{n}", after=after(9), deadline_ms=20) for n in range(3)]
    for record in records:
        await worker.ask(record)
    left = [weakref.ref(record) for record in records]
    del record, records
    await until(lambda: len(worker.responses()) == 3)
    await asyncio.gather(*worker.tasks)
    worker.tasks.clear()
    worker.consumer.released.clear()
    worker.consumer.finished.clear()
    gc.collect()
    assert worker.requests.parked == 1
    assert [each() for each in left] == [None] * 3


@pytest.mark.parametrize("ahead_s", [40.0, -3_600.0])
async def test_deadlines_count_by_the_brokers_clock(worker: Asked, ahead_s: float) -> None:
    """A worker whose clock is ahead by more than a deadline would expire every request."""
    clock = BrokerClock(cast(Any, Appending()), "trends", lambda: time.time() + ahead_s)
    await clock.measure()
    worker.clock = clock.now_s
    response = await worker.answer("ann", deadline_ms=LONG_MS)
    assert response.status == "ok"
    late = await worker.answer("ann", deadline_ms=2_000, timestamp_ms=now_ms() - 2_500)
    assert late.status == "expired"


async def test_a_timer_that_is_early_by_the_wall_clock_expires_its_request_all_the_same(
    worker: Asked,
) -> None:
    """The loop's clock and the records' are two; an answer without the demanded click would break the promise."""
    record = worker.request("ann", after=after(7), deadline_ms=30)
    worker.clock = lambda: record.timestamp / 1000
    await worker.ask(record)
    await until(worker.responses)
    assert worker.responses()["r1"].status == "expired"


async def test_a_request_read_after_its_deadline_expires(worker: Asked) -> None:
    response = await worker.answer("ann", deadline_ms=1_000, timestamp_ms=now_ms() - 5_000)
    assert response.status == "expired"
    assert response.error is not None
    assert "1000 ms were over before the request was read" in response.error.message


async def test_a_request_whose_deadline_passes_between_two_looks_is_answered(worker: Asked) -> None:
    record = worker.request("ann", deadline_ms=1_000)
    for looks in range(1, 6):
        times = iter([record.timestamp / 1000] * looks)
        worker.clock = lambda: next(times, record.timestamp / 1000 + 1.1)  # noqa: B023  used up in this turn
        batch = await worker.ask(record)
        assert batch in worker.consumer.finished
    assert len(worker.producer.records(worker.topics.responses)) == 5


async def test_beyond_the_bound_of_parked_requests_others_are_refused_and_told_so(
    starter: Encoder, index: EdgeIndex
) -> None:
    worker = Asked(starter, index, max_parked=2)
    await worker.ask(*(worker.request("ann", f"r{number}", after=after(5)) for number in range(4)))
    assert {name: response.status for name, response in worker.responses().items()} == {
        "r2": "rejected",
        "r3": "rejected",
    }
    error = worker.responses()["r2"].error
    assert error is not None
    assert (error.code, "2 requests wait already, expected at most 2" in error.message) == (
        "overloaded",
        True,
    )
    assert (await worker.answer("ann")).status == "ok"
    await worker.close()


async def test_at_a_rebalance_the_parked_are_dropped_unanswered(worker: Asked) -> None:
    batch = await worker.ask(
        worker.request("ann", after=after(0), deadline_ms=50),
        worker.request("ann", "r2", after_event_id="event 0", deadline_ms=50),
    )
    worker.requests.drop_parked()
    await worker.apply(worker.click("ann", "dark roast"))
    await asyncio.sleep(0.1)  # past the deadline: its timer is gone too
    assert worker.responses() == {}
    assert batch not in worker.consumer.finished
    assert worker.measured("parked_requests") == 0


async def test_a_rebalance_between_a_click_and_the_answer_that_waited_for_it_leaves_it_to_the_next_owner(
    worker: Asked,
) -> None:
    batch = await worker.ask(worker.request("ann", after=after(0)))
    worker.partition().mark_applied(0)  # it leaves the parking lot
    worker.profiles.freeze()
    await asyncio.gather(*worker.tasks)
    assert worker.responses() == {}
    assert batch not in worker.consumer.finished


async def test_while_the_partition_is_read_requests_with_after_wait_and_others_say_restoring(
    starter: Encoder, index: EdgeIndex
) -> None:
    worker = Asked(starter, index, owned=())
    partition = worker.own(0, is_open=False)
    await worker.ask(worker.request("ann", "waits", after=after(3)), worker.request("ann", "now"))
    assert {name: (each.status, each.rung) for name, each in worker.responses().items()} == {
        "now": ("degraded", "restoring")
    }
    claimed = worker.responses()["now"].reflects
    assert claimed is not None
    assert (claimed.offset, claimed.events) == (-1, 0)
    partition.watermark = 3
    partition.gate.open()
    partition.mark_applied(3)
    await until(lambda: "waits" in worker.responses())
    assert worker.responses()["waits"].status == "ok"
    await worker.close()


async def unstored(worker: Asked, *clicks: str) -> "asyncio.Task[Any]":
    """Have clicks of Ann's applied that the changelog has not acknowledged yet."""
    worker.producer.slow = {worker.topics.profiles}
    records = [worker.click("ann", item) for item in clicks]
    applying = asyncio.create_task(worker.apply(*records))
    await until(lambda: worker.partition().applied == records[-1].offset)
    return applying


async def test_nobody_is_told_of_a_click_before_it_is_stored(worker: Asked) -> None:
    applying = await unstored(worker, "dark roast")
    asking = asyncio.create_task(worker.ask(worker.request("ann", after=after(0))))
    await asyncio.sleep(0.1)
    assert worker.responses() == {}
    worker.producer.acknowledge()
    await asyncio.gather(applying, asking)
    (response,) = worker.responses().values()
    assert response.reflects is not None
    assert (response.status, response.reflects.offset, response.reflects.events) == ("ok", 0, 1)


async def test_an_answer_claims_no_item_that_came_after_its_search(worker: Asked) -> None:
    applying = await unstored(worker, "dark roast")
    asking = asyncio.create_task(worker.ask(worker.request("ann", after=after(0))))
    await asyncio.sleep(0.1)
    worker.catalog[0] = 9
    worker.producer.acknowledge()
    await asyncio.gather(applying, asking, *worker.tasks)
    assert worker.responses()["r1"].catalog == {0: 8}


async def test_a_request_without_after_claims_only_what_is_stored(worker: Asked) -> None:
    applying = await unstored(worker, "dark roast")
    reflects = (await worker.answer("ann")).reflects
    assert reflects is not None
    assert reflects.offset == -1
    worker.producer.acknowledge()
    await applying


async def test_a_click_that_is_not_stored_in_time_makes_only_the_impatient_expire(worker: Asked) -> None:
    applying = await unstored(worker, "dark roast")
    batch = await worker.ask(
        worker.request("ann", "soon", after=after(0), deadline_ms=60),
        worker.request("ann", "later", after=after(0), deadline_ms=30_000),
    )
    await until(lambda: "soon" in worker.responses())
    assert worker.responses()["soon"].status == "expired"
    assert "later" not in worker.responses()
    assert batch not in worker.consumer.finished
    worker.producer.acknowledge()
    await applying
    await until(lambda: batch in worker.consumer.finished)
    assert worker.responses()["later"].status == "ok"


async def test_an_answer_that_waits_for_its_click_to_be_stored_is_dropped_at_a_rebalance(
    worker: Asked,
) -> None:
    applying = await unstored(worker, "dark roast")
    asking = asyncio.create_task(worker.ask(worker.request("ann", after=after(0))))
    await asyncio.sleep(0.1)
    worker.profiles.freeze()
    batch = await asking
    worker.producer.acknowledge()
    with pytest.raises(PartitionLost):
        await applying
    assert worker.responses() == {}
    assert worker.consumer.finished == []
    assert not batch.finished


async def test_an_answer_without_the_state_that_a_newer_version_wrote_says_so(worker: Asked) -> None:
    worker.partition().sealed[b"ann"] = Sealed(Order(0, 3, GENERATION), 0)
    answers = [await worker.answer(user) for user in ("ann", "bob")]
    assert [(each.status, each.rung) for each in answers] == [("degraded", "newer-format"), ("ok", None)]
    assert (answers[0].why, bool(answers[1].why)) == ({}, True)


async def test_while_the_index_is_read_answers_say_restoring(worker: Asked) -> None:
    worker.index_ready = False
    response = await worker.answer("ann")
    assert (response.status, response.rung) == ("degraded", "restoring")


async def _fails(keys: Sequence[int]) -> Mapping[int, F32]:
    raise IndexUnavailable("told to be away")


async def _hangs(keys: Sequence[int]) -> Mapping[int, F32]:
    await asyncio.sleep(1_000)
    return {}


@pytest.mark.parametrize("fetch", [_fails, _hangs])
async def test_where_vectors_cannot_be_fetched_in_time_an_answer_rests_on_the_stored_state_and_says_so(
    worker: Asked, fetch: Fetch
) -> None:
    worker.vectors._fetch = fetch
    session = [{"item_id": "never heard of"}]
    response = await worker.answer("ann", session=session, deadline_ms=2_000)
    assert (response.status, response.rung) == ("degraded", "stored")
    assert (await worker.answer("ann")).status == "ok"  # which lacks nothing


async def test_who_has_little_time_takes_none_from_the_others_of_the_batch(worker: Asked) -> None:
    async def takes_its_time(keys: Sequence[int]) -> Mapping[int, F32]:
        await asyncio.sleep(0.05)
        return {}

    worker.vectors._fetch = takes_its_time
    session = [{"item_id": "never heard of"}]
    await worker.ask(
        worker.request("ann", "patient", session=session, deadline_ms=60_000),
        worker.request("bob", "hasty", session=session, deadline_ms=100),
    )
    assert worker.responses()["patient"].status == "ok"
    assert worker.responses()["hasty"].status != "ok"


# Strays


def away_from_home(user: str) -> tuple[int, int]:
    home = partition_of(user.encode(), PARTITIONS)
    return home, (home + 1) % PARTITIONS


async def test_a_stray_request_is_forwarded_and_answered_at_home_by_its_first_deadline(wide: Asked) -> None:
    home, away = away_from_home("ann")
    sent_ms = now_ms() - 10_000
    record = wide.request("ann", partition=away, timestamp_ms=sent_ms, deadline_ms=5_000)
    batch = await wide.ask(record)
    assert wide.responses() == {}
    assert batch in wide.consumer.finished
    (sent,) = wide.producer.records(wide.topics.requests)
    assert sent.partition == home
    await wide.ask(
        wide.record(wide.topics.requests, b"ann", sent.value, partition=home, headers=sent.headers)
    )
    assert wide.responses()["r1"].status == "expired"
    assert wide.measured("strays_total", topic=wide.topics.requests) == 1


async def test_after_in_stray_coordinates_waits_for_the_forwarded_click(wide: Asked) -> None:
    home, away = away_from_home("ann")
    await wide.ask(wide.request("ann", partition=home, after=after(12, away)))
    await wide.apply(wide.click("ann", "green tea", partition=home))
    await asyncio.gather(*wide.tasks)
    assert wide.responses() == {}
    outgoing = forwarded(wide.click("ann", "dark roast", partition=away, offset=12), b"ann")
    await wide.apply(
        wide.record(wide.topics.clicks, b"ann", outgoing.value, partition=home, headers=outgoing.headers)
    )
    await until(wide.responses)
    response = wide.responses()["r1"]
    assert response.status == "ok"
    assert response.reflects is not None
    assert response.reflects.events == 2


async def test_a_stray_that_is_not_on_its_way_to_the_changelog_yet_is_waited_for(
    wide: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, away = away_from_home("ann")
    await wide.apply(wide.click("ann", "green tea", partition=home))
    send, may_send = wide.profiles.send, asyncio.Event()

    async def kept(*arguments: Any) -> Any:
        await may_send.wait()
        return await send(*arguments)

    monkeypatch.setattr(wide.profiles, "send", kept)
    outgoing = forwarded(wide.click("ann", "dark roast", partition=away, offset=12), b"ann")
    applying = asyncio.ensure_future(
        wide.apply(
            wide.record(wide.topics.clicks, b"ann", outgoing.value, partition=home, headers=outgoing.headers)
        )
    )
    await until(lambda: wide.partition(home).columns.origins)
    await wide.ask(wide.request("ann", partition=home, after=after(12, away)))
    await asyncio.gather(*wide.tasks)
    assert wide.responses() == {}
    may_send.set()
    await applying
    await until(wide.responses)
    assert wide.responses()["r1"].reflects.events == 2  # type: ignore[union-attr]


async def test_a_request_that_is_misrouted_twice_is_dead_lettered(wide: Asked) -> None:
    _, away = away_from_home("ann")
    outgoing = forwarded(wide.request("ann", partition=away), b"ann")
    await wide.ask(
        wide.record(wide.topics.requests, b"ann", outgoing.value, partition=away, headers=outgoing.headers)
    )
    assert [reason for reason, _, _ in wide.letters()] == ["misrouted"]


# Refusals


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"limit": "10"}, "bad_field", "limit: got '10', expected `int`"),
        ({"limit": 10**9}, "bad_field", "limit: got 1000000000"),
        ({"filter": {"colour": "red"}}, "bad_filter", "colour"),
        ({"filter": {"or": [{"category": str(n)} for n in range(1000)]}}, "bad_filter", "64"),
        (
            {"after": {"partition": 9, "offset": 0}},
            "unknown_partition",
            "after.partition: got 9, expected 0 to 0",
        ),
        (
            {"sources": {"nope": 1}},
            "bad_field",
            "one of interests, query, item, popular, buy-again, similar, new",
        ),
        ({"at_ms": now_ms() + 10**11}, "time_in_future", "at_ms: got"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_an_invalid_request_is_rejected_with_the_reason(
    worker: Asked, fields: Mapping[str, Any], code: str, said: str
) -> None:
    batch = await worker.ask(worker.request("ann", **fields), worker.request("bob", "good"))
    response = worker.responses()["r1"]
    assert response.status == "rejected"
    assert response.error is not None
    assert response.error.code == code
    assert said in response.error.message
    assert worker.responses()["good"].status == "ok"
    assert worker.letters() == []
    assert batch in worker.consumer.finished


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b'{"user_id":"ann"}', b'{"a":' * 10_000])
async def test_a_request_without_a_readable_id_goes_to_the_dead_letters(
    worker: Asked, value: bytes | None
) -> None:
    batch = await worker.ask(
        worker.record(worker.topics.requests, b"ann", value), worker.request("bob", "good")
    )
    assert len(worker.letters()) == 1
    assert set(worker.responses()) == {"good"}
    assert batch in worker.consumer.finished


async def test_a_batch_of_nothing_but_bad_requests_is_finished(worker: Asked) -> None:
    batch = await worker.ask(worker.record(worker.topics.requests, b"ann", b"{"))
    assert batch in worker.consumer.finished


@pytest.mark.parametrize(
    ("correlation", "reply"),
    [
        ("correlation_id", "reply_to"),
        ("kafka_correlationId", "kafka_replyTopic"),
        ("Faust-Ag-CorrelationId", "Faust-Ag-ReplyTo"),
    ],
)
async def test_answers_go_where_the_headers_say_with_the_correlation_echoed(
    wide: Asked, correlation: str, reply: str
) -> None:
    home, _ = away_from_home("ann")
    headers = [(correlation, b"\x00\x07"), (reply, b"shop.replies")]
    await wide.ask(wide.request("ann", partition=home, headers=headers))
    assert wide.responses() == {}
    (record,) = wide.producer.records("shop.replies")
    assert list(record.headers) == [(correlation, b"\x00\x07")]


async def test_a_reply_topic_that_is_not_allowed_is_refused_on_the_responses_topic(wide: Asked) -> None:
    home, _ = away_from_home("ann")
    headers = [("correlation_id", b"7"), ("reply_to", b"secrets")]
    await wide.ask(wide.request("ann", partition=home, headers=headers))
    response = wide.responses()["r1"]
    assert response.error is not None
    assert response.error.code == "reply_topic_not_allowed"
    assert "'secrets'" in response.error.message
    assert "shop.replies" in response.error.message
    assert wide.producer.records("secrets") == []
    assert wide.producer.records(wide.topics.responses)[0].headers == (("correlation_id", b"7"),)


@pytest.mark.parametrize(
    ("name", "value"), [("reply_partition", b"3"), ("kafka_replyPartition", b"\x00\x00\x00\x03")]
)
async def test_answers_go_to_the_partition_that_the_header_says_and_echo_it(
    wide: Asked, name: str, value: bytes
) -> None:
    home, _ = away_from_home("ann")
    headers = [("correlation_id", b"7"), (name, value)]
    await wide.ask(wide.request("ann", partition=home, headers=headers))
    await wide.ask(wide.request("ann", "r2", partition=home, headers=headers, limit=0))  # is refused
    records = wide.producer.records(wide.topics.responses, 3)
    assert [list(record.headers) for record in records] == [headers, headers]
    assert len(wide.producer.records(wide.topics.responses)) == 2


async def test_a_reply_partition_that_the_topic_lacks_leaves_the_answer_to_the_users_key(wide: Asked) -> None:
    home, _ = away_from_home("ann")
    await wide.ask(wide.request("ann", partition=home, headers=[("reply_partition", b"77")]))
    assert len(wide.producer.records(wide.topics.responses, home)) == 1


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("reply_partition", b"\xff", "decimal text"),
        ("reply_partition", b"-1", "decimal text"),
        ("reply_partition", b"", "decimal text"),
        ("reply_partition", None, "decimal text"),
        ("reply_partition", b"99999999999999999999", "decimal text"),
        ("kafka_replyPartition", b"3", "four bytes"),
        ("kafka_replyPartition", b"\xff\xff\xff\xff", "four bytes"),
        ("kafka_replyPartition", None, "four bytes"),
    ],
)
async def test_a_reply_partition_that_is_none_is_refused(
    wide: Asked, name: str, value: Any, expected: str
) -> None:
    home, _ = away_from_home("ann")
    await wide.ask(wide.request("ann", partition=home, headers=[(name, value)]))
    response = wide.responses()["r1"]
    assert response.error is not None
    assert response.error.code == "bad_reply_partition"
    assert name in response.error.message
    assert expected in response.error.message


# Faults


async def test_of_a_batch_that_our_own_code_fails_on_the_culprit_alone_is_refused(
    worker: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = worker.encoder.encode_queries

    def brittle(texts: list[str]) -> Any:
        if "poison" in texts:
            raise ArithmeticError("secret details")
        return encode(texts)

    monkeypatch.setattr(worker.encoder, "encode_queries", brittle)
    queries = ["tea", "coffee", "poison", "dog", "cat"]
    batch = await worker.ask(*(worker.request("ann", query, query=query) for query in queries))
    statuses = {name: response.status for name, response in worker.responses().items()}
    assert statuses == {query: "rejected" if query == "poison" else "ok" for query in queries}
    error = worker.responses()["poison"].error
    assert error is not None
    assert error.code == "internal_error"
    assert "secret details" not in error.message
    assert batch in worker.consumer.finished


async def test_what_demands_a_click_and_failed_is_left_to_the_next_owner_once_the_partition_is_gone(
    worker: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    await worker.apply(worker.click("ann", "dark roast"))

    def brittle(*_: object) -> Any:
        worker.partition().gate.close()
        raise ArithmeticError

    monkeypatch.setattr(worker.encoder, "encode_queries", brittle)
    with pytest.raises(PartitionLost):
        await worker.ask(*(worker.request("ann", name, query="tea", after=after(0)) for name in ("r1", "r2")))
    assert worker.responses() == {}
    assert worker.requests._in_hand_us == 0.0


async def test_a_broker_that_takes_no_answers_stops_the_worker_unacknowledged(worker: Asked) -> None:
    worker.producer.down = True
    with pytest.raises(StopWorker, match="did not acknowledge"):
        await worker.ask(worker.request("ann"))
    assert worker.consumer.finished == []


async def test_requests_of_a_partition_that_is_not_ours_are_left_to_its_owner(worker: Asked) -> None:
    worker.partition().owned = False
    with pytest.raises(PartitionLost):
        await worker.ask(worker.request("ann"))
    assert worker.responses() == {}


async def test_many_requests_of_one_batch_get_their_own_answers(worker: Asked) -> None:
    users = [f"user {number}" for number in range(40)]
    liked = ["dark roast", "shampoo", "dog food", "green tea"]
    await worker.apply(*(worker.click(user, liked[n % 4]) for n, user in enumerate(users)))
    await worker.ask(*(worker.request(user, user, limit=1, exclude_seen=False) for user in users))
    got = {name: response.items[0].item_id for name, response in worker.responses().items()}
    assert got == {user: liked[n % 4] for n, user in enumerate(users)}
    assert worker.measured("requests_total", status="ok") == 40


async def test_a_request_whose_click_is_gone_again_when_it_is_looked_at_is_left_to_the_next_owner(
    worker: Asked,
) -> None:
    await worker.apply(worker.click("ann", "espresso", offset=5))
    worker.producer.slow.add(worker.topics.responses)
    asking = asyncio.ensure_future(
        worker.ask(
            worker.request("bob", "bad", limit=0),
            worker.request("ann", "lost", after={"partition": 0, "offset": 5}),
        )
    )
    await until(lambda: "bad" in worker.responses())
    partition = worker.partition()  # meanwhile it went to another worker and came back
    partition.applied = partition.watermark = 3
    worker.producer.acknowledge()
    batch = await asking
    partition.move_watermark(10)
    await asyncio.sleep(0)
    assert worker.responses().keys() == {"bad"}
    assert not batch.finished


# What a batch may take

COSTLY = {"limit": 1_000, "diversity": 1.0, "explain": True, "exclude_seen": False}


async def test_a_batch_of_costly_requests_lets_everything_else_run_between_its_parts(worker: Asked) -> None:
    await worker.apply(worker.click("ann", "dark roast"))
    passes = 0

    async def count() -> None:
        nonlocal passes
        while True:
            passes += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    names = [f"r{number}" for number in range(40)]
    await worker.ask(*(worker.request("ann", name, deadline_ms=60_000, **COSTLY) for name in names))
    counting.cancel()
    assert {name: response.status for name, response in worker.responses().items()} == dict.fromkeys(
        names, "ok"
    )
    assert passes >= len(names)


async def test_a_request_that_waits_keeps_no_record(worker: Asked) -> None:
    batch = await worker.ask(*(worker.request(f"user {n}", f"r{n}", after=after(0)) for n in range(3)))
    assert (worker.requests.parked, batch.records) == (3, ())
    await worker.apply(worker.click("ann", "dark roast"))
    await until(lambda: len(worker.responses()) == 3)
    await until(lambda: batch in worker.consumer.finished)


async def test_a_user_with_a_hundred_requests_that_wait_is_told_so_and_others_wait_beside(
    worker: Asked,
) -> None:
    mine = (worker.request("ann", f"r{n}", after=after(0)) for n in range(101))
    await worker.ask(*mine, worker.request("bob", "other", after=after(0)))
    (refused,) = worker.responses().values()
    assert refused.error is not None
    assert (refused.status, refused.error.code) == ("rejected", "overloaded")
    assert "of this user" in refused.error.message
    assert worker.requests.parked == 101
