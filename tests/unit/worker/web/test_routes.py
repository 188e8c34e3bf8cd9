"""What a worker says of itself over HTTP."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import msgspec
import pytest

from headwater.metrics import Metrics
from headwater.settings import Settings
from headwater.web_server import WebError, WebServer
from headwater.worker.status import NoSuchUser
from headwater.worker.web import routes

TOKEN = "correct horse battery".replace(" ", "-")


class Site:
    def __init__(self) -> None:
        self.health: dict[str, Any] = {"ok": True, "lag": 3}
        self.readiness: dict[str, Any] = {"ready": True, "waits_for": []}
        self.asked: list[str] = []
        self.metrics = Metrics()
        self.probes = routes.probes(
            self.metrics, lambda: self.health, lambda: self.readiness, Settings.load()
        )
        self.data = routes.data(TOKEN, self.describe, self.describe_items)

    async def describe(self, user_id: str) -> dict[str, Any]:
        self.asked.append(user_id)
        if user_id == "nobody":
            raise NoSuchUser("unknown_user", "user 'nobody' has no events yet")
        return {"user_id": user_id, "events": 2}

    async def describe_items(self, item_ids: list[str]) -> dict[str, dict[str, Any]]:
        return {item_id: {"title": "Green tea"} for item_id in item_ids if item_id != "nothing"}

    async def get(
        self, path: str, server: WebServer | None = None, authorization: str | None = f"Bearer {TOKEN}"
    ) -> tuple[int, Mapping[str, str], str]:
        headers = {} if authorization is None else {"Authorization": authorization}
        data = path.startswith(("/users", "/items"))
        address = (server or (self.data if data else self.probes)).address
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://{address}{path}", headers=headers) as response,
        ):
            return response.status, response.headers, await response.text()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    for server in (site.probes, site.data):
        await server.start("127.0.0.1", 0)
    yield site
    for server in (site.probes, site.data):
        await server.stop()


async def test_a_healthy_worker_says_so(site: Site) -> None:
    status, headers, body = await site.get("/healthz")
    assert (status, body) == (200, '{"ok":true,"lag":3}')
    assert headers["Content-Type"].startswith("application/json")


async def test_a_worker_that_is_not_well_answers_503_with_the_reason(site: Site) -> None:
    site.health = {"ok": False, "reason": "clicks-2 stands still"}
    status, _, body = await site.get("/healthz")
    assert status == 503
    assert "clicks-2 stands still" in body


async def test_metrics_are_those_of_this_worker_in_prometheus_format(site: Site) -> None:
    site.metrics.clicks_total.inc(7)
    status, headers, body = await site.get("/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    assert "\nheadwater_clicks_total 7.0\n" in body


async def test_a_user_is_described_under_any_id(site: Site) -> None:
    status, _, body = await site.get("/users/caf%C3%A9%20%E2%98%95%2F1")
    assert status == 200
    assert site.asked == ["café ☕/1"]
    assert '"events":2' in body


async def test_an_unknown_user_is_a_404_that_names_the_user(site: Site) -> None:
    status, _, body = await site.get("/users/nobody")
    assert status == 404
    assert "nobody" in body


async def test_items_are_described_by_their_ids_and_unknown_ones_left_out(site: Site) -> None:
    status, _, body = await site.get("/items?id=caf%C3%A9%2F1&id=nothing&id=t2")
    assert status == 200
    assert msgspec.json.decode(body) == {"café/1": {"title": "Green tea"}, "t2": {"title": "Green tea"}}


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer caf\u00e9",
    ],
)
@pytest.mark.parametrize("path", ["/users/ann", "/items?id=t2", "/elsewhere"])
async def test_without_the_token_nothing_is_told(site: Site, path: str, authorization: str | None) -> None:
    status, headers, body = await site.get(path, site.data, authorization)
    assert status == 401
    assert headers["WWW-Authenticate"] == "Bearer"
    assert "HEADWATER_ADMIN_TOKEN" in body
    assert TOKEN not in body
    assert site.asked == []


@pytest.mark.parametrize("path", ["/users/ann", "/items?id=t2"])
async def test_the_door_for_probes_tells_of_no_user_and_no_item(site: Site, path: str) -> None:
    assert (await site.get(path, site.probes))[0] == 404
    assert site.asked == []


async def test_the_documentation_is_served_to_everybody_and_a_plot_keeps_its_styles(site: Site) -> None:
    for path in ("/docs/streams/README.md", "/docs/topics", "/asyncapi.json", "/llms.txt"):
        status, headers, _ = await site.get(path, authorization=None)
        assert (status, "default-src 'none'" in headers["Content-Security-Policy"]) == (200, True), path
    _, headers, _ = await site.get("/docs/models/light.svg", authorization=None)
    assert headers["Content-Security-Policy"].endswith("style-src 'unsafe-inline'; sandbox")
    assert (await site.get("/docs/api"))[0] == 404


async def test_a_worker_that_does_not_serve_all_it_holds_is_alive_and_not_ready(site: Site) -> None:
    assert (await site.get("/readyz"))[0] == 200
    site.readiness = {"ready": False, "waits_for": ["the state of its partitions"]}
    status, _, body = await site.get("/readyz")
    assert (status, (await site.get("/healthz"))[0]) == (503, 200)
    assert "the state of its partitions" in body


@pytest.mark.parametrize("setting", ["WEB", "ADMIN"])
async def test_a_taken_port_is_refused_in_a_sentence(site: Site, setting: str) -> None:
    other = site.data if setting == "ADMIN" else site.probes
    await other.stop()
    taken = site.probes if setting == "ADMIN" else site.data
    port = int(str(taken.address).rsplit(":", 1)[1])
    with pytest.raises(
        WebError, match=rf"HEADWATER_{setting}_PORT is {port}: expected .* a free port.*already in use"
    ):
        await other.start("127.0.0.1", port)
    await other.stop()


async def test_stopping_what_was_never_started_is_harmless() -> None:
    await Site().probes.stop()
