"""Whether the clicks log is the one that the users rest on, and what happens when another one is accepted.

The log is another one once its topic was made again, or was restored into another cluster. Its offsets then say nothing
of the clicks that the users hold: a click of the new log would look applied already where its offset is low. The broker's
id of the topic tells, and without ids a log that is too short. A log that has lost its end, and has grown again, keeps its
id: its leader tells how far it goes in the leader epoch of what was read.

Nobody's state is lost with a log. Once somebody accepts the new one, a new incarnation begins: every user is kept, no
click of the new log counts as applied, and those that a user's log holds are dropped by their event ids. A log that has
lost its end is read on from where it lost it. That needs nobody's consent where it has lost only clicks that were applied
and not committed yet: the states hold them, and the commit says that the log is ours.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple

import numpy as np
import structlog
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata
from msgspec.structs import replace

from headwater.errors import HeadwaterError, StopWorker
from headwater.kafka.commit_notes import CommitNote, note_of, note_text, vouches_for
from headwater.kafka.embedded_broker import remove_dead_members
from headwater.kafka.fast_client.commits import committed as commits_of
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.leader_epochs import kept_ends
from headwater.kafka.membership import describe
from headwater.kafka.publish import Outgoing, producer_of, write_all
from headwater.kafka.supervision import topic_recreated_error
from headwater.kafka.topic_identity import Identity
from headwater.kafka.topic_identity import identities as identities_of
from headwater.kafka.topics import Topics
from headwater.messages import Gap
from headwater.profiles.order import MAX_INCARNATION
from headwater.profiles.partition import Partition
from headwater.settings import Settings

logger = structlog.get_logger(__name__)

# Says on the changelog that the clicks log may be another one. It holds until the next claim. A tombstone, so that it
# goes when it is of no use any more.
ACCEPT_KEY: Final = b"\xffaccept"
ACCEPT_LOG: Final = (
    "run `headwater topics accept` and start again: every user is kept, and the clicks of the topic as it is now are "
    "applied"
)
_REMEDY: Final = f"If that was meant, {ACCEPT_LOG}"
_LOOK_S: Final = 0.25  # at the members of the group
# A broker notices a while after its end that a session is over.
_SESSION_ENDS_S: Final = 5.0


# Told of clicks that were gone from the log before they were read. They may have been applied in spite of that.
OnLost = Callable[[TopicPartition, Gap], Awaitable[None]]


async def settle(
    reader: Consumer,
    clicks: Mapping[TopicPartition, Partition],
    identities: Mapping[TopicPartition, Identity],
    on_lost: OnLost,
) -> int:
    """Set watermarks and incarnations of partitions whose changelog has been read to its end.

    A group without offsets reads from the beginning of a log. ``on_lost`` is told of clicks that are gone before it.

    Returns:
        how many claims are skipped, since the group has committed in this log and they are of another one.

    Raises:
        StopWorker: the users do not rest on this clicks log, and nobody has accepted it.
        KafkaError: the broker refused, or is away.
    """
    # Asked for only now: a former owner may have gone on for a while.
    beginnings = await reader.beginning_offsets(list(clicks))
    ends = await reader.end_offsets(list(clicks))
    commits = await commits_of(reader, clicks.keys())
    committed_of = await _committed(reader, commits, identities)
    passed_over = 0
    for tp, partition in clicks.items():
        partition.start_incarnation(partition.incarnation)
        log, end = identities.get(tp, Identity()), ends[tp]
        topic_id = log.topic_id
        committed, kept = committed_of.get(tp, _Committed(None, None))
        if committed is not None and kept is not None and kept < committed:
            raise StopWorker(
                f"{tp.topic}-{tp.partition}: the log was read up to offset {committed}, and from {kept} on it has other "
                "records now: it had become shorter (an unclean leader election, or it was restored from an older copy). "
                f"{_REMEDY}"
            )
        if partition.log_is_accepted:
            # Of this log nothing has been applied. First, since it may fail, and is repeated then.
            if committed is None and (gap := _before(beginnings[tp], -1)) is not None:
                await on_lost(tp, gap)
            partition.log_is_accepted = False
            partition.start_incarnation(partition.incarnation + 1)
            logger.warning("clicks_log_accepted", partition=partition.number, topic_id=topic_id, end=end)
        else:
            applied = _applied(partition)
            if vouches_for(commits.get(tp), log, end) and (foreign := _foreign_id(partition, topic_id)):
                logger.error(
                    "claim_of_another_log",
                    topic=tp.topic,
                    partition=tp.partition,
                    topic_id=foreign,
                    effect="it is skipped: the group has committed in the clicks topic as it is now",
                )
                partition.claim = None
                passed_over += 1
            is_claimed = partition.claim is not None and partition.claim.topic_id == topic_id
            is_surely_ours = topic_id is not None and (is_claimed or vouches_for(commits.get(tp), log, end))
            _check(tp, partition, committed, -1 if is_surely_ours else applied, end, topic_id)
            if (
                committed is None
                and (gap := _lost_before(partition, applied, beginnings[tp], end)) is not None
            ):
                await on_lost(tp, gap)
            first = end if kept is None else kept
            if first <= applied:
                # Beyond the commit the log has lost clicks that were applied, or has others there, or merely another
                # leader's; or no worker wrote that state. No offset tells these apart, and event ids do.
                partition.start_incarnation(min(partition.incarnation + 1, MAX_INCARNATION))
                partition.columns.forget_offsets_from(first)
                logger.warning(
                    "clicks_told_by_event_ids",
                    partition=partition.number,
                    first=first,
                    applied=applied,
                    end=end,
                )
        next_offset = committed if committed is not None and committed <= end else beginnings[tp]
        partition.watermark = partition.applied = next_offset - 1
    return passed_over


class _Committed(NamedTuple):
    """Where the group goes on in a log, and up to where the log is the one that it has read."""

    offset: int | None  # None: it begins at the start of the log
    kept: int | None  # None: unknown


async def _committed(
    reader: Consumer,
    commits: Mapping[TopicPartition, OffsetAndMetadata],
    logs: Mapping[TopicPartition, Identity],
) -> dict[TopicPartition, _Committed]:
    """What the group has committed of the logs that there are.

    A member that had not noticed it yet may have committed to a new topic what it had read of the former one.
    """
    here = {
        tp: commit
        for tp, commit in commits.items()
        if not logs.get(tp, Identity()).is_another_than(note_of(commit.metadata).topic_id)
    }
    kept = await kept_ends(reader.client, here)
    return {tp: _Committed(int(commit.offset), kept.get(tp)) for tp, commit in here.items()}


def _check(
    tp: TopicPartition,
    partition: Partition,
    committed: int | None,
    applied: int,
    end: int,
    topic_id: str | None,
) -> None:
    if known := _foreign_id(partition, topic_id):
        raise StopWorker(
            f"{tp.topic}-{tp.partition}: the users rest on the topic with id {known}, expected the id of today, "
            f"{topic_id}: the topic was re-created, or restored. {_REMEDY}"
        )
    if committed is not None and committed > end:
        raise topic_recreated_error(tp, f"the group's committed offset is {committed}", end, _REMEDY)
    if applied >= end:
        raise topic_recreated_error(tp, f"clicks up to offset {applied} have been applied", end, _REMEDY)


def _foreign_id(partition: Partition, topic_id: str | None) -> str | None:
    """The id of the clicks topic that a partition's claim names, where it is surely not ``topic_id``."""
    named = None if partition.claim is None else partition.claim.topic_id
    return named if topic_id is not None and named != topic_id else None


def _applied(partition: Partition) -> int:
    """The highest offset that a user of the partition holds, -1 for none."""
    rows = np.array(list(partition.columns.rows.values()), dtype=np.int64)
    of_sealed = (each.order for each in partition.sealed.values())
    highest = max(
        (order.offset for order in of_sealed if order.incarnation == partition.incarnation), default=-1
    )
    return int(partition.columns.offset[rows].max(initial=highest))


def _lost_before(partition: Partition, applied: int, beginning: int, end: int) -> Gap | None:
    """The clicks before the beginning of the log of which nothing says that they have been applied."""
    claimed = -1 if partition.claim is None else partition.claim.applied
    # Nothing beyond the end has been applied.
    return _before(beginning, max(applied, claimed if claimed < end else -1))


def _before(beginning: int, known: int) -> Gap | None:
    """The clicks between the newest one that is known to have been applied and the beginning of the log."""
    return Gap(known + 1, beginning - 1) if beginning > known + 1 else None


def patience_s(settings: Settings) -> float:
    """How long `accept` waits for the members of the group to be gone."""
    return settings.session_timeout_s + _SESSION_ENDS_S


async def accept(settings: Settings) -> dict[int, int]:
    """Have workers take the clicks topic as it is now for the log that their users rest on, at their next start.

    Call it while no worker of the group runs. Committed offsets that the topic does not have go back to its beginning, or
    to where it has lost its end, if the broker tells.

    Returns:
        by partition, the offset that is read next.

    Raises:
        HeadwaterError: the broker refused, is away, or has members in the group for longer than a session.
    """
    topics = Topics.named(settings.topic_prefix)
    await _wait_for_empty_group(settings)
    reader = Consumer(**settings.kafka_options(), group_id=settings.interests_group, enable_auto_commit=False)
    producer = producer_of(settings)
    try:
        await reader.start()
        await producer.start()
        clicks = [TopicPartition(topics.clicks, number) for number in range(settings.partitions)]
        reader.assign(clicks)
        beginnings, ends = await reader.beginning_offsets(clicks), await reader.end_offsets(clicks)
        logs = await identities_of(reader.client, [topics.clicks])
        committed_of = await _committed(reader, await commits_of(reader, clicks), logs)
        following = {}
        for tp in clicks:
            # First: a worker that finds this without the commit that follows stops again.
            await write_all(producer, topics.profiles, tp.partition, [Outgoing(ACCEPT_KEY, None)])
            committed, kept = committed_of.get(tp, _Committed(None, None))
            following[tp.partition] = beginnings[tp] if committed is None else committed
            last = ends[tp] if kept is None else min(ends[tp], kept)
            if committed is not None and committed > last:
                place = following[tp.partition] = max(beginnings[tp], kept or 0)
                note = CommitNote(logs.get(tp, Identity()).topic_id)
                told_up_to = max(committed, ends[tp])
                if kept is not None and place < told_up_to:
                    # Publishers were told of these offsets. They may name clicks that the log has lost.
                    note = replace(note, gap=Gap(place, told_up_to - 1), gap_at_ms=int(time.time() * 1000.0))
                await reader.commit({tp: OffsetAndMetadata(place, note_text(note))})
        return following
    except KafkaError as error:
        raise HeadwaterError(
            f"{topics.clicks} could not be accepted ({type(error).__name__}: {error}): stop the workers of "
            f"{settings.interests_group}, look at the broker, and try again"
        ) from error
    finally:
        await producer.stop()
        await reader.stop()


async def _wait_for_empty_group(settings: Settings) -> None:
    """Return once the group has no members: a worker that was killed counts as one until its session is over.

    Raises:
        HeadwaterError: the broker refused or is away; or there are members still when their sessions must be over.
    """
    name = settings.interests_group
    admin = AIOKafkaAdminClient(**settings.kafka_options())
    try:
        await remove_dead_members(settings, name)
        await admin.start()
        until_s = time.monotonic() + patience_s(settings)
        is_waiting = False
        while (group := await describe(admin, name)) is not None and group.members:
            hosts = ", ".join(sorted({f"{each.client_id} on {each.host}" for each in group.members}))
            if time.monotonic() > until_s:
                raise HeadwaterError(
                    f"{name} has members ({hosts}), expected none: stop its workers and try again"
                )
            if not is_waiting:
                logger.warning(
                    "waiting_for_sessions_to_end",
                    group=name,
                    members=hosts,
                    seconds=settings.session_timeout_s,
                )
            is_waiting = True
            await asyncio.sleep(_LOOK_S)
    except KafkaError as error:
        raise HeadwaterError(
            f"the group {name} could not be looked at ({type(error).__name__}: {error}): look at the broker and the right "
            "Describe on the group, and try again"
        ) from error
    finally:
        await admin.close()
