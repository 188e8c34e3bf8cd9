"""The web server: how many come in, what a silent caller may hold, and bodies of strangers."""

import asyncio
import gzip
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web

from headwater import web_server
from headwater.web_server import WebServer, as_json, came_locally, is_local, json_object, refusal_of

SOON_S = 20.0
Say = Callable[[bytes], Awaitable[bytes]]


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WebServer]:
    monkeypatch.setattr(web_server, "_IDLE_S", 0.2)
    monkeypatch.setattr(web_server, "_BODY_S", 0.2)
    monkeypatch.setattr(web_server, "_LINGER_S", 0.2)

    async def echo(request: web.Request) -> web.Response:
        try:
            return as_json({"fields": await json_object(request)}, 200)
        except web_server.BadMessage as error:
            return refusal_of(error)

    async def local(request: web.Request) -> web.Response:
        return as_json({"is_local": came_locally(request)}, 200)

    async def gone(_: web.Request) -> web.Response:
        raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")

    app = web.Application(client_max_size=1_000)
    app.router.add_post("/", echo)
    app.router.add_get("/local", local)
    app.router.add_get("/gone", gone)
    server = WebServer("WEB", app, most=3)
    await server.start("127.0.0.1", 0)
    yield server
    await server.stop()


async def said(server: WebServer, sent: bytes) -> bytes:
    """All that the server answers to some bytes, until it closes."""
    host, _, port = str(server.address).rpartition(":")
    async with asyncio.timeout(SOON_S):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent)
        heard = await reader.read()
        writer.close()
    return heard


def posted(body: bytes, *headers: str) -> bytes:
    lines = ["POST / HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def test_a_caller_that_never_ends_its_headers_is_let_go(server: WebServer) -> None:
    assert await said(server, b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ") == b""


@pytest.mark.parametrize(
    "sent",
    [
        posted(b'{"a": ', "Content-Length: 100"),
        posted(b"5\r\n[1, 2\r\n", "Transfer-Encoding: chunked"),
    ],
)
async def test_a_body_without_an_end_is_refused_in_time(server: WebServer, sent: bytes) -> None:
    heard = await said(server, sent)
    assert heard.startswith(b"HTTP/1.1 408 ")
    assert b'"too_slow"' in heard


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (gzip.compress(b" " * 1_000_000), ["Content-Encoding: gzip"], b"415"),
        (b"no gzip", ["Content-Encoding: gzip"], b"415"),
        (b"zz\r\nno chunk", ["Transfer-Encoding: chunked"], b"400"),
    ],
)
async def test_a_body_that_is_packed_or_broken_is_refused_unread(
    server: WebServer, body: bytes, headers: list[str], status: bytes
) -> None:
    length = [] if "Transfer-Encoding: chunked" in headers else [f"Content-Length: {len(body)}"]
    heard = await said(server, posted(body, *headers, *length, "Connection: close"))
    assert heard.startswith((b"HTTP/1.1 " + status, b"HTTP/1.0 " + status))
    assert b'{"error":' in heard or b"Bad Request" in heard


async def test_chunks_without_an_end_are_no_way_around_the_size(server: WebServer) -> None:
    chunks = b"400\r\n" + b" " * 0x400 + b"\r\n"
    assert (await said(server, posted(chunks, "Transfer-Encoding: chunked"))).startswith(b"HTTP/1.1 413 ")


async def test_connections_too_many_are_told_to_come_back_and_the_next_one_has_room(
    server: WebServer,
) -> None:
    host, _, port = str(server.address).rpartition(":")
    held = [await asyncio.open_connection(host, int(port)) for _ in range(3)]
    heard = await said(server, b"")
    assert heard.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1" in heard
    for _, writer in held:
        writer.close()
    async with asyncio.timeout(SOON_S):
        while b'"is_local":true' not in await said(
            server, b"GET /local HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        ):
            await asyncio.sleep(0.01)  # they are still being closed


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: a\r\n" % number for number in range(1_000)) + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_refused_and_does_not_fill_the_log(
    server: WebServer, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert (await said(server, sent)).startswith((b"HTTP/1.0 400 ", b"HTTP/1.1 400 "))
    assert caplog.records == []


@pytest.mark.parametrize(
    "body", [b"{", b"[1]", b"9" * 900, b'{"a":' + b"9" * 900 + b"}", b"[" * 900, b"\xff"]
)
async def test_a_body_that_is_no_object_is_one_sentence(server: WebServer, body: bytes) -> None:
    heard = await said(server, posted(body, f"Content-Length: {len(body)}", "Connection: close"))
    assert heard.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 200 "))


@pytest.mark.parametrize(
    ("host", "sent", "is_here"),
    [
        ("localhost:8080", "same-origin", True),
        ("127.0.0.1", "none", True),
        ("127.9.9.9:1", "none", True),
        ("[::1]:8080", "same-origin", True),
        ("localhost", "cross-site", False),
        ("localhost:80\r\nOrigin: http://localhost:80", "same-origin", True),
        ("localhost:80\r\nOrigin: http://localhost:81", "", False),
        ("localhost\r\nOrigin: null", "", False),
        ("localhost:3000", "same-site", False),
        ("evil.example", "same-origin", False),
        ("127.0.0.1.evil.example", "none", False),
        ("\xff", "none", False),
    ],
)
async def test_only_this_machine_and_no_page_of_another_site_comes_locally(
    server: WebServer, host: str, sent: str, is_here: bool
) -> None:
    lines = [f"Host: {host}", f"Sec-Fetch-Site: {sent}", "Connection: close"]
    request = "\r\n".join(["GET /local HTTP/1.1", *lines, "", ""]).encode("latin-1")
    assert (b'"is_local":true' in await said(server, request)) is is_here


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        ("GET /nowhere", 404, "no_such_route"),
        ("DELETE /local", 405, "wrong_method"),
        ("GET /local?id=%FF", 400, "bad_utf8"),
        ("GET /%ED%A0%80", 400, "bad_utf8"),
    ],
)
async def test_what_no_route_answers_is_a_sentence_too(
    server: WebServer, sent: str, status: int, code: str
) -> None:
    heard = await said(server, f"{sent} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert heard.startswith(f"HTTP/1.1 {status} ".encode())
    assert f'{{"error":{{"code":"{code}","message":"'.encode() in heard


def test_an_address_of_this_machine_is_told_from_others() -> None:
    assert [is_local(each) for each in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1", "a.b")] == [
        *[True] * 3,
        *[False] * 3,
    ]


async def test_callers_who_leave_before_their_answer_do_not_fill_the_log(
    server: WebServer, caplog: pytest.LogCaptureFixture
) -> None:
    await said(server, b"GET /gone HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


async def test_a_refusal_can_hold_any_bytes_of_a_caller() -> None:
    response = web_server.refused(400, "bad_field", "Content-Type: got \udcff")
    assert response.body == b'{"error":{"code":"bad_field","message":"Content-Type: got \\\\udcff"}}'
