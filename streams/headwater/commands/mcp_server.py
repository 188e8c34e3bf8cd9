"""`headwater mcp`: an assistant asks, explains, looks at a user and at the health of a running system.

A server of the Model Context Protocol over standard input and output, on the official SDK. Every tool finds the running
system anew, so a restart of it needs none of the assistant. Nothing is published unless the person who starts it allows it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from inspect import signature
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec

from headwater.commands.terminal import (
    FLAG,
    answer_as,
    http_get,
    run_async,
    running_settings,
    running_web,
    say,
)
from headwater.errors import HeadwaterError
from headwater.messages import ActionName, BadMessage, SessionEvent, SourceName, check_fields

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

    from headwater.settings import Settings

# The slowest tool, `doctor`, takes a few seconds; nothing that an assistant waits for takes longer than this.
_TOOL_S: Final = 60.0
_INSTRUCTIONS: Final = (
    "Headwater recommends items to users of a shop, and its answers prove which clicks they rest on. Start with `health`. "
    "`recall` gives items for a user, `explain` says why these, `user` shows what the user did, `doctor` says what is wrong "
    "and what to do."
)
T = TypeVar("T")


def mcp(*, allow_writes: Annotated[bool, FLAG] = False) -> int:
    """Serve an assistant over standard input and output (Model Context Protocol): ask, explain, users, health.

    Example: headwater mcp

    Parameters
    ----------
    allow_writes
        The assistant may publish clicks, too.
    """
    server = server_of(allow_writes=allow_writes)
    say(
        f"mcp: {'reads, and publishes clicks' if allow_writes else 'reads only'}; ends with its standard input"
    )
    run_async(server.run_stdio_async())
    return 0


def server_of(*, allow_writes: bool) -> "MCPServer[Any]":
    """The server with its tools. Bad arguments and what went wrong are told in one sentence."""
    from mcp.server.mcpserver import Context, MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp_types import ToolAnnotations
    from pydantic import ValidationError

    from headwater import __version__

    class Told(ToolError):
        """A sentence of ours."""

    class Server(MCPServer[Any]):
        async def call_tool(
            self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
        ) -> Any:
            try:
                if tool := tools.get(name):
                    check_fields(arguments, [*signature(tool).parameters])
                async with asyncio.timeout(_TOOL_S):
                    return await super().call_tool(name, arguments, context)
            except BadMessage as error:
                raise ToolError(f"{name}: {error}") from None
            except TimeoutError:
                raise ToolError(
                    f"{name} took more than {_TOOL_S:g} s: look at the broker and the worker"
                ) from None
            except ToolError as error:
                match error.__cause__:
                    case ValidationError() as wrong:
                        raise ToolError(_sentence(name, wrong)) from None
                    case Told() as sentence:  # which the SDK tells with words of its own before it
                        raise ToolError(str(sentence)) from None
                raise

    def in_words(tool: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        """The same tool; its own failures reach the assistant as they read, and not as a crash."""
        from functools import wraps

        @wraps(tool)
        async def told(*args: Any, **kwargs: Any) -> T:
            try:
                return await tool(*args, **kwargs)
            except HeadwaterError as error:
                raise Told(" ".join(str(error).split())) from error

        return told

    tools: dict[str, Callable[..., Any]] = {
        tool.__name__: tool for tool in (recall, explain, user, health, doctor, click)
    }
    server = Server("headwater", version=__version__, instructions=_INSTRUCTIONS, log_level="WARNING")
    for tool in (recall, explain, user, health, doctor):
        server.add_tool(
            in_words(tool), annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False)
        )
    if allow_writes:
        writes = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
        server.add_tool(in_words(click), annotations=writes)
    return server


async def recall(
    user_id: str,
    limit: int = 10,
    query: str = "",
    like_items: list[str] = [],  # noqa: B006 - never changed
    filter: dict[str, Any] | None = None,  # noqa: A002 - the name of the message's field
    clicked: list[str] = [],  # noqa: B006 - never changed
    exclude_seen: bool = True,
    sources: dict[SourceName, float] = {},  # noqa: B006 - never changed
) -> dict[str, Any]:
    """Items for a user, best first, with the proof of which clicks they rest on (`reflects`).

    `query`: free text that the items should match. `like_items`: ids of items that others shall be like. `filter`: over
    catalog fields, such as {"category": "tea", "price": {"lt": 9}}. `clicked`: items that count as clicked just now, for
    this answer alone. `sources`: weights by name; only the named sources are asked.
    """
    return await _answer(
        user_id,
        limit=limit,
        query=query,
        items=like_items,
        filter=filter,
        session=[SessionEvent(item_id) for item_id in clicked],
        exclude_seen=exclude_seen,
        sources=sources,
    )


async def explain(user_id: str, limit: int = 5, query: str = "") -> dict[str, Any]:
    """As `recall`, with the user's own events behind each item (`because`) and what each step took out (`funnel`)."""
    return await _answer(user_id, limit=limit, query=query, explain=True)


async def user(user_id: str) -> dict[str, Any]:
    """What a worker on this machine knows of a user: events, which of them wait for their item, the watermark."""
    from headwater.commands.ask import described_user

    return await asyncio.to_thread(described_user, running_settings(), user_id)


async def health() -> dict[str, Any]:
    """Whether the broker and the worker on this machine are well: `broker`, and the worker's own state."""
    settings = running_settings()
    await _check_broker(settings)
    state: dict[str, Any] = {"broker": settings.bootstrap_servers, "worker": None}
    if (web := running_web(settings)) is not None:
        state["worker"] = await asyncio.to_thread(_health_of, web)
    return state


async def _check_broker(settings: "Settings") -> None:
    from headwater.client import Client

    async with Client(settings) as client:
        await client.check_broker()


def _health_of(web: str) -> dict[str, Any]:
    _, body = http_get(web, "/healthz")
    return answer_as(dict[str, Any], web, body)


async def doctor() -> list[dict[str, Any]]:
    """Findings about broker, topics, rights, groups, dead letters, bundle, index and worker, with remedies."""
    from headwater.commands.doctor import examine

    settings = running_settings()
    return [each._asdict() for each in await examine(settings, running_web(settings))]


async def click(user_id: str, item_id: str, action: ActionName = "click") -> dict[str, Any]:
    """Publish what a user did to an item. The position that comes back is part of every later answer."""
    from headwater.client import Client

    async with Client(running_settings()) as client:
        position = await client.click(user_id, item_id, action)
    return {"partition": position.partition, "offset": position.offset, "token": str(position)}


async def _answer(user_id: str, **fields: Any) -> dict[str, Any]:
    from headwater.client import Client
    from headwater.commands import answer_words
    from headwater.commands.ask import titles_of

    settings: Settings = running_settings()
    async with Client(settings) as client:
        response = await client.recall(user_id, **fields)
    titles = await asyncio.to_thread(titles_of, settings, answer_words.named(response))
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(response))
    if titles:
        found["titles"] = titles
    return found


def _sentence(tool: str, error: Any) -> str:
    """Arguments that do not fit, as one sentence: the field, what was sent, and what is expected."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"])) or "the arguments"
    if first["type"] == "missing":
        return f"{tool}: {field}: missing, expected a value"
    expected = first["msg"].removeprefix("Input should be ")
    return str(BadMessage("bad_field", f"{tool}: {field}: got {first['input']!r:.80}, expected {expected}"))
