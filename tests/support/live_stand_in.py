"""The back of the live page as the page sees it: a made-up shop with the routes and shapes of `worker/web/live.py`.

`python -m tests.support.live_stand_in PORT` serves it, for work on the page without a worker.
"""

import asyncio
import json
import math
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

from headwater.worker.web import guard, static

Json = dict[str, Any]

_KINDS: Final = {
    "coffee": ("Espresso beans", "Ground filter coffee", "Decaf capsules", "Cold brew"),
    "tea": ("Green tea", "Earl Grey tea bags", "Rooibos", "Chamomile infusion"),
    "bread": ("Rye loaf", "Sourdough rolls", "Bagels", "Burger buns"),
    "cheese": ("Aged cheddar", "Goat cheese", "Mozzarella", "Blue cheese"),
    "fruit": ("Blood oranges", "Bananas", "Pink apples", "Blueberries"),
    "garden": ("Tomato seeds", "Potting soil", "Watering can", "Pruning shears"),
    "cleaning": ("Dish soap", "Floor cleaner", "Sponges", "Laundry powder"),
}
_MADE: Final = (
    "plain",
    "organic",
    "large",
    "small",
    "fair trade",
    "family pack",
    "classic",
    "dark",
    "fine",
    "mild",
)
_STEPS: Final = frozenset({"click", "view", "like", "add_to_cart", "purchase"})


@dataclass
class Shop:
    """Items with places, users with logs, and answers by nearness. ``more`` are further items, as (id, title, category)."""

    more: list[tuple[str, str, str]] = field(default_factory=list)
    items: dict[str, Json] = field(default_factory=dict)
    users: dict[str, list[Json]] = field(default_factory=dict)
    ends: list[int] = field(default_factory=lambda: [1041, 977, 1203, 1110])
    letters: list[Json] = field(default_factory=list)
    streams_served: int = 0
    is_away: bool = False  # the stream is refused
    token: str | None = None  # what callers have to bring; None: nothing
    drop: asyncio.Event = field(default_factory=asyncio.Event)  # ends the streams that are open

    def __post_init__(self) -> None:
        random_ = random.Random(7)
        for place, (category, kinds) in enumerate(_KINDS.items()):
            angle = 2 * math.pi * place / len(_KINDS)
            for number in range(120):
                title = f"{kinds[number % 4]}, {_MADE[number % 10]}" + (
                    f" {number // 10}" if number > 9 else ""
                )
                self._put(f"{category[:3]}-{number}", title, category, angle, random_)
        for item_id, title, category in self.more:
            self._put(item_id, title, category, 0.0, random_)
        now = _now_ms()
        for number in range(12):
            bought = random_.sample(sorted(self.items), 9)
            self.users[f"household-{number}"] = [
                self._event(item_id, "purchase", now - (9 - step) * 5_400_000, f"h{number}-{step}")
                for step, item_id in enumerate(bought)
            ]
        for number, (reason, message) in enumerate(
            [
                ("bad_field", "action: got 'clik', expected one of click, view, like"),
                ("bad_json", "not JSON: got b'{'"),
            ]
            * 2
        ):
            self.letters.append(
                {
                    "place": f"headwater.clicks.v1/{number % 2}/{40 + number}",
                    "put_ms": now - number * 60_000,
                    "reason": reason,
                    "message": message,
                    "lacks": "",
                    "tries": 0,
                    "key": "ann",
                    "value_bytes": 71,
                }
            )

    def _put(self, item_id: str, title: str, category: str, angle: float, random_: random.Random) -> None:
        self.items[item_id] = {
            "item_id": item_id,
            "title": title,
            "category": category,
            "price": round(random_.uniform(1, 20), 2),
            "available": True,
            "x": max(-1.0, min(1.0, 0.62 * math.cos(angle) + random_.gauss(0, 0.13))),
            "y": max(-1.0, min(1.0, 0.62 * math.sin(angle) + random_.gauss(0, 0.13))),
        }

    def _event(self, item_id: str, action: str, at_ms: int, event_id: str) -> Json:
        known = self.items.get(item_id, {})
        return {
            "item_id": item_id,
            "title": known.get("title"),
            "category": known.get("category"),
            "at_ms": at_ms,
            "action": action,
            "pending": not known,
            "x": known.get("x"),
            "y": known.get("y"),
            "event_id": event_id,
        }

    def click(self, body: Json) -> Json:
        """Append to the user's log; where its record lies."""
        user_id, event_id = body["user_id"], body.get("event_id") or f"e-{time.time_ns()}"
        partition = len(user_id) % 4
        self.ends[partition] += 1
        self.users.setdefault(user_id, []).append(
            self._event(
                body["item_id"], body.get("action", "click"), body.get("at_ms") or _now_ms(), event_id
            )
        )
        offset = self.ends[partition]
        return {
            "partition": partition,
            "offset": offset,
            "token": f"{partition}-{offset}",
            "event_id": event_id,
            "took_ms": 3.4,
        }

    def interests(self, events: list[Json]) -> list[Json]:
        """One place: the newest events count most."""
        steps = [event for event in events if event["action"] in _STEPS and event["x"] is not None][-12:]
        if not steps:
            return []
        weights = [0.6 ** (len(steps) - 1 - place) for place in range(len(steps))]
        x, y = (sum(w * event[axis] for w, event in zip(weights, steps, strict=True)) for axis in "xy")
        return [{"x": x / sum(weights), "y": y / sum(weights), "weight": 1.0}]

    def user(self, user_id: str) -> Json | None:
        events = self.users.get(user_id)
        if not events:
            return None
        return {
            "user_id": user_id,
            "partition": len(user_id) % 4,
            "watermark": self.ends[len(user_id) % 4],
            "events": events[-50:],
            "interests": self.interests(events),
            "pending": 0,
            "last_event_id": events[-1]["event_id"],
            "counters": 3,
            "hidden": sum(event["action"] == "dislike" for event in events),
        }

    def recall(self, body: Json) -> Json:
        """The items nearest to the user's interests, with reasons and a funnel."""
        user_id, until, limit = body["user_id"], body.get("until_ms"), body.get("limit", 20)
        events = [event for event in self.users.get(user_id, []) if until is None or event["at_ms"] <= until]
        own = [*events, *(self._event(e["item_id"], "click", _now_ms(), "") for e in body.get("session", []))]
        seen = {event["item_id"] for event in own} | set(body.get("exclude", []))
        where = self.interests(own)
        at = where[0] if where else {"x": 0.1, "y": 0.0}
        source = "interests" if where else "popular"
        nearest = sorted(
            self.items.values(), key=lambda item: math.dist((item["x"], item["y"]), (at["x"], at["y"]))
        )
        near = [item for rank, item in enumerate(nearest) if rank < 4 * limit or item["item_id"] in seen]
        gone = [item for item in near if item["item_id"] in seen]
        kept = [item for item in near if item["item_id"] not in seen][:limit]
        because = [event for event in own if event["action"] in _STEPS][-2:]
        shares = [0.72, 0.28] if len(because) == 2 else [1.0]
        items = [
            {
                "item_id": item["item_id"],
                "score": round(1 / (60 + rank), 5),
                "source": source,
                "because": [
                    {
                        "item_id": event["item_id"],
                        "at_ms": event["at_ms"],
                        "action": event["action"],
                        "share": share,
                    }
                    for event, share in zip(reversed(because), shares, strict=False)
                ],
                "similarity": round(1 - math.dist((item["x"], item["y"]), (at["x"], at["y"])) / 2, 3),
            }
            for rank, item in enumerate(kept, 1)
        ]
        partition = len(user_id) % 4
        answer: Json = {
            "request_id": "r-1",
            "user_id": user_id,
            "status": "ok",
            "items": items,
            "reflects": {
                "partition": partition,
                "offset": self.ends[partition],
                "events": len(events),
                "pending": 0,
                "last_event_id": events[-1]["event_id"] if events else None,
                "last_event_at_ms": events[-1]["at_ms"] if events else None,
            },
            "model": "starter",
            "catalog": {"0": 311, "1": 290},
            "timings_ms": {"park": 4.1, "read": 1.2, "index": 2.3, "fuse": 0.6, "explain": 0.4, "total": 9.1},
            "why": {},
            "funnel": funnel_of(source, near, gone, kept),
        }
        named = {item["item_id"] for item in items} | seen | {item["item_id"] for item in near}
        return {
            "answer": answer,
            "items": {i: self.items[i] for i in named if i in self.items},
            "took_ms": 11.6,
        }


def funnel_of(source: str, near: list[Json], gone: list[Json], kept: list[Json]) -> list[Json]:
    """What the pipeline tells of an answer whose request asks for `explain`: `messages.FunnelStage`."""

    def ranked(items: list[Json]) -> list[Json]:
        return [{"item_id": item["item_id"], "rank": rank} for rank, item in enumerate(items[:12], 1)]

    popular = near[1::2]
    seen = [{"item_id": item["item_id"], "was": near.index(item) + 1, "why": "seen"} for item in gone[:12]]
    left = len(near) - len(gone)
    moved = [
        {"item_id": item["item_id"], "rank": rank, "was": rank + 1} for rank, item in enumerate(kept[1:4], 1)
    ]
    return [
        {"stage": "sources", "count": len(near), "source": source, "weight": 1.0, "items": ranked(near)},
        {
            "stage": "sources",
            "count": len(popular),
            "source": "buy-again",
            "weight": 20.0,
            "items": ranked(popular),
        },
        {"stage": "fused", "count": len(near), "merged": len(popular), "items": ranked(near)},
        {"stage": "filtered", "count": len(near)},
        {"stage": "unavailable", "count": len(near)},
        {"stage": "excluded", "count": left, "out": len(gone), "items": seen},
        {"stage": "diversified", "count": left, "moved": 3, "items": moved},
        {"stage": "shown", "count": len(kept), "out": left - len(kept)},
    ]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _answer(body: Any, status: int = 200) -> web.Response:
    return web.json_response(body, status=status)


def application(shop: Shop, interval_s: float = 1.0) -> web.Application:
    """The shop behind the routes, with the policy of the real ones."""

    @web.middleware
    async def checked(request: web.Request, handler: guard.Handler) -> web.StreamResponse:
        is_open = request.path in ("/", "/live/about", "/live/events") or request.path.startswith("/page/")
        guarded = guard.Guard(shop.token, shop.token is None)
        return await handler(request) if is_open or guarded.lets_in(request) else guarded.refusal()

    async def about(request: web.Request) -> web.Response:
        return _answer(
            {
                "role": "all",
                "version": "0.1.0",
                "bundle": "starter",
                "partitions": 4,
                "may": ["see", "click", "redrive"],
                "let_in": guard.Guard(shop.token, shop.token is None).lets_in(request),
                "loopback": True,
                "actions": ["click", "view", "like", "add_to_cart", "purchase", "dislike", "hide"],
                "sources": ["interests", "query", "item", "popular", "buy-again", "similar", "new"],
                "missing": {},
            }
        )

    async def state(_: web.Request) -> web.Response:
        health = {
            "ok": True,
            "role": "all",
            "users": len(shop.users),
            "items": len(shop.items),
            "opening": [],
        }
        bundle = {"id": "starter", "dim": 256, "log_length": 50, "item_inputs": "text"}
        ready = {"ready": True, "waits_for": []}
        return _answer({"health": health, "ready": ready, "catalog": {"0": 311, "1": 290}, "bundle": bundle})

    async def catalog(_: web.Request) -> web.Response:
        items, names = list(shop.items.values()), sorted({item["category"] for item in shop.items.values()})
        return _answer(
            {
                "bundle": "starter",
                "items": len(items),
                "shown": len(items),
                "spread": [0.21, 0.14],
                "ids": [item["item_id"] for item in items],
                "titles": [item["title"] for item in items],
                "categories": names,
                "category": [names.index(item["category"]) for item in items],
                "x": [round(item["x"], 4) for item in items],
                "y": [round(item["y"], 4) for item in items],
            }
        )

    async def search(request: web.Request) -> web.Response:
        words, limit = request.query.get("q", "").lower().split(), int(request.query.get("limit", 20))
        found = [
            item
            for item in shop.items.values()
            if all(word in f"{item['title']} {item['category']}".lower() for word in words)
        ]
        return _answer({"items": found[:limit]})

    async def users(request: web.Request) -> web.Response:
        start = request.query.get("q", "")
        return _answer(
            {
                "users": [
                    {"user_id": user_id, "events": len(events), "last_at_ms": events[-1]["at_ms"]}
                    for user_id, events in shop.users.items()
                    if user_id.startswith(start) and events
                ][:20]
            }
        )

    async def user(request: web.Request) -> web.Response:
        found = shop.user(request.match_info["user_id"])
        return guard.error(404, "unknown_user", "no such user") if found is None else _answer(found)

    def posted(answer: Callable[[Json], Json], status: int = 200) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.Response:
            return guard.complaint_about_post(request) or _answer(answer(await request.json()), status)

        return handle

    async def letters(_: web.Request) -> web.Response:
        groups: dict[str, Json] = {}
        for letter in shop.letters:
            group = groups.setdefault(
                letter["reason"],
                {
                    "reason": letter["reason"],
                    "topic": "headwater.clicks.v1",
                    "letters": 0,
                    "failed_again": 0,
                    "oldest_ms": letter["put_ms"],
                    "newest_ms": letter["put_ms"],
                    "message": letter["message"],
                    "place": letter["place"],
                },
            )
            group["letters"] += 1
        return _answer({"open": len(shop.letters), "redriven": 0, "groups": list(groups.values())})

    async def listed(request: web.Request) -> web.Response:
        reason = request.query.get("reason")
        return _answer({"letters": [each for each in shop.letters if reason in (None, each["reason"])]})

    async def shown(request: web.Request) -> web.Response:
        found = next(each for each in shop.letters if each["place"] == request.query["place"])
        text = '{"event_id": "e-1", "user_id": "ann", "item_id": "c1", "action": "clik"}'
        headers = [["reason", found["reason"]], ["topic", "headwater.clicks.v1"]]
        return _answer({**found, "headers": headers, "text": text, "hex": text.encode().hex(" ")})

    def redrive(body: Json) -> Json:
        chosen = [
            each
            for each in shop.letters
            if each["reason"] in body.get("reasons", [each["reason"]])
            and body.get("place") in (None, each["place"])
        ]
        if not body.get("dry_run"):
            shop.letters = [each for each in shop.letters if each not in chosen]
        counted = {"dry_run": bool(body.get("dry_run"))}
        return {"redriven": len(chosen), "purged": len(chosen), "skipped": {}, "refused": {}, **counted}

    async def doctor(_: web.Request) -> web.Response:
        findings = [
            {"ok": True, "what": "broker", "seen": "answers on 127.0.0.1:9092"},
            {
                "ok": True,
                "what": "topics",
                "seen": "10 of 10, with the partitions and policies that they need",
            },
            {"ok": False, "what": "lag", "seen": "clicks-2 is 4,210 behind: start one more worker"},
        ]
        return _answer({"findings": findings, "at_ms": _now_ms()})

    async def events(request: web.Request) -> web.StreamResponse:
        if shop.is_away:
            return guard.error(503, "starting", "the worker starts")
        shop.streams_served += 1
        stream = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", **guard.HEADERS}
        )
        await stream.prepare(request)
        random_, rungs = random.Random(3), {"restoring": 2}

        async def send(name: str, body: Any) -> None:
            await stream.write(f"event: {name}\ndata: {json.dumps(body)}\n\n".encode())

        await send("hello", {"interval_ms": int(interval_s * 1000), "viewers": 1, "let_in": True})
        tick = 0
        while not shop.drop.is_set():
            tick += 1
            wave = 1 + 0.25 * math.sin(tick / 9)
            p50 = random_.uniform(7, 13)
            await send(
                "figures",
                {
                    "at_ms": _now_ms(),
                    "clicks_per_s": round(820 * wave * random_.uniform(0.9, 1.1), 1),
                    "answers_per_s": round(96 * wave * random_.uniform(0.85, 1.15), 1),
                    "items_per_s": 0.0,
                    "click_to_applied_ms": {"p50": 3.1, "p99": 9.4},
                    "answer_ms": {"p50": p50 - 4, "p99": 2 * p50},
                    "click_to_answer_ms": {"p50": p50, "p99": p50 * random_.uniform(2, 3.2), "n": 90},
                    "partitions": [
                        {
                            "topic": "headwater.clicks.v1",
                            "partition": number,
                            "watermark": end,
                            "lag": random_.choice([0, 0, 0, 3, 12]),
                            "still_s": 0.1,
                        }
                        for number, end in enumerate(shop.ends)
                    ],
                    "rungs": rungs,
                    "statuses": {"ok": 5120 + 96 * tick, "degraded": 2},
                    "dead_letters": {"bad_field": 2, "bad_json": 2},
                    "users": len(shop.users),
                    "items": len(shop.items),
                    "pending": 0,
                    "viewers": 1,
                },
            )
            clicked = [
                {
                    "user_id": user_id,
                    "item_id": log[-1]["item_id"],
                    "action": "purchase",
                    "event_id": "e",
                    "at_ms": _now_ms(),
                    "partition": 0,
                    "offset": 1,
                    "lag_ms": 3.0,
                }
                for user_id, log in random_.sample(sorted(shop.users.items()), 3)
                if log
            ]
            await send("clicks", clicked)
            try:
                await asyncio.wait_for(shop.drop.wait(), interval_s)
            except TimeoutError:
                continue
        return stream

    app = web.Application(middlewares=[guard.hardened, checked])
    static.add_page(app)
    app.router.add_get("/live/about", about)
    app.router.add_get("/live/state", state)
    app.router.add_get("/live/events", events)
    app.router.add_get("/live/catalog.json", catalog)
    app.router.add_get("/live/search", search)
    app.router.add_get("/live/users", users)
    app.router.add_get("/live/users/{user_id}", user)
    app.router.add_post("/live/clicks", posted(shop.click, 201))
    app.router.add_post("/live/recall", posted(shop.recall))
    app.router.add_get("/live/letters", letters)
    app.router.add_get("/live/letters/list", listed)
    app.router.add_get("/live/letters/show", shown)
    app.router.add_post("/live/letters/redrive", posted(redrive))
    app.router.add_post("/live/letters/purge", posted(redrive))
    app.router.add_get("/live/doctor", doctor)
    return app


if __name__ == "__main__":
    web.run_app(application(Shop()), host="127.0.0.1", port=int(sys.argv[1]), print=None)
