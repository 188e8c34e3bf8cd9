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
# Every reason of a dead letter, and the remedy. Then a redrive publishes the record again.
REASONS: Final[Mapping[str, str]] = {
    "bad_json": "correct the publisher: it must write JSON in UTF-8",
    "bad_field": "correct the publisher: it must write the field as `headwater schema` says; or use workers of a newer version "
    "that knows the field",
    "bad_utf8": "correct the publisher: it must write UTF-8",
    "null_value": "correct the publisher: it must write a message",
    "null_key": "correct the publisher: the key must be the item's id",
    "key_mismatch": "correct the publisher: the key must be the id in the message, or none",
    "time_in_future": "set the publisher's clock, or wait until the time has come",
    "bad_timestamp": "let the topic take the record's timestamp (message.timestamp.before.max.ms, after.max.ms)",
    "too_large": "let the topic take larger records (max.message.bytes); a message has at most 2,000,000 bytes",
    "misrouted": "give all workers the same HEADWATER_PARTITIONS",
    "no_text": "give the item a title, or use a bundle of item ids",
    "key_collision": "give the item another id",
    "no_item": "publish the items to the catalog first",
    "bad_vector": "use another bundle, or another text: this one gives a vector that is not finite",
    "newer_format": "run the version that wrote the user's state, or a newer one, in all workers",
    "internal_error": "use a version of the workers without the bug that their log reports",
    "corrupt": "none: nobody can read the record",
    "too_large_unpacked": "let the publisher send smaller batches, and publish again what is lost",
    "bad_correlation_id": "let the client send a shorter correlation id",
    "bad_reply_partition": "let the client name a partition of its reply topic",
    "reply_topic_not_allowed": "add the topic to HEADWATER_REPLY_TOPICS",
    "unknown_partition": "let the client name a partition that the clicks topic has",
    "bad_filter": "let the client send a valid filter",
    "too_costly": "let the client ask for less at a time",
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
