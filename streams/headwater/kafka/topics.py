"""The topics: names, partition counts and policies. `create` makes what is missing, `check` says what is wrong.

Nothing relies on a broker that creates topics by itself. Such a topic has the broker's partition count, so that a
click and a request of one user would be handled by different workers.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from headwater.errors import HeadwaterError, Unreachable
from headwater.kafka.unreachable import why_unreachable
from headwater.settings import Settings

_MINUTE_MS = 60_000
_DAY_MS = 24 * 60 * _MINUTE_MS

# Requests and answers live seconds; half an hour lets a person look at them. Segments roll at the same pace,
# since only closed segments are deleted.
_SHORT_MS = 30 * _MINUTE_MS
# The tombstone of a forgotten user carries the time of the forget, by which late events of that user are dropped. It
# has to outlive the clicks that may still be replayed, and a worker's longest absence.
_TOMBSTONE_MS = 7 * _DAY_MS
_DEAD_LETTERS_MS = 28 * _DAY_MS
_RECEIPTS_MS = 365 * _DAY_MS
# What is erased is still in the log behind its tombstone until the log is compacted. Kafka sets no bound by itself.
COMPACTION_LAG_MS = _DAY_MS
# A dead letter keeps up to 2 MB of the original, plus headers.
_DEAD_LETTER_BYTES = 2_200_000
# Only closed segments are compacted: with Kafka's 1 GiB, a worker would read that much of old states at each start.
_CHANGELOG_SEGMENT_BYTES = 100 * 1024 * 1024
_READY_S = 30
# These change costs, not results. `check` leaves them to the operator.
_NOT_CHECKED = ("segment.ms", "segment.bytes")
_MORE_IS_AS_GOOD = (
    "retention.ms", "retention.bytes", "delete.retention.ms", "max.message.bytes", "min.compaction.lag.ms",
)  # fmt: skip
# What a broker does if it is told nothing. Older brokers and those of others leave such values out.
_DEFAULTS = {
    "min.insync.replicas": "1",
    "unclean.leader.election.enable": "false",
    "retention.bytes": "-1",
    "segment.ms": str(7 * _DAY_MS),
}
# Checked and not set, since some brokers take no topic that names it.
_CHECKED_ONLY = {"unclean.leader.election.enable": "false"}


@dataclass(frozen=True)
class Topics:
    """Full names under a prefix."""

    clicks: str
    catalog: str
    offers: str
    requests: str
    responses: str
    profiles: str
    vectors: str
    trends: str
    interests: str
    dead_letters: str
    erasures: str

    @classmethod
    def named(cls, prefix: str) -> "Topics":
        """The names of all topics under a prefix, such as ``headwater.``."""
        return cls(**{field.name: f"{prefix}{field.name.replace('_', '-')}.v1" for field in fields(cls)})


class Spec(NamedTuple):
    """One topic as it has to be."""

    name: str
    partitions: int
    config: dict[str, str]
    setting: str = ""  # the one that gives the count, if any
    family: tuple[str, ...] = ()  # topics that need the same count; with none, any count works


class Problem(NamedTuple):
    """Something `check` found. `fatal`: a worker would give wrong answers, so it does not start."""

    topic: str
    found: str
    expected: str
    remedy: str
    fatal: bool

    def __str__(self) -> str:
        return f"{self.topic}: {self.found}, expected {self.expected}. {self.remedy}"


class TopicsError(HeadwaterError):
    """The broker cannot be reached, or refused. The message says what to do."""


class NoBroker(TopicsError, Unreachable):
    """No broker let us in."""


def tombstone_ms(settings: Settings) -> int:
    """How long tombstones of users and items are kept: longer than the clicks, and a worker's longest absence."""
    return max(_TOMBSTONE_MS, int(settings.clicks_retention_days * _DAY_MS))


def specs(settings: Settings) -> list[Spec]:
    """The whole table, for these settings."""
    topics = Topics.named(settings.topic_prefix)
    clicks_ms = int(settings.clicks_retention_days * _DAY_MS)
    short = _deleted_after(_SHORT_MS)
    # No sender's clock decides a deadline, or dates an event, an item or a trend into the future: the broker's time
    # bounds them. (`message.timestamp.after.max.ms` would do so for a sender's own time, from Kafka 3.6 on.)
    by_broker = {"message.timestamp.type": "LogAppendTime"}
    compact = {"cleanup.policy": "compact"}
    kept_tombstones = {**compact, "delete.retention.ms": str(tombstone_ms(settings))}
    # Each letter has a key of its own, so that the letters of an erased user can be taken out. A letter without a value
    # is a tombstone too, hence the long retention of those.
    dead = {
        **_replaced_and_deleted_after(_DEAD_LETTERS_MS),
        "delete.retention.ms": str(_DEAD_LETTERS_MS),
        "max.message.bytes": str(_DEAD_LETTER_BYTES),
    }
    changelog = {**kept_tombstones, "segment.bytes": str(_CHANGELOG_SEGMENT_BYTES)}
    soon = {"max.compaction.lag.ms": str(COMPACTION_LAG_MS)}
    users, items = settings.partitions, settings.catalog_partitions
    of_users, of_items = "HEADWATER_PARTITIONS", "HEADWATER_CATALOG_PARTITIONS"
    by_user = (topics.clicks, topics.requests, topics.profiles)
    by_item = (topics.catalog, topics.offers, topics.vectors)
    # An offer states some fields, so one that compaction takes before it is read is a loss: those of a worker's longest
    # absence stay.
    kept_whole = {**kept_tombstones, "min.compaction.lag.ms": str(tombstone_ms(settings))}
    return [
        Spec(topics.clicks, users, {**_deleted_after(clicks_ms), **by_broker}, of_users, by_user),
        Spec(topics.requests, users, {**short, **by_broker}, of_users, by_user),
        Spec(topics.profiles, users, {**changelog, **soon}, of_users, by_user),
        Spec(topics.responses, users, short, of_users),
        Spec(topics.interests, users, {**compact, **soon}, of_users),
        Spec(topics.catalog, items, {**kept_tombstones, **by_broker}, of_items, by_item),
        Spec(topics.offers, items, {**kept_whole, **by_broker}, of_items, by_item),
        Spec(topics.vectors, items, changelog, of_items, by_item),
        # One record for each clicks partition, all of them read by every worker.
        Spec(topics.trends, 1, {**compact, **by_broker, "segment.ms": str(60 * _MINUTE_MS)}),
        Spec(topics.dead_letters, 1, dead),
        Spec(topics.erasures, 1, _replaced_and_deleted_after(_RECEIPTS_MS)),
    ]


async def reach(settings: Settings) -> None:
    """Return once a broker has let us in. Raises NoBroker, with the reason."""
    async with _admin(settings):
        pass


async def create(settings: Settings) -> list[str]:
    """Creates the topics that are missing and returns their names; may be called by several at once.

    They are ready for use when it returns. Raises TopicsError. Existing topics are left as they are: see `check`.
    """
    async with _admin(settings) as admin:
        existing = set(await admin.list_topics())
        missing = [spec for spec in specs(settings) if spec.name not in existing]
        if not missing:
            return []
        created = []
        copies = settings.replication_factor
        durable = {"min.insync.replicas": str(copies_to_acknowledge(copies))}
        response = await admin.create_topics(
            [
                NewTopic(spec.name, spec.partitions, copies, topic_configs={**spec.config, **durable})
                for spec in missing
            ],
            timeout_ms=30_000,
        )
        for name, code, *message in response.topic_errors:
            error = for_code(code)
            if code == 0:
                created.append(name)
            elif error is not TopicAlreadyExistsError:
                detail = f" ({message[0]})" if message and message[0] else ""
                raise TopicsError(
                    f"the broker refused to create {name}: {error.__name__}{detail}; check the rights of this user, "
                    f"and that there are {copies} brokers for HEADWATER_REPLICATION_FACTOR"
                )
        await _wait_until_led(admin, {spec.name for spec in missing})
        return created


async def check(settings: Settings) -> list[Problem]:
    """Compares the topics on the broker with `specs`; an empty list means that all is well. Raises TopicsError."""
    wanted = {spec.name: spec for spec in specs(settings)}
    async with _admin(settings) as admin:
        partitions = {
            topic["topic"]: topic["partitions"]
            # All topics, not ours by name: a broker that creates topics by itself creates those one asks it about.
            for topic in await admin.describe_topics()
            if topic["topic"] in wanted
        }
        configs = await _configs(admin, [name for name in wanted if name in partitions])
    problems: list[Problem] = []
    for name, spec in wanted.items():
        if name not in partitions:
            problems.append(_missing(spec))
            continue
        if (count := len(partitions[name])) != spec.partitions:
            problems.append(_wrong_count(spec, count))
        problems.extend(_wrong_config(settings, spec, configs[name]))
        problems.extend(_too_few_copies(settings, spec, configs[name], partitions[name]))
    return problems


async def configs(settings: Settings) -> dict[str, dict[str, str]]:
    """The configuration in force, by topic: the broker's, and Kafka's defaults where it tells none. Raises TopicsError."""
    names = {spec.name for spec in specs(settings)}
    async with _admin(settings) as admin:
        there = sorted(names & set(await admin.list_topics()))
        found = await _configs(admin, there)
    return {
        name: {**_DEFAULTS, **{key: value for key, value in config.items() if value}}
        for name, config in found.items()
    }


def copies_to_acknowledge(copies: int) -> int:
    """How many of a partition's copies must have a record before it counts as written: one may be lost afterwards.

    >>> [copies_to_acknowledge(copies) for copies in (1, 2, 3, 5)]
    [1, 2, 2, 3]
    """
    return copies // 2 + 1


def _deleted_after(age_ms: int) -> dict[str, str]:
    segment_ms = max(_MINUTE_MS, min(age_ms, _DAY_MS))
    return {
        "cleanup.policy": "delete",
        "retention.ms": str(age_ms),
        "retention.bytes": "-1",
        "segment.ms": str(segment_ms),
    }


def _replaced_and_deleted_after(age_ms: int) -> dict[str, str]:
    """A topic whose records go with age, and earlier when another one with their key takes their place."""
    return {
        **_deleted_after(age_ms),
        "cleanup.policy": "compact,delete",
        "max.compaction.lag.ms": str(COMPACTION_LAG_MS),
    }


async def _wait_until_led(admin: AIOKafkaAdminClient, names: set[str]) -> None:
    """Kafka answers before its brokers know the new topics; a client that comes at once would not find them."""
    deadline = time.monotonic() + _READY_S
    while True:
        led = {
            topic["topic"]
            for topic in await admin.describe_topics()
            if not topic["error_code"] and not any(part["error_code"] for part in topic["partitions"])
        }
        if names <= led:
            return
        if time.monotonic() > deadline:
            raise TopicsError(
                f"{', '.join(sorted(names - led))} created, but without a leader after {_READY_S} s: expected all "
                "brokers to be up; look at the broker's log"
            )
        await asyncio.sleep(0.05)


def _missing(spec: Spec) -> Problem:
    return Problem(
        spec.name, "missing", _count(spec.partitions), "Run `headwater topics create`.", fatal=True
    )


def _count(partitions: int) -> str:
    return "1 partition" if partitions == 1 else f"{partitions} partitions"


def _wrong_count(spec: Spec, count: int) -> Problem:
    found = _count(count)
    recreate = f"delete {spec.name} and run `headwater topics create`"
    if not spec.family:
        remedy = (
            f"It works like this; set {spec.setting}={count}"
            if spec.setting
            else "It works like this; leave it"
        )
        return Problem(spec.name, found, str(spec.partitions), f"{remedy}, or {recreate}.", fatal=False)
    family = f"{', '.join(spec.family[:-1])} and {spec.family[-1]}"
    remedy = (
        f"{family} need the same count: if all of them have {count}, set {spec.setting}={count}; "
        f"else stop the workers, {recreate}."
    )
    return Problem(spec.name, found, str(spec.partitions), remedy, fatal=True)


def _wrong_config(settings: Settings, spec: Spec, found: dict[str, str]) -> list[Problem]:
    problems = []
    for key, expected in {**spec.config, **_CHECKED_ONLY}.items():
        value = found.get(key) or _DEFAULTS.get(key, "")
        if not _as_good(key, value, expected):
            # Compaction of events loses events; deletion from a changelog loses users. Dead letters that are not
            # compacted only stay for longer.
            fatal = key == "cleanup.policy" and "," not in expected
            problems.append(
                Problem(
                    spec.name,
                    f"{key} is {value or 'not set'}",
                    expected,
                    _alter(settings, spec, key, expected),
                    fatal,
                )
            )
    return problems


def _too_few_copies(
    settings: Settings, spec: Spec, config: dict[str, str], partitions: Sequence[Mapping[str, Any]]
) -> list[Problem]:
    """What may lose an acknowledged record, or keeps any from being acknowledged."""
    problems = []
    copies = min((len(each["replicas"]) for each in partitions), default=settings.replication_factor)
    in_sync = min((len(each["isr"]) for each in partitions), default=copies)
    needed = int(config.get("min.insync.replicas") or _DEFAULTS["min.insync.replicas"])
    if copies < settings.replication_factor:
        remedy = "Give it more with `kafka-reassign-partitions.sh`, or set HEADWATER_REPLICATION_FACTOR to what it is to have."
        expected = f"{settings.replication_factor}, as HEADWATER_REPLICATION_FACTOR says"
        problems.append(Problem(spec.name, f"{copies} copies of a partition", expected, remedy, fatal=False))
    wanted = copies_to_acknowledge(copies)
    if needed < wanted or needed > copies:
        found = f"min.insync.replicas is {needed} with {copies} copies"
        remedy = _alter(settings, spec, "min.insync.replicas", str(wanted))
        # More than there are: nothing is ever acknowledged.
        problems.append(Problem(spec.name, found, str(wanted), remedy, fatal=needed > copies))
    elif in_sync < needed:
        found = f"a partition with {in_sync} of {copies} copies in sync"
        remedy = "Nothing that is written to it is acknowledged: look at the brokers that are away."
        problems.append(Problem(spec.name, found, f"at least {needed}", remedy, fatal=False))
    return problems


def _alter(settings: Settings, spec: Spec, key: str, value: str) -> str:
    shown = f"[{value}]" if "," in value else value
    return (
        f"Run `kafka-configs.sh --bootstrap-server {settings.bootstrap_servers} --alter "
        f"--entity-type topics --entity-name {spec.name} --add-config {key}={shown}`."
    )


def _as_good(key: str, value: str, expected: str) -> bool:
    """An operator may keep data for longer than we ask, never for less time; other values are exact."""
    if key in _MORE_IS_AS_GOOD:
        kept = _number(value)
        return kept < 0 or (kept >= int(expected) >= 0)
    if key == "max.compaction.lag.ms":  # sooner is as good
        return 0 < _number(value) <= int(expected)
    if key == "cleanup.policy":
        return set(value.split(",")) == set(expected.split(","))
    return key in _NOT_CHECKED or value == expected


def _number(value: str) -> int:
    """A number of the broker's; 0 where it tells none."""
    return int(value) if value.removeprefix("-").isdecimal() else 0


async def _configs(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    if not names:
        return found
    for response in await admin.describe_configs(
        [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    ):
        for code, message, _kind, name, entries in response.resources:
            if code:
                raise TopicsError(
                    f"the broker refused to describe {name}: {for_code(code).__name__} ({message}); "
                    "give this user the right DescribeConfigs"
                )
            found[name] = {entry[0]: entry[1] for entry in entries}
    return found


@asynccontextmanager
async def _admin(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**settings.kafka_options(), request_timeout_ms=30_000)
    try:
        await admin.start()
        yield admin
    except (KafkaError, OSError) as error:
        raise NoBroker(await why_unreachable(settings, str(error))) from error
    finally:
        await admin.close()
