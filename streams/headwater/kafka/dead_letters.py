"""The dead-letter topic: bad messages as they came, with the reason in their headers, so nothing is lost silently."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import structlog
from aiokafka import ConsumerRecord

from headwater.errors import StopWorker
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.fast_client.records import Record, Unreadable
from headwater.kafka.headers import dead_letter_headers
from headwater.kafka.publish import Outgoing, write_all
from headwater.metrics import Metrics

log = structlog.get_logger(__name__)

# What is longer is cut. The topic takes 2.2 MB, which leaves room for the headers.
MAX_VALUE_BYTES: Final = 2_000_000
_LEAST_CUT_BYTES: Final = 400
# Every reason of a dead letter, and what mends the cause. What is not mended by others is mended by its publisher.
REASONS: Final[Mapping[str, str]] = {
    "bad_json": "the publisher writes JSON in UTF-8",
    "bad_field": "the publisher writes the field as `headwater schema` says, or a newer version of the workers knows it",
    "bad_utf8": "the publisher writes UTF-8",
    "null_value": "the publisher writes a message",
    "null_key": "the publisher writes the item's id as the key",
    "key_mismatch": "the publisher writes the id of the message as the key, or none",
    "time_in_future": "the publisher's clock is set, or the time has come",
    "bad_timestamp": "the topic takes the record's timestamp (message.timestamp.before.max.ms, after.max.ms)",
    "too_large": "the topic takes larger records (max.message.bytes)",
    "misrouted": "all workers have the same HEADWATER_PARTITIONS",
    "no_text": "the item has a title, or the bundle is one of item ids",
    "key_collision": "the item gets another id",
    "no_item": "the items come into the catalog first",
    "bad_vector": "the bundle gives finite vectors for such an item: another bundle, or another text",
    "internal_error": "a version of the workers that mends the bug that their log tells of",
    "corrupt": "nothing: nobody can read it",
    "too_large_unpacked": "the publisher sends smaller batches; what is lost has to be published again",
    "bad_correlation_id": "the client sends a shorter correlation id",
    "bad_reply_partition": "the client names a partition of its reply topic",
    "reply_topic_not_allowed": "HEADWATER_REPLY_TOPICS names the topic",
    "unknown_partition": "the client names a partition that the clicks topic has",
    "bad_filter": "the client sends a valid filter",
    "too_costly": "the client asks for less at a time",
}


class DeadLetter(NamedTuple):
    """A record that cannot be used: ``reason`` is a label of the metric, ``message`` a sentence for a person.

    ``last_offset``: it stands for all records up to there, and has the content of none.
    """

    record: ConsumerRecord
    reason: str
    message: str
    last_offset: int | None = None


class DeadLetters:
    """Writes to the dead-letter topic. Put the letters of a batch before you finish the batch."""

    def __init__(self, producer: Producer, topic: str, metrics: Metrics) -> None:
        self._producer, self._topic, self._metrics = producer, topic, metrics

    async def put(self, letters: Sequence[DeadLetter]) -> None:
        """Write the letters, wait until the broker has acknowledged them, and count them.

        A letter that is too large for the topic is cut further, at last to its headers.

        Raises:
            StopWorker: the broker did not take them in time, or not even the headers of one.
        """
        if not letters:
            return
        most, waiting = MAX_VALUE_BYTES, list(letters)
        while waiting:
            outgoing = [_outgoing(letter, most) for letter in waiting]
            refused = {
                id(each.record): each for each in await write_all(self._producer, self._topic, 0, outgoing)
            }
            waiting = [letter for letter, out in zip(waiting, outgoing, strict=True) if id(out) in refused]
            if waiting and most == 0:
                message = next(iter(refused.values())).message
                raise StopWorker(f"{message}: expected a topic that takes 12 kB (max.message.bytes)")
            most = most // 4 if most >= _LEAST_CUT_BYTES else 0
        for letter in letters:
            self._metrics.dead_letters_total.labels(letter.reason).inc()
        first = letters[0]
        log.warning(
            "dead_letters",
            topic=first.record.topic,
            partition=first.record.partition,
            count=len(letters),
            first_offset=first.record.offset,
            reasons=sorted({letter.reason for letter in letters}),
        )

    async def put_unreadable(self, unreadable: Sequence[Unreadable]) -> None:
        """Say on the topic what was passed, since nobody can read it. Raises StopWorker, as :meth:`put` does."""
        await self.put([_letter(each) for each in unreadable])


def _letter(unreadable: Unreadable) -> DeadLetter:
    topic, partition, first, last, reason, message = unreadable
    return DeadLetter(Record(topic, partition, first, -1, None, None, ()), reason, message, last)


def _outgoing(letter: DeadLetter, most_bytes: int) -> Outgoing:
    record = letter.record
    value = record.value and record.value[:most_bytes]
    is_cut = value != record.value
    headers = dead_letter_headers(
        letter.reason,
        letter.message,
        record.topic,
        record.partition,
        record.offset,
        record.key,
        letter.last_offset,
        len(record.value) if is_cut and record.value else None,
        record.headers,
    )
    # A key of its own: a tombstone takes out this letter and no other of the same user.
    return Outgoing(f"{record.topic}/{record.partition}/{record.offset}".encode(), value, headers)
