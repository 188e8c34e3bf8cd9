"""A worker that starts again continues exactly where it was, however it ended."""

import asyncio
from collections.abc import Callable

from tests.end_to_end.conftest import System
from tests.end_to_end.oracle import applied, check_answers, check_logs, check_states, publish
from tests.end_to_end.outside import Outside
from tests.end_to_end.story import Story

CLICKS, USERS = 20_000, 300


async def popular(outside: Outside, category: str) -> list[str]:
    answer = await outside.ask(outside.own("nobody"), filter={"category": category})
    return [item["item_id"] for item in answer["items"]]


async def test_after_kills_in_the_middle_of_20000_clicks_every_user_is_as_if_nothing_had_happened(
    new_system: Callable[..., System],
) -> None:
    system = new_system(max_poll_records=25)
    worker = system.worker
    async with system.stocked() as outside:
        story = Story([outside.own(f"u{number}") for number in range(USERS)], outside.next_ms())
        publishing = asyncio.create_task(publish(outside, story.tell(CLICKS)))
        for enough in (4_000, 9_000):
            await asyncio.to_thread(worker.wait_until_applied, enough)
            at_the_kill = worker.clicks_applied()
            await asyncio.to_thread(worker.kill)
            assert at_the_kill < CLICKS, "nothing was left to be interrupted"
            await asyncio.to_thread(worker.start)
        await publishing
        await applied(outside)
        await check_answers(outside, story)
        await check_logs([worker], story)
        await check_states(outside, story)


async def test_a_worker_asked_to_stop_finishes_what_it_has_and_replays_nothing(
    new_system: Callable[..., System],
) -> None:
    system = new_system()
    worker = system.worker
    async with system.stocked() as outside:
        users = [outside.own(f"u{number}") for number in range(50)]
        story = Story(users, outside.next_ms(), repeated=0.0)  # so that only a replay is a duplicate
        await publish(outside, story.tell(4_000))
        user = outside.own("waiting")
        last = await outside.click(user, "coffee-1")
        parked = await outside.request(user, after={**last, "offset": last["offset"] + 1})
        assert await asyncio.to_thread(worker.stop) == 0
        assert not outside.answer_records(parked)
        await asyncio.to_thread(worker.start)
        await outside.click(user, "coffee-2")
        await applied(outside)
        assert await asyncio.to_thread(worker.metric, "headwater_duplicates_total") == 0
        await check_answers(outside, story)
        await check_logs([worker], story)
        answer = await outside.answer(parked)
        assert (answer["status"], answer["reflects"]["events"]) == ("ok", 2)


async def test_what_is_popular_and_what_is_deleted_survive_a_stop_and_a_kill(
    new_system: Callable[..., System],
) -> None:
    system = new_system()
    worker = system.worker
    async with system.stocked() as outside:
        shelf = {"category": "shelf"}
        await outside.put_and_wait("kept", title="garden hose", version=3, price=3, **shelf)
        await outside.put_and_wait("gone", title="garden hose", version=3, **shelf)
        await outside.catalog_applied([await outside.delete("gone")])
        for item, buyers in (("dog-3", 3), ("dog-1", 2)):
            for number in range(buyers):
                user = outside.own(f"{item}-buyer{number}")
                after = await outside.click(user, item, "purchase")
                assert (await outside.ask(user, after=after))["status"] == "ok"
        # At once: what was counted since trends were last published is not lost either.
        assert await asyncio.to_thread(worker.stop) == 0
        await asyncio.to_thread(worker.start)
        assert await popular(outside, "dog") == ["dog-3", "dog-1"]
        assert await outside.items("ann", query="hose", filter=shelf) == ["kept"]
        await outside.put_and_wait("gone", title="garden hose", version=2, **shelf)
        await outside.put_and_wait("kept", title="garden hose", version=2, price=2, **shelf)
        assert await outside.items("ann", query="hose", filter={**shelf, "price": 3}) == ["kept"]
        assert await outside.items("ann", query="hose", filter=shelf) == ["kept"]
        for number in range(4):
            await outside.click(outside.own(f"late-buyer{number}"), "dog-5", "purchase")

        async def counted() -> bool:
            return await popular(outside, "dog") == ["dog-5", "dog-3", "dog-1"]

        await outside.until("the new purchases are counted", counted)
        await asyncio.to_thread(worker.kill)
        await asyncio.to_thread(worker.start)
        assert await popular(outside, "dog") == ["dog-5", "dog-3", "dog-1"]
        await outside.put_and_wait("gone", title="garden hose", version=4, **shelf)
        assert set(await outside.items("ann", query="hose", filter=shelf)) == {"kept", "gone"}
