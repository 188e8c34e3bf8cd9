"""What a group knows of the logs it reads: which ones they are, how far they go, and what was lost of them.

It is kept beside the committed offsets, so that the next owner of a partition knows it too.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Final

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from msgspec.structs import replace

from headwater.kafka.batch import Batch
from headwater.kafka.commit_notes import CommitNote, note_of
from headwater.kafka.fast_client.commits import committed
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.leader_epochs import epoch_ends, kept_ends
from headwater.kafka.plain_client import PlainConsumer
from headwater.kafka.topic_identity import Identity, identities
from headwater.messages import Gap

log = structlog.get_logger(__name__)

_EMPTY_NOTE: Final = CommitNote()
_TIMEOUT_S: Final = 5.0
_NO_END: Final = 2**63
OnLost = Callable[[TopicPartition, Gap, bool], None]


class GroupLogs:
    """The logs of one member's partitions.

    Args:
        remedies: by topic, what to do where its handler stops the worker for a log that has become shorter; "" where the
            log is read on from where it was lost.
    """

    def __init__(self, remedies: Mapping[str, str]) -> None:
        self._remedies = remedies
        self._on_lost: list[OnLost] = []
        self._notes: dict[TopicPartition, CommitNote] = {}  # what is committed beside offsets

    def on_lost(self, callback: OnLost) -> None:
        """See `ConsumerGroup.on_lost`."""
        self._on_lost.append(callback)

    def note(self, tp: TopicPartition) -> CommitNote:
        """What is to be committed beside an offset of ``tp``."""
        return self._notes.get(tp, _EMPTY_NOTE).without_old_gap()

    def gaps(self) -> dict[TopicPartition, Gap]:
        """See `ConsumerGroup.gaps`."""
        return {tp: gap for tp in self._notes if (gap := self.note(tp).gap) is not None}

    def note_gap(self, tp: TopicPartition, gap: Gap) -> None:
        """See `ConsumerGroup.note_gap`."""
        note = self.note(tp)
        is_new = gap != note.gap
        if is_new:
            self._notes[tp] = replace(note, gap=gap, gap_at_ms=int(time.time() * 1000.0))
        self._tell_lost(tp, gap, is_new)

    async def assigned(
        self, consumer: Consumer | PlainConsumer, tps: Set[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """Take note of what is committed beside the offsets of newly assigned partitions, and of which logs there are.

        Returns the offsets at which partitions are to be read instead, or behind them if the log begins there, since the
        commit says nothing of the log that there is now: the topic was made again, or it has become shorter, whether or
        not it has grown again. Topics with a remedy have owners that stop in the latter case.
        """
        kept = await committed(consumer, tps)
        logs = await self._logs_now(consumer)
        notes = {tp: note_of(kept[tp].metadata) if tp in kept else CommitNote() for tp in tps}
        mended = {tp: kept[tp] for tp in kept if tp in tps and not self._remedies.get(tp.topic)}
        ends, last_kept = await _ends(consumer, list(mended)), await kept_ends(consumer.client, mended)
        before, self._notes = self._notes, {}
        elsewhere = {}
        for tp, note in notes.items():
            log_now = logs.get(tp, Identity())
            if log_now.is_another_than(note.topic_id):
                log.error(
                    "topic_made_again",
                    topic=tp.topic,
                    partition=tp.partition,
                    committed=kept[tp].offset,
                    effect="what of the former topic had not been read is lost; this one is read from its start, or the "
                    "worker stops and says what is to be done first",
                )
                elsewhere[tp] = 0
            elif tp in kept and kept[tp].offset > min(ends.get(tp, _NO_END), last_kept.get(tp, _NO_END)):
                elsewhere[tp] = last_kept.get(tp, 0)
                log.error(
                    "log_became_shorter",
                    topic=tp.topic,
                    partition=tp.partition,
                    committed=kept[tp].offset,
                    end=ends.get(tp),
                    reason="an unclean leader election, or the log was restored from an older copy, or the topic was "
                    "re-created",
                    effect=f"what had not been read is lost; the log is read from offset {elsewhere[tp]} on",
                )
            held = before.get(tp, _EMPTY_NOTE)
            if tp in elsewhere:
                note = CommitNote()
            elif held.gap_at_ms > note.gap_at_ms and not log_now.is_another_than(held.topic_id):
                # Noticed by this member, and not committed yet.
                note = replace(note, gap=held.gap, gap_at_ms=held.gap_at_ms)
            self._notes[tp] = note = replace(note, topic_id=log_now.topic_id or note.topic_id)
            if (gap := note.without_old_gap().gap) is not None:
                self._tell_lost(tp, gap, False)
        return elsewhere

    async def _logs_now(self, consumer: Consumer | PlainConsumer) -> dict[TopicPartition, Identity]:
        """Which logs there are now, as far as the broker tells in time. A rebalance must not fail for it: it is asked again."""
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await identities(consumer.client, self._remedies.keys())
        except (KafkaError, OSError, TimeoutError):
            return {}

    async def made_again(self, reader: Consumer | PlainConsumer) -> str | None:
        """A sentence if a topic was made again under a running member, whose positions say nothing of the new one."""
        for tp, now in (await self._logs_now(reader)).items():
            note = self._notes.get(tp)
            if note is not None and note.topic_id is None and now.topic_id is not None:
                self._notes[tp] = replace(note, topic_id=now.topic_id)
            if now.is_another_than(self.note(tp).topic_id):
                return (
                    f"{tp.topic}: the topic was made again while it was read; what of the former one had not been read is "
                    "lost. Start the worker again: it reads the new topic from its start, or says what is to be done first"
                )
        return None

    def leader_epoch(self, tp: TopicPartition) -> int | None:
        """That of the newest batch which has begun; None: unknown."""
        return self._notes.get(tp, _EMPTY_NOTE).leader_epoch

    async def take_epoch(
        self, batch: Batch, read_to: int | None, reader: Consumer | PlainConsumer | None
    ) -> str | None:
        """Have the leader epoch of a batch committed with it.

        Returns:
            a sentence if the log has lost some of what was read before, up to ``read_to``. It may have lost that under a
            running member, and have grown again before the member fetched from it.
        """
        tp, known, now = batch.tp, self.leader_epoch(batch.tp), batch.leader_epoch
        if known is not None and now is not None and read_to is not None and reader is not None:
            end = (await epoch_ends(reader.client, {tp: known})).get(tp, read_to)
            if end < read_to:
                return (
                    f"{tp.topic}-{tp.partition}: the log was read up to offset {read_to}, and from {end} on it has other "
                    "records now: it had become shorter (an unclean leader election, or it was restored from an older "
                    f"copy). Start the worker again. {self._remedies[tp.topic]}".rstrip()
                )
        if tp in self._notes:
            self._notes[tp] = replace(self._notes[tp], leader_epoch=now)
        return None

    def _tell_lost(self, tp: TopicPartition, gap: Gap, is_new: bool) -> None:
        for callback in self._on_lost:
            callback(tp, gap, is_new)


async def _ends(
    consumer: Consumer | PlainConsumer, tps: Sequence[TopicPartition]
) -> dict[TopicPartition, int]:
    """Where logs end, as far as the broker tells in time."""
    if not tps:
        return {}
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            return dict(await consumer.end_offsets(tps))
    except (KafkaError, OSError, TimeoutError):
        return {}
