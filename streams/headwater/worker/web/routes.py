"""A worker over HTTP: one server for probes and the live page, one for users' data. Both listen on loopback by default.

| server | route | answers with |
|---|---|---|
| probes | /healthz | the worker's state as JSON; status 503 if it is not well |
| probes | /readyz | whether it serves all that it holds; status 503 while it does not |
| probes | /metrics | Prometheus metrics |
| probes | /, /page/NAME and /live/... | the live page and what is behind it, see `live.py` |
| probes | /docs, /llms.txt, /asyncapi.json | the documentation, see `docs/site.py` |
| data | /users/{user_id} | the log of a user that this worker holds; 404 otherwise, with the reason |
| data | /items?id=A&id=B | the catalog fields of indexed items |

The server for data has an address of its own. It runs only where a token is set, and asks for that.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from headwater.docs.site import add_docs
from headwater.metrics import CONTENT_TYPE, Metrics
from headwater.settings import Settings
from headwater.web_server import WebServer, as_json, is_bearer, refused
from headwater.worker.status import NoSuchUser
from headwater.worker.web import guard, static

Describe = Callable[[], dict[str, Any]]
DescribeUser = Callable[[str], Awaitable[dict[str, Any]]]
DescribeItems = Callable[[list[str]], Awaitable[dict[str, dict[str, Any]]]]


def probes(
    metrics: Metrics,
    health: Describe,
    readiness: Describe,
    settings: Settings,
    add_page: Callable[[web.Application], None] = static.add_page,
) -> WebServer:
    """The server for probes. ``ok`` of ``health`` decides the status of /healthz, ``ready`` of ``readiness`` of /readyz.

    ``add_page`` adds the routes of the live page.
    """

    async def healthz(_: web.Request) -> web.Response:
        state = health()
        return as_json(state, 200 if state["ok"] else 503)

    async def readyz(_: web.Request) -> web.Response:
        state = readiness()
        return as_json(state, 200 if state["ready"] else 503)

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application(middlewares=[guard.hardened])
    add_page(app)
    add_docs(app, settings)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", exposition)
    return WebServer("WEB", app)


def data(token: str, describe_user: DescribeUser, describe_items: DescribeItems) -> WebServer:
    """The server for data of users and items. Requests without ``token`` get the status 401.

    ``describe_user`` may raise NoSuchUser.
    """

    @web.middleware
    async def checked(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if not is_bearer(request, token):
            expected = "expected the header Authorization: Bearer HEADWATER_ADMIN_TOKEN"
            return refused(401, "unauthorized", expected, {"WWW-Authenticate": "Bearer"})
        return await handler(request)

    async def user(request: web.Request) -> web.Response:
        try:
            return as_json(await describe_user(request.match_info["user_id"]), 200)
        except NoSuchUser as error:
            return refused(404, error.code, str(error))

    async def items(request: web.Request) -> web.Response:
        return as_json(await describe_items(request.query.getall("id", [])), 200)

    app = web.Application(middlewares=[checked])
    app.router.add_get("/users/{user_id}", user)
    app.router.add_get("/items", items)
    return WebServer("ADMIN", app)
