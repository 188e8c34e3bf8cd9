"""The Python client against real brokers; a small fake stands in for the worker where its timing is the matter."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

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
from headwater.kafka.headers import CORRELATION_HEADERS, ReplyPartition, reply_partition_of
from headwater.kafka.partitioner import partition_of
from headwater.kafka.topics import Topics
from headwater.messages import (
    BadMessage,
    ErrorDetail,
    Item,
    Position,
    Reflects,
    Request,
    Response,
    decode_click,
    decode_item,
    decode_request,
    encode,
)
from headwater.settings import Settings, SettingsError

Answering = Callable[[Request], list[Response]]
# A broker that was just given nine topics by a busy machine may take its time; nothing here is about speed.
LONG_MS = 30_000


def echo(request: Request) -> list[Response]:
    reflects = Reflects(request.after.partition, request.after.offset) if request.after else None
    return [Response(request.request_id, request.user_id, "ok", reflects=reflects)]


class FakeWorker:
    """Answers requests from the moment it is entered on, as `answering` says."""

    def __init__(self, settings: Settings, answering: Answering) -> None:
        self._settings, self._topics = settings, Topics.named(settings.topic_prefix)
        self.answering = answering
        self.asked: list[Request] = []
        self.honours_partitions = False  # and echoes them; workers of earlier versions do not
        self.answered_on: list[int] = []

    async def run(self, ready: asyncio.Event) -> None:
        options = self._settings.kafka_options()
        partitions = [TopicPartition(self._topics.requests, n) for n in range(self._settings.partitions)]
        async with AIOKafkaConsumer(**options) as consumer, AIOKafkaProducer(**options) as producer:
            consumer.assign(partitions)
            for partition, end in (await consumer.end_offsets(partitions)).items():
                consumer.seek(partition, end)
            ready.set()
            async for record in consumer:
                request = decode_request(record.key, record.value, record.timestamp)
                self.asked.append(request)
                for response in self.answering(request):
                    headers = [(CORRELATION_HEADERS[0], response.request_id.encode())]
                    named = reply_partition_of(record.headers) if self.honours_partitions else None
                    if isinstance(named, ReplyPartition):
                        headers.append(named.header)
                    written = await producer.send_and_wait(
                        self._topics.responses,
                        encode(response),
                        key=response.user_id.encode(),
                        partition=named.partition if isinstance(named, ReplyPartition) else None,
                        headers=headers,
                    )
                    self.answered_on.append(written.partition)


@asynccontextmanager
async def answering(settings: Settings, answers: Answering = echo) -> AsyncIterator[FakeWorker]:
    worker, ready = FakeWorker(settings, answers), asyncio.Event()
    task = asyncio.create_task(worker.run(ready))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({task, waiting}, timeout=30, return_when=asyncio.FIRST_COMPLETED)
    assert ready.is_set(), task
    try:
        yield worker
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task  # raises what the fake itself failed with


@pytest_asyncio.fixture
async def system(settings: Settings) -> Settings:
    await topics.create(settings)
    return settings


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


WRONG: dict[str, tuple[Callable[[Client], Awaitable[object]], str]] = {
    "exclude is text": (
        lambda client: client.recall("ann", exclude="S1"),
        "exclude: got 'S1', expected a list",
    ),
    "exclude holds a number": (lambda client: client.recall("ann", exclude=[5]), r"exclude\[0\]: got 5"),  # type: ignore[list-item]
    "a user that is none": (lambda client: client.recall(None), "user_id: got None, expected `str`"),  # type: ignore[arg-type]
    "a user that is a number": (lambda client: client.click(5, "tea"), "user_id: got 5, expected text"),  # type: ignore[arg-type]
    "an item that is a list": (lambda client: client.click("ann", ["tea"]), r"item_id: got \['tea'\]"),  # type: ignore[arg-type]
    "an empty event id": (lambda client: client.click("ann", "tea", event_id=""), "event_id: got ''"),
    "an action of others": (
        lambda client: client.click("ann", "tea", "buy"),
        "action: got 'buy', .*purchase",
    ),  # type: ignore[arg-type]
    "a context that is text": (lambda client: client.click("ann", "tea", context="x"), "context: got 'x'"),  # type: ignore[arg-type]
    "a context that JSON lacks": (
        lambda client: client.click("ann", "tea", context={"x": object()}),
        "context: ",
    ),
    "a limit that is text": (
        lambda client: client.recall("ann", limit="10"),
        "limit: got '10', expected `int`",
    ),  # type: ignore[arg-type]
    "a limit of none": (lambda client: client.recall("ann", limit=0), "limit: got 0, expected `int` >= 1"),
    "a limit that JSON lacks": (lambda client: client.recall("ann", limit=object()), "limit: got <object"),  # type: ignore[arg-type]
    "a filter that is text": (lambda client: client.recall("ann", filter="garden"), "filter: got 'garden'"),  # type: ignore[arg-type]
    "a session that is a number": (lambda client: client.recall("ann", session=5), "session: got 5"),  # type: ignore[arg-type]
    "a session of texts": (lambda client: client.recall("ann", session=["S1"]), r"session\[0\]: got 'S1'"),  # type: ignore[list-item]
    "sources as a list": (lambda client: client.recall("ann", sources=["new"]), "sources: got"),  # type: ignore[arg-type]
    "a source that is none": (lambda client: client.recall("ann", sources={"x": 1}), "sources: .*interests"),  # type: ignore[dict-item]
    "after is nonsense": (
        lambda client: client.recall("ann", after="nonsense"),
        "after: got 'nonsense'.*3-1042",
    ),
    "after is a number": (lambda client: client.recall("ann", after=7), "after: got 7"),  # type: ignore[arg-type]
    "two demands": (lambda client: client.recall("ann", after="1-2", after_event_id="x"), "one of the two"),
    "reads is nonsense": (
        lambda client: client.recall("ann", reads="mine"),
        "reads: got 'mine', expected \"all\"",
    ),  # type: ignore[arg-type]
    "a time that is text": (lambda client: client.click("ann", "tea", at_ms="now"), "at_ms: got 'now'"),  # type: ignore[arg-type]
    "a time limit that is text": (
        lambda client: client.click("ann", "tea", timeout_s="5"),
        "timeout_s: got '5'",
    ),  # type: ignore[arg-type]
    "a time limit of none": (lambda client: client.recall("ann", timeout_s=0), "timeout_s: got 0"),
    "an item that is a dict": (lambda client: client.put_item({"item_id": "tea"}), "item: got {.*an Item"),  # type: ignore[arg-type]
    "a price that is text": (lambda client: client.put_item(Item("tea", price="5")), "price: got '5'"),  # type: ignore[arg-type]
    "an item id that is a number": (lambda client: client.delete_item(5), "item_id: got 5"),  # type: ignore[arg-type]
    "a request that is a dict": (lambda client: client.answer({}), "request: got {}"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", WRONG)
async def test_what_is_wrong_is_refused_before_anything_is_sent(name: str) -> None:
    """By a client that was not connected: it could send nothing."""
    call, reason = WRONG[name]
    with pytest.raises(BadMessage, match=reason) as refused:
        await call(Client(Settings()))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("system", "reason"), [(5, "system: got 5"), (b"kafka:9092", "system: got b'kafka")])
def test_a_client_of_something_else_is_refused(system: object, reason: str) -> None:
    with pytest.raises(BadMessage, match=reason):
        Client(system)  # type: ignore[arg-type]


def test_an_address_that_is_none_is_refused_with_an_example() -> None:
    with pytest.raises(SettingsError, match=r"HEADWATER_KAFKA_BOOTSTRAP_SERVERS is 'kafka'.*host:port"):
        Client("kafka")


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


async def test_a_message_that_is_too_large_for_kafka_is_refused_as_such(system: Settings) -> None:
    async with Client(system) as client:
        with pytest.raises(BadMessage, match=r"got 11\d{5} bytes, expected fewer"):
            await client.click("ann", "coffee-1", context={"page": "x" * 1_100_000})


async def test_ten_thousand_clicks_at_once_wait_their_turn(system: Settings) -> None:
    async with Client(system) as client:
        places = await asyncio.gather(
            *(client.click(f"user-{n % 500}", f"item-{n}", timeout_s=120) for n in range(10_000))
        )
    assert len(set(places)) == 10_000


async def test_ids_with_emoji_go_through(system: Settings) -> None:
    async with answering(system), Client(system) as client:
        place = await client.click("ann 🦊", "☕")
        answer = await client.recall("ann 🦊", deadline_ms=LONG_MS)
    assert answer.user_id == "ann 🦊"
    assert answer.reflects is not None
    assert answer.reflects.offset == place.offset


async def test_topics_that_do_not_exist_are_named_with_the_remedy_and_not_created(
    broker: str, topic_prefix: str
) -> None:
    settings = Settings(kafka_bootstrap_servers=broker, topic_prefix=topic_prefix)
    with pytest.raises(
        ClientError, match=rf"no topic {re.escape(topic_prefix)}clicks.*headwater topics create"
    ):
        await Client(settings).__aenter__()
    assert [problem.found for problem in await topics.check(settings)] == ["missing"] * 9


async def test_a_broker_that_is_down_is_said_so_with_the_remedy() -> None:
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1")
    with pytest.raises(ClientError, match=r"127\.0\.0\.1:1 .*HEADWATER_KAFKA_BOOTSTRAP_SERVERS"):
        await Client(settings).__aenter__()


async def test_a_client_that_was_not_entered_says_how() -> None:
    client = Client(Settings())
    with pytest.raises(ClientError, match="async with"):
        await client.click("ann", "coffee-1")
    with pytest.raises(ClientError, match="async with"):
        await client.recall("ann", deadline_ms=LONG_MS)


# Whose answers are read


async def test_only_the_partition_that_a_worker_has_answered_on_is_read_from_then_on(
    system: Settings,
) -> None:
    async with answering(system) as worker, Client(system) as client:
        worker.honours_partitions = True
        assert len(read_by(client)) == system.partitions
        await client.recall("ann", deadline_ms=LONG_MS, reads="any")
        (alone,) = read_by(client)
        for user in ("ben", "cat", "dan", "eve"):
            await client.recall(user, deadline_ms=LONG_MS, reads="any")
    assert worker.answered_on == [alone] * 5


async def test_a_worker_of_an_earlier_version_is_heard_on_any_partition(system: Settings) -> None:
    async with answering(system) as worker, Client(system) as client:
        for user in ("ann", "ben", "cat", "dan", "eve"):
            await client.recall(user, deadline_ms=LONG_MS, reads="any")
        assert len(read_by(client)) == system.partitions
    assert len(set(worker.answered_on)) > 1


async def test_where_workers_of_both_versions_answer_a_silent_request_is_sent_again_and_all_is_read_for_good(
    system: Settings,
) -> None:
    async with answering(system) as worker, Client(system) as client:
        worker.honours_partitions = True
        await client.recall("ann", deadline_ms=LONG_MS, reads="any")
        (alone,) = read_by(client)
        worker.honours_partitions = False
        names = (f"user-{n}" for n in range(100))
        elsewhere = next(each for each in names if partition_of(each.encode(), system.partitions) != alone)
        answer = await client.recall(elsewhere, deadline_ms=500, timeout_s=LONG_MS / 1000, reads="any")
        assert answer.user_id == elsewhere
        worker.honours_partitions = True
        await client.recall("ann", deadline_ms=LONG_MS, reads="any")
        assert len(read_by(client)) == system.partitions


def read_by(client: Client) -> list[int]:
    """The partitions of the responses topic that a client fetches."""
    assert client._connection is not None
    consumer = client._connection._consumer
    assert consumer is not None
    return sorted(tp.partition for tp in consumer.assignment() - consumer.paused())
