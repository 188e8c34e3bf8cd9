"""The documentation over HTTP: pages as text under their own paths, nothing else of the machine, and a strict policy."""

import json
import re
from collections.abc import AsyncIterator
from posixpath import dirname, join, normpath
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from headwater.docs import readmes, site
from headwater.settings import Settings
from headwater.web_server import WebServer
from tests.support.checkout import ROOT


class Reader:
    def __init__(self, session: aiohttp.ClientSession, address: str) -> None:
        self._session, self._address = session, address

    async def get(self, path: str) -> tuple[int, str, Any]:
        """Status, text and headers, with redirects followed."""
        async with self._session.get(f"http://{self._address}{path}") as answer:
            return answer.status, await answer.text(), answer.headers


@pytest_asyncio.fixture
async def reader() -> AsyncIterator[Reader]:
    app = web.Application()
    site.add_docs(app, Settings.load(kafka_bootstrap_servers="inner:9092"), has_api=True)
    server = WebServer("WEB", app)
    await server.start("127.0.0.1", 0)
    async with aiohttp.ClientSession() as session:
        yield Reader(session, server.address or "")
    await server.stop()


async def test_every_page_is_plain_text_as_it_lies_in_the_repository(reader: Reader) -> None:
    for name in readmes.PAGES:
        status, text, headers = await reader.get(f"/docs/{name}")
        assert (status, headers["Content-Type"]) == (200, "text/plain; charset=utf-8"), name
        assert text == (ROOT / name).read_text(encoding="utf-8")


async def test_relative_links_lead_on(reader: Reader) -> None:
    links = {
        f"/docs/{normpath(join(dirname(name), link.partition('#')[0]))}"
        for name in readmes.PAGES
        for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text(encoding="utf-8"))
        if "://" not in link and not link.startswith("#") and not link.endswith(readmes._PICTURES)
    }
    assert len(links) > 15
    folders = {link for link in links if (ROOT / link.removeprefix("/docs/")).is_dir()}
    for link in links - folders:
        assert (await reader.get(link))[0] == 200, link
    for link in folders:
        readme = ROOT / link.removeprefix("/docs/") / "README.md"
        assert not readme.exists() or (await reader.get(link))[1] == readme.read_text(encoding="utf-8")


async def test_programs_that_read_find_every_page_in_llms_txt(reader: Reader) -> None:
    _, text, _ = await reader.get("/llms.txt")
    assert text.startswith("# Headwater\n\n> ")
    links = dict(re.findall(r"^- \[([^\]]+)\]\(([^)]+)\): \S", text, re.M))
    assert len(links) == len(readmes.PAGES) + 3
    assert links.pop("Live page") == "/"
    for link in set(links.values()) - {"/openapi.json"}:  # which is the gateway's own
        assert (await reader.get(link))[0] == 200, link


@pytest.mark.parametrize(
    "path",
    [
        "/docs/pyproject.toml",
        "/docs/../pyproject.toml",
        "/docs/..%2f..%2fetc%2fpasswd",
        "/docs//etc/passwd",
        "/docs/streams/headwater/settings.py",
        "/docs/%00",
    ],
)
async def test_nothing_else_is_served(reader: Reader, path: str) -> None:
    status, text, _ = await reader.get(path)
    assert status == 404
    assert "build-system" not in text


async def test_pages_run_their_own_modules_alone_and_speak_to_their_own_server(reader: Reader) -> None:
    for path in ("/docs/api", "/docs/topics", "/docs/api.js", "/docs/schema.js", "/docs/viewer.css"):
        status, text, headers = await reader.get(path)
        policy = headers["Content-Security-Policy"]
        assert (status, "'unsafe" in policy, "default-src 'none'" in policy) == (200, False, True), path
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert not re.search(
            r"https?://|innerHTML|localStorage|sessionStorage|document\.cookie|\beval\b", text
        )
    _, plot, headers = await reader.get("/docs/models/light.svg")
    assert "sandbox" in headers["Content-Security-Policy"]
    assert "<script" not in plot


async def test_what_anybody_may_read_has_no_address_of_a_broker(reader: Reader) -> None:
    _, text, _ = await reader.get("/asyncapi.json")
    assert "inner:9092" not in text
    messages = json.loads(text)["components"]["messages"]
    routes = {name: each["x-gateway"] for name, each in messages.items() if "x-gateway" in each}
    assert routes == {"Click": "/clicks", "Item": "/items", "Offer": "/offers", "Request": "/recall"}


async def test_a_worker_has_no_page_of_routes_that_it_lacks() -> None:
    app = web.Application()
    site.add_docs(app, Settings.load())
    assert "/docs/api" not in {route.resource.canonical for route in app.router.routes() if route.resource}
