"""The routes behind the live page: a stream of events, one user, the map of the catalog, answers with funnels, dead letters.

Bodies are JSON; times are milliseconds since 1970. An error is ``{"error": {"code", "message"}}`` with its status. ``x`` and
``y`` are places on the map, -1 to 1; an item or an interest that has none has null there.

| route | answer |
|---|---|
| GET / and /page/NAME | the page itself: `page/index.html`, and the files beside it |
| GET /live/about | ``{role, version, bundle, partitions, may, let_in, loopback, actions, sources, missing{part: why}}`` |
| GET /live/events | a stream of server-sent events, see below |
| GET /live/state | ``{health, ready, catalog, bundle}``: see `/healthz` and `/readyz`; the offsets of the catalog; the manifest |
| GET /live/catalog.json | the map, see below; has an ETag |
| GET /live/search?q=TEXT&limit=N | ``{items: [item]}``: the item of that id, titles with the words, then what is like the text |
| GET /live/items?id=A&id=B | ``{items: {id: item}}``, unknown ones left out |
| GET /live/users?q=START&limit=N | ``{users: [{user_id, events, last_at_ms}]}``: ids that begin so, of this worker, the last active first |
| GET /live/users/{user_id} | one user, see below; 404 ``unknown_user``, ``elsewhere`` where another worker has the partition, or ``newer_format`` |
| POST /live/interests | ``{user_id, until_ms?, session?}``, as in a `Request` -> ``{interests: [{x, y, weight}]}``: now, as they were then, or with what-if events; 404 ``elsewhere`` |
| POST /live/clicks | ``{user_id, item_id, action?, event_id?, at_ms?}`` -> 201 ``{partition, offset, token, event_id, took_ms}`` |
| POST /live/recall | the fields of a `Request` without ``request_id`` -> ``{answer, items: {id: item}, took_ms}`` |
| GET /live/letters | ``{open, redriven, groups: [{reason, topic, letters, failed_again, oldest_ms, newest_ms, remedy, newest{place, message}}]}`` |
| GET /live/letters/list?reason=R&topic=T&limit=N | ``{letters: [{place, put_ms, reason, message, lacks, tries, key, value_bytes}]}``, newest first |
| GET /live/letters/show?place=T/P/O | ``{place, put_ms, reason, message, lacks, tries, key, headers: [[name, text]], text, hex, value_bytes}`` |
| POST /live/letters/redrive | ``{reasons?, topics?, place?, rate?, max_tries?, dry_run?}`` -> ``{redriven, skipped: {code: n}, refused: {place: why}, dry_run}``; goes on if the caller leaves |
| GET /live/letters/under_way | ``{under_way: {redriven} or null}``: how far the redrive is that runs now |
| POST /live/letters/purge | ``{reasons?, topics?, place?, dry_run?}`` -> ``{purged, dry_run}`` |
| GET /live/doctor | ``{findings: [{ok, what, seen}], at_ms}``; takes seconds, and is kept for ten of them |

An ``item`` is ``{item_id, title, category, price, available, x, y}``, as far as the catalog has it.

**Who is let in.** `about` tells by ``let_in`` whether this caller is, and by ``loopback`` whether a token is needed. The page, `about` and the
figures of `events` are for everybody who reaches the address. All else wants ``Authorization: Bearer HEADWATER_ADMIN_TOKEN``. Where
``HEADWATER_LIVE_OPEN`` is set (`up` and `demo` set it) and the server listens on this machine alone, no token is needed; the Host header must
then be a local name. No call may come from a page of another site, and a POST has to be ``Content-Type: application/json``.
The policy of every answer allows scripts, styles and connections of this origin only, no inline ones and no `eval`. An `EventSource`
sends no header: with a token, read `events` by `fetch`.

**The stream** has these events, their data JSON in one line:

| event | when | data |
|---|---|---|
| hello | first | ``{interval_ms, viewers, let_in}`` |
| figures | once a second | ``{at_ms, clicks_per_s, answers_per_s, items_per_s, click_to_applied_ms{p50, p99}, answer_ms{p50, p99}, click_to_answer_ms{p50, p99, n}, probe_ms{p50, p99}, probe_failures{reason: n}, partitions: [{topic, partition, watermark, lag, still_s}], rungs{rung: n}, statuses{status: n}, dead_letters{reason: n}, users, items, pending, viewers}``; p50 and p99 are null where nothing came; counts are since the worker's start |
| clicks | with figures, for those let in | ``[{user_id, item_id, action, event_id, at_ms, partition, offset, lag_ms}]``, a sample, oldest first |
| answers | the same | ``[{request_id, user_id, status, rung, took_ms, items: [item_id], reflects}]``, a sample |
| items | the same | ``[{item_id, title, is_removed, lag_ms}]``, a sample |
| bye | last | ``{reason, retry_ms}``: ``full`` (a newer viewer took the place), ``slow`` (this one did not read), ``stopping``. Reconnect after ``retry_ms`` |

**The map** is ``{bundle, items, shown, spread: [share of x, share of y], ids: [], titles: [], categories: [name], category: [place in categories],
x: [], y: []}``, at most 20,000 points: the first two principal components of the item vectors. Its axes stay as long as the bundle and the worker live.

**Quantiles** are of the last ten seconds. `click_to_answer_ms` is from a click's record to the first answer that reflects it, without the
time in which the click was applied and nobody asked, of a sample of at most 200 clicks a second; `probe_ms` is that of the freshness probe, where `HEADWATER_PROBE_S` is set.

**One user** is ``{user_id, partition, watermark, events: [{item_id, title, category, at_ms, action, pending, x, y}], pending, last_event_id,
counters, hidden}``; events are oldest first.

**An answer as it was at t** is a recall with ``until_ms: t``: events of the user after t do not count, and ``now`` is t. Its ``funnel`` is described
at `headwater.messages.Funnel`.
"""

import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec
from aiohttp import web

from headwater.client_errors import ClientError
from headwater.errors import HeadwaterError
from headwater.kafka.letters import MAX_RATE, MIN_RATE, Place, Wanted
from headwater.messages import BadMessage, Response, SessionEvent, check_fields, decode_request
from headwater.web_server import as_json, json_object, refusal_of, refused, whole_number
from headwater.worker.web import guard, static
from headwater.worker.web.guard import Guard, Handler
from headwater.worker.web.viewers import Viewers

_MOST_ITEMS: Final = 1_000
_MOST_USERS: Final = 100
_MOST_FOUND: Final = 100
_MOST_LETTERS: Final = 500
_DEFAULT_RATE: Final = 100.0
_MAX_TRIES: Final = 1_000
_MAX_TEXT: Final = 500
# The parts as a person calls them.
_IN_WORDS: Final[Mapping[str, str]] = {
    "viewers": "the stream",
    "state": "catalog and bundle",
    "map": "the catalog",
    "users": "what is known of users",
    "asks": "clicks and answers",
    "letters": "dead letters",
    "doctor": "the doctor",
}


class LiveError(HeadwaterError):
    """A refusal of the page's back, with its status and a code for the page."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Map(Protocol):
    """The catalog. Methods may raise LiveError."""

    async def packed(self) -> tuple[bytes, bytes, str]:
        """The map as JSON, the same compressed with gzip, and its ETag."""
        ...

    async def items(self, item_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Items by id, as far as they are known."""
        ...

    async def search(self, text: str, limit: int) -> list[dict[str, Any]]:
        """The best first."""
        ...


class Users(Protocol):
    """The users of this worker. Methods may raise LiveError."""

    async def named(self, start: str, limit: int) -> list[dict[str, Any]]:
        """Those whose id begins so, the last active first."""
        ...

    async def described(self, user_id: str) -> dict[str, Any]:
        """One user."""
        ...

    async def interests(
        self, user_id: str, until_ms: int | None, session: Sequence[SessionEvent]
    ) -> list[dict[str, Any]]:
        """The user's interests on the map, without the events after ``until_ms`` and with those of the ``session``."""
        ...


class Asks(Protocol):
    """Publishes and asks."""

    async def click(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Publish an event. Raises BadMessage, ClientError."""
        ...

    async def recall(self, fields: Mapping[str, Any]) -> tuple[Response, float]:
        """An answer, and the ms that it took. Raises BadMessage, ClientError."""
        ...


class Desk(Protocol):
    """Works on dead letters. Methods raise HeadwaterError where the broker is away."""

    async def summary(self) -> dict[str, Any]:
        """How many there are, and of what."""
        ...

    async def listed(self, wanted: Wanted, limit: int) -> list[dict[str, Any]]:
        """The newest first."""
        ...

    async def shown(self, place: Place) -> dict[str, Any] | None:
        """One of them."""
        ...

    async def redriven(self, wanted: Wanted, rate: float, max_tries: int, dry_run: bool) -> dict[str, Any]:
        """Publish them again."""
        ...

    def under_way(self) -> dict[str, Any] | None:
        """How far the redrive is that runs now."""
        ...

    async def purged(self, wanted: Wanted, dry_run: bool) -> int:
        """Take them out."""
        ...


class Parts(NamedTuple):
    """What a server has for the page; a part that is None is refused, with the sentence that ``missing`` has for its name."""

    about: Callable[[], dict[str, Any]]
    viewers: Viewers | None = None
    state: Callable[[], dict[str, Any]] | None = None
    map: Map | None = None
    users: Users | None = None
    asks: Asks | None = None
    letters: Desk | None = None
    doctor: Callable[[], Awaitable[dict[str, Any]]] | None = None
    missing: Mapping[str, str] = {}


def add_live(app: web.Application, door_guard: Guard, parts: Parts) -> None:
    """Serve the page and everything behind it. The application needs `guard.hardened` among its middlewares."""
    routes = _Routes(door_guard, parts)
    static.add_page(app)
    app.router.add_get("/live/about", routes.told(routes.about))
    # A HEAD would be a viewer, to whom nothing may be sent.
    app.router.add_get("/live/events", routes.told(routes.events), allow_head=False)
    for path, get in (
        ("/live/state", routes.state),
        ("/live/catalog.json", routes.catalog),
        ("/live/search", routes.search),
        ("/live/items", routes.items),
        ("/live/users", routes.users),
        ("/live/users/{user_id}", routes.user),
        ("/live/letters", routes.letters),
        ("/live/letters/list", routes.letter_list),
        ("/live/letters/show", routes.letter),
        ("/live/letters/under_way", routes.letters_under_way),
        ("/live/doctor", routes.doctor),
    ):
        app.router.add_get(path, routes.told(routes.guarded(get)))
    for path, post in (
        ("/live/clicks", routes.click),
        ("/live/recall", routes.recall),
        ("/live/interests", routes.interests),
        ("/live/letters/redrive", routes.redrive),
        ("/live/letters/purge", routes.purge),
    ):
        app.router.add_post(path, routes.told(routes.guarded(post)))
    if parts.viewers is not None:
        viewers = parts.viewers

        async def close(_: web.Application) -> None:
            await viewers.close()

        app.on_shutdown.append(close)


class _Routes:
    def __init__(self, door_guard: Guard, parts: Parts) -> None:
        self._guard, self._parts = door_guard, parts

    def told(self, handler: Handler) -> Handler:
        """The handler, whose refusals are one sentence as JSON."""

        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                return await handler(request)
            except LiveError as error:
                return refused(error.status, error.code, str(error))
            except (BadMessage, ClientError) as error:
                return refusal_of(error)
            except HeadwaterError as error:
                return refused(503, "refused", str(error))

        return handle

    def guarded(self, handler: Handler) -> Handler:
        """The handler, for callers that are let in alone."""

        async def handle(request: web.Request) -> web.StreamResponse:
            if (complaint := guard.complaint_about(request)) is not None:
                return complaint
            if not self._guard.lets_in(request):
                return self._guard.refusal()
            response = await handler(request)
            if not response.prepared:
                response.headers.setdefault("Cache-Control", "no-store")
            return response

        return handle

    async def about(self, request: web.Request) -> web.StreamResponse:
        said = self._parts.about()
        may = {name: getattr(self._parts, name) is not None for name in _IN_WORDS}
        return as_json(
            {
                **said,
                "may": may,
                "missing": self._parts.missing,
                "let_in": self._guard.lets_in(request),
                "loopback": self._guard.is_open,
            },
            200,
            {"Cache-Control": "no-store"},
        )

    async def events(self, request: web.Request) -> web.StreamResponse:
        viewers: Viewers = self._part("viewers", self._parts.viewers)
        return await viewers.serve(request, self._guard.lets_in(request))

    async def state(self, _: web.Request) -> web.StreamResponse:
        return as_json(self._part("state", self._parts.state)(), 200)

    async def catalog(self, request: web.Request) -> web.StreamResponse:
        body, gzipped, etag = await self._part("map", self._parts.map).packed()
        headers = {"ETag": f'"{etag}"', "Cache-Control": "private, no-cache", "Vary": "Accept-Encoding"}
        if any(each.value == etag for each in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            body, headers = gzipped, {**headers, "Content-Encoding": "gzip"}
        return web.Response(body=body, headers=headers, content_type="application/json")

    async def search(self, request: web.Request) -> web.StreamResponse:
        text, limit = request.query.get("q", "")[:_MAX_TEXT], _limit(request, _MOST_FOUND, 20)
        return as_json({"items": await self._part("map", self._parts.map).search(text, limit)}, 200)

    async def items(self, request: web.Request) -> web.StreamResponse:
        item_ids = request.query.getall("id", [])[:_MOST_ITEMS]
        return as_json({"items": await self._part("map", self._parts.map).items(item_ids)}, 200)

    async def users(self, request: web.Request) -> web.StreamResponse:
        start, limit = request.query.get("q", "")[:_MAX_TEXT], _limit(request, _MOST_USERS, 20)
        return as_json({"users": await self._part("users", self._parts.users).named(start, limit)}, 200)

    async def user(self, request: web.Request) -> web.StreamResponse:
        users: Users = self._part("users", self._parts.users)
        return as_json(await users.described(request.match_info["user_id"]), 200)

    async def interests(self, request: web.Request) -> web.StreamResponse:
        users: Users = self._part("users", self._parts.users)
        fields = await json_object(request)
        check_fields(fields, ("user_id", "until_ms", "session"))
        raw = msgspec.json.encode({**fields, "request_id": "interests", "explain": True})
        asked = decode_request(None, raw, time.time_ns() // 1_000_000)
        found = await users.interests(asked.user_id, asked.until_ms, asked.session)
        return as_json({"interests": found}, 200)

    async def click(self, request: web.Request) -> web.StreamResponse:
        asks = self._part("asks", self._parts.asks)
        return as_json(await asks.click(await json_object(request)), 201)

    async def recall(self, request: web.Request) -> web.StreamResponse:
        asks = self._part("asks", self._parts.asks)
        answer, took_ms = await asks.recall(await json_object(request))
        ids = [item.item_id for item in answer.items]
        ids += [reason.item_id for item in answer.items for reason in item.because]
        ids += [item.item_id for stage in answer.funnel or () for item in stage.items]
        items: Mapping[str, Any] = {}
        if self._parts.map is not None:
            with contextlib.suppress(LiveError):  # titles are no part of the answer
                items = await self._parts.map.items([*dict.fromkeys(ids)][:_MOST_ITEMS])
        return as_json({"answer": answer, "items": items, "took_ms": took_ms}, 200)

    async def letters(self, _: web.Request) -> web.StreamResponse:
        return as_json(await self._part("letters", self._parts.letters).summary(), 200)

    async def letter_list(self, request: web.Request) -> web.StreamResponse:
        desk = self._part("letters", self._parts.letters)
        wanted = Wanted(
            reasons=tuple(request.query.getall("reason", [])), topics=tuple(request.query.getall("topic", []))
        )
        return as_json({"letters": await desk.listed(wanted, _limit(request, _MOST_LETTERS, 100))}, 200)

    async def letter(self, request: web.Request) -> web.StreamResponse:
        desk = self._part("letters", self._parts.letters)
        found = await desk.shown(_place(request.query.get("place", "")))
        if found is None:
            raise LiveError(404, "no_such_letter", "there is no such dead letter any more")
        return as_json(found, 200)

    async def letters_under_way(self, _: web.Request) -> web.StreamResponse:
        return as_json({"under_way": self._part("letters", self._parts.letters).under_way()}, 200)

    async def redrive(self, request: web.Request) -> web.StreamResponse:
        desk = self._part("letters", self._parts.letters)
        fields = await json_object(request)
        wanted, rate = _wanted(fields), fields.get("rate", _DEFAULT_RATE)
        if type(rate) not in (int, float) or not MIN_RATE <= rate <= MAX_RATE:
            raise BadMessage(
                "bad_field",
                f"rate: got {rate!r:.80}, expected letters a second, from {MIN_RATE:g} to {MAX_RATE:g}",
            )
        tries = fields.get("max_tries", 1)
        if type(tries) is not int or not 1 <= tries <= _MAX_TRIES:
            raise BadMessage(
                "bad_field", f"max_tries: got {tries!r:.80}, expected a number from 1 to {_MAX_TRIES}"
            )
        done = await desk.redriven(wanted, float(rate), tries, _is_dry(fields))
        return as_json({**done, "dry_run": _is_dry(fields)}, 200)

    async def purge(self, request: web.Request) -> web.StreamResponse:
        desk = self._part("letters", self._parts.letters)
        fields = await json_object(request)
        purged = await desk.purged(_wanted(fields), _is_dry(fields))
        return as_json({"purged": purged, "dry_run": _is_dry(fields)}, 200)

    async def doctor(self, _: web.Request) -> web.StreamResponse:
        return as_json(await self._part("doctor", self._parts.doctor)(), 200)

    def _part(self, name: str, part: Any) -> Any:
        if part is None:
            why = self._parts.missing.get(name, "this server does not have it")
            raise LiveError(404, "not_here", f"{_IN_WORDS[name]}: {why}")
        return part


def _limit(request: web.Request, most: int, usual: int) -> int:
    return whole_number(request.query.get("limit", str(usual)), "limit", most)


def _place(text: str) -> Place:
    try:
        return Place.parse(text)
    except ValueError:
        raise BadMessage(
            "bad_field", f"place: got {text[:80]!r}, expected TOPIC/PARTITION/OFFSET, such as clicks/2/1041"
        ) from None


def _wanted(fields: Mapping[str, Any]) -> Wanted:
    """The filter of a call that changes something: nobody means all letters by leaving it out. Raises BadMessage."""
    check_fields(fields, ("reasons", "topics", "place", "rate", "max_tries", "dry_run"))
    reasons, topics = (_texts(fields, name) for name in ("reasons", "topics"))
    place = fields.get("place")
    if not (reasons or topics or place):
        raise BadMessage("bad_field", "reasons, topics, place: all missing, expected one of them at least")
    if place is not None and not isinstance(place, str):
        raise BadMessage("bad_field", "place: expected text, TOPIC/PARTITION/OFFSET")
    return Wanted(reasons=reasons, topics=topics, places=(_place(place),) if place else ())


def _texts(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    given = fields.get(name, [])
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise BadMessage("bad_field", f"{name}: expected a list of texts")
    return tuple(given)


def _is_dry(fields: Mapping[str, Any]) -> bool:
    is_dry = fields.get("dry_run", False)
    if not isinstance(is_dry, bool):
        raise BadMessage("bad_field", "dry_run: expected true or false")
    return is_dry
