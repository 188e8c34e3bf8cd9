"""Whether a system knows of every user exactly what a story told."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tests.end_to_end.outside import PATIENCE_S, Outside
from tests.end_to_end.story import Story
from tests.end_to_end.taste import SAME_PLACES, places_moved, taste
from tests.end_to_end.worker_process import WorkerProcess

TWINS = 10


@asynccontextmanager
async def all_the_time(do: Callable[[], Awaitable[None]], pause_s: float) -> AsyncIterator[None]:
    """Four tasks do it again and again while the block runs."""
    stopping = asyncio.Event()

    async def again() -> None:
        while not stopping.is_set():
            await do()
            await asyncio.sleep(pause_s)

    tasks = [asyncio.create_task(again()) for _ in range(4)]
    try:
        yield
    finally:
        stopping.set()
        await asyncio.gather(*tasks)


async def publish(outside: Outside, messages: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """In parts, as acknowledged."""
    for start in range(0, len(messages), 500):
        await outside.send_all(outside.topics.clicks, messages[start : start + 500])


async def applied(outside: Outside) -> None:
    """Wait until every click published so far has been applied, as a request can: by its place."""
    for number in range(outside.settings.partitions):
        after = await outside.click(outside.user_at(number, "last"), "coffee-1")
        answer = await outside.ask(outside.user_at(number, "last"), after=after, limit=1)
        assert answer["status"] == "ok", answer


async def check_answers(outside: Outside, story: Story) -> None:
    """Each user's answer rests on the events of the story, names the last of them, and holds nothing that they hid."""
    asked = [await outside.request(user, limit=60, exclude_seen=False) for user in story.users]
    for user, request_id in zip(story.users, asked, strict=True):
        answer, events = await outside.answer(request_id), story.events(user)
        deadline = time.monotonic() + PATIENCE_S
        while answer["status"] == "degraded" and time.monotonic() < deadline:
            # The group may still be on its way from one worker to another; then the answer claims nothing.
            assert answer["rung"] != "restoring" or answer["reflects"]["offset"] == -1, answer
            await asyncio.sleep(0.2)
            answer = await outside.ask(user, limit=60, exclude_seen=False)
        reflects = answer["reflects"]
        expected = (
            (len(events), events[-1]["event_id"], events[-1]["at_ms"], 0) if events else (0, None, None, 0)
        )
        found = tuple(reflects[name] for name in ("events", "last_event_id", "last_event_at_ms", "pending"))
        assert found == expected, f"{user}: {found}, expected {expected}"
        hidden = story.hides(user).keys() & {item["item_id"] for item in answer["items"]}
        assert not hidden, f"{user} has hidden {hidden}"


async def check_logs(workers: Sequence[WorkerProcess], story: Story) -> None:
    """Each user's log, as the worker that owns it tells, is that of the story."""

    def find() -> list[str]:
        wrong = []
        for user in story.users:
            found = next((known for worker in workers if (known := worker.user(user))), {"events": []})
            log = [(event["item_id"], event["action"], event["at_ms"]) for event in found["events"]]
            if log != [(each["item_id"], each["action"], each["at_ms"]) for each in story.events(user)]:
                wrong.append(user)
        return wrong

    assert await asyncio.to_thread(find) == []


async def check_states(outside: Outside, story: Story) -> None:
    """Some users have the taste of a newcomer who does the same events at once."""
    told = [user for user in story.users if story.events(user)][:TWINS]
    twins = {user: outside.own(f"twin-of-{user}") for user in told}
    for user, twin in twins.items():
        logged = story.events(user)
        former = [event for event in story.hides(user).values() if event["at_ms"] < logged[0]["at_ms"]]
        copies = [{**event, "user_id": twin} for event in (*former, *logged)]
        await outside.send_all(outside.topics.clicks, [(twin, copy) for copy in copies])
    await applied(outside)
    now = outside.next_ms()
    for user, twin in twins.items():
        of_both = await taste(outside, user, now), await taste(outside, twin, now)
        moved = places_moved(*of_both, hidden=len(story.hides(user)))
        assert moved < SAME_PLACES, (user, json.dumps(story.events(user)))
