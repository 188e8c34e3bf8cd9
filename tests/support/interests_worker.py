"""The interests side of a worker without Kafka: real profiles, paths and encoder; batches in by hand, writes recorded."""

import asyncio
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
from aiokafka import ConsumerRecord
from faust.types import TP
from prometheus_client.parser import text_string_to_metric_families

from headwater.encoder import runtime as encoders
from headwater.encoder.features import item_key
from headwater.encoder.runtime import Encoder
from headwater.index.item_vectors import ItemVectors
from headwater.kafka.batch import Batch
from headwater.kafka.dead_letters import DeadLetters
from headwater.kafka.topics import Topics
from headwater.messages import Click
from headwater.metrics import Metrics
from headwater.paths.clicks import ClickPath
from headwater.paths.observer import Observer
from headwater.paths.serving import Serving
from headwater.profiles.event_log import Event
from headwater.profiles.partition import Partition
from headwater.profiles.store import ProfileLayout, Profiles
from headwater.settings import Settings
from tests.support.checkout import STARTER
from tests.support.recording_producer import RecordingProducer

GENERATION = 4


class Committed:
    """What the engine's consumer is told of batches."""

    def __init__(self) -> None:
        self.released: list[Batch] = []
        self.finished: list[Batch] = []

    def release(self, batch: Batch) -> None:
        self.released.append(batch)

    def finish(self, batch: Batch) -> None:
        batch.finished = True
        self.finished.append(batch)


class InterestsWorker:
    """Owns ``owned`` of ``partitions`` clicks partitions, open and empty."""

    def __init__(
        self,
        texts: Mapping[str, str],
        *,
        encoder: Encoder | None = None,
        partitions: int = 1,
        owned: Iterable[int] = (0,),
        **settings: Any,
    ) -> None:
        self.settings = Settings(partitions=partitions, kafka_bootstrap_servers="127.0.0.1:1", **settings)
        self.topics = Topics.named(self.settings.topic_prefix)
        self.encoder = encoder or encoders.load(STARTER)
        self.metrics = Metrics()
        self.producer = RecordingProducer(partitions)
        self.threads = ThreadPoolExecutor(1)
        self.consumer = Committed()
        self.failures: list[str] = []
        self.is_member = False  # what the broker says of this worker
        producer = cast(Any, self.producer)
        self.dead_letters = DeadLetters(producer, self.topics.dead_letters, self.metrics)
        self.profiles = Profiles(
            self.settings,
            self.topics,
            producer,
            self.metrics,
            ProfileLayout(self.encoder.id, self.encoder.log_length, self.encoder.state_size),
            writer=77,
            fail=self.failures.append,
            on_lost=self._on_lost,
            is_member=self._is_member,
        )
        for number in owned:
            self.own(number)
        self.vectors = ItemVectors(self.encoder.dim)
        for item_id, vector in zip(texts, self.encoder.encode_items(list(texts.values())), strict=True):
            self.vectors.put(item_key(item_id), vector)
        self.observer, serving = Observer(), Serving(self.encoder, self.vectors)
        self.clicks = ClickPath(
            self.profiles,
            lambda: serving,
            self.threads,
            producer,
            self.dead_letters,
            self.metrics,
            self.observer,
            self._forgot,
        )
        self.forgotten: list[tuple[int, Click]] = []
        self._offsets: dict[tuple[str, int], int] = {}

    async def _on_lost(self, *_: object) -> None:
        """Nobody asks."""

    async def _is_member(self) -> bool:
        return self.is_member

    async def _forgot(self, partition: int, forgets: Sequence[Click]) -> None:
        self.forgotten += [(partition, each) for each in forgets]

    def own(self, number: int, *, is_open: bool = True) -> Partition:
        partition = self.profiles._new_partition(number)
        partition.owned, partition.generation, partition.epoch = True, GENERATION, GENERATION
        if is_open:
            partition.gate.open()
        self.profiles.partitions[number] = partition
        return partition

    def partition(self, number: int = 0) -> Partition:
        return self.profiles.partitions[number]

    def record(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        *,
        partition: int = 0,
        offset: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
    ) -> ConsumerRecord:
        """A record as it is fetched; offsets follow each other unless one is given."""
        place = (topic, partition)
        if offset is None:
            offset = self._offsets.get(place, 0)
        self._offsets[place] = max(offset + 1, self._offsets.get(place, 0))
        at_ms = now_ms() if timestamp_ms is None else timestamp_ms
        return ConsumerRecord(topic, partition, offset, at_ms, 0, key, value, None, 0, 0, tuple(headers))

    def click(self, user: str, item: str = "", **fields: Any) -> ConsumerRecord:
        """A click's record. ``partition``, ``offset``, ``headers`` are the record's, the rest the message's."""
        place = {name: fields.pop(name) for name in ("partition", "offset", "headers") if name in fields}
        offset = place.get("offset", self._offsets.get((self.topics.clicks, place.get("partition", 0)), 0))
        message = {
            "event_id": f"event {offset}",
            "user_id": user,
            "item_id": item,
            "at_ms": now_ms() - 60_000 + offset,
            **fields,
        }
        return self.record(self.topics.clicks, user.encode(), json.dumps(message).encode(), **place)

    def batch(self, records: Sequence[ConsumerRecord], generation: int = GENERATION, **ways: Any) -> Batch:
        tp = TP(records[0].topic, records[0].partition)
        return Batch(cast(Any, self.consumer), tp, records, generation, **ways)

    async def apply(self, *records: ConsumerRecord) -> Batch:
        """Clicks of one partition, as one batch."""
        batch = self.batch(records)
        await self.clicks.handle(batch)
        return batch

    async def apply_together(self, *records: ConsumerRecord) -> list[Batch]:
        """Clicks of several partitions, as one fetch brings them."""
        fetched: dict[int, list[ConsumerRecord]] = {}
        for record in records:
            fetched.setdefault(record.partition, []).append(record)
        batches = [self.batch(each, has_siblings=len(fetched) > 1) for each in fetched.values()]
        await asyncio.gather(*map(self.clicks.handle, batches))
        return batches

    def log(self, user: str, partition: int = 0) -> list[Event]:
        columns = self.partition(partition).columns
        row = columns.rows[user.encode()]
        return columns.log(np.array([row])).events(0)

    def letters(self) -> list[tuple[str, int, str]]:
        """Of each dead letter: reason, offset, message."""
        return [
            (headers["reason"].decode(), int(headers["offset"]), headers["message"].decode())
            for record in self.producer.records(self.topics.dead_letters)
            for headers in [dict(record.headers)]
        ]

    def measured(self, name: str, **labels: str) -> float:
        """A metric's value as it is exposed."""
        for family in text_string_to_metric_families(self.metrics.exposition().decode()):
            for sample in family.samples:
                if sample.name == f"headwater_{name}" and sample.labels == labels:
                    return sample.value
        raise LookupError(f"headwater_{name} {labels} is not exposed")

    async def close(self) -> None:
        await self.profiles.stop()
        self.threads.shutdown()


def now_ms() -> int:
    return int(time.time() * 1000)


async def until(condition: Any) -> None:
    """Wait for something that the loop is about to do; the limit is for a test that is wrong."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)
