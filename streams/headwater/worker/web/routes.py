"""What a worker says of itself over HTTP, behind two doors on loopback by default.

| door | route | says |
|---|---|---|
| probes | /healthz | the worker's state as JSON; status 503 if it is not well |
| probes | /readyz | whether it serves all that it holds; status 503 while it does not |
| probes | /metrics | Prometheus metrics |
| data | /users/{user_id} | the log of a user that this worker holds; 404 otherwise |
| data | /items?id=A&id=B | the catalog fields of indexed items |

The door to data has an address of its own, is closed unless there is a token, and lets nobody in without it.
"""

import hmac
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from headwater.errors import HeadwaterError
from headwater.metrics import CONTENT_TYPE, Metrics

Describe = Callable[[], dict[str, Any]]
DescribeUser = Callable[[str], Awaitable[dict[str, Any] | None]]
DescribeItems = Callable[[list[str]], Awaitable[dict[str, dict[str, Any]]]]

_SCHEME: Final = "Bearer "


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


def probes(metrics: Metrics, health: Describe, readiness: Describe) -> Door:
    """The door for probes. ``ok`` of ``health`` decides the status of /healthz, ``ready`` of ``readiness`` of /readyz."""

    async def healthz(_: web.Request) -> web.Response:
        state = health()
        return _json(state, 200 if state["ok"] else 503)

    async def readyz(_: web.Request) -> web.Response:
        state = readiness()
        return _json(state, 200 if state["ready"] else 503)

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", exposition)
    return Door("WEB", app)


def data(token: str, describe_user: DescribeUser, describe_items: DescribeItems) -> Door:
    """The door to what is known of users and items, for those who bring ``token``; for all others the status is 401."""
    expected = token.encode()

    @web.middleware
    async def checked(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        given = request.headers.get("Authorization", "")
        brought = given.removeprefix(_SCHEME).encode(errors="surrogateescape")
        # Compared in a time that does not tell how much of it is right.
        if not (given.startswith(_SCHEME) and hmac.compare_digest(brought, expected)):
            refused = _json({"error": "expected the header Authorization: Bearer HEADWATER_ADMIN_TOKEN"}, 401)
            refused.headers["WWW-Authenticate"] = "Bearer"
            return refused
        return await handler(request)

    async def user(request: web.Request) -> web.Response:
        user_id = request.match_info["user_id"]
        found = await describe_user(user_id)
        if found is None:
            return _json({"error": f"user {user_id!r} is not known to this worker"}, 404)
        return _json(found, 200)

    async def items(request: web.Request) -> web.Response:
        return _json(await describe_items(request.query.getall("id", [])), 200)

    app = web.Application(middlewares=[checked])
    app.router.add_get("/users/{user_id}", user)
    app.router.add_get("/items", items)
    return Door("ADMIN", app)


def _json(body: dict[str, Any], status: int) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")
