"""Headwater's command line with two ways to hang: SIGUSR1 blocks the event loop for good, SIGUSR2 ends the consumers'
fetching without a word."""

import asyncio
import signal
import time
from typing import Any

from headwater.commands import main
from headwater.kafka.group import EngineApp

_apps: list[tuple[asyncio.AbstractEventLoop, Any]] = []


class _KnownApp(EngineApp):
    async def join(self) -> None:
        _apps.append((asyncio.get_running_loop(), self))
        await super().join()


def _block(*_: object) -> None:
    time.sleep(3600)


def _end_fetching(*_: object) -> None:
    for loop, app in _apps:
        for future in app._fetcher._futures:
            loop.call_soon_threadsafe(future.cancel)


if __name__ == "__main__":
    import headwater.worker.roles

    headwater.worker.roles.EngineApp = _KnownApp  # type: ignore[misc]
    signal.signal(signal.SIGUSR1, _block)
    signal.signal(signal.SIGUSR2, _end_fetching)
    main.main()
