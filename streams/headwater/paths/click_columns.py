"""Records of a clicks partition as arrays: valid clicks, those that are bad, and those that belong elsewhere.

Nearly all clicks are valid, so a few dozen are checked together. Only a group that fails is looked at click by click.
"""

import asyncio
from collections.abc import Sequence
from itertools import repeat
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

import msgspec
import numpy as np
from aiokafka import ConsumerRecord
from msgspec import Struct

from headwater.encoder.features import ACTION_CODES, event_key, event_keys, item_keys
from headwater.kafka.dead_letters import DeadLetter
from headwater.kafka.forwarding import Stray, redirect
from headwater.kafka.headers import ORIGIN, Origin
from headwater.kafka.partitioner import partitions_of
from headwater.messages import (
    MAX_AHEAD_MS,
    MAX_ID_BYTES,
    MAX_MESSAGE_BYTES,
    PROBE_PREFIX,
    TOLERATED_AHEAD_MS,
    ActionName,
    AtMs,
    BadMessage,
    Id,
    decode_click,
)
from headwater.profiles.apply_clicks import Clicks
from headwater.profiles.columns import I64
from headwater.profiles.partition import Partition
from headwater.profiles.sealed import NEWER_FORMAT

# Parsing this many records takes about a millisecond. In between, the event loop gets a turn, so requests do not wait.
_SLICE: Final = 400
# A bad click costs this many records a second look.
_CHUNK: Final = 64
_PROBE: Final = PROBE_PREFIX.encode()
_SEALED: Final = "the user's state is of a newer format than this version reads: the click is not applied"


class ClickRecord(Protocol):
    """The fields of a Kafka record that parsing reads."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


RecordT = TypeVar("RecordT", bound=ClickRecord)


class ParsedClicks(NamedTuple, Generic[RecordT]):
    """Valid clicks in the order of their records: one place each in every list. Ids are UTF-8."""

    records: list[RecordT]
    users: list[bytes]
    event_ids: list[bytes]
    item_ids: list[bytes]
    at_ms: list[int]
    actions: list[str]

    def extend(self, more: "ParsedClicks[RecordT]") -> None:
        """Append clicks in place."""
        self.records.extend(more.records)
        self.users.extend(more.users)
        self.event_ids.extend(more.event_ids)
        self.item_ids.extend(more.item_ids)
        self.at_ms.extend(more.at_ms)
        self.actions.extend(more.actions)

    def take(self, places: Sequence[int]) -> "ParsedClicks[RecordT]":
        """The clicks at ``places``, in that order."""
        return ParsedClicks(*([column[place] for place in places] for column in self))  # type: ignore[arg-type]


class BadClick(NamedTuple, Generic[RecordT]):
    """A record that is no valid click: the code for counting, and the sentence."""

    record: RecordT
    reason: str
    message: str


class _PlainClick(Struct, frozen=True, gc=False):
    """A `Click` about an item, in which msgspec itself checks all that can be told from one field."""

    event_id: Id
    user_id: Id
    item_id: Id
    at_ms: AtMs
    action: ActionName = "click"
    context: dict[str, msgspec.Raw] | None = None


_decode_plain: Final = msgspec.json.Decoder(_PlainClick).decode


def parse(records: Sequence[RecordT], now_ms: int) -> tuple[ParsedClicks[RecordT], list[BadClick[RecordT]]]:
    """The clicks that :func:`headwater.messages.decode_click` accepts, and the others."""
    good: ParsedClicks[RecordT] = ParsedClicks([], [], [], [], [], [])
    bad: list[BadClick[RecordT]] = []
    for start in range(0, len(records), _CHUNK):
        chunk = records[start : start + _CHUNK]
        if not _add_plain(good, chunk, now_ms):
            bad += _add_singly(good, chunk, now_ms)
    return good, bad


def _add_plain(good: ParsedClicks[RecordT], records: Sequence[RecordT], now_ms: int) -> bool:
    """Append all of ``records``, or none if any needs a closer look."""
    try:
        values = [record.value for record in records]
        if max(map(len, values)) > MAX_MESSAGE_BYTES:  # type: ignore[arg-type]
            return False
        clicks = [_decode_plain(value) for value in values]  # type: ignore[arg-type]
        users = [click.user_id.encode() for click in clicks]
        event_ids = [click.event_id.encode() for click in clicks]
        item_ids = [click.item_id.encode() for click in clicks]
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
        return False
    at_ms = [click.at_ms for click in clicks]
    sizes = (max(map(len, ids)) for ids in (users, event_ids, item_ids))
    if (
        users != [record.key for record in records]
        or max(sizes) > MAX_ID_BYTES
        or max(at_ms) > min(now_ms, *(record.timestamp for record in records)) + MAX_AHEAD_MS
    ):
        return False
    good.records.extend(records)
    good.users.extend(users)
    good.event_ids.extend(event_ids)
    good.item_ids.extend(item_ids)
    good.at_ms.extend(at_ms)
    good.actions.extend([click.action for click in clicks])
    return True


def _add_singly(
    good: ParsedClicks[RecordT], records: Sequence[RecordT], now_ms: int
) -> list[BadClick[RecordT]]:
    """Append the valid ones of ``records``; returns the others."""
    bad: list[BadClick[RecordT]] = []
    for record in records:
        try:
            click = decode_click(record.key, record.value, _came_ms(record, now_ms))
        except BadMessage as error:
            # Not the error: its traceback refers to this call, and so would keep the whole batch in a cycle.
            bad.append(BadClick(record, error.reason, str(error)))
            continue
        good.records.append(record)
        good.users.append(click.user_id.encode())
        good.event_ids.append(click.event_id.encode())
        good.item_ids.append(click.item_id.encode())
        good.at_ms.append(click.at_ms)
        good.actions.append(click.action)
    return bad


def _came_ms(record: ClickRecord, now_ms: int) -> int:
    """The latest time that an event of this record can honestly have. A record without a timestamp has -1."""
    return min(record.timestamp, now_ms) if record.timestamp >= 0 else now_ms


class ClickBatch(NamedTuple):
    """N valid clicks of one partition's own users, in offset order: one place each in every field."""

    clicks: Clicks  # (N,) each
    records: list[ConsumerRecord]
    users: list[bytes]
    event_ids: list[bytes]
    sent_ms: I64  # (N,) timestamps of the records; of those without one, the time of the batch
    origins: list[tuple[int, int, int]]  # (place, partition, offset) of each click that was forwarded to here

    def part(self, start: int, stop: int, partition: Partition) -> "ClickBatch":
        """The clicks from ``start`` to ``stop`` (excluded). Rows are looked up again: a forget before gave some away.

        Raises:
            StopWorker: there is no room on the disk for a new user.
        """
        users = self.users[start:stop]
        rows = np.array([partition.row_of(user) for user in users], dtype=np.int64)
        return ClickBatch(
            self.clicks.take(slice(start, stop))._replace(row=rows),
            self.records[start:stop],
            users,
            self.event_ids[start:stop],
            self.sent_ms[start:stop],
            [(place - start, *of) for place, *of in self.origins if start <= place < stop],  # type: ignore[misc]
        )


class Decoded(NamedTuple):
    """The records of one batch, by what happens to them."""

    good: ClickBatch
    bad: list[DeadLetter]
    strays: list[Stray]  # clicks of users of other partitions
    sealed: list[tuple[bytes, int]]  # users and event keys of clicks that cannot be applied, see `sealed.py`


async def decode(
    records: Sequence[ConsumerRecord], partition: Partition, partitions: int, now_ms: int
) -> Decoded:
    """Sort the records of a batch of ``partition``, one of ``partitions``. Its new users get rows.

    No event is later than its record or ``now_ms``: one that a publisher dates further ahead counts as of then. Ahead
    of all others it would fill the user's log until its time comes, and what the user does until then came too late.

    Raises:
        StopWorker: there is no room on the disk for a new user.
    """
    parsed, bad = parse(records[:_SLICE], now_ms)
    for start in range(_SLICE, len(records), _SLICE):
        await asyncio.sleep(0)
        more, more_bad = parse(records[start : start + _SLICE], now_ms)
        parsed.extend(more)
        bad += more_bad
    letters = [DeadLetter(*each) for each in bad]
    known = partition.columns.rows
    rows = np.fromiter(map(known.get, parsed.users, repeat(-1)), dtype=np.int64, count=len(parsed.users))
    unknown = np.flatnonzero(rows < 0).tolist()
    strays: list[Stray] = []
    sealed: list[tuple[bytes, int]] = []
    is_ours = np.ones(len(rows), dtype=np.bool_)
    homes = partitions_of([parsed.users[place] for place in unknown], partitions)
    for place, home in zip(unknown, homes, strict=True):
        if home == partition.number:
            if not _stays_sealed(parsed, place, partition):
                rows[place] = partition.row_of(parsed.users[place])
                continue
            is_ours[place] = False
            sealed.append((parsed.users[place], event_key(parsed.event_ids[place].decode())))
            if parsed.actions[place] != "impression":  # which changes nothing
                letters.append(DeadLetter(parsed.records[place], NEWER_FORMAT, _SEALED))
            continue
        is_ours[place] = False
        match redirect(parsed.records[place], parsed.users[place], home):
            case DeadLetter() as letter:
                letters.append(letter)
            case stray:
                strays.append(stray)
    if not is_ours.all():
        rows, parsed = rows[is_ours], parsed.take(np.flatnonzero(is_ours).tolist())
    return Decoded(_batch(rows, parsed, now_ms), letters, strays, sealed)


def _stays_sealed(parsed: ParsedClicks[ConsumerRecord], place: int, partition: Partition) -> bool:
    """Whether a click cannot be applied, since its user is sealed and stays so. A forget that is new ends that.

    The state of a freshness probe is of no worth, so it begins anew.
    """
    user = parsed.users[place]
    if user not in partition.sealed:
        return False
    if user.startswith(_PROBE):
        del partition.sealed[user]
        return False
    return parsed.actions[place] != "forget" or not partition.unseal(user, parsed.records[place].offset)


def _batch(rows: I64, parsed: ParsedClicks[ConsumerRecord], now_ms: int) -> ClickBatch:
    count = len(rows)
    sent_ms = np.fromiter([record.timestamp for record in parsed.records], dtype=np.int64, count=count)
    sent_ms = np.where(sent_ms < 0, now_ms, sent_ms)
    at_ms, came_ms = np.array(parsed.at_ms, dtype=np.int64), np.minimum(sent_ms, now_ms)
    at_ms = np.where(at_ms > came_ms + TOLERATED_AHEAD_MS, came_ms, at_ms)
    clicks = Clicks(
        rows,
        np.fromiter([record.offset for record in parsed.records], dtype=np.int64, count=count),
        at_ms,
        event_keys(parsed.event_ids),
        item_keys(parsed.item_ids),
        np.array([ACTION_CODES[action] for action in parsed.actions], dtype=np.uint8),
    )
    origins = [
        (place, origin.partition, origin.offset)
        for place, record in enumerate(parsed.records)
        if record.headers and isinstance(origin := ORIGIN.of(record.headers), Origin)
    ]
    return ClickBatch(clicks, parsed.records, parsed.users, parsed.event_ids, sent_ms, origins)
