"""The two consumer groups, each in a process of its own."""

import asyncio
from collections.abc import Callable

from tests.end_to_end.conftest import System
from tests.end_to_end.shop import theme_of
from tests.end_to_end.worker_process import WorkerProcess


async def test_the_two_roles_work_apart_and_wait_for_each_other(
    new_system: Callable[..., System], new_worker: Callable[..., WorkerProcess]
) -> None:
    system = new_system("interests")
    interests, catalog = system.worker, new_worker("catalog")
    await asyncio.to_thread(interests.start)
    async with system.outside() as outside:
        # No catalog worker yet: clicks and requests go on, items wait.
        after = await outside.click("ann", "coffee-1")
        answer = await outside.ask("ann", after=after)
        assert (answer["status"], answer["items"]) == ("ok", [])
        assert (answer["reflects"]["events"], answer["reflects"]["pending"]) == (1, 1)
        await asyncio.to_thread(catalog.start)
        await outside.stock()
        answer = await outside.ask("ann", limit=3)
        assert answer["reflects"]["pending"] == 0
        assert theme_of(answer["items"][0]["item_id"]) == "coffee"
        assert (await asyncio.to_thread(catalog.health))["partitions"] == {}
        assert await asyncio.to_thread(catalog.stop) == 0
        after = await outside.click("ann", "dog-1")
        assert (await outside.ask("ann", after=after))["reflects"]["events"] == 2
