"""What is behind the live page, of a worker that runs: its stream, its map, a user, answers, dead letters."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import pytest

from tests.end_to_end.conftest import System
from tests.end_to_end.outside import PATIENCE_S, Outside
from tests.end_to_end.shop import theme_of

pytestmark = pytest.mark.kafka


class Back:
    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def get(self, path: str, **query: Any) -> Any:
        async with self.session.get(path, params=query) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def post(self, path: str, status: int = 200, **fields: Any) -> Any:
        async with self.session.post(path, json=fields) as response:
            assert response.status == status, await response.text()
            return await response.json()

    async def events(self) -> AsyncIterator[tuple[str, Any]]:
        name = ""
        async with self.session.get("/live/events") as response:
            async for line in response.content:
                field, _, value = line.decode().rstrip("\n").partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, msgspec.json.decode(value)


@asynccontextmanager
async def back_of(system: System, token: str | None = None) -> AsyncIterator[Back]:
    worker = system.worker
    headers = {"Authorization": f"Bearer {worker._token if token is None else token}"}
    async with aiohttp.ClientSession(f"http://127.0.0.1:{worker._port}", headers=headers) as session:
        yield Back(session)


async def test_a_click_on_the_page_goes_the_whole_way_and_is_seen_everywhere(shared_system: System) -> None:
    user = f"viewer-{uuid.uuid4().hex[:8]}"
    async with back_of(shared_system) as back, asyncio.timeout(PATIENCE_S):
        events = back.events()
        assert (await anext(events))[1]["let_in"] is True
        now_ms = time.time_ns() // 1_000_000  # of one millisecond, hashes would order them
        clicks = [
            await back.post("/live/clicks", 201, user_id=user, item_id=item, at_ms=now_ms + number)
            for number, item in enumerate(("coffee-1", "coffee-2", "dog-3"))
        ]
        said = await back.post("/live/recall", user_id=user, limit=3, explain=True)
        answer = said["answer"]
        assert (answer["status"], answer["reflects"]["events"]) == ("ok", 3)
        assert answer["reflects"]["offset"] >= clicks[-1]["offset"]
        stages = {stage.get("source") or stage["stage"]: stage for stage in answer["funnel"]}
        assert stages["shown"]["count"] == 3
        assert {each["why"] for each in stages["excluded"]["items"]} == {"seen"}
        shown = said["items"][answer["items"][0]["item_id"]]
        assert shown["category"] == theme_of(shown["item_id"])
        described = await back.get(f"/live/users/{user}")
        assert [event["item_id"] for event in described["events"]] == ["coffee-1", "coffee-2", "dog-3"]
        interests = (await back.post("/live/interests", user_id=user))["interests"]
        assert interests[0]["x"] is not None
        until = described["events"][1]["at_ms"]
        then = await back.post("/live/recall", user_id=user, limit=3, explain=True, until_ms=until)
        assert then["answer"]["reflects"]["events"] == 2
        assert {theme_of(item["item_id"]) for item in then["answer"]["items"]} == {"coffee"}
        as_then = await back.post("/live/interests", user_id=user, until_ms=until)
        assert as_then["interests"] not in ([], interests)
        before = described["events"][0]["at_ms"] - 1
        assert await back.post("/live/interests", user_id=user, until_ms=before) == {"interests": []}
        tried = {"session": [{"item_id": "dog-1"}]}
        assert (await back.post("/live/interests", user_id=user, **tried))["interests"] != interests
        unknown = await back.post("/live/interests", user_id=f"{user}-unknown", **tried)
        assert unknown["interests"][0]["x"] is not None
        assert {"user_id": user, "events": 3, "last_at_ms": described["events"][-1]["at_ms"]} in (
            await back.get("/live/users", q=user[:10])
        )["users"]
        seen: dict[str, Any] = {}
        while not {"figures", "clicks", "answers"} <= seen.keys():
            name, data = await anext(events)
            if name == "figures" or any(each.get("user_id") == user for each in data):
                seen[name] = data
        assert [each["event_id"] for each in seen["clicks"] if each["user_id"] == user][-1] == clicks[-1][
            "event_id"
        ]
        assert seen["figures"]["viewers"] == 1
        await events.aclose()


async def test_the_catalog_is_a_map_that_can_be_searched(shared_system: System) -> None:
    async with back_of(shared_system) as back:
        places = await back.get("/live/catalog.json")
        assert places["shown"] == len(places["ids"]) >= 60
        assert {"coffee", "dog", "cheese"} <= set(places["categories"])
        found = (await back.get("/live/search", q="espresso coffee", limit=3))["items"]
        assert found[0]["title"] == "Espresso coffee"
        assert [
            each["item_id"] for each in (await back.get("/live/search", q="dog-4", limit=1))["items"]
        ] == ["dog-4"]
        state = await back.get("/live/state")
        assert state["health"]["ok"]
        assert state["bundle"]["id"] == places["bundle"]
        assert [each["what"] for each in (await back.get("/live/doctor"))["findings"] if not each["ok"]] == []


async def test_a_dead_letter_is_shown_redriven_and_purged(shared_system: System, outside: Outside) -> None:
    topic = outside.topics.clicks
    reason = "bad_json"
    user = f"letter-{uuid.uuid4().hex[:8]}"
    places = [await outside.send(topic, b'{"<script>', key=user.encode()) for _ in range(2)]
    for place in places:
        await outside.dead_letter(topic, place)
    names = [f"{topic}/{place.partition}/{place.offset}" for place in places]
    async with back_of(shared_system) as back, asyncio.timeout(PATIENCE_S):
        groups = (await back.get("/live/letters"))["groups"]
        assert (
            sum(each["letters"] for each in groups if (each["reason"], each["topic"]) == (reason, topic)) >= 2
        )
        listed = (await back.get("/live/letters/list", reason=reason))["letters"]
        assert set(names) <= {letter["place"] for letter in listed}
        letter = await back.get("/live/letters/show", place=names[0])
        assert (letter["key"], letter["value_bytes"], letter["hex"][:17]) == (user, 10, "000000  7b 22 3c ")
        done = await back.post("/live/letters/redrive", place=names[0], dry_run=True)
        assert (done["redriven"], done["dry_run"]) == (1, True)
        assert (await back.post("/live/letters/redrive", place=names[0]))["redriven"] == 1
        assert (await back.post("/live/letters/purge", place=names[1]))["purged"] == 1
        left = {
            letter["place"]: letter
            for letter in (await back.get("/live/letters/list", reason=reason))["letters"]
        }
        assert not left.keys() & set(names)


async def test_without_the_token_a_worker_has_figures_and_nothing_else(shared_system: System) -> None:
    async with back_of(shared_system, token="wrong") as back:
        assert (await back.get("/live/about"))["let_in"] is False
        for path in ("/live/users/ann", "/live/catalog.json", "/live/letters", "/live/state"):
            async with back.session.get(path) as response:
                assert response.status == 401
        events = back.events()
        assert [(await anext(events))[0] for _ in range(2)] == ["hello", "figures"]
        await events.aclose()
