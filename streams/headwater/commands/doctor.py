"""`headwater doctor`: looks at broker, topics, groups, lag, bundle, index and worker; says what to do.

Each look is one function that yields findings; a look that cannot be taken is a finding too.
"""

import asyncio
from collections.abc import AsyncIterator
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
from headwater.kafka.topics import Topics, TopicsError
from headwater.settings import Settings

_TIMEOUT_S: Final = 10.0
# A worker commits every second or so: what it has just read is not yet behind.
_LAG: Final = 10_000


class Finding(NamedTuple):
    """One line: what was looked at, whether it is well, and what was seen (with the remedy where it is not)."""

    what: str
    ok: bool
    seen: str

    def __str__(self) -> str:
        return f"{'ok   ' if self.ok else 'WRONG'}  {self.what}: {self.seen}"


async def examine(settings: Settings, web: str | None) -> list[Finding]:
    """Everything there is to say; `web` is the host:port of a worker, where one is known."""
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
        for group, group_topics in followed.items():
            if missing := [name for name in group_topics if name not in existing]:
                yield Finding(f"group {group}", False, f"its topics are missing ({', '.join(missing)})")
                continue
            behind = await asyncio.wait_for(_behind(admin, consumer, group, group_topics), _TIMEOUT_S)
            members = await asyncio.wait_for(_members(admin, group), _TIMEOUT_S)
            yield _of_group(group, behind, members)
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


def _of_group(group: str, behind: dict[str, int], members: int | None) -> Finding:
    role = "catalog" if group.endswith("-catalog") else "interests"
    lag = ", ".join(f"{count:,} behind on {topic}" for topic, count in behind.items())
    if members == 0:
        remedy = f"no worker; start one: `headwater worker --role {role}` (or `headwater up`)"
        return Finding(f"group {group}", False, f"{remedy}; {lag}")
    who = "workers unknown" if members is None else "1 worker" if members == 1 else f"{members} workers"
    if any(count > _LAG for count in behind.values()):
        return Finding(
            f"group {group}",
            False,
            f"{who}, {lag}; add workers, up to the number of partitions, or look at their logs",
        )
    return Finding(f"group {group}", True, f"{who}, {lag}")


async def _behind(
    admin: AIOKafkaAdminClient, consumer: AIOKafkaConsumer, group: str, names: tuple[str, ...]
) -> dict[str, int]:
    """Published and not yet committed, by topic."""
    committed = await _committed(admin, group)
    behind = {}
    for name in names:
        places = await _places(consumer, name)
        starts, ends = await consumer.beginning_offsets(places), await consumer.end_offsets(places)
        done = {
            place: committed[place].offset
            if place in committed and committed[place].offset >= 0
            else starts[place]
            for place in places
        }
        behind[name] = sum(max(ends[place] - done[place], 0) for place in places)
    return behind


async def _committed(admin: AIOKafkaAdminClient, group: str) -> dict[TopicPartition, Any]:
    """A broker that never had a group makes the topic of their offsets when it is first asked, and then needs a moment."""
    while True:
        try:
            found: dict[TopicPartition, Any] = await admin.list_consumer_group_offsets(group)
            return found
        except (GroupCoordinatorNotAvailableError, NotCoordinatorForGroupError, GroupLoadInProgressError):
            await asyncio.sleep(0.2)


async def _count(consumer: AIOKafkaConsumer, name: str) -> int:
    places = await _places(consumer, name)
    starts, ends = await consumer.beginning_offsets(places), await consumer.end_offsets(places)
    return sum(ends[place] - starts[place] for place in places)


async def _places(consumer: AIOKafkaConsumer, name: str) -> list[TopicPartition]:
    consumer.assign([TopicPartition(name, 0)])  # makes the client learn of all partitions
    while not (numbers := consumer.partitions_for_topic(name)):  # noqa: ASYNC110 - no event says so
        await asyncio.sleep(0.02)
    return [TopicPartition(name, number) for number in sorted(numbers)]


async def _members(admin: AIOKafkaAdminClient, group: str) -> int | None:
    """Workers in a group; none where the broker does not say."""
    try:
        responses: list[Any] = await admin.describe_consumer_groups([group])
    except (KafkaError, ValueError, AttributeError):
        return None
    for response in responses:
        for _code, name, _state, _kind, _protocol, members, *_rest in response.groups:
            if name == group:
                return len(members)
    return None


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
