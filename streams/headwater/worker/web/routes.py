"""What a worker says of itself over HTTP, on loopback by default: /healthz, /metrics, /users/{user_id}, /items?id=."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from headwater.metrics import CONTENT_TYPE, Metrics

Health = Callable[[], dict[str, Any]]
Describe = Callable[[str], Awaitable[dict[str, Any] | None]]
DescribeItems = Callable[[list[str]], Awaitable[dict[str, dict[str, Any]]]]


class Web:
    """``health`` gives what /healthz says: ``ok`` false makes it a 503."""

    def __init__(
        self, metrics: Metrics, health: Health, describe_user: Describe, describe_items: DescribeItems
    ) -> None:
        self._metrics, self._health = metrics, health
        self._describe_user, self._describe_items = describe_user, describe_items
        self._runner: web.AppRunner | None = None
        self.address: str | None = None

    async def start(self, host: str, port: int) -> None:
        """Raises OSError when the port is taken."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/metrics", self._exposition)
        app.router.add_get("/users/{user_id}", self._user)
        app.router.add_get("/items", self._items)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        bound = self._runner.addresses[0]
        self.address = f"{bound[0]}:{bound[1]}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

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
