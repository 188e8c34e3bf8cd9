"""A click changes the next answer, exactly as far as the contracts say."""

import asyncio
import uuid

import pytest

from tests.end_to_end.conftest import System
from tests.end_to_end.outside import Outside
from tests.end_to_end.shop import THEMES, theme_of
from tests.end_to_end.taste import SAME_PLACES, places_moved, taste


@pytest.mark.parametrize("theme", ["coffee", "dog", "baby", "paint"])
async def test_a_user_who_clicks_coffee_gets_coffee(outside: Outside, theme: str) -> None:
    user = outside.own("visitor")
    for number in range(3):
        after = await outside.click(user, f"{theme}-{number}")
    found = await outside.items(user, limit=5, after=after)
    assert theme_of(found[0]) == theme
    assert [theme_of(item) for item in found].count(theme) >= 3, found


async def test_a_new_interest_shows_in_the_very_next_answer(outside: Outside) -> None:
    user = outside.own("visitor")
    for number in range(3):
        after = await outside.click(user, f"coffee-{number}")
    before = await outside.items(user, limit=10, after=after)
    assert "dog" not in {theme_of(item) for item in before[:3]}
    for number in range(6):
        after = await outside.click(user, f"dog-{number}", "purchase")
    found = await outside.items(user, limit=10, after=after)
    assert "dog" in {theme_of(item) for item in found[:3]}


async def test_each_of_a_hundred_answers_reflects_the_click_just_made(outside: Outside) -> None:
    user = outside.own("reader")
    items = [f"{theme}-{number}" for theme in THEMES for number in range(10)]
    for number in range(100):
        event = outside.own(f"e{number}")
        after = await outside.click(user, items[number % 60], event_id=event)
        answer = await outside.ask(user, limit=3, after=after)
        assert answer["status"] == "ok", answer
        reflects = answer["reflects"]
        assert reflects["partition"] == after["partition"]
        assert reflects["offset"] >= after["offset"]
        assert reflects["last_event_id"] == event
        assert reflects["events"] == min(number + 1, 50)
        assert reflects["pending"] == 0


async def test_the_answer_says_when_the_last_event_was(outside: Outside) -> None:
    user, at_ms = outside.own("ann"), outside.next_ms()
    after = await outside.click(user, "coffee-1", at_ms=at_ms)
    answer = await outside.ask(user, after=after)
    assert answer["reflects"]["last_event_at_ms"] == at_ms


async def test_the_watermark_of_a_partition_moves_for_its_idle_users_too(outside: Outside) -> None:
    busy, idle = outside.user_at(2, "busy"), outside.user_at(2, "idle")
    after = await outside.click(busy, "coffee-1")
    reflects = (await outside.ask(idle, after=after))["reflects"]
    assert reflects["offset"] >= after["offset"]
    assert (reflects["events"], reflects["last_event_id"]) == (0, None)


async def test_events_in_any_order_give_the_same_user(outside: Outside) -> None:
    first, second = outside.own("ordered"), outside.own("shuffled")
    story = [("coffee-1", "purchase"), ("dog-2", "click"), ("paint-3", "view"), ("cheese-4", "like")]
    events = [(item, action, outside.next_ms()) for item, action in story]
    for order, user in ((events, first), ([events[index] for index in (2, 0, 3, 1)], second)):
        for item, action, at_ms in order:
            after = await outside.click(user, item, action, at_ms=at_ms)
        answer = await outside.ask(user, after=after)
        assert answer["reflects"]["events"] == 4
        assert answer["reflects"]["last_event_at_ms"] == events[-1][2]
    now = outside.next_ms()
    assert places_moved(await taste(outside, first, now), await taste(outside, second, now)) < SAME_PLACES


async def test_an_event_sent_twice_counts_once(outside: Outside) -> None:
    once, twice = outside.own("once"), outside.own("twice")
    coffee, dog = outside.next_ms(), outside.next_ms()
    for user, copies in ((once, 1), (twice, 6)):
        await outside.click(user, "coffee-1", at_ms=coffee)
        for _ in range(copies):
            after = await outside.click(user, "dog-1", event_id=f"{user}-dog", at_ms=dog)
        answer = await outside.ask(user, after=after)
        assert (answer["reflects"]["events"], answer["reflects"]["last_event_id"]) == (2, f"{user}-dog")
    now = outside.next_ms()
    assert places_moved(await taste(outside, once, now), await taste(outside, twice, now)) < SAME_PLACES


async def test_a_click_more_is_a_difference_that_these_tests_would_see(outside: Outside) -> None:
    one, other = outside.own("one"), outside.own("other")
    for user, dogs in ((one, 1), (other, 2)):
        await outside.click(user, "coffee-1")
        for number in range(dogs):
            after = await outside.click(user, f"dog-{number + 1}")
        await outside.ask(user, after=after)
    now = outside.next_ms()
    assert places_moved(await taste(outside, one, now), await taste(outside, other, now)) > SAME_PLACES


@pytest.mark.parametrize("retraction", ["after", "before"])
async def test_a_retracted_event_leaves_no_trace(outside: Outside, retraction: str) -> None:
    changed, never = outside.own("changed"), outside.own("never")
    coffee, dog, undo = outside.next_ms(), outside.next_ms(), outside.next_ms()
    for user in (changed, never):
        after = await outside.click(user, "coffee-1", event_id=f"{user}-coffee", at_ms=coffee)
    regret = ("", "retract", undo)
    mistake = ("dog-1", "purchase", dog)
    for item, action, at_ms in (mistake, regret) if retraction == "after" else (regret, mistake):
        after = await outside.click(changed, item, action, event_id=f"{changed}-dog", at_ms=at_ms)
    answer = await outside.ask(changed, after=after)
    assert answer["reflects"]["events"] == 1
    now = outside.next_ms()
    assert places_moved(await taste(outside, changed, now), await taste(outside, never, now)) < SAME_PLACES
    assert "dog-1" in await outside.items(changed, limit=60, filter={"category": "dog"})


async def test_a_retracted_event_stays_out_when_it_is_sent_again(outside: Outside) -> None:
    user = outside.own("ann")
    await outside.click(user, "coffee-1")
    dog = outside.next_ms()
    await outside.click(user, "dog-1", event_id=f"{user}-dog", at_ms=dog)
    await outside.click(user, "", "retract", event_id=f"{user}-dog")
    after = await outside.click(user, "dog-1", event_id=f"{user}-dog", at_ms=dog)
    assert (await outside.ask(user, after=after))["reflects"]["events"] == 1


async def test_a_forgotten_user_is_gone_and_older_events_stay_out(outside: Outside) -> None:
    user = outside.own("shy")
    early = outside.next_ms()
    for number in range(3):
        await outside.click(user, f"coffee-{number}")
    after = await outside.click(user, "", "forget")
    forgotten = await outside.ask(user, after=after)
    assert (forgotten["reflects"]["events"], forgotten["reflects"]["last_event_id"]) == (0, None)
    after = await outside.click(user, "coffee-5", at_ms=early)
    assert (await outside.ask(user, after=after))["reflects"]["events"] == 0
    after = await outside.click(user, "dog-1")
    answer = await outside.ask(user, limit=5, after=after)
    assert answer["reflects"]["events"] == 1
    assert theme_of(answer["items"][0]["item_id"]) == "dog"


async def test_a_click_on_an_unknown_item_is_pending_and_counts_once_the_item_arrives(
    outside: Outside,
) -> None:
    user, novelty = outside.own("early-bird"), outside.own("novelty")
    after = await outside.click(user, "coffee-1")
    after = await outside.click(user, novelty, "purchase")
    before = await outside.ask(user, after=after, limit=5)
    assert (before["reflects"]["events"], before["reflects"]["pending"]) == (2, 1)
    # The category is read by the item tower too: a random one would make this a test of luck.
    await outside.put_and_wait(novelty, title="Dry dog food", category="novelties")
    later = await outside.ask(user, limit=5)
    assert (later["reflects"]["events"], later["reflects"]["pending"]) == (2, 0)
    themes = [theme_of(item["item_id"]) for item in later["items"]]
    assert "dog" not in [theme_of(item["item_id"]) for item in before["items"]]
    assert "dog" in themes, themes


async def test_a_click_on_an_unknown_item_alone_gives_no_interests_and_no_error(outside: Outside) -> None:
    user = outside.own("lost")
    after = await outside.click(user, outside.own("never-published"))
    answer = await outside.ask(user, after=after)
    assert answer["status"] == "ok"
    assert (answer["reflects"]["events"], answer["reflects"]["pending"]) == (1, 1)


async def test_disliked_items_are_not_recommended_and_draw_nothing_like_them(outside: Outside) -> None:
    user, twin = outside.own("picky"), outside.own("twin")
    for each in (user, twin):
        after = await outside.click(each, "coffee-1")
    await outside.click(user, "dog-1", "dislike")
    after = await outside.click(user, "dog-2", "hide")
    left = sorted(f"dog-{number}" for number in (0, 3, 4, 5, 6, 7, 8, 9))
    found = await outside.items(user, after=after, limit=60, filter={"category": "dog"})
    assert sorted(found) == left
    now = outside.next_ms()
    own, other = await taste(outside, user, now), await taste(outside, twin, now)
    assert {*other} - {*own} == {"dog-1", "dog-2"}
    other = [item for item in other if item in own]
    assert [theme_of(item) for item in own[:5]] == ["coffee"] * 5
    assert sum(map(own.index, left)) >= sum(map(other.index, left)), "a dislike pushes away what is like it"
    messages = [outside.click_message(user, f"coffee-{number % 10}") for number in range(60)]
    await outside.send_all(outside.topics.clicks, [(user, message) for message in messages])
    after = await outside.click(user, "coffee-1")
    later = await outside.items(user, after=after, limit=60, exclude_seen=False, filter={"category": "dog"})
    assert sorted(later) == left, "however many events come after it"


async def test_an_impression_is_neither_an_event_nor_seen(outside: Outside) -> None:
    user = outside.own("window-shopper")
    await outside.click(user, "coffee-1")
    after = await outside.click(user, "coffee-2", "impression")
    answer = await outside.ask(user, after=after, limit=20)
    assert answer["reflects"]["events"] == 1
    assert "coffee-2" in [item["item_id"] for item in answer["items"]]


async def test_a_full_log_keeps_the_newest_fifty_events_and_counts_what_is_older(outside: Outside) -> None:
    user = outside.own("regular")
    early = outside.next_ms()
    messages = [outside.click_message(user, f"dog-{number % 10}") for number in range(20)]
    messages += [outside.click_message(user, f"coffee-{number % 10}") for number in range(50)]
    await outside.send_all(outside.topics.clicks, [(user, message) for message in messages])
    after = await outside.click(user, "paint-1", at_ms=early)
    answer = await outside.ask(user, after=after, limit=60, filter={"category": {"any": list(THEMES)}})
    assert answer["reflects"]["events"] == 50
    assert answer["reflects"]["last_event_id"] == messages[-1]["event_id"]
    found = [item["item_id"] for item in answer["items"]]
    assert "paint-1" in found
    # Seen is what the log holds, and what it has lost and the counters hold.
    assert not {"coffee", "dog"} & {theme_of(item) for item in found}
    again = {"sources": {"buy-again": 1.0}, "exclude_seen": False, "at_ms": outside.next_ms() + 2 * 3_600_000}
    wanted = (await outside.ask(user, after=after, limit=60, **again))["items"]
    assert {theme_of(item["item_id"]) for item in wanted} == {"coffee", "dog"}


async def test_what_is_known_of_a_user_is_told_over_http(shared_system: System, outside: Outside) -> None:
    user = outside.own("ann")
    await outside.click(user, "coffee-1", "purchase")
    after = await outside.click(user, outside.own("never-published"), event_id=f"{user}-last")
    await outside.ask(user, after=after)
    found = await asyncio.to_thread(shared_system.worker.user, user)
    assert found is not None
    assert [(each["item_id"], each["action"], each["pending"]) for each in found["events"]] == [
        ("coffee-1", "purchase", False),
        (None, "click", True),
    ]
    assert (found["pending"], found["last_event_id"]) == (1, f"{user}-last")
    assert await asyncio.to_thread(shared_system.worker.user, uuid.uuid4().hex) is None
