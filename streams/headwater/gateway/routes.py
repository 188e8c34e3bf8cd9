"""The routes of the gateway: HTTP in, the Python client out.

| route | does |
|---|---|
| POST /clicks | publishes an event of a user |
| POST /items | publishes a catalog entry |
| DELETE /items/{item_id} | takes one out |
| POST /offers | publishes a new price, availability or attributes of an item |
| DELETE /offers/{item_id} | takes back what was offered so far |
| POST /recall | asks for items for a user |
| GET /items/{item_id}/similar | asks for the items nearest to one |
| GET /openapi.json | describes these |
| GET /docs, /llms.txt, /asyncapi.json | the documentation, see `docs/site.py` |
| GET /healthz | whether Kafka answers; status 503 where it does not |

Bodies are the messages of the topics, without the ids that the gateway makes. All but the last three want a key, where keys are set,
and count against the caller's rate.
"""

import inspect
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
from aiohttp import web

from headwater.client import Client
from headwater.client_errors import ClientError, RecallTimeout, RequestExpired, RequestRejected
from headwater.gateway.admission import Admission, Refused
from headwater.gateway.openapi import document
from headwater.messages import MAX_LIMIT, BadMessage, Item, Position, Response, check_fields, item_of
from headwater.web_server import (
    RETRY,
    as_json,
    came_locally,
    host_of,
    is_bearer,
    json_object,
    refusal_of,
    refused,
    whole_number,
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# As large as Kafka takes a message.
MAX_BODY_BYTES: Final = 1_000_000
POSITION_HEADER: Final = "Headwater-Position"
AFTER_HEADER: Final = "Headwater-After"
# A web page waits for no longer.
_PUBLISH_S: Final = 10.0
# Routes that tell nothing of users and items, or let callers in by themselves (the live page), by how they begin.
_OPEN: Final = ("/healthz", "/openapi.json", "/asyncapi.json", "/llms.txt", "/docs", "/page/", "/live/")


def _arguments(method: Callable[..., Any], *without: str) -> frozenset[str]:
    return frozenset(inspect.signature(method).parameters) - {"self", "timeout_s", *without}


_CLICK_FIELDS: Final = _arguments(Client.click)
_ITEM_FIELDS: Final = frozenset(Item.__struct_fields__)
_OFFER_FIELDS: Final = _arguments(Client.offer)
_RECALL_FIELDS: Final = _arguments(Client.recall)


class Gateway:
    """The handlers over one client.

    Args:
        keys: of those who may come in; without any, everybody who reaches the address by a local name.
    """

    def __init__(self, client: Client, admission: Admission, keys: Sequence[str] = ()) -> None:
        self._client, self._admission, self._keys = client, admission, tuple(keys)
        self._document = document()

    def application(self) -> web.Application:
        """To be served."""
        app = web.Application(middlewares=[_errors_as_json, self._let_in], client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/clicks", self._click)
        app.router.add_post("/items", self._put_item)
        app.router.add_delete("/items/{item_id}", self._delete_item)
        app.router.add_post("/offers", self._offer)
        app.router.add_delete("/offers/{item_id}", self._withdraw)
        app.router.add_post("/recall", self._recall)
        app.router.add_get("/items/{item_id}/similar", self._similar)
        app.router.add_get("/openapi.json", self._openapi)
        app.router.add_get("/healthz", self._health)
        return app

    @web.middleware
    async def _let_in(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        # The route that was found, not the path that was sent: of the two only the route decides what is done.
        resource = request.match_info.route.resource
        if resource is not None and (resource.canonical == "/" or resource.canonical.startswith(_OPEN)):
            return await handler(request)
        caller = request.remote or ""
        if self._keys:
            places = [place for place, key in enumerate(self._keys) if is_bearer(request, key)]
            if not places:
                return refused(
                    401,
                    "unauthorized",
                    "expected the header Authorization: Bearer KEY, with one of HEADWATER_GATEWAY_KEYS",
                    {"WWW-Authenticate": "Bearer"},
                )
            caller = f"key {places[0]}"
        elif not came_locally(request):
            sentence = f"host {host_of(request)!r}: expected localhost, since no keys are set, and no page of another site"
            return refused(403, "forbidden", sentence)
        with self._admission.admitted(caller):
            return await handler(request)

    async def _click(self, request: web.Request) -> web.Response:
        fields = await _object(request, _CLICK_FIELDS)
        if fields.get("event_id") is None:
            fields["event_id"] = uuid.uuid4().hex
        position = await self._client.click(**_named("user_id", fields), timeout_s=_PUBLISH_S)
        return _stored(201, position, event_id=fields["event_id"])

    async def _put_item(self, request: web.Request) -> web.Response:
        item = item_of(await _object(request, _ITEM_FIELDS))
        return _stored(201, await self._client.put_item(item, timeout_s=_PUBLISH_S))

    async def _delete_item(self, request: web.Request) -> web.Response:
        position = await self._client.delete_item(request.match_info["item_id"], timeout_s=_PUBLISH_S)
        return _stored(200, position)

    async def _offer(self, request: web.Request) -> web.Response:
        fields = await _object(request, _OFFER_FIELDS)
        position = await self._client.offer(**_named("item_id", fields), timeout_s=_PUBLISH_S)
        return _stored(201, position)

    async def _withdraw(self, request: web.Request) -> web.Response:
        position = await self._client.withdraw_offers(request.match_info["item_id"], timeout_s=_PUBLISH_S)
        return _stored(200, position)

    async def _recall(self, request: web.Request) -> web.Response:
        fields = await _object(request, _RECALL_FIELDS)
        if (token := request.headers.get(AFTER_HEADER)) is not None:
            fields["after"] = token
        elif isinstance(fields.get("after"), Mapping):
            fields["after"] = _position(fields["after"])
        if fields.get("reads") == "own":
            # The clicks of this gateway: the next call may come to another one.
            raise BadMessage("bad_field", "reads: got 'own', expected 'all' or 'any'")
        return as_json(await self._answer(**_named("user_id", fields)), 200)

    async def _similar(self, request: web.Request) -> web.Response:
        check_fields(request.query, ("limit", "user_id"))
        item_id, limit = request.match_info["item_id"], request.query.get("limit", "20")
        # Nobody: so many of them that they are spread over the partitions.
        user_id = request.query.get("user_id") or uuid.uuid4().hex
        answer = await self._answer(
            user_id=user_id,
            limit=whole_number(limit, "limit", MAX_LIMIT),
            items=[item_id],
            sources={"item": 1.0},
            reads="any",
        )
        return as_json(answer, 200)

    async def _answer(self, **fields: Any) -> Response:
        """The answer to a request. Where none comes, the broker is asked whether it is there: that is another remedy."""
        try:
            return await self._client.recall(**fields)
        except RecallTimeout:
            await self._client.check_broker()
            raise

    async def _openapi(self, _: web.Request) -> web.Response:
        return as_json(self._document, 200)

    async def _health(self, _: web.Request) -> web.Response:
        await self._client.check_broker()
        return as_json({"ok": True}, 200)


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal is one sentence as JSON, with the status that says what to do about it."""
    try:
        return await handler(request)
    except Refused as error:
        return refused(429, "too_many_calls", str(error), {"Retry-After": str(error.after_s)})
    except RequestRejected as error:
        return _rejected(error)
    except RequestExpired as error:
        return refused(504, "expired", str(error), answer=error.response)
    except (BadMessage, ClientError) as error:
        return refusal_of(error)


def _position(fields: Mapping[str, Any]) -> Position:
    try:
        return msgspec.convert(fields, Position)
    except msgspec.ValidationError as error:
        raise BadMessage("bad_field", f"after: {error}") from None


def _rejected(error: RequestRejected) -> web.Response:
    reason = error.response.error.code if error.response.error else "rejected"
    if reason == "overloaded":
        return refused(503, reason, str(error), RETRY, answer=error.response)
    return refused(400, reason, str(error), answer=error.response)


def _stored(status: int, position: Position, **more: str) -> web.Response:
    body = {"partition": position.partition, "offset": position.offset, "token": str(position), **more}
    return as_json(body, status, {POSITION_HEADER: str(position)})


async def _object(request: web.Request, allowed: frozenset[str]) -> dict[str, Any]:
    """The fields of a body. Raises BadMessage."""
    fields = await json_object(request)
    check_fields(fields, sorted(allowed))
    return fields


def _named(field: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields, among them the one without which nothing can be done. Raises BadMessage."""
    if field not in fields:
        raise BadMessage("bad_field", f"{field}: missing, expected a value")
    return fields
