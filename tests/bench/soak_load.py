"""What a soak publishes, and what became of it: clicks, requests and catalog changes whose users and items come and go.

Users and items are numbered. A window over the newest numbers moves on, so that old ones never return. Within the window
popularity follows Zipf's law, and a user or item keeps its place in it for life.
"""

import asyncio
import json
import time
import zlib
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition

from headwater.kafka.partitioner import partition_of
from headwater.kafka.publish import producer_of
from headwater.kafka.topics import Topics
from headwater.messages import Click, Item, Position, Reflects, Request, SessionEvent, encode
from headwater.settings import Settings
from tests.bench import dataset

CLICKS_PER_S: Final = 1_000
REQUESTS_PER_S: Final = 100
CHANGES_PER_S: Final = 50
USERS: Final = 20_000  # in the window
NEW_USERS_PER_S: Final = 50
ITEMS: Final = 6_000  # live
NEW_ITEMS_PER_S: Final = 10  # as many are deleted; the other changes are updates
ORACLE: Final = 200  # every so manieth user's events are kept, to be compared with the changelog

_TICK_S = 0.02
_DRAWN = 50_000
_DEADLINE_MS = 20_000  # the machine is shared, and what is asked about here is not speed
_SHORT_MS = 2_000
_GRACE_S = 20.0
_FRESH_ITEMS = 200  # the newest are not clicked yet: they are on their way to the index
_NEVER = 2**40
_NO_CONTEXT = msgspec.Raw(b"{}")
# Each with what one in how many clicks is.
_CLICK_KINDS = {
    "junk": 0.002,
    "repeated": 0.01,
    "impression": 0.05,
    "only impressions": 0.01,
    "retract": 0.005,
    "forget": 0.0005,
    "unknown item": 0.003,
    "stray": 0.002,
    "purchase": 0.05,
    "hide": 0.005,
}
_REQUEST_KINDS = {
    "never": 0.02,
    "event never": 0.01,
    "invalid": 0.01,
    "junk": 0.005,
    "after": 0.15,
    "after event": 0.05,
    "explain": 0.10,
    "diverse": 0.10,
    "filtered": 0.10,
    "query": 0.05,
    "session": 0.05,
    "many excluded": 0.05,
    "long": 0.01,
}
_JUNK = (
    b"not json",
    b"",
    b"\xff\xfe\x00",
    b'{"event_id": "e", "user_id": "u"}',
    b'{"event_id": "e", "user_id": "u", "at_ms": 12, "item_id": "i"}',
    b"[" * 5_000,
)


class _Answer(msgspec.Struct):
    request_id: str
    status: str
    rung: str | None = None
    reflects: Reflects | None = None


class _Asked(msgspec.Struct):
    kind: str
    user: str
    sent_s: float
    after: Position | None = None


@dataclass
class Ledger:
    """What was published and what came of it."""

    clicks: Counter[str] = field(default_factory=Counter)  # by kind
    requests: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)  # by kind of request and status
    junk: int = 0  # what has to become a dead letter
    repeated_answers: int = 0
    unexpected: list[str] = field(
        default_factory=list
    )  # the first hundred answers that are not as they should be
    unexpected_count: int = 0
    latencies_ms: list[float] = field(default_factory=list)  # since they were last taken
    ends: dict[int, int] = field(default_factory=dict)  # the newest offset of each clicks partition

    def complain(self, what: str) -> None:
        self.unexpected_count += 1
        if len(self.unexpected) < 100:
            self.unexpected.append(what)

    def as_dict(self) -> dict[str, Any]:
        return {
            "clicks": dict(self.clicks),
            "requests": dict(self.requests),
            "changes": dict(self.changes),
            "answers": dict(self.answers),
            "junk": self.junk,
            "repeated_answers": self.repeated_answers,
            "unexpected_count": self.unexpected_count,
            "unexpected": self.unexpected,
        }


class Window:
    """Numbers that come and go: the newest ``size``, drawn by Zipf's law."""

    def __init__(self, size: int, per_s: float, exponent: float, seed: int) -> None:
        self._size, self._per_s, self._exponent = size, per_s, exponent
        self._rng = np.random.default_rng(seed)
        self._places = self._rng.permutation(size)
        self._drawn: Iterator[int] = iter(())
        self.newest = size - 1

    def move(self, elapsed_s: float) -> range:
        """Move on; returns the numbers that are new."""
        before, self.newest = self.newest, self._size - 1 + int(elapsed_s * self._per_s)
        return range(before + 1, self.newest + 1)

    @property
    def oldest(self) -> int:
        return self.newest - self._size + 1

    def draw(self) -> int:
        """A number of the window."""
        place = next(self._drawn, None)
        if place is None:
            drawn = self._places[dataset.zipf(self._rng, self._size, _DRAWN, self._exponent)]
            self._drawn = iter(drawn.tolist())
            place = next(self._drawn)
        return self.newest - (self.newest - place) % self._size


class Load:
    """Use it as a context. :meth:`run` publishes for some time, :meth:`settled` waits for what is still to be answered."""

    def __init__(self, settings: Settings, texts: list[Item]) -> None:
        self._settings, self._texts = settings, texts
        self._topics = Topics.named(settings.topic_prefix)
        self._rng = np.random.default_rng(11)
        self._users = Window(USERS, NEW_USERS_PER_S, 1.0, 1)
        self._items = Window(ITEMS, NEW_ITEMS_PER_S, 0.8, 2)
        self._kinds = {
            "click": _roulette(self._rng, _CLICK_KINDS),
            "request": _roulette(self._rng, _REQUEST_KINDS),
        }
        self._count, self._is_over = 0, False
        self._asked: dict[str, _Asked] = {}
        self._recent: deque[Click] = deque(maxlen=1_000)
        self._places: deque[tuple[str, Position]] = deque(maxlen=200)
        self._deleted = 0  # items below this number are gone
        self._gone: set[str] = set()  # users who had themselves forgotten
        self._untold: set[str] = set()  # users of the oracle with more than it understands
        self._told: dict[str, list[dict[str, Any]]] = {}  # events of the users of the oracle
        self.ledger = Ledger()
        self.answered_s = time.monotonic()

    async def __aenter__(self) -> "Load":
        settings = self._settings
        self._producer = producer_of(settings)
        self._consumer = AIOKafkaConsumer(**settings.kafka_options())
        await self._producer.start()
        await self._consumer.start()
        places = [TopicPartition(self._topics.responses, number) for number in range(settings.partitions)]
        self._consumer.assign(places)
        await self._consumer.seek_to_end(*places)
        await asyncio.gather(*(self._consumer.position(place) for place in places))
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._consumer.stop()
        await self._producer.stop()

    # What is published

    async def stock(self) -> None:
        """The first items."""
        for number in range(ITEMS):
            await self._put(number, 0)
        await self._producer.flush()

    async def run(self, seconds: float) -> None:
        """At the rates above for so long. Raises what the reading of answers raised."""
        started, done = time.monotonic(), Counter[str]()
        while (elapsed := time.monotonic() - started) < seconds and not self._is_over:
            self._users.move(elapsed)
            for number in self._items.move(elapsed):
                await self._put(number, 0)
            for number in range(self._deleted, self._items.oldest):
                await self._delete(number)
            self._deleted = self._items.oldest
            for kind, rate, publish in (
                ("clicks", CLICKS_PER_S, self._click),
                ("requests", REQUESTS_PER_S, self._request),
                ("updates", CHANGES_PER_S - 2 * NEW_ITEMS_PER_S, self._update),
            ):
                # After a pause of this machine the rate is made up for, but not at once.
                for _ in range(min(int(elapsed * rate) - done[kind], rate)):
                    await publish()
                    done[kind] += 1
            if self._reading.done():
                self._reading.result()
            await asyncio.sleep(_TICK_S)
        await self._producer.flush()

    def end(self) -> None:
        """Have :meth:`run` come to its end now."""
        self._is_over = True

    async def _click(self) -> None:
        kind, user, now_ms = next(self._kinds["click"]), self._user(), int(time.time() * 1000)
        item = f"i{self._clicked_item()}"
        action, event_id = "click", self._new_id()
        match kind:
            case "junk":
                self.ledger.junk += 1
                self.ledger.clicks[kind] += 1
                await self._send(self._topics.clicks, user, _JUNK[self._count % len(_JUNK)])
                return
            case "repeated" | "retract" if self._recent:
                again = self._recent[self._count % len(self._recent)]
                if again.user_id in self._gone:
                    return
                user, event_id, now_ms, item = again.user_id, again.event_id, again.at_ms, again.item_id
                if kind == "retract":
                    action, item, now_ms = "retract", "", int(time.time() * 1000)
                    self._untold.add(user)
            case "impression" | "purchase" | "hide" | "forget":
                action = kind
                if kind == "forget":
                    item = ""
                    self._gone.add(user)
            case "only impressions":
                user, action = f"shy{self._count}", "impression"
            case "unknown item":
                item = f"ghost{self._count}"
        click = Click(event_id, user, now_ms, item, action, _NO_CONTEXT)  # type: ignore[arg-type]
        self.ledger.clicks[kind] += 1
        if kind in ("", "purchase"):
            self._recent.append(click)
        if (
            _number(user) % ORACLE == 0
            and action not in ("impression", "retract", "forget")
            and kind != "repeated"
        ):
            told = {"event_id": event_id, "at_ms": now_ms, "item_id": item, "action": action}
            self._told.setdefault(user, []).append(told)
        partition = zlib.crc32(user.encode()) % self._settings.partitions if kind == "stray" else None
        sent = await self._send(self._topics.clicks, user, encode(click), partition)
        if kind == "" and len(self._places) < self._places.maxlen:  # type: ignore[operator]
            sent.add_done_callback(lambda done: self._note(user, done))

    def _note(self, user: str, done: "asyncio.Future[Any]") -> None:
        if not done.cancelled() and done.exception() is None:
            self._places.append((user, Position(done.result().partition, done.result().offset)))

    async def _request(self) -> None:
        kind, user, number = next(self._kinds["request"]), self._user(), self._new_id()
        after: Position | None = None
        options: dict[str, Any] = {}
        match kind:
            case "never":
                home = partition_of(user.encode(), self._settings.partitions)
                options = {"after": Position(home, _NEVER), "deadline_ms": _SHORT_MS}
            case "event never":
                options = {"after_event_id": f"never{number}", "deadline_ms": _SHORT_MS}
            case "invalid":
                options = {"filter": {"price": {"gte": "much"}}}
            case "junk":
                self.ledger.junk += 1
                self.ledger.requests[kind] += 1
                await self._send(self._topics.requests, user, _JUNK[self._count % len(_JUNK)])
                return
            case "after" if self._places:
                user, after = self._places.popleft()
                options = {"after": after}
            # An event of a user who was erased since is of nobody: such a request waits for its deadline.
            case "after event" if self._recent and self._recent[-1].user_id not in self._gone:
                options = {"after_event_id": self._recent[-1].event_id}
                user = self._recent[-1].user_id
            case "explain":
                options = {"explain": True}
            case "diverse":
                options = {"diversity": 0.3}
            case "filtered":
                options = {"filter": self._filter()}
            case "query":
                options = {"query": self._texts[self._count % len(self._texts)].title}
            case "session":
                clicked = [SessionEvent(f"i{self._clicked_item()}") for _ in range(5)]
                options = {"session": clicked}
            case "many excluded":
                options = {"exclude": [f"i{self._clicked_item()}" for _ in range(50)]}
            case "long":
                options = {"limit": 500, "explain": True}
        request = Request(number, user, **{"deadline_ms": _DEADLINE_MS, **options})
        self.ledger.requests[kind] += 1
        self._asked[number] = _Asked(kind, user, time.monotonic(), after)
        await self._send(self._topics.requests, user, encode(request))

    def _filter(self) -> dict[str, Any]:
        category = self._texts[self._count % len(self._texts)].category
        return ({"category": category}, {"price": {"gte": 1, "lt": 5}}, {"not": {"category": category}})[
            self._count % 3
        ]

    async def _update(self) -> None:
        number = self._clicked_item()
        await self._put(number, 1 + self._count)

    async def _put(self, number: int, revision: int) -> None:
        base = self._texts[number % len(self._texts)]
        item = msgspec.structs.replace(
            base,
            item_id=f"i{number}",
            price=1.0 + (number + revision) % 900 / 100,
            available=(number + revision) % 50 != 0,
        )
        self.ledger.changes["update" if revision else "new"] += 1
        if not revision and number % 500 == 499:  # now and then
            self.ledger.junk += 1
            await self._send(self._topics.catalog, item.item_id, b'{"item_id": 5}')
        await self._send(self._topics.catalog, item.item_id, encode(item))

    async def _delete(self, number: int) -> None:
        self.ledger.changes["delete"] += 1
        await self._send(self._topics.catalog, f"i{number}", None)

    async def _send(
        self, topic: str, key: str, value: bytes | None, partition: int | None = None
    ) -> "asyncio.Future[Any]":
        return await self._producer.send(topic, value, key=key.encode(), partition=partition)

    def _user(self) -> str:
        while (user := f"u{self._users.draw()}") in self._gone:
            pass
        return user

    def _clicked_item(self) -> int:
        """An item that is neither brand new nor about to go."""
        while True:
            number = self._items.draw()
            if self._items.oldest + _FRESH_ITEMS < number < self._items.newest - _FRESH_ITEMS:
                return number

    def _new_id(self) -> str:
        self._count += 1
        return f"{self._count:012x}"

    # What came of it

    async def _read(self) -> None:
        decode = msgspec.json.Decoder(_Answer).decode
        async for record in self._consumer:
            answer, now_s = decode(record.value), time.monotonic()
            asked = self._asked.pop(answer.request_id, None)
            if asked is None:
                self.ledger.repeated_answers += 1
                continue
            self.answered_s = now_s
            self.ledger.answers[f"{asked.kind or 'plain'}: {answer.rung or answer.status}"] += 1
            wrong = _wrong(asked, answer)
            # Behind a backlog a forget may be applied before a request of the same user is looked at: then nobody has its event.
            erased_since = (
                asked.kind == "after event" and asked.user in self._gone and answer.status == "expired"
            )
            if wrong and not erased_since:
                self.ledger.complain(
                    f"{asked.kind or 'plain'} of {asked.user} after {now_s - asked.sent_s:.1f} s, "
                    f"at {time.strftime('%H:%M:%S')}, {len(self._asked)} waiting: {wrong}"
                )
            if asked.kind not in ("never", "event never"):
                self.ledger.latencies_ms.append(1000.0 * (now_s - asked.sent_s))

    async def settled(self) -> int:
        """Wait until every request is answered, or must have been; returns how many are not."""
        last_s = time.monotonic() + _DEADLINE_MS / 1000 + _GRACE_S
        while self._asked and time.monotonic() < last_s:
            await asyncio.sleep(0.2)
        return len(self._asked)

    @property
    def waiting(self) -> int:
        """Requests that are not answered yet."""
        return len(self._asked)

    def overdue(self) -> int:
        """Requests that should have been answered long ago."""
        late_s = time.monotonic() - _DEADLINE_MS / 1000 - _GRACE_S
        return sum(asked.sent_s < late_s for asked in self._asked.values())

    def told(self) -> dict[str, list[dict[str, Any]]]:
        """The events of some users, oldest first, who neither took one back nor were forgotten."""
        return {
            user: events
            for user, events in self._told.items()
            if user not in self._untold and user not in self._gone
        }


def _wrong(asked: _Asked, answer: _Answer) -> str:
    """What is not as it should be; empty where all is well."""
    expected = {
        "never": ("expired",),
        "event never": ("expired",),
        "invalid": ("rejected",),
    }.get(asked.kind, ("ok", "degraded"))
    if answer.status not in expected:
        return f"{answer.status}, expected {' or '.join(expected)}"
    if asked.after is not None and answer.status == "ok" and not _reflects(answer.reflects, asked.after):
        return f"after {asked.after}: reflects {json.dumps(msgspec.to_builtins(answer.reflects))}"
    return ""


def _reflects(reflects: Reflects | None, after: Position) -> bool:
    return reflects is not None and reflects.partition == after.partition and reflects.offset >= after.offset


def _roulette(rng: np.random.Generator, shares: dict[str, float]) -> Iterator[str]:
    """Kinds for ever, as often as they should be; "" is everything else."""
    names = [*shares, ""]
    odds = [*shares.values(), 1.0 - sum(shares.values())]
    while True:
        yield from (names[each] for each in rng.choice(len(names), _DRAWN, p=odds).tolist())


def _number(user: str) -> int:
    """Of users of the window; others are no users of the oracle."""
    return int(user[1:]) if user[1:].isdigit() else 1
