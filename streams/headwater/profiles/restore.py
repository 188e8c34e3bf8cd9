"""A partition's users read from the profiles topic, its changelog, when the partition is assigned.

A stale worker may have written after its successor. So the *newest* record of a user wins, by `Order`, wherever it
stands, and users whose newest record is followed by an older one are noted as overwritten.

A record that is damaged is skipped and reported. Its user keeps what an earlier record says, and is written again. A
user who has no other record is unknown from then on: the clicks that made the state have been committed, and may be gone.

A record of a newer format has its place in the order. Where it is the newest one, its user is sealed (`sealed.py`).
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from headwater.kafka.epochs import CLAIM_KEY, MAX_EPOCH
from headwater.kafka.headers import APPLIED, CLAIM, ERASURE, AppliedOffset, BadHeader, Claim, Erasure
from headwater.kafka.read_to_end import read_to_end
from headwater.kafka.topic_identity import Identity
from headwater.kafka.topics import Topics
from headwater.messages import MAX_ID_BYTES
from headwater.profiles.clicks_log import ACCEPT_KEY, OnLost, settle
from headwater.profiles.erasures import Erased
from headwater.profiles.order import MAX_INCARNATION, UNTOLD, Order, supersedes
from headwater.profiles.partition import Partition
from headwater.profiles.sealed import Sealed
from headwater.profiles.state_records import is_of_newer_format, orders_of, past, unpack

logger = structlog.get_logger(__name__)

_MAX_RECORDS: Final = 20_000


class Restored(NamedTuple):
    """How many records were read, and how many of them could not be."""

    records: int
    damaged: int


async def restore(
    reader: AIOKafkaConsumer,
    topics: Topics,
    partitions: Sequence[Partition],
    bundle: int,
    identities: Mapping[TopicPartition, Identity],
    on_lost: OnLost,
) -> Restored:
    """Bring partitions up to the end of the changelog. Harmless when repeated. Nothing else may use ``reader``.

    ``identities`` are those of the clicks topic, as far as the broker tells. ``on_lost`` is told of clicks that are gone
    from it, and of which nothing says that they have been applied.

    Raises:
        StopWorker: the changelog cannot be read to its end, or rests on another clicks log than the one there is.
        KafkaError: the broker refused, or is away.
    """
    tps = {TopicPartition(topics.profiles, each.number): each for each in partitions}
    reader.assign(list(tps))
    for tp, partition in tps.items():
        log = identities.get(TopicPartition(topics.clicks, partition.number))
        partition.clicks_topic_id = None if log is None else log.topic_id
        partition.rewind_to_first_gap()
        reader.seek(tp, partition.changelog_next)
    read = damaged = 0
    async for run in read_to_end(reader, tps, max_records=_MAX_RECORDS):
        partition = tps[run.tp]
        damaged += load(partition, run.records, bundle, topics.profiles)
        partition.changelog_next = run.next_offset
        read += len(run.records)
    clicks = {TopicPartition(topics.clicks, each.number): each for each in partitions}
    damaged += await settle(reader, clicks, identities, on_lost)
    return Restored(read, damaged)


def load(partition: Partition, records: Sequence[ConsumerRecord], bundle: int, topic: str) -> int:
    """Apply changelog records in offset order; returns how many of them are damaged.

    Raises:
        StopWorker: there is no room for a new user on the disk.
    """
    winners, damaged = _newest(partition, records, topic)
    kept: list[tuple[bytes, ConsumerRecord]] = []
    for user, (order, record) in winners.items():
        partition.sealed.pop(user, None)
        is_sealed = record.value is not None and is_of_newer_format(record.value)
        if record.value is not None and not is_sealed:
            kept.append((user, record))
            continue
        if user in partition.columns.rows:
            partition.columns.remove(user)
        if is_sealed:
            partition.sealed[user] = Sealed(order, record.offset)
            continue
        erasure = ERASURE.of(record.headers)
        if isinstance(erasure, Erasure):
            (erased_ms,) = past(np.array([erasure.erased_ms]), np.array([record.timestamp])).tolist()
            partition.erasures.put(user, Erased(erased_ms, order, record.timestamp // 1000))
    rows = np.array([partition.row_of(user) for user, _ in kept], dtype=np.int64)
    written_ms = np.array([record.timestamp for _, record in kept], dtype=np.int64)
    unpack(partition.columns, rows, [record.value for _, record in kept], bundle, written_ms)
    # A user of whom nothing is known: versions up to 0.1.0 kept those that had impressions only.
    for place in np.flatnonzero(partition.columns.n[rows] == 0).tolist():
        (user, _), row = kept[place], int(rows[place])
        erased = Erased(int(partition.columns.forgotten_ms[row]), partition.columns.order(row))
        partition.columns.remove(user)
        partition.erasures.put(user, erased)
        partition.overwritten.add(user)
    return damaged


Winners = dict[bytes, tuple[Order, ConsumerRecord]]


def _newest(partition: Partition, records: Sequence[ConsumerRecord], topic: str) -> tuple[Winners, int]:
    """The newest record of each user, and how many are damaged. Users with another record after it are overwritten."""
    orders = orders_in(records)
    sound = [order for order in orders if order is not None]
    incarnations, _, epochs = zip(*sound, strict=True) if sound else ((), (), ())
    partition.highest_epoch = max((partition.highest_epoch, *epochs))
    partition.incarnation = max((partition.incarnation, *incarnations))
    damaged = len(orders) - len(sound)
    winners: Winners = {}
    for record, order in zip(records, orders, strict=True):
        user = record.key
        held = winners.get(user)
        known = (held[0], held[1].value is None) if held is not None else partition.order_of(user)
        if order is None:
            logger.error(
                "changelog_record_damaged", topic=topic, partition=partition.number, offset=record.offset
            )
            if known is not None:
                partition.overwritten.add(user)
        elif user == CLAIM_KEY:
            claim = CLAIM.of(record.headers)
            if isinstance(claim, Claim) and _is_of_another_log(claim, partition):
                logger.error(
                    "claim_of_another_log",
                    topic=topic,
                    partition=partition.number,
                    offset=record.offset,
                    topic_id=claim.topic_id,
                    effect="it is skipped: a claim before it is of the clicks topic as it is now",
                )
                damaged += 1
            # A stale worker may have claimed after its successor.
            elif isinstance(claim, Claim) and (
                partition.claim is None or claim.epoch >= partition.claim.epoch
            ):
                partition.claim, partition.log_is_accepted = claim, False
        elif user == ACCEPT_KEY:
            partition.log_is_accepted = True
        elif known is None or supersedes(order, record.value is None, *known):
            winners[user] = (order, record)
            partition.overwritten.discard(user)
        else:
            partition.overwritten.add(user)
    return winners, damaged


def _is_of_another_log(claim: Claim, partition: Partition) -> bool:
    """Whether a claim names another clicks topic than that of today, after one that names it: no owner goes back."""
    today, held = partition.clicks_topic_id, partition.claim
    is_known = today is not None and held is not None and held.topic_id == today
    return is_known and claim.topic_id not in (None, today)


def orders_in(records: Sequence[ConsumerRecord]) -> list[Order | None]:
    """The place of each changelog record among those of its key; None for one that is damaged, or not ours."""
    states = iter(orders_of([r.value for r in records if r.value is not None and r.key != CLAIM_KEY]))
    orders: list[Order | None] = []
    for record in records:
        if record.key == CLAIM_KEY:
            claim = CLAIM.of(record.headers)
            order = Order(claim.incarnation, claim.applied, claim.epoch) if isinstance(claim, Claim) else None
        elif record.value is not None:
            order = next(states)
        else:
            order = _order_of_tombstone(record)
        is_possible = order is not None and order.epoch <= MAX_EPOCH and order.incarnation <= MAX_INCARNATION
        orders.append(order if is_possible and _is_key(record.key) else None)
    return orders


def _order_of_tombstone(record: ConsumerRecord) -> Order | None:
    """A tombstone without a time is of somebody else, and older than whatever is ours."""
    erasure, applied = ERASURE.of(record.headers), APPLIED.of(record.headers)
    if isinstance(erasure, BadHeader) or isinstance(applied, BadHeader):
        return None
    incarnation, offset = applied or AppliedOffset(0, UNTOLD)
    return Order(incarnation, offset, -1 if erasure is None else erasure.epoch)


def is_user(key: bytes | None) -> bool:
    """Whether a record with this key is of a user, not of the changelog itself or of somebody else."""
    return _is_key(key) and key not in (CLAIM_KEY, ACCEPT_KEY)


def _is_key(key: bytes | None) -> bool:
    """Whether a record may have this key: that of a user, or one of those of the changelog itself."""
    if not key or len(key) > MAX_ID_BYTES:
        return False
    try:
        key.decode()
    except UnicodeDecodeError:
        return key in (CLAIM_KEY, ACCEPT_KEY)
    return True
