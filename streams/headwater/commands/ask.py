"""`headwater click`, `ask` and `user`: one event, one answer, one user."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, cast, get_args
from urllib.parse import quote, urlencode

import msgspec
from cyclopts import Parameter

from headwater.commands import answer_words
from headwater.commands.terminal import (
    FLAG,
    MANY,
    CommandError,
    Expired,
    NoAnswer,
    Rejected,
    UsageError,
    admin_endpoint,
    answer_as,
    http_get,
    moment_ms,
    print_json,
    required_admin_endpoint,
    run_async,
    running_settings,
    say,
    stdout,
)
from headwater.messages import (
    ACTIONS,
    DEFAULT_DEADLINE_MS,
    SESSION_ACTIONS,
    ActionName,
    BadMessage,
    Position,
    Request,
    Response,
    SessionActionName,
    SessionEvent,
    SourceName,
    check_id,
    encode,
)

if TYPE_CHECKING:
    from rich.table import Table

    from headwater.settings import Settings

# A title that is long must leave room for the reason.
_TITLE_WIDTH: Final = 48
# A worker's HTTP server reads 8 KiB of a request line; one id, percent-encoded, takes at most 1.5.
_QUERY_CHARS: Final = 6_000


def click(
    user: str,
    item: str = "",
    *,
    action: ActionName = "click",
    at_ms: int | None = None,
    event_id: str | None = None,
) -> int:
    """Publish one event of a user, and print its position.

    Example: headwater click ann coffee-1 --action purchase

    Parameters
    ----------
    user
        The user's id.
    item
        The item's id; left out for retract and forget.
    action
        What the user did. retract takes an event back, forget erases the user.
    at_ms
        When it happened, in milliseconds since 1970; default: now.
    event_id
        The event's id; default: a new one. For retract: the event to take back.
    """
    if action == "retract" and event_id is None:
        raise UsageError("--action retract: expected --event-id with it, the id of the event to take back")
    settings = running_settings()
    from headwater.client import Client

    async def clicking() -> Position:
        async with Client(settings) as client:
            try:
                return await client.click(user, item, action, at_ms=at_ms, event_id=event_id)
            except BadMessage as error:
                raise UsageError(str(error)) from error

    position = run_async(clicking())
    print(position)
    return 0


def ask(
    user: str,
    *,
    limit: int = 10,
    filter_: Annotated[str | None, Parameter(name="--filter")] = None,
    exclude: Annotated[list[str], MANY] = [],  # noqa: B006 - cyclopts never changes it
    include_seen: Annotated[bool, FLAG] = False,
    query: str = "",
    item: Annotated[list[str], MANY] = [],  # noqa: B006 - cyclopts never changes it
    session: Annotated[list[str], MANY] = [],  # noqa: B006 - cyclopts never changes it
    sources: Annotated[list[str], MANY] = [],  # noqa: B006 - cyclopts never changes it
    diversity: float = 0.0,
    at: str | None = None,
    until: str | None = None,
    after: str | None = None,
    after_event_id: str | None = None,
    no_wait: Annotated[bool, FLAG] = False,
    deadline_ms: int = DEFAULT_DEADLINE_MS,
    explain: bool = True,
    json: Annotated[bool, FLAG] = False,
) -> int:
    """Ask for items for a user, and print them with a reason each.

    The answer reflects every click that was published before.

    Example: headwater ask ann --limit 5 --filter '{"price": {"lt": 20}}' --sources interests=1 --sources new=0.9

    Parameters
    ----------
    user
        The user's id.
    limit
        How many items.
    filter_
        JSON over the catalog's fields, such as '{"category": "garden", "price": {"lt": 20}}'.
    exclude
        An item to leave out; repeatable.
    include_seen
        Also answer with items that the user has seen.
    query
        Free text to search for.
    item
        Also find items similar to this one; repeatable. With --sources item=1, only those.
    session
        ITEM or ITEM:ACTION: an event that counts for this answer and is not stored; repeatable.
    sources
        NAME=WEIGHT: a source to ask, such as new=1; repeatable. Default: the worker's sources and weights.
    diversity
        0 (best first) to 1 (as different as possible).
    at
        Answer as if it were now this time: a date and time (without a zone: UTC), or milliseconds since 1970.
    until
        Answer as it was at this time: later events of the user do not count. Written as for --at.
    after
        A position in the clicks topic that the answer must reflect, as `headwater click` prints it.
    after_event_id
        Instead of --after: the id of an event that the answer must reflect.
    no_wait
        Do not wait for clicks that are published and not yet applied.
    deadline_ms
        How many milliseconds the worker may take.
    explain
        Give a reason for each item.
    json
        Print the whole answer as JSON.
    """
    if after is not None and after_event_id is not None:
        raise UsageError("--after and --after-event-id: expected one of the two")
    position = _position(after) if after is not None else None
    fields: dict[str, Any] = {
        "limit": limit,
        "filter": _filter(filter_) if filter_ is not None else None,
        "exclude": exclude,
        "exclude_seen": not include_seen,
        "query": query,
        "items": item,
        "session": [_session_event(each) for each in session],
        "sources": dict(_source(each) for each in sources),
        "diversity": diversity,
        "at_ms": moment_ms("--at", at) if at is not None else None,
        "until_ms": moment_ms("--until", until) if until is not None else None,
        "after_event_id": after_event_id,
        "deadline_ms": deadline_ms,
        "explain": explain,
    }
    settings = running_settings()
    reads = "any" if no_wait else "all"
    response = run_async(_recalled(settings, user, after=position, reads=reads, **fields))
    if json:
        print_json(encode(response))
        return 0
    if response.items:
        now_ms = fields["at_ms"] or fields["until_ms"] or int(time.time() * 1000)
        found = answer_words.rows(response, titles_of(settings, answer_words.named(response)), now_ms)
        stdout().print(_answer_table(found, explain=explain))
    for shortcoming in answer_words.shortcomings(Request("", user, **fields), response):
        say(shortcoming)
    for line in answer_words.funnel(response):
        stdout().print(line)
    stdout().print(answer_words.proof(response))
    return 0


async def _recalled(settings: "Settings", user: str, **fields: Any) -> Response:
    from headwater.client import Client, RequestExpired, RequestRejected

    try:
        async with Client(settings) as client:
            return await client.recall(user, **fields)
    except BadMessage as error:
        raise UsageError(str(error)) from error
    except RequestRejected as error:
        raise Rejected(str(error)) from error
    except RequestExpired as error:
        raise Expired(str(error)) from error


def _answer_table(found: Sequence[answer_words.Row], *, explain: bool) -> "Table":
    from rich.table import Table

    table = Table("#", "item", "title", box=None, pad_edge=False)
    table.columns[2].max_width = _TITLE_WIDTH
    for name in (*(["similarity"] if explain else []), "rank score", "source", *(["why"] if explain else [])):
        table.add_column(name)
    for rank, row in enumerate(found, 1):
        cells = [f"{row.score:.4f}", row.source]
        table.add_row(
            str(rank), row.item_id, row.title, *([row.similarity, *cells, row.reason] if explain else cells)
        )
    return table


def titles_of(settings: "Settings", item_ids: Sequence[str]) -> dict[str, str]:
    """Titles by item id, as far as a worker on this machine tells them."""
    titles: dict[str, str] = {}
    if (endpoint := admin_endpoint(settings)) is None:
        return titles
    for query in _queries(item_ids):
        try:
            status, body = http_get(endpoint.address, f"/items?{query}", endpoint.token)
            if status != 200:
                break
            found = answer_as(dict[str, dict[str, Any]], endpoint.address, body)
        except NoAnswer:
            break
        titles |= {item_id: str(item.get("title") or "") for item_id, item in found.items()}
    return titles


def _queries(item_ids: Sequence[str]) -> Iterator[str]:
    """Query strings that name all items, each short enough for one request."""
    names: list[str] = []
    size = 0
    for item_id in item_ids:
        name = urlencode({"id": item_id})
        if names and size + len(name) >= _QUERY_CHARS:
            yield "&".join(names)
            names, size = [], 0
        names.append(name)
        size += len(name) + 1
    if names:
        yield "&".join(names)


def _position(token: str) -> Position:
    try:
        return Position.parse(token)
    except BadMessage:
        raise UsageError(
            f"--after is {token}: expected partition-offset, such as 3-1042, as `headwater click` prints it"
        ) from None


def _filter(text: str) -> dict[str, Any]:
    expected = '{"category": "garden"}'
    try:
        where = msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--filter is {text[:80]}: expected JSON such as '{expected}' ({error})") from None
    if not isinstance(where, dict):
        raise UsageError(f"--filter is {text[:80]}: expected a JSON object such as '{expected}'")
    return where


def _session_event(text: str) -> SessionEvent:
    """ITEM or ITEM:ACTION. Ids may hold colons, so only the name of an action is taken off the end."""
    item_id, colon, action = text.rpartition(":")
    if not colon or action not in ACTIONS:
        return SessionEvent(text)
    if action not in SESSION_ACTIONS:
        raise UsageError(f"--session is {text}: expected one of the actions {', '.join(SESSION_ACTIONS)}")
    return SessionEvent(item_id, cast(SessionActionName, action))


def _source(text: str) -> tuple[str, float]:
    name, _, weight = text.partition("=")
    try:
        if name in get_args(SourceName):
            return name, float(weight or "1")
    except ValueError:
        pass
    raise UsageError(
        f"--sources is {text}: expected NAME=WEIGHT with a number from 0 to 100, such as interests=1, and one of the "
        f"names {', '.join(get_args(SourceName))}"
    )


def user(user: str, *, json: Annotated[bool, FLAG] = False) -> int:
    """Show what a worker on this machine knows of a user: events, pending items, watermark.

    Example: headwater user ann

    Parameters
    ----------
    user
        The user's id.
    json
        Print it as JSON.
    """
    found = described_user(running_settings(), user)
    if json:
        print_json(msgspec.json.encode(found))
        return 0
    stdout().print(_event_table(found["events"]))
    stdout().print(
        f"{len(found['events'])} events, {found['pending']} pending, partition {found['partition']}, watermark "
        f"{found['watermark']}, last event {found['last_event_id']}, {found.get('counters', 0)} items counted from before, "
        f"{found.get('hidden', 0)} hidden"
    )
    return 0


def described_user(settings: "Settings", user: str) -> dict[str, Any]:
    """What a worker on this machine knows of a user.

    Raises:
        UsageError: no user can have this id.
        CommandError: no such worker is known or answers, it refuses the token, or it does not have the user.
    """
    try:
        check_id("user", user)
    except BadMessage as error:
        raise UsageError(str(error)) from error
    endpoint = required_admin_endpoint(settings)
    status, body = http_get(endpoint.address, f"/users/{quote(user, safe='')}", endpoint.token)
    if status == 401:
        raise CommandError(
            f"the worker at {endpoint.address} refused the token: expected HEADWATER_ADMIN_TOKEN to be the one that it was "
            "started with"
        )
    if status != 200:
        raise CommandError(f"the worker at {endpoint.address} answered {status}: {_message_in(body)}")
    return answer_as(dict[str, Any], endpoint.address, body)


def _message_in(body: bytes) -> str:
    """What a worker says is wrong."""
    try:
        return str(msgspec.json.decode(body)["error"]["message"])
    except (msgspec.MsgspecError, ValueError, LookupError, TypeError):
        return body[:200].decode(errors="replace")


def _event_table(events: Sequence[Mapping[str, Any]]) -> "Table":
    from rich.table import Table

    table = Table("when", "action", "item", "title", "", box=None, pad_edge=False)
    for event in reversed(events):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(event["at_ms"] / 1000))
        pending = "pending" if event["pending"] else ""
        table.add_row(when, event["action"], event["item_id"] or "?", event["title"] or "", pending)
    return table
