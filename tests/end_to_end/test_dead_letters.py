"""A dead letter from its arrival to its end: listed, shown, redriven exactly once, and purged."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from headwater.commands import main
from headwater.commands.terminal import CommandError
from headwater.kafka.headers import REDRIVEN, Redriven
from headwater.worker import logging_setup
from tests.end_to_end.conftest import System
from tests.end_to_end.outside import Outside

Dlq = Callable[..., Awaitable[dict[str, Any]]]


@pytest.fixture
def dlq(shared_system: System, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Dlq:
    """`headwater dlq` beside the system, without the start of a process: what it prints with --json."""
    monkeypatch.setenv("HEADWATER_KAFKA_BOOTSTRAP_SERVERS", shared_system.settings.bootstrap_servers)
    monkeypatch.setenv("HEADWATER_TOPIC_PREFIX", shared_system.settings.topic_prefix)
    monkeypatch.setattr(logging_setup, "configure_logging", lambda _: None)

    async def run(*arguments: str) -> dict[str, Any]:
        capsys.readouterr()
        assert await asyncio.to_thread(main._run, ["dlq", *arguments, "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return run


async def test_a_click_that_was_misrouted_is_listed_shown_redriven_and_counted_once(
    outside: Outside, dlq: Dlq
) -> None:
    user = outside.stray_user("redriven")
    message = outside.click_message(user, "coffee-1")
    value, wrong = json.dumps(message).encode(), outside.wrong_home(user)
    # Its forwarder took the topic for one of another number of partitions.
    origin = [("headwater-origin", b"[0,1,1]"), ("trace", b"t-1")]
    sent = await outside.send(
        outside.topics.clicks, value, key=user.encode(), partition=wrong, headers=origin
    )
    await outside.dead_letter(outside.topics.clicks, sent)

    listed = await dlq("list", "--key", user)
    assert (listed["letters"], listed["redriven"]) == (1, 0)
    [group] = listed["groups"]
    assert (group["reason"], group["topic"], group["failed_again"]) == ("misrouted", outside.topics.clicks, 0)
    place = f"{outside.topics.clicks}/{wrong}/{sent.offset}"
    assert group["newest"]["place"] == place

    shown = await dlq("show", f"clicks/{wrong}/{sent.offset}")
    assert (shown["key"], shown["text"], shown["now"]) == (user, value.decode(), "")
    assert ["trace", "t-1"] in [header[:2] for header in shown["headers"]]
    assert shown["place"] == place
    assert (await dlq("show", str(shown["letter"])))["place"] == place

    redriving = ("redrive", "--key", user)
    assert (await dlq(*redriving, "--dry-run"))["redriven"] == 1
    assert (await dlq(*redriving)) == {
        "redriven": 1,
        "dry_run": False,
        "skipped": {},
        "refused": {},
    }

    async def counts() -> bool:
        reflects = (await outside.ask(user))["reflects"]
        return bool(reflects["last_event_id"] == message["event_id"] and reflects["events"] == 1)

    await outside.until("the redriven click counts", counts)
    assert (await dlq(*redriving))["redriven"] == 0
    # The publisher sends it again, too: the event's id says that it is the same one.
    again = await outside.send(outside.topics.clicks, value, key=user.encode())
    after = {"partition": again.partition, "offset": again.offset}
    assert (await outside.ask(user, after=after))["reflects"]["events"] == 1
    [redriven] = [
        record
        for record in await outside.records_of(outside.topics.clicks)
        if isinstance(REDRIVEN.of(record.headers), Redriven) and record.key == user.encode()
    ]
    assert REDRIVEN.of(redriven.headers) == Redriven(outside.topics.clicks, wrong, sent.offset, 1)
    assert (redriven.value, redriven.partition) == (value, outside.home(user))
    assert dict(redriven.headers)["trace"] == b"t-1"
    marked = await dlq("show", place)
    assert marked["redriven_to"] == f"{outside.topics.clicks}/{redriven.partition}/{redriven.offset}"
    assert (marked["value_base64"], marked["key"]) == (None, None)


async def test_a_letter_that_fails_again_comes_back_marked_is_left_out_and_purged(
    outside: Outside, dlq: Dlq
) -> None:
    user = outside.own("failing")
    sent = await outside.send(outside.topics.clicks, b"{", key=user.encode(), partition=outside.home(user))
    await outside.dead_letter(outside.topics.clicks, sent)
    redriving = ("redrive", "--key", user)
    assert (await dlq(*redriving))["redriven"] == 1

    async def came_back() -> bool:
        listed = await dlq("list", "--key", user)
        return [each["failed_again"] for each in listed["groups"]] == [1]

    await outside.until("the letter is back", came_back)
    left_out = await dlq(*redriving)
    assert (left_out["redriven"], left_out["skipped"]) == (0, {"failed_again": 1})
    assert (await dlq(*redriving, "--max-tries", "2", "--dry-run"))["redriven"] == 1

    listed = await dlq("list", "--key", user)
    place = listed["groups"][0]["newest"]["place"]
    shown = await dlq("show", place)
    assert (shown["tries"], shown["value_base64"]) == (1, "ew==")
    assert "bad_json" in str(shown["now"])
    purging = ("purge", "--key", user)
    assert await dlq(*purging, "--dry-run") == {"purged": 1, "dry_run": True}
    assert (await dlq(*purging))["purged"] == 1
    assert (await dlq("list", "--key", user))["letters"] == 0
    with pytest.raises(CommandError, match="there is no dead letter"):
        await dlq("show", place)
