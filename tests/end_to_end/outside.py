"""A program that knows nothing of Headwater but its topics: it publishes JSON, and reads answers and dead letters."""

import asyncio
import json
import time
import uuid
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Self, TypeVar

import jsonschema
from aiokafka import AIOKafkaProducer, ConsumerRecord
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.partitioner import murmur2
from aiokafka.structs import RecordMetadata

from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.topics import Topics
from headwater.messages import schemas
from headwater.settings import Settings
from tests.end_to_end import shop

# No answer takes so long; it bounds a test that fails.
PATIENCE_S = 40.0
# What is published many at a time may meet a broker that a test keeps silent.
_PUBLISHED_WITHIN_S = 120.0
# As long as a request may wait, for those that must not expire on a busy machine.
LONG_MS = 30_000

Headers = Sequence[tuple[str, bytes]]
Answer = dict[str, Any]
T = TypeVar("T")


class Outside:
    """Open it with `async with`. Every user and item that a test names gets this conversation's own suffix by `own`."""

    def __init__(self, settings: Settings, check_alive: Callable[[], None] = lambda: None) -> None:
        self.settings, self.topics = settings, Topics.named(settings.topic_prefix)
        self._check_alive = check_alive
        self._suffix = uuid.uuid4().hex[:8]
        self._numbers = 0
        self._last_ms = int(time.time() * 1000)
        self._is_response = jsonschema.Draft202012Validator(schemas()["Response"]).validate
        self._letters: list[ConsumerRecord] = []
        self._answers: dict[tuple[str, object], list[ConsumerRecord]] = {}  # by topic and request id
        self._arrived = asyncio.Event()

    async def __aenter__(self) -> Self:
        options = self.settings.kafka_options()
        self._producer = AIOKafkaProducer(
            **options, acks="all", request_timeout_ms=int(_PUBLISHED_WITHIN_S * 1000)
        )
        watched = (self.topics.responses, self.topics.dead_letters, *self.settings.reply_topics)
        self._consumer = Consumer(*watched, **options, fetch_max_wait_ms=100)
        await self._producer.start()
        try:
            await self._consumer.start()
        except BaseException:
            await self._consumer.stop()
            await self._producer.stop()
            raise
        places = sorted(self._consumer.assignment())
        for place, end in (await self._consumer.end_offsets(places)).items():
            self._consumer.seek(place, end)
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._consumer.stop()
        await self._producer.stop()

    async def _read(self) -> None:
        async for record in self._consumer:
            if record.topic == self.topics.dead_letters:
                self._letters.append(record)
            else:
                request_id = json.loads(record.value)["request_id"]
                self._answers.setdefault((record.topic, request_id), []).append(record)
            self._arrived.set()

    # Names and times

    def own(self, name: str) -> str:
        return f"{name}-{self._suffix}"

    def next_ms(self) -> int:
        """A time after all given before, and now or a little ahead."""
        self._last_ms = max(self._last_ms + 1, int(time.time() * 1000))
        return self._last_ms

    def home(self, user: str) -> int:
        """The partition that Java and Python clients choose."""
        return int((murmur2(user.encode()) & 0x7FFFFFFF) % self.settings.partitions)

    def wrong_home(self, user: str) -> int:
        """The partition that librdkafka chooses unless told otherwise."""
        return zlib.crc32(user.encode()) % self.settings.partitions

    def stray_user(self, name: str) -> str:
        """A user whom CRC32 puts elsewhere than murmur2."""
        names = (self.own(f"{name}{number}") for number in range(1000))
        return next(user for user in names if self.home(user) != self.wrong_home(user))

    def user_at(self, partition: int, name: str) -> str:
        names = (self.own(f"{name}{number}") for number in range(1000))
        return next(user for user in names if self.home(user) == partition)

    def item_at(self, partition: int, name: str) -> str:
        names = (self.own(f"{name}{number}") for number in range(1000))
        count = self.settings.catalog_partitions
        return next(item for item in names if (murmur2(item.encode()) & 0x7FFFFFFF) % count == partition)

    # What is published

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
    ) -> RecordMetadata:
        return await asyncio.wait_for(
            self._producer.send_and_wait(topic, value, key=key, partition=partition, headers=list(headers)),
            PATIENCE_S,
        )

    async def send_all(self, topic: str, messages: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Many JSON messages with their keys, in order."""
        sent = [
            await self._producer.send(topic, json.dumps(message).encode(), key=key.encode())
            for key, message in messages
        ]
        await asyncio.wait_for(asyncio.gather(*sent), _PUBLISHED_WITHIN_S)

    def click_message(self, user: str, item: str, action: str = "click", **fields: Any) -> dict[str, Any]:
        message = {"event_id": uuid.uuid4().hex, "user_id": user, "at_ms": self.next_ms(), "action": action}
        return {**message, "item_id": item, **fields}

    async def click(
        self,
        user: str,
        item: str,
        action: str = "click",
        *,
        partition: int | None = None,
        headers: Headers = (),
        **fields: Any,
    ) -> dict[str, int]:
        """Publish one event; its place, as `after` takes it."""
        value = json.dumps(self.click_message(user, item, action, **fields)).encode()
        sent = await self.send(
            self.topics.clicks, value, key=user.encode(), partition=partition, headers=headers
        )
        return {"partition": sent.partition, "offset": sent.offset}

    async def put(self, item: str, **fields: Any) -> RecordMetadata:
        value = json.dumps({"item_id": item, **fields}).encode()
        return await self.send(self.topics.catalog, value, key=item.encode())

    async def delete(self, item: str) -> RecordMetadata:
        return await self.send(self.topics.catalog, None, key=item.encode())

    async def put_and_wait(self, item: str, **fields: Any) -> None:
        await self.catalog_applied([await self.put(item, **fields)])

    async def stock(self) -> None:
        """Put the whole shop into the catalog, and wait for it."""
        places = [await self.put(item.pop("item_id"), **item) for item in shop.items()]
        await self.catalog_applied(places)

    async def catalog_applied(self, places: Iterable[RecordMetadata]) -> None:
        """Wait until answers say that these changes, whatever became of them, are behind them."""
        wanted: dict[int, int] = {}
        for place in places:
            wanted[place.partition] = max(place.offset, wanted.get(place.partition, -1))

        async def reached() -> bool:
            catalog = (await self.ask(self.own("nobody"), limit=1))["catalog"]
            return all(catalog.get(str(number), -1) >= offset for number, offset in wanted.items())

        await self.until(f"the catalog reaches {wanted}", reached)

    # What is asked

    async def request(
        self,
        user: str,
        *,
        partition: int | None = None,
        headers: Headers = (),
        **fields: Any,
    ) -> str:
        """Publish a request, do not wait; its id. Fields replace those that a valid request has."""
        self._numbers += 1
        message = {
            "request_id": self.own(f"r{self._numbers}"),
            "user_id": user,
            "deadline_ms": LONG_MS,
            **fields,
        }
        await self.send(
            self.topics.requests,
            json.dumps(message).encode(),
            key=user.encode(),
            partition=partition,
            headers=headers,
        )
        return str(message["request_id"])

    async def ask(self, user: str, **fields: Any) -> Answer:
        """One request and its answer."""
        return await self.answer(await self.request(user, **fields))

    async def items(self, user: str, **fields: Any) -> list[str]:
        """The recommended items, best first, of an answer that has to be a full one."""
        answer = await self.ask(user, **fields)
        assert answer["status"] == "ok", answer
        return [item["item_id"] for item in answer["items"]]

    async def answer(self, request_id: str) -> Answer:
        record = await self.answer_record(request_id)
        found: Answer = json.loads(record.value)
        return found

    async def answer_record(self, request_id: str, topic: str | None = None) -> ConsumerRecord:
        def find() -> ConsumerRecord | None:
            return next(iter(self.answer_records(request_id, topic)), None)

        record = await self._seen(f"an answer to {request_id}", find)
        self._is_response(json.loads(record.value))
        return record

    def answer_records(self, request_id: str, topic: str | None = None) -> list[ConsumerRecord]:
        """Those that have come so far."""
        return self._answers.get((topic or self.topics.responses, request_id), [])

    async def dead_letter(self, topic: str, place: RecordMetadata) -> tuple[dict[str, str], ConsumerRecord]:
        """The dead letter of the record at `place`: its headers as text, and itself."""
        headers = {"topic": topic, "partition": str(place.partition), "offset": str(place.offset)}

        def find() -> tuple[dict[str, str], ConsumerRecord] | None:
            for record in self._letters:
                held = {name: value.decode(errors="replace") for name, value in record.headers}
                if headers.items() <= held.items():
                    return held, record
            return None

        return await self._seen(f"a dead letter for {headers}", find)

    async def _seen(self, what: str, find: Callable[[], T | None]) -> T:
        deadline = time.monotonic() + PATIENCE_S
        while (found := find()) is None:
            self._check_alive()
            if self._reading.done():
                self._reading.result()
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {PATIENCE_S:g} s for {what}")
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), 1.0)
            except TimeoutError:
                continue
        return found

    async def until(
        self, what: str, is_true: Callable[[], Awaitable[bool]], within_s: float = PATIENCE_S
    ) -> None:
        """Ask again and again."""
        deadline = time.monotonic() + within_s
        while not await is_true():
            self._check_alive()
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {within_s:g} s until {what}")
            await asyncio.sleep(0.05)

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        """The offsets that a consumer group has committed of a topic, by partition."""
        admin = AIOKafkaAdminClient(**self.settings.kafka_options())
        await admin.start()
        try:
            found = await admin.list_consumer_group_offsets(group)
        finally:
            await admin.close()
        return {place.partition: each.offset for place, each in found.items() if place.topic == topic}

    async def records_of(self, topic: str) -> list[ConsumerRecord]:
        """Everything on a topic now."""
        # "latest", the default, may still be on its way when the seek is made, and would then be its answer.
        options = {**self.settings.kafka_options(), "auto_offset_reset": "earliest", "fetch_max_wait_ms": 100}
        async with Consumer(topic, **options) as consumer:
            places = sorted(consumer.assignment())
            ends = await consumer.end_offsets(places)
            await consumer.seek_to_beginning(*places)
            records: list[ConsumerRecord] = []
            deadline = time.monotonic() + PATIENCE_S
            while True:
                behind = [place for place in places if await consumer.position(place) < ends[place]]
                if not behind:
                    return records
                assert time.monotonic() < deadline, f"{topic} is not read to its end"
                for found in (await consumer.getmany(*behind, timeout_ms=500)).values():
                    records += found
