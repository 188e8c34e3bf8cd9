"""What a worker says of itself over HTTP, on loopback by default.

| route | says |
|---|---|
| /healthz | the worker's state as JSON; status 503 if it is not well |
| /metrics | Prometheus metrics |
| /users/{user_id} | the log of a user that this worker holds; 404 otherwise |
| /items?id=A&id=B | the catalog fields of indexed items |
"""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from headwater.errors import HeadwaterError
from headwater.metrics import CONTENT_TYPE, Metrics

Health = Callable[[], dict[str, Any]]
Describe = Callable[[str], Awaitable[dict[str, Any] | None]]
DescribeItems = Callable[[list[str]], Awaitable[dict[str, dict[str, Any]]]]


class WebError(HeadwaterError):
    """The web server cannot listen: one sentence with the remedy."""


class Web:
    """Serves the routes. ``health`` gives the body of /healthz, whose field ``ok`` decides its status."""

    def __init__(
        self, metrics: Metrics, health: Health, describe_user: Describe, describe_items: DescribeItems
    ) -> None:
        self._metrics, self._health = metrics, health
        self._describe_user, self._describe_items = describe_user, describe_items
        self._runner: web.AppRunner | None = None
        self.address: str | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen; ``address`` is host:port afterwards. Port 0: any free one. Raises WebError."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/metrics", self._exposition)
        app.router.add_get("/users/{user_id}", self._user)
        app.router.add_get("/items", self._items)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self.stop()
            raise WebError(
                f"HEADWATER_WEB_HOST is {host} and HEADWATER_WEB_PORT is {port}: expected an address of this machine and "
                f"a free port, or 0 for any ({error.strerror or error})"
            ) from error
        bound = self._runner.addresses[0]
        self.address = f"{bound[0]}:{bound[1]}"

    async def stop(self) -> None:
        """Stop listening; calls in progress are ended."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _healthz(self, request: web.Request) -> web.Response:
        state = self._health()
        return _json(state, 200 if state["ok"] else 503)

    async def _exposition(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    async def _user(self, request: web.Request) -> web.Response:
        user_id = request.match_info["user_id"]
        found = await self._describe_user(user_id)
        if found is None:
            return _json({"error": f"user {user_id!r} is not known to this worker"}, 404)
        return _json(found, 200)

    async def _items(self, request: web.Request) -> web.Response:
        return _json(await self._describe_items(request.query.getall("id", [])), 200)


def _json(body: dict[str, Any], status: int) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")
