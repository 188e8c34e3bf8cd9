"""Requests that cost as much as they may, thousands at once, beside clicks; and requests that wait for nothing."""

import asyncio
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import pytest

from headwater.kafka.fast_client.consumer import Consumer
from tests.end_to_end.conftest import System
from tests.end_to_end.oracle import all_the_time, applied
from tests.end_to_end.outside import Outside
from tests.faults.scale import SCALE, TIMEOUT_S

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S)]

_ITEMS: Final = 1_200
_USERS: Final = 20
_EVENTS: Final = 50
# A quarter of a second is promised of an idle machine; one that runs other tests as well adds its own.
_STAND_S: Final = 10.0
_WAITING: Final = 300
_ROUNDS: Final = 4
_SESSION: Final = [{"item_id": f"thing-{number}"} for number in range(100)]
_MANY_TAGS: Final = {"tags": {"any": [f"tag {number}" for number in range(256)]}}
COSTLIEST: Final[Mapping[str, Any]] = {
    "limit": 1_000,
    "diversity": 1.0,
    "explain": True,
    "exclude_seen": False,
    "session": _SESSION,
    "filter": {"or": [{"price": {"gte": number}} for number in range(64)]},
    "deadline_ms": 20_000,
}
TOO_COSTLY: Final[Mapping[str, Any]] = {**COSTLIEST, "filter": {"or": [_MANY_TAGS] * 64}}
ONE_FILTER: Final[Mapping[str, Any]] = {"limit": 1_000, "filter": {"or": [_MANY_TAGS] * 16}}


class _Status(msgspec.Struct):
    request_id: str
    status: str
    error: dict[str, str] | None = None


class Answers:
    """The status of every answer, and its error's code. They are too large to be looked at one by one."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self._decode = msgspec.json.Decoder(_Status).decode

    async def read(self, consumer: Consumer) -> None:
        async for record in consumer:
            answer = self._decode(record.value or b"")
            self.found[answer.request_id] = answer.error["code"] if answer.error else answer.status


async def test_the_costliest_requests_hold_back_neither_the_loop_nor_the_clicks(
    new_system: Callable[..., System],
) -> None:
    system = new_system()
    worker, chosen = system.worker, random.Random(9)
    async with system.stocked() as outside, _reading(outside) as answers:
        await _fill(outside)
        users = [outside.own(f"u{number}") for number in range(_USERS)]
        events = ((user, outside.click_message(user, f"thing-{n}")) for user in users for n in range(_EVENTS))
        await outside.send_all(outside.topics.clicks, events)
        await applied(outside)
        before = await asyncio.to_thread(worker.metrics)
        clicked = 0

        async def click() -> None:
            nonlocal clicked
            count = SCALE.clicks_per_s // 10
            user = chosen.choice(users)
            messages = [(user, outside.click_message(user, f"thing-{n}")) for n in range(count)]
            await outside.send_all(outside.topics.clicks, messages)
            clicked += count

        started_s, asked = time.monotonic(), {}
        async with all_the_time(click, pause_s=0.1):
            for number in range(SCALE.costly):
                kind = TOO_COSTLY if number % 20 == 7 else ONE_FILTER if number % 20 == 13 else COSTLIEST
                request_id, user = uuid.uuid4().hex, chosen.choice(users)
                asked[request_id] = {"request_id": request_id, "user_id": user, **kind}
            await outside.send_all(
                outside.topics.requests, [(str(each["user_id"]), each) for each in asked.values()]
            )
            while not asked.keys() <= answers.found.keys():
                worker.check_alive()
                assert time.monotonic() < started_s + TIMEOUT_S / 2, "requests are left unanswered"
                await asyncio.sleep(0.1)
        await applied(outside)
        stands = _stands(before, await asyncio.to_thread(worker.metrics))
        counts = Counter(answers.found[request_id] for request_id in asked)
        print(
            f"{len(asked)} requests and {clicked} clicks in {time.monotonic() - started_s:.0f} s: {dict(counts)}; the loop "
            f"was late by at most {max(stands):g} s; {worker.memory_mib():.0f} MiB"
        )
        refused = {request_id for request_id, each in asked.items() if each["filter"] == TOO_COSTLY["filter"]}
        assert {answers.found[request_id] for request_id in refused} == {"too_costly"}
        assert counts.keys() <= {"ok", "degraded", "deadline", "too_costly"}
        assert counts["too_costly"] == len(refused)
        assert max(stands) <= _STAND_S


async def test_requests_that_wait_for_nothing_are_answered_and_leave_no_place_and_no_memory_taken(
    new_system: Callable[..., System],
) -> None:
    system = new_system()
    worker = system.worker
    async with system.stocked() as outside, _reading(outside) as answers:
        # Ids that exist nowhere, 100 kB of them; a click that never comes; an origin far ahead.
        exclude = [f"{number:0>100}" for number in range(900)]
        origin = ("headwater-origin", json.dumps([0, 1, 2**62]).encode())

        async def ask(round_: int) -> int:
            """Ask, wait for all answers, and return how many bytes the requests had."""
            sent, size = [], 0
            for number in range(_WAITING):
                user = outside.own(f"user{number}")
                after = {"partition": outside.home(user), "offset": 2**40}
                request_id = outside.own(f"waits-{round_}-{number}")
                message = {
                    "request_id": request_id,
                    "user_id": user,
                    "after": after,
                    "exclude": exclude,
                    "deadline_ms": 5_000,
                }
                value, headers = json.dumps(message).encode(), [origin] if number % 2 else []
                await outside.send(outside.topics.requests, value, key=user.encode(), headers=headers)
                sent.append(request_id)
                size += len(value)
            async with asyncio.timeout(TIMEOUT_S / 4):
                while not answers.found.keys() >= {*sent}:
                    worker.check_alive()
                    await asyncio.sleep(0.1)
            assert {answers.found[request_id] for request_id in sent} <= {"deadline", "overloaded"}
            return size

        await ask(0)  # takes the memory that so many at a time need
        before_mib = worker.memory_mib()
        asked_mib = sum([await ask(round_) for round_ in range(1, 1 + _ROUNDS)]) / 2**20
        grown_mib = worker.memory_mib() - before_mib
        print(f"{asked_mib:.0f} MiB of requests, and {grown_mib:.0f} MiB more in memory")
        # The requests of a round, decoded, take half of this, and a busy machine may have spread those of the first.
        assert grown_mib < 0.75 * asked_mib, "requests that are answered are held"
        assert worker.metric("headwater_parked_requests") == 0
        await applied(outside)
        is_committed = "every request is committed"
        await asyncio.to_thread(worker.wait_until, is_committed, lambda: worker.metric("headwater_lag") == 0)


class _reading:  # noqa: N801 - it is used as a function is
    """Answers of this conversation's topics, read while the block runs."""

    def __init__(self, outside: Outside) -> None:
        self._topic, self._options = outside.topics.responses, outside.settings.kafka_options()

    async def __aenter__(self) -> Answers:
        self._consumer, answers = Consumer(self._topic, **self._options, fetch_max_wait_ms=100), Answers()
        await self._consumer.start()
        self._task = asyncio.create_task(answers.read(self._consumer))
        return answers

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._consumer.stop()


async def _fill(outside: Outside) -> None:
    items = [
        (f"thing-{number}", {"item_id": f"thing-{number}", "title": f"Thing {number}", "price": number % 97})
        for number in range(_ITEMS)
    ]
    await outside.send_all(outside.topics.catalog, items)
    places = [await outside.put(f"thing-{number}", title=f"Thing {number}", price=1) for number in range(8)]
    await outside.catalog_applied(places)


def _stands(before: Mapping[str, float], after: Mapping[str, float]) -> list[float]:
    """Upper bounds, in seconds, of the histogram's buckets that have grown."""
    bounds = {}
    for name in after:
        if name.startswith("headwater_loop_delay_seconds_bucket"):
            bounds[float(name.partition('le="')[2].partition('"')[0])] = after[name] - before.get(name, 0.0)
    ordered = sorted(bounds)
    return [
        bound
        for lower, bound in zip([None, *ordered], ordered, strict=False)
        if bounds[bound] > bounds.get(lower or 0.0, 0.0)
    ]
