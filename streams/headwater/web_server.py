"""The web server that workers and the gateway use, and what they share: JSON answers, tokens, local addresses."""

import asyncio
import hmac
import ipaddress
import logging
import resource
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, cast
from urllib.parse import unquote_to_bytes

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from headwater.client_errors import ClientError, NotPublished, RecallTimeout
from headwater.errors import HeadwaterError
from headwater.messages import BadMessage

log = logging.getLogger(__name__)

# What a browser says of a request that another site's page has sent. "none" is an address that a person typed in.
_OTHER_SITES: Final = frozenset({"cross-site", "same-site"})
RETRY: Final[Mapping[str, str]] = {"Retry-After": "1"}
_BODY_S: Final = 10.0
# Reasons why a body is refused that have a status of their own.
_OF_BODIES: Final[Mapping[str, int]] = {"wrong_type": 415, "too_large": 413, "too_slow": 408}
# How long the rest of a body that is refused is read, so that its sender hears why.
_LINGER_S: Final = 10.0
# A connection that sends no whole request, the first one or the next: longer than what proxies keep an idle one.
_IDLE_S: Final = 75.0
_MOST_CONNECTIONS: Final = 2_000
_FULL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 22\r\n\r\ntoo many connections\r\n"
)


class WebError(HeadwaterError):
    """The web server cannot listen: one sentence with the remedy."""


class WebServer:
    """A server of an app's routes. HEADWATER_``setting``_HOST and _PORT set its address; errors name them.

    Args:
        most: connections at a time, beyond which a new one is told to come back. None: 2,000, or half of the files that this
            process may open, whichever is less: a flood must not take those that Kafka and the index need.
    """

    def __init__(self, setting: str, app: web.Application, most: int | None = None) -> None:
        self._setting, self._app = setting, app
        app.middlewares.append(_in_sentences)  # inside those of the app, which know its errors
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = min(_MOST_CONNECTIONS, max(files // 2, 1)) if most is None else most
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None
        self.address: str | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen; ``address`` is host:port afterwards. Port 0: any free one. Raises WebError."""
        logging.getLogger("aiohttp.server").addFilter(_is_ours)
        self._runner = web.AppRunner(
            self._app,
            access_log=None,
            shutdown_timeout=1.0,
            keepalive_timeout=_IDLE_S,
            lingering_time=_LINGER_S,
            auto_decompress=False,  # a small body would unpack to gigabytes
        )
        await self._runner.setup()
        try:
            self._listening = await asyncio.get_running_loop().create_server(self._accepted, host, port)
        except OSError as error:
            await self.stop()
            name = f"HEADWATER_{self._setting}"
            raise WebError(
                f"{name}_HOST is {host} and {name}_PORT is {port}: expected an address of this machine and "
                f"a free port, or 0 for any ({error.strerror or error})"
            ) from error
        bound = self._listening.sockets[0].getsockname()
        self.address = f"{bound[0]}:{bound[1]}"

    async def stop(self) -> None:
        """Stop listening; calls in progress are ended."""
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _accepted(self) -> asyncio.Protocol:
        assert self._runner is not None
        server = self._runner.server
        assert server is not None
        return _Turned() if len(server.connections) >= self._most else server()


class _Turned(asyncio.Protocol):
    """A connection too many: told so, and closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        there = cast(asyncio.Transport, transport)
        there.write(_FULL)
        there.close()


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether an error of the server is one of ours. Strangers could fill the log with what is no HTTP, or by leaving early."""
    return record.exc_info is None or not isinstance(
        record.exc_info[1], HttpProcessingError | ConnectionResetError
    )


@web.middleware
async def _in_sentences(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """What no route answers is told as one sentence, too."""
    # Ids in addresses: bytes that are no UTF-8 would be read as the text of their escapes, and name another item.
    if "%" in request.raw_path and not _is_utf8(request.raw_path):
        return refused(400, "bad_utf8", f"{request.raw_path[:80]}: expected an address in UTF-8")
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return refused(404, "no_such_route", f"{request.path[:80]}: there is no such route")
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        return refused(405, "wrong_method", f"{request.method}: expected {allowed}", {"Allow": allowed})
    except (HeadwaterError, web.HTTPException, ConnectionResetError):  # the last: of a caller that has gone
        raise
    except Exception:
        log.exception("request_failed", extra={"route": request.match_info.route.name or request.path[:80]})
        return refused(500, "internal_error", "a bug of ours, which the log has: look there")


def _is_utf8(path: str) -> bool:
    try:
        unquote_to_bytes(path).decode()
    except UnicodeError:
        return False
    return True


def as_json(body: Any, status: int, headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer of JSON; ``body`` may be a message."""
    return web.Response(
        body=msgspec.json.encode(body), status=status, headers=headers, content_type="application/json"
    )


def refused(
    status: int,
    code: str,
    message: str,
    headers: Mapping[str, str] | None = None,
    event_id: str | None = None,
    answer: msgspec.Struct | None = None,
) -> web.Response:
    """A refusal: ``{"error": {"code", "message"}}``, one sentence, whatever bytes of the caller's are in it.

    Args:
        event_id: of a click that may not be stored, and may be sent again under this id.
        answer: what the worker said.
    """
    sentence = message.encode(errors="backslashreplace").decode()
    error = {"code": code, "message": sentence} | ({} if event_id is None else {"event_id": event_id})
    return as_json({"error": error} | ({} if answer is None else {"answer": answer}), status, headers)


def refusal_of(error: BadMessage | ClientError) -> web.Response:
    """What went wrong with a call, with the status that says what to do about it."""
    match error:
        case BadMessage():
            headers = {"Connection": "close"} if error.reason == "too_slow" else None
            return refused(_OF_BODIES.get(error.reason, 400), error.reason, str(error), headers)
        case NotPublished():
            return refused(503, "not_published", str(error), RETRY, event_id=error.event_id)
        case RecallTimeout():
            return refused(504, "no_answer", str(error))
        case _:
            return refused(503, "unavailable", str(error), RETRY)


async def json_object(request: web.Request) -> dict[str, Any]:
    """The fields of a body that is a JSON object.

    A form or plain text is what a page of another site may send without asking; JSON it may not.

    Raises:
        BadMessage: it is none, of another type, packed, too large, or too slow.
    """
    if request.content_type != "application/json":
        seen = request.content_type[:80]
        raise BadMessage("wrong_type", f"Content-Type: got {seen}, expected application/json")
    if (packed := request.headers.get("Content-Encoding", "identity")) != "identity":
        raise BadMessage(
            "wrong_type", f"Content-Encoding: got {packed[:80]}, expected a body that is not packed"
        )
    try:
        async with asyncio.timeout(_BODY_S):
            raw = await request.read()
    except TimeoutError:
        raise BadMessage("too_slow", f"the body did not come within {_BODY_S:g} s") from None
    except web.RequestPayloadError as error:
        raise BadMessage("bad_body", f"the body cannot be read: {' '.join(str(error).split())}") from None
    except web.HTTPRequestEntityTooLarge:
        most = request.client_max_size
        raise BadMessage("too_large", f"the body has more than {most} bytes, expected fewer") from None
    try:
        fields = msgspec.json.decode(raw)
    # ValueError is also that of UTF-8, and of a number with thousands of digits.
    except (ValueError, RecursionError) as error:
        raise BadMessage("bad_json", f"the body is no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise BadMessage("bad_json", f"the body is a {type(fields).__name__}, expected an object")
    return fields


def whole_number(text: str, name: str, most: int) -> int:
    """A number of a query. Raises BadMessage."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 20 and 0 < int(text) <= most):
        raise BadMessage("bad_field", f"{name}: got {text[:80]!r}, expected a number from 1 to {most}")
    return int(text)


def is_local(host: str) -> bool:
    """Whether an address is of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_bearer(request: web.Request, token: str) -> bool:
    """Whether the request has the token, compared in constant time."""
    scheme, _, brought = request.headers.get("Authorization", "").partition(" ")
    given = brought.strip().encode(errors="surrogateescape")
    return scheme.lower() == "bearer" and hmac.compare_digest(given, token.encode())


def host_of(request: web.Request) -> str:
    """The name by which a request came, without the port and brackets, in lower case."""
    host = request.host.lower()
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    return name.removeprefix("[").removesuffix("]")


def is_of_other_site(request: web.Request) -> bool:
    """Whether a browser says that a page of another site, or of another server, has sent this."""
    origin = request.headers.get("Origin")
    is_foreign = origin is not None and origin.partition("://")[2] != request.host
    return is_foreign or request.headers.get("Sec-Fetch-Site") in _OTHER_SITES


def came_locally(request: web.Request) -> bool:
    """Whether a request comes from this machine, and no page of another site has sent it.

    Such a page may send its requests to this machine's address, or resolve a name of its own to it.
    """
    return is_local(host_of(request)) and not is_of_other_site(request)
