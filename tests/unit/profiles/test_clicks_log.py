"""The clicks log that users rest on is told from another one, which may be accepted without losing any of them."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CommitFailedError
from aiokafka.structs import OffsetAndMetadata

from headwater.errors import HeadwaterError, StopWorker
from headwater.kafka import leader_epochs, topics
from headwater.kafka.commit_notes import CommitNote, note_of, note_text
from headwater.kafka.fast_client.commits import committed as commits_of
from headwater.kafka.publish import producer_of
from headwater.kafka.topic_identity import Identity, identities
from headwater.kafka.topics import Topics
from headwater.messages import Gap
from headwater.profiles import clicks_log
from headwater.profiles.clicks_log import ACCEPT_KEY, accept, settle
from headwater.profiles.order import MAX_INCARNATION
from headwater.profiles.partition import Partition
from headwater.settings import Settings
from headwater.worker.worker import started
from tests.unit.profiles.test_restore import claim, loaded, offset_of, record, state, tombstone

CLICKS = TopicPartition("clicks.v1", 0)


@pytest.fixture
async def partition() -> Partition:
    return Partition(0, log_length=4, state_size=2)


class Log:
    """What the broker says of the clicks topic and of the group."""

    client = None

    def __init__(
        self,
        end: int,
        committed: int | None = None,
        beginning: int = 0,
        committed_id: str | None = None,
        epoch: int | None = None,
    ) -> None:
        self.end, self.committed_offset, self.beginning = end, committed, beginning
        self._note = note_text(CommitNote(committed_id, leader_epoch=epoch))
        self._coordinator = self

    async def beginning_offsets(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, self.beginning)

    async def end_offsets(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, self.end)

    async def fetch_committed_offsets(
        self, tps: Sequence[TopicPartition]
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        offset = self.committed_offset
        return {} if offset is None else dict.fromkeys(tps, OffsetAndMetadata(offset, self._note))


async def settled(partition: Partition, log: Log, topic_id: str | None = None) -> list[Gap]:
    """Returns the clicks that are said to be lost."""
    lost: list[Gap] = []
    logs = {} if topic_id is None else {CLICKS: Identity(topic_id)}

    async def on_lost(_: TopicPartition, gap: Gap) -> None:
        lost.append(gap)

    await settle(cast(Any, log), {CLICKS: partition}, logs, on_lost)
    return lost


@pytest.mark.parametrize("log", [Log(end=9, committed=9), Log(end=10, committed=11)])
async def test_a_clicks_log_that_is_shorter_than_what_is_known_of_it_is_refused_and_can_be_accepted(
    partition: Partition, log: Log
) -> None:
    loaded(partition, claim(0, 3), state(1, b"ann", 3, 9))
    with pytest.raises(
        StopWorker, match=r"clicks\.v1-0: .* the topic was re-created\. .*headwater topics accept"
    ):
        await settled(partition, log)
    loaded(partition, record(2, ACCEPT_KEY, None))
    await settled(partition, log)
    assert partition.columns.order(partition.columns.rows[b"ann"]) == (1, -1, 3)
    assert partition.watermark == (log.committed_offset - 1 if log.committed_offset <= log.end else -1)
    partition.columns.offset[partition.columns.rows[b"ann"]] = 10
    with pytest.raises(StopWorker, match="re-created"):  # it held for one log
        await settled(partition, log)


@pytest.mark.parametrize("beyond", [9, 2**62])
async def test_what_rests_on_clicks_beyond_a_log_that_is_surely_ours_ends_no_worker(
    partition: Partition, beyond: int
) -> None:
    """The log lost a click that had been applied and not committed, or no worker wrote the state."""
    log = Log(end=9, committed=9, committed_id="aa")
    loaded(partition, claim(0, 3, topic_id="aa"), state(1, b"ann", 3, beyond), state(2, b"bob", 3, 8))
    await settled(partition, log, "aa")
    assert (partition.incarnation, partition.watermark) == (1, 8)
    assert {offset_of(partition, user) for user in (b"ann", b"bob")} == {-1}


async def test_a_sealed_user_beyond_the_log_can_still_be_erased(partition: Partition) -> None:
    """In the incarnation that begins, any click comes after what the record claims."""
    newer = state(1, b"ann", 3, 2**62)
    log = Log(end=9, committed=9, committed_id="aa")
    loaded(partition, claim(0, 3, topic_id="aa"), record(1, b"ann", b"\x09" + newer.value[1:]))
    assert not partition.unseal(b"ann", 9)
    await settled(partition, log, "aa")
    assert partition.incarnation == 1
    assert partition.unseal(b"ann", 9)
    assert partition.sealed == {}


async def test_a_claim_of_the_log_says_that_it_is_ours_before_anything_of_it_is_committed(
    partition: Partition,
) -> None:
    """One forged record of a partition without clicks would end each worker in turn."""
    loaded(partition, claim(0, 3, topic_id="aa"), state(1, b"ann", 3, 2**62))
    await settled(partition, Log(end=0), "aa")
    assert (partition.incarnation, partition.watermark, offset_of(partition, b"ann")) == (1, -1, -1)
    loaded(partition, claim(2, 4, topic_id="aa"), state(3, b"ann", 4, 2**62, incarnation=2))
    with pytest.raises(StopWorker, match="re-created"):
        await settled(partition, Log(end=0))


async def test_a_state_beyond_the_log_in_the_highest_incarnation_ends_no_worker(partition: Partition) -> None:
    log = Log(end=9, committed=9, committed_id="aa")
    loaded(
        partition,
        claim(0, 3, topic_id="aa"),
        state(1, b"ann", 3, 2**62, incarnation=MAX_INCARNATION),
        state(2, b"bob", 3, 8, incarnation=MAX_INCARNATION),
    )
    await settled(partition, log, "aa")
    assert (partition.incarnation, partition.watermark) == (MAX_INCARNATION, 8)
    assert (offset_of(partition, b"ann"), offset_of(partition, b"bob")) == (-1, 8)


def leader_tells(monkeypatch: pytest.MonkeyPatch, end: int) -> None:
    """The log goes up to ``end`` in the epoch that was committed, 4."""

    async def told(_: object, epochs: dict[TopicPartition, int]) -> dict[TopicPartition, int]:
        assert set(epochs.values()) <= {4}
        return dict.fromkeys(epochs, end)

    monkeypatch.setattr(leader_epochs, "epoch_ends", told)


async def test_a_log_that_lost_its_end_and_has_grown_again_is_refused_until_it_is_read_from_there(
    partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader_tells(monkeypatch, 6)
    loaded(partition, claim(0, 3, topic_id="aa"), state(1, b"ann", 3, 9))
    for _ in range(2):
        with pytest.raises(StopWorker, match=r"up to offset 10, and from 6 on .*headwater topics accept"):
            await settled(partition, Log(end=90, committed=10, committed_id="aa", epoch=4), "aa")
        # Accepted, without the commit that follows.
        loaded(partition, record(2, ACCEPT_KEY, None))
    await settled(partition, Log(end=90, committed=6, committed_id="aa", epoch=4), "aa")
    assert partition.columns.order(partition.columns.rows[b"ann"]) == (1, -1, 3)
    assert partition.watermark == 5


async def test_a_log_that_has_all_that_was_committed_is_taken_as_it_is(
    partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader_tells(monkeypatch, 10)
    loaded(partition, claim(0, 3), state(1, b"ann", 3, 9))
    await settled(partition, Log(end=90, committed=10, epoch=4))
    assert (partition.incarnation, partition.watermark, offset_of(partition, b"ann")) == (0, 9, 9)


async def test_clicks_beyond_the_commit_that_may_be_others_by_now_are_told_by_their_event_ids(
    partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner died before it committed them, and another leader has begun since."""
    leader_tells(monkeypatch, 8)
    loaded(partition, claim(0, 3), state(1, b"ann", 3, 9))
    await settled(partition, Log(end=90, committed=7, epoch=4))
    assert (partition.incarnation, partition.watermark, offset_of(partition, b"ann")) == (1, 6, -1)


@pytest.mark.parametrize(
    ("kept", "begin", "gap"), [(2, 2, Gap(2, 4)), (0, 0, Gap(0, 4)), (4, 4, None), (None, 4, None)]
)
async def test_an_accepted_log_that_lost_its_end_is_read_from_there_and_the_offsets_are_told(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    kept: int | None,
    begin: int,
    gap: Gap | None,
) -> None:
    if kept is not None:
        leader_tells(monkeypatch, kept)
    await topics.create(settings)
    clicks = TopicPartition(Topics.named(settings.topic_prefix).clicks, 0)
    async with started(producer_of(settings)) as producer:
        for _ in range(5):
            await producer.send_and_wait(clicks.topic, b"{}", partition=0)
    reader = AIOKafkaConsumer(
        **settings.kafka_options(), group_id=settings.interests_group, enable_auto_commit=False
    )
    await reader.start()
    try:
        reader.assign([clicks])
        note = CommitNote(leader_epoch=None if kept is None else 4)
        await reader.commit({clicks: OffsetAndMetadata(4, note_text(note))})
        assert (await accept(settings))[0] == begin
        commit = (await commits_of(reader, [clicks]))[clicks]
        assert (commit.offset, note_of(commit.metadata).gap) == (begin, gap)
    finally:
        await reader.stop()


async def test_an_offset_committed_of_a_former_topic_says_nothing_of_this_one(partition: Partition) -> None:
    """The group reads this topic from its start, so no more of it may be claimed."""
    loaded(partition, claim(0, 3, topic_id="aa"), state(1, b"ann", 3, 9), record(2, ACCEPT_KEY, None))
    await settled(partition, Log(end=90, committed=40, committed_id="aa"), "bb")
    assert partition.watermark == -1
    await settled(partition, Log(end=90, committed=40, committed_id="aa"), "aa")
    assert partition.watermark == 39


async def test_a_claim_of_another_topic_is_passed_over_where_the_log_is_known_to_be_ours(
    partition: Partition,
) -> None:
    """By the group's commit, where compaction took the owner's claim; else by a claim that came before."""
    loaded(partition, state(0, b"ann", 3, 9), claim(1, 9, topic_id="forged", applied=2**62))
    with pytest.raises(StopWorker, match="re-created"):
        await settled(partition, Log(end=90, committed=10, committed_id="former"), "aa")
    await settled(partition, Log(end=90, committed=10, committed_id="aa"), "aa")
    assert (partition.watermark, partition.highest_epoch, offset_of(partition, b"ann")) == (9, 9, 9)
    partition.clicks_topic_id = "aa"
    assert loaded(partition, claim(2, 10, topic_id="aa"), claim(3, 11, topic_id="forged")) == 1
    assert await settled(partition, Log(end=90, beginning=8), "aa") == []


async def test_a_claim_from_beyond_the_log_hides_no_lost_clicks(partition: Partition) -> None:
    loaded(partition, claim(0, 3, applied=2**62), state(1, b"ann", 3, 9))
    assert await settled(partition, Log(end=90, beginning=30)) == [Gap(10, 29)]


async def test_an_accepted_log_holds_until_the_claim_that_follows(partition: Partition) -> None:
    loaded(
        partition,
        record(0, ACCEPT_KEY, None),
        claim(1, 4, incarnation=1),
        state(2, b"ann", 4, 9, incarnation=1),
    )
    assert not partition.log_is_accepted
    with pytest.raises(StopWorker, match="re-created"):
        await settled(partition, Log(end=5))


async def test_records_of_an_accepted_log_are_newer_than_all_before(partition: Partition) -> None:
    loaded(
        partition,
        state(0, b"ann", 3, 900),
        tombstone(1, b"bob", 77, 3, 800),
        claim(2, 4, incarnation=1),
        state(3, b"ann", 4, 2, incarnation=1),
        state(4, b"bob", 4, 3, incarnation=1),
        state(5, b"ann", 3, 901),
    )
    await settled(partition, Log(end=5))
    assert (offset_of(partition, b"ann"), offset_of(partition, b"bob")) == (2, 3)
    assert partition.overwritten == {b"ann"}
    assert partition.incarnation == 1


async def test_an_erased_user_stays_erased_in_an_accepted_log(partition: Partition) -> None:
    loaded(partition, tombstone(0, b"bob", 77, 3, 800), record(1, ACCEPT_KEY, None))
    await settled(partition, Log(end=5))
    row = partition.row_of(b"bob")
    assert (partition.columns.offset[row], partition.columns.forgotten_ms[row]) == (-1, 77)


async def test_a_group_without_offsets_begins_at_the_log_s_beginning(partition: Partition) -> None:
    loaded(partition, claim(0, 3), state(1, b"ann", 3, 9))
    await settled(partition, Log(end=10, beginning=4))
    assert (partition.watermark, offset_of(partition, b"ann")) == (3, 9)


async def test_a_topic_of_another_id_is_refused_however_long_it_is_and_can_be_accepted(
    partition: Partition,
) -> None:
    loaded(partition, claim(0, 3, topic_id="former"), state(1, b"ann", 3, 9))
    await settled(partition, Log(end=100), "former")
    with pytest.raises(
        StopWorker, match=r"the topic with id former, .* today, other: .*headwater topics accept"
    ):
        await settled(partition, Log(end=100), "other")
    loaded(partition, record(2, ACCEPT_KEY, None))
    await settled(partition, Log(end=100), "other")
    assert offset_of(partition, b"ann") == -1


async def test_a_broker_without_ids_and_a_claim_without_one_say_nothing(partition: Partition) -> None:
    loaded(partition, claim(0, 3), state(1, b"ann", 3, 9))
    await settled(partition, Log(end=10), "any")
    loaded(partition, claim(2, 4, topic_id="any"))
    await settled(partition, Log(end=10))
    assert offset_of(partition, b"ann") == 9


async def test_a_group_without_offsets_claims_no_click_that_is_gone(partition: Partition) -> None:
    loaded(partition, claim(0, 3, applied=20), state(1, b"ann", 3, 9))
    assert await settled(partition, Log(end=90, beginning=21)) == []
    assert await settled(partition, Log(end=90, beginning=30)) == [Gap(21, 29)]
    assert partition.watermark == 29


async def test_a_group_that_has_never_read_a_log_claims_nothing_of_what_was_deleted_from_it(
    partition: Partition,
) -> None:
    """On a topic that is older than the group, or where the changelog is gone with the group's offsets."""
    assert await settled(partition, Log(end=90, beginning=30)) == [Gap(0, 29)]
    loaded(partition, state(1, b"ann", 3, 9))
    assert await settled(partition, Log(end=90, beginning=30)) == [Gap(10, 29)]
    assert await settled(partition, Log(end=90, beginning=30, committed=40)) == []


async def test_nothing_is_claimed_of_what_an_accepted_log_has_lost_at_its_beginning(
    partition: Partition,
) -> None:
    loaded(partition, claim(0, 3, applied=80), state(1, b"ann", 3, 80), record(2, ACCEPT_KEY, None))

    async def refused(*_: object) -> None:
        raise CommitFailedError(CLICKS)

    with pytest.raises(CommitFailedError):
        await settle(cast(Any, Log(end=90, beginning=30)), {CLICKS: partition}, {}, refused)
    assert partition.log_is_accepted, "it is tried again"
    assert await settled(partition, Log(end=90, beginning=30)) == [Gap(0, 29)]


async def test_an_accepted_topic_that_was_made_again_is_read_from_its_beginning(settings: Settings) -> None:
    """What the group has committed of the former topic is no place in this one."""
    await topics.create(settings)
    clicks = Topics.named(settings.topic_prefix).clicks
    async with started(producer_of(settings)) as producer:
        for _ in range(3):
            await producer.send_and_wait(clicks, b"{}", partition=0)
        log = (await identities(producer.client, [clicks]))[TopicPartition(clicks, 0)]
    reader = AIOKafkaConsumer(
        **settings.kafka_options(), group_id=settings.interests_group, enable_auto_commit=False
    )
    await reader.start()
    place = TopicPartition(clicks, 0)
    reader.assign([place])
    await reader.commit({place: OffsetAndMetadata(2, note_text(CommitNote("0" * 32)))})
    # Without ids the broker does not tell the two topics apart.
    assert (await accept(settings))[0] == (2 if log.topic_id is None else 0)
    await reader.commit({place: OffsetAndMetadata(2, note_text(CommitNote()))})
    assert (await accept(settings))[0] == 2
    await reader.stop()


async def test_no_topic_is_accepted_while_a_worker_of_the_group_runs(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clicks_log, "_SESSION_ENDS_S", 0.0)
    settings = settings.model_copy(update={"session_timeout_s": 1.0})
    await topics.create(settings)
    member = AIOKafkaConsumer(
        Topics.named(settings.topic_prefix).clicks,
        **settings.kafka_options(),
        group_id=settings.interests_group,
    )
    await member.start()
    try:
        with pytest.raises(HeadwaterError, match=r"has members .*, expected none: stop its workers"):
            await accept(settings)
        accepting = asyncio.create_task(accept(settings))
        await asyncio.sleep(0.5)
    finally:
        await member.stop()
    assert set(await accepting) == set(range(settings.partitions))
