"""A made-up shop behind the live page's real routes: catalog, users, answers by nearness, dead letters.

`python -m tests.support.live_stand_in PORT` serves it, for work on the page without a worker.
"""

import contextlib
import gzip
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from aiohttp import web

from headwater.docs.site import add_docs
from headwater.kafka.letters import Place, Wanted
from headwater.messages import Response, SessionEvent
from headwater.settings import Settings
from headwater.worker.web import guard, live
from headwater.worker.web.viewers import Second, Viewers

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
    rates: list[float] = field(default_factory=list)  # of redrives
    token: str | None = None  # what callers have to bring; None: nothing
    is_gateway: bool = False  # it has clicks, answers and dead letters alone
    is_starting: bool = False  # it has no map yet

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

    def events_of(self, user_id: str, until_ms: int | None, session: Sequence[SessionEvent]) -> list[Json]:
        logged = self.users.get(user_id, [])
        tried = [self._event(each.item_id, each.action, _now_ms(), "") for each in session]
        return [*(event for event in logged if until_ms is None or event["at_ms"] <= until_ms), *tried]

    def user(self, user_id: str) -> Json | None:
        events = self.users.get(user_id)
        if not events:
            return None
        return {
            "user_id": user_id,
            "partition": len(user_id) % 4,
            "watermark": self.ends[len(user_id) % 4],
            "events": events[-50:],
            "pending": 0,
            "last_event_id": events[-1]["event_id"] if events else None,
            "counters": 3,
            "hidden": sum(event["action"] == "dislike" for event in events),
        }

    def recall(self, body: Json) -> Json:
        """The items nearest to the user's interests, with reasons and a funnel."""
        user_id, until, limit = body["user_id"], body.get("until_ms"), body.get("limit", 20)
        session = [SessionEvent(each["item_id"]) for each in body.get("session", [])]
        events, own = self.events_of(user_id, until, []), self.events_of(user_id, until, session)
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
        return {
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
            "catalog": {0: 311, 1: 290},
            "timings_ms": {"park": 4.1, "read": 1.2, "index": 2.3, "fuse": 0.6, "explain": 0.4, "total": 9.1},
            "why": {},
            "funnel": funnel_of(source, near, gone, kept),
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


class _Map:
    def __init__(self, shop: Shop) -> None:
        self._shop, self._items = shop, shop.items

    async def packed(self) -> tuple[bytes, bytes, str]:
        if self._shop.is_starting:
            raise live.LiveError(503, "starting", "this worker is still starting")
        items, names = list(self._items.values()), sorted({item["category"] for item in self._items.values()})
        body = msgspec.json.encode(
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
        return body, gzip.compress(body, 1), "e-1"

    async def items(self, item_ids: Sequence[str]) -> dict[str, Json]:
        return {item_id: self._items[item_id] for item_id in item_ids if item_id in self._items}

    async def search(self, text: str, limit: int) -> list[Json]:
        words = text.lower().split()
        told = {
            item_id: f"{item['title']} {item['category']}".lower() for item_id, item in self._items.items()
        }
        return [self._items[each] for each, text in told.items() if all(word in text for word in words)][
            :limit
        ]


class _Users:
    def __init__(self, shop: Shop) -> None:
        self._shop = shop

    async def named(self, start: str, limit: int) -> list[Json]:
        return [
            {"user_id": user_id, "events": len(events), "last_at_ms": events[-1]["at_ms"]}
            for user_id, events in self._shop.users.items()
            if user_id.startswith(start)
        ][:limit]

    async def described(self, user_id: str) -> Json:
        found = self._shop.user(user_id)
        if found is None:
            raise live.LiveError(404, "unknown_user", f"{user_id}: no such user")
        return found

    async def interests(
        self, user_id: str, until_ms: int | None, session: Sequence[SessionEvent]
    ) -> list[Json]:
        return self._shop.interests(self._shop.events_of(user_id, until_ms, session))


class _Asks:
    def __init__(self, shop: Shop) -> None:
        self._shop = shop

    async def click(self, fields: Mapping[str, Any]) -> Json:
        return self._shop.click(dict(fields))

    async def recall(self, fields: Mapping[str, Any]) -> tuple[Response, float]:
        return msgspec.convert(self._shop.recall(dict(fields)), Response), 11.6


class _Desk:
    def __init__(self, shop: Shop) -> None:
        self._shop = shop

    async def summary(self) -> Json:
        groups: dict[str, Json] = {}
        for letter in self._shop.letters:
            group = groups.setdefault(
                letter["reason"],
                {
                    "reason": letter["reason"],
                    "newest": {name: letter[name] for name in ("place", "message")},
                    "remedy": "correct the producer",
                    "topic": "headwater.clicks.v1",
                    "letters": 0,
                    "failed_again": 0,
                    "oldest_ms": letter["put_ms"],
                    "newest_ms": letter["put_ms"],
                },
            )
            group["letters"] += 1
        return {"open": len(self._shop.letters), "redriven": 0, "groups": list(groups.values())}

    def _chosen(self, wanted: Wanted) -> list[Json]:
        places = [str(place) for place in wanted.places]
        return [
            letter
            for letter in self._shop.letters
            if letter["reason"] in (wanted.reasons or [letter["reason"]])
            and letter["place"] in (places or [letter["place"]])
        ]

    def _taken_out(self, wanted: Wanted, dry_run: bool) -> int:
        chosen = self._chosen(wanted)
        if not dry_run:
            self._shop.letters = [letter for letter in self._shop.letters if letter not in chosen]
        return len(chosen)

    async def listed(self, wanted: Wanted, limit: int) -> list[Json]:
        return self._chosen(wanted)[:limit]

    async def shown(self, place: Place) -> Json | None:
        letter = next((each for each in self._shop.letters if each["place"] == str(place)), None)
        text = '{"event_id": "e-1", "user_id": "ann", "item_id": "c1", "action": "clik"}'
        headers = [["reason", "bad_field"], ["topic", "headwater.clicks.v1"]]
        return letter and {**letter, "headers": headers, "text": text, "hex": text.encode().hex(" ")}

    async def redriven(self, wanted: Wanted, rate: float, max_tries: int, dry_run: bool) -> Json:
        if not dry_run:
            self._shop.rates.append(rate)
        return {"redriven": self._taken_out(wanted, dry_run), "skipped": {}, "refused": {}}

    def under_way(self) -> Json | None:
        return None

    async def purged(self, wanted: Wanted, dry_run: bool) -> int:
        return self._taken_out(wanted, dry_run)


def _seconds(shop: Shop) -> Callable[[], Second]:
    """A lively shop: waves of clicks, answers within the promise, and some purchases of the made-up users."""
    random_, tick = random.Random(3), 0

    def second() -> Second:
        nonlocal tick
        tick += 1
        wave, p50 = 1 + 0.25 * math.sin(tick / 9), random_.uniform(7, 13)
        partitions = [
            {
                "topic": "headwater.clicks.v1",
                "partition": number,
                "watermark": end,
                "lag": random_.choice([0, 0, 0, 3, 12]),
                "still_s": 0.1,
            }
            for number, end in enumerate(shop.ends)
        ]
        figures: Json = {
            "at_ms": _now_ms(),
            "clicks_per_s": round(820 * wave * random_.uniform(0.9, 1.1), 1),
            "answers_per_s": round(96 * wave * random_.uniform(0.85, 1.15), 1),
            "items_per_s": 0.0,
            "click_to_applied_ms": {"p50": 3.1, "p99": 9.4},
            "answer_ms": {"p50": p50 - 4, "p99": 2 * p50},
            "click_to_answer_ms": {"p50": p50, "p99": p50 * random_.uniform(2, 3.2), "n": 90},
            "probe_ms": {"p50": p50 + 4, "p99": 3 * p50},
            "probe_failures": {},
            "partitions": partitions,
            "rungs": {"restoring": 2},
            "statuses": {"ok": 5120 + 96 * tick, "degraded": 2},
            "dead_letters": {"bad_field": 2, "bad_json": 2},
            "users": len(shop.users),
            "items": len(shop.items),
            "pending": 0,
        }
        clicks = [
            {**log[-1], "user_id": user_id, "partition": 0, "offset": 1, "lag_ms": 3.0}
            for user_id, log in [
                *random_.sample(sorted(shop.users.items()), min(3, len(shop.users))),
                *[*shop.users.items()][-1:],
            ]
        ]
        return Second(figures, {"clicks": clicks})

    return second


def application(shop: Shop, interval_s: float = 1.0) -> web.Application:
    """The shop behind the routes of a worker, with their policy."""

    @contextlib.contextmanager
    def watch() -> Iterator[Callable[[], Second]]:
        yield _seconds(shop)

    async def doctor() -> Json:
        findings = [
            {"ok": True, "what": "broker", "seen": "answers on 127.0.0.1:9092"},
            {
                "ok": True,
                "what": "topics",
                "seen": "10 of 10, with the partitions and policies that they need",
            },
            {"ok": False, "what": "lag", "seen": "clicks-2 is 4,210 behind: start one more worker"},
        ]
        return {"findings": findings, "at_ms": _now_ms()}

    def state() -> Json:
        health = {
            "ok": True,
            "role": "all",
            "users": len(shop.users),
            "items": len(shop.items),
            "opening": [],
        }
        bundle = {"id": "starter", "dim": 256, "log_length": 50, "item_inputs": "text"}
        ready = {"ready": True, "waits_for": []}
        return {"health": health, "ready": ready, "catalog": {"0": 311, "1": 290}, "bundle": bundle}

    parts = live.Parts(
        about=lambda: {"role": "all", "version": "0.1.0", "bundle": "starter", "partitions": 4},
        viewers=Viewers(watch, interval_s=interval_s),
        state=state,
        map=_Map(shop),
        users=_Users(shop),
        asks=_Asks(shop),
        letters=_Desk(shop),
        doctor=doctor,
    )
    if shop.is_gateway:
        why = dict.fromkeys(("viewers", "state", "map", "users", "doctor"), "a gateway has only Kafka")
        about = {"role": "gateway", "version": "0.1.0", "bundle": "", "partitions": 4, "api": "/docs/api"}
        parts = parts._replace(viewers=None, state=None, map=None, users=None, doctor=None, missing=why)
        parts = parts._replace(about=lambda: about)
    app = web.Application(middlewares=[guard.hardened])
    live.add_live(app, guard.Guard(shop.token, is_open=shop.token is None), parts)
    add_docs(app, Settings(), has_api=shop.is_gateway)
    return app


if __name__ == "__main__":
    web.run_app(application(Shop()), host="127.0.0.1", port=int(sys.argv[1]), print=None)
