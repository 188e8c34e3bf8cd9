"""Listeners get what happens, the newest where there is too much, and hold nobody up."""

import asyncio

from headwater.paths.observer import Answered, ClickApplied, Observer


def clicked(number: int) -> ClickApplied:
    return ClickApplied("ann", f"item {number}", "click", f"event {number}", 1, 0, number, 2.5)


async def test_a_listener_gets_what_happened_since_its_last_look_in_order() -> None:
    observer = Observer()
    with observer.listen() as listener:
        observer.tell([clicked(1), clicked(2)])
        observer.tell([clicked(3)])
        assert await listener.next() == [clicked(1), clicked(2), clicked(3)]
        observer.tell([clicked(4)])
        assert await listener.next() == [clicked(4)]
        assert listener.dropped == 0


async def test_a_listener_waits_until_something_happens() -> None:
    observer = Observer()
    with observer.listen() as listener:
        waiting = asyncio.ensure_future(listener.next())
        await asyncio.sleep(0)
        assert not waiting.done()
        observer.tell([clicked(1)])
        assert await waiting == [clicked(1)]


async def test_a_slow_listener_keeps_the_newest_and_is_told_how_many_are_gone() -> None:
    observer = Observer(capacity=3)
    with observer.listen() as slow, observer.listen() as quick:
        observer.tell([clicked(1), clicked(2)])
        assert await quick.next() == [clicked(1), clicked(2)]
        observer.tell([clicked(3), clicked(4), clicked(5)])
        assert await slow.next() == [clicked(3), clicked(4), clicked(5)]
        assert (slow.dropped, quick.dropped) == (2, 0)


async def test_events_that_a_batch_left_out_count_as_dropped() -> None:
    observer = Observer()
    with observer.listen() as listener:
        observer.tell([clicked(9)], omitted=700)
        assert await listener.next() == [clicked(9)]
        assert listener.dropped == 700


async def test_a_worker_is_watched_only_while_somebody_listens() -> None:
    observer = Observer()
    assert not observer.is_watched
    with observer.listen():
        assert observer.is_watched
    assert not observer.is_watched
    observer.tell([clicked(1)])  # and nothing is kept for later
    with observer.listen() as listener:
        observer.tell([clicked(2)])
        assert await listener.next() == [clicked(2)]


def test_a_full_load_may_tell_as_much_as_a_display_can_show() -> None:
    now_s = 0.0
    observer = Observer(capacity=100, per_s=10.0, clock=lambda: now_s)
    assert observer.allowance(ClickApplied, 70) == 70
    assert observer.allowance(ClickApplied, 70) == 30
    assert observer.allowance(ClickApplied, 70) == 0
    assert observer.allowance(Answered, 5) == 5  # clicks take nothing from answers
    now_s = 2.0
    assert observer.allowance(ClickApplied, 70) == 20
    now_s = 1000.0
    assert observer.allowance(ClickApplied, 700) == 100


async def test_what_has_come_can_be_taken_without_waiting() -> None:
    observer = Observer()
    with observer.listen() as listener:
        assert listener.take() == []
        observer.tell([clicked(1)])
        assert listener.take() == [clicked(1)]
        assert listener.take() == []
