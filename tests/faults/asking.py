"""What goes on beside a fault: requests, all of which have to be answered."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.end_to_end.oracle import all_the_time
from tests.end_to_end.outside import Outside
from tests.end_to_end.story import Story
from tests.faults.scale import SCALE


@asynccontextmanager
async def asking(outside: Outside, story: Story) -> AsyncIterator[list[str]]:
    """Publish requests while the block runs; their ids. At its end each of them has been answered."""
    ids: list[str] = []
    chosen = random.Random(3)

    async def ask() -> None:
        ids.append(await outside.request(chosen.choice(story.users), limit=3, deadline_ms=60_000))

    async with all_the_time(ask, pause_s=0.1):
        yield ids
    for request_id in ids:
        await outside.answer(request_id)


def begin(outside: Outside, *, repeated: float) -> Story:
    """A story of users whom nobody else has."""
    return Story(
        [outside.own(f"u{number}") for number in range(SCALE.users)], outside.next_ms(), repeated=repeated
    )
