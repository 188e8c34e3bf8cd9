"""The Python client against real brokers; a small fake stands in for the worker where its timing is the matter."""

import asyncio

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from headwater.client import (
    Client,
    ClientError,
    NotPublished,
    Reads,
    RecallTimeout,
    RequestExpired,
    RequestRejected,
)
from headwater.kafka import topics
from headwater.kafka.partitioner import partition_of
from headwater.kafka.topics import Topics
from headwater.messages import (
    BadMessage,
    ErrorDetail,
    Item,
    Position,
    Request,
    Response,
    decode_click,
    decode_item,
)
from headwater.settings import Settings
from tests.support.fake_worker import LONG_MS, answering


async def last_record(settings: Settings, topic: str, position: Position) -> tuple[bytes, bytes | None]:
    partition = TopicPartition(topic, position.partition)
    async with AIOKafkaConsumer(**settings.kafka_options()) as consumer:
        consumer.assign([partition])
        consumer.seek(partition, position.offset)
        record = await asyncio.wait_for(consumer.getone(), 30)
        return record.key, record.value


async def test_a_click_is_published_to_the_users_partition_and_its_place_returned(system: Settings) -> None:
    async with Client(system) as client:
        position = await client.click(
            "ann", "coffee-1", "purchase", at_ms=1_700_000_000_000, event_id="e1", context={"page": 3}
        )
    assert position.partition == partition_of(b"ann", system.partitions)
    key, value = await last_record(system, Topics.named(system.topic_prefix).clicks, position)
    click = decode_click(key, value, 1_700_000_000_000)
    assert (click.event_id, click.user_id, click.item_id, click.action) == (
        "e1",
        "ann",
        "coffee-1",
        "purchase",
    )
    assert msgspec.json.decode(click.context) == {"page": 3}


async def test_an_item_is_published_and_deleted_by_a_null_value(system: Settings) -> None:
    catalog = Topics.named(system.topic_prefix).catalog
    async with Client(system) as client:
        put = await client.put_item(Item("coffee-1", title="Filter coffee", price=4.5))
        deleted = await client.delete_item("coffee-1")
    key, value = await last_record(system, catalog, put)
    assert value is not None
    assert decode_item(key, value) == Item("coffee-1", title="Filter coffee", price=4.5)
    assert await last_record(system, catalog, deleted) == (b"coffee-1", None)
    assert put.partition == deleted.partition


async def test_an_offer_is_published_with_what_it_states_and_withdrawn_by_a_null_value(
    system: Settings,
) -> None:
    offers = Topics.named(system.topic_prefix).offers
    async with Client(system) as client:
        made = await client.offer("coffee-1", price=4.0, attributes={"stock": 3})
        withdrawn = await client.withdraw_offers("coffee-1")
        with pytest.raises(BadMessage, match="got none of price, available and attributes"):
            await client.offer("coffee-1")
    key, value = await last_record(system, offers, made)
    assert (key, msgspec.json.decode(value or b"")) == (
        *(b"coffee-1", {"item_id": "coffee-1", "price": 4.0, "attributes": {"stock": 3}}),
    )
    assert await last_record(system, offers, withdrawn) == (b"coffee-1", None)


async def test_a_request_demands_every_click_of_its_users_partition_that_was_acknowledged(
    system: Settings,
) -> None:
    async with answering(system) as worker, Client(system) as asks, Client(system) as clicks:
        await asks.recall("ann", deadline_ms=LONG_MS)
        place = await clicks.click("ann", "coffee-1")
        await asks.recall("ann", deadline_ms=LONG_MS)
    assert [request.after for request in worker.asked] == [None, place]


async def test_only_own_clicks_are_demanded_where_that_is_wanted(system: Settings) -> None:
    async with answering(system) as worker, Client(system) as client, Client(system) as other:
        await client.recall("ann", deadline_ms=LONG_MS, reads="own")
        last = await client.click("ann", "coffee-2")
        await client.click("ben", "tea-1")
        await other.click("ann", "coffee-3")
        await client.recall("ann", deadline_ms=LONG_MS, reads="own")
    assert [request.after for request in worker.asked] == [None, last]


async def test_reading_clicks_can_be_turned_off_or_replaced_by_a_position_or_its_token(
    system: Settings,
) -> None:
    async with answering(system) as worker, Client(system) as client:
        place = await client.click("ann", "coffee-1")
        await client.recall("ann", deadline_ms=LONG_MS, reads="any")
        await client.recall("ann", deadline_ms=LONG_MS, after=Position(1, 77))
        await client.recall("ann", deadline_ms=LONG_MS, after=str(place))
        await client.recall("ann", deadline_ms=LONG_MS, after_event_id="mine")
    assert [(request.after, request.after_event_id) for request in worker.asked] == [
        (None, None),
        (Position(1, 77), None),
        (place, None),
        (None, "mine"),
    ]


async def test_a_click_that_is_still_on_its_way_is_demanded_with_all_that_is_stored(system: Settings) -> None:
    async with answering(system) as worker, Client(system) as client:
        await client.click("ann", "coffee-1")
        places = await asyncio.gather(
            *(client.click("ann", f"coffee-{n}") for n in range(2, 5)),
            client.recall("ann", deadline_ms=LONG_MS),
        )
    assert [(request.after, request.after_event_id) for request in worker.asked] == [(places[2], None)]


async def test_an_own_click_that_is_still_on_its_way_is_demanded_by_its_events_id(system: Settings) -> None:
    async with answering(system) as worker, Client(system) as client:
        await client.click("ann", "coffee-1")
        last, _ = await asyncio.gather(
            client.click("ann", "coffee-2", event_id="mine"),
            client.recall("ann", deadline_ms=LONG_MS, reads="own"),
        )
        await client.recall("ann", deadline_ms=LONG_MS, reads="own")
    assert [(request.after, request.after_event_id) for request in worker.asked] == [
        (None, "mine"),
        (last, None),
    ]


@pytest.mark.parametrize("reads", ["all", "own"])
async def test_a_retraction_on_its_way_is_waited_for_since_its_id_is_that_of_another_event(
    system: Settings, reads: Reads
) -> None:
    async with answering(system) as worker, Client(system) as client:
        await client.click("ann", "coffee-1", event_id="mine")
        place, _ = await asyncio.gather(
            client.click("ann", action="retract", event_id="mine"),
            client.recall("ann", deadline_ms=LONG_MS, reads=reads),
        )
    assert [(request.after, request.after_event_id) for request in worker.asked] == [(place, None)]


@pytest.mark.parametrize("reads", ["all", "own"])
async def test_what_a_request_demands_is_waited_for_no_longer_than_its_answer(
    system: Settings, monkeypatch: pytest.MonkeyPatch, reads: Reads
) -> None:
    async def never(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    async with answering(system) as worker, Client(system) as client:
        with monkeypatch.context() as patch:
            patch.setattr(client._connection, "send", never)
            retracting = asyncio.ensure_future(client.click("ann", action="retract", event_id="mine"))
            await asyncio.sleep(0)
            with pytest.raises(RecallTimeout, match=r"'ann'.*within 0\.05 s \(timeout_s\).*acknowledgement"):
                await client.recall("ann", timeout_s=0.05, reads=reads)
            retracting.cancel()
            await asyncio.gather(retracting, return_exceptions=True)
    assert not worker.asked


async def test_the_client_forgets_the_users_it_heard_of_longest_ago(system: Settings) -> None:
    async with Client(system, remembered_users=2) as client:
        for user in ("ann", "ben", "cat"):
            await client.click(user, "coffee-1")
        assert client.last_click("ann") is None
        assert client.last_click("ben") is not None
        assert client.last_click("cat") is not None


async def test_of_clicks_published_at_once_the_last_one_stored_is_demanded(system: Settings) -> None:
    async with Client(system) as client:
        places = await asyncio.gather(*(client.click("ann", f"coffee-{n}") for n in range(50)))
        assert client.last_click("ann") == max(places, key=lambda place: place.offset)


async def test_clicks_of_one_user_keep_their_order_within_a_millisecond(
    system: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwater.client.time.time_ns", lambda: 1_700_000_000_000_000_000)
    clicks = Topics.named(system.topic_prefix).clicks
    async with Client(system) as client:
        places = [await client.click("ann", f"coffee-{n}") for n in range(3)]
    found = [decode_click(*await last_record(system, clicks, place), 1_700_000_000_000) for place in places]
    assert [click.at_ms - 1_700_000_000_000 for click in found] == [0, 1, 2]


async def test_many_requests_in_flight_each_get_their_own_answer(system: Settings) -> None:
    held: list[Request] = []

    def last_first(request: Request) -> list[Response]:
        held.append(request)
        return (
            [Response(each.request_id, each.user_id, "ok") for each in reversed(held)]
            if len(held) == 40
            else []
        )

    async with answering(system, last_first), Client(system) as client:
        answers = await asyncio.gather(*(client.recall(f"user-{n}", deadline_ms=LONG_MS) for n in range(40)))
    assert [answer.user_id for answer in answers] == [f"user-{n}" for n in range(40)]


async def test_a_repeated_answer_and_answers_to_others_are_ignored(system: Settings) -> None:
    def noisy(request: Request) -> list[Response]:
        mine = Response(request.request_id, request.user_id, "ok", model="first")
        again = Response(request.request_id, request.user_id, "ok", model="second")
        return [Response("of somebody else", "eve", "ok"), mine, again]

    async with answering(system, noisy), Client(system) as client:
        assert [(await client.recall("ann", deadline_ms=LONG_MS)).model for _ in range(3)] == ["first"] * 3


async def test_an_answer_that_is_already_there_when_the_client_comes_is_not_taken(system: Settings) -> None:
    request = Request("fixed-id", "ann", deadline_ms=1)
    async with answering(system), Client(system) as client:
        await client.answer(request, timeout_s=20)
    async with Client(system) as client:
        with pytest.raises(RecallTimeout):
            await client.answer(request, timeout_s=1)


async def test_no_answer_is_a_timeout_that_names_the_request_the_seconds_and_what_to_check(
    system: Settings,
) -> None:
    async with Client(system) as client:
        with pytest.raises(
            RecallTimeout, match=r"^request \w{32} was not answered .* within 0\.2 s \(timeout_s.*doctor"
        ):
            await client.recall("ann", timeout_s=0.2, reads="any")


async def test_a_rejected_request_raises_with_the_workers_reason(system: Settings) -> None:
    def refuse(request: Request) -> list[Response]:
        error = ErrorDetail("bad_field", "limit: got 0, expected >= 1")
        return [Response(request.request_id, request.user_id, "rejected", error)]

    async with answering(system, refuse), Client(system) as client:
        with pytest.raises(RequestRejected, match="limit: got 0, expected >= 1") as caught:
            await client.recall("ann", deadline_ms=LONG_MS, limit=7)
    assert caught.value.response.status == "rejected"


async def test_an_expired_request_raises_with_the_workers_reason(system: Settings) -> None:
    def expire(request: Request) -> list[Response]:
        return [
            Response(
                request.request_id, request.user_id, "expired", ErrorDetail("deadline", "after: not yet")
            )
        ]

    async with answering(system, expire), Client(system) as client:
        with pytest.raises(RequestExpired, match="after: not yet"):
            await client.recall("ann", deadline_ms=LONG_MS, after=Position(0, 10**6))


async def test_a_degraded_answer_is_an_answer(system: Settings) -> None:
    def degrade(request: Request) -> list[Response]:
        return [Response(request.request_id, request.user_id, "degraded", rung="popular")]

    async with answering(system, degrade), Client(system) as client:
        assert (await client.recall("ann", deadline_ms=LONG_MS)).rung == "popular"


async def test_a_request_that_waits_when_the_client_closes_is_told(system: Settings) -> None:
    async with answering(system, lambda _: []) as worker, Client(system) as client:
        waiting = asyncio.create_task(client.recall("ann", timeout_s=60))
        while not worker.asked:
            await asyncio.sleep(0.01)
    with pytest.raises(ClientError, match="closed"):
        await waiting


@pytest.mark.parametrize(
    ("user", "item", "at_ms", "reason"),
    [
        ("", "coffee-1", None, "user_id"),
        ("a" * 513, "coffee-1", None, "user_id: got 513 bytes"),
        ("ann", "", None, "item_id"),
        ("ann", "coffee-1", 1_700_000_000, "at_ms: got 1700000000"),
        ("ann", "coffee-\ud800", None, "surrogates"),
        ("~headwater-probe/0/0", "coffee-1", None, "an id that does not begin with '~headwater-probe/'"),
    ],
)
async def test_a_click_that_a_worker_would_refuse_is_refused_before_it_is_sent(
    embedded_broker: str, topic_prefix: str, user: str, item: str, at_ms: int | None, reason: str
) -> None:
    settings = Settings(kafka_bootstrap_servers=embedded_broker, topic_prefix=topic_prefix)
    await topics.create(settings)
    async with Client(settings) as client:
        with pytest.raises(BadMessage, match=reason):
            await client.click(user, item, at_ms=at_ms)
        assert client.last_click(user) is None


async def test_an_address_is_all_that_a_client_needs(
    system: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADWATER_TOPIC_PREFIX", system.topic_prefix)
    async with Client(system.bootstrap_servers) as client:
        place = await client.click("ann", "coffee-1")
    assert place.partition == partition_of(b"ann", system.partitions)


async def test_a_click_that_is_not_acknowledged_in_time_carries_the_id_to_publish_it_again_with(
    system: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Client(system) as client:
        with monkeypatch.context() as patch:
            patch.setattr(client._connection, "send", lambda *_: asyncio.Event().wait())
            with pytest.raises(
                NotPublished, match=r"event '\w{32}' of 'ann' within 0\.05 s \(timeout_s\)"
            ) as lost:
                await client.click("ann", "coffee-1", timeout_s=0.05)
            with pytest.raises(NotPublished, match=r"'coffee-1' within 0\.05 s"):
                await client.delete_item("coffee-1", timeout_s=0.05)
        event_id = lost.value.event_id
        place = await client.click("ann", "coffee-1", event_id=event_id)
    _, value = await last_record(system, Topics.named(system.topic_prefix).clicks, place)
    assert value is not None
    assert msgspec.json.decode(value)["event_id"] == event_id


async def test_ids_with_emoji_go_through(system: Settings) -> None:
    async with answering(system), Client(system) as client:
        place = await client.click("ann 🦊", "☕")
        answer = await client.recall("ann 🦊", deadline_ms=LONG_MS)
    assert answer.user_id == "ann 🦊"
    assert answer.reflects is not None
    assert answer.reflects.offset == place.offset


async def test_a_client_that_was_not_entered_says_how() -> None:
    client = Client(Settings())
    with pytest.raises(ClientError, match="async with"):
        await client.click("ann", "coffee-1")
    with pytest.raises(ClientError, match="async with"):
        await client.recall("ann", deadline_ms=LONG_MS)
