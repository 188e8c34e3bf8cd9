"""The live page at the gateway: what it has there, and who is let in."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr

from headwater.client import Client
from headwater.gateway.admission import Admission
from headwater.gateway.process import application
from headwater.settings import Settings
from headwater.web_server import WebServer

KEY, TOKEN = "correct-horse-battery", "another-horse-battery"


class Site:
    def __init__(self, address: str, session: aiohttp.ClientSession) -> None:
        self._address, self._session = address, session

    async def call(
        self, method: str, path: str, token: str = "", **fields: Any
    ) -> tuple[int, str, Mapping[str, str]]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with self._session.request(
            method, f"http://{self._address}{path}", json=fields or None, headers=headers
        ) as response:
            return response.status, await response.text(), response.headers


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1", admin_token=SecretStr(TOKEN))
    server = WebServer("GATEWAY", application(Client(settings), Admission(100.0, 10), [KEY], settings))
    await server.start("127.0.0.1", 0)
    async with aiohttp.ClientSession() as session:
        yield Site(str(server.address), session)
    await server.stop()


async def test_the_page_is_there_for_everybody_with_its_policy(site: Site) -> None:
    status, body, headers = await site.call("GET", "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "Headwater" in body
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")


async def test_what_a_gateway_does_not_have_is_said_with_where_it_is(site: Site) -> None:
    _, body, _ = await site.call("GET", "/live/about")
    assert '"role":"gateway"' in body
    assert '"asks":true' in body
    assert '"viewers":false' in body
    assert '"letters":true' in body
    assert '"api":"/docs/api"' in body
    for path in ("/live/events", "/live/catalog.json", "/live/users/ann", "/live/state", "/live/doctor"):
        status, body, _ = await site.call("GET", path, TOKEN)
        assert status == 404
        assert "not_here" in body
        assert "worker" in body or "headwater doctor" in body


@pytest.mark.parametrize("path", ["/live/clicks", "/live/recall", "/live/letters/purge"])
async def test_a_key_of_a_front_end_lets_nobody_in_behind_the_page(site: Site, path: str) -> None:
    for token in ("", KEY, f"{TOKEN}x"):
        assert (await site.call("POST", path, token, user_id="ann"))[0] == 401
    status, body, _ = await site.call("POST", path, TOKEN, nonsense=1)
    assert (status, "no such field" in body) == (400, True)


async def test_the_gateways_own_routes_want_a_key_as_before(site: Site) -> None:
    for token in ("", TOKEN):
        assert (await site.call("POST", "/clicks", token, user_id="ann"))[0] == 401
