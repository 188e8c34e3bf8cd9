"""Records of any form on every topic, against a running worker: each is accounted for, and good ones go on beside them."""

import asyncio
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.produce import ProduceRequest

from headwater.kafka import topics
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.fast_client.records import Record
from headwater.kafka.headers import ORIGIN, Origin, header
from headwater.kafka.partitioner import partition_of
from headwater.kafka.topics import Topics
from headwater.messages import (
    BadMessage,
    decode_click,
    decode_item,
    decode_offer,
    decode_request,
    decode_response,
    sender_of,
)
from headwater.settings import Settings
from tests.end_to_end import shop
from tests.end_to_end.conftest import System
from tests.end_to_end.outside import Outside
from tests.end_to_end.worker_process import WorkerProcess
from tests.faults.raw_records import Fuzz, RawRecord, batch_of
from tests.faults.scale import IS_FULL, SCALE, TIMEOUT_S
from tests.support.kafka_server import KafkaNode

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S)]

_SEED: Final = int(os.environ.get("FUZZ_SEED", time.time_ns() % 10**9))
# A request may wait for a click that never comes until its deadline, and its batch with it.
_LONGEST_MS: Final = 60_000 if IS_FULL else 2_000
_SETTLED_S: Final = 180.0
# Of a message that is valid by itself: what only a worker can know.
_BY_CIRCUMSTANCE: Final = {
    "misrouted",
    "too_large",
    "time_in_future",
    "no_text",
    "bad_vector",
    "key_collision",
    "bad_origin",
    "newer_format",
}
_REQUEST_ID: Final = re.compile(rb'\{"request_id": "([^"\\]+)"')
Place = tuple[str, int, int]


@pytest.fixture
def broker(node: KafkaNode) -> str:
    return node.servers


class Fuzzed:
    """The topics under fuzz: writes to them, damages them, and reads what became of each record."""

    def __init__(self, settings: Settings, node: KafkaNode, fuzz: Fuzz) -> None:
        self.settings, self.node, self.fuzz = settings, node, fuzz
        self.topics = Topics.named(settings.topic_prefix)
        self.counts: Counter[str] = Counter()
        self.unreadable: set[Place] = set()  # what nobody can read, as far as it was made so
        self.is_owned = False  # workers have claimed the partitions
        self._seen: dict[str, list[Record]] = {}

    async def __aenter__(self) -> "Fuzzed":
        options = self.settings.kafka_options()
        self._client = AIOKafkaClient(**options)
        await self._client.bootstrap()
        watched = (
            self.topics.clicks,
            self.topics.requests,
            self.topics.catalog,
            self.topics.offers,
            self.topics.dead_letters,
            self.topics.responses,
            *self.settings.reply_topics[:1],
        )
        self._consumer = Consumer(
            *watched, **options, auto_offset_reset="earliest", isolation_level="read_committed"
        )
        await self._consumer.start()
        await self._consumer.seek_to_beginning()
        # Of the whole log: the end for those who read committed stands still where a transaction's end is not written yet.
        self._ends = Consumer(**options)
        await self._ends.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._ends.stop()
        await self._consumer.stop()
        await self._client.close()

    async def write(
        self, topic: str, partition: int, records: Sequence[RawRecord], codec: int, at_ms: int
    ) -> int | None:
        """Write a batch as it is; its first offset, or None where the broker refuses it."""
        return await self.write_raw(topic, partition, batch_of(records, at_ms, codec), len(records))

    async def write_raw(self, topic: str, partition: int, raw: bytes, count: int) -> int | None:
        await self._client._wait_on_metadata(topic)
        leader = self._client.cluster.leader_for_partition(TopicPartition(topic, partition))
        request = ProduceRequest(
            transactional_id=None, required_acks=-1, timeout=30_000, topics=[(topic, [(partition, raw)])]
        )
        try:
            response = await self._client.send(leader, request)
        except KafkaError as error:
            self.counts[f"refused: {type(error).__name__}"] += count
            return None
        [(_, [(_, code, base, *_)])] = response.topics
        if code:
            self.counts[f"refused: {for_code(code).__name__}"] += count
            return None
        self.counts[f"written to {topic.removeprefix(self.settings.topic_prefix)}"] += count
        return int(base)

    async def round(self) -> None:
        """Some batches for each topic."""
        fuzz, names = self.fuzz, self.topics
        ours: list[tuple[str, Callable[[], RawRecord], int]] = [
            (names.clicks, fuzz.click, self.settings.partitions),
            (names.requests, fuzz.request, self.settings.partitions),
            (names.catalog, fuzz.change, self.settings.catalog_partitions),
            (names.offers, fuzz.offer, self.settings.catalog_partitions),
        ]
        for topic, make, partitions in ours * 4:
            records = [make() for _ in range(fuzz.random.choice((1, 3, 30)))]
            if fuzz.random.random() < 0.25:
                await self._transact(topic, records, fuzz.random.random() < 0.5)
                continue
            by_partition: dict[int, list[RawRecord]] = {}
            for record in records:
                home = partition_of(record.key, partitions) if record.key else 0
                away = fuzz.random.random() < 0.1
                by_partition.setdefault(fuzz.random.randrange(partitions) if away else home, []).append(
                    record
                )
            for partition, some in by_partition.items():
                await self.write(topic, partition, some, fuzz.codec(), fuzz.at_ms())
        if fuzz.random.random() < 0.3:
            topic, _, partitions = fuzz.random.choice(ours)
            record, codec = fuzz.bomb()
            partition = fuzz.random.randrange(partitions)
            base = await self.write(topic, partition, [record], codec, int(time.time() * 1000))
            if base is not None:
                self.counts["bombs"] += 1
                self.unreadable.add((topic, partition, base))
        for topic in (names.profiles, names.vectors, names.trends, names.dead_letters, names.responses):
            own = {names.profiles: fuzz.state, names.vectors: fuzz.vector, names.trends: fuzz.trend}.get(
                topic
            )
            records = [fuzz.anything() for _ in range(3)]
            # Before an owner has said so, nobody can tell what is of another system from what was restored.
            if own is not None and self.is_owned:
                records += [own() for _ in range(3)]
            await self.write(topic, 0, records, fuzz.codec(), fuzz.at_ms())

    async def _transact(self, topic: str, records: Sequence[RawRecord], commits: bool) -> None:
        """The records in a transaction, by aiokafka, as far as it can write them."""
        producer = AIOKafkaProducer(
            **self.settings.kafka_options(), transactional_id=f"fuzz-{self.fuzz.random.randrange(10**9)}"
        )
        await producer.start()
        try:
            await producer.begin_transaction()
            for record in records:
                if record.key is None and record.value is None:
                    continue
                headers = [(name.decode(errors="replace"), value) for name, value in record.headers]
                await producer.send(topic, record.value, record.key, headers=headers)
            await (producer.commit_transaction() if commits else producer.abort_transaction())
            self.counts["committed transactions" if commits else "aborted transactions"] += 1
        except KafkaError as error:
            self.counts[f"refused: {type(error).__name__}"] += len(records)
        finally:
            await producer.stop()

    async def damage(self) -> None:
        """Write batches, and change a byte of theirs on the broker's disk. No worker may run yet."""
        for topic, make in ((self.topics.clicks, self.fuzz.click), (self.topics.catalog, self.fuzz.change)):
            for partition in (0, 1):
                records = [make() for _ in range(3)]
                base = await self.write(topic, partition, records, 0, int(time.time() * 1000))
                if base is None:
                    continue
                [log] = self.node.home.glob(f"**/{topic}-{partition}/{0:020}.log")
                with log.open("r+b") as file:
                    raw, at = file.read(), 0
                    while int.from_bytes(raw[at : at + 8], "big") != base:
                        at += 12 + int.from_bytes(raw[at + 8 : at + 12], "big")
                    file.seek(at + 80)
                    file.write(bytes([raw[at + 80] ^ 0xFF]))
                self.unreadable |= {(topic, partition, base + n) for n in range(3)}
                self.counts["damaged batches"] += 1

    async def settle(self, worker: WorkerProcess) -> None:
        """Wait until every group has committed all that there is: 0 exits, 0 hangs."""
        settings, deadline = self.settings, time.monotonic() + _SETTLED_S
        wanted = (
            (settings.interests_group, self.topics.clicks),
            (settings.interests_group, self.topics.requests),
            (settings.catalog_group, self.topics.catalog),
            (settings.catalog_group, self.topics.offers),
        )
        admin = AIOKafkaAdminClient(**settings.kafka_options())
        await admin.start()
        try:
            while True:
                worker.check_alive()
                behind = []
                for group, topic in wanted:
                    tps = [tp for tp in self._consumer.assignment() if tp.topic == topic]
                    # In this order: what a record was forwarded to is in the log before the record is committed.
                    committed = await admin.list_consumer_group_offsets(group)
                    ends = await self._ends.end_offsets(tps)
                    for tp, end in ends.items():
                        at = committed[tp].offset if tp in committed else 0
                        if at < end:
                            behind.append((topic, tp.partition, at, end))
                if not behind:
                    return
                assert time.monotonic() < deadline, (
                    f"seed {_SEED}: nothing moves at {behind}\n{worker.last_words()}"
                )
                await asyncio.sleep(0.2)
        finally:
            await admin.close()

    async def read(self) -> None:
        """Read everything that has come since."""
        ends = await self._consumer.end_offsets(list(self._consumer.assignment()))
        while any([await self._consumer.position(tp) < end for tp, end in ends.items()]):
            for tp, records in (await self._consumer.getmany(timeout_ms=200)).items():
                self._seen.setdefault(tp.topic, []).extend(records)

    def account(self) -> None:
        """Each record that was read is in one place: applied, answered, forwarded or among the dead letters."""
        seen, names = self._seen, self.topics
        letters: dict[Place, list[str]] = {}
        for record in seen.get(names.dead_letters, ()):
            for place in _places(record):
                letters.setdefault(place, []).append(_text(record, "reason"))
        forwarded = {
            (topic, origin.partition, origin.offset)
            for topic in (names.clicks, names.requests)
            for record in seen.get(topic, ())
            if isinstance(origin := ORIGIN.of(record.headers), Origin)
        }
        answers: set[str] = set()
        for topic in (names.responses, *self.settings.reply_topics):
            for record in seen.get(topic, ()):
                try:
                    answers.add(decode_response(record.value).request_id)
                except BadMessage:
                    continue  # the fuzzer's own
        wrong: list[tuple[str, Record, list[str]]] = []
        for topic in (names.clicks, names.requests, names.catalog, names.offers):
            for record in seen.get(topic, ()):
                place = (topic, record.partition, record.offset)
                if place in self.unreadable:
                    continue  # read here before it was damaged
                fate = self._fate(record, letters.get(place, []), place in forwarded, answers)
                if fate.startswith("not"):
                    wrong.append((fate, record, letters.get(place, [])))
                self.counts[fate] += 1
        told = "\n".join(f"{fate}, {reasons}: {record!r:.1500}" for fate, record, reasons in wrong[:10])
        assert not wrong, f"seed {_SEED}: {len(wrong)} records\n{told}"
        untold = self.unreadable - letters.keys()
        assert not untold, f"seed {_SEED}: {sorted(untold)} without a dead letter"
        self.counts["unreadable, told"] = len(self.unreadable)
        for topic in (names.clicks, names.catalog, names.offers, names.requests):
            seen.pop(topic, None)

    def _fate(self, record: Record, letters: list[str], is_forwarded: bool, answers: set[str]) -> str:
        """What became of a record, "not ..." where that is not as it should be."""
        names, topic = self.topics, record.topic
        is_valid = _is_valid(record, names)
        if topic == names.requests:
            sender = sender_of(record.value)
            # A worker reads what is nested a little deeper than this test can, from below so many frames of its own.
            named = _REQUEST_ID.match(record.value or b"")
            if (sender is not None and sender[0] in answers) or (
                named and named[1].decode(errors="replace") in answers
            ):
                return "not one fate" if letters else "answered"
            return _fate_of_letters(letters, not is_valid) if letters else "not answered"
        if letters:
            return _fate_of_letters(letters, not is_valid)
        if not is_valid:
            return "not dead-lettered"
        if is_forwarded:
            return "forwarded"
        return "applied"


def _fate_of_letters(letters: Sequence[str], is_expected: bool) -> str:
    if len(set(letters)) > 1:
        return "not one reason"
    if not is_expected and letters[0] not in _BY_CIRCUMSTANCE:
        return "not for a reason"
    return f"dead letter: {letters[0]}"


def _is_valid(record: Record, names: Topics) -> bool:
    try:
        if record.topic == names.clicks:
            decode_click(record.key, record.value, 2**62)
        elif record.topic == names.requests:
            decode_request(record.key, record.value, 2**62)
        elif record.value is not None and record.topic == names.offers:
            decode_offer(record.key, record.value, 2**62)
        elif record.value is not None:
            decode_item(record.key, record.value)
        else:
            return bool(record.key) and len(record.key or b"") <= 512 and bool((record.key or b"").decode())
    except (BadMessage, UnicodeDecodeError):
        return False
    return True


def _text(record: Record, name: str) -> str:
    found = header(record.headers, name)
    return (found[1] or b"").decode(errors="replace") if found else ""


def _places(letter: Record) -> list[Place]:
    topic, partition, first = (_text(letter, name) for name in ("topic", "partition", "offset"))
    last = _text(letter, "last_offset") or first
    if not (topic and partition.isdecimal() and first.isdecimal() and last.isdecimal()):
        return []  # the fuzzer's own
    return [
        (topic, int(partition), offset)
        for offset in range(int(first), min(int(last), int(first) + 10_000) + 1)
    ]


async def _create_topics(settings: Settings) -> None:
    """The topics, but with the senders' own times, however odd, where a worker would have those of the broker."""
    names = Topics.named(settings.topic_prefix)
    anytime = {
        "message.timestamp.type": "CreateTime",
        "message.timestamp.before.max.ms": str(2**63 - 1),
        "message.timestamp.after.max.ms": str(2**63 - 1),
    }
    admin = AIOKafkaAdminClient(**settings.kafka_options())
    await admin.start()
    try:
        await admin.create_topics(
            [
                NewTopic(
                    spec.name,
                    spec.partitions,
                    1,
                    topic_configs={**spec.config, **anytime, "retention.ms": "-1"},
                )
                for spec in topics.specs(settings)
                if spec.name in (names.clicks, names.requests, names.catalog, names.offers)
            ]
            + [NewTopic(settings.reply_topics[0], 1, 1)]
        )
    finally:
        await admin.close()
    await topics.create(settings)


async def test_whatever_lies_on_the_topics_is_accounted_for_and_the_worker_goes_on(
    settings: Settings, node: KafkaNode, new_worker: Callable[..., WorkerProcess]
) -> None:
    print(f"FUZZ_SEED={_SEED}")
    replies = (f"{settings.topic_prefix}elsewhere", f"{settings.topic_prefix}missing")
    settings = settings.model_copy(update={"reply_topics": replies, "kafka_bootstrap_servers": node.servers})
    await _create_topics(settings)
    worker = new_worker(reply_topics=",".join(replies), kafka_bootstrap_servers=node.servers)
    items = [item["item_id"] for item in shop.items()]
    async with Fuzzed(settings, node, Fuzz(_SEED, items, replies, _LONGEST_MS)) as fuzzed:
        await fuzzed.damage()
        await fuzzed.round()
        await asyncio.to_thread(worker.start)
        fuzzed.is_owned = True
        until_s = time.monotonic() + SCALE.fuzz_s
        rounds, most_mib, report = 0, 0.0, dict[str, int]()
        while True:
            for _ in range(5):
                await fuzzed.round()
            await fuzzed.settle(worker)
            await fuzzed.read()
            fuzzed.account()
            rounds += 5
            most_mib = max(most_mib, worker.memory_mib())
            report = dict(sorted(fuzzed.counts.items()))
            print(f"FUZZ_SEED={_SEED} rounds={rounds} most_mib={most_mib:.0f} {report}", flush=True)
            if time.monotonic() > until_s:
                break
        # What lies on the workers' own topics is read at a start, most of it.
        assert await asyncio.to_thread(worker.stop) == 0
        await asyncio.to_thread(worker.start)
        # A conversation of its own, on the usual topics: it waits for each that it watches, and one is missing.
        async with System(settings.model_copy(update={"reply_topics": ()}), worker).outside() as outside:
            await _serves(outside)
        worker.check_alive()
        assert sum(count for fate, count in report.items() if fate.startswith("dead letter")) > 10
        assert report["applied"] > 10
        assert report["answered"] > 10


async def _serves(outside: Outside) -> None:
    """A good click counts, and a good request is answered with it."""
    await outside.put_and_wait(outside.own("coffee"), title="coffee")
    user = outside.own("good")
    place = await outside.click(user, outside.own("coffee"))
    answer = await outside.ask(user, after=place)
    assert answer["status"] in ("ok", "degraded"), answer
    assert answer["reflects"]["events"] == 1, answer
