"""What the live page does through Kafka, over a connection that does what the test says."""

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
import pytest
from aiokafka.errors import KafkaConnectionError

from headwater.client_errors import ClientError, NotPublished, RecallTimeout
from headwater.errors import HeadwaterError
from headwater.kafka import letters
from headwater.kafka.letters import Letters, Wanted
from headwater.kafka.topics import Topics
from headwater.messages import BadMessage, Position, Request, Response
from headwater.settings import Settings
from headwater.worker import live_actions
from headwater.worker.live_actions import Asking, LetterDesk

SETTINGS = Settings(kafka_bootstrap_servers="127.0.0.1:1")


class Connected:
    """Stands in for `Connection`."""

    made: ClassVar[list["Connected"]] = []
    failure: ClassVar[Exception | None] = None

    def __init__(self, settings: Settings) -> None:
        self.topics = Topics.named(settings.topic_prefix)
        self.published: list[dict[str, Any]] = []
        self.asked: list[Request] = []
        self.end, self.is_closed = 8, False
        self.made.append(self)

    async def open(self) -> "Connected":
        return self

    async def close(self) -> None:
        self.is_closed = True

    async def publish(self, topic: str, key: str, value: bytes, limit_s: float, event_id: str) -> Position:
        if self.failure is not None:
            raise self.failure
        self.published.append(msgspec.json.decode(value))
        return Position(3, 1042)

    async def partition_of(self, topic: str, key: str) -> int:
        if self.failure is not None:
            raise self.failure
        return 3

    async def end_of_clicks(self, partition: int) -> int:
        return self.end

    async def ask(self, request: Request, value: bytes, left_s: float, limit_s: float) -> Response:
        self.asked.append(request)
        return Response(request.request_id, request.user_id, "ok")


@pytest.fixture(autouse=True)
def connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_actions, "Connection", Connected)
    Connected.made, Connected.failure = [], None


async def test_a_click_gets_an_id_and_a_time_and_its_place_is_told() -> None:
    asking = Asking(SETTINGS)
    said = await asking.click({"user_id": "ann", "item_id": "t1"})
    assert (said["partition"], said["offset"], said["token"]) == (3, 1042, "3-1042")
    (published,) = Connected.made[0].published
    assert (published["event_id"], published["action"]) == (said["event_id"], "click")
    await asking.close()
    assert Connected.made[0].is_closed


async def test_an_answer_reflects_what_was_published_before_unless_something_else_is_demanded() -> None:
    asking = Asking(SETTINGS)
    response, took_ms = await asking.recall({"user_id": "ann", "limit": 3})
    assert (response.status, took_ms >= 0) == ("ok", True)
    await asking.recall({"user_id": "ann", "after": {"partition": 0, "offset": 5}})
    Connected.made[0].end = 0
    await asking.recall({"user_id": "ann"})
    assert [request.after for request in Connected.made[0].asked] == [Position(3, 7), Position(0, 5), None]
    assert len(Connected.made) == 1, "one connection for all calls"
    await asking.close()


@pytest.mark.parametrize(
    ("call", "fields", "sentence"),
    [
        (
            "recall",
            {"user_id": "ann", "nonsense": 1},
            "nonsense: no such field, expected one of user_id, limit",
        ),
        ("recall", {"user_id": "ann", "request_id": "mine"}, "request_id: no such field"),
        ("recall", {"limit": 5}, "user_id: missing"),
        ("recall", {"user_id": "ann", "limit": 5_000}, "limit: got 5000"),
        (
            "click",
            {"user_id": "ann", "item_id": "t1", "action": "buy"},
            "action: got 'buy', expected one of click",
        ),
        ("click", {"user_id": "ann"}, "item_id: got 0 bytes"),
        (
            "click",
            {"user_id": "~headwater-probe/0", "item_id": "t1"},
            "user_id: got '~headwater-probe/0', expected",
        ),
    ],
)
async def test_a_bad_field_is_one_sentence_and_nothing_is_sent(
    call: str, fields: dict[str, Any], sentence: str
) -> None:
    asking = Asking(SETTINGS)
    with pytest.raises(BadMessage, match=sentence):
        await (asking.recall if call == "recall" else asking.click)(fields)
    assert Connected.made == []


@pytest.mark.parametrize(
    ("failure", "raised", "is_closed"),
    [
        (KafkaConnectionError("gone"), ClientError, True),
        (NotPublished("not acknowledged"), NotPublished, True),
        (RecallTimeout("no worker answers"), RecallTimeout, False),
    ],
)
async def test_a_connection_that_failed_is_given_up_for_another(
    failure: Exception, raised: type[Exception], is_closed: bool
) -> None:
    asking = Asking(SETTINGS)
    Connected.failure = failure
    with pytest.raises(raised):
        await asking.recall({"user_id": "ann"})
    for _ in range(5):
        await asyncio.sleep(0.001)
    assert Connected.made[0].is_closed is is_closed
    Connected.failure = None
    assert (await asking.recall({"user_id": "ann"}))[0].status == "ok"
    assert len(Connected.made) == (2 if is_closed else 1)
    await asking.close()


async def test_letters_are_read_once_for_several_looks_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = 0

    async def read(_: Settings) -> Letters:
        nonlocal reads
        reads += 1
        return Letters()

    monkeypatch.setattr(letters, "read", read)
    monkeypatch.setattr(live_actions, "_KEPT_S", 0.01)
    desk = LetterDesk(SETTINGS)
    assert await asyncio.gather(desk.summary(), desk.listed(Wanted(), 5)) == [
        {"open": 0, "redriven": 0, "groups": []},
        [],
    ]
    assert reads == 1
    await asyncio.sleep(0.05)
    assert desk._read is None
    await desk.summary()
    assert reads == 2


async def test_a_broker_that_is_away_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read(_: Settings) -> Letters:
        raise KafkaConnectionError("gone")

    monkeypatch.setattr(letters, "read", read)
    with pytest.raises(HeadwaterError, match="refused or is away"):
        await LetterDesk(SETTINGS).summary()


async def test_only_one_change_is_made_at_a_time() -> None:
    go_on = asyncio.Event()

    async def redrive(
        _: Wanted, rate: float, max_tries: int, dry_run: bool, told: Callable[[int], None]
    ) -> dict[str, Any]:
        told(7)
        await go_on.wait()
        return {"redriven": 1}

    desk = LetterDesk(SETTINGS, redrive)
    assert desk.under_way() is None
    first = asyncio.ensure_future(desk.redriven(Wanted(), 5.0, 1, False))
    await asyncio.sleep(0)
    with pytest.raises(HeadwaterError, match="under way"):
        await desk.purged(Wanted(), True)
    assert desk.under_way() == {"redriven": 7}
    go_on.set()
    assert await first == {"redriven": 1}
    assert desk.under_way() is None
