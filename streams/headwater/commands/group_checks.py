"""What `headwater doctor` sees of the consumer groups: members, lag, partitions in which nothing moves, dead letters."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, Final, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from headwater.commands.findings import TIMEOUT_S, Finding, System
from headwater.kafka import letters
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.membership import COORDINATOR_MOVES, STABLE, Group, complaints, describe
from headwater.kafka.read_to_end import read_to_end

_LAG: Final = 10_000  # a worker commits every second, so some lag is no fault
# A worker drains for at most 5 s at a rebalance, and the broker waits for it.
_SETTLES_S: Final = 10.0
# Several commits, which come every second.
_STANDS_S: Final = 5.0
# A request waits for its click for at most 60 s, and what came after it is not committed meanwhile. The rest is for
# clocks that differ.
_REQUEST_WAITS_S: Final = 65.0
_READ_S: Final = 3.0
# Dead letters that are looked at for their reasons: a few MB, mostly.
_NEWEST: Final = 5_000
_REASONS_TOLD: Final = 3


def interests(system: System) -> AsyncIterator[Finding]:
    """The group of clicks and requests."""
    topics = (system.topics.clicks, system.topics.requests)
    return _of_group(system, system.settings.interests_group, topics)


def catalog(system: System) -> AsyncIterator[Finding]:
    """The group of the catalog and its offers."""
    topics = (system.topics.catalog, system.topics.offers)
    return _of_group(system, system.settings.catalog_group, topics)


async def dead_letters(system: System) -> AsyncIterator[Finding]:
    """How many dead letters there are, and the reasons that the newest of them have most often."""
    name = system.topics.dead_letters
    async with system.consumer() as consumer:
        if name not in await consumer.topics():
            return
        async with asyncio.timeout(TIMEOUT_S):
            dead = await _count(consumer, name)
        if not dead:
            yield Finding("dead letters", True, f"none in {name}")
            return
        newest = await _newest_letters(consumer, TopicPartition(name, letters.PARTITION))
    seen = f"at most {dead:,} in {name}"  # marks and tombstones are among them
    if waiting := newest.open():
        of = letters.reasons(waiting).most_common(_REASONS_TOLD)
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in of)
        seen = f"{seen}; the newest are {reasons}: `headwater dlq list` has the remedies"
    yield Finding("dead letters", True, seen)


async def _newest_letters(consumer: Consumer, tp: TopicPartition) -> letters.Letters:
    """The newest letters, as far as they are read in a few seconds."""
    found = letters.Letters()
    start, end = (await consumer.beginning_offsets([tp]))[tp], (await consumer.end_offsets([tp]))[tp]
    consumer.assign([tp])
    consumer.seek(tp, max(start, end - _NEWEST))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_READ_S):
            async for run in read_to_end(consumer, [tp], {tp: end}, max_records=500):
                for record in run.records:
                    found.add(record)
    return found


async def transactions(system: System) -> AsyncIterator[Finding]:
    """Partitions that an open transaction holds back: nobody is given what was published behind it."""
    written = Consumer(**system.settings.kafka_options(), group_id=None)
    names = (
        system.topics.clicks,
        system.topics.requests,
        system.topics.catalog,
        system.topics.offers,
    )
    async with system.consumer() as committed:
        async with asyncio.timeout(TIMEOUT_S):
            await written.start()
        try:
            present = sorted(set(names) & await committed.topics())
            places = [place for name in present for place in await places_of(committed, name)]
            last = await written.end_offsets(places)
            first = {tp: end for tp, end in (await committed.end_offsets(places)).items() if end < last[tp]}
            if first:
                await asyncio.sleep(_STANDS_S)
            for tp, end in (await committed.end_offsets(list(first)) if first else {}).items():
                if end == first[tp]:
                    seen = (
                        f"an open transaction holds back {tp.topic} {tp.partition} from offset {end} on "
                        f"({last[tp] - end:,} published behind it); stop its publisher, or wait until Kafka aborts it "
                        "(the publisher's transaction.timeout.ms)"
                    )
                    yield Finding("transactions", False, seen)
        finally:
            await written.stop()


async def _of_group(system: System, name: str, topics: tuple[str, ...]) -> AsyncIterator[Finding]:
    async with system.admin() as admin, system.consumer() as consumer:
        existing = await consumer.topics()
        if missing := [topic for topic in topics if topic not in existing]:
            yield Finding(f"group {name}", False, f"its topics are missing ({', '.join(missing)})")
            return
        for finding in await _of_present_group(admin, consumer, name, topics, system.topics.requests):
            yield finding


async def _of_present_group(
    admin: AIOKafkaAdminClient,
    consumer: AIOKafkaConsumer,
    name: str,
    group_topics: tuple[str, ...],
    requests: str,
) -> list[Finding]:
    what = f"group {name}"
    role = "catalog" if name.endswith("-catalog") else "interests"
    group = await _settled(admin, name)
    async with asyncio.timeout(TIMEOUT_S):
        lags = await _lags(admin, consumer, name, group_topics)
    behind = {
        topic: sum(lag.records for tp, lag in lags.items() if tp.topic == topic) for topic in group_topics
    }
    lag = ", ".join(f"{count:,} behind on {topic}" for topic, count in behind.items())
    if group is not None and not group.members:
        remedy = f"no worker; start one: `headwater worker --role {role}` (or `headwater up`)"
        return [Finding(what, False, f"{remedy}; {lag}")]
    if group is None:
        workers = "workers unknown"
    else:
        foreign = set(group.foreign())
        count = sum(member not in foreign for member in group.members)
        workers = "1 worker" if count == 1 else f"{count} workers"
        if group.state != STABLE:
            seen = (
                f"rebalancing for more than {_SETTLES_S:g} s ({group.state}, {workers}); stop the consumer that joins it, "
                f"or restart the workers; {lag}"
            )
            return [Finding(what, False, seen)]
        counts = Counter(tp.topic for tp in lags)
        if found := complaints(group, counts):
            return [Finding(what, False, f"{complaint}; {lag}") for complaint in found]
    if gone := [f"{tp.topic} {tp.partition} ({lag.gone:,})" for tp, lag in sorted(lags.items()) if lag.gone]:
        seen = (
            f"{workers}, but records were deleted before they were read: {', '.join(gone)}; raise retention.ms of the topic, "
            f"or look why the workers are behind; {lag}"
        )
        return [Finding(what, False, seen)]
    if standing := await _standing(admin, consumer, name, lags, requests):
        seen = f"{workers}, but nothing moves on {', '.join(standing)}; look at the workers' logs and /healthz; {lag}"
        return [Finding(what, False, seen)]
    if any(count > _LAG for count in behind.values()):
        remedy = "add workers, up to the number of partitions, or look at their logs"
        return [Finding(what, False, f"{workers}, {lag}; {remedy}")]
    return [Finding(what, True, f"{workers}, {lag}")]


async def _settled(admin: AIOKafkaAdminClient, name: str) -> Group | None:
    """The group once it is not rebalancing, or as it still is after a while; None if the broker does not describe it."""
    deadline = time.monotonic() + _SETTLES_S
    while True:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                group = await describe(admin, name)
        except COORDINATOR_MOVES:
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(0.2)
            continue
        except (KafkaError, ValueError, AttributeError):
            return None
        if group is None or group.state in (STABLE, "Empty", "Dead") or time.monotonic() > deadline:
            return group
        await asyncio.sleep(0.5)


class _Lag(NamedTuple):
    committed: int
    records: int  # published and not committed, among those that may be read
    gone: int = 0  # deleted and not committed


async def _lags(
    admin: AIOKafkaAdminClient, consumer: AIOKafkaConsumer, group: str, names: Iterable[str]
) -> dict[TopicPartition, _Lag]:
    """How far a group is in every partition of its topics."""
    committed = await _committed(admin, group)
    lags = {}
    for name in names:
        places = await places_of(consumer, name)
        starts, ends = await consumer.beginning_offsets(places), await consumer.end_offsets(places)
        for place in places:
            known = committed.get(place)
            done = known.offset if known is not None and known.offset >= 0 else starts[place]
            lags[place] = _Lag(done, max(ends[place] - done, 0), max(starts[place] - done, 0))
    return lags


async def _standing(
    admin: AIOKafkaAdminClient,
    consumer: AIOKafkaConsumer,
    group: str,
    first: Mapping[TopicPartition, _Lag],
    requests: str,
) -> list[str]:
    """Partitions with a record to read in which nothing is committed for some seconds, each as text.

    A request may wait for its click, so a partition of requests stands only once the record at its committed offset is
    older than any request may wait.
    """
    deadline = time.monotonic() + _STANDS_S
    standing = {tp for tp, lag in first.items() if lag.records}
    names = {tp.topic for tp in standing}
    while standing and time.monotonic() < deadline:
        await asyncio.sleep(1.0)
        async with asyncio.timeout(TIMEOUT_S):
            now = await _lags(admin, consumer, group, names)
        standing = {tp for tp in standing if now[tp].records and now[tp].committed == first[tp].committed}
    told = []
    for tp in sorted(standing):
        age_s = await _age_s(consumer, tp, first[tp].committed)
        if age_s is not None and (tp.topic != requests or age_s > _REQUEST_WAITS_S):
            told.append(f"{tp.topic} {tp.partition} (at offset {first[tp].committed})")
    return told


async def _age_s(consumer: AIOKafkaConsumer, tp: TopicPartition, offset: int) -> float | None:
    """Seconds since the first record from ``offset`` on; None where there is none, as behind the end of a transaction."""
    consumer.assign([tp])
    consumer.seek(tp, offset)
    try:
        async with asyncio.timeout(_READ_S):
            record = await consumer.getone()
    except TimeoutError:
        return None
    return time.time() - float(record.timestamp) / 1000


async def _committed(admin: AIOKafkaAdminClient, group: str) -> dict[TopicPartition, Any]:
    """Committed offsets of a group. A broker makes the topic of all offsets when first asked, and then needs a moment."""
    while True:
        try:
            found: dict[TopicPartition, Any] = await admin.list_consumer_group_offsets(group)
            return found
        except COORDINATOR_MOVES:
            await asyncio.sleep(0.2)


async def _count(consumer: AIOKafkaConsumer, name: str) -> int:
    places = await places_of(consumer, name)
    starts, ends = await consumer.beginning_offsets(places), await consumer.end_offsets(places)
    return sum(ends[place] - starts[place] for place in places)


async def places_of(consumer: AIOKafkaConsumer, name: str) -> list[TopicPartition]:
    """The partitions of a topic, in order. Raises KafkaError, TimeoutError."""
    consumer.assign([TopicPartition(name, 0)])  # so that the client learns of all partitions
    while not (numbers := consumer.partitions_for_topic(name)):  # noqa: ASYNC110 - no event says so
        await asyncio.sleep(0.02)
    return [TopicPartition(name, number) for number in sorted(numbers)]
