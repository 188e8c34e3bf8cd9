"""A partition's users read from the profiles topic, its changelog, when the partition is assigned.

A stale worker may have written after its successor. So the last record *of the newest generation* wins, and users whose
winning record is followed by a stale one are noted as overwritten.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from headwater.errors import StopWorker
from headwater.kafka.headers import Erasure, erasure_of
from headwater.kafka.read_to_end import read_to_end
from headwater.kafka.supervision import topic_recreated_error
from headwater.kafka.topics import Topics
from headwater.profiles.partition import Partition
from headwater.profiles.state_records import RecordError, generation_of, unpack

_MAX_RECORDS: Final = 20_000


async def restore(
    reader: AIOKafkaConsumer, topics: Topics, partitions: Sequence[Partition], bundle: int
) -> int:
    """Bring partitions up to the end of the changelog. Harmless when repeated. Nothing else may use ``reader``.

    Returns:
        the number of records read.

    Raises:
        StopWorker: the changelog cannot be read to its end, or knows more clicks than the clicks topic has.
        KafkaError: the broker refused, or is away.
    """
    clicks = {TopicPartition(topics.clicks, each.number): each for each in partitions}
    await _set_watermarks(reader, clicks, topics.profiles)
    tps = {TopicPartition(topics.profiles, each.number): each for each in partitions}
    reader.assign(list(tps))
    for tp, partition in tps.items():
        partition.rewind_to_first_gap()
        reader.seek(tp, partition.changelog_next)
    read = 0
    async for run in read_to_end(reader, tps, max_records=_MAX_RECORDS):
        partition = tps[run.tp]
        load(partition, run.records, bundle, topics.profiles)
        partition.changelog_next = run.next_offset
        read += len(run.records)
    await _check_applied(reader, clicks, topics.profiles)
    return read


async def _set_watermarks(
    reader: AIOKafkaConsumer, clicks: Mapping[TopicPartition, Partition], profiles_topic: str
) -> None:
    """Set the watermarks from the committed offsets, and refuse offsets that the clicks topic cannot have."""
    beginnings = await reader.beginning_offsets(list(clicks))
    ends = await reader.end_offsets(list(clicks))
    for tp, partition in clicks.items():
        committed = await reader.committed(tp)
        if committed is not None and committed > ends[tp]:
            raise topic_recreated_error(
                tp, f"the group's committed offset is {committed}", ends[tp], profiles_topic
            )
        next_offset = committed if committed is not None else beginnings[tp]
        partition.watermark = partition.applied = next_offset - 1


async def _check_applied(
    reader: AIOKafkaConsumer, clicks: Mapping[TopicPartition, Partition], profiles_topic: str
) -> None:
    """Refuse users with applied offsets beyond the end of the clicks topic.

    Kafka deletes a topic's committed offsets with it, and each click of a new topic would look applied already.
    """
    # Asked for only now: a former owner may have gone on for a while.
    for tp, end in (await reader.end_offsets(list(clicks))).items():
        columns = clicks[tp].columns
        rows = np.array(list(columns.rows.values()), dtype=np.int64)
        applied = int(columns.offset[rows].max(initial=-1))
        if applied >= end:
            raise topic_recreated_error(
                tp, f"clicks up to offset {applied} have been applied", end, profiles_topic
            )


def load(partition: Partition, records: Sequence[ConsumerRecord], bundle: int, topic: str) -> None:
    """Apply changelog records in offset order.

    Raises:
        StopWorker: a record is of a newer version or damaged, or there is no room for a new user on the disk.
    """
    winners = _newest(partition, records)
    kept = [record for record in winners if record.value is not None]
    for record in winners:
        if record.value is not None:
            continue
        if record.key in partition.columns.rows:
            partition.columns.remove(record.key)
        match erasure_of(record.headers):
            case Erasure(erased_ms, generation):
                partition.erasures.put(record.key, erased_ms, generation)
    rows = np.array([partition.row_of(record.key) for record in kept], dtype=np.int64)
    try:
        unpack(partition.columns, rows, [record.value for record in kept], bundle)
    except RecordError as error:
        raise StopWorker(
            f"{topic}-{partition.number}, offsets {records[0].offset} to {records[-1].offset}: {error}"
        ) from error


def _newest(partition: Partition, records: Iterable[ConsumerRecord]) -> list[ConsumerRecord]:
    """One record per user: the last of the newest generation. Users with a stale record after it are overwritten."""
    newest: dict[bytes, ConsumerRecord] = {}
    columns = partition.columns
    for record in records:
        held = newest.get(record.key)
        if held is not None:
            known = generation_of_record(held)
        elif (row := columns.rows.get(record.key)) is not None:
            known = int(columns.generation[row])
        else:
            known = partition.erasures.generation(record.key)
        if generation_of_record(record) >= known:
            newest[record.key] = record
            partition.overwritten.discard(record.key)
        else:
            partition.overwritten.add(record.key)
    return list(newest.values())


def generation_of_record(record: ConsumerRecord) -> int:
    """The generation of the group that wrote a changelog record; -1 for one that is not ours."""
    if record.value is not None:
        return generation_of(record.value)
    erasure = erasure_of(record.headers)
    return erasure.epoch if isinstance(erasure, Erasure) else -1
