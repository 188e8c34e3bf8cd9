"""Who is let in behind the live page, and what its routes take and answer."""

import gzip
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from headwater.client_errors import NotPublished, RecallTimeout
from headwater.errors import HeadwaterError
from headwater.kafka.letters import Place, Wanted
from headwater.messages import BadMessage, Candidate, FunnelItem, FunnelStage, Reason, Response, SessionEvent
from headwater.web_server import WebServer
from headwater.worker.web import guard
from headwater.worker.web.guard import Guard
from headwater.worker.web.live import LiveError, Parts, add_live

TOKEN = "-".join(["correct", "horse", "battery"])
ANSWER = Response(
    "r",
    "ann",
    "ok",
    items=[Candidate("t1", 0.5, "interests", [Reason("t2", 5, "click", 1.0)])],
    funnel=[FunnelStage("fused", 1, items=[FunnelItem("t3", 1)])],
)


class Back:
    """All parts in one, which keep what they were asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.fails: HeadwaterError | None = None

    def _note(self, *asked: Any) -> None:
        self.asked.append(asked)
        if self.fails is not None:
            raise self.fails

    async def packed(self) -> tuple[bytes, bytes, str]:
        return b'{"shown":1}', gzip.compress(b'{"shown":1}'), "abc"

    async def items(self, item_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        self._note("items", list(item_ids))
        return {item_id: {"item_id": item_id} for item_id in item_ids}

    async def search(self, text: str, limit: int) -> list[dict[str, Any]]:
        self._note("search", text, limit)
        return [{"item_id": "t1"}]

    async def named(self, start: str, limit: int) -> list[dict[str, Any]]:
        self._note("named", start, limit)
        return [{"user_id": "ann"}]

    async def described(self, user_id: str) -> dict[str, Any]:
        self._note("described", user_id)
        if user_id == "nobody":
            raise LiveError(404, "unknown_user", "user 'nobody' has no events yet")
        return {"user_id": user_id}

    async def interests(
        self, user_id: str, until_ms: int | None, session: Sequence[SessionEvent]
    ) -> list[dict[str, Any]]:
        self._note("interests", user_id, until_ms, [each.item_id for each in session])
        return [{"x": 0.5, "y": 0.0, "weight": 1.0}]

    async def click(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        self._note("click", dict(fields))
        return {"token": "3-7"}

    async def recall(self, fields: Mapping[str, Any]) -> tuple[Response, float]:
        self._note("recall", dict(fields))
        return ANSWER, 4.5

    async def summary(self) -> dict[str, Any]:
        return {"open": 0}

    async def listed(self, wanted: Wanted, limit: int) -> list[dict[str, Any]]:
        self._note("listed", wanted, limit)
        return []

    async def shown(self, place: Place) -> dict[str, Any] | None:
        return {"place": str(place)} if place.offset < 100 else None

    async def redriven(self, wanted: Wanted, rate: float, max_tries: int, dry_run: bool) -> dict[str, Any]:
        self._note("redriven", wanted, rate, max_tries, dry_run)
        return {"redriven": 2}

    def under_way(self) -> dict[str, Any] | None:
        return {"redriven": 1}

    async def purged(self, wanted: Wanted, dry_run: bool) -> int:
        self._note("purged", wanted, dry_run)
        return 3

    async def doctor(self) -> dict[str, Any]:
        return {"findings": []}


class Site:
    def __init__(self, token: str | None = None, is_open: bool = True, **without: None) -> None:
        self.back = Back()
        parts = Parts(
            about=lambda: {"role": "all"},
            state=lambda: {"health": {}},
            map=self.back,
            users=self.back,
            asks=self.back,
            letters=self.back,
            doctor=self.back.doctor,
            missing={"map": "this server has no catalog"},
        )._replace(**without)
        app = web.Application(middlewares=[guard.hardened], client_max_size=10_000)
        add_live(app, Guard(token, is_open), parts)
        self.server = WebServer("WEB", app)

    async def call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any, Mapping[str, str]]:
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                method,
                f"http://{self.server.address}{path}",
                data=body if isinstance(body, bytes) or body is None else msgspec.json.encode(body),
                headers={
                    **({"Content-Type": "application/json"} if body is not None else {}),
                    **(headers or {}),
                },
            ) as response,
        ):
            raw = await response.read()
            return response.status, msgspec.json.decode(raw) if raw else None, response.headers

    async def __aenter__(self) -> "Site":
        await self.server.start("127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with Site() as site:
        yield site


GUARDED = [
    ("GET", "/live/state"),
    ("GET", "/live/catalog.json"),
    ("GET", "/live/search?q=tea"),
    ("GET", "/live/items?id=t1"),
    ("GET", "/live/users"),
    ("GET", "/live/users/ann"),
    ("POST", "/live/clicks"),
    ("POST", "/live/recall"),
    ("POST", "/live/interests"),
    ("GET", "/live/letters"),
    ("GET", "/live/letters/list"),
    ("GET", "/live/letters/show?place=c/1/2"),
    ("GET", "/live/letters/under_way"),
    ("POST", "/live/letters/redrive"),
    ("POST", "/live/letters/purge"),
    ("GET", "/live/doctor"),
]


@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_with_a_token_only_those_who_bring_it_are_told_anything(method: str, path: str) -> None:
    body = {} if method == "POST" else None
    async with Site(TOKEN, is_open=False) as site:
        for headers in ({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Host": "localhost"}):
            status, said, answered = await site.call(method, path, body, headers)
            assert (status, said["error"]["code"]) == (401, "unauthorized")
            assert "HEADWATER_ADMIN_TOKEN" in said["error"]["message"]
            assert answered["WWW-Authenticate"] == "Bearer"
        assert site.back.asked == []
        status, _, _ = await site.call(
            method, path, body, {"Authorization": f"Bearer {TOKEN}", "Host": "shop.example"}
        )
        assert status != 401


async def test_without_a_token_and_not_open_nobody_is_let_in_and_told_what_to_set() -> None:
    async with Site(None, is_open=False) as site:
        status, said, _ = await site.call("GET", "/live/users")
        assert status == 401
        assert "HEADWATER_LIVE_OPEN" in said["error"]["message"]
        assert (await site.call("GET", "/live/about"))[1] == {
            "role": "all",
            "may": {
                **dict.fromkeys(("state", "map", "users", "asks", "letters", "doctor"), True),
                "viewers": False,
            },
            "missing": {"map": "this server has no catalog"},
            "let_in": False,
            "loopback": False,
        }


@pytest.mark.parametrize("host", ["127.0.0.1:80", "localhost", "LOCALHOST:9", "[::1]:80"])
async def test_on_this_machine_an_open_page_needs_no_token(site: Site, host: str) -> None:
    assert (await site.call("GET", "/live/users", headers={"Host": host}))[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:80", "localhost.evil:1"]
)
async def test_a_name_that_was_resolved_to_this_machine_is_refused(site: Site, host: str) -> None:
    status, said, _ = await site.call("GET", "/live/users", headers={"Host": host})
    assert (status, said["error"]["code"]) == (401, "unauthorized")
    assert (await site.call("GET", "/live/about", headers={"Host": host}))[1]["let_in"] is False


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[evil"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
@pytest.mark.parametrize("path", ["/live/clicks", "/live/letters/purge"])
async def test_a_page_of_another_site_can_post_nothing(
    site: Site, headers: Mapping[str, str], status: int, path: str
) -> None:
    assert (await site.call("POST", path, {"user_id": "ann"}, headers))[0] == status
    assert site.back.asked == []


@pytest.mark.parametrize("site_of_page", ["cross-site", "same-site"])
async def test_nothing_is_done_for_a_page_of_another_site_that_only_loads_an_address(
    site: Site, site_of_page: str
) -> None:
    """It could not read the answer; but the doctor, a search or all dead letters are work for the worker."""
    sent = {"Sec-Fetch-Site": site_of_page}
    for method, path in GUARDED:
        status, said, _ = await site.call(method, path, {} if method == "POST" else None, sent)
        assert (status, said["error"]["code"]) == (403, "other_origin")
    assert site.back.asked == []
    assert (await site.call("GET", "/live/about", headers=sent))[1]["let_in"] is False
    assert (await site.call("GET", "/live/users", headers={"Sec-Fetch-Site": "none"}))[0] == 200


async def test_the_page_itself_may_post(site: Site) -> None:
    own = {"Origin": f"http://{site.server.address}", "Sec-Fetch-Site": "same-origin"}
    status, said, _ = await site.call("POST", "/live/clicks", {"user_id": "ann", "item_id": "t1"}, own)
    assert (status, said) == (201, {"token": "3-7"})
    assert site.back.asked == [("click", {"user_id": "ann", "item_id": "t1"})]


async def test_an_answer_comes_with_all_items_that_it_names(site: Site) -> None:
    status, said, headers = await site.call("POST", "/live/recall", {"user_id": "ann"})
    assert (status, said["took_ms"], sorted(said["items"])) == (200, 4.5, ["t1", "t2", "t3"])
    assert said["answer"]["funnel"][0]["items"] == [{"item_id": "t3", "rank": 1}]
    assert headers["Cache-Control"] == "no-store"
    assert headers["Content-Security-Policy"] == guard.POLICY


async def test_the_map_is_sent_small_and_only_when_it_has_changed(site: Site) -> None:
    status, said, headers = await site.call("GET", "/live/catalog.json", headers={"Accept-Encoding": "gzip"})
    assert (status, said, headers["Content-Encoding"]) == (200, {"shown": 1}, "gzip")
    plain = await site.call("GET", "/live/catalog.json", headers={"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain[2]
    again = await site.call("GET", "/live/catalog.json", headers={"If-None-Match": headers["ETag"]})
    assert again[0] == 304


async def test_what_a_server_does_not_have_is_refused_with_its_reason() -> None:
    async with Site(map=None, users=None) as site:
        status, said, _ = await site.call("GET", "/live/catalog.json")
        assert (status, said["error"]["message"]) == (404, "the catalog: this server has no catalog")
        assert (await site.call("GET", "/live/users"))[0] == 404
        status, said, _ = await site.call("POST", "/live/recall", {"user_id": "ann"})
        assert (status, said["items"]) == (200, {})  # an answer does without


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BadMessage("bad_field", "user_id: missing"), 400, "bad_field"),
        (NotPublished("the broker is away"), 503, "not_published"),
        (RecallTimeout("no answer"), 504, "no_answer"),
        (HeadwaterError("another redrive is under way"), 503, "refused"),
        (LiveError(503, "index_away", "the index does not answer"), 503, "index_away"),
    ],
)
async def test_every_failure_is_one_sentence(
    site: Site, error: HeadwaterError, status: int, code: str
) -> None:
    site.back.fails = error
    answered, said, _ = await site.call("POST", "/live/recall", {"user_id": "ann"})
    assert (answered, said) == (status, {"error": {"code": code, "message": str(error)}})


@pytest.mark.parametrize(
    "body", [b"no json", b"[1]", b"\xff", b'{"a": ' * 5000, b"9" * 9000, b'{"a": ' + b"9" * 9000 + b"}"]
)
async def test_a_body_that_is_no_object_is_refused(site: Site, body: bytes) -> None:
    status, said, _ = await site.call("POST", "/live/clicks", body)
    assert status in (400, 413)
    assert said["error"]["message"]
    assert site.back.asked == []


async def test_letters_are_chosen_by_a_filter_and_never_all_by_leaving_it_out(site: Site) -> None:
    for path in ("redrive", "purge"):
        status, said, _ = await site.call("POST", f"/live/letters/{path}", {"dry_run": True})
        assert (status, said["error"]["code"]) == (400, "bad_field")
    assert site.back.asked == []
    fields = {"reasons": ["bad_json"], "place": "clicks.v1/2/7", "rate": 5, "dry_run": True}
    assert (await site.call("POST", "/live/letters/redrive", fields))[1] == {"redriven": 2, "dry_run": True}
    wanted = Wanted(reasons=("bad_json",), places=(Place("clicks.v1", 2, 7),))
    assert site.back.asked == [("redriven", wanted, 5.0, 1, True)]
    assert (await site.call("GET", "/live/letters/under_way"))[1] == {"under_way": {"redriven": 1}}
    assert (await site.call("POST", "/live/letters/purge", {"topics": ["c"]}))[1] == {
        "purged": 3,
        "dry_run": False,
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"reasons": "bad_json"},
        {"reasons": [1]},
        {"place": 7},
        {"place": "nowhere"},
        {"reasons": ["a"], "rate": 0},
        {"reasons": ["a"], "rate": 1e-300},
        {"reasons": ["a"], "rate": True},
        {"reasons": ["a"], "max_tries": True},
        {"reasons": ["a"], "rate": "fast"},
        {"reasons": ["a"], "max_tries": 0},
        {"reasons": ["a"], "dry_run": "yes"},
        {"reason": ["a"]},
    ],
)
async def test_a_filter_that_cannot_be_understood_changes_nothing(site: Site, fields: Any) -> None:
    assert (await site.call("POST", "/live/letters/redrive", fields))[0] == 400
    assert site.back.asked == []


async def test_nobody_watches_by_asking_for_the_headers_alone(site: Site) -> None:
    assert (await site.call("HEAD", "/live/events"))[0] == 405


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1e3", "101", "9" * 30, "\u0663"])
async def test_a_limit_is_a_number_within_its_bounds(site: Site, limit: str) -> None:
    assert (await site.call("GET", f"/live/users?limit={limit}"))[0] == 400
    assert site.back.asked == []


async def test_interests_are_told_as_they_were_and_with_what_is_only_tried(site: Site) -> None:
    asked = {
        "user_id": "ann",
        "until_ms": 1_700_000_000_000,
        "session": [{"item_id": "t1", "action": "view"}],
    }
    status, said, _ = await site.call("POST", "/live/interests", asked)
    assert (status, said) == (200, {"interests": [{"x": 0.5, "y": 0.0, "weight": 1.0}]})
    assert site.back.asked == [("interests", "ann", 1_700_000_000_000, ["t1"])]


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"user_id": ""},
        {"user_id": "ann", "until_ms": "then"},
        {"user_id": "ann", "session": [{"item_id": "t1", "action": "dislike"}]},
        {"user_id": "ann", "session": [{"item_id": "t1"}] * 101},
        {"user_id": "ann", "limit": 3},
    ],
)
async def test_interests_that_are_asked_for_wrongly_are_refused(site: Site, asked: Any) -> None:
    assert (await site.call("POST", "/live/interests", asked))[0] == 400
    assert site.back.asked == []


async def test_a_user_is_found_under_any_id_and_a_letter_by_its_place(site: Site) -> None:
    assert (await site.call("GET", "/live/users/caf%C3%A9%2F1"))[1] == {"user_id": "café/1"}
    assert (await site.call("GET", "/live/users/nobody"))[0] == 404
    assert (await site.call("GET", "/live/letters/show?place=c/1/2"))[1] == {"place": "c/1/2"}
    assert (await site.call("GET", "/live/letters/show?place=c/1/200"))[0] == 404
    assert (await site.call("GET", "/live/letters/show?place=c"))[0] == 400
