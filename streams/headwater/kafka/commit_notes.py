"""What is committed beside an offset, in the metadata that Kafka keeps with it.

An offset means something in one log only, and says nothing of what was skipped on the way to it. So it is committed
together with the id of its topic, with the leader epoch of what was read, and with the newest offsets that were gone before
they were read. The next owner knows all three.
"""

import time
from typing import Final

import msgspec
from aiokafka.structs import OffsetAndMetadata
from msgspec import Struct
from msgspec.structs import replace

from headwater.kafka.topic_identity import Identity
from headwater.messages import Gap

# By default clicks are kept for seven days: then a gap is no more than what any reader misses.
_TOLD_MS: Final = 7 * 86_400_000


class CommitNote(Struct, frozen=True, omit_defaults=True):
    """Told of a partition with its committed offset."""

    topic_id: str | None = None  # of the log that the offset is of; None: the broker gives topics no ids
    gap: Gap | None = None
    gap_at_ms: int = 0  # when the gap was noticed
    # Of the record before the offset, or of a later one of the same log; None: unknown.
    leader_epoch: int | None = None

    def without_old_gap(self, now_ms: float | None = None) -> "CommitNote":
        """The note, without a gap that need not be told any more."""
        now_ms = time.time() * 1000.0 if now_ms is None else now_ms
        if self.gap is None or now_ms - self.gap_at_ms < _TOLD_MS:
            return self
        return replace(self, gap=None, gap_at_ms=0)


_NOTES: Final = msgspec.json.Decoder(CommitNote)


def note_text(note: CommitNote) -> str:
    """The metadata of a commit."""
    return msgspec.json.encode(note).decode()


def note_of(text: str | None) -> CommitNote:
    """The note in a commit's metadata; an empty one where others have committed."""
    try:
        return _NOTES.decode((text or "{}").encode())
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return CommitNote()


def vouches_for(commit: OffsetAndMetadata | None, log: Identity, end: int) -> bool:
    """Whether an offset was committed of the log that there is now, which ends at ``end``.

    Workers commit only once they have found that what they know rests on that log. So a record of another one, or from
    beyond its end, is not theirs.
    """
    return commit is not None and commit.offset <= end and note_of(commit.metadata).topic_id == log.topic_id
