"""A web server that listens where its settings say, and what all of ours answer with."""

import hmac
import ipaddress
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from aiohttp import web

from headwater.errors import HeadwaterError

_SCHEME: Final = "Bearer "
_LOCAL_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})


class WebError(HeadwaterError):
    """The web server cannot listen: one sentence with the remedy."""


class Door:
    """A server with some routes. ``setting`` is what its address is set by: HEADWATER_``setting``_HOST and _PORT."""

    def __init__(self, setting: str, app: web.Application) -> None:
        self._setting, self._app = setting, app
        self._runner: web.AppRunner | None = None
        self.address: str | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen; ``address`` is host:port afterwards. Port 0: any free one. Raises WebError."""
        self._runner = web.AppRunner(self._app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self.stop()
            name = f"HEADWATER_{self._setting}"
            raise WebError(
                f"{name}_HOST is {host} and {name}_PORT is {port}: expected an address of this machine and "
                f"a free port, or 0 for any ({error.strerror or error})"
            ) from error
        bound = self._runner.addresses[0]
        self.address = f"{bound[0]}:{bound[1]}"

    async def stop(self) -> None:
        """Stop listening; calls in progress are ended."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None


def as_json(body: Any, status: int, headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer of JSON; ``body`` may be a message."""
    return web.Response(
        body=msgspec.json.encode(body), status=status, headers=headers, content_type="application/json"
    )


def is_local(host: str) -> bool:
    """Whether an address to listen on is of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_bearer(request: web.Request, token: str) -> bool:
    """Whether the request brings the token, compared in a time that does not tell how much of it is right."""
    given = request.headers.get("Authorization", "")
    brought = given.removeprefix(_SCHEME).encode(errors="surrogateescape")
    return given.startswith(_SCHEME) and hmac.compare_digest(brought, token.encode())


def host_of(request: web.Request) -> str:
    """The name by which a request came, without the port, in lower case."""
    host = request.host.lower()
    return host if host.endswith("]") else host.rpartition(":")[0] or host


def came_locally(request: web.Request) -> bool:
    """Whether a request names this machine: a page in a browser may resolve a name of its own to it."""
    return host_of(request) in _LOCAL_NAMES
