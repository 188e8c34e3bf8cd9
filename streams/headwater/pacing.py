"""Work on the event loop in turns, so that clicks, heartbeats and cheap requests never wait long for costly work."""

import asyncio
import time
from collections import deque
from typing import Final

# Work takes the loop for so long at a time, and for the length of one step more.
TURN_S: Final = 0.01


class Pacer:
    """Limits how long all that ask it for turns hold the loop together before everything else runs once.

    Many tasks may share one. Asking is cheap (0.5 us) while there is time left.
    """

    def __init__(self, turn_s: float = TURN_S) -> None:
        self._turn_s = turn_s
        self._began_s = 0.0
        self._is_counting = False  # since this pass of the loop began
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def turn(self) -> None:
        """Return when there is time for another step: at once, or after everything else that is ready has run.

        Tasks that wait go on in the order in which they began to, one in each pass of the loop.
        """
        if not self._is_counting:
            self._begin()
        elif time.perf_counter() - self._began_s > self._turn_s:
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            await waiting

    def _begin(self) -> None:
        self._is_counting, self._began_s = True, time.perf_counter()
        asyncio.get_running_loop().call_soon(self._next_pass)

    def _next_pass(self) -> None:
        self._is_counting = False
        while self._waiting:
            first = self._waiting.popleft()
            if not first.done():  # else its task was cancelled
                first.set_result(None)
                self._begin()
                return
