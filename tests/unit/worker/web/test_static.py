"""The files of the live page."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from headwater.web_server import WebServer
from headwater.worker.web import guard, static


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[WebServer]:
    folder = tmp_path / "page"
    (folder / "vendor").mkdir(parents=True)
    (folder / "index.html").write_text("<p>here</p>")
    (folder / "vendor" / "chart.mjs").write_text("export {};")
    (folder / "notes.md").write_text("not for the public")
    (tmp_path / "secret.txt").write_text("beside it")
    (folder / "way-out.txt").symlink_to(tmp_path / "secret.txt")
    app = web.Application(middlewares=[guard.hardened])
    static.add_page(app, folder)
    server = WebServer("WEB", app)
    await server.start("127.0.0.1", 0)
    yield server
    await server.stop()


async def got(
    server: WebServer, path: str, headers: Mapping[str, str] | None = None
) -> aiohttp.ClientResponse:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{server.address}{path}", headers=headers) as response,
    ):
        await response.read()
        return response


async def test_the_page_is_at_the_root_with_its_type_and_policy(server: WebServer) -> None:
    response = await got(server, "/")
    assert (response.status, await response.text()) == (200, "<p>here</p>")
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_script_has_its_type_and_is_sent_again_only_when_it_changed(server: WebServer) -> None:
    response = await got(server, "/page/vendor/chart.mjs")
    assert response.headers["Content-Type"] == "text/javascript; charset=utf-8"
    again = await got(server, "/page/vendor/chart.mjs", {"If-None-Match": response.headers["ETag"]})
    assert again.status == 304


@pytest.mark.parametrize(
    "path",
    [
        "/page/notes.md",
        "/page/nothing.js",
        "/page/vendor",
        "/page/way-out.txt",
        "/page/..%2fsecret.txt",
        "/page/%2e%2e/secret.txt",
        "/page/vendor/..%5c..%5csecret.txt",
        "/page/a%00.js",
    ],
)
async def test_what_is_no_file_of_the_page_is_not_found(server: WebServer, path: str) -> None:
    response = await got(server, path)
    assert response.status == 404
    assert "Content-Security-Policy" in response.headers
    assert "beside it" not in await response.text()
