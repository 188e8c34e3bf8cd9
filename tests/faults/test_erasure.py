"""Users are erased, by `forget` or by their age: from the worker, its disk and the changelog; nothing late brings them back."""

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence

import pytest
import pytest_asyncio
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from headwater.encoder import runtime as encoders
from headwater.kafka import topics
from headwater.kafka.topics import Topics
from headwater.profiles.state_records import ENTRY_BYTES, header_size
from headwater.settings import Settings
from tests.conftest import skipping_where_no_kafka_can_run
from tests.end_to_end.conftest import System
from tests.end_to_end.oracle import applied
from tests.end_to_end.outside import Outside
from tests.faults.scale import SCALE, TIMEOUT_S
from tests.support.kafka_server import KafkaNode, own_node

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S)]

_DAY_MS = 86_400_000
_CLICKS = 3
# What Kafka does within minutes to days, within a second: close a segment, compact it, drop its old file.
_HURRIED = {
    "segment.ms": "100",
    "min.cleanable.dirty.ratio": "0.001",
    "max.compaction.lag.ms": "100",
    "file.delete.delay.ms": "0",
}


@pytest.fixture
def node() -> Iterator[KafkaNode]:
    with skipping_where_no_kafka_can_run(), own_node(properties={"log.cleaner.backoff.ms": 100}) as node:
        yield node


@pytest.fixture
def broker(node: KafkaNode) -> str:
    return node.servers


@pytest_asyncio.fixture
async def own_topics(settings: Settings) -> Settings:
    """The topics as they have to be, but for a changelog in a hurry. Tombstones stay for as long as ever."""
    profiles = Topics.named(settings.topic_prefix).profiles
    spec = next(spec for spec in topics.specs(settings) if spec.name == profiles)
    admin = AIOKafkaAdminClient(**settings.kafka_options())
    await admin.start()
    try:
        config = {**spec.config, **_HURRIED}
        await admin.create_topics([NewTopic(profiles, spec.partitions, 1, topic_configs=config)])
    finally:
        await admin.close()
    await topics.create(settings)
    return settings


class Changelog:
    """The segments of the changelog as they lie on the broker's disk, and what of the users is to be gone from them."""

    def __init__(self, node: KafkaNode, topic: str) -> None:
        self._folders = [path for path in (node.home / "logs").iterdir() if path.name.startswith(f"{topic}-")]
        self.left: list[bytes] = []

    def remember(self, state: bytes, state_size: int) -> None:
        """The encoder's state, each log entry's item and event, and the last event's id."""
        log_at = header_size() + 2 * state_size
        entries = range(log_at, log_at + _CLICKS * ENTRY_BYTES, ENTRY_BYTES)
        self.left += [state[header_size() : log_at], *(state[at : at + 14] for at in entries)]
        self.left.append(state[entries.stop :])

    def forget_what_is_gone(self) -> None:
        held = [path.read_bytes() for folder in self._folders for path in sorted(folder.iterdir())]
        self.left = [each for each in self.left if any(each in segment for segment in held)]


async def click(outside: Outside, users: Sequence[str], at_ms: int) -> None:
    """Each user clicks: the later in the list, the later in time."""
    messages = [
        (user, outside.click_message(user, "coffee-1", at_ms=at_ms + number))
        for number, user in enumerate(users)
    ]
    await outside.send_all(outside.topics.clicks, messages)


async def events_of(outside: Outside, users: Sequence[str]) -> set[int]:
    """How many events the answers to these users rest on."""
    asked = [await outside.request(user, limit=1) for user in users]
    return {(await outside.answer(each))["reflects"]["events"] for each in asked}


async def test_who_is_erased_is_nowhere_and_stays_away(
    node: KafkaNode, new_system: Callable[..., System]
) -> None:
    system = new_system()
    worker = system.worker
    async with system.stocked() as outside:
        names = [outside.own(f"u{number}") for number in range(SCALE.erased)]
        idle, shy = names[::2], names[1::2]
        now_ms = outside.next_ms()
        old_ms = now_ms - 2 * _DAY_MS
        for number in range(1, _CLICKS + 1):
            await click(outside, idle, old_ms + number * SCALE.erased)
            await click(outside, shy, now_ms + number * SCALE.erased)
        await applied(outside)
        assert await events_of(outside, names) == {_CLICKS}
        changelog = await remembered(node, outside, names)

        forgets = [
            (user, outside.click_message(user, "", "forget", at_ms=now_ms + 9 * SCALE.erased)) for user in shy
        ]
        await outside.send_all(outside.topics.clicks, forgets)
        await applied(outside)
        assert await events_of(outside, shy) == {0}
        assert await events_of(outside, idle) == {_CLICKS}

        assert await asyncio.to_thread(worker.stop) == 0
        worker.settings["user_ttl_days"] = 1.0
        await asyncio.to_thread(worker.start)
        await outside.until("the idle are erased", lambda: nobody_known(system, idle))
        await check_nowhere(system, outside, names)
        await compacted(outside, changelog)

        assert await asyncio.to_thread(worker.stop) == 0
        await asyncio.to_thread(worker.start)
        await check_nowhere(system, outside, names)
        await click(outside, idle, now_ms)
        await click(outside, shy, now_ms + 10 * SCALE.erased)
        await applied(outside)
        assert await events_of(outside, names) == {1}


async def nobody_known(system: System, users: Sequence[str]) -> bool:
    return not any([await asyncio.to_thread(system.worker.user, user) for user in users])


async def check_nowhere(system: System, outside: Outside, users: Sequence[str]) -> None:
    """Not in the worker's memory, nor after a click that is older than the erasure; nor on its disk, nor alive in the
    changelog."""
    await click(outside, users, outside.next_ms() - 3 * _DAY_MS)
    await applied(outside)
    assert await events_of(outside, users) == {0}
    assert await nobody_known(system, users)
    names = re.compile(rf"u\d+{re.escape(outside.own(''))}".encode())
    assert all(names.fullmatch(user.encode()) for user in users)
    files = [path for path in (system.worker.home / "data").rglob("*") if path.is_file()]
    assert [path.name for path in files if names.search(path.read_bytes())] == []
    newest = {record.key: record.value for record in await outside.records_of(outside.topics.profiles)}
    assert {newest[user.encode()] for user in users} == {None}


async def remembered(node: KafkaNode, outside: Outside, users: Sequence[str]) -> Changelog:
    """What the changelog holds of each user now, which is found in its segments."""
    changelog = Changelog(node, outside.topics.profiles)
    state_size = encoders.load(outside.settings.bundle_path).state_size
    newest = {record.key: record.value for record in await outside.records_of(outside.topics.profiles)}
    for user in users:
        changelog.remember(newest[user.encode()], state_size)
    assert all(any(each) for each in changelog.left)
    before = len(changelog.left)
    changelog.forget_what_is_gone()
    assert len(changelog.left) == before > 0
    return changelog


async def compacted(outside: Outside, changelog: Changelog) -> None:
    """Others go on, so that segments are closed; wait until no byte of the erased is left."""

    async def is_gone() -> bool:
        await applied(outside)
        await asyncio.to_thread(changelog.forget_what_is_gone)
        return not changelog.left

    await outside.until("the changelog is compacted", is_gone)
