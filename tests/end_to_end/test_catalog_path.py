"""A catalog change counts in the next answers, in the order of versions."""

import pytest
import pytest_asyncio

from tests.end_to_end.outside import Outside


class Shelf:
    """One category of this test's own, and what can be recalled from it."""

    def __init__(self, outside: Outside) -> None:
        self.outside, self.category = outside, outside.own("shelf")

    async def put(self, item: str, title: str = "garden hose", **fields: object) -> None:
        await self.outside.put_and_wait(item, title=title, category=self.category, **fields)

    async def delete(self, item: str) -> None:
        await self.outside.catalog_applied([await self.outside.delete(item)])

    async def items(self, query: str = "garden hose", **where: object) -> list[str]:
        return await self.outside.items(
            self.outside.own("nobody"), query=query, limit=100, filter={"category": self.category, **where}
        )


@pytest_asyncio.fixture
async def shelf(outside: Outside) -> Shelf:
    return Shelf(outside)


@pytest.fixture
def item(outside: Outside) -> str:
    return outside.own("item")


async def test_a_new_item_can_be_recalled_and_a_deleted_one_cannot(shelf: Shelf, item: str) -> None:
    assert await shelf.items() == []
    await shelf.put(item)
    assert await shelf.items() == [item]
    await shelf.delete(item)
    assert await shelf.items() == []


async def test_an_item_recalled_by_a_users_interests_vanishes_with_its_deletion(
    shelf: Shelf, item: str, outside: Outside
) -> None:
    user = outside.own("gardener")
    await shelf.put(item, title="Ground coffee light roast")
    after = await outside.click(user, "coffee-1")
    assert item in await outside.items(user, after=after, limit=60)
    await shelf.delete(item)
    assert item not in await outside.items(user, limit=60)


async def test_a_new_item_comes_to_those_who_take_the_like_and_an_old_one_does_not(
    shelf: Shelf, item: str, outside: Outside
) -> None:
    year_ago_ms = outside.next_ms() - 365 * 86_400_000
    drinker, owner, old, toy = (outside.own(name) for name in ("drinker", "owner", "old", "toy"))
    drank, fed = await outside.click(drinker, "coffee-1"), await outside.click(owner, "dog-1")
    await shelf.put(old, title="Ground coffee light roast", since_ms=year_ago_ms)
    new = {"sources": {"new": 1}, "filter": {"category": shelf.category}}
    assert await outside.items(drinker, after=drank, **new) == []
    await shelf.put(item, title="Ground coffee light roast")
    await shelf.put(toy, title="Dog chew toy")
    answer = await outside.ask(drinker, explain=True, **new)
    assert [(each["item_id"], each["source"]) for each in answer["items"]] == [(item, "new"), (toy, "new")]
    assert answer["items"][0]["because"][0]["item_id"] == "coffee-1"
    assert await outside.items(owner, after=fed, limit=1, **new) == [toy]
    await shelf.put(old, title="Ground coffee light roast", price=2.0)  # a change makes nothing new
    await shelf.put(item, title="Ground coffee light roast", since_ms=year_ago_ms)
    assert await outside.items(drinker, **new) == [toy]


async def test_a_new_item_that_another_user_takes_rises(shelf: Shelf, item: str, outside: Outside) -> None:
    """Whichever partitions and workers the two users are of."""
    drinker, newer, day_ms = outside.own("drinker"), outside.own("newer"), 86_400_000
    drank = await outside.click(drinker, "coffee-1")
    await shelf.put(item, title="Ground coffee light roast", since_ms=outside.next_ms() - 2 * day_ms)
    await shelf.put(newer, title="Ground coffee light roast", since_ms=outside.next_ms() - day_ms)
    new = {"sources": {"new": 1}, "filter": {"category": shelf.category}}
    assert await outside.items(drinker, after=drank, **new) == [newer, item]
    await outside.click(outside.own("another"), item, "purchase")

    async def risen() -> bool:
        return await outside.items(drinker, **new) == [item, newer]

    await outside.until("the item that was taken comes first", risen)


async def test_deleting_what_never_was_does_no_harm(shelf: Shelf, item: str) -> None:
    await shelf.delete(item)
    assert await shelf.items() == []
    await shelf.put(item)
    assert await shelf.items() == [item]


async def test_a_deleted_item_stays_deleted_when_an_older_version_comes_late(shelf: Shelf, item: str) -> None:
    await shelf.put(item, version=5)
    await shelf.delete(item)
    await shelf.put(item, version=4)
    assert await shelf.items() == []
    await shelf.put(item, version=6)
    assert await shelf.items() == [item]


async def test_an_older_version_never_overrides_a_newer_one(shelf: Shelf, item: str) -> None:
    await shelf.put(item, version=10, price=10.0)
    await shelf.put(item, version=9, price=9.0)
    assert await shelf.items(price=10) == [item]
    await shelf.put(item, version=11, price=11.0)
    assert await shelf.items(price=11) == [item]
    assert await shelf.items(price=10) == []


async def test_the_same_version_again_is_a_correction(shelf: Shelf, item: str) -> None:
    await shelf.put(item, version=3, price=1.0)
    await shelf.put(item, version=3, price=2.0)
    assert await shelf.items(price=2) == [item]


async def test_without_versions_the_last_change_holds(shelf: Shelf, item: str) -> None:
    for price in (1.0, 2.0, 3.0):
        await shelf.put(item, price=price)
    assert await shelf.items(price=3) == [item]
    await shelf.delete(item)
    await shelf.put(item, price=4.0)
    assert await shelf.items(price=4) == [item]


async def test_a_change_without_a_version_inherits_the_one_before(shelf: Shelf, item: str) -> None:
    await shelf.put(item, version=7, price=7.0)
    await shelf.put(item, price=8.0)
    assert await shelf.items(price=8) == [item]
    await shelf.put(item, version=6, price=6.0)
    assert await shelf.items(price=8) == [item]


async def test_of_many_changes_in_one_batch_the_newest_version_holds(
    shelf: Shelf, item: str, outside: Outside
) -> None:
    versions = (3, 1, 9, 2, 8, 9, 4)
    await outside.send_all(
        outside.topics.catalog,
        [
            (
                item,
                {
                    "item_id": item,
                    "title": "garden hose",
                    "category": shelf.category,
                    "version": version,
                    "price": place,
                },
            )
            for place, version in enumerate(versions)
        ],
    )
    await outside.catalog_applied([await outside.put(item, title="late", version=0)])
    assert await shelf.items(price=5) == [item]


async def test_a_changed_text_is_found_by_the_new_text(shelf: Shelf, item: str, outside: Outside) -> None:
    other = outside.own("other")
    await shelf.put(item, title="garden hose")
    await shelf.put(other, title="frozen pizza")
    assert (await shelf.items("pizza"))[0] == other
    await shelf.put(item, title="pizza pizza")
    await shelf.put(other, title="garden rake")
    assert (await shelf.items("pizza"))[0] == item


async def test_a_click_on_an_item_that_is_deleted_later_stays_an_event_of_the_user(
    shelf: Shelf, item: str, outside: Outside
) -> None:
    user = outside.own("ann")
    await shelf.put(item)
    after = await outside.click(user, item)
    assert (await outside.ask(user, after=after))["reflects"]["events"] == 1
    await shelf.delete(item)
    answer = await outside.ask(user)
    assert answer["status"] == "ok"
    assert answer["reflects"]["events"] == 1
