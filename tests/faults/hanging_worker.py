"""Headwater's command line with two ways to hang: SIGUSR1 blocks the event loop for good, SIGUSR2 ends the consumers'
fetching without a word."""

import asyncio
import signal
import time
from typing import Any

from headwater.commands import main
from headwater.kafka.faust_group import FaustGroup

_groups: list[tuple[asyncio.AbstractEventLoop, Any]] = []


class _KnownGroup(FaustGroup):
    async def join(self) -> None:
        _groups.append((asyncio.get_running_loop(), self))
        await super().join()


def _block(*_: object) -> None:
    time.sleep(3600)


def _end_fetching(*_: object) -> None:
    for loop, group in _groups:
        for future in group._app._fetcher._futures:
            loop.call_soon_threadsafe(future.cancel)


if __name__ == "__main__":
    import headwater.worker.roles

    headwater.worker.roles.FaustGroup = _KnownGroup  # type: ignore[misc]
    signal.signal(signal.SIGUSR1, _block)
    signal.signal(signal.SIGUSR2, _end_fetching)
    main.main()
