"""`headwater doctor`: looks at broker, topics, groups, lag, bundle, index and worker, and says what to do.

Each check is one function that yields findings. A check that cannot be made is a finding too.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    KafkaError,
    NotCoordinatorForGroupError,
)

from headwater.commands.terminal import NoAnswer, http_get
from headwater.encoder.bundle import BundleError
from headwater.encoder.runtime import load
from headwater.index.open import look_at
from headwater.kafka import topics
from headwater.kafka.membership import STABLE, Group, complaints, describe
from headwater.kafka.topics import Topics, TopicsError
from headwater.settings import Settings

# Raised for a moment after the broker has made the topic of the groups' offsets, or has moved a part of it.
_COORDINATOR_MOVES: Final = (
    GroupCoordinatorNotAvailableError,
    NotCoordinatorForGroupError,
    GroupLoadInProgressError,
)
_TIMEOUT_S: Final = 10.0
_LAG: Final = 10_000  # a worker commits every second, so some lag is no fault
# A worker drains for at most 5 s at a rebalance, and the broker waits for it.
_SETTLES_S: Final = 10.0
# Several commits, which come every second.
_STANDS_S: Final = 5.0
# A request waits for its click for at most 60 s.
_REQUESTS_STAND_S: Final = 65.0


class Finding(NamedTuple):
    """One line: what was checked, whether it is well, and what was seen, with the remedy if it is not."""

    what: str
    ok: bool
    seen: str

    def __str__(self) -> str:
        return f"{'ok   ' if self.ok else 'WRONG'}  {self.what}: {self.seen}"


async def examine(settings: Settings, web: str | None) -> list[Finding]:
    """All findings; `web` is the host:port of a worker, or None if none is known."""
    findings = [finding async for finding in _of_broker(settings)]
    reachable = findings[0].ok
    if reachable:
        findings += [finding async for finding in _of_groups(settings)]
    findings.append(await asyncio.to_thread(_of_bundle, settings))
    if (look := await asyncio.to_thread(look_at, settings)) is not None:
        findings.append(Finding("index", look.ok, look.seen))
    findings.append(await asyncio.to_thread(_of_worker, web))
    return findings


async def _of_broker(settings: Settings) -> AsyncIterator[Finding]:
    servers = settings.bootstrap_servers
    try:
        problems = await asyncio.wait_for(topics.check(settings), _TIMEOUT_S)
    except TopicsError as error:
        yield Finding("broker", False, " ".join(str(error).split()))
        return
    except TimeoutError:
        yield Finding(
            "broker",
            False,
            f"{servers} did not answer within {_TIMEOUT_S:g} s; is it running, and is this its address?",
        )
        return
    yield Finding("broker", True, servers)
    for problem in problems:
        yield Finding("topics" if problem.fatal else "topics (a note)", not problem.fatal, str(problem))
    if not problems:
        yield Finding(
            "topics",
            True,
            f"all there; clicks, requests and profiles have {settings.partitions} partitions each, catalog and "
            f"vectors {settings.catalog_partitions}",
        )


async def _of_groups(settings: Settings) -> AsyncIterator[Finding]:
    names = Topics.named(settings.topic_prefix)
    followed = {
        settings.interests_group: (names.clicks, names.requests),
        settings.catalog_group: (names.catalog,),
    }
    admin = AIOKafkaAdminClient(**settings.kafka_options(), request_timeout_ms=int(_TIMEOUT_S * 1000))
    consumer = AIOKafkaConsumer(**settings.kafka_options(), group_id=None)
    try:
        await asyncio.wait_for(asyncio.gather(admin.start(), consumer.start()), _TIMEOUT_S)
        existing = await consumer.topics()
        for name, group_topics in followed.items():
            if missing := [topic for topic in group_topics if topic not in existing]:
                yield Finding(f"group {name}", False, f"its topics are missing ({', '.join(missing)})")
                continue
            for finding in await _of_group(admin, consumer, name, group_topics, names.requests):
                yield finding
        if names.dead_letters in existing:
            dead = await asyncio.wait_for(_count(consumer, names.dead_letters), _TIMEOUT_S)
            seen = f"{dead:,} in {names.dead_letters}"
            yield Finding("dead letters", True, f"{seen}; their headers say why" if dead else seen)
    except (KafkaError, OSError, TimeoutError) as error:
        yield Finding(
            "groups",
            False,
            f"could not be looked at ({type(error).__name__}: {error}); does this user have the right to describe them?",
        )
    finally:
        await asyncio.gather(admin.close(), consumer.stop(), return_exceptions=True)


async def _of_group(
    admin: AIOKafkaAdminClient,
    consumer: AIOKafkaConsumer,
    name: str,
    group_topics: tuple[str, ...],
    requests: str,
) -> list[Finding]:
    what = f"group {name}"
    role = "catalog" if name.endswith("-catalog") else "interests"
    group = await _settled(admin, name)
    lags = await asyncio.wait_for(_lags(admin, consumer, name, group_topics), _TIMEOUT_S)
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
            group = await asyncio.wait_for(describe(admin, name), _TIMEOUT_S)
        except _COORDINATOR_MOVES:
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
    records: int  # published and not committed


async def _lags(
    admin: AIOKafkaAdminClient, consumer: AIOKafkaConsumer, group: str, names: Iterable[str]
) -> dict[TopicPartition, _Lag]:
    """How far a group is in every partition of its topics."""
    committed = await _committed(admin, group)
    lags = {}
    for name in names:
        places = await _places(consumer, name)
        starts, ends = await consumer.beginning_offsets(places), await consumer.end_offsets(places)
        for place in places:
            known = committed.get(place)
            done = known.offset if known is not None and known.offset >= 0 else starts[place]
            lags[place] = _Lag(done, max(ends[place] - done, 0))
    return lags


async def _standing(
    admin: AIOKafkaAdminClient,
    consumer: AIOKafkaConsumer,
    group: str,
    first: Mapping[TopicPartition, _Lag],
    requests: str,
) -> list[str]:
    """Partitions with a lag in which nothing is committed for some seconds, each as text.

    A request may wait for its click, for at most 60 s, and what came after it is not committed meanwhile. So standing
    requests are watched for longer.
    """
    started = time.monotonic()
    standing = {tp for tp, lag in first.items() if lag.records}
    names = {tp.topic for tp in standing}
    while standing:
        waited_s = time.monotonic() - started
        if waited_s > (_REQUESTS_STAND_S if all(tp.topic == requests for tp in standing) else _STANDS_S):
            break
        await asyncio.sleep(1.0)
        now = await asyncio.wait_for(_lags(admin, consumer, group, names), _TIMEOUT_S)
        standing = {tp for tp in standing if now[tp].records and now[tp].committed == first[tp].committed}
    return [f"{tp.topic} {tp.partition} (at offset {first[tp].committed})" for tp in sorted(standing)]


async def _committed(admin: AIOKafkaAdminClient, group: str) -> dict[TopicPartition, Any]:
    """Committed offsets of a group. A broker makes the topic of all offsets when first asked, and then needs a moment."""
    while True:
        try:
            found: dict[TopicPartition, Any] = await admin.list_consumer_group_offsets(group)
            return found
        except _COORDINATOR_MOVES:
            await asyncio.sleep(0.2)


async def _count(consumer: AIOKafkaConsumer, name: str) -> int:
    places = await _places(consumer, name)
    starts, ends = await consumer.beginning_offsets(places), await consumer.end_offsets(places)
    return sum(ends[place] - starts[place] for place in places)


async def _places(consumer: AIOKafkaConsumer, name: str) -> list[TopicPartition]:
    consumer.assign([TopicPartition(name, 0)])  # so that the client learns of all partitions
    while not (numbers := consumer.partitions_for_topic(name)):  # noqa: ASYNC110 - no event says so
        await asyncio.sleep(0.02)
    return [TopicPartition(name, number) for number in sorted(numbers)]


def _of_bundle(settings: Settings) -> Finding:
    try:
        bundle = load(settings.bundle_path, device=settings.device)
    except BundleError as error:
        return Finding("bundle", False, " ".join(str(error).split()))
    return Finding("bundle", True, f"{bundle.id} of {settings.bundle_path}, on {', '.join(bundle.providers)}")


def _of_worker(web: str | None) -> Finding:
    if web is None:
        return Finding(
            "worker",
            True,
            "none known on this machine (no run file, no HEADWATER_WEB_PORT), so its health was not asked for",
        )
    try:
        state = msgspec.json.decode(http_get(web, "/healthz")[1])
    except (NoAnswer, msgspec.DecodeError) as error:
        return Finding("worker", False, str(error))
    ok = bool(state.get("ok")) and bool(state.get("ready", True))
    known = ", ".join(
        f"{name} {state[name]}"
        for name in ("role", "bundle", "users", "items")
        if state.get(name) is not None
    )
    reason = state.get("reason") or ("" if state.get("ready", True) else "it is not ready yet; see its log")
    return Finding("worker", ok, f"http://{web}: {known}{f'; {reason}' if reason else ''}")
