"""The web server that workers and the gateway use, and what they share: JSON answers, tokens, local addresses."""

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


class WebServer:
    """A server of an app's routes. HEADWATER_``setting``_HOST and _PORT set its address; errors name them."""

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
    """Whether only this machine can reach an address to listen on."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_bearer(request: web.Request, token: str) -> bool:
    """Whether the request has the token, compared in constant time."""
    given = request.headers.get("Authorization", "")
    brought = given.removeprefix(_SCHEME).encode(errors="surrogateescape")
    return given.startswith(_SCHEME) and hmac.compare_digest(brought, token.encode())


def host_of(request: web.Request) -> str:
    """The host name of a request, without the port, in lower case."""
    host = request.host.lower()
    return host if host.endswith("]") else host.rpartition(":")[0] or host


def came_locally(request: web.Request) -> bool:
    """Whether the Host header names this machine. A foreign page's own name may resolve to it too (DNS rebinding)."""
    return host_of(request) in _LOCAL_NAMES
