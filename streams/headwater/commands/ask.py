"""`headwater click`, `ask` and `user`: one event, one answer, one user."""

import os
from typing import TYPE_CHECKING, Annotated, Final, Literal

from cyclopts import Parameter

from headwater.commands.terminal import (
    MANY,
    CommandError,
    get,
    run_async,
    running_settings,
    stdout,
    web_address,
)

if TYPE_CHECKING:
    from rich.table import Table

    from headwater.messages import Position, Response
    from headwater.settings import Settings


ActionOption = Literal[
    "click", "view", "like", "add_to_cart", "purchase", "dislike", "hide", "impression", "retract", "forget"
]


def click(
    user: str,
    item: str = "",
    *,
    action: ActionOption = "click",
    at_ms: int | None = None,
    event_id: str | None = None,
) -> int:
    """Publish one event of a user; prints its partition and offset. `ask` then waits for it.

    Parameters
    ----------
    at_ms
        When it happened, in milliseconds since 1970; default: now.
    event_id
        Default: a new one. For retract: the event to take back.
    """
    from headwater.client import Client

    settings = running_settings()

    async def clicking() -> "Position":
        async with Client(settings) as client:
            return await client.click(user, item, action, at_ms=at_ms, event_id=event_id)

    place = run_async(clicking())
    _LastClicks(settings).put(user, place)
    print(f"{place.partition}:{place.offset}")
    return 0


def ask(
    user: str,
    *,
    limit: int = 10,
    after: str | None = None,
    after_event_id: str | None = None,
    no_wait: Annotated[bool, Parameter(negative=())] = False,
    filter_: Annotated[str | None, Parameter(name="--filter")] = None,
    exclude: Annotated[list[str], MANY] = [],  # noqa: B006 - cyclopts never changes it
    include_seen: Annotated[bool, Parameter(negative=())] = False,
    query: str = "",
    session: Annotated[list[str], MANY] = [],  # noqa: B006 - cyclopts never changes it
    diversity: float = 0.0,
    deadline_ms: int = 2_000,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Ask for items for a user, and wait for the last click made by `headwater click` to count.

    Parameters
    ----------
    after
        P:O, a partition and offset of the clicks topic that the answer has to reflect.
    after_event_id
        Instead, the id of an event that it has to reflect.
    no_wait
        Do not wait for the last click.
    filter_
        JSON over the catalog's fields, such as '{"category": "garden", "price": {"lt": 20}}'.
    exclude
        An item that must not come; repeatable.
    include_seen
        Items the user has seen may come again.
    query
        Free text.
    session
        An item as if it had just been clicked, without storing it; repeatable.
    diversity
        0 (best first) to 1 (as different as possible).
    json
        Print the whole answer as JSON.
    """
    import msgspec

    from headwater.client import Client
    from headwater.messages import SessionEvent, encode

    settings = running_settings()
    where = None
    if filter_ is not None:
        try:
            where = msgspec.json.decode(filter_)
        except msgspec.DecodeError as error:
            raise CommandError(
                f'--filter is {filter_}: expected JSON such as \'{{"category": "garden"}}\' ({error})'
            ) from None
        if not isinstance(where, dict):
            raise CommandError(
                f'--filter is {filter_}: expected a JSON object such as \'{{"category": "garden"}}\''
            )
    place = _place(after) if after is not None else None
    if place is None and after_event_id is None and not no_wait:
        place = _LastClicks(settings).get(user)

    async def asking() -> "Response":
        async with Client(settings) as client:
            return await client.recall(
                user,
                limit=limit,
                filter=where,
                exclude=exclude,
                exclude_seen=not include_seen,
                diversity=diversity,
                query=query,
                session=[SessionEvent(item_id) for item_id in session],
                explain=True,
                after=place,
                after_event_id=after_event_id,
                deadline_ms=deadline_ms,
            )

    response = run_async(asking())
    if json:
        print(encode(response).decode())
    else:
        stdout().print(_answer_table(response))
        stdout().print(_reflected(response), highlight=False)
    return 0


def _place(text: str) -> "Position":
    from headwater.messages import Position

    partition, _, offset = text.partition(":")
    if not (partition.isdecimal() and offset.isdecimal()):
        raise CommandError(f"--after is {text}: expected partition:offset, as `headwater click` prints it")
    return Position(int(partition), int(offset))


def _answer_table(response: "Response") -> "Table":
    from rich.table import Table

    table = Table("#", "item", "score", "source", "because of", box=None, pad_edge=False)
    for rank, item in enumerate(response.items, 1):
        because = ", ".join(
            f"{reason.action} {reason.item_id} {reason.share:.0%}" for reason in item.because[:3]
        )
        table.add_row(str(rank), item.item_id, f"{item.score:.4f}", item.source, because)
    return table


def _reflected(response: "Response") -> str:
    proof = response.reflects
    words = f"{response.status}{f' ({response.rung})' if response.rung else ''}"
    if proof is not None:
        words += f", reflects {proof.events} events up to {proof.partition}:{proof.offset}"
        if proof.last_event_id:
            words += f", last event {proof.last_event_id}"
        if proof.pending:
            words += f", {proof.pending} pending (their items have no vector yet)"
    return f"{words}, {response.timings_ms.get('total', 0.0):.1f} ms in the worker"


def user(user: str, *, json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """What is known of a user: events, pending ones, the watermark of the partition.

    Parameters
    ----------
    json
        Print it as JSON.
    """
    import time
    from urllib.parse import quote

    import msgspec
    from rich.table import Table

    status, body = get(web_address(), f"/users/{quote(user, safe='')}")
    if status != 200:
        raise CommandError(
            f"no user {user} at the worker that was asked: expected one with events in a partition of that worker; "
            "try `headwater click` first, or look at the dead letters"
        )
    if json:
        print(body.decode())
        return 0
    found = msgspec.json.decode(body)
    table = Table("when", "action", "item", "title", "", box=None, pad_edge=False)
    for event in reversed(found["events"]):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(event["at_ms"] / 1000))
        pending = "pending" if event["pending"] else ""
        table.add_row(when, event["action"], event["item_id"] or "?", event["title"] or "", pending)
    stdout().print(table)
    stdout().print(
        f"{len(found['events'])} events, {found['pending']} pending, partition {found['partition']}, watermark "
        f"{found['watermark']}, last event {found['last_event_id']}, {found.get('counters', 0)} items counted from before",
        highlight=False,
    )
    return 0


class _LastClicks:
    """The last click of each user that this machine published, so that `ask` in another process waits for it.

    Positions mean something on one broker only, so the file forgets them when it meets another one.
    """

    _KEPT: Final = 1_000

    def __init__(self, settings: "Settings") -> None:
        from headwater import run_file

        run = run_file.read(settings)
        self._path = settings.data_dir / "last-clicks.json"
        # An embedded broker starts empty each time, perhaps on the same port.
        self._system = [
            settings.bootstrap_servers,
            settings.topic_prefix,
            f"{run.pid}-{run.pid_started}" if run else "",
        ]

    def get(self, user: str) -> "Position | None":
        from headwater.messages import Position

        place = self._read().get(user)
        return Position(*place) if place else None

    def put(self, user: str, place: "Position") -> None:
        import msgspec

        known = self._read()
        known.pop(user, None)
        known[user] = (place.partition, place.offset)
        kept = dict(list(known.items())[-self._KEPT :])
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(f".{os.getpid()}.tmp")
        draft.write_bytes(msgspec.json.encode({"system": self._system, "clicks": kept}))
        draft.replace(self._path)

    def _read(self) -> dict[str, tuple[int, int]]:
        import msgspec

        class File(msgspec.Struct):
            system: list[str]
            clicks: dict[str, tuple[int, int]]

        try:
            file = msgspec.json.decode(self._path.read_bytes(), type=File)
        except (OSError, msgspec.DecodeError):
            return {}
        return file.clicks if file.system == self._system else {}
