"""A batch's place among those that are worked on: held once, given back, handed over."""

import asyncio

from headwater.paths.concurrency import ConcurrencySlot


async def test_a_slot_takes_one_place_however_often_it_is_taken() -> None:
    places = asyncio.Semaphore(2)
    slot = ConcurrencySlot(places)
    await slot.take()
    await slot.take()
    assert not places.locked()
    slot.give_back()
    slot.give_back()
    await ConcurrencySlot(places).take()
    await ConcurrencySlot(places).take()
    assert places.locked()  # two places, and no third came of giving back twice


async def test_a_batch_waits_until_another_gives_its_place_back() -> None:
    places = asyncio.Semaphore(1)
    first, second = ConcurrencySlot(places), ConcurrencySlot(places)
    await first.take()
    waiting = asyncio.ensure_future(second.take())
    await asyncio.sleep(0)
    assert not waiting.done()
    first.give_back()
    await waiting


async def test_a_place_that_was_handed_over_is_given_back_by_its_new_holder() -> None:
    places = asyncio.Semaphore(1)
    first = ConcurrencySlot(places)
    await first.take()
    second = first.handed_over()
    first.give_back()
    assert places.locked()
    second.give_back()
    assert not places.locked()


async def test_a_slot_without_a_place_hands_none_over() -> None:
    places = asyncio.Semaphore(1)
    other = ConcurrencySlot(places).handed_over()
    other.give_back()
    await ConcurrencySlot(places).take()
    assert places.locked()
