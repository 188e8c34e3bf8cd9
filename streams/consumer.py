"""Reading from a broker that does not wait: pauses between fetches that bring nothing.

Kafka holds an empty fetch back for as long as the client allows. The embedded broker (0.2.3) answers at once, so that
each idle client would ask 5,000 times a second and keep a core busy, and the broker another one.
"""

import asyncio
import contextlib
import time
from typing import Any, Final

from aiokafka import AIOKafkaConsumer

# Far below the 500 ms that an empty fetch takes on Kafka, far above what one takes on a broker that does not wait.
_AT_ONCE_S: Final = 0.02
# Adds half of it to a record's way on such a broker; an idle client costs 2 % of a core.
_PAUSE_S: Final = 0.01


class Consumer(AIOKafkaConsumer):  # type: ignore[misc]
    """aiokafka's consumer, in all but that."""

    async def start(self) -> None:
        await super().start()
        fetcher: Any = self._fetcher
        fetch = fetcher._proc_fetch_request

        async def paced(*args: Any) -> bool:
            started = time.monotonic()
            has_news = bool(await fetch(*args))
            if not has_news and time.monotonic() - started < _AT_ONCE_S:
                # The fetcher cancels its fetches when it closes, and expects them to end well.
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(_PAUSE_S)
            return has_news

        fetcher._proc_fetch_request = paced
