"""`headwater mcp` as an assistant meets it, by the SDK's own client."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters, stdio_client

from headwater.commands import mcp_server
from headwater.commands.mcp_server import server_of
from headwater.commands.terminal import CommandError
from headwater.kafka import topics
from headwater.messages import Candidate, Reason, Request, Response
from headwater.settings import Settings
from tests.support.checkout import ROOT
from tests.support.fake_worker import answering, echo

READ_ONLY = {"recall", "explain", "user", "health", "doctor"}


@asynccontextmanager
async def assistant(home: Path, *arguments: str, **settings: str) -> AsyncIterator[Client]:
    """An assistant that has started `headwater mcp`."""
    given = {f"HEADWATER_{name.upper()}": value for name, value in settings.items()}
    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-W", "ignore", "-m", "headwater", "mcp", *arguments],
        env={"PYTHONPATH": f"{ROOT / 'streams'}:{ROOT / 'models'}", "XDG_STATE_HOME": str(home), **given},
        cwd=home,
    )
    async with asyncio.timeout(120), Client(stdio_client(parameters)) as client:
        yield client


async def said(client: Client, tool: str, **arguments: Any) -> tuple[bool, str]:
    """Whether a call failed, and its text."""
    result = await client.call_tool(tool, arguments)
    return result.is_error, "\n".join(getattr(each, "text", "") for each in result.content)


async def test_an_assistant_asks_over_standard_input_and_may_click_where_it_is_allowed(
    embedded_broker: str, topic_prefix: str, tmp_path: Path
) -> None:
    settings = Settings(kafka_bootstrap_servers=embedded_broker, topic_prefix=topic_prefix)
    await topics.create(settings)

    def answer(request: Request) -> list[Response]:
        because = [Reason("c1", 5, "click", 1.0)] if request.explain else []
        items = [Candidate("c2", 0.5, "interests", because)]
        return [Response(request.request_id, request.user_id, "ok", items=items, reflects=each.reflects)
                for each in echo(request)]  # fmt: skip

    system = {"kafka_bootstrap_servers": embedded_broker, "topic_prefix": topic_prefix}
    async with (
        answering(settings, answer) as worker,
        assistant(tmp_path, "--allow-writes", **system) as client,
    ):
        assert {each.name for each in (await client.list_tools()).tools} == {*READ_ONLY, "click"}
        failed, clicked = await said(client, "click", user_id="ann", item_id="c1")
        assert not failed, clicked
        assert '"token"' in clicked
        result = await client.call_tool(
            "recall", {"user_id": "ann", "limit": 3, "clicked": ["c7"], "filter": {"category": "tea"}}
        )
        assert result.structured_content is not None
        assert result.structured_content["items"][0]["item_id"] == "c2"
        asked = worker.asked[-1]
        assert (asked.limit, asked.session[0].item_id, asked.filter) == (3, "c7", {"category": "tea"})
        assert asked.after is not None, "the click that was just published"
        failed, explained = await said(client, "explain", user_id="ann")
        assert '"because"' in explained
        assert worker.asked[-1].explain
        failed, healthy = await said(client, "health")
        assert not failed, healthy
        assert embedded_broker in healthy


async def test_an_assistant_reads_only_unless_it_is_allowed_to_write() -> None:
    async with Client(server_of(allow_writes=False)) as client:
        found = (await client.list_tools()).tools
        assert {each.name for each in found} == READ_ONLY
        assert all(each.annotations and each.annotations.read_only_hint for each in found)
        assert all(each.description for each in found)
        assert await said(client, "click", user_id="ann", item_id="c1") == (True, "Unknown tool: click")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a wrong type": (
        {"user_id": "ann", "limit": "many"},
        "recall: limit: got 'many', expected a valid integer",
    ),
    "a misspelt argument": (
        {"user_id": "ann", "count": 3},
        "recall: count: no such field, expected one of user_id, limit",
    ),
    "nobody": ({}, "recall: user_id: missing, expected a value"),
    "a source that there is not": (
        {"user_id": "ann", "sources": {"magic": 1}},
        "recall: sources.magic.[key]: got 'magic', expected 'interests'",
    ),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_argument_is_told_in_one_sentence(name: str) -> None:
    arguments, sentence = BAD[name]
    async with Client(server_of(allow_writes=False)) as client:
        failed, text = await said(client, "recall", **arguments)
    assert failed
    assert text.startswith(sentence)
    assert "\n" not in text


@pytest.mark.parametrize("user_id", ["\ud800", "", "x" * 9_000])
async def test_an_id_that_no_user_can_have_is_told_in_one_sentence(user_id: str) -> None:
    async with Client(server_of(allow_writes=False)) as client:
        failed, text = await said(client, "user", user_id=user_id)
        health = await said(client, "health", verbose=True)
    assert failed
    assert text.startswith("user: got ")
    assert health == (True, "health: verbose: no such field, expected none")


async def test_a_failure_of_ours_reaches_the_assistant_as_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise CommandError("no broker:\n start one")

    monkeypatch.setattr(mcp_server, "running_settings", away)
    async with Client(server_of(allow_writes=False)) as client:
        for tool, arguments in (("recall", {"user_id": "ann"}), ("user", {"user_id": "ann"}), ("health", {})):
            assert await said(client, tool, **arguments) == (True, "no broker: start one")


async def test_no_tool_is_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object, **__: object) -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(mcp_server, "_answer", never)
    monkeypatch.setattr(mcp_server, "_TOOL_S", 0.05)
    async with Client(server_of(allow_writes=False)) as client:
        failed, text = await said(client, "recall", user_id="ann")
    assert (failed, text) == (True, "recall took more than 0.05 s: look at the broker and the worker")
