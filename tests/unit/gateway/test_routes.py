"""The gateway's routes over a client that does what the test says."""

import asyncio
import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import aiohttp
import msgspec
import pytest

from headwater.client import Client, ClientError, NotPublished, RecallTimeout
from headwater.gateway.admission import Admission
from headwater.gateway.routes import MAX_BODY_BYTES, Gateway
from headwater.messages import Candidate, ErrorDetail, Position, Response
from headwater.web_server import WebServer

KEY = "correct-horse-battery"
ANSWER = Response("r1", "ann", "ok", items=[Candidate("c2", 0.5, "interests")])


class Recorded(Client):
    """Checks arguments as the client does, and publishes and asks nothing."""

    def __init__(self) -> None:
        super().__init__("localhost:1")
        self.published: list[tuple[str, str, dict[str, Any] | None]] = []  # topic, key, value
        self.asked: list[dict[str, Any]] = []
        self.failure: Exception | None = None
        self.is_broker_away = False
        self.answer_of_worker = ANSWER
        self.waits: asyncio.Event | None = None
        self._connection = cast(Any, self)  # its own connection, by the four methods below

    async def publish(
        self, topic: str, key: str, value: bytes | None, limit_s: float, event_id: str | None = None
    ) -> Position:
        if self.waits is not None:
            await self.waits.wait()
        if self.failure is not None:
            raise self.failure
        self.published.append((topic, key, msgspec.json.decode(value) if value is not None else None))
        return Position(3, 1042)

    async def ask(self, request: object, value: bytes, left_s: float, limit_s: float) -> Response:
        if self.failure is not None:
            raise self.failure
        self.asked.append(msgspec.json.decode(value))
        return self.answer_of_worker

    async def partition_of(self, topic: str, key: str) -> int:
        return 3

    def check_reading(self) -> None:
        if isinstance(self.failure, ClientError):
            raise self.failure

    async def end_of_clicks(self, partition: int) -> int:
        if self.is_broker_away:
            raise TimeoutError
        if isinstance(self.failure, TimeoutError):
            raise self.failure
        return 1000


class Site:
    def __init__(self, client: Recorded, address: str, session: aiohttp.ClientSession) -> None:
        self.client, self.address, self._session = client, address, session

    async def call(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Status, body and headers of a call; a body of bytes goes as it is."""
        raw = body if isinstance(body, bytes | None) else msgspec.json.encode(body)
        given = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"http://{self.address}{path}"
        async with self._session.request(
            method, url, data=io.BytesIO(raw) if raw else None, headers=given
        ) as answer:
            return answer.status, msgspec.json.decode(await answer.read()), answer.headers

    async def refusal(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, str, str]:
        status, said, _ = await self.call(method, path, body, **headers)
        return status, said["error"]["code"], said["error"]["message"]


@asynccontextmanager
async def serving(keys: list[str], rate: float = 1e6, at_once: int = 100) -> AsyncIterator[Site]:
    client = Recorded()
    server = WebServer("GATEWAY", Gateway(client, Admission(rate, at_once), keys).application())
    await server.start("127.0.0.1", 0)
    try:
        async with aiohttp.ClientSession() as session:
            yield Site(client, server.address or "", session)
    finally:
        await server.stop()


async def test_a_click_is_published_and_its_position_is_told_as_a_token() -> None:
    async with serving([KEY]) as site:
        sent = {
            "user_id": "ann",
            "item_id": "c1",
            "action": "purchase",
            "event_id": "e1",
            "context": {"page": 3},
        }
        status, told, headers = await site.call("POST", "/clicks", sent)
        assert (status, told["token"], told["event_id"]) == (201, "3-1042", "e1")
        assert headers["Headwater-Position"] == "3-1042"
        ((topic, key, click),) = site.client.published
        assert (topic, key, click["item_id"], click["context"]) == (
            "headwater.clicks.v1",
            "ann",
            "c1",
            {"page": 3},
        )
        _, made_up, _ = await site.call(
            "POST", "/clicks", {"user_id": "ann", "item_id": "c1", "event_id": None}
        )
        assert len(made_up["event_id"]) == 32
        assert site.client.published[-1][2]["event_id"] == made_up["event_id"]


async def test_items_are_put_and_deleted() -> None:
    async with serving([KEY]) as site:
        status, told, _ = await site.call(
            "POST", "/items", {"item_id": "c/1", "title": "Coffee", "price": 5.9}
        )
        assert (status, told["token"]) == (201, "3-1042")
        status, _, headers = await site.call("DELETE", "/items/c%2F1")
        assert (status, headers["Headwater-Position"]) == (200, "3-1042")
        assert [(key, value and value["title"]) for _, key, value in site.client.published] == [
            ("c/1", "Coffee"),
            ("c/1", None),
        ]


async def test_offers_are_made_and_withdrawn() -> None:
    async with serving([KEY]) as site:
        status, told, _ = await site.call("POST", "/offers", {"item_id": "c/1", "available": False})
        assert (status, told["token"]) == (201, "3-1042")
        status, _, _ = await site.call("DELETE", "/offers/c%2F1")
        assert status == 200
        assert site.client.published == [
            ("headwater.offers.v1", "c/1", {"item_id": "c/1", "available": False}),
            ("headwater.offers.v1", "c/1", None),
        ]


async def test_an_answer_reflects_what_was_acknowledged_or_the_position_in_the_header() -> None:
    async with serving([KEY]) as site:
        asked = {"user_id": "ann", "limit": 5, "filter": {"category": "tea"}, "session": [{"item_id": "c9"}]}
        status, told, _ = await site.call("POST", "/recall", asked)
        assert (status, told["items"][0]["item_id"]) == (200, "c2")
        await site.call("POST", "/recall", asked, Headwater_After="1-7")
        await site.call("POST", "/recall", {**asked, "after": {"partition": 1, "offset": "8"}})
        await site.call("POST", "/recall", {**asked, "reads": "any"})
        assert [request["after"] for request in site.client.asked] == [
            {"partition": 3, "offset": 999},
            {"partition": 1, "offset": 7},
            {"partition": 1, "offset": 8},
            None,
        ]
        assert site.client.asked[0]["session"][0]["item_id"] == "c9"


async def test_what_is_similar_to_an_item_needs_no_user() -> None:
    async with serving([KEY]) as site:
        status, _, _ = await site.call("GET", "/items/c1/similar?limit=7")
        await site.call("GET", "/items/c1/similar?user_id=ann")
        nobody, ann = site.client.asked
        assert (status, nobody["items"], nobody["sources"], nobody["limit"]) == (
            200,
            ["c1"],
            {"item": 1.0},
            7,
        )
        assert ann["user_id"] == "ann"


BAD: dict[str, tuple[str, str, object, int, str, str]] = {
    "no field": ("POST", "/clicks", {"item_id": "c1"}, 400, "bad_field", "user_id: missing"),
    "a misspelt field": (
        "POST",
        "/clicks",
        {"user": "ann"},
        400,
        "bad_field",
        "user: no such field, expected one of",
    ),
    "a misspelt field of an item": (
        "POST",
        "/items",
        {"item_id": "c1", "titel": "x"},
        400,
        "bad_field",
        "titel: no such",
    ),
    "an offer of nothing": (
        "POST",
        "/offers",
        {"item_id": "c1"},
        400,
        "bad_field",
        "offer: got none of price",
    ),
    "attributes that are none": (
        "POST",
        "/offers",
        {"item_id": "c1", "attributes": "red"},
        400,
        "bad_field",
        "attributes: got 'red'",
    ),
    "a number for a name": (
        "POST",
        "/clicks",
        {"user_id": 5, "item_id": "c"},
        400,
        "bad_field",
        "user_id: got 5",
    ),
    "a wrong action": (
        "POST",
        "/clicks",
        {"user_id": "a", "item_id": "c", "action": "x"},
        400,
        "bad_field",
        "action",
    ),
    "no object": ("POST", "/recall", [1], 400, "bad_json", "the body is a list"),
    "no JSON": ("POST", "/recall", b"{", 400, "bad_json", "no JSON"),
    "bytes": ("POST", "/recall", b"\xff\xfe", 400, "bad_json", "no JSON"),
    "deep nesting": ("POST", "/recall", b"[" * 100_000, 400, "bad_json", "no JSON"),
    "a limit out of range": (
        "POST",
        "/recall",
        {"user_id": "a", "limit": 0},
        400,
        "bad_field",
        "limit: got 0",
    ),
    "a wrong position": (
        "POST",
        "/recall",
        {"user_id": "a", "after": "x"},
        400,
        "bad_field",
        "after: got 'x'",
    ),
    "half a position": ("POST", "/recall", {"user_id": "a", "after": {}}, 400, "bad_field", "after: "),
    "reads of one client": (
        "POST",
        "/recall",
        {"user_id": "a", "reads": "own"},
        400,
        "bad_field",
        "reads: got 'own'",
    ),
    "a wrong deadline": (
        "POST",
        "/recall",
        {"user_id": "a", "deadline_ms": "x"},
        400,
        "bad_field",
        "deadline_ms",
    ),
    "a wrong session": ("POST", "/recall", {"user_id": "a", "session": [1]}, 400, "bad_field", "session"),
    "an endless id": (
        "POST",
        "/clicks",
        {"user_id": "a" * 600, "item_id": "c"},
        400,
        "bad_field",
        "user_id: got 600",
    ),
    "a wrong number": ("GET", "/items/c1/similar?limit=-1", None, 400, "bad_field", "limit: got '-1'"),
    "too many": ("GET", "/items/c1/similar?limit=99999", None, 400, "bad_field", "limit: got '99999'"),
    "a number without end": (
        "GET",
        f"/items/c1/similar?limit={'9' * 5_000}",
        None,
        400,
        "bad_field",
        "limit: got '999",
    ),
    "a misspelt parameter": ("GET", "/items/c1/similar?limt=5", None, 400, "bad_field", "limt: no such"),
    "an address in Latin-1": ("DELETE", "/items/caf%E9", None, 400, "bad_utf8", "/items/caf%E9: expected"),
    "half a character": ("GET", "/items/c1/similar?user_id=%ED%A0%80", None, 400, "bad_utf8", "UTF-8"),
    "10 MB": ("POST", "/clicks", b"x" * 10_000_000, 413, "too_large", f"more than {MAX_BODY_BYTES} bytes"),
    "an unknown route": ("GET", "/nothing", None, 404, "no_such_route", "/nothing"),
    "a wrong method": ("GET", "/recall", None, 405, "wrong_method", "GET: expected POST"),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_input_is_one_sentence_and_nothing_is_published(name: str) -> None:
    method, path, body, status, code, said = BAD[name]
    async with serving([KEY]) as site:
        found = await site.refusal(method, path, body)
        assert found[:2] == (status, code)
        assert said in found[2]
        assert (site.client.published, site.client.asked) == ([], [])


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
async def test_what_a_foreign_page_may_send_without_asking_is_refused(kind: str) -> None:
    async with serving([]) as site:
        status, code, _ = await site.refusal(
            "POST", "/clicks", {"user_id": "a", "item_id": "c"}, Content_Type=kind
        )
        assert (status, code, site.client.published) == (415, "wrong_type", [])


@pytest.mark.parametrize("header", ["", "Bearer ", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer \xff"])
async def test_without_a_key_nobody_comes_in(header: str) -> None:
    async with serving([KEY, "another-one-of-the-keys"]) as site:
        found = await site.refusal("POST", "/recall", {"user_id": "ann"}, Authorization=header)
        assert found[:2] == (401, "unauthorized")
        for path in ("/healthz", "/openapi.json"):
            assert (await site.call("GET", path, Authorization=header))[0] == 200


async def test_any_of_the_keys_opens() -> None:
    async with serving(["another-one-of-the-keys", KEY]) as site:
        assert (await site.call("POST", "/recall", {"user_id": "ann"}))[0] == 200
        named = f"bearer {KEY}"  # the name of a scheme has no case
        assert (await site.call("POST", "/recall", {"user_id": "ann"}, Authorization=named))[0] == 200


async def test_without_keys_a_name_of_another_host_is_refused() -> None:
    """A page may resolve a name of its own to this machine, and would read answers as its own."""
    async with serving([]) as site:
        assert (await site.refusal("POST", "/recall", {"user_id": "a"}, Host="evil.example:80"))[0] == 403
        for name in ("localhost:8080", "127.0.0.1", "[::1]:80"):
            assert (await site.call("POST", "/recall", {"user_id": "a"}, Host=name))[0] == 200
        for origin in ("http://evil.example", "null"):
            assert (await site.refusal("POST", "/recall", {"user_id": "a"}, Origin=origin))[0] == 403


def refused(status: str, code: str) -> Response:
    return Response("r1", "ann", cast(Any, status), error=ErrorDetail(code, "because"))


FAILURES: dict[str, tuple[Exception | Response, int, str, bool]] = {
    "a broker that is away": (NotPublished("it is away", "e1"), 503, "not_published", True),
    "no worker": (RecallTimeout("nobody answers"), 504, "no_answer", False),
    "a client that is closed": (ClientError("closed"), 503, "unavailable", True),
    "a click that is not applied": (refused("expired", "after"), 504, "expired", False),
    "a costly request": (refused("rejected", "too_costly"), 400, "too_costly", False),
    "a busy worker": (refused("rejected", "overloaded"), 503, "overloaded", True),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_a_failure_has_the_status_that_says_what_to_do(name: str) -> None:
    failure, status, code, comes_back = FAILURES[name]
    async with serving([KEY]) as site:
        if isinstance(failure, Response):
            site.client.answer_of_worker = failure
        else:
            site.client.failure = failure
        found, said, headers = await site.call("POST", "/recall", {"user_id": "ann", "reads": "any"})
        assert (found, said["error"]["code"]) == (status, code)
        assert ("Retry-After" in headers) is comes_back
        assert said["error"].get("event_id") == getattr(failure, "event_id", None)
        assert ("answer" in said) is isinstance(failure, Response)


async def test_an_answer_that_does_not_come_while_the_broker_is_away_is_told_as_that() -> None:
    async with serving([KEY]) as site:
        site.client.failure = RecallTimeout("nobody answers")
        site.client.is_broker_away = True
        for method, path, body in (
            ("POST", "/recall", {"user_id": "ann", "reads": "any"}),
            ("GET", "/items/c1/similar", None),
        ):
            status, said, headers = await site.call(method, path, body)
            assert (status, said["error"]["code"], headers["Retry-After"]) == (503, "unavailable", "1")
            assert "the broker at localhost:1 does not answer" in said["error"]["message"]


async def test_a_flood_is_told_when_to_come_back_and_loses_nothing_that_was_let_in() -> None:
    async with serving([KEY], rate=20.0) as site:
        click = {"user_id": "ann", "item_id": "c1"}
        found = await asyncio.gather(*(site.call("POST", "/clicks", click) for _ in range(100)))
        statuses = [status for status, _, _ in found]
        assert set(statuses) == {201, 429}
        assert statuses.count(201) == len(site.client.published) < 100
        assert {headers["Retry-After"] for status, _, headers in found if status == 429} == {"1"}


async def test_calls_in_progress_are_bounded() -> None:
    async with serving([KEY], at_once=2) as site:
        site.client.waits = asyncio.Event()
        click = {"user_id": "ann", "item_id": "c1"}
        held = [asyncio.create_task(site.call("POST", "/clicks", click)) for _ in range(2)]
        while (await site.call("POST", "/recall", {"user_id": "ann"}))[0] != 429:
            await asyncio.sleep(0.01)  # not both are in yet
        site.client.waits.set()
        assert [status for status, _, _ in await asyncio.gather(*held)] == [201, 201]


async def test_the_health_says_whether_the_broker_answers() -> None:
    async with serving([KEY]) as site:
        assert (await site.call("GET", "/healthz"))[:2] == (200, {"ok": True})
        site.client.failure = TimeoutError()
        assert (await site.refusal("GET", "/healthz"))[:2] == (503, "unavailable")
        site.client.failure = ClientError("reading the answers failed")
        assert (await site.refusal("GET", "/healthz"))[:2] == (503, "unavailable")


async def test_a_bug_of_ours_is_told_without_its_words_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with serving([KEY]) as site:
        site.client.failure = RuntimeError("secret")
        found = await site.refusal("POST", "/recall", {"user_id": "ann", "reads": "any"})
        assert found == (500, "internal_error", "a bug of ours, which the log has: look there")
    (logged,) = caplog.records
    assert (logged.name, logged.message, logged.exc_info is None) == (
        "headwater.web_server",
        "request_failed",
        False,
    )


# The document


def references(node: object) -> list[str]:
    if isinstance(node, dict):
        return [
            *([node["$ref"]] if "$ref" in node else []),
            *(r for each in node.values() for r in references(each)),
        ]
    return [r for each in node for r in references(each)] if isinstance(node, list) else []


async def test_every_route_is_described_and_everything_described_is_a_route() -> None:
    async with serving([KEY]) as site:
        _, document, _ = await site.call("GET", "/openapi.json")
        app = Gateway(site.client, Admission(1.0, 1)).application()
        routes = {
            (route.resource.canonical, route.method.lower())
            for route in app.router.routes()
            if route.resource is not None and route.method != "HEAD"
        }
        described = {(path, method) for path, methods in document["paths"].items() for method in methods}
        assert routes - described == {("/openapi.json", "get"), ("/healthz", "get")}
        assert described <= routes
        schemas = document["components"]["schemas"]
        assert {reference.rpartition("/")[2] for reference in references(document)} <= set(schemas)
        assert "request_id" not in schemas["Request"]["properties"]
        assert schemas["Click"]["required"] == ["user_id"]
