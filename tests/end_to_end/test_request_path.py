"""What a request may ask for, and what its answer holds."""

import asyncio
import json
from collections.abc import Callable

import jsonschema
import pytest
import pytest_asyncio

from headwater.client import Client
from headwater.kafka.epochs import CLAIM_KEY
from headwater.messages import schemas
from tests.end_to_end.conftest import System
from tests.end_to_end.outside import Answer, Outside
from tests.end_to_end.shop import THEMES, theme_of
from tests.end_to_end.worker_process import WorkerProcess


def ids(answer: Answer) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


# The barrier


async def test_a_click_that_never_comes_expires_the_request_with_a_sentence(outside: Outside) -> None:
    user = outside.own("waiting")
    after = await outside.click(user, "coffee-1")
    wanted = {"partition": after["partition"], "offset": after["offset"] + 1_000_000}
    answer = await outside.ask(user, after=wanted, deadline_ms=300)
    assert (answer["status"], answer["items"]) == ("expired", [])
    assert str(wanted["offset"]) in answer["error"]["message"]
    assert "300 ms" in answer["error"]["message"]
    assert answer["reflects"]["offset"] < wanted["offset"]


@pytest.mark.parametrize("partition", [4, 1_000_000, 2**31 - 1])
async def test_a_partition_that_does_not_exist_is_rejected(outside: Outside, partition: int) -> None:
    answer = await outside.ask(outside.own("ann"), after={"partition": partition, "offset": 0})
    assert (answer["status"], answer["error"]["code"]) == ("rejected", "unknown_partition")
    assert f"got {partition}, expected 0 to 3" in answer["error"]["message"]


async def test_a_click_and_a_request_for_it_may_be_sent_at_once(new_system: Callable[..., System]) -> None:
    system = new_system()
    with system.worker:
        async with system.outside() as outside, Client(outside.settings) as client:
            for number in range(20):
                user, event_id = f"at-once-{number % 3}", f"event-{number}"
                place, answer = await asyncio.gather(
                    client.click(user, f"coffee-{number % 10}", event_id=event_id),
                    client.recall(user, limit=3, deadline_ms=20_000),
                )
                assert answer.reflects is not None
                assert answer.reflects.last_event_id == event_id
                assert answer.reflects.offset >= place.offset


async def test_two_hundred_parked_requests_hold_up_nobody(outside: Outside) -> None:
    waiting, brisk = outside.user_at(1, "waiting"), outside.user_at(1, "brisk")
    patient = outside.user_at(1, "patient")  # one user's share of those who wait is bounded
    last = await outside.click(brisk, "dog-1")
    wanted = {"partition": 1, "offset": last["offset"] + 30}
    parked = [
        await outside.request(user, after=wanted, limit=3) for user in (waiting, patient) for _ in range(100)
    ]
    for number in range(29):
        last = await outside.click(brisk, f"dog-{number % 10}")
        answer = await outside.ask(brisk, after=last, limit=3)
        assert answer["status"] == "ok", answer
    others = [await outside.ask(outside.user_at(number, "other"), limit=3) for number in range(4)]
    assert [answer["status"] for answer in others] == ["ok"] * 4
    assert not [request_id for request_id in parked if outside.answer_records(request_id)]
    assert await outside.click(waiting, "coffee-1", event_id=f"{waiting}-last") == wanted
    for request_id in parked:
        answer = await outside.answer(request_id)
        assert answer["status"] == "ok"
        assert answer["reflects"]["offset"] >= wanted["offset"]
        if answer["user_id"] == waiting:
            assert answer["reflects"]["last_event_id"] == f"{waiting}-last"


async def test_a_parked_request_that_expires_leaves_the_others_waiting(outside: Outside) -> None:
    user = outside.user_at(0, "waiting")
    after = await outside.click(user, "dog-1")
    wanted = {"partition": 0, "offset": after["offset"] + 1}
    patient = await outside.request(user, after=wanted)
    hasty = await outside.ask(user, after=wanted, deadline_ms=200)
    assert hasty["status"] == "expired"
    assert not outside.answer_records(patient)
    await outside.click(user, "coffee-1")
    assert (await outside.answer(patient))["status"] == "ok"


async def test_more_parked_requests_than_allowed_are_rejected_as_overloaded(
    new_system: Callable[..., System],
) -> None:
    system = new_system(max_parked=10)
    with system.worker:
        async with system.outside() as outside:
            user = outside.own("waiting")
            after = {"partition": outside.home(user), "offset": 0}
            asked = [await outside.request(user, after=after) for _ in range(15)]
            refused = [await outside.answer(request_id) for request_id in asked[10:]]
            assert [answer["status"] for answer in refused] == ["rejected"] * 5
            assert [answer["error"]["code"] for answer in refused] == ["overloaded"] * 5
            assert "at most 10" in refused[0]["error"]["message"]
            assert await outside.click(user, "anything") == after
            answers = [await outside.answer(request_id) for request_id in asked[:10]]
            assert [answer["status"] for answer in answers] == ["ok"] * 10
            assert (await outside.ask(user, after=after))["status"] == "ok"


# What may be recalled


async def test_seen_items_are_left_out_unless_asked_for(outside: Outside) -> None:
    user = outside.own("buyer")
    await outside.click(user, "coffee-1", "purchase")
    after = await outside.click(user, "coffee-2", "view")
    fresh = await outside.items(user, after=after, limit=60)
    assert not {"coffee-1", "coffee-2"} & set(fresh)
    everything = await outside.items(user, limit=60, exclude_seen=False)
    assert {"coffee-1", "coffee-2"} <= set(everything[:5])


async def test_excluded_items_are_left_out_and_others_take_their_place(outside: Outside) -> None:
    user = outside.own("buyer")
    after = await outside.click(user, "coffee-1")
    first = await outside.items(user, after=after, limit=5)
    second = await outside.items(user, limit=5, exclude=first)
    assert len(second) == 5
    assert not set(first) & set(second)


@pytest.mark.parametrize("limit", [1, 7, 1000])
async def test_no_more_items_than_the_limit_and_no_item_twice(outside: Outside, limit: int) -> None:
    user = outside.own("ann")
    after = await outside.click(user, "coffee-1")
    found = await outside.items(user, after=after, limit=limit)
    assert len(found) == len(set(found))
    assert len(found) == limit if limit < 50 else 59 <= len(found) <= 1000


@pytest_asyncio.fixture
async def wardrobe(outside: Outside) -> Outside:
    """Five items in a category of this test's own."""
    category = outside.own("wardrobe")
    clothes = [
        ("hat", 10.0, ["wool", "winter"], {"colour": "red", "size": 7}),
        ("scarf", 15.5, ["wool"], {"colour": "blue", "size": 3}),
        ("socks", 5.0, ["cotton"], {"colour": "red", "washable": True}),
        ("shirt", 30.0, ["cotton", "summer"], {"colour": "blue", "washable": True}),
        ("gift", None, [], {}),
    ]
    await outside.catalog_applied(
        [
            await outside.put(
                outside.own(name),
                title=f"wool {name} clothing",
                category=category,
                price=price,
                tags=tags,
                attributes=attributes,
            )
            for name, price, tags, attributes in clothes
        ]
    )
    return outside


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, "gift hat scarf shirt socks"),
        ({"tags": "wool"}, "hat scarf"),
        ({"tags": {"any": ["winter", "summer"]}}, "hat shirt"),
        ({"price": {"gte": 10, "lt": 30}}, "hat scarf"),
        ({"price": {"gt": 10, "lte": 30}}, "scarf shirt"),
        ({"price": 5}, "socks"),
        ({"attributes.colour": "red"}, "hat socks"),
        ({"attributes.colour": {"any": ["red", "blue"]}, "tags": "cotton"}, "shirt socks"),
        ({"attributes.size": {"gte": 4}}, "hat"),
        ({"attributes.washable": True}, "shirt socks"),
        ({"not": {"attributes.colour": "red"}}, "gift scarf shirt"),
        ({"or": [{"tags": "summer"}, {"price": {"lt": 6}}]}, "shirt socks"),
        ({"and": [{"tags": "wool"}, {"not": {"tags": "winter"}}]}, "scarf"),
        ({"attributes.colour": "green"}, ""),
    ],
)
async def test_a_filter_admits_exactly_what_it_says(
    wardrobe: Outside, where: dict[str, object], expected: str
) -> None:
    user = wardrobe.own("dresser")
    after = await wardrobe.click(user, "shampoo-1")
    category = wardrobe.own("wardrobe")
    found = await wardrobe.items(user, after=after, limit=100, filter={"category": category, **where})
    assert sorted(found) == sorted(wardrobe.own(name) for name in expected.split())


async def test_unavailable_items_are_left_out_unless_the_filter_speaks_of_them(outside: Outside) -> None:
    category, user = outside.own("stock"), outside.own("ann")
    there, gone = outside.own("there"), outside.own("gone")
    places = [await outside.put(there, title="rubber boots", category=category)]
    places += [await outside.put(gone, title="rubber boots", category=category, available=False)]
    await outside.catalog_applied(places)
    after = await outside.click(user, "coffee-1")

    async def found(**where: object) -> set[str]:
        return set(await outside.items(user, after=after, filter={"category": category, **where}))

    assert await found() == {there}
    assert await found(available=False) == {gone}
    assert await found(available={"any": [True, False]}) == {there, gone}
    await outside.put_and_wait(gone, title="rubber boots", category=category)
    assert await found() == {there, gone}


# Where recommendations come from


async def test_a_what_if_session_changes_only_its_own_answer(outside: Outside) -> None:
    user = outside.own("browser")
    after = await outside.click(user, "coffee-1")
    before = await outside.ask(user, after=after, limit=5)
    session = [{"item_id": f"dog-{number}", "action": "purchase"} for number in range(6)]
    what_if = await outside.ask(user, limit=5, session=session)
    again = await outside.ask(user, limit=5)
    assert "dog" in [theme_of(item) for item in ids(what_if)[:2]]
    assert not {event["item_id"] for event in session} & set(ids(what_if))
    assert "dog" not in [theme_of(item) for item in ids(again)]
    assert ids(again) == ids(before)
    assert what_if["reflects"]["events"] == again["reflects"]["events"] == 1


async def test_a_session_of_a_visitor_without_a_past_is_enough(outside: Outside) -> None:
    found = await outside.items(outside.own("nobody"), limit=3, session=[{"item_id": "paint-1"}])
    assert theme_of(found[0]) == "paint"


@pytest.mark.parametrize(("query", "theme"), [("dog food", "dog"), ("cheddar cheese", "cheese")])
async def test_a_text_query_finds_what_it_names(outside: Outside, query: str, theme: str) -> None:
    answer = await outside.ask(outside.own("nobody"), limit=3, query=query)
    assert [theme_of(item) for item in ids(answer)] == [theme] * 3
    assert {item["source"] for item in answer["items"]} == {"query"}


async def test_a_query_beside_interests_brings_both(outside: Outside) -> None:
    user = outside.own("ann")
    after = await outside.click(user, "coffee-1")
    answer = await outside.ask(user, after=after, limit=6, query="dog food")
    assert {"coffee", "dog"} <= {theme_of(item) for item in ids(answer)}
    assert {"interests", "query"} <= {item["source"] for item in answer["items"]}
    only = await outside.ask(user, limit=3, query="dog food", sources={"query": 1})
    assert {item["source"] for item in only["items"]} == {"query"}


async def test_an_explained_item_names_the_users_own_events_with_shares_that_sum_to_one(
    outside: Outside,
) -> None:
    user, bought_ms = outside.own("ann"), outside.next_ms()
    await outside.click(user, "coffee-1", "purchase", at_ms=bought_ms)
    after = await outside.click(user, "dog-1")
    answer = await outside.ask(user, after=after, limit=10, explain=True)
    for item in answer["items"]:
        assert item["because"], item
        assert sum(reason["share"] for reason in item["because"]) == pytest.approx(1.0, abs=0.01)
        assert {reason["item_id"] for reason in item["because"]} <= {"coffee-1", "dog-1"}
    coffee = next(item for item in answer["items"] if theme_of(item["item_id"]) == "coffee")
    reason = max(coffee["because"], key=lambda each: float(each["share"]))
    assert (reason["item_id"], reason["at_ms"], reason["action"]) == ("coffee-1", bought_ms, "purchase")
    assert all(not item["because"] for item in (await outside.ask(user))["items"])


async def test_a_user_without_events_gets_what_is_popular(outside: Outside) -> None:
    category = outside.own("fashion")
    hit, flop = outside.own("hit"), outside.own("flop")
    await outside.catalog_applied(
        [await outside.put(item, title="knitted pullover", category=category) for item in (flop, hit)]
    )
    for item, buyers in ((hit, 3), (flop, 1)):
        for number in range(buyers):
            await outside.click(outside.own(f"{item}-buyer{number}"), item, "purchase")

    async def popular() -> bool:
        answer = await outside.ask(outside.own("nobody"), filter={"category": category})
        assert answer["status"] == "ok"
        assert {item["source"] for item in answer["items"]} <= {"popular"}
        return ids(answer) == [hit, flop]

    await outside.until("both are popular, in order", popular)


async def test_diversity_trades_likeness_for_variety(outside: Outside) -> None:
    user = outside.own("ann")
    for theme in ("coffee", "coffee", "dog"):
        after = await outside.click(user, f"{theme}-1")
    alike = await outside.items(user, after=after, limit=8)
    varied = await outside.items(user, limit=8, diversity=0.9)
    assert len({theme_of(item) for item in varied}) > len({theme_of(item) for item in alike})


async def test_the_same_question_has_the_same_answer(outside: Outside) -> None:
    user, at_ms = outside.own("ann"), outside.next_ms()
    after = await outside.click(user, "cheese-1")
    first = await outside.ask(user, after=after, at_ms=at_ms, limit=30)
    second = await outside.ask(user, at_ms=at_ms, limit=30)
    assert first["items"] == second["items"]
    scores = [item["score"] for item in first["items"]]
    assert scores == sorted(scores, reverse=True)


# Headers, and where the answer goes


@pytest.mark.parametrize("name", ["correlation_id", "kafka_correlationId", "Faust-Ag-CorrelationId"])
async def test_a_correlation_header_comes_back_as_it_was(outside: Outside, name: str) -> None:
    value = b"\x00\xffany bytes"
    asked = await outside.request(outside.own("ann"), headers=[("other", b"x"), (name, value)])
    record = await outside.answer_record(asked)
    assert list(record.headers) == [(name, value)]
    refused = await outside.request(outside.own("ann"), limit=0, headers=[(name, value)])
    record = await outside.answer_record(refused)
    assert json.loads(record.value)["status"] == "rejected"
    assert list(record.headers) == [(name, value)]


@pytest.mark.parametrize("name", ["reply_to", "kafka_replyTopic", "Faust-Ag-ReplyTo"])
async def test_an_answer_goes_to_an_allowed_topic_that_the_request_names(outside: Outside, name: str) -> None:
    (elsewhere,) = outside.settings.reply_topics
    asked = await outside.request(outside.own("ann"), headers=[(name, elsewhere.encode())])
    record = await outside.answer_record(asked, elsewhere)
    assert json.loads(record.value)["status"] == "ok"
    assert not outside.answer_records(asked)


async def test_a_topic_that_is_not_allowed_is_refused_on_the_usual_one(outside: Outside) -> None:
    headers = [("reply_to", outside.topics.profiles.encode())]
    answer = await outside.answer(await outside.request(outside.own("ann"), headers=headers))
    assert (answer["status"], answer["error"]["code"]) == ("rejected", "reply_topic_not_allowed")
    assert outside.topics.profiles in answer["error"]["message"]
    assert outside.settings.reply_topics[0] in answer["error"]["message"]


async def test_an_answer_carries_the_users_key_and_says_what_it_rests_on(outside: Outside) -> None:
    user = outside.own("ann")
    after = await outside.click(user, "coffee-1")
    record = await outside.answer_record(await outside.request(user, after=after))
    answer = json.loads(record.value)
    assert record.key == user.encode()
    assert answer["user_id"] == user
    assert answer["model"].startswith("starter-")
    assert set(answer["catalog"]) == {"0", "1", "2", "3"}
    assert answer["timings_ms"]["total"] >= 0


async def test_every_emitted_message_is_valid_under_the_printed_schemas(
    shared_system: System, outside: Outside
) -> None:
    user = outside.own("ann")
    after = await outside.click(user, "coffee-1")
    await outside.ask(user, after=after, explain=True)
    for topic, name in (
        (outside.topics.responses, "Response"),
        (outside.topics.vectors, "ItemVector"),
        (outside.topics.trends, "Trend"),
    ):
        is_valid = jsonschema.Draft202012Validator(schemas()[name]).validate

        async def written(topic: str = topic) -> bool:
            return bool(await outside.records_of(topic))

        await outside.until(f"something is on {topic}", written)
        for record in await outside.records_of(topic):
            if record.value is not None and record.key != CLAIM_KEY:
                is_valid(json.loads(record.value))


async def test_many_requests_at_once_are_all_answered_each_by_its_own_id(outside: Outside) -> None:
    users = [outside.own(f"user{number}") for number in range(20)]
    themes = list(THEMES)
    for number, user in enumerate(users):
        await outside.click(user, f"{themes[number % 6]}-1")
    asked = await asyncio.gather(*(outside.request(users[number % 20], limit=5) for number in range(500)))
    answers = [await outside.answer(request_id) for request_id in asked]
    assert [answer["user_id"] for answer in answers] == [users[number % 20] for number in range(500)]
    assert {answer["status"] for answer in answers} == {"ok"}
    assert [len(outside.answer_records(request_id)) for request_id in asked] == [1] * 500


async def test_a_worker_tells_its_health_and_its_figures(shared_system: System, outside: Outside) -> None:
    worker: WorkerProcess = shared_system.worker
    before = await asyncio.to_thread(worker.metrics)
    user = outside.own("ann")
    await outside.ask(user, after=await outside.click(user, "coffee-1"))
    health = await asyncio.to_thread(worker.health)
    assert (health["ok"], health["ready"], health["role"], health["reason"]) == (True, True, "all", None)
    assert sorted(health["partitions"]) == ["0", "1", "2", "3"]
    assert health["items"] >= 60
    after = await asyncio.to_thread(worker.metrics)
    grown = {name for name, value in after.items() if value > before.get(name, 0.0)}
    for name in ("clicks_total", "request_seconds_count", "click_to_applied_seconds_count"):
        assert any(name in sample for sample in grown), name
