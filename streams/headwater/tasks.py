"""The end of tasks that are no longer wanted."""

import asyncio
from collections.abc import Iterable
from typing import Any, Final

# A task that cleans up has so long before it is cancelled again.
_AGAIN_S: Final = 1.0


async def ended(tasks: Iterable["asyncio.Future[Any]"]) -> None:
    """Cancel tasks, and wait until all have ended. What they raise is dropped.

    They are cancelled again and again: a library may swallow a cancellation, and so does `asyncio.wait_for` of Python 3.11 where
    what it waits for ends at the same moment. A task with a loop would then go on forever.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=_AGAIN_S)
        for task in done:
            if not task.cancelled():
                task.exception()  # else asyncio says that nobody has looked at it
